// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Times of the device reach the observer once for each chunk, when they are known, and nobody asks where nothing
// measures.
#include <ballast/runtime/detail/device_times.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/policies.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

/// Stands for a store on a device that works commits off when it is told to: a commit takes 1000 ns for its epoch and
/// one for its layer.
class device_like_store : public host_store {
public:
  using host_store::host_store;

  bool timed = true;
  std::size_t room = unlimited;
  int num_questions = 0;

  /// The device does what has been enqueued so far.
  void catch_up() { num_done_ = times_.size(); }

  [[nodiscard]] std::size_t staging_limit() const noexcept { return room; }
  [[nodiscard]] status commit(index_t layer, std::span<byte_copy const> copies, placement const& tables,
                              epoch_t epoch) {
    times_.push_back(1000 * static_cast<nanoseconds_t>(epoch) + layer);
    return host_store::commit(layer, copies, tables, epoch);
  }
  [[nodiscard]] bool times_commits() const noexcept { return timed; }
  [[nodiscard]] nanoseconds_t take_commit_time() {
    ++num_questions;
    if (num_done_ == 0) { return not_measured; }
    --num_done_;
    auto const time = times_.front();
    times_.erase(times_.begin());
    return time;
  }

private:
  std::vector<nanoseconds_t> times_;  // of commits that were not taken, oldest first
  std::size_t num_done_ = 0;          // of those
};
static_assert(commit_timer<device_like_store>);
static_assert(!commit_timer<host_store>);

/// Says that a byte takes a nanosecond to receive, and fails at one batch, counted from 0, if asked to.
class device_like_wires {
public:
  explicit device_like_wires(in_process_endpoint& inner) : inner_{&inner} {}

  bool timed = true;
  int failing_batch = -1;

  [[nodiscard]] index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return inner_->num_ranks(); }
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    batch_time_ = 0;
    for (auto const& receive : receives) {
      for (auto const& part : receive.segments) { batch_time_ += static_cast<nanoseconds_t>(part.size); }
    }
    return inner_->start(sends, receives);
  }
  [[nodiscard]] transfer_state poll() { return inner_->poll(); }
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    auto result = inner_->wait(timeout);
    if (num_batches_++ == failing_batch) { return {errc::transport_failed, "no more"}; }
    if (result.ok()) { receive_time_ = batch_time_; }
    return result;
  }
  [[nodiscard]] nanoseconds_t receive_time() const noexcept { return timed ? receive_time_ : not_measured; }

private:
  in_process_endpoint* inner_;
  int num_batches_ = 0;
  nanoseconds_t batch_time_ = 0;
  nanoseconds_t receive_time_ = 0;
};
static_assert(receive_timer<device_like_wires>);
static_assert(!receive_timer<in_process_endpoint>);

topology const where{{2, 1, 3, 0}};
constexpr index_t num_layers = 4;
// Without replicas a rotation moves two experts a layer, one each way.
placement const initial = trivial_placement({num_layers, 6, 6});

using rank_type = member<rotate_placement, layers_per_chunk<>, device_like_store, device_like_wires>;

template <class Body>
void on_two_ranks(layers_per_chunk<> schedule, rebalancer_options options, Body body) {
  options.timeout = patience;
  in_process_group group{2};
  group.run([&](in_process_endpoint& me) {
    device_like_wires wires{me};
    rank_type self{where, initial, {}, schedule, me, wires, options};
    self.moved.start().or_throw();
    body(self, wires, me);
  });
}

/// What the times of all commits must be, in their order.
std::vector<logged_event> expected_times(event_log const& log) {
  std::vector<logged_event> expected;
  std::vector<nanoseconds_t> epochs(num_layers, 0);
  for (auto what : log.events) {
    if (what.kind != "commit") { continue; }
    what.device_receive = what.bytes / 2;
    what.device_commit = 0;
    for (auto const layer : what.layers) {
      what.device_commit += 1000 * ++epochs[static_cast<std::size_t>(layer)] + layer;
    }
    expected.push_back(what);
  }
  return expected;
}

std::vector<logged_event> times_in(event_log const& log) {
  std::vector<logged_event> times;
  for (auto const& what : log.events) {
    if (what.kind == "device_times") { times.push_back(what); }
  }
  return times;
}

