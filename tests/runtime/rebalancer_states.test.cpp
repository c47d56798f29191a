// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What a rebalancer does when it is told to stop, when ranks differ, and when something breaks.
#include <ballast/load/decay_recorder.hpp>
#include <ballast/load/pass_recorder.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/allocation_counter.hpp"
#include "../support/cohort.hpp"
#include "../support/policies.hpp"
#include "../support/two_ranks.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{2, 1, 3, 0}};
constexpr index_t num_layers = 4;
placement const initial = trivial_placement({num_layers, 4, 6});

template <class Member>
void record(Member& self, std::vector<index_t> const& ids = {0, 1, 2, 3}) {
  for (index_t layer = 0; layer < num_layers; ++layer) { self.moved.record_top_k(layer, ids); }
}
template <class Member>
status step(Member& self) {
  record(self);
  return self.moved.on_forward_pass_end();
}

using one_by_one = layers_per_chunk<>;

}  // namespace

TEST_CASE("disable in mid-cycle keeps moved layers moved and the others where they are; enable restarts the count") {
  on_two_ranks([](in_process_endpoint& me) {
    member<rotate_placement, one_by_one> self{where,         initial, {},
                                              one_by_one{1}, me,      {.interval = 2, .timeout = patience}};
    self.moved.start().or_throw();
    for (int call = 1; call <= 5; ++call) { step(self).or_throw(); }  // planned on 3, layers 0 and 1 moved on 4 and 5
    self.moved.disable();
    for (int call = 6; call <= 12; ++call) { step(self).or_throw(); }
    CHECK(self.log.steps_of("commit") == std::vector<std::uint64_t>{4, 5});
    CHECK(self.moved.epoch(0) == 1);
    CHECK(self.moved.epoch(1) == 1);
    CHECK(self.moved.epoch(2) == 0);
    CHECK(std::ranges::equal(self.moved.current().logical_of_slot(3), initial.logical_of_slot(3)));
    CHECK(self.first_error() == "");
    self.moved.enable();
    for (int call = 13; call <= 15; ++call) { step(self).or_throw(); }
    CHECK(self.log.steps_of("dump") == std::vector<std::uint64_t>{3, 15});
  });
}

TEST_CASE("the threshold skips above it, rebalances at it, and a skip consumes the window") {
  // Each rank picks every expert once a pass. Slots hold 0 1 2 | 3 0 1: experts 0 and 1 are split, the ranks are even.
  double const in_force = 1.0;
  struct row {
    double threshold;
    bool skips;
  };
  for (auto const& [threshold, skips] : {row{0.99, true}, row{in_force, false}}) {
    CAPTURE(threshold);
    on_two_ranks([&](in_process_endpoint& me) {
      member<rotate_placement, one_by_one> self{
          where,         initial, {},
          one_by_one{4}, me,      {.interval = 2, .utilization_threshold = threshold, .timeout = patience}};
      self.moved.start().or_throw();
      for (int call = 1; call <= 5; ++call) { step(self).or_throw(); }
      CHECK(self.log.steps_of("dump") == std::vector<std::uint64_t>{3, 5});
      CHECK(self.log.steps_of("skip").size() == (skips ? 2 : 0));
      CHECK(self.log.steps_of("commit").size() == (skips ? 0 : 2));
      CHECK(self.log.events[0].balancedness == doctest::Approx(in_force));
    });
  }
}

TEST_CASE("at exactly the threshold a layer is rebalanced") {
  // Expert 2 is on rank 0 only, expert 3 on rank 1 only. 6 tokens against 2 over both ranks: balancedness 4 / 6.
  for (bool const above : {false, true}) {
    CAPTURE(above);
    double const threshold = above ? 4.0 / 6.0 - 1e-9 : 4.0 / 6.0;
    on_two_ranks([&](in_process_endpoint& me) {
      member<rotate_placement, one_by_one> self{
          where,         initial, {},
          one_by_one{4}, me,      {.interval = 1, .utilization_threshold = threshold, .timeout = patience}};
      self.moved.start().or_throw();
      for (int call = 1; call <= 2; ++call) {
        record(self, {2, 2, 2, 3});
        self.moved.on_forward_pass_end().or_throw();
      }
      CHECK(self.log.steps_of("skip").size() == (above ? 1 : 0));
    });
  }
}

