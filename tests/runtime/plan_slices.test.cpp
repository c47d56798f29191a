// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Plans that take several calls: the same plan as in one, and what becomes of it when something comes between.
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
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
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

using namespace ballast;
using namespace ballast_test;
using namespace ballast_test::planning;

namespace {

topology const where{{num_ranks, 1, 8, 0}};
placement const initial = trivial_placement(shape);

/// Six layers of each rank, one a call.
rebalancer_options six_calls(index_t interval = 1) {
  return {.interval = interval, .timeout = patience, .plan_in_parts = false, .layers_per_plan_call = 1};
}

/// Run `body(member, channel)` on four ranks under `headroom_placement`, which a test may spoil, all layers one chunk.
/// The channel is the engine's own.
template <class Body>
void on_four_ranks(rebalancer_options const& options, watched<headroom_placement> const& policy, Body body) {
  in_process_group group{num_ranks};
  in_process_group channel{num_ranks};
  group.run([&](in_process_endpoint& wire) {
    auto mine = policy;
    mine.rank = wire.rank();
    member<watched<headroom_placement>, layers_per_chunk<>> self{where, initial, mine, layers_per_chunk<>{num_layers},
                                                                 wire,  options};
    self.moved.start().or_throw();
    body(self, channel.endpoint(wire.rank()));
  });
}
std::vector<std::uint64_t> exchange(in_process_endpoint& channel, std::uint64_t word = 0) {
  std::vector<std::uint64_t> words(num_ranks);
  channel.all_gather({&word, 1}, words, patience).or_throw();
  return words;
}
template <class Member>
void run(Member& self, int calls, std::uint64_t seed = 5) {
  for (int call = 0; call < calls; ++call) { pass(self.moved, some_loads(seed)).or_throw(); }
}
/// What `on_four_ranks` plans for these loads.
placement plan_of(std::uint64_t seed) { return planned_at_once(headroom_placement{}, where, initial, seed); }

}  // namespace

TEST_CASE("a plan over several calls is the plan of one call, bit for bit") {
  auto const same_in_slices = [](auto const& policy, index_t dead, rebalancer_options options) {
    CAPTURE(dead);
    CAPTURE(options.plan_in_parts);
    auto const whole = one_cycle(policy, options, dead);
    index_t const live = dead >= 0 ? num_ranks - 1 : num_ranks;
    index_t const own = options.plan_in_parts ? (num_layers + live - 1) / live : num_layers;
    auto const most = own + (options.plan_in_parts ? std::min(own, options.checked_layers) : 0);
    for (index_t const each : {1, 2, 4, 100}) {
      CAPTURE(each);
      options.layers_per_plan_call = each;
      auto const sliced = one_cycle(policy, options, dead, (most + each - 1) / each);
      for (std::size_t rank = 0; rank < num_ranks; ++rank) {
        if (static_cast<index_t>(rank) == dead) { continue; }
        CAPTURE(sliced.ended[rank].message());
        CHECK(whole.ended[rank].ok());
        CHECK(sliced.ended[rank].ok());
        CHECK(sliced.planned[rank] == whole.planned[rank]);
        CHECK_FALSE(sliced.planned[rank] == initial);
      }
    }
  };
  for (index_t const dead : {-1, 3}) {
    for (bool const in_parts : {true, false}) {
      rebalancer_options const options{.plan_in_parts = in_parts, .checked_layers = 1};
      same_in_slices(incremental_placement{}, dead, options);
      same_in_slices(incremental_placement{.max_moves_per_layer = 8, .shares = share_mode::optimal}, dead, options);
      same_in_slices(incremental_placement{.max_moves_in_all = 9}, dead, options);
      same_in_slices(headroom_placement{}, dead, options);
      same_in_slices(any_policy{incremental_placement{.max_moves_in_all = 9}}, dead, options);
    }
    // Shares are refreshed before a plan, and due again in every call: the loads of the plan stay as they are.
    same_in_slices(headroom_placement{}, dead, {.share_interval = 1, .plan_in_parts = false});
  }
}

TEST_CASE("a call plans no more layers than it may, each once and in order") {
  std::mutex lock;
  std::vector<std::vector<index_t>> planned(num_ranks);
  watched<headroom_placement> policy;
  policy.on_layers = [&](index_t rank, std::span<index_t const> layers) {
    std::lock_guard const guard{lock};
    CHECK(layers.size() <= 1);
    auto& all = planned[static_cast<std::size_t>(rank)];
    all.insert(all.end(), layers.begin(), layers.end());
  };
  // Ranks 2 and 3 have one layer each, and check one or two.
  auto const result = one_cycle(policy, {.checked_layers = 2, .layers_per_plan_call = 1}, -1, 4);
  for (auto const& ended : result.ended) { CHECK(ended.ok()); }
  CHECK(planned[0] == std::vector<index_t>{0, 1, 4, 5});
  CHECK(planned[1] == std::vector<index_t>{1, 2, 5});
  CHECK(planned[2] == std::vector<index_t>{2, 3});
  CHECK(planned[3] == std::vector<index_t>{0, 3, 4});
}

TEST_CASE("for each slice the policy finds the rows of the placement in force, and no shares") {
  watched<incremental_placement> policy{.policy = {.shares = share_mode::optimal}};
  policy.on_entry = [](placement const& current, placement const& next) {
    CHECK(std::ranges::equal(current.logical_of_slot().elements(), next.logical_of_slot().elements()));
    CHECK_FALSE(next.has_shares());
  };
  auto const result = one_cycle(policy, {.plan_in_parts = false, .layers_per_plan_call = 2}, -1, 3);
  for (auto const& ended : result.ended) { CHECK(ended.ok()); }
  CHECK(result.planned[0].has_shares());
}

