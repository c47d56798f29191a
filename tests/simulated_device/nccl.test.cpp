// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/handles.hpp>
#include <ballast/nccl/cohort.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>

#include "support/check_complaints.hpp"
#include "support/gpu_member.hpp"
#include "support/nccl_laws.hpp"
#include "support/simulated_nccl_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

// Communicators and transports over NCCL on simulated devices.

using namespace ballast;
using namespace ballast_test;

namespace {

/// The largest group, of several, only where a test may take long.
template <class Law>
void check(std::vector<index_t> sizes, Law law, std::uint64_t num_seeds = 1) {
  if (BALLAST_TESTS_QUICK && sizes.size() > 1) { sizes.pop_back(); }
  for (auto const size : sizes) {
    for (std::uint64_t seed = 1; seed <= num_seeds; ++seed) {
      CAPTURE(size);
      CAPTURE(seed);
      check_complaints(simulated_nccl_runner{.seed = seed}.run(size, law));
    }
  }
}

/// Rank 0 cannot make an id: all ranks know it at once, and why.
template <class Endpoint>
void hears_of_a_missing_id(Endpoint& self, law_log& log) {
  if (self.rank() == 0) { simulated::fail_next_nccl("ncclGetUniqueId", ncclSystemError); }
  auto const begin = ballast::detail::now();
  nccl::communicator made;
  auto const result = nccl::communicator::create(self.control, made);
  log.expect(!result.ok() && result.message().find("ncclGetUniqueId") != std::string::npos, result.message());
  log.expect(ballast::detail::now() - begin < slack, "rank 0 is waited for");
  log.expect_ok(nccl::communicator::create(self.control, made), "create again");
  meet(self, log);
}

/// Late at the second and third batch, when all ranks have agreed and the others wait for bytes.
class late_transport : public nccl::transport {
public:
  late_transport(nccl::communicator wires, nanoseconds_t delay) : transport{std::move(wires)}, delay_{delay} {}
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    ++batches_;
    if (batches_ == 2 || batches_ == 3) { ballast::detail::sleep_for(delay_); }
    return transport::start(sends, receives);
  }

private:
  nanoseconds_t delay_;
  int batches_ = 0;
};

/// Whole rebalances at the default options of the transport, a rank late now and then: `resume` brings everybody back.
template <class Endpoint>
void outlives_late_ranks(Endpoint& self, law_log& log) {
  nccl::communicator own;
  if (!log.expect_ok(nccl::communicator::create(self.control, own), "create")) { return; }
  nanoseconds_t const timeout = 500 * millisecond;
  late_transport wires{std::move(own), self.rank() == 1 ? 2 * timeout : 0};
  topology const where{{self.num_ranks(), 1, 6, 0}};
  gpu_member<late_transport, in_process_endpoint> member{where, spread_placement(where, 2),         wires, self.control,
                                                         {},    {.interval = 2, .timeout = timeout}};
  if (!log.expect_ok(member.moved.start(), "start")) { return; }
  int losses = 0;
  for (int step = 0; step < 18; ++step) {
    auto result = member.moved.on_forward_pass_end();
    losses += wires.needs_repair() ? 1 : 0;
    auto const somebody_failed = [&] {
      auto const all = self.tell_all(result.ok() ? 0 : 1);
      return std::ranges::count(all, 1u) > 0;
    };
    bool failed = somebody_failed();
    for (int attempt = 0; attempt < 5 && failed; ++attempt) {
      result = member.moved.resume();
      failed = somebody_failed();
    }
    if (!log.expect(!failed, "resume: ", result.message())) { return; }
    auto const error = member.weights.first_error(member.moved.current());
    if (!log.expect(error.empty(), "after step ", step, " wrong at ", error)) { return; }
  }
  auto const all_losses = self.tell_all(static_cast<std::uint64_t>(losses));
  log.expect(std::ranges::count(all_losses, 0u) < self.num_ranks(), "no batch was late");
  member.expect_moves(log);
  meet(self, log);
}

/// Thread blocks of the communicator that a rank made last.
[[nodiscard]] simulated::thread_blocks blocks_of_the_last(index_t rank) {
  return simulated::blocks_of(simulated::living_communicators(rank).back());
}

/// NCCL takes what blocks it likes where the engine waits, few where it may not, and what somebody asked for always.
template <class Endpoint>
void takes_blocks_as_the_engine_can_spare_them(Endpoint& self, law_log& log) {
  struct expected {
    nccl::transport_options options;
    int least;
    int most;
  };
  constexpr auto few = nccl::transport_options::ctas_beside_engine;
  auto const stream = ballast::cudart::stream::create();
  nccl_law::engine_communicator const engine{self.control, false, false};
  auto const gather = [&](std::span<std::uint64_t const> mine, std::span<std::uint64_t> all, nanoseconds_t timeout) {
    return self.control.all_gather(mine, all, timeout);
  };
  for (auto const& wanted :
       {expected{{.compute_stream = stream.get()}, 0, 0},
        expected{{.compute_stream = stream.get(), .allow_sm_overlap = true}, 0, few}, expected{{}, 0, few},
        expected{{.allow_sm_overlap = true, .communicator = {.max_ctas = 16}}, 0, 16},
        expected{{.allow_sm_overlap = true, .communicator = {.min_ctas = 32}}, 32, 0},
        expected{{.communicator = {.max_ctas = 2, .min_ctas = 1}}, 1, 2}}) {
    auto const expect_blocks = [&](char const* what) {
      auto const [at_least, at_most] = blocks_of_the_last(self.rank());
      log.expect(at_least == wanted.least && at_most == wanted.most, what, ": ", at_least, " to ", at_most,
                 " blocks, not ", wanted.least, " to ", wanted.most);
    };
    nccl::cohort cohort{engine.get(), gather, wanted.options};
    expect_blocks("a cohort's");
    log.expect_ok(cohort.wires().repair(self.control, patience), "repair");
    expect_blocks("after a repair");
    meet(self, log);
  }
  nccl::communicator made;
  log.expect_ok(nccl::communicator::create(self.control, made), "create");
  auto const [least, most] = blocks_of_the_last(self.rank());
  log.expect(least == 0 && most == 0, "made with ", least, " to ", most, " blocks where nobody said");
  meet(self, log);
}

