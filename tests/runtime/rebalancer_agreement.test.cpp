// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What ranks compare before they act, and what becomes of them when a vote or a commit goes wrong.
#include <ballast/control/engine_control.hpp>
#include <ballast/load/decay_recorder.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/hooked.hpp"
#include "../support/policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{2, 1, 3, 0}};
constexpr index_t num_layers = 2;
placement const initial = trivial_placement({num_layers, 4, 6});  // 0 1 2 | 3 0 1

// A control plane that does not say what is.
class lying_control : public hooked_control<in_process_endpoint> {
public:
  explicit lying_control(in_process_endpoint& inner) : hooked_control{inner, [](char const*) {}} {}

  std::uint64_t members = 1;
  bool blind = false;                       // shows every rank its own words as those of the others
  std::optional<decision> outcome;          // what this rank takes its votes for
  decision recalled = decision::undecided;  // and what it learns when it asks
  bool cannot_add = false;

  [[nodiscard]] std::uint64_t membership() const { return members; }
  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    auto result = hooked_control::all_gather(mine, all, timeout);
    for (auto at = all.begin(); blind && at != all.end(); at += static_cast<std::ptrdiff_t>(mine.size())) {
      std::ranges::copy(mine, at);
    }
    return result;
  }
  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    if (cannot_add) { return {errc::deadline_exceeded, "nobody came"}; }
    return hooked_control::all_reduce(values, timeout);
  }
  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    auto result = hooked_control::vote(yes, timeout);
    return outcome ? vote_result{*outcome, {errc::deadline_exceeded, "it was late"}} : result;
  }
  [[nodiscard]] vote_result vote_no(status const& /*why*/, nanoseconds_t timeout) { return vote(false, timeout); }
  [[nodiscard]] vote_result recall(nanoseconds_t /*timeout*/) {
    return {recalled, {errc::deadline_exceeded, "asked too late"}};
  }
};

// Keeps the tags and regions of all messages, and can pass for a transport that reads its peers' memory.
class noted_wire {
public:
  explicit noted_wire(in_process_endpoint& inner) : inner_{&inner} {}

  std::uint32_t used = 0;  // region numbers that others have had
  std::vector<std::uint64_t> tags;
  std::vector<std::uint32_t> regions;
  std::vector<std::uint32_t> exposed;
  std::vector<std::uint32_t> retracted;

  [[nodiscard]] index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return inner_->num_ranks(); }
  [[nodiscard]] transfer_turns& turns() noexcept { return inner_->turns(); }
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    for (auto const& send : sends) { tags.push_back(send.tag); }
    for (auto const& receive : receives) {
      for (auto const& part : receive.source) { regions.push_back(part.region); }
    }
    return inner_->start(sends, receives);
  }
  [[nodiscard]] transfer_state poll() { return inner_->poll(); }
  [[nodiscard]] status wait(nanoseconds_t timeout) { return inner_->wait(timeout); }
  status exposing;
  [[nodiscard]] status expose(std::span<segment const> /*regions*/, std::uint32_t first) {
    if (exposing.ok()) { exposed.push_back(first); }
    return exposing;
  }
  void retract(std::uint32_t first) noexcept { retracted.push_back(first); }
  [[nodiscard]] std::uint32_t next_region() const noexcept { return used; }

private:
  in_process_endpoint* inner_;
};
static_assert(peer_copier<noted_wire>);

// A store that refuses a commit of one layer, or another topology.
struct refusing_store : host_store {
  using host_store::host_store;
  index_t refused = -1;
  bool stays = false;
  std::vector<bool> told_live;  // of rank 1, by every topology that it was told
  [[nodiscard]] status set_topology(topology const& told) {
    told_live.push_back(told.is_live(1));
    return stays ? status{errc::out_of_memory, "refusing_store: no room for other tables"} : status{};
  }
  [[nodiscard]] status commit(index_t layer, std::span<byte_copy const> copies, placement const& tables,
                              epoch_t epoch) {
    if (layer == refused) { return {errc::transport_failed, "refusing_store: no"}; }
    return host_store::commit(layer, copies, tables, epoch);
  }
};

struct rank_of_two {
  rank_of_two(in_process_endpoint& me, rebalancer_options const& options, tensor_shape shape = {48, 48})
      : control{me},
        weights{where, me.rank(), initial, {shape}},
        store{where, num_layers},
        moved{where, initial, {window_recorder{num_layers, 4, {1, 1}}, {}, layers_per_chunk{2}, options, &log},
              store, me,      control} {
    weights.add_to(store);
  }
  status step(std::vector<index_t> const& ids = {2, 2, 2, 2, 0, 0, 1, 1}) {
    for (index_t layer = 0; layer < num_layers; ++layer) { moved.record_top_k(layer, ids); }
    return moved.on_forward_pass_end();
  }
  void expect_nothing_has_changed() {
    CHECK(moved.current() == initial);
    CHECK(moved.epoch(0) == 0);
    CHECK(weights.first_error(moved.current()) == "");
  }