TEST_CASE("dump on the first of k calls, plan on the last, moves after it, and then the next wait") {
  struct steps {
    std::vector<std::uint64_t> dumps, plans, commits;
  };
  auto const drive = [](auto const& policy, rebalancer_options const& options, index_t per_chunk) {
    std::vector<steps> seen(num_ranks);
    in_process_group group{num_ranks};
    group.run([&](in_process_endpoint& wire) {
      member<std::decay_t<decltype(policy)>, layers_per_chunk<>> self{
          where, initial, policy, layers_per_chunk<>{per_chunk}, wire, options};
      self.moved.start().or_throw();
      for (std::uint64_t call = 0; call < 20; ++call) { run(self, 1, call); }
      seen[static_cast<std::size_t>(wire.rank())] = {self.log.steps_of("dump"), self.log.steps_of("plan"),
                                                     self.log.steps_of("commit")};
    });
    for (auto const& each : seen) { CHECK(each.commits == seen[0].commits); }
    return seen[0];
  };
  auto options = six_calls(3);
  options.layers_per_plan_call = 2;  // k = 3
  auto one_chunk = drive(headroom_placement{}, options, num_layers);
  CHECK(one_chunk.dumps == std::vector<std::uint64_t>{4, 9, 14, 19});  // N + k - 1 apart
  CHECK(one_chunk.plans == std::vector<std::uint64_t>{6, 11, 16});
  CHECK(one_chunk.commits == one_chunk.plans);
  auto const chunks = drive(headroom_placement{}, options, 3);   // C = 2
  CHECK(chunks.dumps == std::vector<std::uint64_t>{4, 11, 18});  // N + k - 1 + C apart
  CHECK(chunks.plans == std::vector<std::uint64_t>{6, 13, 20});
  CHECK(chunks.commits == std::vector<std::uint64_t>{7, 8, 14, 15});
  // A plan that fits one call, and one that is not made layer by layer, keep their timing.
  options.layers_per_plan_call = num_layers;
  one_chunk = drive(headroom_placement{}, options, num_layers);
  CHECK(one_chunk.dumps == std::vector<std::uint64_t>{4, 7, 10, 13, 16, 19});
  CHECK(one_chunk.plans == one_chunk.dumps);
  options.layers_per_plan_call = 1;
  one_chunk = drive(balanced_placement{}, options, num_layers);
  CHECK(one_chunk.dumps == std::vector<std::uint64_t>{4, 7, 10, 13, 16, 19});
  CHECK(one_chunk.plans == one_chunk.dumps);
}

TEST_CASE("while a plan is being made nothing has changed, and what would change it is refused") {
  on_four_ranks(six_calls(), {}, [](auto& self, in_process_endpoint&) {
    auto& moved = self.moved;
    run(self, 3);
    CHECK(moved.state() == rebalancer_state::planning);
    CHECK(moved.current() == initial);
    prediction foreseen;
    CHECK(moved.apply(plan_of(9)).code() == errc::busy);
    CHECK(moved.predict(foreseen).code() == errc::busy);
    CHECK(moved.check_replicas().code() == errc::busy);
    CHECK(moved.set_topology(where, initial).code() == errc::busy);
    CHECK(moved.state() == rebalancer_state::planning);
    run(self, 4);
    CHECK(moved.current() == plan_of(5));
  });
}

TEST_CASE("predict takes one call, however many a plan takes") {
  on_four_ranks(six_calls(), {}, [](auto& self, in_process_endpoint&) {
    run(self, 1);
    prediction foreseen;
    self.moved.predict(foreseen).or_throw();
    CHECK(foreseen.moves > 0);
    CHECK(self.moved.state() == rebalancer_state::recording);
    CHECK(self.moved.current() == initial);
  });
}

TEST_CASE("disable drops what has been planned, enable begins to count anew") {
  on_four_ranks(six_calls(), {}, [](auto& self, in_process_endpoint&) {
    auto& moved = self.moved;
    run(self, 4);
    CHECK(moved.state() == rebalancer_state::planning);
    moved.disable();
    CHECK(moved.state() == rebalancer_state::recording);
    run(self, 10);
    CHECK(moved.current() == initial);
    CHECK(self.log.steps_of("dump") == std::vector<std::uint64_t>{2});
    moved.enable();
    run(self, 6, 9);
    CHECK(moved.state() == rebalancer_state::planning);
    run(self, 1, 10);
    CHECK(self.log.steps_of("dump") == std::vector<std::uint64_t>{2, 16});
    CHECK(self.log.steps_of("plan") == std::vector<std::uint64_t>{21});
    CHECK(moved.current() == plan_of(9));
  });
}

TEST_CASE("resume drops what has been planned, and the ranks plan again") {
  on_four_ranks(six_calls(), {}, [](auto& self, in_process_endpoint&) {
    run(self, 4);
    CHECK(self.moved.state() == rebalancer_state::planning);
    self.moved.resume().or_throw();
    CHECK(self.moved.state() == rebalancer_state::recording);
    run(self, 6, 9);
    CHECK(self.moved.current() == initial);
    run(self, 1, 10);
    CHECK(self.moved.current() == plan_of(9));
  });
}