/// Ranks whose options ask for different numbers of blocks hear of it before anything moves.
template <class Endpoint>
void compares_blocks(Endpoint& self, law_log& log) {
  nccl::communicator own;
  if (!log.expect_ok(nccl::communicator::create(self.control, own), "create")) { return; }
  bool const odd = self.rank() == 1;
  nccl::transport wires{std::move(own), {.communicator = {.max_ctas = odd ? 8 : 4}}};
  topology const where{{self.num_ranks(), 1, 6, 0}};
  gpu_member<nccl::transport, in_process_endpoint> member{
      where, spread_placement(where, 2), wires, self.control, {}, {.interval = 2}};
  auto const result = member.moved.start();
  log.expect(!result.ok() && result.message().find("thread blocks at most") != std::string::npos, result.message());
  meet(self, log);
}

/// The survivors of `dead` hear at once that NCCL has nothing for them, and what to do.
template <class Endpoint>
void refuses_survivors(Endpoint& self, law_log& log, index_t dead) {
  nccl_law::engine_communicator const engine{self.control, false, false};
  if (self.rank() == dead) { return; }
  log.expect_ok(self.control.expel(dead), "expel");
  log.expect_ok(self.control.regroup(patience), "regroup");
  nccl::communicator_options const options{.timeout = 2 * slack};
  auto const begin = ballast::detail::now();
  nccl::communicator made;
  for (auto const& result :
       {nccl::communicator::create(self.control, made, options), self.transport.repair(self.control, options.timeout),
        nccl::communicator::split(engine.get(), self.control, made, options)}) {
    log.expect(result.code() == errc::invalid_topology && result.rank() == dead, "refused with: ", result.message());
    log.expect(result.message().find("peer_copy") != std::string::npos, "no remedy: ", result.message());
  }
  log.expect(made.get() == nullptr, "something was made");
  log.expect(!self.transport.is_lost(), "a healthy communicator was given up");
  log.expect(ballast::detail::now() - begin < slack, "the dead rank was waited for");
}

}  // namespace

TEST_CASE("batches over simulated NCCL arrive byte for byte") {
  check({1, 2, 4}, [](auto& self, law_log& log) { transport_law::moves_random_batches(self, log, 3, 15); }, 3);
}

TEST_CASE("many messages and lists in another order") {
  check({2, 4}, [](auto& self, law_log& log) {
    transport_law::matches_by_tag(self, log);
    transport_law::keeps_models_apart(self, log);
    transport_law::refuses_a_second_batch(self, log);
    transport_law::moves_many_messages(self, log);
  });
}

TEST_CASE("a rank without a unique id is not waited for") {
  check({2, 3}, [](auto& self, law_log& log) { hears_of_a_missing_id(self, log); });
}

TEST_CASE("no communicator is made without a rank that was expelled") {
  for (index_t const dead : {0, 2}) {
    check({3}, [&](auto& self, law_log& log) { refuses_survivors(self, log, dead); });
  }
}

TEST_CASE("NCCL beside an engine obeys its laws") {
  nccl_law::check_laws([](std::vector<index_t> sizes, auto law) { check(std::move(sizes), law); });
}

TEST_CASE("NCCL's kernels start behind every stream of the passes") {
  check({2}, [](auto& self, law_log& log) {
    nccl::communicator own;
    if (!log.expect_ok(nccl::communicator::create(self.control, own), "create")) { return; }
    auto const first = cudart::stream::create();
    auto const second = cudart::stream::create();
    std::vector<cudaStream_t> const more{second.get()};
    nccl::transport wires{std::move(own), {.compute_stream = first.get(), .more_compute_streams = more}};
    log.expect(std::ranges::equal(wires.more_compute_streams(), more), "other streams are told");
    nccl_law::one_message message{self, log};
    message.arrives(wires, "before");
    for (auto* const slow : {first.get(), second.get()}) {
      ballast_test::simulated::held_stream pass{slow};
      log.expect_ok(message.start(wires), "start");
      wires.enter_wait();
      for (int i = 0; i < 20; ++i) {
        log.expect(wires.poll() == transfer_state::pending, "NCCL runs beside a pass");
        ballast::detail::sleep_for(millisecond);
      }
      pass.release();
      message.ends_well(wires, "behind the passes");
      meet(self, log);
    }
  });
}

TEST_CASE("NCCL's thread blocks are as many as the engine can spare") {
  check({1, 2}, [](auto& self, law_log& log) { takes_blocks_as_the_engine_can_spare_them(self, log); });
}

TEST_CASE("ranks that ask NCCL for different numbers of thread blocks hear of it") {
  check({2}, [](auto& self, law_log& log) { compares_blocks(self, log); });
}

TEST_CASE("a rebalancer over NCCL outlives late ranks") {
  check({2, 3}, [](auto& self, law_log& log) { outlives_late_ranks(self, log); });
}
