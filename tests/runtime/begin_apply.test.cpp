// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Placements that the engine plans and the rebalancer moves: layer by layer, while passes run, with layers that are
// late left out.
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

constexpr index_t num_ranks = 3, num_layers = 4;
topology const where{{num_ranks, 1, 3, 0}};
placement const initial = trivial_placement({num_layers, 9, 9});
std::vector<index_t> const every_one{0, 1, 2, 3};

placement rotated(index_t by = 1) {
  placement target;
  rotate_placement{by}.plan({}, initial, where, target).or_throw();
  return target;
}

/// Delivers nothing while it is held up.
class held_up_wire {
public:
  explicit held_up_wire(in_process_endpoint& inner) : inner_{&inner} {}

  bool held_up = false;

  [[nodiscard]] index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return inner_->num_ranks(); }
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    return inner_->start(sends, receives);
  }
  [[nodiscard]] transfer_state poll() { return held_up ? transfer_state::pending : inner_->poll(); }
  [[nodiscard]] status wait(nanoseconds_t timeout) { return inner_->wait(timeout); }
  [[nodiscard]] transfer_turns& turns() noexcept { return inner_->turns(); }

private:
  in_process_endpoint* inner_;
};

using engine_rank = member<rotate_placement, layers_per_chunk<>, host_store, held_up_wire>;

template <class Body>
void on_three_ranks(rebalancer_options options, Body body) {
  options.timeout = patience;
  in_process_group group{num_ranks};
  group.run([&](in_process_endpoint& me) {
    held_up_wire wire{me};
    engine_rank self{where, initial, {}, layers_per_chunk{1}, me, wire, options};
    self.moved.start().or_throw();
    body(self, wire, me);
    CHECK(self.first_error() == "");
  });
}

/// A pass, and the words of the engine's exchange behind it.
status pass(engine_rank& self, in_process_endpoint& me) {
  if (auto result = self.moved.on_forward_pass_end(); !result.ok()) { return result; }
  auto const mine = self.moved.outgoing();
  std::vector<std::uint64_t> words(num_ranks);
  me.all_gather({&mine, 1}, words, patience).or_throw();
  return self.moved.incoming(words);
}

bool has_row(engine_rank const& self, index_t layer, placement const& of) {
  return std::ranges::equal(self.moved.current().logical_of_slot(layer), of.logical_of_slot(layer));
}

}  // namespace

TEST_CASE("in synchronous mode each pass moves a chunk of what the engine has planned, and the policy plans nothing") {
  for (bool const enabled : {false, true}) {
    on_three_ranks({.interval = 100}, [&](engine_rank& self, held_up_wire&, in_process_endpoint& me) {
      if (!enabled) { self.moved.disable(); }
      auto const target = rotated();
      std::vector<index_t> const layers{0, 2, 3};
      self.moved.begin_apply(target, layers).or_throw();
      CHECK(self.moved.state() == rebalancer_state::moving);
      CHECK(has_row(self, 0, initial));
      CHECK(self.moved.begin_apply(target, layers).code() == errc::busy);
      CHECK(self.moved.apply(target).code() == errc::busy);
      std::uint64_t moved = 0;
      for (auto const layer : layers) {
        CHECK(has_row(self, layer, initial));
        pass(self, me).or_throw();
        CHECK(has_row(self, layer, target));
        CHECK(self.log.steps_of("commit").size() == ++moved);
        CHECK(self.first_error() == "");
      }
      CHECK(self.moved.state() == rebalancer_state::recording);
      CHECK(has_row(self, 1, initial));
      CHECK(self.log.steps_of("dump").empty());
    });
  }
}