TEST_CASE("a rank that fails between two slices ends the plan on all, and all come back") {
  on_four_ranks(six_calls(), {}, [](auto& self, in_process_endpoint& channel) {
    auto& moved = self.moved;
    run(self, 3);
    static_cast<void>(exchange(channel));
    if (moved.rank() == 2) {
      moved.record_top_k(num_layers, std::vector<index_t>{0});
      CHECK(pass(moved, some_loads()).code() == errc::invalid_load);
    }
    static_cast<void>(exchange(channel));
    auto const ended = pass(moved, some_loads());
    CHECK_FALSE(ended.ok());
    CHECK(moved.state() == rebalancer_state::failed);
    if (moved.rank() != 2) { CHECK(ended.rank() == 2); }
    CHECK(moved.current() == initial);
    moved.resume().or_throw();
    run(self, 7);
    CHECK(moved.current() == plan_of(5));
    CHECK(self.first_error().empty());
  });
}

TEST_CASE("a rank that cannot plan one of its layers is named to all on the last call") {
  watched<headroom_placement> policy;
  auto const is_ill = std::make_shared<bool>(true);
  policy.spoil = [is_ill](index_t rank, std::span<index_t const> layers, placement&) {
    bool const fails = *is_ill && rank == 1 && !layers.empty() && layers.front() == 5;
    return fails ? status{errc::invalid_load, "rank 1 has a headache"} : status{};
  };
  rebalancer_options const options{.interval = 1, .timeout = patience, .checked_layers = 1, .layers_per_plan_call = 1};
  on_four_ranks(options, policy, [&](auto& self, in_process_endpoint& channel) {
    run(self, 1);
    run(self, 2);  // of three: layers 1 and 2, of which it only checks the second, then 5
    CHECK(self.moved.state() == rebalancer_state::planning);
    auto const ended = pass(self.moved, some_loads());
    CHECK_FALSE(ended.ok());
    auto const* const said = self.moved.rank() == 1 ? "headache" : "rank 1 could not plan its layers";
    CHECK(ended.message().find(said) != std::string::npos);
    if (self.moved.rank() != 1) { CHECK(ended.rank() == 1); }
    CHECK(self.moved.current() == initial);
    self.moved.resume().or_throw();
    static_cast<void>(exchange(channel));
    if (self.moved.rank() == 0) { *is_ill = false; }
    static_cast<void>(exchange(channel));
    run(self, 4);
    CHECK(self.moved.current() == plan_of(5));
  });
}

TEST_CASE("a rank that missed a call while all planned is waited for once, named, and comes back") {
  auto options = six_calls();
  options.timeout = 300 * milliseconds;
  options.plan_in_parts = true;  // two calls
  on_four_ranks(options, {}, [](auto& self, in_process_endpoint& channel) {
    auto& moved = self.moved;
    run(self, 1);
    status ended;
    for (int step = 2; step < 5; ++step) {
      bool const misses = step == 3 && moved.rank() == 1;
      if (ended.ok() && !misses) { ended = pass(moved, some_loads()); }
      static_cast<void>(exchange(channel));
    }
    CHECK_FALSE(ended.ok());
    CHECK(moved.state() == rebalancer_state::failed);
    if (moved.rank() != 1) {
      CHECK(ended.code() == errc::deadline_exceeded);
      CHECK(ended.rank() == 1);
    }
    CHECK(moved.current() == initial);
    static_cast<void>(exchange(channel));
    moved.resume().or_throw();
    run(self, 3);
    CHECK(moved.current() == plan_of(5));
    CHECK(self.first_error().empty());
  });
}

TEST_CASE("a rank that is late while all plan is waited for once, and named") {
  constexpr auto timeout = 300 * milliseconds;
  watched<headroom_placement> policy;
  auto options = six_calls();
  options.timeout = timeout;
  options.plan_in_parts = true;
  options.layers_per_plan_call = 1;
  options.checked_layers = 2;
  policy.on_layers = [](index_t rank, std::span<index_t const> layers) {
    if (rank == 1 && layers.front() == 5) { std::this_thread::sleep_for(std::chrono::nanoseconds{3 * timeout}); }
  };
  on_four_ranks(options, policy, [](auto& self, in_process_endpoint& channel) {
    run(self, 1);
    status ended;
    auto const start = detail::now();
    for (int call = 0; call < 4 && ended.ok(); ++call) { ended = pass(self.moved, some_loads()); }
    CHECK_FALSE(ended.ok());
    CHECK(self.moved.state() == rebalancer_state::failed);
    if (self.moved.rank() != 1) {
      CHECK(ended.rank() == 1);
      CHECK(detail::now() - start < 2 * timeout);
    }
    CHECK(self.moved.current() == initial);
    static_cast<void>(exchange(channel));
    self.moved.resume().or_throw();
  });
}

TEST_CASE("ranks that plan on different loads hear it on the first call, or take rank 0's plan on the last") {
  for (bool const adopts : {false, true}) {
    CAPTURE(adopts);
    in_process_group group{num_ranks};
    group.run([&](in_process_endpoint& wire) {
      miscounting_control control{wire, wire.rank() == 3};
      miscounting_member<headroom_placement> self{
          where,
          initial,
          {},
          layers_per_chunk<>{num_layers},
          control,
          wire,
          {.interval = 1, .timeout = patience, .layers_per_plan_call = 1, .adopt_first_plan = adopts}};
      auto& moved = self.moved;
      moved.start().or_throw();
      pass(moved, some_loads()).or_throw();
      auto ended = pass(moved, some_loads());
      CHECK(ended.ok() == adopts);
      if (!adopts) { CHECK(ended.message().find("rank 3 differs from rank 0 in loads and placement") == 0); }
      // Each of them plans all layers: six calls.
      for (int call = 1; call < 6 && ended.ok(); ++call) {
        CHECK(moved.state() == rebalancer_state::planning);
        ended = pass(moved, some_loads(9));
      }
      CHECK(moved.state() == (adopts ? rebalancer_state::recording : rebalancer_state::failed));
      CHECK(moved.current() == (adopts ? plan_of(5) : initial));
      CHECK(self.first_error().empty());
    });
  }
}