  event_log log;
  lying_control control;
  patterned_weights weights;
  refusing_store store;
  rebalancer<window_recorder, rotate_placement, layers_per_chunk<>, in_process_endpoint, refusing_store, lying_control>
      moved;
};

template <class Body>
void on_two_ranks(rebalancer_options const& options, Body body) {
  in_process_group group{2};
  group.run([&](in_process_endpoint& me) {
    rank_of_two self{me, options};
    self.moved.start().or_throw();
    body(self, me.rank());
  });
}

[[nodiscard]] bool says(status const& result, char const* what) {
  INFO(result.message());
  return result.message().find(what) != std::string::npos;
}

[[nodiscard]] placement rotated() {
  placement target;
  rotate_placement{}.plan({}, initial, where, target).or_throw();
  return target;
}
[[nodiscard]] placement with_row(std::vector<index_t> const& row) {
  placement target = initial;
  std::ranges::copy(row, target.edit(0).logical_of_slot.begin());
  target.index_replicas(0);
  return target;
}

}  // namespace

TEST_CASE("before a byte moves, ranks that have come to differ are told in what") {
  on_two_ranks({.interval = 1, .timeout = patience}, [](rank_of_two& self, index_t rank) {
    self.control.members += static_cast<std::uint64_t>(rank);
    self.step().or_throw();
    auto const result = self.step();
    CHECK(result.code() == errc::disagreement);
    CHECK(result.message() == "rank 1 differs from rank 0 in membership: 2 against 1");
    self.expect_nothing_has_changed();
  });
  on_two_ranks({.interval = 1, .timeout = patience}, [](rank_of_two& self, index_t rank) {
    if (rank == 1) { self.moved.recorder() = window_recorder{num_layers, 4, {7, 1}}; }
    self.step().or_throw();
    auto const result = self.step();
    CHECK(result.code() == errc::disagreement);
    CHECK(says(result, "rank 1 differs from rank 0 in configuration"));
    self.expect_nothing_has_changed();
  });
}

TEST_CASE("a rank that was settled otherwise than the others is found when they resume") {
  on_two_ranks({.timeout = patience}, [](rank_of_two& self, index_t rank) {
    if (rank == 1) { self.control.outcome = decision::undecided; }
    auto const applied = self.moved.apply(rotated());
    CHECK(applied.ok() == (rank == 0));
    CHECK(self.moved.state() == (rank == 0 ? rebalancer_state::recording : rebalancer_state::cohort_lost));
    if (rank == 1) {
      CHECK(self.moved.undecided_layers().size() == 2);
      self.moved.settle(decision::drop).or_throw();  // and that is wrong
      CHECK(self.moved.state() == rebalancer_state::failed);
    }
    auto const result = self.moved.resume();
    CHECK(result.code() == errc::disagreement);
    CHECK(says(result, "rank 1 differs from rank 0 in epochs"));
  });
}

TEST_CASE("a rank that learns late that the others have committed commits the same bytes and tables") {
  on_two_ranks({.timeout = patience}, [](rank_of_two& self, index_t rank) {
    if (rank == 1) { self.control.outcome = decision::undecided; }
    CHECK(self.moved.apply(rotated()).ok() == (rank == 0));
    if (rank == 1) { self.moved.settle(decision::commit).or_throw(); }
    self.control.outcome = {};
    self.moved.resume().or_throw();
    CHECK(self.moved.current() == rotated());
    CHECK(self.moved.epoch(1) == 1);
    CHECK(self.weights.first_error(self.moved.current()) == "");
    self.moved.apply(initial).or_throw();
  });
}

TEST_CASE("ranks at the same epochs with other placements are found when they resume") {
  on_two_ranks({.timeout = patience}, [](rank_of_two& self, index_t rank) {
    // Each swaps two of its own slots, so that no bytes are missed.
    self.control.blind = true;
    self.moved
        .apply(with_row(rank == 0 ? std::vector<index_t>{1, 0, 2, 3, 0, 1} : std::vector<index_t>{0, 1, 2, 0, 3, 1}))
        .or_throw();
    self.control.blind = false;
    CHECK(self.moved.epoch(0) == 1);
    auto const result = self.moved.resume();
    CHECK(result.code() == errc::disagreement);
    CHECK(says(result, "placement in force"));
  });
}

TEST_CASE("a commit that the store refuses leaves the rank lost, of layers and of shares alike") {
  on_two_ranks({.timeout = patience}, [](rank_of_two& self, index_t rank) {
    self.store.refused = rank == 1 ? 1 : -1;
    auto const result = self.moved.apply(rotated());
    CHECK(result.ok() == (rank == 0));
    if (rank == 0) { return; }
    CHECK(self.moved.state() == rebalancer_state::cohort_lost);
    CHECK(self.moved.undecided_layers().empty());
    CHECK(self.moved.settle(decision::commit).code() == errc::invalid_option);
    CHECK(self.moved.resume().message() == result.message());
  });
  on_two_ranks({.share_interval = 1, .timeout = patience}, [](rank_of_two& self, index_t rank) {
    self.store.refused = rank == 1 ? 1 : -1;
    CHECK(self.step().ok() == (rank == 0));
    CHECK(self.moved.state() == (rank == 0 ? rebalancer_state::recording : rebalancer_state::cohort_lost));
  });
}

