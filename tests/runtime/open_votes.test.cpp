// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Votes of which a rank does not hear the outcome: what settles them, and what does not.
#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/group_runner.hpp"
#include "../support/hooked.hpp"
#include "../support/patterned_weights.hpp"
#include "../support/policies.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <new>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

/// A control plane that does not tell how a vote ended while it is silent.
class reticent_control : public hooked_control<in_process_endpoint> {
public:
  explicit reticent_control(in_process_endpoint& inner)
      : hooked_control<in_process_endpoint>{inner, [](char const*) {}} {}

  bool silent = false;  ///< the next vote and its recall are undecided here

  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    auto result = hooked_control<in_process_endpoint>::vote(yes, timeout);
    if (!silent) { return result; }
    return {decision::undecided, {errc::deadline_exceeded, "rank 7 did not come in time", 7}};
  }
  [[nodiscard]] vote_result vote_no(status const& /*why*/, nanoseconds_t timeout) { return vote(false, timeout); }
  [[nodiscard]] vote_result recall(nanoseconds_t timeout) {
    if (!silent) { return hooked_control<in_process_endpoint>::recall(timeout); }
    return {decision::undecided, {errc::deadline_exceeded, "nobody answers"}};
  }
};

/// A recorder that runs out of memory when it is told to.
struct frail_recorder : window_recorder {
  using window_recorder::window_recorder;
  bool fails = false;
  void end_pass(bool counted) {
    if (fails) { throw std::bad_alloc{}; }
    window_recorder::end_pass(counted);
  }
};

/// A store that fails after it has written, when it is told to.
struct tearing_store : hooked_store {
  using hooked_store::hooked_store;
  bool tears = false;
  [[nodiscard]] status commit(index_t layer, std::span<byte_copy const> copies, placement const& tables,
                              epoch_t epoch) {
    auto result = hooked_store::commit(layer, copies, tables, epoch);
    return tears ? status{errc::internal, "torn"} : result;
  }
};

/// Counts the failures that it is told.
struct failure_counter : observer {
  int failures = 0;
  void on_event(event const& what) override { failures += what.kind == event_kind::failed ? 1 : 0; }
};

topology const where{{2, 1, 3, 0}};
placement const initial = trivial_placement({2, 5, 6});

struct rank_with_open_vote {
  explicit rank_with_open_vote(in_process_endpoint& endpoint, index_t shares_every = 0)
      : share_interval{shares_every}, control{endpoint}, transport{&endpoint} {
    weights.add_to(store);
    moved.start().or_throw();
  }

  index_t share_interval;
  reticent_control control;
  in_process_endpoint* transport;
  patterned_weights weights{where, transport->rank(), initial, {{24, 24}}};
  tearing_store store{where, 2};
  failure_counter watcher;
  rebalancer<frail_recorder, rotate_placement, layers_per_chunk<>, in_process_endpoint, tearing_store, reticent_control>
      moved{where,
            initial,
            {frail_recorder{2, 5},
             {},
             layers_per_chunk{2},
             {.interval = 1, .share_interval = share_interval, .timeout = patience},
             &watcher},
            store,
            *transport,
            control};
};

template <class Body>
void on_two_ranks(Body body) {
  in_process_group group{2};
  in_process_group channel{2};
  group.run([&](in_process_endpoint& me) {
    rank_with_open_vote self{me};
    auto const tell = exchange_over(channel.endpoint(me.rank()));
    body(self, tell);
    static_cast<void>(tell(0));
  });
}

// Rank 1 is lost in the first vote, which commits on rank 0. @return the words that were told before it
template <class Tell>
std::vector<std::uint64_t> lose_rank_1(rank_with_open_vote& self, Tell const& tell) {
  self.moved.on_forward_pass_end().or_throw();
  auto const early = tell(self.moved.outgoing());
  self.control.silent = self.transport->rank() == 1;
  auto const result = self.moved.on_forward_pass_end();
  self.control.silent = false;
  if (self.transport->rank() == 0) {
    CHECK(result.ok());
    CHECK(self.moved.epoch(0) == 1);
  } else {
    CHECK(self.moved.state() == rebalancer_state::cohort_lost);
    CHECK(result.rank() == 7);
    CHECK(result.message() == "rank 7 did not come in time; then nobody answers");
  }
  return early;
}

}  // namespace

