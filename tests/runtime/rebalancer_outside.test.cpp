// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What comes from outside is checked: stores, plans, calls out of place, odd sizes and times.
#include <ballast/load/decay_recorder.hpp>
#include <ballast/load/pass_recorder.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/policies.hpp"
#include "../support/two_ranks.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{2, 1, 3, 0}};
constexpr index_t num_layers = 2;
placement const initial = trivial_placement({num_layers, 4, 6});

// One rank whose rebalancer has started with a recorder of the test's choice.
template <class Recorder>
struct served_by {
  patterned_weights weights;
  host_store store{where, num_layers};
  rebalancer<Recorder, balanced_placement, all_layers<>, in_process_endpoint, host_store, in_process_endpoint> moved;

  served_by(in_process_endpoint& me, Recorder recorder, rebalancer_options const& options)
      : weights{where, me.rank(), initial, {{16, 16}}},
        moved{where, initial, {std::move(recorder), balanced_placement{}, all_layers{}, options}, store, me} {
    weights.add_to(store);
    moved.start().or_throw();
  }
};

// One rank that would move nothing, over a store of the test's choice.
[[nodiscard]] auto keeping(in_process_endpoint& me, host_store& store) {
  return rebalancer{
      where, initial,
      rebalancing{window_recorder{num_layers, 4, {1, 1}}, keep_placement{}, all_layers{}, {.timeout = patience}}, store,
      me};
}

// Does to a plan what a test wants.
struct evil_placement {
  std::function<status(placement&)> deed;

  status plan(load_history_view, placement const& current, topology const&, placement& next) const {
    next = current;
    return deed(next);
  }
  void describe(digest& out) const { out.add(std::string_view{"evil_placement"}); }
};

// One cycle under an evil policy, on both ranks alike. @return what rank 0 was told
std::string told_about(std::function<status(placement&)> const& deed) {
  std::string message;
  on_two_ranks([&](in_process_endpoint& me) {
    member<evil_placement, all_layers<>> self{where,        initial, {deed},
                                              all_layers{}, me,      {.interval = 1, .timeout = patience}};
    self.moved.start().or_throw();
    status result;
    for (int call = 0; call < 2; ++call) { result = self.moved.on_forward_pass_end(); }
    CHECK(self.moved.state() == rebalancer_state::failed);
    CHECK(result.code() == errc::policy_failed);
    CHECK(self.moved.current() == initial);
    CHECK(self.moved.epoch(0) == 0);
    CHECK(self.first_error() == "");
    if (me.rank() == 0) { message = result.message(); }
    self.moved.resume().or_throw();
    CHECK(self.moved.state() == rebalancer_state::recording);
  });
  return message;
}

}  // namespace

TEST_CASE("a plan that is no plan changes nothing, and says what is wrong with it") {
  CHECK(told_about([](placement& next) {
          auto const map = next.edit(1).logical_of_slot;
          for (auto& expert : map) { expert = expert == 3 ? 0 : expert; }
          next.index_replicas(1);
          return status{};
        }).find("layer 1 has no slot for expert 3") != std::string::npos);
  CHECK(told_about([](placement& next) {
          next.edit(0).logical_of_slot[2] = 77;
          return status{};
        }).find("77") != std::string::npos);
  CHECK(told_about([](placement& next) {
          next = trivial_placement({1, 4, 6});
          return status{};
        }).find("1 layers") != std::string::npos);
  CHECK(told_about([](placement& next) {
          next.make_shares_even();
          for (auto& share : next.edit_shares(0)) { share = 0; }
          return status{};
        }).find("sum to 0") != std::string::npos);
  CHECK(told_about([](placement&) -> status { throw std::runtime_error{"no luck"}; }).find("no luck") !=
        std::string::npos);
}

TEST_CASE("apply refuses a target that is no placement") {
  on_two_ranks([](in_process_endpoint& me) {
    member<keep_placement, all_layers<>> self{where, initial, {}, all_layers{}, me, {.timeout = patience}};
    self.moved.start().or_throw();
    placement target = initial;
    target.edit(1).logical_of_slot[0] = 9;
    auto const result = self.moved.apply(target);
    CHECK(result.code() == errc::invalid_placement);
    CHECK(self.moved.state() == rebalancer_state::recording);
    CHECK(self.moved.current() == initial);
  });
}

