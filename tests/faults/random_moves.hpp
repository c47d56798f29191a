// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_RANDOM_MOVES_HPP
#define BALLAST_TESTS_FAULTS_RANDOM_MOVES_HPP

#include <ballast/digest.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "support/group_runner.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_test {

/// Draws placements in which every expert has two replicas on different ranks, so that no single death loses one: all
/// slots anew, or one exchange of two experts a layer. Once ranks are dead it turns the slots of the others round. The
/// draw depends on the placement in force, so all ranks draw alike, and every layer changes.
struct random_moves {
  static constexpr bool follows_loads = true;

  bool few = false;               ///< one exchange a layer
  bool* deviates_next = nullptr;  ///< true: this rank plans something else, once

  [[nodiscard]] ballast::status plan(ballast::load_history_view, ballast::placement const& current,
                                     ballast::topology const& where, ballast::placement& next) const {
    ballast::digest seen;
    current.describe(seen);
    dice random{seen.value()};
    next = current;
    next.drop_shares();
    for (ballast::index_t layer = 0; layer < current.num_layers(); ++layer) { change(layer, where, random, next); }
    if (deviates_next != nullptr && std::exchange(*deviates_next, false)) {
      auto const map = next.edit(0).logical_of_slot;
      std::swap(map.front(), map[static_cast<std::size_t>(where.slots_per_rank()) - 1]);
      next.index_replicas(0);
    }
    ballast::detail::finish_plan(current, where, next);
    return {};
  }
  [[nodiscard]] ballast::status validate() const { return {}; }
  // Every layer changes, if only by the order of its slots.
  [[nodiscard]] constexpr ballast::relabel_scope interchangeable() const noexcept {
    return ballast::relabel_scope::none;
  }
  void describe(ballast::digest& out) const { out.add(std::string_view{"random_moves"}).add(few); }

  [[nodiscard]] static ballast::placement first(ballast::topology const& where, ballast::index_t num_layers,
                                                std::uint64_t seed) {
    ballast::placement result;
    result.resize({num_layers, where.num_slots() / 2, where.num_slots()});
    dice random{seed};
    for (ballast::index_t layer = 0; layer < num_layers; ++layer) {
      draw(where, random, result.edit(layer).logical_of_slot);
      result.index_replicas(layer);
    }
    return result;
  }

private:
  using row = std::span<ballast::index_t>;

  void change(ballast::index_t layer, ballast::topology const& where, dice& random, ballast::placement& next) const {
    auto const map = next.edit(layer).logical_of_slot;
    if (where.num_live_ranks() < where.num_ranks()) {
      turn_live_slots(where, random, map);
    } else if (!few || !exchange_two(where, random, map)) {
      draw(where, random, map);
    }
    next.index_replicas(layer);
  }

  static void shuffle(std::vector<ballast::index_t>& items, dice& random) {
    for (std::size_t i = items.size(); i > 1; --i) { std::swap(items[i - 1], items[random.below(i)]); }
  }
  static std::vector<ballast::index_t> count_to(ballast::index_t end) {
    std::vector<ballast::index_t> ids(static_cast<std::size_t>(end));
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
  }
  [[nodiscard]] static row slots_of(ballast::topology const& where, ballast::index_t rank, row map) {
    return map.subspan(static_cast<std::size_t>(where.first_slot(rank)),
                       static_cast<std::size_t>(where.slots_per_rank()));
  }
  [[nodiscard]] static bool holds(row slots, ballast::index_t expert) {
    return std::ranges::find(slots, expert) != slots.end();
  }

  // The ranks in random order hold all experts once, then once more.
  static void draw(ballast::topology const& where, dice& random, row map) {
    auto ranks = count_to(where.num_ranks());
    auto experts = count_to(where.num_slots() / 2);
    do {
      shuffle(ranks, random);
      shuffle(experts, random);
      auto again = experts;
      shuffle(again, random);
      again.insert(again.begin(), experts.begin(), experts.end());
      auto from = again.begin();
      for (auto const rank : ranks) {
        auto const to = slots_of(where, rank, map);
        std::copy_n(from, to.size(), to.begin());
        from += static_cast<std::ptrdiff_t>(to.size());
      }
    } while (has_twins(where, map));
  }
  [[nodiscard]] static bool has_twins(ballast::topology const& where, row map) {
    for (ballast::index_t rank = 0; rank < where.num_ranks(); ++rank) {
      auto const slots = slots_of(where, rank, map);
      std::vector<ballast::index_t> held{slots.begin(), slots.end()};
      std::ranges::sort(held);
      if (std::ranges::adjacent_find(held) != held.end()) { return true; }
    }
    return false;
  }

  [[nodiscard]] static bool exchange_two(ballast::topology const& where, dice& random, row map) {
    for (int attempt = 0; attempt < 200; ++attempt) {
      auto const a = slots_of(where, random.below(where.num_ranks()), map);
      auto const b = slots_of(where, random.below(where.num_ranks()), map);
      auto& first = a[random.below(a.size())];
      auto& second = b[random.below(b.size())];
      if (a.data() == b.data() || holds(a, second) || holds(b, first)) { continue; }
      std::swap(first, second);
      return true;
    }
    return false;
  }
  static void turn_live_slots(ballast::topology const& where, dice& random, row map) {
    std::vector<ballast::index_t> held;
    for (ballast::index_t slot = 0; slot < where.num_slots(); ++slot) {
      if (where.is_live(where.rank_of_slot(slot))) { held.push_back(map[static_cast<std::size_t>(slot)]); }
    }
    auto const by = 1 + random.below(std::min<std::ptrdiff_t>(where.slots_per_rank(), 3));
    std::rotate(held.begin(), held.begin() + by, held.end());
    auto from = held.begin();
    for (ballast::index_t slot = 0; slot < where.num_slots(); ++slot) {
      if (where.is_live(where.rank_of_slot(slot))) { map[static_cast<std::size_t>(slot)] = *from++; }
    }
  }
};

static_assert(ballast::placement_policy<random_moves>);

}  // namespace ballast_test

#endif