TEST_CASE("words that were told before a vote do not settle it in synchronous mode") {
  on_two_ranks([](rank_with_open_vote& self, auto const& tell) {
    auto words = lose_rank_1(self, tell);
    if (self.transport->rank() == 1) {
      words[1] = self.moved.outgoing();
      CHECK_FALSE(self.moved.incoming(words).ok());
      CHECK(self.moved.state() == rebalancer_state::cohort_lost);
      self.moved.settle(decision::commit).or_throw();
    }
    CHECK(self.moved.epoch(0) == 1);
    CHECK(self.weights.first_error(self.moved.current()) == "");
  });
}

TEST_CASE("a rank that was lost and is settled resumes like any other") {
  on_two_ranks([](rank_with_open_vote& self, auto const& tell) {
    static_cast<void>(lose_rank_1(self, tell));
    if (self.transport->rank() == 1) { self.moved.settle(decision::commit).or_throw(); }
    self.moved.resume().or_throw();
    for (int step = 0; step < 6; ++step) { self.moved.on_forward_pass_end().or_throw(); }
    CHECK(self.moved.epoch(0) > 2);
    CHECK(self.weights.first_error(self.moved.current()) == "");
  });
}

TEST_CASE("what is thrown at a rank that is lost leaves it lost") {
  on_two_ranks([](rank_with_open_vote& self, auto const& tell) {
    static_cast<void>(lose_rank_1(self, tell));
    if (self.transport->rank() == 0) { return; }
    self.moved.recorder().fails = true;
    CHECK(self.moved.on_forward_pass_end().code() == errc::out_of_memory);
    CHECK(self.moved.state() == rebalancer_state::cohort_lost);
    CHECK(self.moved.undecided_layers().size() == 2);
    CHECK(self.watcher.failures == 1);
    self.moved.recorder().fails = false;
    self.moved.settle(decision::commit).or_throw();
    CHECK(self.weights.first_error(self.moved.current()) == "");
  });
}

TEST_CASE("a store that throws in a commit leaves a rank that nothing settles: a layer may be torn") {
  for (bool const in_settle : {false, true}) {
    CAPTURE(in_settle);
    on_two_ranks([&](rank_with_open_vote& self, auto const& tell) {
      auto const tear = [](char const* point) {
        if (std::string_view{point} == "in commit") { throw std::bad_alloc{}; }
      };
      status result;
      if (in_settle) {
        static_cast<void>(lose_rank_1(self, tell));
        if (self.transport->rank() == 0) { return; }
        self.store.at = tear;
        result = self.moved.settle(decision::commit);
      } else {
        if (self.transport->rank() == 1) { self.store.at = tear; }
        self.moved.on_forward_pass_end().or_throw();
        result = self.moved.on_forward_pass_end();
        if (self.transport->rank() == 0) { return; }
      }
      CHECK(result.code() == errc::out_of_memory);
      CHECK(self.moved.state() == rebalancer_state::cohort_lost);
      CHECK(self.moved.undecided_layers().empty());
      CHECK(self.moved.settle(decision::commit).code() == errc::invalid_option);
      CHECK(self.moved.resume().code() == errc::out_of_memory);
    });
  }
}

TEST_CASE("a rank with a torn layer says so once, whatever is thrown at it afterwards") {
  for (bool const throws : {false, true}) {
    CAPTURE(throws);
    on_two_ranks([&](rank_with_open_vote& self, auto const&) {
      if (self.transport->rank() == 1) {
        self.store.tears = !throws;
        self.store.at = [&](char const* point) {
          if (throws && std::string_view{point} == "in commit") { throw std::runtime_error{"torn"}; }
        };
      }
      self.moved.on_forward_pass_end().or_throw();
      auto const result = self.moved.on_forward_pass_end();
      if (self.transport->rank() == 0) { return; }
      CHECK(self.moved.state() == rebalancer_state::cohort_lost);
      CHECK(self.watcher.failures == 1);
      self.moved.recorder().fails = true;
      CHECK(self.moved.on_forward_pass_end().code() == errc::out_of_memory);
      CHECK(self.moved.state() == rebalancer_state::cohort_lost);
      CHECK(self.moved.failure().message() == result.message());
      CHECK(self.watcher.failures == 1);
    });
  }
}

