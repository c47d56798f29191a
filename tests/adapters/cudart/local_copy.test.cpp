// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/gpu.hpp"
#include "support/local_copy_runner.hpp"
#include "support/reach_laws.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <system_error>
#include <vector>

using namespace ballast;

namespace {

ballast_test::gpu_only const needs_gpu;
using transport = cudart::peer_copy<cudart::local_peers::member>;
using ballast_test::gpu_memory;
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
  CHECK_THROWS_AS((transport{peers.join(0), {.gathering = -1}}), std::system_error);
  CHECK_THROWS_AS((transport{peers.join(0), {.can_access = nullptr}}), std::system_error);
  CHECK(transport::validate({.num_streams = -7}).message().find("-7") != std::string::npos);
}

TEST_CASE("ranks that there are not cannot join") {
  CHECK_THROWS_AS(cudart::local_peers{0}, std::system_error);
  CHECK_THROWS_AS(cudart::local_peers{-1}, std::system_error);
  cudart::local_peers peers{2};
  CHECK_THROWS_AS(static_cast<void>(peers.join(2)), std::system_error);
  CHECK_THROWS_AS(static_cast<void>(peers.join(-1)), std::system_error);
}

TEST_CASE("sources outside a peer's regions are refused before a byte moves") {
  using namespace ballast_test;
  check_complaints(run_ranks(2, {}, [](in_process_endpoint& control, transport& wires, law_log& log) {
    gpu_memory memory;
    segment const mine{memory.allocate(1000), 1000};
    log.expect_ok(wires.expose({&mine, 1}, 0), "expose");
    std::uint64_t tag = 0;
    for (remote_segment const wrong : {remote_segment{1, 0, 10}, remote_segment{~std::uint32_t{0}, 0, 10},
                                       remote_segment{0, 995, 10}, remote_segment{0, 2000, 10}}) {
      segment const target{memory.allocate(10), 10};
      segment const part{mine.data, 10};
      outgoing_message const send{1, 0, ++tag, {&part, 1}};
      incoming_message const receive{0, 0, tag, {&target, 1}, {&wrong, 1}};
      bool const sends = control.rank() == 0;
      auto result = wires.start({&send, sends ? 1u : 0u}, {&receive, sends ? 0u : 1u});
      if (result.ok()) { result = wires.wait(200 * millisecond); }
      log.expect(!result.ok(), "region ", wrong.region, " from ", wrong.offset, " on is accepted");
      log.expect(result.message().find("rank") != std::string::npos, "no rank is named: ", result.message());
      log.expect(result.rank() >= 0, "no rank in the status: ", result.message());
      static_cast<void>(control.vote(true, patience));
    }
  }));
}

TEST_CASE("sets of regions that differ from rank to rank are refused, and so are numbers that were used") {
  using namespace ballast_test;
  check_complaints(run_ranks(2, {}, [](in_process_endpoint& control, transport& wires, law_log& log) {
    gpu_memory memory;
    std::vector<segment> regions;
    for (int i = 0; i < 3; ++i) { regions.push_back({memory.allocate(1000), 1000}); }
    auto const in_turn = [&](index_t rank, auto action) {
      if (control.rank() == rank) { action(); }
      static_cast<void>(control.vote(true, patience));
    };
    in_turn(0, [&] { log.expect_ok(wires.expose(std::span{regions}.first(2), 5), "expose"); });
    in_turn(1, [&] {
      for (auto const first : {std::uint32_t{4}, std::uint32_t{5}, std::uint32_t{6}}) {
        auto const result = wires.expose(regions, first);
        log.expect_failure(result, {errc::disagreement}, "rank 0", "another set than rank 0 has");
        log.expect(result.rank() == 0, "rank ", result.rank(), " is blamed");
      }
      log.expect(wires.next_region() == 0, "a set that was refused took numbers");
      log.expect_ok(wires.expose(std::span{regions}.first(2), 5), "expose");
    });
    log.expect_failure(wires.expose(regions, 6), {errc::invalid_option}, "7", "numbers that were used");
    log.expect_failure(wires.expose(regions, ~std::uint32_t{0}), {errc::invalid_option}, "3 regions",
                       "numbers that do not suffice");
    log.expect(wires.next_region() == 7, "the next number is ", wires.next_region());
    // A set without regions counts as one too.
    log.expect_ok(wires.expose({}, 7), "expose nothing");
    log.expect(wires.next_region() == 8, "the next number is ", wires.next_region());
  }));
}