TEST_CASE("a rebalancer without layers does nothing, for ever") {
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    placement none;
    none.assign({0, 4, 6}, {}).or_throw();
    host_store store{where, 0};
    rebalancer moved{where, none,
                     rebalancing{window_recorder{0, 4, {1, 1}},
                                 balanced_placement{},
                                 all_layers{},
                                 {.interval = 1, .share_interval = 1, .timeout = patience, .checked_slots = 1}},
                     store, me};
    moved.start().or_throw();
    for (int call = 0; call < 5; ++call) { moved.on_forward_pass_end().or_throw(); }
    prediction seen;
    moved.predict(seen).or_throw();
    CHECK(seen.moves == 0);
    moved.apply(none).or_throw();
    moved.check_replicas().or_throw();
    moved.resume().or_throw();
    CHECK(moved.step() == 5);
  });
}

TEST_CASE("the largest timeout waits as long as it takes") {
  for (auto const timeout :
       {std::numeric_limits<nanoseconds_t>::max(), std::numeric_limits<nanoseconds_t>::max() / 2}) {
    for (bool const asynchronous : {false, true}) {
      CAPTURE(timeout);
      CAPTURE(asynchronous);
      on_two_ranks([&](in_process_endpoint& me) {
        if (me.rank() == 1) { std::this_thread::sleep_for(std::chrono::milliseconds{30}); }
        member<rotate_placement, all_layers<>> self{
            where,        initial, {},
            all_layers{}, me,      {.interval = 1, .timeout = timeout, .asynchronous = asynchronous, .verify = true}};
        self.moved.start().or_throw();
        for (int call = 0; call < 12; ++call) {
          auto const mine = self.moved.outgoing();
          std::vector<std::uint64_t> words(2);
          me.all_gather({&mine, 1}, words, timeout).or_throw();
          self.moved.incoming(words).or_throw();
          self.moved.on_forward_pass_end().or_throw();
        }
        CHECK(self.moved.epoch(0) >= 2);
        CHECK(self.first_error() == "");
      });
    }
  }
}

TEST_CASE("a store for another model is refused at the start, on every rank, with both sizes") {
  struct row {
    index_t layers;
    index_t slots;
    std::size_t staging;
    errc code;
    char const* says;
  };
  for (auto const& wrong : {row{num_layers + 1, 3, host_store::unlimited, errc::invalid_topology, "3 layers"},
                            row{num_layers - 1, 3, host_store::unlimited, errc::invalid_topology, "1 layers"},
                            row{num_layers, 2, host_store::unlimited, errc::invalid_topology, "2 slots"},
                            row{num_layers, 3, 255, errc::out_of_memory, "256 bytes of staging, the limit is 255"}}) {
    CAPTURE(wrong.says);
    on_two_ranks([&](in_process_endpoint& me) {
      bool const mine = me.rank() == 1;
      auto const layers = mine ? wrong.layers : num_layers;
      std::vector<std::byte> memory(static_cast<std::size_t>(layers) * 3 * 16);
      host_store store{topology{{2, 1, mine ? wrong.slots : 3, 0}}, layers, mine ? wrong.staging : 4096};
      for (index_t layer = 0; layer < layers; ++layer) {
        store.add(layer, "w", memory.data() + static_cast<std::size_t>(layer) * 48, 16).or_throw();
      }
      auto moved = keeping(me, store);
      auto const result = moved.start();
      CHECK(result.code() == wrong.code);
      if (mine) {
        CHECK(result.message().find(wrong.says) != std::string::npos);
      } else {
        CHECK(result.message().find("rank 1 cannot start") != std::string::npos);
        CHECK(result.rank() == 1);
      }
      CHECK(moved.on_forward_pass_end().code() == errc::invalid_option);  // not started
    });
  }
}

TEST_CASE("ranks that transport and control plane number differently are refused") {
  in_process_group group{2};
  host_store store{where, num_layers};
  auto const build = [&] {
    rebalancer const moved{
        where, initial,           rebalancing{window_recorder{num_layers, 4, {1, 1}}, keep_placement{}, all_layers{}},
        store, group.endpoint(0), group.endpoint(1)};
  };
  CHECK_THROWS_WITH_AS(build(), doctest::Contains("rank 0 of the transport and rank 1 of the control plane"),
                       std::system_error);
}