TEST_CASE("passes that the gate refuses are not counted") {
  on_two_ranks([](in_process_endpoint& me) {
    member<keep_placement, one_by_one> self{
        where, initial,
        {},    one_by_one{4},
        me,    {.interval = 3, .timeout = patience, .gate = {.phases = to_mask(phase::prefill), .min_tokens = 8}}};
    self.moved.start().or_throw();
    auto const pass = [&](pass_info info, std::vector<index_t> const& ids) {
      record(self, ids);
      self.moved.on_forward_pass_end(info).or_throw();
    };
    pass({.counted = true, .phase = phase::prefill, .tokens = 8}, {2, 3});
    pass({.counted = true, .phase = phase::decode, .tokens = 8}, {2, 2, 2});
    pass({.counted = false, .phase = phase::prefill, .tokens = 8}, {2, 2, 2});
    pass({.counted = true, .phase = phase::prefill, .tokens = 7}, {2, 2, 2});
    // Only the first pass counts: 2 and 3 are on different ranks, so the layer is balanced.
    CHECK(self.log.events.at(0).balancedness == doctest::Approx(1.0));
  });
}

TEST_CASE("predict tells what a rebalance would bring and changes nothing") {
  on_two_ranks([](in_process_endpoint& me) {
    member<rotate_placement, one_by_one> self{where,         initial, {2},
                                              one_by_one{1}, me,      {.interval = 9, .timeout = patience}};
    self.moved.start().or_throw();
    for (int call = 1; call <= 3; ++call) { step(self).or_throw(); }
    prediction seen;
    self.moved.predict(seen).or_throw();
    CHECK(seen.layers == 2);
    CHECK(seen.steps == 2);
    // 0 1 2 | 3 0 1 becomes 1 2 3 | 0 1 0: rank 0 needs 3, rank 1 has everything.
    CHECK(seen.moves == 2);
    CHECK(seen.bytes == 2 * (48 + 5));
    CHECK(seen.balancedness_now == doctest::Approx(1.0));
    CHECK(seen.balancedness_then < 1.0);
    CHECK(self.moved.current() == initial);
    CHECK(self.log.events.empty());
    for (int call = 4; call <= 10; ++call) { step(self).or_throw(); }
    CHECK(self.log.steps_of("dump") == std::vector<std::uint64_t>{10});
  });
}