TEST_CASE("shares change by a vote: dropped they stay, and what is undecided is settled") {
  on_two_ranks({.share_interval = 1, .timeout = patience}, [](rank_of_two& self, index_t) {
    self.control.outcome = decision::drop;
    CHECK(self.step().code() == errc::deadline_exceeded);
    CHECK(self.moved.state() == rebalancer_state::failed);
    self.expect_nothing_has_changed();
  });
  for (auto const outcome : {decision::commit, decision::drop}) {
    on_two_ranks({.share_interval = 1, .timeout = patience}, [&](rank_of_two& self, index_t) {
      self.control.outcome = decision::undecided;
      CHECK_FALSE(self.step().ok());
      CHECK(self.moved.state() == rebalancer_state::cohort_lost);
      CHECK(self.moved.undecided_layers().size() == 2);
      self.moved.settle(outcome).or_throw();
      CHECK(self.moved.current().has_shares() == (outcome == decision::commit));
      CHECK(self.moved.epoch(0) == (outcome == decision::commit ? 1 : 0));
      self.control.outcome = {};
      self.moved.resume().or_throw();
      self.step().or_throw();
      CHECK(self.moved.current().has_shares());
    });
  }
}

TEST_CASE("a refresh of shares leaves layers without a token as they are") {
  on_two_ranks({.share_interval = 1, .timeout = patience}, [](rank_of_two& self, index_t) {
    self.step().or_throw();
    self.moved.record_top_k(1, std::vector<index_t>{3, 3, 3, 3, 0, 0, 1, 1});
    self.moved.on_forward_pass_end().or_throw();
    CHECK(self.moved.epoch(1) == 2);
    CHECK(self.moved.epoch(0) == 1);
  });
}

TEST_CASE("after a resume, a rank that was behind takes no counts of passes that it has numbered otherwise") {
  on_two_ranks({.timeout = patience}, [](rank_of_two& self, index_t rank) {
    for (int call = 0; call < 3 + rank; ++call) { self.step().or_throw(); }
    self.moved.resume().or_throw();
    CHECK(self.moved.step() == 4);
    std::vector<load_t> const counts(6, 1);
    CHECK(self.moved.record_physical(0, counts, 3).ok() == (rank == 1));
    CHECK(self.moved.record_physical(0, counts, 5).ok());
  });
}

TEST_CASE("ranks that are told other topologies find out") {
  on_two_ranks({.timeout = patience}, [](rank_of_two& self, index_t rank) {
    CHECK(self.moved.set_topology(topology{{2, 1, 2, 0}}, initial).code() == errc::invalid_topology);
    auto const result = self.moved.set_topology(where, rank == 0 ? initial : rotated());
    CHECK(result.code() == errc::disagreement);
    CHECK(says(result, "rank 1 differs from rank 0 in new topology"));
    self.expect_nothing_has_changed();
  });
}

TEST_CASE("a topology comes with a placement that is one") {
  on_two_ranks({.timeout = patience}, [](rank_of_two& self, index_t) {
    auto const lost = with_row({0, 1, 2, 2, 0, 1});
    CHECK(self.moved.set_topology(where, lost).code() == errc::missing_expert);
    CHECK(self.moved.state() == rebalancer_state::recording);
    self.expect_nothing_has_changed();
  });
}

TEST_CASE("predict tells a failure of the policy, and fails where the ranks cannot add their loads up") {
  struct unable {
    [[nodiscard]] status plan(load_history_view, placement const&, topology const&, placement&) const {
      return {errc::policy_failed, "unable: no idea"};
    }
    void describe(digest& out) const { out.add(0); }
  };
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    member<unable, layers_per_chunk<>> self{where, initial, {}, layers_per_chunk{2}, me, {.timeout = patience}};
    self.moved.start().or_throw();
    prediction foreseen;
    CHECK(says(self.moved.predict(foreseen), "no idea"));
    CHECK(self.moved.state() == rebalancer_state::recording);
  });
  on_two_ranks({.timeout = patience}, [](rank_of_two& self, index_t) {
    self.control.cannot_add = true;
    prediction foreseen;
    CHECK(says(self.moved.predict(foreseen), "nobody came"));
    CHECK(self.moved.state() == rebalancer_state::failed);
    // The failure stands until all have met.
    CHECK(says(self.moved.apply(rotated()), "nobody came"));
    CHECK(says(self.moved.check_replicas(), "nobody came"));
    self.expect_nothing_has_changed();
    self.control.cannot_add = false;
    self.moved.resume().or_throw();
    self.moved.predict(foreseen).or_throw();
    self.moved.apply(rotated()).or_throw();
    CHECK(self.moved.epoch(0) == 1);
  });
}

