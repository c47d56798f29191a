// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What a rebalancer does with members that transports, stores and recorders may have.
#include <ballast/load/window_recorder.hpp>
#include <ballast/parts.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/patterned_weights.hpp"
#include "support/policies.hpp"
#include "support/two_ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

using namespace ballast;
using namespace ballast_test;

namespace {

constexpr nanoseconds_t patience = 30'000'000'000;
topology const where{{2, 1, 2, 0}};
placement const initial = trivial_placement({1, 4, 4});

/// In-process messages, with everything that a transport may have besides.
class particular_transport {
public:
  explicit particular_transport(in_process_endpoint& wire) : wire_{&wire} {}

  [[nodiscard]] index_t rank() const noexcept { return wire_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return wire_->num_ranks(); }
  [[nodiscard]] transfer_turns& turns() noexcept { return wire_->turns(); }
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    if (broken) { return {errc::transport_failed, "broken"}; }
    began_while_late = began_while_late || late_answers != 0;
    return wire_->start(sends, receives);
  }
  [[nodiscard]] transfer_state poll() { return wire_->poll(); }
  [[nodiscard]] status wait(nanoseconds_t timeout) { return wire_->wait(timeout); }

  [[nodiscard]] bool moves_in_poll() const noexcept { return in_poll; }
  [[nodiscard]] status warm_up() {
    ++warmed;
    return warming;
  }
  /// Of a batch that was given up: a negative number of answers does not end.
  [[nodiscard]] bool may_write(std::span<incoming_message const> receives) {
    asked_about = receives.front().segments.front();
    if (late_answers > 0) { --late_answers; }
    return late_answers != 0;
  }
  [[nodiscard]] bool needs_repair() const noexcept { return broken; }
  [[nodiscard]] status repair(in_process_endpoint& control, nanoseconds_t timeout) {
    ++repairs;
    broken = false;
    std::uint64_t const mine[] = {1};
    std::vector<std::uint64_t> all(static_cast<std::size_t>(control.num_ranks()));
    return control.all_gather(mine, all, timeout);
  }

  bool in_poll = true;
  bool broken = false;
  int late_answers = 0;
  bool began_while_late = false;
  segment asked_about;
  int warmed = 0;
  int repairs = 0;
  status warming;

private:
  in_process_endpoint* wire_;
};
static_assert(waiting_transport<particular_transport> && late_writer<particular_transport> &&
              warming_part<particular_transport>);
static_assert(repairable_transport<particular_transport, in_process_endpoint>);

struct particular_store : host_store {
  using host_store::host_store;
  [[nodiscard]] status connect(particular_transport const& /*transport*/) {
    ++connected;
    return connecting;
  }
  void disconnect(particular_transport& /*transport*/) noexcept { ++*disconnected; }
  void set_timeout(nanoseconds_t time) noexcept { timeout = time; }

  int connected = 0;
  int* disconnected = nullptr;
  nanoseconds_t timeout = 0;
  status connecting;
};
static_assert(connecting_store<particular_store, particular_transport> && bounded_part<particular_store>);

struct recorder_diary {
  int passes = 0;
  std::vector<int> prepared_after;  // passes closed by then
  std::vector<int> read_after;
};
class particular_recorder : public window_recorder {
public:
  particular_recorder(recorder_diary& diary, index_t window)
      : window_recorder{1, 4, {window, window}}, diary_{&diary} {}
  void end_pass(bool counted) {
    ++diary_->passes;
    window_recorder::end_pass(counted);
  }
  void prepare_history() { diary_->prepared_after.push_back(diary_->passes); }
  [[nodiscard]] status history(std::span<load_t> out) const {
    diary_->read_after.push_back(diary_->passes);
    return window_recorder::history(out);
  }

private:
  recorder_diary* diary_;
};
static_assert(preparing_recorder<particular_recorder> && load_recorder<particular_recorder>);

struct rank_with_parts {
  rank_with_parts(in_process_endpoint& me, rebalancer_options const& options)
      : weights{where, me.rank(), initial, {{16, 16}}},
        wires{me},
        store{where, 1},
        moved{where, initial, {particular_recorder{diary, options.interval}, rotate_placement{}, all_layers{}, options},
              store, wires,   me} {
    weights.add_to(store);
    store.disconnected = &disconnected;
  }
  status step() {
    moved.record_top_k(0, std::vector<index_t>{0, 1, 2, 3});
    return moved.on_forward_pass_end();
  }