TEST_CASE("apply moves the chosen layers only, refuses what does not fit, and refuses in mid-cycle") {
  on_two_ranks([](in_process_endpoint& me) {
    member<rotate_placement, one_by_one> self{where,         initial, {},
                                              one_by_one{1}, me,      {.interval = 2, .timeout = patience}};
    self.moved.start().or_throw();
    placement target;
    rotate_placement{}.plan({}, initial, where, target).or_throw();
    std::vector<index_t> const layers{1, 3};
    self.moved.apply(target, layers).or_throw();
    CHECK(std::ranges::equal(self.moved.current().logical_of_slot(1), target.logical_of_slot(1)));
    CHECK(std::ranges::equal(self.moved.current().logical_of_slot(2), initial.logical_of_slot(2)));
    CHECK(self.first_error() == "");

    auto const other_shape = self.moved.apply(trivial_placement({num_layers, 3, 6}), layers);
    CHECK(other_shape.code() == errc::invalid_placement);
    auto const no_layer = self.moved.apply(target, std::vector<index_t>{4});
    CHECK(no_layer.code() == errc::invalid_option);
    CHECK(no_layer.message().find("layer 4") != std::string::npos);
    CHECK(self.moved.apply(target, std::vector<index_t>{}).ok());

    for (int call = 1; call <= 4; ++call) { step(self).or_throw(); }
    CHECK(self.moved.state() == rebalancer_state::moving);
    CHECK(self.moved.apply(target, layers).code() == errc::busy);
    for (int call = 5; call <= 8; ++call) { step(self).or_throw(); }
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("ranks that plan differently are told so before a byte moves; resume lets them try again") {
  on_two_ranks([](in_process_endpoint& me) {
    struct differs {
      bool odd;
      status plan(load_history_view history, placement const& current, topology const& ranks, placement& next) const {
        return odd ? rotate_placement{2}.plan(history, current, ranks, next)
                   : rotate_placement{1}.plan(history, current, ranks, next);
      }
      [[nodiscard]] constexpr ballast::relabel_scope interchangeable() const noexcept {
        return ballast::relabel_scope::none;
      }
      void describe(digest& out) const { out.add(std::string_view{"differs"}); }
    };
    member<differs, one_by_one> self{where,         initial, {me.rank() == 1},
                                     one_by_one{1}, me,      {.interval = 1, .timeout = patience}};
    self.moved.start().or_throw();
    step(self).or_throw();
    auto const refused = step(self);
    CHECK(refused.code() == errc::disagreement);
    CHECK(refused.message().find("rank 1 differs from rank 0 in plan") != std::string::npos);
    CHECK(self.moved.state() == rebalancer_state::failed);
    CHECK(self.moved.current() == initial);
    CHECK(self.first_error() == "");
    CHECK(step(self).code() == errc::disagreement);  // says so until it is resumed
    CHECK(self.log.events.back().kind == "failed");
    self.moved.resume().or_throw();
    CHECK(step(self).ok());
    CHECK(self.moved.state() == rebalancer_state::recording);
  });
}

TEST_CASE("ranks that plan differently may take rank 0's plan instead") {
  on_two_ranks([](in_process_endpoint& me) {
    struct differs {
      index_t every;
      status plan(load_history_view history, placement const& current, topology const& ranks, placement& next) const {
        return rotate_placement{every}.plan(history, current, ranks, next);
      }
      [[nodiscard]] constexpr ballast::relabel_scope interchangeable() const noexcept {
        return ballast::relabel_scope::none;
      }
      void describe(digest& out) const { out.add(std::string_view{"differs"}); }
    };
    member<differs, one_by_one> self{
        where,         initial, {me.rank() + 1},
        one_by_one{4}, me,      {.interval = 1, .timeout = patience, .adopt_first_plan = true}};
    self.moved.start().or_throw();
    step(self).or_throw();
    step(self).or_throw();
    placement expected;
    rotate_placement{1}.plan({}, initial, where, expected).or_throw();
    CHECK(self.moved.current() == expected);
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("a rank that is one call behind is named with both step numbers") {
  on_two_ranks([](in_process_endpoint& me) {
    member<rotate_placement, one_by_one> self{where,         initial, {},
                                              one_by_one{1}, me,      {.interval = 1, .timeout = patience}};
    self.moved.start().or_throw();
    step(self).or_throw();
    if (me.rank() == 1) {
      self.moved.disable();
      step(self).or_throw();
      self.moved.enable();
      step(self).or_throw();
    }
    auto const refused = step(self);
    CHECK(refused.message() == "rank 1 differs from rank 0 in step: 4 against 2");
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("other options on one rank are found at the start") {
  on_two_ranks([](in_process_endpoint& me) {
    member<rotate_placement, one_by_one> self{
        where, initial, {}, one_by_one{1 + me.rank()}, me, {.interval = 1, .timeout = patience}};
    auto const refused = self.moved.start();
    CHECK(refused.code() == errc::disagreement);
    CHECK(refused.message() == "rank 1 differs from rank 0 in schedule: layers a chunk: 2 against 1");
    CHECK(refused.rank() == 1);
  });
}

TEST_CASE("a policy that cannot plan fails the cycle on every rank") {
  on_two_ranks([](in_process_endpoint& me) {
    member<refuse_to_plan, one_by_one> self{where,         initial, {},
                                            one_by_one{1}, me,      {.interval = 1, .timeout = patience}};
    self.moved.start().or_throw();
    step(self).or_throw();
    CHECK(step(self).message() == "refuse_to_plan: never plans");
    CHECK(self.moved.state() == rebalancer_state::failed);
    CHECK(self.moved.current() == initial);
  });
}

namespace {

// Flips one bit of everything that arrives.
struct flipping_wire {
  in_process_endpoint* wire;
  std::span<incoming_message const> receives{};

  [[nodiscard]] index_t rank() const noexcept { return wire->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return wire->num_ranks(); }
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> incoming) {
    receives = incoming;
    return wire->start(sends, incoming);
  }
  [[nodiscard]] transfer_state poll() { return wire->poll(); }
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    auto result = wire->wait(timeout);
    for (auto const& message : receives) { message.segments[0].data[0] ^= std::byte{1}; }
    return result;
  }
};

}  // namespace

TEST_CASE("verification finds a flipped bit before anything is committed") {
  on_two_ranks([](in_process_endpoint& me) {
    flipping_wire wire{&me};
    member<rotate_placement, one_by_one, host_store, flipping_wire> self{
        where, initial, {}, one_by_one{4}, me, wire, {.interval = 1, .timeout = patience, .verify = true}};
    self.moved.start().or_throw();
    step(self).or_throw();
    auto const refused = step(self);
    CHECK(!refused.ok());
    // Rank 0 receives an expert, rank 1 does not: the one sees the damage, the other its vote.
    CHECK(refused.message().find(me.rank() == 0 ? "received other bytes" : "rank 0 voted no") != std::string::npos);
    CHECK(self.moved.current() == initial);
    CHECK(self.moved.epoch(0) == 0);
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("a peer that never comes is named within the deadline, and nothing has changed") {
  on_two_ranks([](in_process_endpoint& me) {
    member<rotate_placement, one_by_one> self{where,         initial, {},
                                              one_by_one{4}, me,      {.interval = 1, .timeout = 200 * milliseconds}};
    self.moved.start().or_throw();
    step(self).or_throw();
    if (me.rank() == 1) { return; }
    auto const refused = step(self);
    CHECK(refused.code() == errc::deadline_exceeded);
    CHECK(refused.message().find("rank 1") != std::string::npos);
    CHECK(self.moved.state() == rebalancer_state::failed);
    CHECK(self.moved.current() == initial);
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("an observer that throws cannot disturb the protocol") {
  struct thrower final : observer {
    void on_event(event const&) override { throw std::runtime_error{"observer"}; }
  };
  on_two_ranks([](in_process_endpoint& me) {
    thrower watcher;
    patterned_weights weights{where, me.rank(), initial, {{8, 8}}};
    host_store store{where, num_layers};
    weights.add_to(store);
    rebalancer moved{
        where, initial,
        rebalancing{window_recorder{num_layers, 4, {1, 1}}, rotate_placement{}, all_layers{},
                    rebalancer_options{.interval = 1, .timeout = patience}, me.rank() == 0 ? &watcher : nullptr},
        store, me};
    moved.start().or_throw();
    for (int call = 0; call < 2; ++call) { moved.on_forward_pass_end().or_throw(); }
    CHECK(moved.observer_exceptions() == (me.rank() == 0 ? 3 : 0));
    CHECK(moved.epoch(0) == 1);
    CHECK(weights.first_error(moved.current()) == "");
  });
}

TEST_CASE("recording allocates nothing") {
  in_process_group group{1};
  topology const alone{{1, 1, 6, 0}};
  member<keep_placement, one_by_one> self{alone,         initial,           {},
                                          one_by_one{1}, group.endpoint(0), {.interval = 100, .timeout = patience}};
  self.moved.start().or_throw();
  std::vector<index_t> const ids{0, 1, 2, 3, -1, 3};
  allocation_count const allocated;
  for (int call = 0; call < 100; ++call) {
    for (index_t layer = 0; layer < num_layers; ++layer) { self.moved.record_top_k(layer, ids); }
    if (!self.moved.on_forward_pass_end().ok()) { FAIL("a recording call failed"); }
  }
  CHECK(allocated() == 0);
}

TEST_CASE("what does not fit together is refused with the value") {
  in_process_group group{2};
  auto& me = group.endpoint(0);
  host_store store{where, num_layers};
  auto const build = [&](rebalancer_options options, index_t per_chunk, index_t recorded_layers,
                         topology const& ranks) {
    rebalancer moved{
        ranks, initial,
        rebalancing{window_recorder{recorded_layers, 4}, keep_placement{}, layers_per_chunk{per_chunk}, options}, store,
        me};
    return moved.start();
  };
  CHECK_THROWS_WITH_AS(build({.interval = 0}, 1, num_layers, where).or_throw(), doctest::Contains("interval is 0"),
                       std::system_error);
  CHECK_THROWS_WITH_AS(build({}, 0, num_layers, where).or_throw(), doctest::Contains("layers_per_chunk is 0"),
                       std::system_error);
  CHECK_THROWS_WITH_AS(build({}, -3, num_layers, where).or_throw(), doctest::Contains("layers_per_chunk is -3"),
                       std::system_error);
  CHECK_THROWS_WITH_AS(build({}, 1, num_layers + 1, where).or_throw(), doctest::Contains("recorder counts 5 layers"),
                       std::system_error);
  CHECK_THROWS_WITH_AS(build({}, 1, num_layers, topology{{2, 1, 4, 0}}).or_throw(), doctest::Contains("6 slots"),
                       std::system_error);
  CHECK_THROWS_WITH_AS(build({}, 1, num_layers, topology{{3, 1, 2, 0}}).or_throw(), doctest::Contains("3 ranks"),
                       std::system_error);
  CHECK_THROWS_WITH_AS(
      build({.utilization_threshold = std::numeric_limits<double>::quiet_NaN()}, 1, num_layers, where).or_throw(),
      doctest::Contains("threshold is nan"), std::system_error);
  CHECK_THROWS_WITH_AS(build({.utilization_threshold = 1.5}, 1, num_layers, where).or_throw(),
                       doctest::Contains("threshold is 1.5"), std::system_error);
  // Somebody meant ten seconds, or thirty thousand milliseconds.
  for (nanoseconds_t const other_unit : {10, 30'000}) {
    CHECK_THROWS_WITH_AS(build({.timeout = other_unit}, 1, num_layers, where).or_throw(),
                         doctest::Contains("its unit is the nanosecond"), std::system_error);
  }
  auto const no_weights = build({.timeout = 50 * milliseconds}, 1, num_layers, where);
  CHECK(no_weights.code() == errc::invalid_weights);
  CHECK(no_weights.message().find("layer 0") != std::string::npos);
}

TEST_CASE("a second rebalancer of parts that the first has taken is refused, naming what they hold") {
  in_process_group group{2};
  auto& me = group.endpoint(0);
  host_store store{where, num_layers};
  topology ranks;
  placement held;
  auto const refusal = [&](auto& recorder) -> std::string {
    try {
      rebalancer const made{std::move(ranks), std::move(held),
                            rebalancing{std::move(recorder), keep_placement{}, one_by_one{}}, store, me};
    } catch (std::system_error const& error) { return error.what(); }
    return {};
  };
  auto const check_taken_twice = [&](auto recorder) {
    for (std::string const text : {"", "the recorder counts 0 layers x 0 experts"}) {
      ranks = where;
      held = initial;
      auto const why = refusal(recorder);
      CHECK(why.empty() == text.empty());
      CHECK(why.find(text) != std::string::npos);
    }
  };
  check_taken_twice(window_recorder{num_layers, 4});
  check_taken_twice(decay_recorder{num_layers, 4});
  check_taken_twice(pass_recorder{num_layers, 4});
  window_recorder window{num_layers, 4};
  held = initial;
  CHECK(refusal(window).find("the placement has 6 slots, the topology 1") != std::string::npos);
  window = window_recorder{num_layers, 4};
  ranks = where;
  CHECK(refusal(window).find("the placement has 0 slots, the topology 6") != std::string::npos);
}

// NOLINTBEGIN(bugprone-use-after-move,clang-analyzer-cplusplus.Move): what is left is what is tested
TEST_CASE("a store that was moved from is refused at the start") {
  in_process_group group{1};
  topology const alone{{1, 1, 6, 0}};
  host_store store{alone, num_layers};
  host_store const taken{std::move(store)};
  rebalancer moved{alone, initial, rebalancing{window_recorder{num_layers, 4}, keep_placement{}, one_by_one{}}, store,
                   group.endpoint(0)};
  CHECK(moved.start().message().find("the store is for 0 layers") != std::string::npos);
}
// NOLINTEND(bugprone-use-after-move,clang-analyzer-cplusplus.Move)

TEST_CASE("a topology of another shape than the ranks have is refused with both") {
  CHECK(ballast::detail::check_topology(topology{{4, 2, 5, 1}}, initial, where, initial.shape(), 0).message() ==
        "set_topology: 4 ranks on 2 nodes, 5 slots and 1 reserved ones a rank; they must stay 2 ranks on 1 nodes, 3 "
        "slots and 0 reserved ones a rank");
}