TEST_CASE("a check of replicas that a rank does not come to fails, and nobody is lost") {
  on_two_ranks({.timeout = 200 * milliseconds}, [](rank_of_two& self, index_t rank) {
    if (rank == 0) {
      CHECK(self.moved.check_replicas().rank() == 1);
      CHECK(self.moved.state() == rebalancer_state::failed);
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds{300});
    }
    while (!self.moved.resume().ok()) {}
    self.moved.check_replicas().or_throw();
  });
}

TEST_CASE("ranks with other topologies are told so at the start") {
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    topology const mine{{2, me.rank() + 1, 3, 0}};
    member<rotate_placement, layers_per_chunk<>> self{
        mine, initial, {}, layers_per_chunk{2}, me, {.timeout = patience}};
    CHECK(says(self.moved.start(), "rank 1 differs from rank 0 in number of nodes: 2 against 1"));
  });
}

TEST_CASE("a rank whose memory cannot be read is named to all, and nothing stays exposed") {
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    noted_wire wire{me};
    if (me.rank() == 1) { wire.exposing = {errc::transport_failed, "not permitted"}; }
    {
      member<rotate_placement, layers_per_chunk<>, host_store, noted_wire> self{
          where, initial, {}, layers_per_chunk{2}, me, wire, {.timeout = patience}};
      auto const result = self.moved.start();
      CHECK(says(result, me.rank() == 1 ? "not permitted" : "rank 1 cannot make its memory readable"));
    }
    CHECK(wire.retracted == wire.exposed);
  });
}

TEST_CASE("a vote on shares that was settled is not taken for the next one, on a move") {
  on_two_ranks({.share_interval = 1, .timeout = patience}, [](rank_of_two& self, index_t) {
    self.control.outcome = decision::undecided;
    CHECK_FALSE(self.step().ok());
    self.moved.settle(decision::drop).or_throw();
    self.control.outcome = {};
    self.moved.resume().or_throw();
    self.control.outcome = decision::undecided;
    CHECK_FALSE(self.moved.apply(rotated()).ok());
    CHECK(self.moved.state() == rebalancer_state::cohort_lost);
    self.moved.settle(decision::commit).or_throw();
    CHECK(std::ranges::equal(self.moved.current().logical_of_slot(0), rotated().logical_of_slot(0)));
    CHECK(self.weights.first_error(self.moved.current()) == "");
  });
}

TEST_CASE("replicas of large tensors: both ends at the start, all of it in the background, and anew after a commit") {
  constexpr std::size_t large = std::size_t{200} << 10;
  // Expert 1 of layer 1 has its second copy in the last slot of rank 1.
  struct row {
    std::size_t byte;
    bool at_start;
  };
  for (auto const& flip : {row{0, true}, row{large - 1, true}, row{large / 2, false}}) {
    CAPTURE(flip.byte);
    in_process_group group{2};
    group.run([&](in_process_endpoint& me) {
      rank_of_two self{me, {.interval = 9, .timeout = patience, .checked_slots = 1}, {large, large}};
      if (me.rank() == 1) { self.weights.expert(1, 0, 2)[flip.byte] ^= std::byte{1}; }
      auto result = self.moved.start();
      CHECK(result.ok() != flip.at_start);
      for (int call = 0; call < 40 && result.ok(); ++call) { result = self.step(); }
      CHECK(result.code() == errc::corrupted);
      CHECK(says(result, "layer 1, expert 1"));
    });
  }
  // Shares that change in every call leave what was summed up as it is.
  in_process_group group{2};
  group.run([&](in_process_endpoint& me) {
    rank_of_two self{me, {.interval = 9, .share_interval = 1, .timeout = patience, .checked_slots = 1}, {large, large}};
    if (me.rank() == 1) { self.weights.expert(1, 0, 2)[large / 2] ^= std::byte{1}; }
    self.moved.start().or_throw();
    status result;
    for (int call = 0; call < 10 && result.ok(); ++call) {
      result = self.step(call % 2 == 0 ? std::vector<index_t>{2, 2, 2, 2, 0, 0, 1, 1}
                                       : std::vector<index_t>{3, 3, 3, 3, 0, 0, 1, 1});
    }
    CHECK(self.moved.epoch(1) >= 8);
    CHECK(result.code() == errc::corrupted);
    CHECK(says(result, "layer 1, expert 1"));
  });
  on_two_ranks({.interval = 9, .timeout = patience, .checked_slots = 9}, [](rank_of_two& self, index_t) {
    for (int call = 0; call < 5; ++call) { self.step().or_throw(); }
    self.moved.apply(rotated()).or_throw();
    for (int call = 0; call < 9; ++call) { self.step().or_throw(); }
    CHECK(self.moved.epoch(0) == 2);
  });
}

