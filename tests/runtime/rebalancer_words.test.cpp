// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The words that ranks exchange once a step: what they carry, and what a rank does that misses some.
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{3, 1, 3, 0}};
constexpr index_t num_layers = 3;
placement const initial = trivial_placement({num_layers, 9, 9});
using rank_type = member<rotate_placement, layers_per_chunk<>>;

// Three ranks that exchange words over a channel of their own.
class engine {
public:
  engine(in_process_endpoint& me, in_process_endpoint& channel, rebalancer_options options)
      : self{where, initial, {}, layers_per_chunk{1}, me, options}, channel_{channel} {
    self.moved.start().or_throw();
  }
  std::vector<std::uint64_t> exchange(std::uint64_t word) {
    std::vector<std::uint64_t> words(3);
    channel_.all_gather({&word, 1}, words, patience).or_throw();
    return words;
  }
  std::vector<std::uint64_t> words() { return exchange(self.moved.outgoing()); }
  void expect_same_epochs() {
    for (index_t layer = 0; layer < num_layers; ++layer) {
      auto const mine = self.moved.epoch(layer);
      auto const all = exchange(mine);
      CHECK(std::ranges::count(all, mine) == 3);
    }
    CHECK(self.first_error() == "");
  }
  // One step that goes as it should.
  status step() {
    auto result = self.moved.incoming(words());
    return result.ok() ? self.moved.on_forward_pass_end() : result;
  }
  /// Steps until the words of the next exchange say that the group is here on every rank. @return these words
  std::vector<std::uint64_t> until_ready() {
    for (;;) {
      auto seen = words();
      if (std::ranges::all_of(seen, [](auto word) { return (word & 3) == 2; })) { return seen; }
      self.moved.incoming(seen).or_throw();
      self.moved.on_forward_pass_end().or_throw();
    }
  }

  rank_type self;

private:
  in_process_endpoint& channel_;
};

template <class Body>
void on_three_ranks(rebalancer_options const& options, Body body) {
  in_process_group group{3};
  in_process_group channel{3};
  group.run([&](in_process_endpoint& me) {
    engine all{me, channel.endpoint(me.rank()), options};
    body(all, me.rank());
    static_cast<void>(all.exchange(0));
  });
}

rebalancer_options asynchronous(nanoseconds_t timeout = patience) {
  return {.interval = 3, .timeout = timeout, .asynchronous = true};
}
void expect_it_moves(engine& all) {
  auto const before = all.self.moved.epoch(0);
  for (int step = 0; step < 80; ++step) { all.step().or_throw(); }
  CHECK(all.self.moved.epoch(0) > before + 2);
  all.expect_same_epochs();
}

}  // namespace

TEST_CASE("words that are not of this exchange are refused, and change nothing") {
  on_three_ranks(asynchronous(), [](engine& all, index_t rank) {
    auto& moved = all.self.moved;
    std::vector<std::uint64_t> none;
    CHECK(moved.incoming(none).code() == errc::invalid_option);
    CHECK(moved.incoming(std::vector<std::uint64_t>(3)).code() == errc::invalid_option);  // nothing was told
    auto ready = all.until_ready();
    auto const epoch = moved.epoch(0);
    CHECK(moved.incoming(none).code() == errc::invalid_option);
    auto wrong = ready;
    wrong[static_cast<std::size_t>(rank)] += 4;
    auto const refused = moved.incoming(wrong);
    CHECK(refused.code() == errc::invalid_option);
    CHECK(refused.rank() == rank);
    CHECK(moved.epoch(0) == epoch);
    CHECK(moved.state() == rebalancer_state::moving);
    moved.incoming(ready).or_throw();
    CHECK(moved.epoch(0) == epoch + 1);
    CHECK(moved.incoming(ready).code() == errc::invalid_option);  // the same words again
    CHECK(moved.epoch(0) == epoch + 1);
    all.expect_same_epochs();
    expect_it_moves(all);
  });
}

TEST_CASE("a rank that misses the words commits by the next ones") {
  on_three_ranks(asynchronous(), [](engine& all, index_t rank) {
    auto& moved = all.self.moved;
    for (int round = 0; round < 4; ++round) {
      auto const ready = all.until_ready();
      if (rank != 2) { moved.incoming(ready).or_throw(); }
      moved.on_forward_pass_end().or_throw();
      moved.incoming(all.words()).or_throw();
      all.expect_same_epochs();
    }
    expect_it_moves(all);
  });
}

TEST_CASE("a rank that misses the last words of a cycle commits too") {
  on_three_ranks(asynchronous(), [](engine& all, index_t rank) {
    auto& moved = all.self.moved;
    for (int group = 0; group < 2; ++group) {
      moved.incoming(all.until_ready()).or_throw();
      moved.on_forward_pass_end().or_throw();
    }
    auto const ready = all.until_ready();
    if (rank != 2) { moved.incoming(ready).or_throw(); }
    CHECK(moved.state() == (rank == 2 ? rebalancer_state::moving : rebalancer_state::recording));
    moved.incoming(all.words()).or_throw();
    CHECK(moved.state() == rebalancer_state::recording);
    CHECK(moved.epoch(num_layers - 1) == 1);
    all.expect_same_epochs();
    expect_it_moves(all);
  });
}

TEST_CASE("a rank that catches up hears by the same words that a third has failed") {
  on_three_ranks(asynchronous(), [](engine& all, index_t rank) {
    auto& moved = all.self.moved;
    auto const ready = all.until_ready();
    if (rank != 2) { moved.incoming(ready).or_throw(); }
    if (rank == 1) {
      moved.record_top_k(num_layers, std::vector<index_t>{0});
      CHECK(moved.on_forward_pass_end().code() == errc::invalid_load);
    }
    auto const result = moved.incoming(all.words());
    CHECK(moved.epoch(0) == 1);
    CHECK(moved.state() == rebalancer_state::failed);
    CHECK_FALSE(result.ok());
    moved.resume().or_throw();
    expect_it_moves(all);
  });
}