// One rank's thread exposes and forgets models again and again while the other one reads a set that stays.
TEST_CASE("sets come and go while peers read others") {
  using namespace ballast_test;
  check_complaints(run_ranks(2, {}, [](in_process_endpoint& control, transport& wires, law_log& log) {
    law_endpoint<in_process_endpoint, transport, gpu_memory> self{control, wires};
    constexpr std::size_t bytes = 1000;
    batch_memory memory{self, log, bytes, bytes};
    segment const other{self.memory.allocate(bytes), bytes};
    for (std::uint64_t round = 1; round <= 200; ++round) {
      std::vector<batch_message> const batch{{0, 1, 0, round, {{0, 1, 990}}, {{0, 3, 990}}}};
      auto const view = memory.view(batch);
      if (!log.expect_ok(wires.start(view.sends, view.receives), "start")) { break; }
      auto const first = wires.next_region();
      log.expect_ok(wires.expose({&other, 1}, first), "expose");
      if (round % 3 != 0) { wires.retract(first); }
      if (!log.expect_ok(wires.wait(patience), "wait")) { break; }
      memory.expect_received(batch, "the set that stays");
    }
    meet(self, log);
  }));
}

TEST_CASE("a batch that has ended offers nothing, and its offer is not taken for another's") {
  using namespace ballast_test;
  check_complaints(run_ranks(2, {}, [](in_process_endpoint& control, transport& wires, law_log& log) {
    law_endpoint<in_process_endpoint, transport, gpu_memory> self{control, wires};
    batch_memory memory{self, log, transport_law::region_bytes, transport_law::target_bytes};
    auto const batch = transport_law::single_message(1, 5000);
    auto const view = memory.view(batch);
    log.expect_ok(wires.start(view.sends, view.receives), "start");
    log.expect_ok(wires.wait(patience), "wait");
    meet(self, log);
    log.expect(wires.directory().board(0, 1).offered.load() == 0, "an offer stands");
    memory.clear();
    if (control.rank() == 1) {  // asks for the same once more, and nobody offers
      log.expect_ok(wires.start(view.sends, view.receives), "start");
      auto const result = wires.wait(100 * millisecond);
      log.expect_failure(result, {errc::deadline_exceeded}, "rank 0", "a message that nobody sends");
      log.expect(result.rank() == 0, "rank ", result.rank(), " is blamed");
    }
    memory.expect_received({}, "nothing was sent");
    meet(self, log);
  }));
}

TEST_CASE("a rank that comes back goes on with the numbers and tags it has used") {
  cudart::local_peers peers{1};
  gpu_memory memory;
  segment const mine{memory.allocate(100), 100};
  {
    transport wires{peers.join(0)};
    wires.expose({&mine, 1}, 3).or_throw();
    wires.turns().take_session(9);
  }
  transport wires{peers.join(0)};
  CHECK(wires.next_region() == 4);
  CHECK(wires.turns().last_session() == 9);
}

TEST_CASE("copies that did not end in time are waited for by the next batch alone") {
  using namespace ballast_test;
  check_complaints(run_ranks(2, {}, [](in_process_endpoint& control, transport& wires, law_log& log) {
    law_endpoint<in_process_endpoint, transport, gpu_memory> self{control, wires};
    batch_memory memory{self, log, transport_law::region_bytes, transport_law::target_bytes};
    auto const late = transport_law::single_message(1, 5000);
    auto const view = memory.view(late);
    {
      busy_stream stands{wires.copy_stream()};
      meet(self, log);
      log.expect_ok(wires.start(view.sends, view.receives), "start");
      log.expect(!wires.wait(300 * millisecond).ok(), "copies behind a stream that stands are done");
      if (control.rank() == 1) {
        auto const beside = transport_law::single_message(3, 3000);
        auto const beside_view = memory.view(beside);
        log.expect_ok(wires.start(beside_view.sends, beside_view.receives), "start beside copies under way");
        log.expect(wires.poll() == transfer_state::pending, "a batch began beside copies under way");
        log.expect_failure(wires.wait(100 * millisecond), {errc::transport_failed}, "have not finished",
                           "a batch beside copies under way");
      }
      log.expect(stands.release(), "waited for the stream");
    }
    meet(self, log);
    memory.clear();
    auto const next = transport_law::single_message(2, 4000);
    auto const next_view = memory.view(next);
    log.expect_ok(wires.start(next_view.sends, next_view.receives), "start after the copies have ended");
    log.expect_ok(wires.wait(patience), "wait after the copies have ended");
    memory.expect_received(next, "the next batch");
    meet(self, log);
  }));
}

TEST_CASE("a region over two allocations is refused with the remedy") {
  auto const pair = ballast_test::touching_allocations();
  if (pair.data != nullptr) { ballast_test::check_one_allocation_a_region(pair); }
}

TEST_CASE("memory that a peer's device cannot read is refused with the remedy before anything moves") {
  if (ballast_test::num_devices() < 2 || !cudart::detail::has_peer_access(1, 0)) { return; }
  ballast_test::check_reach_of_late_ranks();
  ballast_test::check_reach_of_present_ranks();
}