namespace {

// 0 1 2 3 | 4 5 0 1 | 2 3 4 5
topology const three{{3, 1, 4, 0}};
placement const twice = trivial_placement({num_layers, 6, 12});

topology three_without(index_t dead) {
  auto left = three;
  left.set_live(dead, false);
  return left;
}
bool has_no_share(placement const& in, index_t rank) {
  auto const first = static_cast<std::size_t>(three.first_slot(rank));
  auto const shares = in.shares(0).subspan(first, static_cast<std::size_t>(three.slots_per_rank()));
  return std::ranges::all_of(shares, [](share_t one) { return one == 0; });
}

/// Three ranks start, one is expelled, and the others resume.
/// @param start  gives a rank's member, started
template <class Start, class Body>
void on_survivors(index_t dead, Start const& start, Body const& body) {
  in_process_group group{3};
  std::vector<decltype(start(group.endpoint(0)))> ranks(3);
  group.run([&](in_process_endpoint& me) { ranks[static_cast<std::size_t>(me.rank())] = start(me); });
  group.expel(dead);
  group.run([&](in_process_endpoint& me) {
    if (me.rank() == dead) { return; }
    auto& self = *ranks[static_cast<std::size_t>(me.rank())];
    self.moved.resume().or_throw();
    body(self);
  });
}
/// For `on_survivors`: without a plan of its own.
template <class Store = host_store>
auto start_on(rebalancer_options const& options) {
  return [options](in_process_endpoint& me) {
    using rank_of_three = member<keep_placement, layers_per_chunk<>, Store>;
    auto self = std::make_unique<rank_of_three>(three, twice, keep_placement{}, layers_per_chunk{2}, me, options);
    self->moved.start().or_throw();
    return self;
  };
}

}  // namespace

TEST_CASE("a topology that one rank's store refuses is in force nowhere, and every store has the old one back") {
  topology const ranks{{3, 1, 2, 0}};
  auto const held = trivial_placement({1, 2, 6});
  auto const start = [&](in_process_endpoint& me) {
    using rank_of_three = member<rotate_placement, layers_per_chunk<>, refusing_store>;
    auto self = std::make_unique<rank_of_three>(ranks, held, rotate_placement{}, layers_per_chunk{1}, me,
                                                rebalancer_options{.timeout = patience});
    self->moved.start().or_throw();
    self->store.stays = me.rank() == 2;
    return self;
  };
  on_survivors(1, start, [&](auto& self) {
    auto without = ranks;
    without.set_live(1, false);
    auto const result = self.moved.set_topology(without, held);
    CHECK(result.code() == errc::out_of_memory);
    CHECK(result.rank() == (self.moved.rank() == 2 ? status::no_rank : 2));
    CHECK(self.moved.state() == rebalancer_state::failed);
    CHECK(self.moved.where().is_live(1));
    CHECK(self.moved.epoch(0) == 0);
    CHECK(self.store.told_live == std::vector<bool>{false, true});
    self.store.stays = false;
    self.moved.resume().or_throw();
    self.moved.set_topology(without, held).or_throw();
    CHECK_FALSE(self.moved.where().is_live(1));
    CHECK(self.moved.epoch(0) == 1);
  });
}