TEST_CASE("disable between telling and hearing waits for the words") {
  on_three_ranks(asynchronous(), [](engine& all, index_t) {
    auto& moved = all.self.moved;
    auto const ready = all.until_ready();
    moved.disable();
    CHECK(moved.epoch(0) == 0);
    moved.incoming(ready).or_throw();
    CHECK(moved.epoch(0) == 1);
    CHECK(moved.state() == rebalancer_state::recording);
    all.expect_same_epochs();
    moved.enable();
    expect_it_moves(all);
  });
}

TEST_CASE("disable when one rank has missed the words: it hears from the next what the others did") {
  on_three_ranks(asynchronous(), [](engine& all, index_t rank) {
    auto& moved = all.self.moved;
    auto const ready = all.until_ready();
    if (rank != 2) { moved.incoming(ready).or_throw(); }
    moved.disable();
    moved.on_forward_pass_end().or_throw();
    moved.incoming(all.words()).or_throw();
    CHECK(moved.epoch(0) == 1);
    CHECK(moved.state() == rebalancer_state::recording);
    all.expect_same_epochs();
    moved.enable();
    expect_it_moves(all);
  });
}

TEST_CASE("resume when one rank has missed the words: it commits what the others have") {
  on_three_ranks(asynchronous(), [](engine& all, index_t rank) {
    auto& moved = all.self.moved;
    auto const ready = all.until_ready();
    if (rank != 2) { moved.incoming(ready).or_throw(); }
    moved.resume().or_throw();
    CHECK(moved.epoch(0) == 1);
    all.expect_same_epochs();
    // And when nobody has heard them, nobody commits.
    static_cast<void>(all.until_ready());
    auto const epoch = moved.epoch(0);
    moved.resume().or_throw();
    CHECK(moved.epoch(0) == epoch);
    all.expect_same_epochs();
    expect_it_moves(all);
  });
}

TEST_CASE("a group that nobody brings in ends by its deadline") {
  auto const timeout = 100 * milliseconds;
  // Without a word from any rank nothing can have been committed; with a word that it is here, it may have been.
  for (bool const tells : {false, true}) {
    CAPTURE(tells);
    on_three_ranks(asynchronous(timeout), [&](engine& all, index_t) {
      auto& moved = all.self.moved;
      status result;
      for (int call = 0; call < 100 && result.ok(); ++call) {
        result = moved.on_forward_pass_end();
        if (tells) { static_cast<void>(moved.outgoing()); }
        std::this_thread::sleep_for(std::chrono::milliseconds{5});
      }
      CHECK(result.code() == errc::deadline_exceeded);
      CHECK(moved.current() == initial);
      CHECK(moved.state() == (tells ? rebalancer_state::cohort_lost : rebalancer_state::failed));
      static_cast<void>(all.exchange(0));
      if (tells) {
        CHECK(moved.undecided_layers().size() == 1);
        CHECK_FALSE(moved.resume().ok());
        CHECK(moved.settle(decision::undecided).code() == errc::invalid_option);
        // The words of the ranks say that none has committed.
        CHECK_FALSE(moved.incoming(all.words()).ok());
        CHECK(moved.state() == rebalancer_state::failed);
        CHECK(moved.settle(decision::drop).code() == errc::invalid_option);
      }
      static_cast<void>(all.exchange(0));
      moved.resume().or_throw();
      CHECK(moved.state() == rebalancer_state::recording);
      all.expect_same_epochs();
    });
  }
}

TEST_CASE("a lost rank is settled by the words of one that has committed") {
  auto const timeout = 100 * milliseconds;
  on_three_ranks(asynchronous(timeout), [&](engine& all, index_t rank) {
    auto& moved = all.self.moved;
    auto const ready = all.until_ready();
    if (rank == 2) {
      std::this_thread::sleep_for(std::chrono::nanoseconds{3 * timeout});
      CHECK_FALSE(moved.on_forward_pass_end().ok());
      CHECK(moved.state() == rebalancer_state::cohort_lost);
      CHECK(moved.epoch(0) == 0);
      REQUIRE(moved.undecided_layers().size() == 1);
      CHECK(moved.undecided_layers()[0] == 0);
      CHECK(moved.resume().code() == moved.failure().code());
    } else {
      moved.incoming(ready).or_throw();
    }
    static_cast<void>(moved.incoming(all.words()));
    CHECK(moved.epoch(0) == 1);
    all.expect_same_epochs();
    moved.resume().or_throw();
    for (int step = 0; step < 5; ++step) { all.step().or_throw(); }
    all.expect_same_epochs();
  });
}

TEST_CASE("in synchronous mode the words tell every rank in the same step that a resume is due") {
  on_three_ranks({.interval = 1000, .timeout = patience}, [](engine& all, index_t rank) {
    auto& moved = all.self.moved;
    all.step().or_throw();
    static_cast<void>(all.exchange(0));
    if (rank == 1) {
      moved.record_top_k(99, std::vector<index_t>{1});
      CHECK_FALSE(moved.on_forward_pass_end().ok());
    }
    auto const result = moved.incoming(all.words());
    CHECK_FALSE(result.ok());
    CHECK(moved.state() == rebalancer_state::failed);
    if (rank != 1) {
      CHECK(result.rank() == 1);
      CHECK(result.message().find("rank 1") != std::string::npos);
    }
    moved.resume().or_throw();
    all.step().or_throw();
  });
}