TEST_CASE("in asynchronous mode the words say that a rank which plans records, and moves follow the plan") {
  auto options = six_calls();
  options.asynchronous = true;
  on_four_ranks(options, {}, [](auto& self, in_process_endpoint& channel) {
    auto& moved = self.moved;
    auto const hear = [&] { moved.incoming(exchange(channel, moved.outgoing())).or_throw(); };
    for (int call = 0; call < 6; ++call) {
      run(self, 1, call < 2 ? 5 : 9);
      hear();
      CHECK(moved.current() == initial);
    }
    CHECK(moved.state() == rebalancer_state::planning);
    for (int call = 0; call < 200 && self.log.steps_of("commit").empty(); ++call) {
      run(self, 1, 9);
      hear();
    }
    CHECK(self.log.steps_of("plan") == std::vector<std::uint64_t>{7});
    CHECK(moved.current() == plan_of(5));
    CHECK(self.first_error().empty());
    moved.disable();
    hear();
  });
}

// ---- layers that are planned in slices ----

namespace {

struct divided {
  std::vector<placement> planned{num_ranks};
  std::vector<std::vector<std::uint64_t>> dumps{num_ranks}, plans{num_ranks}, commits{num_ranks};
};
/// One cycle under a limit of work, over as many calls as it takes.
template <class Policy>
divided divided_cycle(Policy const& policy, rebalancer_options options, index_t dead = -1) {
  auto live = where;
  if (dead >= 0) { live.set_live(dead, false); }
  options.interval = 100;
  options.timeout = patience;
  divided result;
  in_process_group group{num_ranks};
  if (dead >= 0) { group.expel(dead); }
  group.run([&](in_process_endpoint& wire) {
    if (wire.rank() == dead) { return; }
    member<Policy, layers_per_chunk<>> self{live, initial, policy, layers_per_chunk<>{num_layers}, wire, options};
    self.moved.start().or_throw();
    auto const begun = self.moved.current();
    // The plan is made on what was counted before it began.
    for (int call = 0; call < 199; ++call) {
      run(self, 1, call < 101 ? 5 : 77);
      bool const is_planning = call >= 100 && self.log.steps_of("plan").empty();
      CHECK((self.moved.state() == rebalancer_state::planning) == is_planning);
      if (is_planning) { CHECK(self.moved.current() == begun); }
    }
    CHECK(self.first_error().empty());
    auto const at = static_cast<std::size_t>(wire.rank());
    result.planned[at] = self.moved.current();
    result.dumps[at] = self.log.steps_of("dump");
    result.plans[at] = self.log.steps_of("plan");
    result.commits[at] = self.log.steps_of("commit");
  });
  return result;
}

}  // namespace