TEST_CASE("survivors go on with another topology, at another epoch, and move among themselves") {
  on_survivors(2, start_on({.timeout = patience}), [](auto& self) {
    // Nothing moves before the topology knows.
    auto const early = self.moved.apply(trivial_placement({num_layers, 6, 12}));
    CHECK(early.code() == errc::invalid_topology);
    CHECK(early.message() ==
          "rebalancer: rank 2 was expelled and the topology still has it alive: resume and set_topology are due");
    CHECK(early.rank() == 2);
    self.moved.resume().or_throw();
    self.moved.set_topology(three_without(2), twice).or_throw();
    CHECK_FALSE(self.moved.where().is_live(2));
    CHECK(self.moved.epoch(0) == 1);
    CHECK(self.store.epoch(1) == 1);
    CHECK(self.log.layers_of("commit") == std::vector<std::vector<index_t>>{{0, 1}});
    // What the dead rank held takes no tokens, whatever was given.
    CHECK(has_no_share(self.moved.current(), 2));
    placement lossy = twice;
    lossy.edit(0).logical_of_slot[2] = 0;  // expert 2 would be left on the dead rank only
    lossy.index_replicas(0);
    auto const refused = self.moved.apply(lossy);
    CHECK(refused.code() == errc::missing_expert);
    CHECK(refused.message() == "apply: placement: layer 0: no live rank holds expert 2");
    placement target = twice;
    target.edit(0).logical_of_slot[8] = 5;  // a dead rank's slots stay as they are
    auto const row = target.edit(0).logical_of_slot;
    std::swap(row[0], row[4]);
    target.index_replicas(0);
    self.moved.apply(target).or_throw();
    CHECK(self.moved.epoch(0) == 2);
    CHECK(self.moved.current().logical_of_slot(0)[8] == 2);
    CHECK(has_no_share(self.moved.current(), 2));
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("a layer that moves by waypoints leaves no share on a dead rank on the way") {
  /// With room for one expert.
  struct tight_store : host_store {
    tight_store(topology const& ranks, index_t layers) : host_store{ranks, layers, 512} {}
    status commit(index_t layer, std::span<byte_copy const> copies, placement const& tables, epoch_t epoch) {
      ++commits;
      CHECK(tables.has_shares());
      CHECK(has_no_share(tables, 2));
      return host_store::commit(layer, copies, tables, epoch);
    }
    int commits = 0;
  };
  on_survivors(2, start_on<tight_store>({.timeout = patience}), [](auto& self) {
    self.moved.set_topology(three_without(2), twice).or_throw();
    placement target = twice;
    auto const row = target.edit(0).logical_of_slot;
    std::swap(row[2], row[4]);
    std::swap(row[3], row[5]);
    target.index_replicas(0);
    self.store.commits = 0;
    self.moved.apply(target).or_throw();
    CHECK(self.store.commits > 1);
    CHECK(has_no_share(self.moved.current(), 2));
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("where rank 0 is dead the plan of the first live rank is adopted") {
  struct differs {
    index_t every;
    status plan(load_history_view, placement const& current, topology const&, placement& next) const {
      next = current;
      next.drop_shares();
      for (index_t layer = 0; layer < next.num_layers(); ++layer) {
        auto const row = next.edit(layer).logical_of_slot;
        std::swap(row[4], row[static_cast<std::size_t>(8 + every)]);
        next.index_replicas(layer);
      }
      return {};
    }
    [[nodiscard]] constexpr relabel_scope interchangeable() const noexcept { return relabel_scope::none; }
    void describe(digest& out) const { out.add(std::string_view{"differs"}); }
  };
  auto const start = [](in_process_endpoint& me) {
    auto self = std::make_unique<member<differs, layers_per_chunk<>>>(
        three, twice, differs{me.rank()}, layers_per_chunk{num_layers}, me,
        rebalancer_options{.interval = 1, .timeout = patience, .adopt_first_plan = true});
    self->moved.start().or_throw();
    return self;
  };
  on_survivors(0, start, [](auto& self) {
    self.moved.set_topology(three_without(0), twice).or_throw();
    for (int call = 0; call < 2; ++call) {
      for (index_t layer = 0; layer < num_layers; ++layer) {
        self.moved.record_top_k(layer, std::vector<index_t>{0, 1, 2});
      }
      self.moved.on_forward_pass_end().or_throw();
    }
    CHECK(self.moved.current().logical_of_slot(0)[4] == 3);  // rank 1's choice
    CHECK(self.moved.current().logical_of_slot(0)[9] == 4);
    CHECK(has_no_share(self.moved.current(), 0));  // which the policy left to all replicas
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("what stands in for an expelled rank is compared with nothing before the topology knows") {
  // By the call for it, by the first step of a cycle, and by the one that refreshes shares.
  for (auto const& options : {rebalancer_options{.timeout = patience},
                              rebalancer_options{.interval = 1, .timeout = patience, .checked_slots = 9},
                              rebalancer_options{.interval = 9, .share_interval = 1, .timeout = patience}}) {
    CAPTURE(options.interval);
    on_survivors(2, start_on(options), [&](auto& self) {
      status result;
      for (int call = 0; call < 3 && result.ok(); ++call) {
        result = options.interval > 9 ? self.moved.check_replicas() : self.moved.on_forward_pass_end({.tokens = 1});
      }
      CHECK(result.code() == errc::invalid_topology);
      CHECK(result.rank() == 2);
      self.moved.resume().or_throw();
      self.moved.set_topology(three_without(2), twice).or_throw();
      CHECK(self.moved.check_replicas().ok());
    });
  }
}

TEST_CASE("a start, and a prediction, are refused while a rank that was expelled counts as alive") {
  in_process_group group{3};
  group.expel(2);
  group.run([](in_process_endpoint& me) {
    if (me.rank() == 2) { return; }
    using rank_of_three = member<keep_placement, layers_per_chunk<>>;
    rank_of_three early{three, twice, {}, layers_per_chunk{2}, me, {.timeout = patience}};
    auto const refused = early.moved.start();
    CHECK(refused.code() == errc::invalid_topology);
    CHECK(refused.message() ==
          "rebalancer: rank 2 was expelled and the topology still has it alive: mark it as dead "
          "there, topology::set_live");
    CHECK(refused.rank() == 2);
    rank_of_three self{three_without(2), twice, {}, layers_per_chunk{2}, me, {.timeout = patience}};
    self.moved.start().or_throw();
    prediction foreseen;
    CHECK(self.moved.predict(foreseen).ok());
  });
  on_survivors(2, start_on({.timeout = patience}), [](auto& self) {
    prediction foreseen;
    auto const refused = self.moved.predict(foreseen);
    CHECK(refused.code() == errc::invalid_topology);
    CHECK(refused.rank() == 2);
    self.moved.resume().or_throw();
    self.moved.set_topology(three_without(2), twice).or_throw();
    CHECK(self.moved.predict(foreseen).ok());
  });
}

TEST_CASE("a control plane on an engine's channel tells of expelled ranks too") {
  struct channel {
    in_process_endpoint* wire;
    status operator()(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all, nanoseconds_t timeout) const {
      return wire->all_gather(mine, all, timeout);
    }
  };
  struct members {
    in_process_endpoint* wire;
    std::uint64_t operator()() const { return wire->membership(); }
  };
  using plane = engine_control<channel, members>;
  using rank_of_three = member<keep_placement, layers_per_chunk<>, host_store, in_process_endpoint, plane>;
  std::vector<std::unique_ptr<plane>> planes(3);
  auto const start = [&planes](in_process_endpoint& me) {
    auto& own = planes[static_cast<std::size_t>(me.rank())];
    own = std::make_unique<plane>(me.rank(), 3, channel{&me}, engine_control_options{}, members{&me});
    auto self = std::make_unique<rank_of_three>(three, twice, keep_placement{}, layers_per_chunk{2}, *own, me,
                                                rebalancer_options{.timeout = patience});
    self->moved.start().or_throw();
    CHECK_FALSE(own->is_expelled(2));
    return self;
  };
  on_survivors(2, start, [](auto& self) {
    auto const early = self.moved.check_replicas();
    CHECK(early.code() == errc::invalid_topology);
    CHECK(early.rank() == 2);
    self.moved.resume().or_throw();
    CHECK(self.moved.apply(twice).code() == errc::invalid_topology);
    self.moved.resume().or_throw();
    self.moved.set_topology(three_without(2), twice).or_throw();
    CHECK(self.moved.check_replicas().ok());
  });
}

TEST_CASE("start puts the tables in force that the weights were loaded with") {
  on_two_ranks({.timeout = patience}, [](rank_of_two& self, index_t) {
    CHECK(self.store.published() == initial);
    CHECK(self.store.is_published(1));
    CHECK(self.store.epoch(1) == 0);
  });
}

TEST_CASE("ranks with recorders of another kind are told that they are") {
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    patterned_weights weights{where, me.rank(), initial, {{16, 16}}};
    host_store store{where, num_layers};
    weights.add_to(store);
    auto const start = [&](auto recorder) {
      rebalancer moved{where, initial,
                       rebalancing{std::move(recorder), keep_placement{}, layers_per_chunk{}, {.timeout = patience}},
                       store, me};
      return moved.start();
    };
    auto const result =
        me.rank() == 0 ? start(window_recorder{num_layers, 4, {1, 1}}) : start(decay_recorder{num_layers, 4});
    CHECK(result.code() == errc::disagreement);
    CHECK(says(result, "rank 1 differs from rank 0 in kinds of recorder, policy and schedule"));
  });
}

TEST_CASE("while layers move, counts of one that has not moved yet are those of the map in force") {
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    member<rotate_placement, layers_per_chunk<>> self{
        where, initial, {}, layers_per_chunk{1}, me, {.interval = 1, .timeout = patience}};
    self.moved.start().or_throw();
    for (int call = 0; call < 3; ++call) { self.moved.on_forward_pass_end().or_throw(); }
    REQUIRE(self.moved.state() == rebalancer_state::moving);
    REQUIRE(self.moved.epoch(0) == 1);
    REQUIRE(self.moved.epoch(1) == 0);
    std::vector<load_t> const by_slot{7, 0, 0, 0, 0, 0};
    self.moved.record_physical(0, by_slot).or_throw();  // its first slot holds expert 1 now
    self.moved.record_physical(1, by_slot).or_throw();  // and that of this layer expert 0 still
    auto& recorder = self.moved.recorder();
    recorder.end_pass(true);
    std::vector<load_t> history(std::size_t{2} * 4);
    recorder.history(history).or_throw();
    CHECK(history == std::vector<load_t>{0, 7, 0, 0, 7, 0, 0, 0});
  });
}

TEST_CASE("a rank that missed the outcome of a vote asks for it") {
  for (auto const recalled : {decision::commit, decision::drop}) {
    on_two_ranks({.timeout = patience}, [&](rank_of_two& self, index_t) {
      self.control.outcome = decision::undecided;
      self.control.recalled = recalled;
      CHECK(self.moved.apply(rotated()).ok() == (recalled == decision::commit));
      CHECK(self.moved.state() ==
            (recalled == decision::commit ? rebalancer_state::recording : rebalancer_state::failed));
      CHECK(self.moved.epoch(0) == (recalled == decision::commit ? 1 : 0));
    });
  }
}

TEST_CASE("no tag is used twice, whatever a rebalancer does and whoever comes after it") {
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    noted_wire wire{me};
    for (int model = 0; model < 2; ++model) {
      member<rotate_placement, layers_per_chunk<>, host_store, noted_wire> self{
          where, initial, {}, layers_per_chunk{1}, me, wire, {.interval = 1, .timeout = patience}};
      self.moved.start().or_throw();
      for (int call = 0; call < 12; ++call) { self.moved.on_forward_pass_end().or_throw(); }
      self.moved.resume().or_throw();
      self.moved.apply(initial).or_throw();
      self.moved.apply(rotated()).or_throw();
    }
    CHECK(wire.tags.size() > 8);
    std::ranges::sort(wire.tags);
    CHECK(std::ranges::adjacent_find(wire.tags) == wire.tags.end());
  });
}

TEST_CASE("regions have the same numbers on every rank, those of no one else, and are taken back in the end") {
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    noted_wire wire{me};
    wire.used = me.rank() == 0 ? 3 : 8;
    {
      member<rotate_placement, layers_per_chunk<>, host_store, noted_wire> self{
          where, initial, {}, layers_per_chunk{2}, me, wire, {.timeout = patience}};
      self.moved.start().or_throw();
      CHECK(wire.exposed == std::vector<std::uint32_t>{8});
      self.moved.apply(rotated()).or_throw();
      CHECK(self.moved.epoch(0) == 1);
      CHECK(wire.retracted.empty());
    }
    for (auto const region : wire.regions) { CHECK(region >= 8); }
    CHECK(wire.retracted == std::vector<std::uint32_t>{8});
  });
  // Weights of another layout on one rank: what was exposed before a start fails is taken back too.
  group.run([](in_process_endpoint& me) {
    noted_wire wire{me};
    member<rotate_placement, layers_per_chunk<>, host_store, noted_wire> self{
        where, initial, {}, layers_per_chunk{2}, me, wire, {.timeout = patience}};
    if (me.rank() == 1) { self.weights.expert(1, 0, 2)[0] ^= std::byte{1}; }
    CHECK(self.moved.start().code() == errc::corrupted);
    CHECK(wire.exposed.size() == 1);
    CHECK(wire.retracted == wire.exposed);
  });
}

TEST_CASE("a rank that fails while all record is heard of by the others, at their next calls") {
  on_two_ranks({.interval = 1'000'000, .timeout = patience}, [](rank_of_two& self, index_t rank) {
    status result;
    if (rank == 1) {
      self.moved.record_top_k(99, std::vector<index_t>{1});
      result = self.moved.on_forward_pass_end();
    }
    for (int call = 0; call < 5000 && result.ok(); ++call) {
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
      result = self.moved.on_forward_pass_end();
    }
    CHECK_FALSE(result.ok());
    CHECK(says(result, "layer 99"));
    CHECK(self.moved.state() == rebalancer_state::failed);
    if (rank == 0) { CHECK(result.rank() == 1); }
    self.moved.resume().or_throw();
    CHECK(self.moved.state() == rebalancer_state::recording);
  });
}

TEST_CASE("a rank that cannot take its part of a layer that arrives over several steps ends the first of them") {
  struct one_move_a_step : layers_per_chunk<> {
    [[nodiscard]] std::int64_t step_bytes() const noexcept { return 1; }
  };
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    member<rotate_placement, one_move_a_step, hooked_store> self{
        where, trivial_placement({num_layers, 6, 6}), {}, one_move_a_step{}, me, {.interval = 1, .timeout = patience}};
    self.store.out_of_memory = [&] { return me.rank() == 1; };
    self.moved.start().or_throw();
    for (int call = 0; call < 2; ++call) { self.moved.on_forward_pass_end().or_throw(); }
    REQUIRE(self.moved.state() == rebalancer_state::moving);
    CHECK_FALSE(self.moved.on_forward_pass_end().ok());
    CHECK(self.moved.state() == rebalancer_state::failed);
  });
}