  int disconnected = 0;
  recorder_diary diary;
  patterned_weights weights;
  particular_transport wires;
  particular_store store;
  rebalancer<particular_recorder, rotate_placement, all_layers<>, particular_transport, particular_store,
             in_process_endpoint>
      moved;
};

/// What an engine does with the words of asynchronous mode after each call.
template <class Rebalancer>
void exchange(Rebalancer& moved, in_process_endpoint& me) {
  std::uint64_t const word[] = {moved.outgoing()};
  std::vector<std::uint64_t> words(2);
  me.all_gather(word, words, patience).or_throw();
  moved.incoming(words).or_throw();
}

}  // namespace

TEST_CASE("start connects and warms the parts up, once, and tells the store the timeout") {
  on_two_ranks([](in_process_endpoint& me) {
    rank_with_parts self{me, {.interval = 1, .timeout = patience}};
    self.moved.start().or_throw();
    CHECK(self.wires.warmed == 1);
    CHECK(self.store.connected == 1);
    CHECK(self.disconnected == 0);
    CHECK(self.store.timeout == patience);
    for (int call = 0; call < 6; ++call) { self.step().or_throw(); }
    CHECK(self.moved.epoch(0) >= 2);
    CHECK(self.wires.warmed == 1);
    CHECK(self.wires.repairs == 0);
  });
}

TEST_CASE("the store is disconnected before the rebalancer goes, and only if it was started") {
  for (bool const starts : {true, false}) {
    on_two_ranks([starts](in_process_endpoint& me) {
      int disconnected = 0;
      {
        rank_with_parts self{me, {.interval = 1, .timeout = patience}};
        self.store.disconnected = &disconnected;
        if (starts) { self.moved.start().or_throw(); }
      }
      CHECK(disconnected == (starts ? 1 : 0));
    });
  }
}

TEST_CASE("a rank that cannot get ready is heard by all") {
  for (bool const in_store : {false, true}) {
    on_two_ranks([in_store](in_process_endpoint& me) {
      rank_with_parts self{me, {.interval = 1, .timeout = patience}};
      if (me.rank() == 1) {
        (in_store ? self.store.connecting : self.wires.warming) = {errc::invalid_option, "no such streams"};
      }
      auto const result = self.moved.start();
      CHECK_FALSE(result.ok());
      CHECK(result.rank() == (me.rank() == 1 ? status::no_rank : 1));
      CHECK_FALSE(self.step().ok());
      CHECK(self.weights.first_error(self.moved.current()) == "");
    });
  }
}

TEST_CASE("asynchronous mode is refused by start, on every rank, where bytes move inside of wait only") {
  on_two_ranks([](in_process_endpoint& me) {
    rank_with_parts self{me, {.interval = 1, .timeout = patience, .asynchronous = true}};
    self.wires.in_poll = me.rank() != 1;
    auto const result = self.moved.start();
    if (me.rank() == 1) {
      CHECK(result.code() == errc::invalid_option);
      CHECK(result.message().find("allow_sm_overlap") != std::string::npos);
    } else {
      CHECK(result.rank() == 1);
    }
  });
  on_two_ranks([](in_process_endpoint& me) {
    rank_with_parts self{me, {.interval = 1, .timeout = patience}};
    self.wires.in_poll = false;
    CHECK(self.moved.start().ok());
  });
}

TEST_CASE("resume repairs the transport on all ranks when any needs it, and connects it anew") {
  on_two_ranks([](in_process_endpoint& me) {
    rank_with_parts self{me, {.interval = 1, .timeout = patience}};
    self.moved.start().or_throw();
    self.step().or_throw();
    if (me.rank() == 1) { self.wires.broken = true; }
    CHECK_FALSE(self.step().ok());
    CHECK(self.moved.state() == rebalancer_state::failed);
    self.moved.resume().or_throw();
    CHECK(self.wires.repairs == 1);
    auto const connected = self.store.connected;
    auto const before = self.moved.epoch(0);
    for (int call = 0; call < 4; ++call) { self.step().or_throw(); }
    CHECK(self.moved.epoch(0) > before);
    CHECK(self.store.connected > connected);  // before each group: its streams may be others now
    CHECK(self.weights.first_error(self.moved.current()) == "");
    self.moved.resume().or_throw();
    CHECK(self.wires.repairs == 1);
  });
}