TEST_CASE("a plan whose layers are divided is the plan of one call, bit for bit, and all ranks take as many calls") {
  auto const calls_of = [](auto const& policy, rebalancer_options options, index_t dead) {
    CAPTURE(dead);
    CAPTURE(options.plan_in_parts);
    auto whole_options = options;
    whole_options.layers_per_plan_call = 0;
    whole_options.work_per_plan_call = 0;
    auto const whole = divided_cycle(policy, whole_options, dead);
    std::vector<std::uint64_t> calls;
    for (std::int64_t const work : {std::int64_t{1} << 40, std::int64_t{20'000}, std::int64_t{4000}}) {
      CAPTURE(work);
      options.work_per_plan_call = work;
      auto const sliced = divided_cycle(policy, options, dead);
      auto const first = static_cast<std::size_t>(dead == 0 ? 1 : 0);
      for (std::size_t rank = 0; rank < num_ranks; ++rank) {
        if (static_cast<index_t>(rank) == dead) { continue; }
        CHECK(whole.plans[rank] == std::vector<std::uint64_t>{101});
        CHECK(sliced.planned[rank] == whole.planned[rank]);
        CHECK_FALSE(sliced.planned[rank] == initial);
        CHECK(sliced.plans[rank] == sliced.plans[first]);
        REQUIRE(sliced.plans[rank].size() == 1);
        CHECK(sliced.dumps[rank] == std::vector<std::uint64_t>{101});
        CHECK(sliced.commits[rank] == sliced.plans[rank]);
      }
      calls.push_back(sliced.plans[first].front() - 100);
    }
    // What fits one call keeps its timing.
    if (options.layers_per_plan_call == 0) { CHECK(calls[0] == 1); }
    return calls;
  };
  for (index_t const dead : {-1, 0, 3}) {
    for (bool const in_parts : {true, false}) {
      rebalancer_options const options{.plan_in_parts = in_parts, .checked_layers = 1};
      auto const calls = calls_of(incremental_placement{}, options, dead);
      CHECK(calls[1] > 1);
      CHECK(calls[2] > 6);  // more than there are layers
      CHECK(calls[2] > calls[1]);
      calls_of(incremental_placement{.max_moves_per_layer = 8, .shares = share_mode::optimal}, options, dead);
      calls_of(any_policy{incremental_placement{.max_moves_in_all = 9}}, options, dead);
    }
  }
  // Both limits hold: six layers of each rank, one a call at most.
  auto const both = calls_of(incremental_placement{}, {.plan_in_parts = false, .layers_per_plan_call = 1}, -1);
  CHECK(both[0] == 6);
  CHECK(both[2] > 6);
  // A policy that cannot stop within a layer has its layers planned as ever.
  auto const undivided = calls_of(headroom_placement{}, {.plan_in_parts = false, .layers_per_plan_call = 2}, -1);
  CHECK(undivided == std::vector<std::uint64_t>{3, 3, 3});
}

namespace {

/// Throws once, in the middle of a layer.
class stumbling_planner final : public layer_planner {
public:
  stumbling_planner(std::unique_ptr<layer_planner> inner, bool& is_to_stumble)
      : inner_{std::move(inner)}, is_to_stumble_{is_to_stumble} {}
  [[nodiscard]] status begin(load_history_view history, placement const& current, index_t layer,
                             placement& next) override {
    return inner_->begin(history, current, layer, next);
  }
  [[nodiscard]] status advance(std::int64_t& work) override {
    if (!std::exchange(is_to_stumble_, false)) { return inner_->advance(work); }
    std::int64_t one = 1;
    static_cast<void>(inner_->advance(one));
    REQUIRE_FALSE(inner_->is_finished());
    throw std::runtime_error{"no memory, say"};
  }
  [[nodiscard]] bool is_finished() const noexcept override { return inner_->is_finished(); }

private:
  std::unique_ptr<layer_planner> inner_;
  bool& is_to_stumble_;
};

/// Counts what it has made that plans layers.
struct counting_planners : incremental_placement {
  int* made = nullptr;
  bool* is_to_stumble = nullptr;
  [[nodiscard]] std::unique_ptr<layer_planner> make_layer_planner(topology const& ranks, index_t num_logical) const {
    ++*made;
    return std::make_unique<stumbling_planner>(incremental_placement::make_layer_planner(ranks, num_logical),
                                               *is_to_stumble);
  }
};

/// Cycle after cycle on four ranks, each compared with a plan that is made in one go.
class planned_cycles {
public:
  planned_cycles(in_process_endpoint& wire, rebalancer_options options)
      : self_{where, initial, policy(), layers_per_chunk<>{num_layers}, wire, options} {
    self_.moved.start().or_throw();
  }
  void plan_again(std::uint64_t seed) {
    while (self_.moved.state() == rebalancer_state::recording) { run(self_, 1, seed); }
    while (self_.moved.state() != rebalancer_state::recording) { run(self_, 1, seed); }
    auto const before = std::exchange(in_force_, self_.moved.current());
    CHECK(in_force_ == planned_at_once(incremental_placement{}, where, before, seed));
  }
  void set_topology() { self_.moved.set_topology(where, in_force_).or_throw(); }
  /// The plan that is made next fails on this rank, which throws in it, or on another.
  void fail_once(std::uint64_t seed, bool throws) {
    is_to_stumble_ = throws;
    status ended;
    while (ended.ok()) { ended = pass(self_.moved, some_loads(seed)); }
    CHECK(self_.moved.state() == rebalancer_state::failed);
    self_.moved.resume().or_throw();
    CHECK(self_.moved.current() == in_force_);
  }
  [[nodiscard]] int made() const noexcept { return made_; }

private:
  [[nodiscard]] counting_planners policy() {
    counting_planners counting;
    counting.made = &made_;
    counting.is_to_stumble = &is_to_stumble_;
    return counting;
  }

  int made_ = 0;
  bool is_to_stumble_ = false;
  placement in_force_ = initial;
  member<counting_planners, layers_per_chunk<>> self_;
};

template <class Body>
void on_planned_cycles(rebalancer_options const& options, Body body) {
  in_process_group group{num_ranks};
  group.run([&](in_process_endpoint& wire) {
    planned_cycles cycles{wire, options};
    body(cycles, wire.rank());
  });
}

}  // namespace

TEST_CASE("what plans layers in slices is made once, and anew for another topology, and plans as a new one would") {
  rebalancer_options options{.interval = 1, .timeout = patience, .work_per_plan_call = 2000};
  for (bool const by_waves : {false, true}) {
    CAPTURE(by_waves);
    options.layers_per_plan_call = by_waves ? 1 : 0;
    options.moves_while_planning = by_waves;
    on_planned_cycles(options, [](planned_cycles& cycles, index_t) {
      for (std::uint64_t seed = 5; seed < 8; ++seed) { cycles.plan_again(seed); }
      CHECK(cycles.made() == 1);
      cycles.set_topology();
      cycles.plan_again(8);
      CHECK(cycles.made() == 2);
    });
  }
}

TEST_CASE("what threw in the middle of a layer does not go on with it in the next plan") {
  on_planned_cycles({.interval = 1, .timeout = patience, .work_per_plan_call = 400},
                    [](planned_cycles& cycles, index_t rank) {
                      cycles.plan_again(5);
                      cycles.fail_once(6, rank == 2);
                      cycles.plan_again(7);
                    });
}

TEST_CASE("while a layer is half planned a plan may be dropped or refused, and nothing of it is left") {
  rebalancer_options options{.interval = 1, .timeout = patience, .work_per_plan_call = 400};
  in_process_group group{num_ranks};
  group.run([&](in_process_endpoint& wire) {
    member<incremental_placement, layers_per_chunk<>> self{
        where, initial, incremental_placement{}, layers_per_chunk<>{num_layers}, wire, options};
    auto& moved = self.moved;
    moved.start().or_throw();
    run(self, 4);
    CHECK(moved.state() == rebalancer_state::planning);
    prediction foreseen;
    CHECK(moved.predict(foreseen).code() == errc::busy);
    moved.resume().or_throw();
    CHECK(moved.state() == rebalancer_state::recording);
    moved.predict(foreseen).or_throw();  // in one call
    CHECK(moved.state() == rebalancer_state::recording);
    run(self, 3);
    CHECK(moved.state() == rebalancer_state::planning);
    moved.disable();
    run(self, 3);
    CHECK(moved.current() == initial);
    moved.enable();
    auto const whole = planned_at_once(incremental_placement{}, where, initial, 9);
    for (int call = 0; call < 200 && self.log.steps_of("plan").empty(); ++call) { run(self, 1, 9); }
    CHECK(moved.current() == whole);
    CHECK(self.first_error().empty());
  });
}

TEST_CASE("a rank that is shut out in the middle of a plan is named by the next call") {
  rebalancer_options const options{.interval = 1, .timeout = patience, .work_per_plan_call = 400};
  in_process_group group{num_ranks};
  in_process_group channel{num_ranks};
  group.run([&](in_process_endpoint& wire) {
    member<incremental_placement, layers_per_chunk<>> self{
        where, initial, incremental_placement{}, layers_per_chunk<>{num_layers}, wire, options};
    self.moved.start().or_throw();
    run(self, 4);
    CHECK(self.moved.state() == rebalancer_state::planning);
    static_cast<void>(exchange(channel.endpoint(wire.rank())));
    if (wire.rank() == 3) { return; }
    wire.expel(3).or_throw();
    auto const ended = pass(self.moved, some_loads());
    CHECK(ended.code() == errc::invalid_topology);
    CHECK(ended.rank() == 3);
    CHECK(self.moved.current() == initial);
  });
}

TEST_CASE("a rank whose slice fails tells the others when all are done, and all come back") {
  // A budget that does not suffice for the experts of a rank that died: every rank finds it in another layer.
  auto live = where;
  live.set_live(1, false);
  in_process_group group{num_ranks};
  group.expel(1);
  group.run([&](in_process_endpoint& wire) {
    if (wire.rank() == 1) { return; }
    rebalancer_options const options{.interval = 1, .timeout = patience, .work_per_plan_call = 400};
    member<incremental_placement, layers_per_chunk<>> self{
        live, initial, incremental_placement{.max_moves_per_layer = 0}, layers_per_chunk<>{num_layers}, wire, options};
    self.moved.start().or_throw();
    status ended;
    for (int call = 0; call < 200 && ended.ok(); ++call) { ended = pass(self.moved, some_loads()); }
    CHECK(ended.code() == errc::missing_expert);
    CHECK(self.moved.state() == rebalancer_state::failed);
    CHECK(self.moved.current() == initial);
    self.moved.resume().or_throw();
    CHECK(self.moved.state() == rebalancer_state::recording);
  });
}

TEST_CASE("ranks that plan divided layers on different loads take rank 0's plan, whoever needs more calls") {
  in_process_group group{num_ranks};
  group.run([&](in_process_endpoint& wire) {
    miscounting_control control{wire, wire.rank() == 3};
    miscounting_member<incremental_placement> self{
        where,
        initial,
        {},
        layers_per_chunk<>{num_layers},
        control,
        wire,
        {.interval = 1, .timeout = patience, .work_per_plan_call = 2000, .adopt_first_plan = true}};
    auto& moved = self.moved;
    moved.start().or_throw();
    for (int call = 0; call < 200 && moved.current() == initial; ++call) { pass(moved, some_loads()).or_throw(); }
    CHECK(moved.current() == planned_at_once(incremental_placement{}, where, initial, 5));
    CHECK(self.first_error().empty());
  });
}

TEST_CASE("a refresh of shares that falls due while a plan is being made comes after it") {
  auto options = six_calls(12);
  options.share_interval = 5;
  on_four_ranks(options, {}, [](auto& self, in_process_endpoint&) {
    run(self, 13);
    run(self, 7, 77);
    // The plan takes the calls 13 to 18; the third refresh falls due in call 15.
    CHECK(self.log.steps_of("plan") == std::vector<std::uint64_t>{18});
    CHECK(self.log.steps_of("shares").back() == 19);
    CHECK(self.first_error().empty());
  });
}

TEST_CASE("by default a call of a plan ends after a while, under a policy that can stop") {
  auto const call_of_plan = [](auto const& policy, rebalancer_options options) {
    options.plan_in_parts = false;
    auto const cycle = divided_cycle(policy, options);
    REQUIRE(cycle.plans[0].size() == 1);
    return cycle.plans[0].front();
  };
  CHECK(call_of_plan(incremental_placement{}, {}) > 101);
  CHECK(call_of_plan(incremental_placement{}, {.work_per_plan_call = 0}) == 101);
  CHECK(call_of_plan(balanced_placement{}, {}) == 101);
  CHECK(call_of_plan(headroom_placement{}, {}) == 101);
}

TEST_CASE("a limit of work must not be negative") {
  rebalancer_options const options{.work_per_plan_call = -1};
  CHECK(options.validate().message() == "rebalancer: work_per_plan_call is -1, must not be negative");
}

// ---- moves while more is planned ----

namespace {

rebalancer_options moving_meanwhile(rebalancer_options options) {
  options.interval = 50;
  options.timeout = patience;
  options.moves_while_planning = true;
  return options;
}

}  // namespace

TEST_CASE("layers move before the next ones are planned, and in the end the placement is that of the whole plan") {
  struct seen {
    placement current;
    std::vector<std::uint64_t> plans, commits;
    std::vector<index_t> committed;
  };
  auto const drive = [](auto const& policy, rebalancer_options options, index_t per_chunk, index_t dead) {
    auto live = where;
    if (dead >= 0) { live.set_live(dead, false); }
    std::vector<seen> result(num_ranks);
    in_process_group group{num_ranks};
    if (dead >= 0) { group.expel(dead); }
    group.run([&](in_process_endpoint& wire) {
      if (wire.rank() == dead) { return; }
      member<std::decay_t<decltype(policy)>, layers_per_chunk<>> self{
          live, initial, policy, layers_per_chunk<>{per_chunk}, wire, options};
      self.moved.start().or_throw();
      // The plan is made on what was counted before it began.
      for (int call = 0; call < 80; ++call) { run(self, 1, call < 51 ? 5 : 77); }
      for (index_t slot = 0; slot < where.num_slots() && dead >= 0; ++slot) {
        if (live.is_live(live.rank_of_slot(slot)) || !self.moved.current().has_shares()) { continue; }
        for (index_t layer = 0; layer < num_layers; ++layer) {
          CHECK(self.moved.current().shares(layer)[static_cast<std::size_t>(slot)] == 0);
        }
      }
      CHECK(self.moved.state() == rebalancer_state::recording);
      CHECK(self.first_error().empty());
      auto& mine = result[static_cast<std::size_t>(wire.rank())];
      mine = {self.moved.current(), self.log.steps_of("plan"), self.log.steps_of("commit"), {}};
      for (auto const& layers : self.log.layers_of("commit")) {
        mine.committed.insert(mine.committed.end(), layers.begin(), layers.end());
      }
      std::sort(mine.committed.begin(), mine.committed.end());
    });
    return result;
  };
  auto const same = [&](auto const& policy, rebalancer_options options, index_t dead) {
    options = moving_meanwhile(options);
    options.work_per_plan_call = 0;  // layers are whole
    auto whole_options = options;
    whole_options.moves_while_planning = false;
    for (index_t const each : {1, 2, 4}) {
      for (index_t const per_chunk : {1, 4}) {
        CAPTURE(each);
        CAPTURE(per_chunk);
        options.layers_per_plan_call = each;
        whole_options.layers_per_plan_call = each;
        auto const whole = drive(policy, whole_options, per_chunk, dead);
        auto const waves = drive(policy, options, per_chunk, dead);
        index_t const planners = options.plan_in_parts ? num_ranks - (dead >= 0 ? 1 : 0) : 1;
        auto const calls = ((num_layers + planners - 1) / planners + each - 1) / each;
        for (std::size_t rank = 0; rank < num_ranks; ++rank) {
          if (static_cast<index_t>(rank) == dead) { continue; }
          // Experts without tokens keep the shares of the refresh before, and other calls refresh here.
          if (options.share_interval == 0) { CHECK(waves[rank].current == whole[0].current); }
          CHECK(std::ranges::equal(waves[rank].current.logical_of_slot().elements(),
                                   whole[0].current.logical_of_slot().elements()));
          CHECK_FALSE(waves[rank].current == initial);
          CHECK(waves[rank].committed == whole[0].committed);
          CHECK(waves[rank].plans.size() == static_cast<std::size_t>(calls));
          CHECK(waves[rank].plans.front() == 51);
          // A chunk of its own moves in the call that plans it, several in the calls after that one.
          CHECK(waves[rank].commits.front() <= 52);
          if (calls > 1) { CHECK(waves[rank].commits.front() < waves[rank].plans.back()); }
          if (options.checked_layers == 0 && per_chunk == 1) {
            CHECK(waves[rank].commits.back() <= whole[rank].commits.back());
          }
        }
      }
    }
  };
  same(headroom_placement{}, {}, -1);
  same(headroom_placement{}, {.plan_in_parts = false}, -1);
  same(incremental_placement{}, {.checked_layers = 1}, -1);
  same(incremental_placement{.max_moves_per_layer = 8, .shares = share_mode::optimal}, {}, -1);
  same(any_policy{headroom_placement{}}, {.checked_layers = 2, .verify = true}, 3);
  same(incremental_placement{}, {}, 3);
  same(incremental_placement{.shares = share_mode::optimal}, {}, 3);
  same(headroom_placement{}, {.share_interval = 7}, -1);
}

TEST_CASE("layers that move before the next ones are planned may be divided too") {
  std::vector<placement> whole(num_ranks);
  for (std::int64_t const work : {0, 2000}) {
    auto options = moving_meanwhile({.layers_per_plan_call = 1, .work_per_plan_call = work});
    in_process_group group{num_ranks};
    group.run([&](in_process_endpoint& wire) {
      member<incremental_placement, layers_per_chunk<>> self{
          where, initial, incremental_placement{}, layers_per_chunk<>{num_layers}, wire, options};
      self.moved.start().or_throw();
      // Until the moves of the first cycle are over.
      for (int call = 0; call < 51; ++call) { run(self, 1); }
      while (self.moved.state() != rebalancer_state::recording) { run(self, 1, 77); }
      auto const calls = self.log.steps_of("plan");
      REQUIRE(calls.size() == 2);
      CHECK((calls[0] > 51) == (work > 0));
      CHECK(self.log.steps_of("commit").front() < calls[1]);
      auto& mine = whole[static_cast<std::size_t>(wire.rank())];
      if (work == 0) { mine = self.moved.current(); }
      CHECK(self.moved.current() == mine);
      CHECK_FALSE(self.moved.current() == initial);
      CHECK(self.first_error().empty());
    });
  }
}

TEST_CASE("layers that are not planned yet keep their shares, cycle after cycle") {
  auto options = moving_meanwhile({.share_interval = 40, .layers_per_plan_call = 1});
  options.interval = 20;
  on_four_ranks(options, {}, [](auto& self, in_process_endpoint&) {
    run(self, 30);
    for (int cycle = 0; cycle < 4; ++cycle) { run(self, 24, static_cast<std::uint64_t>(40 + cycle)); }
    std::vector<index_t> planned;
    std::size_t cycles = 0;
    for (auto const& what : self.log.events) {
      if (what.kind == "dump") {
        planned.clear();
        ++cycles;
      }
      if (what.kind != "plan") { continue; }
      // Each layer is in one of the plans of a cycle.
      for (auto const layer : what.layers) {
        CHECK(std::find(planned.begin(), planned.end(), layer) == planned.end());
        planned.push_back(layer);
      }
    }
    CHECK(cycles >= 4);
    CHECK(self.first_error().empty());
  });
}

TEST_CASE("nothing of a plan that was dropped comes after moves that the engine asks for") {
  auto options = moving_meanwhile({.plan_in_parts = false, .layers_per_plan_call = 1});
  options.interval = 1;
  on_four_ranks(options, {}, [](auto& self, in_process_endpoint&) {
    auto& moved = self.moved;
    run(self, 3);  // layers 0 and 1
    CHECK(moved.state() == rebalancer_state::planning);
    moved.disable();
    moved.begin_apply(plan_of(9), detail::numbers_below(num_layers)).or_throw();
    CHECK(moved.state() == rebalancer_state::moving);
    for (int call = 0; call < 5; ++call) {
      run(self, 1);
      CHECK(moved.state() == rebalancer_state::recording);
    }
    CHECK(std::ranges::equal(moved.current().logical_of_slot().elements(), plan_of(9).logical_of_slot().elements()));
    CHECK(self.first_error().empty());
  });
}

TEST_CASE("what has moved stays when the rest of the plan is dropped") {
  auto options = moving_meanwhile({.plan_in_parts = false, .layers_per_plan_call = 1});
  options.interval = 1;
  on_four_ranks(options, {}, [](auto& self, in_process_endpoint&) {
    auto& moved = self.moved;
    run(self, 1);
    for (int call = 0; call < 3; ++call) { run(self, 1); }  // layers 0, 1 and 2, each planned and moved
    CHECK(moved.state() == rebalancer_state::planning);
    CHECK(moved.apply(plan_of(9)).code() == errc::busy);
    moved.disable();
    CHECK(moved.state() == rebalancer_state::recording);
    run(self, 5);
    auto const planned = plan_of(5);
    for (index_t layer = 0; layer < num_layers; ++layer) {
      auto const& wanted = layer < 3 ? planned : initial;
      CHECK(std::ranges::equal(moved.current().logical_of_slot(layer), wanted.logical_of_slot(layer)));
    }
    CHECK(self.first_error().empty());
    // Another plan begins from there, and a forecast of it is of all layers.
    moved.enable();
    prediction foreseen;
    moved.predict(foreseen).or_throw();
    run(self, 7);
    CHECK(moved.state() == rebalancer_state::recording);
    CHECK(std::ranges::equal(moved.current().logical_of_slot(5), planned.logical_of_slot(5)));
  });
}

TEST_CASE("a rank that cannot plan a later layer ends the plan on all; what has moved stays, and all come back") {
  watched<headroom_placement> policy;
  auto const is_ill = std::make_shared<bool>(true);
  policy.spoil = [is_ill](index_t rank, std::span<index_t const> layers, placement&) {
    bool const fails = *is_ill && rank == 1 && !layers.empty() && layers.front() == 5;
    return fails ? status{errc::invalid_load, "rank 1 has a headache"} : status{};
  };
  auto options = moving_meanwhile({.layers_per_plan_call = 1});
  options.interval = 1;
  on_four_ranks(options, policy, [&](auto& self, in_process_endpoint& channel) {
    auto& moved = self.moved;
    run(self, 2);
    CHECK(moved.state() == rebalancer_state::planning);
    CHECK(std::ranges::equal(moved.current().logical_of_slot(3), plan_of(5).logical_of_slot(3)));
    auto const ended = pass(moved, some_loads());
    CHECK_FALSE(ended.ok());
    auto const* const said = moved.rank() == 1 ? "headache" : "rank 1 could not plan its layers";
    CHECK(ended.message().find(said) != std::string::npos);
    CHECK(moved.state() == rebalancer_state::failed);
    CHECK(std::ranges::equal(moved.current().logical_of_slot(3), plan_of(5).logical_of_slot(3)));
    CHECK(std::ranges::equal(moved.current().logical_of_slot(5), initial.logical_of_slot(5)));
    moved.resume().or_throw();
    static_cast<void>(exchange(channel));
    if (moved.rank() == 0) { *is_ill = false; }
    static_cast<void>(exchange(channel));
    run(self, 3);
    CHECK(moved.current() == plan_of(5));
    CHECK(self.first_error().empty());
  });
}

TEST_CASE("moves while planning are refused where a plan has to be whole") {
  rebalancer_options options{.moves_while_planning = true};
  CHECK(options.validate().message().find("needs layers_per_plan_call") != std::string::npos);
  options.layers_per_plan_call = 1;
  CHECK(options.validate().ok());
  options.adopt_first_plan = true;
  CHECK(options.validate().message().find("need whole plans") != std::string::npos);
  options.adopt_first_plan = false;
  options.asynchronous = true;
  CHECK(options.validate().message().find("nor with asynchronous mode") != std::string::npos);
  options.asynchronous = false;
  in_process_group group{1};
  group.run([&](in_process_endpoint& wire) {
    topology const alone{{1, 1, 32, 0}};
    auto const made = [&](auto const& policy) {
      member<std::decay_t<decltype(policy)>, layers_per_chunk<>> self{alone, initial, policy, layers_per_chunk<>{1},
                                                                      wire,  options};
      return self.moved.start();
    };
    CHECK_THROWS_WITH(static_cast<void>(made(incremental_placement{.max_moves_in_all = 9})),
                      doctest::Contains("bounds what moves over all layers"));
    CHECK_THROWS_WITH(static_cast<void>(made(any_policy{incremental_placement{.max_moves_in_all = 9}})),
                      doctest::Contains("bounds what moves over all layers"));
    CHECK(made(incremental_placement{}).ok());
  });
}