TEST_CASE(
    "a start that ended by an exception is no failure of the next one, and tensors that come after it are refused") {
  struct frail_store : host_store {
    using host_store::host_store;
    bool throws = false;
    void describe(digest& out) const {
      if (throws) { throw std::bad_alloc{}; }
      host_store::describe(out);
    }
  };
  in_process_group group{2};
  group.run([](in_process_endpoint& me) {
    member<keep_placement, layers_per_chunk<>, frail_store> self{
        where, initial, {}, layers_per_chunk{1}, me, {.timeout = patience}};
    self.store.throws = me.rank() == 1;
    CHECK_FALSE(self.moved.start(200 * milliseconds).ok());
    self.store.throws = false;
    self.moved.start().or_throw();
    CHECK(self.moved.state() == rebalancer_state::recording);
    self.moved.on_forward_pass_end({.tokens = 1}).or_throw();
    self.moved.apply(rotated()).or_throw();
    CHECK(self.first_error() == "");
    std::vector<std::byte> late(static_cast<std::size_t>(where.slots_per_rank()) * 8);
    self.store.add(0, "late", late.data(), 8).or_throw();
    auto const refused = self.moved.apply(initial);
    CHECK(refused.code() == errc::invalid_weights);
    CHECK(says(refused, "added to the store after start"));
    CHECK(self.moved.current() == rotated());
  });
}