TEST_CASE("every option that differs is named with both values") {
  struct row {
    rebalancer_options other;
    char const* says;
  };
  rebalancer_options const usual{.timeout = patience};
  auto const with = [&](auto change) {
    auto options = usual;
    change(options);
    return options;
  };
  for (auto const& [other, says] :
       {row{with([](auto& o) { o.interval = 7; }), "options: interval: 7 against 1000"},
        row{with([](auto& o) { o.share_interval = 7; }), "options: share_interval: 7 against 0"},
        row{with([](auto& o) { o.utilization_threshold = 0.5; }), "options: utilization_threshold"},
        row{with([](auto& o) { o.relay = true; }), "options: relay: 1 against 0"},
        row{with([](auto& o) { o.max_message_bytes = 99; }), "options: max_message_bytes: 99 against 0"},
        row{with([](auto& o) { o.rounds_per_batch = 2; }), "options: rounds_per_batch: 2 against 0"},
        row{with([](auto& o) { o.asynchronous = true; }), "options: asynchronous: 1 against 0"},
        row{with([](auto& o) { o.verify = true; }), "options: verify: 1 against 0"},
        row{with([](auto& o) { o.adopt_first_plan = true; }), "options: adopt_first_plan: 1 against 0"},
        row{with([](auto& o) { o.check_replicas = false; }), "options: check_replicas: 0 against 1"},
        row{with([](auto& o) { o.checked_slots = 3; }), "options: checked_slots: 3 against 0"},
        row{with([](auto& o) { o.gate.min_tokens = 3; }), "options: gate.min_tokens: 3 against 0"},
        row{with([](auto& o) { o.gate.phases = to_mask(phase::decode); }), "options: gate.phases: 2 against 7"}}) {
    CAPTURE(says);
    on_two_ranks([&](in_process_endpoint& me) {
      member<keep_placement, all_layers<>> self{where, initial, {}, all_layers{}, me, me.rank() == 1 ? other : usual};
      auto const result = self.moved.start();
      CHECK(result.code() == errc::disagreement);
      CHECK_MESSAGE(result.message().find(says) != std::string::npos, result.message());
      CHECK(result.rank() == 1);
    });
  }
  // Ranks may differ in how long they wait.
  on_two_ranks([&](in_process_endpoint& me) {
    member<keep_placement, all_layers<>> self{where, initial, {}, all_layers{}, me, {.timeout = patience + me.rank()}};
    CHECK(self.moved.start().ok());
    CHECK(self.moved.start().code() == errc::busy);
  });
}

TEST_CASE("weights that were loaded for another layout, or another placement, are found at the start") {
  on_two_ranks([](in_process_endpoint& me) {
    patterned_weights weights{where, me.rank(), initial, {{me.rank() == 0 ? 48u : 40u, 48}}};
    host_store store{where, num_layers};
    weights.add_to(store);
    auto moved = keeping(me, store);
    CHECK(moved.start().message().find("weights layout") != std::string::npos);
  });
  on_two_ranks([](in_process_endpoint& me) {
    placement mine = initial;
    if (me.rank() == 1) { rotate_placement{}.plan({}, initial, where, mine).or_throw(); }
    member<keep_placement, all_layers<>> self{where, mine, {}, all_layers{}, me, {.timeout = patience}};
    CHECK(self.moved.start().message().find("initial placement") != std::string::npos);
  });
}

TEST_CASE("replicas that were not loaded are found at the start, on demand and in the background") {
  for (bool const at_start : {true, false}) {
    CAPTURE(at_start);
    on_two_ranks([&](in_process_endpoint& me) {
      member<keep_placement, all_layers<>> self{
          where,        initial, {},
          all_layers{}, me,      {.interval = 3, .timeout = patience, .check_replicas = at_start, .checked_slots = 1}};
      // Slots hold 0 1 2 | 3 0 1: the second copy of expert 1 is the last slot of rank 1.
      auto const bytes = self.weights.expert(1, 0, 2);
      if (!at_start) {
        self.moved.start().or_throw();
        CHECK(self.moved.check_replicas().ok());
      }
      if (me.rank() == 1) { bytes[7] ^= std::byte{1}; }
      auto const result = at_start ? self.moved.start() : self.moved.check_replicas();
      CHECK(result.code() == errc::corrupted);
      CHECK(result.message() ==
            "replica check: layer 1, expert 1: slot 1 of rank 0 and slot 2 of rank 1 hold different bytes");
      if (at_start) { return; }
      CHECK(self.moved.state() == rebalancer_state::recording);
      // A slot a call: found by the first dump after both copies were read.
      status later;
      int call = 0;
      for (; call < 30 && later.ok(); ++call) { later = self.moved.on_forward_pass_end(); }
      CHECK(later.code() == errc::corrupted);
      CHECK(later.message() == result.message());
    });
  }
}