TEST_CASE("the same where no bytes move: shares, and another topology") {
  for (bool const of_shares : {false, true}) {
    CAPTURE(of_shares);
    in_process_group group{2};
    group.run([&](in_process_endpoint& me) {
      rank_with_open_vote self{me, of_shares ? 1 : 0};
      if (me.rank() == 1) {
        self.store.at = [](char const* point) {
          if (std::string_view{point} == "in commit") { throw std::bad_alloc{}; }
        };
      }
      // Expert 0 is on both ranks, and rank 0 is busy with another one.
      for (index_t layer = 0; layer < 2; ++layer) {
        self.moved.record_logical(layer, std::vector<load_t>{6, 9, 1, 1, 1}).or_throw();
      }
      auto const result = of_shares ? self.moved.on_forward_pass_end() : self.moved.set_topology(where, initial);
      if (me.rank() == 0) {
        CHECK(result.ok());
        CHECK(self.moved.epoch(0) == 1);
        return;
      }
      CHECK(result.code() == errc::out_of_memory);
      CHECK(self.moved.state() == rebalancer_state::cohort_lost);
      CHECK(self.moved.undecided_layers().empty());
    });
  }
}

TEST_CASE("a change of topology whose vote a rank does not hear the end of is settled as any other") {
  auto uneven = initial;  // told apart from what is in force by its shares
  uneven.make_shares_even();
  uneven.edit_shares(0)[0] -= 100;
  uneven.edit_shares(0)[5] += 100;
  REQUIRE(uneven.logical_of_slot(0)[5] == uneven.logical_of_slot(0)[0]);
  for (bool const lost_by_both : {false, true}) {
    CAPTURE(lost_by_both);
    on_two_ranks([&](rank_with_open_vote& self, auto const& tell) {
      bool const is_lost = lost_by_both || self.transport->rank() == 1;
      self.control.silent = is_lost;
      auto const result = self.moved.set_topology(where, uneven);
      self.control.silent = false;
      CHECK(result.ok() == !is_lost);
      static_cast<void>(tell(0));
      if (is_lost) {
        CHECK(self.moved.state() == rebalancer_state::cohort_lost);
        CHECK(self.moved.undecided_layers().size() == 2);
        CHECK(self.moved.current() == initial);
        CHECK(self.moved.resume().code() == result.code());
        // Words tell of groups only.
        std::vector<std::uint64_t> const words(2, self.moved.outgoing());
        CHECK_FALSE(self.moved.incoming(words).ok());
        CHECK(self.moved.state() == rebalancer_state::cohort_lost);
        self.moved.settle(lost_by_both ? decision::drop : decision::commit).or_throw();
        CHECK(self.moved.state() == rebalancer_state::failed);
        CHECK(self.moved.undecided_layers().empty());
        CHECK(self.moved.settle(decision::drop).code() == errc::invalid_option);
      }
      CHECK(self.moved.epoch(0) == (lost_by_both ? 0 : 1));
      CHECK(self.moved.current() == (lost_by_both ? initial : uneven));
      self.moved.resume().or_throw();
      self.moved.set_topology(where, uneven).or_throw();
      CHECK(self.moved.current() == uneven);
      CHECK(self.moved.check_replicas().ok());
      CHECK(self.weights.first_error(self.moved.current()) == "");
    });
  }
}

TEST_CASE("a change of topology that fails when it is settled leaves a rank that nothing settles") {
  on_two_ranks([](rank_with_open_vote& self, auto const& tell) {
    bool const is_lost = self.transport->rank() == 1;
    self.control.silent = is_lost;
    CHECK(self.moved.set_topology(where, initial).ok() == !is_lost);
    self.control.silent = false;
    static_cast<void>(tell(0));
    if (!is_lost) { return; }
    self.store.at = [](char const* point) {
      if (std::string_view{point} == "in commit") { throw std::bad_alloc{}; }
    };
    CHECK(self.moved.settle(decision::commit).code() == errc::out_of_memory);
    CHECK(self.moved.state() == rebalancer_state::cohort_lost);
    CHECK(self.moved.undecided_layers().empty());
    CHECK(self.moved.settle(decision::commit).code() == errc::invalid_option);
  });
}

TEST_CASE("a model without layers is settled, too") {
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    auto const nothing = trivial_placement({0, 5, 6});
    reticent_control control{me};
    host_store store{where, 0};
    rebalancer<window_recorder, rotate_placement, layers_per_chunk<>, in_process_endpoint, host_store, reticent_control>
        moved{where, nothing, {window_recorder{0, 5}, {}, layers_per_chunk{2}, rebalancer_options{.timeout = patience}},
              store, me,      control};
    moved.start().or_throw();
    control.silent = true;
    CHECK_FALSE(moved.set_topology(where, nothing).ok());
    control.silent = false;
    CHECK(moved.state() == rebalancer_state::cohort_lost);
    moved.settle(decision::drop).or_throw();
    moved.resume().or_throw();
    CHECK(moved.set_topology(where, nothing).ok());
  });
}
