// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Random pairs of placements over mixed shapes, moved with real bytes and judged: the plan is valid, rounds are as few
// as possible, every slot ends up right, staging stays within what was computed, and no byte crosses nodes without
// need.
//
//   BALLAST_PAIRS=100000 build/release/tests/test.runtime.random_pairs
#include <ballast/detail/clock.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/runtime/detail/layer_mover.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/patterned_weights.hpp"
#include "../support/random.hpp"
#include "../support/transfers.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

constexpr nanoseconds_t milliseconds = 1'000'000;
constexpr nanoseconds_t patience = 30'000 * milliseconds;

using rank_store = poisoning_store<host_store>;
using rank_mover = detail::layer_mover<in_process_endpoint, rank_store>;

struct pair_shape {
  topology_shape where;
  index_t num_logical;
};

// SGLang's rule, written down independently: a rank that lacks an expert takes it from its node when a rank there has
// it. The number of experts that cross nodes when a layer goes from one map to another.
// With relays it counts a node once.
index_t peers_crossings(topology const& where, placement const& from, placement const& to, bool once_per_node) {
  index_t crossings = 0;
  for (index_t expert = 0; expert < from.num_logical(); ++expert) {
    std::vector<index_t> served;
    for (auto const slot : to.replicas_of(0, expert)) {
      auto const node = where.node_of_slot(slot);
      auto const on_node = [&](index_t s) { return where.node_of_slot(s) == node; };
      auto const needer = once_per_node ? node : where.rank_of_slot(slot);
      if (std::ranges::none_of(from.replicas_of(0, expert), on_node) &&
          std::ranges::find(served, needer) == served.end()) {
        served.push_back(needer);
        ++crossings;
      }
    }
  }
  return crossings;
}

// All ranks of a group, driven by one thread: nothing here waits.
class group_of_ranks {
public:
  group_of_ranks(pair_shape const& shape, detail::transfer_limits limits, transfer_options options)
      : where_{shape.where},
        options_{options},
        group_{shape.where.num_ranks},
        current_{trivial_placement({1, shape.num_logical, where_.num_slots()})} {
    for (index_t rank = 0; rank < where_.num_ranks(); ++rank) {
      weights_.push_back(std::make_unique<patterned_weights>(where_, rank, current_,
                                                             std::vector<tensor_shape>{{61, 61}, {16, 40}, {3, 7}}));
      stores_.push_back(std::make_unique<rank_store>(where_, 1));
      weights_.back()->add_to(*stores_.back());
      movers_.push_back(std::make_unique<rank_mover>(where_, rank, group_.endpoint(rank), *stores_.back(), limits));
    }
  }

  [[nodiscard]] topology const& where() const { return where_; }
  [[nodiscard]] placement const& current() const { return current_; }

  /// Move to another placement; what went wrong, empty when nothing did.
  std::string move_to(placement const& target, std::uint64_t pair) {
    layer_transfer transfer;
    plan_layer_transfer(where_, current_, target, 0, scratch_, transfer, options_).or_throw();
    if (auto flaw = first_flaw(where_, current_, target, transfer); !flaw.empty()) { return flaw; }
    index_t crossings = 0;
    for (auto const& move : transfer.moves) {
      auto const sender = sender_of(where_, transfer, move);
      crossings += where_.node_of_rank(sender) != where_.node_of_slot(move.target_slot) ? 1 : 0;
    }
    if (crossings > peers_crossings(where_, current_, target, options_.relay)) {
      return "more bytes cross nodes than by the peers' rule";
    }

    layer_transfer const* const group[] = {&transfer};
    for (auto& mover : movers_) {
      mover->open(group, pair << 24).or_throw();
      mover->begin_receive(0, mover->num_rounds(), patience);
    }
    for (std::size_t arrived = 0; arrived < movers_.size();) {
      arrived = 0;
      for (auto& mover : movers_) {
        mover->poll();
        mover->failure().or_throw();
        arrived += mover->arrived() ? 1u : 0u;
      }
    }
    std::vector<index_t> staged(movers_.size());
    detail::staged_experts(where_, transfer, staged);
    auto const place = detail::size_of_expert(stores_[0]->tensors(0)).staged;
    for (std::size_t r = 0; r < movers_.size(); ++r) {
      most_staged_[r] = std::max(most_staged_[r], static_cast<std::size_t>(staged[r]) * place);
      if (stores_[r]->staging_high_water() > most_staged_[r]) {
        return detail::concat("rank ", r, " staged more than was computed");
      }
      movers_[r]->commit(0, target, 1).or_throw();
      if (auto error = weights_[r]->first_error(target); !error.empty()) {
        return detail::concat("rank ", r, ": ", error);
      }
    }
    current_ = target;
    return {};
  }

private:
  topology where_;
  transfer_options options_;
  in_process_group group_;
  placement current_;
  std::vector<std::unique_ptr<patterned_weights>> weights_;
  std::vector<std::unique_ptr<rank_store>> stores_;
  std::vector<std::unique_ptr<rank_mover>> movers_;
  std::vector<std::size_t> most_staged_ = std::vector<std::size_t>(static_cast<std::size_t>(where_.num_ranks()));
  detail::transfer_scratch scratch_;
};

