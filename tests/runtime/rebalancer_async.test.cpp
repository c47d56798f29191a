// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Asynchronous moves: bytes travel while passes run, commits follow the words that the engine exchanges.
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{3, 1, 3, 0}};
constexpr index_t num_layers = 4;
placement const initial = trivial_placement({num_layers, 9, 9});

rebalancer_options asynchronous() { return {.interval = 2, .timeout = patience, .asynchronous = true}; }

// The engine's own exchange, once per step.
std::vector<std::uint64_t> exchange(in_process_endpoint& me, std::uint64_t word) {
  std::vector<std::uint64_t> words(3);
  me.all_gather({&word, 1}, words, patience).or_throw();
  return words;
}

template <class Member>
status step(Member& self, in_process_endpoint& me) {
  if (auto result = self.moved.incoming(exchange(me, self.moved.outgoing())); !result.ok()) { return result; }
  for (index_t layer = 0; layer < num_layers; ++layer) {
    self.moved.record_top_k(layer, std::vector<index_t>{0, 1, 2});
  }
  return self.moved.on_forward_pass_end();
}

template <class Body>
void on_three_ranks(Body body) {
  in_process_group group{3};
  group.run(body);
}

// Gives no staging where it has a reason, which blames another rank.
struct blaming_store : host_store {
  using host_store::host_store;
  status why;
  [[nodiscard]] status reserve_staging(std::size_t bytes) {
    return why.ok() ? host_store::reserve_staging(bytes) : why;
  }
};

}  // namespace

TEST_CASE("layers are committed on one step by all ranks, and weights fit the tables after every call") {
  on_three_ranks([](in_process_endpoint& me) {
    member<rotate_placement, layers_per_chunk<>> self{where, initial, {}, layers_per_chunk{1}, me, asynchronous()};
    self.moved.start().or_throw();
    for (int call = 0; call < 60; ++call) {
      step(self, me).or_throw();
      REQUIRE(self.first_error() == "");
      std::vector<std::uint64_t> epochs(3);
      auto const mine = self.moved.epoch(0) + 100 * self.moved.epoch(3);
      me.all_gather({&mine, 1}, epochs, patience).or_throw();
      REQUIRE(epochs[0] == mine);
      REQUIRE(epochs[1] == mine);
      REQUIRE(epochs[2] == mine);
    }
    CHECK(self.moved.epoch(0) >= 2);
    CHECK(self.moved.epoch(3) >= 2);
    CHECK(self.log.steps_of("commit").size() >= 8);
  });
}

TEST_CASE("one expert of staging, several rounds a batch, and verification work asynchronously too") {
  on_three_ranks([](in_process_endpoint& me) {
    auto options = asynchronous();
    options.rounds_per_batch = 1;
    options.verify = true;
    patterned_weights weights{where, me.rank(), initial, {{48, 48}, {5, 8}}};
    host_store store{where, num_layers, 512};
    weights.add_to(store);
    event_log log;
    rebalancer moved{
        where, initial,
        rebalancing{window_recorder{num_layers, 9, {2, 2}}, rotate_placement{}, all_layers{}, options, &log}, store,
        me};
    moved.start().or_throw();
    for (int call = 0; call < 120; ++call) {
      moved.incoming(exchange(me, moved.outgoing())).or_throw();
      moved.on_forward_pass_end().or_throw();
      REQUIRE(weights.first_error(moved.current()) == "");
    }
    CHECK(log.steps_of("commit").size() >= 2);
    CHECK(moved.epoch(0) >= 2);
  });
}