/// Each commit's times are there once, in order, but for the last commits perhaps. @return how many there are
std::size_t check_times(event_log const& log) {
  auto const times = times_in(log);
  auto const expected = expected_times(log);
  REQUIRE(times.size() <= expected.size());
  for (std::size_t i = 0; i < times.size(); ++i) {
    CAPTURE(i);
    CHECK(times[i].step == expected[i].step);
    CHECK(times[i].layers == expected[i].layers);
    CHECK(times[i].moves == expected[i].moves);
    CHECK(times[i].bytes == expected[i].bytes);
    CHECK(times[i].balancedness == expected[i].balancedness);
    CHECK(times[i].device_receive == expected[i].device_receive);
    CHECK(times[i].device_commit == expected[i].device_commit);
  }
  return times.size();
}

}  // namespace

TEST_CASE("each chunk's times come once, in order, on the first call that finds the device done with it") {
  for (index_t const per_chunk : {1, 3, 4}) {
    CAPTURE(per_chunk);
    on_two_ranks(layers_per_chunk{per_chunk}, {.interval = 2},
                 [](rank_type& self, device_like_wires&, in_process_endpoint&) {
                   std::size_t seen = 0;
                   for (std::uint64_t call = 1; call <= 40; ++call) {
                     if (call % 3 == 0) { self.store.catch_up(); }
                     self.moved.on_forward_pass_end().or_throw();
                     auto const times = times_in(self.log);
                     for (; seen < times.size(); ++seen) { CHECK(call == (times[seen].step / 3 + 1) * 3); }
                   }
                   CHECK(check_times(self.log) >= 12);
                   CHECK(check_times(self.log) + 3 >= self.log.steps_of("commit").size());
                 });
  }
}

TEST_CASE("a chunk of several groups and batches tells their sums") {
  on_two_ranks(layers_per_chunk{4}, {.interval = 2, .max_message_bytes = 20, .rounds_per_batch = 1},
               [](rank_type& self, device_like_wires&, in_process_endpoint&) {
                 self.store.room = 2048;  // two layers: an arrival and a spare each, of two tensors
                 for (int call = 0; call < 20; ++call) {
                   self.moved.on_forward_pass_end().or_throw();
                   self.store.catch_up();
                 }
                 CHECK(check_times(self.log) >= 8);
               });
}

TEST_CASE("asynchronous moves tell their times as well") {
  on_two_ranks(layers_per_chunk{2}, {.interval = 2, .asynchronous = true},
               [](rank_type& self, device_like_wires&, in_process_endpoint& me) {
                 for (int call = 0; call < 60; ++call) {
                   auto const mine = self.moved.outgoing();
                   std::vector<std::uint64_t> words(2);
                   me.all_gather({&mine, 1}, words, patience).or_throw();
                   self.moved.incoming(words).or_throw();
                   if (call % 2 == 0) { self.store.catch_up(); }
                   self.moved.on_forward_pass_end().or_throw();
                 }
                 CHECK(check_times(self.log) >= 4);
               });
}

TEST_CASE("a placement that is applied tells its times on a later call") {
  on_two_ranks(layers_per_chunk{1}, {.interval = 100}, [](rank_type& self, device_like_wires&, in_process_endpoint&) {
    auto target = initial;
    rotate_placement{}.plan({}, initial, where, target).or_throw();
    self.moved.apply(target).or_throw();
    self.store.catch_up();
    CHECK(times_in(self.log).empty());
    self.moved.on_forward_pass_end().or_throw();
    CHECK(check_times(self.log) == num_layers);
  });
}

TEST_CASE("where nothing measures, nobody is asked") {
  on_two_ranks(layers_per_chunk{2}, {.interval = 2},
               [](rank_type& self, device_like_wires& wires, in_process_endpoint&) {
                 self.store.timed = false;
                 wires.timed = false;
                 for (int call = 0; call < 20; ++call) {
                   self.moved.on_forward_pass_end().or_throw();
                   self.store.catch_up();
                 }
                 CHECK(self.log.steps_of("commit").size() >= 4);
                 CHECK(times_in(self.log).empty());
                 CHECK(self.store.num_questions == 0);
               });
}