TEST_CASE("a warm-up plans nothing, and a layer without tokens keeps its row") {
  on_two_ranks([](in_process_endpoint& me) {
    member<balanced_placement, all_layers<>> self{where,        initial, {},
                                                  all_layers{}, me,      {.interval = 2, .timeout = patience}};
    self.moved.start().or_throw();
    for (int call = 0; call < 6; ++call) { self.moved.on_forward_pass_end({.counted = false}).or_throw(); }
    CHECK(self.log.steps_of("dump").size() == 2);
    CHECK(self.log.steps_of("skip").size() == 2);
    CHECK(self.log.steps_of("plan").empty());
    for (int call = 0; call < 6; ++call) {
      self.moved.record_top_k(1, std::vector<index_t>{2, 2, 2, 2, 2, 3, 3, 3, 3});
      self.moved.on_forward_pass_end().or_throw();
    }
    CHECK(self.moved.epoch(1) >= 1);
    CHECK(self.moved.epoch(0) == 0);
    CHECK(std::ranges::equal(self.moved.current().logical_of_slot(0), initial.logical_of_slot(0)));
  });
}

TEST_CASE("an idle rank breaks no recorder") {
  auto const with = [](auto make) {
    on_two_ranks([&](in_process_endpoint& me) {
      served_by self{me, make(), {.interval = 4, .timeout = patience}};
      for (int call = 0; call < 14; ++call) {
        bool const idle = me.rank() == 1 && call % 4 != 1;
        for (index_t layer = 0; layer < num_layers && !idle; ++layer) {
          self.moved.record_top_k(layer, std::vector<index_t>{0, 0, 0, 3, 3, 1});
        }
        self.moved.on_forward_pass_end({.counted = !idle}).or_throw();
        REQUIRE(self.weights.first_error(self.moved.current()) == "");
      }
    });
  };
  with([] { return window_recorder{num_layers, 4, {4, 4}}; });
  with([] { return decay_recorder{num_layers, 4}; });
  with([] { return pass_recorder{num_layers, 4}; });
}

TEST_CASE("one pass of garbage counts fails no cycle") {
  auto const with = [](auto make) {
    on_two_ranks([&](in_process_endpoint& me) {
      served_by self{me, make(), {.interval = 2, .share_interval = 1, .timeout = patience}};
      for (int call = 0; call < 12; ++call) {
        auto const tokens = call == 1 ? load_t{1} << 62 : load_t{10};
        for (index_t layer = 0; layer < num_layers; ++layer) {
          self.moved.record_logical(layer, std::vector<load_t>{tokens, tokens, 30, 40}).or_throw();
        }
        self.moved.on_forward_pass_end().or_throw();
      }
    });
  };
  with([] { return window_recorder{num_layers, 4, {5, 5}}; });
  with([] { return decay_recorder{num_layers, 4}; });
  with([] { return decay_recorder{num_layers, 4, {.keep = 65536}}; });
  with([] { return pass_recorder{num_layers, 4}; });
}

