// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Plans that are made on an executor of the engine, while passes go on.
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/runtime/plan_executor.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/planning_group.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace ballast;
using namespace ballast_test;
using namespace ballast_test::planning;

namespace {

placement const initial = trivial_placement(shape);

/// Keeps what it is given until the test says so.
class held_work {
public:
  [[nodiscard]] plan_executor executor() {
    return {[](void* self, void (*work)(void*), void* argument) {
              static_cast<held_work*>(self)->jobs_.emplace_back(work, argument);
            },
            this};
  }
  [[nodiscard]] std::size_t size() const { return jobs_.size(); }
  void do_all() {
    for (auto const& [work, argument] : std::exchange(jobs_, {})) { work(argument); }
  }
  held_work() = default;
  held_work(held_work const&) = delete;
  held_work& operator=(held_work const&) = delete;
  ~held_work() { do_all(); }  // the rebalancer may be gone by then

private:
  std::vector<std::pair<void (*)(void*), void*>> jobs_;
};

/// A thread for each plan.
class threads {
public:
  [[nodiscard]] plan_executor executor() {
    return {[](void* self, void (*work)(void*), void* argument) {
              static_cast<threads*>(self)->all_.emplace_back(work, argument);
            },
            this};
  }
  threads() = default;
  threads(threads const&) = delete;
  threads& operator=(threads const&) = delete;
  ~threads() {
    for (auto& each : all_) { each.join(); }
  }

private:
  std::vector<std::thread> all_;
};

topology where_without(index_t dead) {
  topology where{{num_ranks, 1, 8, 0}};
  if (dead >= 0) { where.set_live(dead, false); }
  return where;
}

/// Run `body(member, executor)` on the live ranks of four, each with an executor of its own.
template <class Executor, class Policy, class Body>
void on_ranks(Policy const& policy, rebalancer_options const& options, Body body, index_t dead = -1) {
  auto const where = where_without(dead);
  in_process_group group{num_ranks};
  if (dead >= 0) { group.expel(dead); }
  group.run([&](in_process_endpoint& wire) {
    if (wire.rank() == dead) { return; }
    Executor elsewhere;
    auto mine = options;
    mine.executor = elsewhere.executor();
    auto own = policy;  // NOLINT(performance-unnecessary-copy-initialization): some learn their rank
    if constexpr (requires { own.rank; }) { own.rank = wire.rank(); }
    member<Policy, layers_per_chunk<>> self{where, initial, own, layers_per_chunk<>{num_layers}, wire, mine};
    self.moved.start().or_throw();
    body(self, elsewhere);
  });
}
template <class Member>
void run(Member& self, int calls, std::uint64_t seed = 5) {
  for (int call = 0; call < calls; ++call) { pass(self.moved, some_loads(seed)).or_throw(); }
}

rebalancer_options with(bool in_parts, nanoseconds_t timeout = patience) {
  return {.interval = 1, .timeout = timeout, .plan_in_parts = in_parts, .checked_layers = in_parts ? 1 : 0};
}

}  // namespace

TEST_CASE("a plan that is made elsewhere is the plan of one call, taken up by all on one call") {
  auto const same_elsewhere = [](auto const& policy, bool in_parts, index_t dead) {
    CAPTURE(in_parts);
    CAPTURE(dead);
    auto const whole = one_cycle(policy, with(in_parts), dead);
    on_ranks<held_work>(
        policy, with(in_parts),
        [&](auto& self, held_work& elsewhere) {
          auto& moved = self.moved;
          auto const begun = moved.current();
          run(self, 2);
          CHECK(elsewhere.size() == 1);
          CHECK(moved.state() == rebalancer_state::planning);
          // Rank r is done after r more calls; other loads meanwhile change nothing.
          for (index_t call = 0; call < num_ranks; ++call) {
            if (call == moved.rank()) { elsewhere.do_all(); }
            CHECK(moved.state() == rebalancer_state::planning);
            CHECK(moved.current() == begun);
            bool const last = call + 1 == num_ranks - (dead == num_ranks - 1 ? 1 : 0);
            run(self, 1, 77);
            if (last) { break; }
          }
          CHECK(moved.state() == rebalancer_state::recording);
          CHECK(moved.current() == whole.planned[static_cast<std::size_t>(moved.rank())]);
          CHECK_FALSE(moved.current() == begun);
          CHECK(self.first_error().empty());
        },
        dead);
  };
  for (index_t const dead : {-1, 3}) {
    for (bool const in_parts : {true, false}) {
      same_elsewhere(incremental_placement{.max_moves_per_layer = 8, .shares = share_mode::optimal}, in_parts, dead);
      same_elsewhere(incremental_placement{.max_moves_in_all = 9}, in_parts, dead);
      same_elsewhere(headroom_placement{}, in_parts, dead);
      same_elsewhere(balanced_placement{}, in_parts, dead);
      same_elsewhere(any_policy{headroom_placement{}}, in_parts, dead);
    }
  }
}

TEST_CASE("threads of the engine make plans while passes go on") {
  for (bool const in_parts : {true, false}) {
    on_ranks<threads>(incremental_placement{}, with(in_parts), [](auto& self, threads&) {
      for (std::uint64_t call = 0; call < 200 && self.log.steps_of("commit").size() < 3; ++call) {
        run(self, 1, call);
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
      }
      CHECK(self.log.steps_of("commit").size() == 3);
      CHECK(self.first_error().empty());
    });
  }
}