TEST_CASE("a store is asked only while it has something to tell") {
  on_two_ranks(layers_per_chunk{4}, {.interval = 4}, [](rank_type& self, device_like_wires&, in_process_endpoint&) {
    for (int call = 1; call <= 5; ++call) { self.moved.on_forward_pass_end().or_throw(); }
    CHECK(self.store.num_questions == 0);  // this call has committed, and asks later
    self.moved.on_forward_pass_end().or_throw();
    CHECK(self.store.num_questions == 1);
    self.store.catch_up();
    self.moved.on_forward_pass_end().or_throw();
    CHECK(self.store.num_questions == 1 + num_layers);
    self.moved.on_forward_pass_end().or_throw();
    CHECK(self.store.num_questions == 1 + num_layers);
    CHECK(check_times(self.log) == 1);
  });
}

TEST_CASE("one of the two may measure alone") {
  for (bool const store_measures : {false, true}) {
    CAPTURE(store_measures);
    on_two_ranks(layers_per_chunk{2}, {.interval = 2},
                 [&](rank_type& self, device_like_wires& wires, in_process_endpoint&) {
                   self.store.timed = store_measures;
                   wires.timed = !store_measures;
                   for (int call = 0; call < 6; ++call) {
                     self.moved.on_forward_pass_end().or_throw();
                     self.store.catch_up();
                   }
                   auto const times = times_in(self.log);
                   REQUIRE(times.size() == 2);
                   CHECK((times[0].device_receive >= 0) == !store_measures);
                   CHECK((times[0].device_commit >= 0) == store_measures);
                 });
  }
}

TEST_CASE("commits of a chunk that failed are not counted for another") {
  on_two_ranks(layers_per_chunk{2}, {.interval = 1},
               [](rank_type& self, device_like_wires& wires, in_process_endpoint&) {
                 self.store.room = 1024;  // a layer at a time
                 wires.failing_batch = self.moved.rank() == 0 ? 1 : -1;
                 status result;
                 for (int call = 0; call < 5 && result.ok(); ++call) { result = self.moved.on_forward_pass_end(); }
                 REQUIRE(!result.ok());
                 CHECK(self.moved.epoch(0) == 1);
                 CHECK(self.moved.epoch(1) == 0);
                 self.moved.resume().or_throw();
                 for (int call = 0; call < 4; ++call) {
                   self.moved.on_forward_pass_end().or_throw();
                   self.store.catch_up();
                 }
                 auto const times = times_in(self.log);
                 REQUIRE(times.size() == 3);
                 CHECK(times[0].layers == std::vector<index_t>{0});
                 CHECK(times[0].device_commit == 1000);
                 CHECK(times[1].layers == std::vector<index_t>{0});
                 CHECK(times[1].device_commit == 2000);  // for the second time
                 CHECK(times[2].layers == std::vector<index_t>{1});
                 CHECK(times[2].device_commit == 1001);
                 CHECK(times[2].device_receive == 53);
               });
}

TEST_CASE("a chunk between the groups of another keeps its own times") {
  device_like_store store{where, num_layers};
  detail::device_times<device_like_store> times{store};
  auto const commit = [&](index_t layer) { store.commit(layer, {}, initial, 0).or_throw(); };
  event_log log;
  auto const ask = [&] { times.tell_known([&](event const& what) { log.on_event(what); }); };
  std::vector<index_t> const both{1, 3};
  std::vector<index_t> const shared{2};

  commit(1);
  times.add_commit();
  times.add_receive(100);
  commit(2);
  times.add_chunk({.kind = event_kind::shares, .step = 7, .layers = shared}, 1);
  store.catch_up();
  ask();
  REQUIRE(log.events.size() == 1);
  CHECK(log.events[0].kind == "device_times");
  CHECK(log.events[0].step == 7);
  CHECK(log.events[0].layers == shared);
  CHECK(log.events[0].device_receive == not_measured);
  CHECK(log.events[0].device_commit == 2);
  commit(3);
  times.add_commit();
  times.add_receive(20);
  times.add_receive(not_measured);
  times.close({.kind = event_kind::commit, .step = 8, .layers = both, .moves = 5});
  ask();
  CHECK(log.events.size() == 1);
  store.catch_up();
  ask();
  REQUIRE(log.events.size() == 2);
  CHECK(log.events[1].step == 8);
  CHECK(log.events[1].layers == both);
  CHECK(log.events[1].moves == 5);
  CHECK(log.events[1].device_receive == 120);
  CHECK(log.events[1].device_commit == 4);
}