TEST_CASE("counts that come late are credited under the map of their pass, through every input") {
  on_two_ranks([](in_process_endpoint& me) {
    member<rotate_placement, all_layers<>> self{where,        initial, {},
                                                all_layers{}, me,      {.interval = 1, .timeout = patience}};
    self.moved.start().or_throw();
    // Slots hold 0 1 2 | 3 0 1 up to pass 2, then 1 2 3 | 0 1 0.
    self.moved.on_forward_pass_end().or_throw();
    self.moved.on_forward_pass_end().or_throw();
    REQUIRE(self.moved.epoch(0) == 1);
    std::vector<load_t> const by_slot{me.rank() == 0 ? 7 : 0, 0, 0, 0, 0, 0};  // tokens of rank 0 in slot 0
    std::vector<load_t> const here{0, 0, me.rank() == 1 ? 5 : 0};              // and of rank 1 in its last slot
    std::vector<load_t> const sums{0, 0, me.rank() == 1 ? 5 : 0};
    self.moved.record_physical(0, by_slot, 2).or_throw();        // expert 0
    self.moved.record_physical(0, by_slot, 3).or_throw();        // expert 1
    self.moved.record_physical(0, by_slot).or_throw();           // expert 1
    self.moved.record_local(0, here, 2).or_throw();              // expert 1
    self.moved.record_local(0, here).or_throw();                 // expert 0
    self.moved.record_local_prefix_sums(0, sums, 1).or_throw();  // expert 1
    self.moved.record_local_prefix_sums(0, sums).or_throw();     // expert 0
    CHECK(self.moved.record_physical(0, by_slot, 0).code() == errc::invalid_load);
    CHECK(self.moved.record_physical(0, by_slot, 4).code() == errc::invalid_load);
    CHECK(self.moved.record_physical(num_layers, by_slot).code() == errc::invalid_load);
    auto& recorder = self.moved.recorder();
    recorder.end_pass(true);
    std::vector<load_t> history(static_cast<std::size_t>(recorder.num_buckets()) * num_layers * 4);
    recorder.history(history).or_throw();
    std::vector<load_t> const layer(history.end() - 8, history.end() - 4);
    auto const expected = me.rank() == 0 ? std::vector<load_t>{7, 14, 0, 0} : std::vector<load_t>{10, 10, 0, 0};
    CHECK(layer == expected);
  });
}

TEST_CASE("what the recorder refuses is told at the end of the pass") {
  in_process_group group{1};
  auto& me = group.endpoint(0);
  topology const one{{1, 1, 6, 0}};
  member<keep_placement, all_layers<>> self{one, initial, {}, all_layers{}, me, {.timeout = patience}};
  self.moved.start().or_throw();
  self.moved.record_top_k(num_layers, std::vector<index_t>{1});
  auto const result = self.moved.on_forward_pass_end();
  CHECK_FALSE(result.ok());
  CHECK(result.message().find("layer 2") != std::string::npos);
  CHECK_FALSE(self.moved.record_logical(0, std::vector<load_t>{1, 2, 3}).ok());
}

TEST_CASE("calls from inside the observer are refused, and disable and enable wait for the end of the call") {
  struct calling_observer final : observer {
    std::function<void(event const&)> call = [](event const&) {};
    void on_event(event const& what) override { call(what); }
  };
  on_two_ranks([](in_process_endpoint& me) {
    patterned_weights weights{where, me.rank(), initial, {{48, 48}}};
    host_store store{where, num_layers};
    weights.add_to(store);
    calling_observer watcher;
    rebalancer moved{where, initial,
                     rebalancing{window_recorder{num_layers, 4, {1, 1}},
                                 rotate_placement{},
                                 layers_per_chunk{1},
                                 {.interval = 1, .timeout = patience},
                                 &watcher},
                     store, me};
    int refused = 0;
    watcher.call = [&](event const& what) {
      prediction seen;
      std::vector<std::uint64_t> const words(2);
      for (auto const& result : {moved.resume(), moved.start(), moved.apply(initial), moved.predict(seen),
                                 moved.check_replicas(), moved.on_forward_pass_end(), moved.incoming(words),
                                 moved.settle(decision::drop), moved.set_topology(where, initial)}) {
        refused += result.code() == errc::busy ? 1 : 0;
      }
      if (what.kind == event_kind::plan) {
        moved.disable();
        CHECK(moved.enabled());
      }
    };
    moved.start().or_throw();
    moved.on_forward_pass_end().or_throw();
    moved.on_forward_pass_end().or_throw();  // plans, and is told to stop
    CHECK(refused == 2 * 9);                 // dump and plan
    CHECK_FALSE(moved.enabled());
    CHECK(moved.state() == rebalancer_state::recording);
    moved.on_forward_pass_end().or_throw();
    CHECK(moved.current() == initial);
    watcher.call = [&](event const& what) {
      if (what.kind == event_kind::commit) { moved.enable(); }
    };
    moved.apply(trivial_placement({num_layers, 4, 6})).or_throw();
    placement target;
    rotate_placement{}.plan({}, initial, where, target).or_throw();
    moved.apply(target).or_throw();
    CHECK(moved.enabled());
    CHECK(weights.first_error(moved.current()) == "");
  });
}