TEST_CASE("an executor that makes no plan is named to all after one timeout, and all come back") {
  constexpr auto timeout = 400 * milliseconds;
  on_ranks<held_work>(headroom_placement{}, with(true, timeout), [](auto& self, held_work& elsewhere) {
    auto& moved = self.moved;
    run(self, 2);
    if (moved.rank() != 2) { elsewhere.do_all(); }
    status ended;
    auto const start = detail::now();
    while (ended.ok() && detail::now() - start < patience) {
      ended = pass(moved, some_loads());
      std::this_thread::sleep_for(std::chrono::milliseconds{5});
    }
    CHECK(ended.code() == errc::deadline_exceeded);
    CHECK(ended.rank() == 2);
    CHECK(ended.message() == "plan: the executor of rank 2 has made no plan in time");
    CHECK(moved.state() == rebalancer_state::failed);
    CHECK(moved.current() == initial);
    moved.resume().or_throw();
    elsewhere.do_all();  // nobody wants it any more
    run(self, 2);
    CHECK(moved.current() == initial);
    elsewhere.do_all();
    run(self, 1);
    CHECK_FALSE(moved.current() == initial);
    CHECK(self.first_error().empty());
  });
}

TEST_CASE("a rank that is shut out while plans are made elsewhere is named by the next call") {
  in_process_group group{num_ranks};
  in_process_group channel{num_ranks};
  group.run([&](in_process_endpoint& wire) {
    held_work elsewhere;
    auto options = with(true);
    options.executor = elsewhere.executor();
    member<headroom_placement, layers_per_chunk<>> self{
        where_without(-1), initial, headroom_placement{}, layers_per_chunk<>{num_layers}, wire, options};
    self.moved.start().or_throw();
    run(self, 2);
    CHECK(self.moved.state() == rebalancer_state::planning);
    CHECK(channel.endpoint(wire.rank()).vote(true, patience).outcome == decision::commit);
    if (wire.rank() == 3) { return; }
    wire.expel(3).or_throw();
    auto const ended = pass(self.moved, some_loads());
    CHECK(ended.code() == errc::invalid_topology);
    CHECK(ended.rank() == 3);
    CHECK(self.moved.current() == initial);
  });
}

TEST_CASE("a late executor is named, and not the dead rank that its rank's words stand in for") {
  on_ranks<held_work>(
      headroom_placement{}, with(true, 50 * milliseconds),
      [](auto& self, held_work& elsewhere) {
        run(self, 2);
        if (self.moved.rank() != 1) { elsewhere.do_all(); }
        std::this_thread::sleep_for(std::chrono::milliseconds{60});
        auto const ended = pass(self.moved, some_loads());
        CHECK(ended.message() == "plan: the executor of rank 1 has made no plan in time");
        CHECK(self.moved.failure().rank() == 1);
      },
      0);
}

TEST_CASE("disable and resume drop a plan that is being made") {
  for (bool const resumes : {false, true}) {
    on_ranks<held_work>(headroom_placement{}, with(true), [&](auto& self, held_work& elsewhere) {
      auto& moved = self.moved;
      run(self, 2);
      if (resumes) {
        moved.resume().or_throw();
      } else {
        moved.disable();
      }
      elsewhere.do_all();
      run(self, 1);
      CHECK(moved.state() == rebalancer_state::recording);
      CHECK(moved.current() == initial);
      if (!resumes) { moved.enable(); }
      while (moved.state() != rebalancer_state::planning) { run(self, 1, 9); }
      CHECK(elsewhere.size() == 1);
      elsewhere.do_all();
      run(self, 1);
      CHECK_FALSE(moved.current() == initial);
    });
  }
}

TEST_CASE("a policy that cannot plan there is told like any other") {
  for (bool const in_parts : {true, false}) {
    watched<headroom_placement> policy;
    policy.spoil = [](index_t rank, std::span<index_t const>, placement&) {
      return rank == 2 ? status{errc::invalid_load, "rank 2 has a headache"} : status{};
    };
    on_ranks<held_work>(policy, with(in_parts), [&](auto& self, held_work& elsewhere) {
      run(self, 2);
      elsewhere.do_all();
      auto const ended = pass(self.moved, some_loads());
      CHECK_FALSE(ended.ok());
      if (self.moved.rank() == 2) { CHECK(ended.message() == "rank 2 has a headache"); }
      CHECK(self.moved.current() == initial);
    });
  }
}

TEST_CASE("ranks with and without an executor are told so at the start") {
  in_process_group group{2};
  group.run([](in_process_endpoint& wire) {
    held_work elsewhere;
    rebalancer_options options{.timeout = patience};
    if (wire.rank() == 1) { options.executor = elsewhere.executor(); }
    member<headroom_placement, layers_per_chunk<>> self{
        topology{{2, 1, 4, 0}}, trivial_placement({1, 8, 8}), {}, layers_per_chunk<>{1}, wire, options};
    CHECK(self.moved.start().message() == "rank 1 differs from rank 0 in options: executor: 1 against 0");
  });
}
