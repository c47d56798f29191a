// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>

#include "support/gpu.hpp"
#include "support/nccl_laws.hpp"
#include "support/nccl_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

using namespace ballast;
using namespace ballast_test;

namespace {

gpu_only const needs_gpu;

/// A batch that some rank never joins fails everywhere in time, touches nothing, and after `reconnect` all is well.
template <class Endpoint>
void recovers_from_missed_deadline(Endpoint& self, law_log& log) {
  auto const timeout = 1'000 * millisecond;
  batch_memory memory{self, log, transport_law::region_bytes, transport_law::target_bytes};
  auto const missed = transport_law::single_message(1, 50'000);
  auto const view = memory.view(missed);
  if (self.rank() == 1) {
    auto const begin = ballast::detail::now();
    log.expect_ok(self.transport.start(view.sends, view.receives), "start");
    auto const result = self.transport.wait(timeout);
    log.expect_failure(result, {errc::deadline_exceeded}, "rank 0", "a message without a partner");
    log.expect(result.rank() == 0, "rank ", result.rank(), " is blamed");
    log.expect(ballast::detail::now() - begin < timeout + slack, "the deadline passed too late");
    log.expect(self.transport.is_lost(), "the communicator is still in use");
    auto const refused = self.transport.start(view.sends, view.receives);
    log.expect(refused.message().find("reconnect") != std::string::npos, "no remedy in: ", refused.message());
  }
  meet(self, log);
  memory.expect_received({}, "nothing arrived");
  if (!log.expect_ok(self.transport.reconnect(self.control), "reconnect")) { return; }
  auto const next = transport_law::single_message(2, 40'000);
  auto const next_view = memory.view(next);
  log.expect_ok(self.transport.start(next_view.sends, next_view.receives), "start after reconnect");
  log.expect_ok(self.transport.wait(patience), "wait after reconnect");
  memory.expect_received(next, "the batch after reconnect");
  meet(self, log);
}

/// A failure of a borrowed communicator is reported and leaves the communicator to its owner.
template <class Endpoint>
void never_aborts_what_it_borrowed(Endpoint& self, law_log& log) {
  nccl::communicator owner;
  if (!log.expect_ok(nccl::communicator::create(self.control, owner), "create")) { return; }
  batch_memory memory{self, log, transport_law::region_bytes, transport_law::target_bytes};
  {
    nccl::transport borrowed{nccl::communicator::borrow(owner.get()), {nullptr, true}};
    auto const batch = transport_law::single_message(1, 50'000);
    auto const view = memory.view(batch);
    if (self.rank() == 1) {
      log.expect_ok(borrowed.start(view.sends, view.receives), "start");
      log.expect(!borrowed.wait(300 * millisecond).ok(), "a message without a partner arrived");
      log.expect(borrowed.is_lost(), "not marked lost");
    }
    log.expect(owner.query() == ncclSuccess || owner.query() == ncclInProgress, "the owner's communicator is broken");
  }
  meet(self, log);
}

/// A communicator split off the engine's carries a batch, and ends without the engine's.
template <class Endpoint>
void splits_off_the_engines(Endpoint& self, law_log& log) {
  nccl::communicator engine;
  nccl::communicator mine;
  if (!log.expect_ok(nccl::communicator::create(self.control, engine), "create")) { return; }
  if (!log.expect_ok(nccl::communicator::split(engine.get(), self.control, mine), "split")) { return; }
  nccl::transport wires{std::move(mine)};
  batch_memory memory{self, log, transport_law::region_bytes, transport_law::target_bytes};
  auto const batch = transport_law::single_message(1, 50'000);
  auto const view = memory.view(batch);
  log.expect_ok(wires.start(view.sends, view.receives), "start");
  log.expect(wires.poll() == transfer_state::pending, "launched outside wait without leave to overlap");
  log.expect_ok(wires.wait(patience), "wait");
  memory.expect_received(batch, "the batch on the split communicator");
  meet(self, log);
}

/// Null handles and impossible options end in failures on every rank, in time, and leave the group in step.
template <class Endpoint>
void refuses_nonsense(Endpoint& self, law_log& log) {
  nccl::communicator made;
  auto const options =
      nccl::communicator_options{.max_ctas = self.rank() == 1 ? -1 : 4, .timeout = 2'000 * millisecond};
  log.expect(!nccl::communicator::create(self.control, made, options).ok(), "made with -1 thread blocks on a rank");
  auto const refused = nccl::communicator::split(nullptr, self.control, made);
  log.expect_failure(refused, {errc::invalid_option}, "null", "split");
  log.expect(made.is_lost() && nccl::communicator::borrow(nullptr).is_lost(), "made of nothing");
  log.expect(!nccl::transport::validate(made, {}).ok(), "a transport without a communicator");
  nccl::communicator fine;
  if (!log.expect_ok(nccl::communicator::create(self.control, fine), "create")) { return; }
  auto const groups = nccl::transport::validate(fine, {.rounds_per_group = -3});
  log.expect_failure(groups, {errc::invalid_option}, "-3", "rounds per group");
  meet(self, log);
}

template <class Law>
void check(std::vector<index_t> sizes, Law law) {
  nccl_runner const runner{};
  for (auto const size : sizes) {
    CAPTURE(size);
    check_complaints(runner.run(size, law));
  }
}

}  // namespace

TEST_CASE("batches over NCCL arrive byte for byte") {
  check(rank_counts({1, 2, 4, 8}),
        [](auto& self, law_log& log) { transport_law::moves_random_batches(self, log, 3, 15); });
}

TEST_CASE("many messages, large ones, and lists in another order") {
  check({rank_count(2, 2), rank_count(4, 2)}, [](auto& self, law_log& log) {
    transport_law::matches_by_tag(self, log);
    transport_law::keeps_models_apart(self, log);
    transport_law::refuses_a_second_batch(self, log);
    transport_law::moves_many_messages(self, log);
    transport_law::moves_large_messages(self, log);
  });
}

TEST_CASE("a timed transport tells what its batches took on the device") {
  nccl_runner const runner{{.allow_sm_overlap = true, .timed = true}};
  auto const size = rank_count(3, 2);
  check_complaints(runner.run(size, [](auto& self, law_log& log) { transport_law::tells_batch_times(self, log); }));
}

TEST_CASE("a missed deadline ends our communicator, and a new one takes its place") {
  check({rank_count(2, 2), rank_count(3, 2)},
        [](auto& self, law_log& log) { recovers_from_missed_deadline(self, log); });
}

TEST_CASE("a rank that dies is noticed by those who need it") {
  check({rank_count(3, 3)}, [](auto& self, law_log& log) { transport_law::notices_death(self, log); });
}

TEST_CASE("a borrowed communicator is never aborted") {
  check({2}, [](auto& self, law_log& log) { never_aborts_what_it_borrowed(self, log); });
}

TEST_CASE("a communicator can be split off the engine's") {
  check({2}, [](auto& self, law_log& log) { splits_off_the_engines(self, log); });
}

TEST_CASE("NCCL beside an engine obeys its laws") {
  nccl_law::check_laws([](std::vector<index_t> sizes, auto law) { check(std::move(sizes), law); });
}

TEST_CASE("null handles and impossible options are refused") {
  check({2}, [](auto& self, law_log& log) { refuses_nonsense(self, log); });
}