TEST_CASE("layer by layer while passes run, without a plan of its own") {
  on_three_ranks({.interval = 1, .asynchronous = true, .verify = true},
                 [](engine_rank& self, held_up_wire&, in_process_endpoint& me) {
                   self.moved.disable();
                   auto const target = rotated();
                   for (auto const layer : every_one) {
                     self.moved.begin_apply(target, std::span{&layer, 1}).or_throw();
                     CHECK(has_row(self, layer, initial));
                     for (int passes = 0; self.moved.epoch(layer) == 0; ++passes) {
                       REQUIRE(passes < 100'000);
                       pass(self, me).or_throw();
                       REQUIRE(self.first_error() == "");
                     }
                     CHECK(self.moved.state() == rebalancer_state::recording);
                     CHECK(has_row(self, layer, target));
                   }
                   CHECK(self.log.steps_of("dump").empty());
                   CHECK(self.log.layers_of("commit") == std::vector<std::vector<index_t>>{{0}, {1}, {2}, {3}});
                 });
}

TEST_CASE("a layer that is late on one rank is dropped on all, the next one goes, and the late one can come again") {
  on_three_ranks({.asynchronous = true}, [](engine_rank& self, held_up_wire& wire, in_process_endpoint& me) {
    self.moved.disable();
    auto const target = rotated();
    auto const move = [&](index_t layer, int most_passes) {
      self.moved.begin_apply(target, std::span{&layer, 1}).or_throw();
      for (int passes = 0; passes < most_passes && self.moved.epoch(layer) == 0; ++passes) {
        pass(self, me).or_throw();
      }
      return self.moved.epoch(layer) == 1;
    };
    wire.held_up = me.rank() == 1;
    CHECK_FALSE(move(2, 5));
    CHECK(self.moved.state() == rebalancer_state::moving);
    self.moved.disable();  // what the scheduler's message says to all ranks
    CHECK(self.moved.state() == rebalancer_state::recording);
    CHECK(has_row(self, 2, initial));
    CHECK(self.first_error() == "");

    wire.held_up = false;
    CHECK(move(0, 100'000));
    CHECK(move(2, 100'000));
    CHECK(has_row(self, 0, target));
    CHECK(has_row(self, 2, target));
    CHECK(has_row(self, 1, initial));
  });
}

TEST_CASE("with progress in the middle of a pass a layer is in force after that pass") {
  on_three_ranks({.asynchronous = true}, [](engine_rank& self, held_up_wire& wire, in_process_endpoint& me) {
    auto const target = rotated();
    for (auto const layer : every_one) {
      self.moved.progress().or_throw();  // nothing travels
      self.moved.begin_apply(target, std::span{&layer, 1}).or_throw();
      me.all_reduce({}, patience).or_throw();  // all have set off: the engine's own exchange
      self.moved.progress().or_throw();
      me.all_reduce({}, patience).or_throw();  // all have taken what there was
      pass(self, me).or_throw();
      CHECK(has_row(self, layer, target));
      CHECK(self.first_error() == "");
    }
    // A rank whose wire is held up is told of nothing by it, and waits for nobody.
    wire.held_up = me.rank() == 1;
    self.moved.begin_apply(initial, every_one).or_throw();
    self.moved.progress().or_throw();
    pass(self, me).or_throw();
    CHECK(self.moved.state() == rebalancer_state::moving);
    self.moved.disable();
  });
}

TEST_CASE("what does not fit is refused by the name of the call, and where nothing changes nothing runs") {
  on_three_ranks({}, [](engine_rank& self, held_up_wire&, in_process_endpoint&) {
    auto const other_shape = self.moved.begin_apply(trivial_placement({num_layers, 3, 9}), every_one);
    CHECK(other_shape.code() == errc::invalid_placement);
    CHECK(other_shape.message().starts_with("begin_apply: "));
    auto const no_layer = self.moved.begin_apply(rotated(), std::vector<index_t>{4});
    CHECK(no_layer.code() == errc::invalid_option);
    CHECK(no_layer.message().starts_with("begin_apply: layer 4"));
    for (auto const* layers : {&every_one, static_cast<std::vector<index_t> const*>(nullptr)}) {
      self.moved
          .begin_apply(layers != nullptr ? initial : rotated(), layers != nullptr ? *layers : std::vector<index_t>{})
          .or_throw();
      CHECK(self.moved.state() == rebalancer_state::recording);
    }
  });
}

TEST_CASE("ranks that are given different targets are told so before a byte moves") {
  on_three_ranks({.asynchronous = true}, [](engine_rank& self, held_up_wire&, in_process_endpoint& me) {
    auto const result = self.moved.begin_apply(rotated(me.rank() == 2 ? 2 : 1), every_one);
    CHECK(result.code() == errc::disagreement);
    CHECK(self.moved.state() == rebalancer_state::failed);
    self.moved.resume().or_throw();
    self.moved.begin_apply(rotated(), every_one).or_throw();
    for (int passes = 0; self.moved.state() == rebalancer_state::moving; ++passes) {
      REQUIRE(passes < 100'000);
      pass(self, me).or_throw();
    }
    for (auto const layer : every_one) { CHECK(has_row(self, layer, rotated())); }
  });
}