TEST_CASE("no batch begins while bytes of one that was given up may still arrive in staging") {
  for (bool const asynchronous : {false, true}) {
    CAPTURE(asynchronous);
    on_two_ranks([asynchronous](in_process_endpoint& me) {
      rank_with_parts self{me, {.interval = 1, .timeout = patience, .asynchronous = asynchronous}};
      self.moved.start().or_throw();
      constexpr int many = 40;
      if (me.rank() == 1) { self.wires.late_answers = many; }
      for (int call = 0; call < 4 * many && self.moved.epoch(0) < 1; ++call) {
        self.step().or_throw();
        if (asynchronous) { exchange(self.moved, me); }
      }
      CHECK(self.moved.epoch(0) == 1);
      CHECK(self.wires.late_answers == 0);
      CHECK_FALSE(self.wires.began_while_late);
      CHECK(self.wires.asked_about.data == self.store.staging());
      CHECK(self.wires.asked_about.size > 0);
    });
  }
}

TEST_CASE("staging that does not come to rest ends the group at its deadline, and resume goes on when it has") {
  on_two_ranks([](in_process_endpoint& me) {
    rank_with_parts self{me, {.interval = 1, .timeout = 2'000'000'000}};
    self.moved.start().or_throw();
    if (me.rank() == 1) { self.wires.late_answers = -1; }
    auto result = self.step();
    for (int call = 0; call < 3 && result.ok(); ++call) { result = self.step(); }
    CHECK_FALSE(result.ok());
    if (me.rank() == 1) { CHECK(result.message().find("may still arrive in staging") != std::string::npos); }
    CHECK_FALSE(self.wires.began_while_late);
    CHECK(self.moved.epoch(0) == 0);
    CHECK(self.weights.first_error(self.moved.current()) == "");

    self.wires.late_answers = 0;
    self.moved.resume().or_throw();
    for (int call = 0; call < 4; ++call) { self.step().or_throw(); }
    CHECK(self.moved.epoch(0) >= 1);
    CHECK(self.weights.first_error(self.moved.current()) == "");
  });
}

TEST_CASE("the recorder is told one call before its history is read") {
  SUBCASE("plans") {
    on_two_ranks([](in_process_endpoint& me) {
      rank_with_parts self{me, {.interval = 3, .timeout = patience}};
      self.moved.start().or_throw();
      for (int call = 0; call < 11; ++call) { self.step().or_throw(); }
      CHECK(self.diary.read_after == std::vector{4, 7, 10});
      CHECK(self.diary.prepared_after == std::vector{3, 6, 9});
    });
  }
  SUBCASE("shares") {
    on_two_ranks([](in_process_endpoint& me) {
      rank_with_parts self{me, {.interval = 5, .share_interval = 2, .timeout = patience}};
      self.moved.start().or_throw();
      for (int call = 0; call < 7; ++call) { self.step().or_throw(); }
      for (auto const read : self.diary.read_after) {
        auto const& prepared = self.diary.prepared_after;
        CHECK(std::find(prepared.begin(), prepared.end(), read - 1) != prepared.end());
      }
      CHECK(self.diary.read_after.size() >= 3);
    });
  }
  SUBCASE("moves that end between two calls") {
    on_two_ranks([](in_process_endpoint& me) {
      rank_with_parts self{me, {.interval = 1, .timeout = patience, .asynchronous = true}};
      self.moved.start().or_throw();
      for (int call = 0; call < 20; ++call) {
        self.step().or_throw();
        exchange(self.moved, me);
      }
      CHECK(self.moved.epoch(0) >= 2);
      for (auto const read : self.diary.read_after) {
        auto const& prepared = self.diary.prepared_after;
        CHECK(std::find(prepared.begin(), prepared.end(), read - 1) != prepared.end());
      }
    });
  }
}