TEST_CASE("a rank that gives its moves up stops the cycle on every rank, with nothing lost") {
  // Rank 2's staging fails: its word says so, and nobody commits.
  struct full_store : host_store {
    using host_store::host_store;
    bool full = false;
    [[nodiscard]] status reserve_staging(std::size_t bytes) {
      return full ? status{errc::out_of_memory, "full_store: no staging"} : host_store::reserve_staging(bytes);
    }
  };
  on_three_ranks([](in_process_endpoint& me) {
    member<rotate_placement, layers_per_chunk<>, full_store> self{where, initial,       {}, layers_per_chunk{1},
                                                                  me,    asynchronous()};
    self.store.full = me.rank() == 2;
    self.moved.start().or_throw();
    status result;
    int call = 0;
    for (; call < 20 && result.ok(); ++call) { result = step(self, me); }
    CHECK(call < 20);
    CHECK(result.message() == (me.rank() == 2 ? "full_store: no staging" : "rank 2 gave its moves up: out of memory"));
    CHECK(self.moved.state() == rebalancer_state::failed);
    CHECK(self.moved.current() == initial);
    CHECK(self.first_error() == "");
    // All ranks resume, and with room for staging the next cycle goes through.
    self.store.full = false;
    self.moved.resume().or_throw();
    for (call = 0; call < 30; ++call) { step(self, me).or_throw(); }
    CHECK(self.moved.epoch(0) >= 1);
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("a rank that gives its moves up because of another is not the one to be named") {
  // Rank 2 cannot go on because of rank 1, and rank 0, where it fails too, only because of rank 2.
  for (bool const rank_0_fails_too : {false, true}) {
    CAPTURE(rank_0_fails_too);
    on_three_ranks([&](in_process_endpoint& me) {
      member<rotate_placement, layers_per_chunk<>, blaming_store> self{where, initial,       {}, layers_per_chunk{1},
                                                                       me,    asynchronous()};
      if (me.rank() == 2) { self.store.why = {errc::peer_lost, "rank 1 is gone", 1}; }
      if (me.rank() == 0 && rank_0_fails_too) { self.store.why = {errc::deadline_exceeded, "rank 2 is late", 2}; }
      self.moved.start().or_throw();
      status result;
      for (int call = 0; call < 20 && result.ok(); ++call) { result = step(self, me); }
      CHECK(result.rank() == 1);
      CHECK(result.code() == errc::peer_lost);
      if (me.rank() == 1 || (me.rank() == 0 && !rank_0_fails_too)) {
        CHECK(result.message() == "rank 2 gave its moves up because of rank 1: peer lost");
      } else if (me.rank() == 0) {
        CHECK(result.message() == "rank 2 is late; rank 2 gave its moves up because of rank 1");
      }
      CHECK(self.moved.current() == initial);
      self.store.why = {};
      self.moved.resume().or_throw();
      for (int call = 0; call < 30; ++call) { step(self, me).or_throw(); }
      CHECK(self.moved.epoch(0) >= 1);
    });
  }
}

TEST_CASE("nor is a rank that votes no because of another, in synchronous mode") {
  on_three_ranks([](in_process_endpoint& me) {
    member<rotate_placement, ballast::all_layers<>, blaming_store> self{
        where, initial, {}, all_layers{}, me, {.interval = 2, .timeout = patience}};
    if (me.rank() == 2) { self.store.why = {errc::peer_lost, "rank 1 is gone", 1}; }
    self.moved.start().or_throw();
    status result;
    for (int call = 0; call < 3 && result.ok(); ++call) { result = step(self, me); }
    CHECK(result.rank() == 1);
    CHECK(result.code() == errc::peer_lost);
    CHECK(result.message().ends_with("rank 1 is gone"));
  });
}

TEST_CASE("disable grounds what is in flight") {
  on_three_ranks([](in_process_endpoint& me) {
    member<rotate_placement, layers_per_chunk<>> self{where, initial, {}, layers_per_chunk{1}, me, asynchronous()};
    self.moved.start().or_throw();
    while (self.moved.state() != rebalancer_state::moving) { step(self, me).or_throw(); }
    self.moved.disable();
    for (int call = 0; call < 5; ++call) { step(self, me).or_throw(); }
    CHECK(self.moved.current() == initial);
    CHECK(self.first_error() == "");
    self.moved.enable();
    for (int call = 0; call < 30; ++call) { step(self, me).or_throw(); }
    CHECK(self.moved.epoch(0) >= 1);
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("resume in mid-cycle grounds what is in flight") {
  on_three_ranks([](in_process_endpoint& me) {
    member<rotate_placement, layers_per_chunk<>> self{where, initial, {}, layers_per_chunk{1}, me, asynchronous()};
    self.moved.start().or_throw();
    // Until a batch is open somewhere: when a rank opens one depends on when it hears of the others.
    std::array<std::int64_t, 1> num_open{0};
    for (int call = 0; call < 30 && num_open[0] == 0; ++call) {
      step(self, me).or_throw();
      num_open[0] = me.poll() != transfer_state::idle ? 1 : 0;
      me.all_reduce(num_open, patience).or_throw();
    }
    REQUIRE(num_open[0] > 0);
    auto const before = self.moved.current();
    self.moved.resume().or_throw();
    CHECK(me.poll() == transfer_state::idle);
    CHECK(self.moved.current() == before);
    for (int call = 0; call < 30; ++call) { step(self, me).or_throw(); }
    CHECK(self.moved.epoch(0) >= 1);
    CHECK(self.first_error() == "");
  });
}

namespace {

topology const roomy{{3, 1, 4, 0}};
placement const doubled = trivial_placement({num_layers, 9, 12});

/// Another expert is hot in every other call.
template <class Member>
void record_some(Member& self, int call) {
  for (index_t layer = 0; layer < num_layers; ++layer) {
    self.moved.record_top_k(layer,
                            call % 2 == 0 ? std::vector<index_t>{0, 0, 0, 1, 2} : std::vector<index_t>{8, 8, 8, 7});
  }
}

}  // namespace

TEST_CASE("shares that fall due while layers move are refreshed when all ranks are done, and hold nothing up") {
  // The exchange may overlap the pass, and the words may come before the call or after it; a plan may take several
  // calls.
  auto const goes_on = [](auto const& policy, bool words_first) {
    CAPTURE(words_first);
    on_three_ranks([&](in_process_endpoint& me) {
      auto options = asynchronous();
      options.interval = 6;
      options.share_interval = 1;
      options.work_per_plan_call = 1000;
      member<std::decay_t<decltype(policy)>, layers_per_chunk<>> self{roomy, doubled, policy, layers_per_chunk{1},
                                                                      me,    options};
      self.moved.start().or_throw();
      for (int call = 0; call < 60; ++call) {
        auto const word = self.moved.outgoing();
        record_some(self, call);
        if (words_first) { self.moved.incoming(exchange(me, word)).or_throw(); }
        self.moved.on_forward_pass_end().or_throw();
        if (!words_first) { self.moved.incoming(exchange(me, word)).or_throw(); }
        REQUIRE(self.first_error() == "");
      }
      CHECK(self.log.steps_of("commit").size() >= num_layers);
      CHECK(self.log.steps_of("shares").size() >= 4);
    });
  };
  for (bool const words_first : {false, true}) {
    goes_on(balanced_placement{}, words_first);
    goes_on(incremental_placement{}, words_first);
  }
}

TEST_CASE("a rank that missed the words which committed the last layers catches up though shares fall due") {
  on_three_ranks([](in_process_endpoint& me) {
    auto options = asynchronous();
    options.interval = 1000;
    options.share_interval = 1;
    member<keep_placement, layers_per_chunk<>> self{roomy, doubled, {}, layers_per_chunk{num_layers}, me, options};
    self.moved.start().or_throw();
    auto target = doubled;
    auto const map = target.edit(0).logical_of_slot;
    std::swap(map[0], map[static_cast<std::size_t>(roomy.first_slot(1))]);
    target.index_replicas(0);
    index_t const layers[] = {0};
    self.moved.begin_apply(target, layers).or_throw();
    // All have the bytes, and one does not hear that all have.
    for (bool missed = false; !missed;) {
      record_some(self, 0);
      self.moved.on_forward_pass_end().or_throw();
      auto const words = exchange(me, self.moved.outgoing());
      auto const is_ready = [](std::uint64_t word) {
        return detail::step_word{word}.stands() == detail::standing::ready;
      };
      missed = std::ranges::all_of(words, is_ready);
      if (!missed || me.rank() != 1) { self.moved.incoming(words).or_throw(); }
    }
    CHECK(self.moved.epoch(0) == (me.rank() == 1 ? 0 : 1));
    for (int call = 0; call < 6; ++call) {
      record_some(self, call);
      self.moved.on_forward_pass_end().or_throw();
      self.moved.incoming(exchange(me, self.moved.outgoing())).or_throw();
    }
    CHECK(self.moved.current().logical_of_slot(0)[0] == target.logical_of_slot(0)[0]);
    CHECK_FALSE(self.log.steps_of("shares").empty());
    CHECK(self.first_error() == "");
  });
}