int pairs_wanted() {
  char const* const text = std::getenv("BALLAST_PAIRS");
  return text == nullptr ? 600 : std::atoi(text);
}

// Is done before it says so, as a batch is that ends between `poll` and `wait`.
class shy_endpoint {
public:
  explicit shy_endpoint(in_process_endpoint& inner) : inner_{&inner} {}

  [[nodiscard]] index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return inner_->num_ranks(); }
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    return inner_->start(sends, receives);
  }
  [[nodiscard]] transfer_state poll() {
    auto const state = inner_->poll();
    return state == transfer_state::done ? transfer_state::pending : state;
  }
  [[nodiscard]] status wait(nanoseconds_t timeout) { return inner_->wait(timeout); }

private:
  in_process_endpoint* inner_;
};

}  // namespace

TEST_CASE("random pairs of placements move right") {
  pair_shape const shapes[] = {
      {{8, 1, 2, 0}, 2},      {{8, 2, 1, 0}, 5},     {{8, 4, 2, 0}, 16},    {{8, 1, 36, 0}, 256}, {{12, 3, 3, 0}, 20},
      {{16, 2, 9, 0}, 128},   {{32, 4, 9, 0}, 256},  {{32, 4, 13, 1}, 384}, {{64, 8, 5, 0}, 256}, {{72, 9, 4, 0}, 256},
      {{144, 18, 2, 0}, 256}, {{128, 8, 8, 0}, 512}, {{3, 1, 7, 0}, 20},    {{1, 1, 5, 0}, 3}};
  detail::transfer_limits const limits[] = {
      {}, {.message_bytes = 29}, {.rounds_per_batch = 2}, {.message_bytes = 50, .rounds_per_batch = 1}};
  generator random{2024};
  auto const num_shapes = static_cast<int>(std::size(shapes));
  std::uint64_t pair = 0;
  for (int i = 0; i < num_shapes; ++i) {
    CAPTURE(i);
    auto const& shape = shapes[i];
    group_of_ranks ranks{shape, limits[i % 4], {.relay = i % 2 == 1}};
    placement_shape const sizes{1, shape.num_logical, ranks.where().num_slots()};
    for (int left = (pairs_wanted() + num_shapes - 1) / num_shapes; left > 0; --left) {
      auto const target = left % 3 == 0 ? random_placement(sizes, random) : nudged_placement(ranks.current(), random);
      REQUIRE(ranks.move_to(target, ++pair) == "");
    }
  }
  MESSAGE(pair << " pairs moved");
}

TEST_CASE("a batch that ends when its time is over is not taken for the last one") {
  topology const where{{2, 1, 3, 0}};
  auto const from = trivial_placement({1, 6, 6});
  placement to;
  to.assign(from.shape(), std::vector<index_t>{3, 4, 5, 0, 1, 2}).or_throw();
  layer_transfer transfer;
  detail::transfer_scratch scratch;
  plan_layer_transfer(where, from, to, 0, scratch, transfer).or_throw();
  REQUIRE(transfer.num_rounds == 3);

  struct member {
    member(topology const& all, placement const& holds, in_process_endpoint& endpoint)
        : weights{all, endpoint.rank(), holds, {{16, 16}}},
          store{all, 1},
          wires{endpoint},
          mover{all, endpoint.rank(), wires, store, {.rounds_per_batch = 1}} {
      weights.add_to(store);
    }
    patterned_weights weights;
    rank_store store;
    shy_endpoint wires;
    detail::layer_mover<shy_endpoint, rank_store> mover;
  };
  auto const timeout = 100 * milliseconds;
  in_process_group group{2};
  member first{where, from, group.endpoint(0)};
  member second{where, from, group.endpoint(1)};
  layer_transfer const* const layers[] = {&transfer};
  for (auto* const self : {&first, &second}) {
    self->mover.open(layers, 0).or_throw();
    self->mover.begin_receive(0, 3, timeout);
  }
  auto const start = detail::now();
  while (!(first.mover.arrived() && second.mover.arrived())) {
    REQUIRE(detail::now() - start < patience);
    for (auto* const self : {&first, &second}) {
      self->mover.poll();
      self->mover.failure().or_throw();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
  CHECK(detail::now() - start >= 3 * timeout);  // each of three batches has ended because its time was over
  for (auto* const self : {&first, &second}) {
    self->mover.commit(0, to, 1).or_throw();
    CHECK(self->weights.first_error(to) == "");
  }
}
