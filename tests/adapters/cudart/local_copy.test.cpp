// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/gpu.hpp"
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

/// Ranks are threads of this process.
struct local_copy_runner {
  static constexpr bool can_lose_ranks = false;
  cudart::peer_copy_options options = {};
  std::vector<index_t> group_sizes = ballast_test::rank_counts({1, 2, 4, 8});

  [[nodiscard]] std::vector<index_t> const& sizes() const { return group_sizes; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(index_t num_ranks, Body body) const {
    in_process_group group{num_ranks};
    cudart::local_peers peers{num_ranks};
    std::vector<std::vector<std::string>> complaints(static_cast<std::size_t>(num_ranks));
    group.run([&](in_process_endpoint& control) {
      ballast_test::use_device_of(control.rank());
      ballast_test::law_log log{control.rank()};
      transport wires{peers.join(control.rank()), options};
      ballast_test::law_endpoint<in_process_endpoint, transport, ballast_test::gpu_memory> self{control, wires};
      body(self, log);
      complaints[static_cast<std::size_t>(control.rank())] = log.complaints();
    });
    std::vector<std::string> all;
    for (auto const& some : complaints) { all.insert(all.end(), some.begin(), some.end()); }
    return all;
  }
};

}  // namespace

TEST_CASE("peer copies inside a process obey the laws of transports") {
  ballast_test::check_transport_laws(local_copy_runner{});
}

TEST_CASE("one stream is enough") {
  ballast_test::check_transport_laws(local_copy_runner{{.num_streams = 1}, ballast_test::rank_counts({4})}, 20);
}

TEST_CASE("where devices may not read each other, bytes go through the host") {
  auto const never = [](int, int) { return false; };
  cudart::peer_copy_options const options{.num_streams = 3, .can_access = never, .bounce_bytes = 10'007};
  ballast_test::check_transport_laws(local_copy_runner{options, ballast_test::rank_counts({2, 4})}, 20);
}

TEST_CASE("a timed transport tells what its batches took on the device") {
  using namespace ballast_test;
  local_copy_runner const runner{{.timed = true}, {2, 4}};
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
