// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/gpu.hpp"
#include "support/local_copy_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <string>
#include <system_error>
#include <vector>

using namespace ballast;

namespace {

ballast_test::gpu_only const needs_gpu;
using transport = cudart::peer_copy<cudart::local_peers::member>;
using ballast_test::local_copy_runner;

}  // namespace

TEST_CASE("peer copies inside a process obey the laws of transports") {
  ballast_test::check_transport_laws(local_copy_runner<>{});
}

TEST_CASE("one stream is enough") {
  ballast_test::check_transport_laws(local_copy_runner<>{{.num_streams = 1}, ballast_test::rank_counts({4})}, 20);
}

TEST_CASE("where devices may not read each other, bytes go through the host") {
  auto const never = [](int, int) { return false; };
  cudart::peer_copy_options const options{.num_streams = 3, .can_access = never, .bounce_bytes = 10'007};
  ballast_test::check_transport_laws(local_copy_runner<>{options, ballast_test::rank_counts({2, 4})}, 20);
}

TEST_CASE("a timed transport tells what its batches took on the device") {
  using namespace ballast_test;
  local_copy_runner<> const runner{{.timed = true}, {2, 4}};
  for (auto const size : runner.sizes()) {
    CAPTURE(size);
    check_complaints(runner.run(size, [](auto& self, law_log& log) { transport_law::tells_batch_times(self, log); }));
  }
}

TEST_CASE("options that make no sense are refused") {
  cudart::local_peers peers{1};
  CHECK_THROWS_AS((transport{peers.join(0), {.num_streams = 0}}), std::system_error);
  CHECK_THROWS_AS((transport{peers.join(0), {.bounce_bytes = 0}}), std::system_error);
}

TEST_CASE("sources outside a peer's regions are refused before a byte moves") {
  in_process_group group{2};
  cudart::local_peers peers{2};
  group.run([&](in_process_endpoint& control) {
    ballast_test::use_device_of(control.rank());
    transport wires{peers.join(control.rank())};
    ballast_test::gpu_memory memory;
    segment const mine{memory.allocate(1000), 1000};
    wires.expose({&mine, 1}).or_throw();
    for (remote_segment const wrong :
         {remote_segment{1, 0, 10}, remote_segment{0, 995, 10}, remote_segment{0, 2000, 10}}) {
      segment const target{memory.allocate(10), 10};
      segment const part{mine.data, 10};
      auto const tag = static_cast<std::uint64_t>(wrong.offset + wrong.region);
      outgoing_message const send{1, 0, tag, {&part, 1}};
      incoming_message const receive{0, 0, tag, {&target, 1}, {&wrong, 1}};
      bool const sends = control.rank() == 0;
      auto result = wires.start({&send, sends ? 1u : 0u}, {&receive, sends ? 0u : 1u});
      if (result.ok()) { result = wires.wait(200'000'000); }
      if (!result.ok() && result.message().find("rank") != std::string::npos) { continue; }
      throw std::runtime_error{"accepted, or no rank named: " + result.message()};
    }
  });
}
