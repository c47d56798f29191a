// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_HEADROOM_HEADROOM_PLANNER_HPP
#define BALLAST_POLICIES_DETAIL_HEADROOM_HEADROOM_PLANNER_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/wide_int.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The options of `headroom_placement`; see there.
struct headroom_limits {
  index_t id_blocks = 8;
  index_t tolerance_ppm = 50;
  index_t exchanges = 256;
  index_t even_tolerance_ppm = 10'000;
};

/// Plans layer after layer with the same scratch memory.
class headroom_planner {
public:
  headroom_planner(topology const& where, index_t num_logical, headroom_limits const& limits)
      : where_{where},
        limits_{limits},
        id_blocks_{std::min(limits.id_blocks, num_logical)},
        loads_(static_cast<std::size_t>(num_logical)),
        order_(loads_.size()),
        counts_(loads_.size()),
        rank_of_(loads_.size()),
        slot_of_(loads_.size()),
        block_of_(loads_.size()),
        given_up_(loads_.size()),
        live_ranks_{live_ranks(where)} {
    auto const ranks = live_ranks_.size();
    filled_.resize(ranks);
    even_load_.resize(ranks);
    rank_load_.resize(ranks);
    block_load_.resize(ranks * static_cast<std::size_t>(id_blocks_));
    near_load_.resize(block_load_.size());
    part_of_.resize(ranks);
    for (index_t expert = 0; expert < num_logical; ++expert) {
      at(block_of_, expert) = static_cast<index_t>(std::int64_t{expert} * id_blocks_ / num_logical);
    }
  }

  /// `[E]` tokens to plan for, to be filled in.
  [[nodiscard]] std::span<load_t> loads() noexcept { return loads_; }
  /// Spare slots go by the tokens, as they do at first.
  void weigh_by_tokens() noexcept { weights_.clear(); }
  /// `[E]` what spare slots go by instead, to be filled in.
  [[nodiscard]] std::span<load_t> weights() {
    weights_.resize(loads_.size());
    return weights_;
  }

  /// Fill the live slots of one layer in. `out` holds any valid ids elsewhere.
  [[nodiscard]] status plan_layer(index_t layer, std::span<index_t> out) {
    plan_even_layer(layer, out);
    return num_logical() <= where_.slots_per_rank() ? status{} : exchange(out);
  }
  /// The same for even shares alone.
  void plan_even_layer(index_t layer, std::span<index_t> out) {
    if (num_logical() <= where_.slots_per_rank()) {
      hold_everything(out);
      return;
    }
    clear();
    count_replicas();
    for (auto const expert : order_) {
      if (count(expert) > 1) { spread(expert, layer, out); }
    }
    for (auto const expert : order_) {
      if (count(expert) == 1) { put_single(expert, out); }
    }
    exchange_even(out);
  }

private:
  [[nodiscard]] index_t num_logical() const noexcept { return static_cast<index_t>(loads_.size()); }
  [[nodiscard]] index_t num_ranks() const noexcept { return static_cast<index_t>(live_ranks_.size()); }
  [[nodiscard]] index_t& count(index_t expert) { return at(counts_, expert); }
  [[nodiscard]] index_t block_of(index_t expert) const { return at(block_of_, expert); }
  [[nodiscard]] load_t& block_load(index_t rank, index_t expert) {
    return at(block_load_, rank * id_blocks_ + block_of(expert));
  }

  void hold_everything(std::span<index_t> out) {
    for (auto const rank : live_ranks_) {
      for (index_t i = 0; i < where_.slots_per_rank(); ++i) {
        out[static_cast<std::size_t>(where_.first_slot(rank) + i)] = i % num_logical();
      }
    }
  }
  static void sort_descending(std::vector<index_t>& order, std::vector<load_t> const& loads) {
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&loads](index_t a, index_t b) {
      return at(loads, a) != at(loads, b) ? at(loads, a) > at(loads, b) : a < b;
    });
  }
  void clear() {
    sort_descending(order_, loads_);
    by_weight_ = order_;
    if (!weights_.empty()) { sort_descending(by_weight_, weights_); }
    std::fill(counts_.begin(), counts_.end(), 1);
    std::fill(filled_.begin(), filled_.end(), 0);
    std::fill(rank_load_.begin(), rank_load_.end(), load_t{0});
    std::fill(block_load_.begin(), block_load_.end(), load_t{0});
    std::fill(near_load_.begin(), near_load_.end(), load_t{0});
    shared_.assign(live_ranks_.size() * live_ranks_.size(), 0);
    std::iota(part_of_.begin(), part_of_.end(), 0);
  }

  [[nodiscard]] index_t num_spare() const { return num_ranks() * where_.slots_per_rank() - num_logical(); }
  /// Fewer spare slots than ranks cannot connect all ranks: then replicas serve the given loads more than the next.
  [[nodiscard]] bool is_sparse() const { return num_spare() < num_ranks(); }

  /// Give spare slots to the largest load / (c (c + 4)), close to load^(3/4) / c: between "as many experts as possible
  /// with two replicas", which connects ranks best, and load / c, which makes the heaviest replica lightest.
  void count_replicas() {
    auto const divisor = [this](index_t expert) {
      return is_sparse() ? load_t{count(expert)} : load_t{count(expert)} * (count(expert) + 4);
    };
    auto const& weights = weights_.empty() ? loads_ : weights_;
    index_t replicated = 0;  // `by_weight_[0 .. replicated)` have two or more
    for (auto spare = num_spare(); spare > 0; --spare) {
      auto best = replicated < num_logical() ? at(by_weight_, replicated) : index_t{-1};
      for (index_t i = replicated - 1; i >= 0; --i) {
        auto const expert = at(by_weight_, i);
        if (count(expert) == num_ranks()) { continue; }
        // weight / divisor(expert) >= weight of best / divisor(best), without rounding
        if (best < 0 || wide_product(at(weights, expert) + 1, divisor(best)) >=
                            wide_product(at(weights, best) + 1, divisor(expert))) {
          best = expert;
        }
      }
      if (replicated < num_logical() && best == at(by_weight_, replicated)) { ++replicated; }
      ++count(best);
    }
  }

  /// How well a rank suits the next replica of an expert, the least first: few replicas there; nothing that connects it
  /// yet with the ranks chosen already, not even by way of others; few experts shared with them; little of the expert's
  /// block there, and an eighth of that next to it. A hash decides the rest.
  ///
  /// So graphs are nearly regular and random, which connects ranks well: load finds a way from any rank to any. And
  /// what grows together is apart.
  struct rank_key {
    index_t filled;
    index_t connected;
    index_t shared;
    load_t block;
    std::uint64_t draw;

    auto operator<=>(rank_key const&) const = default;
  };

  void spread(index_t expert, index_t layer, std::span<index_t> out) {
    chosen_.clear();
    auto const seed = digest{}.add(layer).add(expert).value();
    for (index_t i = 0; i < count(expert); ++i) {
      index_t best = -1;
      rank_key best_key{};
      for (index_t rank = 0; rank < num_ranks(); ++rank) {
        if (best >= 0 && at(filled_, rank) > best_key.filled) { continue; }
        if (std::find(chosen_.begin(), chosen_.end(), rank) != chosen_.end()) { continue; }
        auto const key = spread_key(seed, rank, expert);
        if (best < 0 || key < best_key) {
          best = rank;
          best_key = key;
        }
      }
      chosen_.push_back(best);
    }
    connect_chosen();
    auto const part = at(loads_, expert) * key_unit / count(expert);
    for (auto const rank : chosen_) {
      // Half, where shares are free to leave: ranks are balanced rather by what cannot.
      at(rank_load_, rank) += is_sparse() ? part : part / 2;
      put(expert, rank, part, out);
      for (index_t other = 0; other < num_ranks(); ++other) {
        if (shared(rank, other) > 0) { near_load(other, block_of(expert)) += part; }
      }
    }
  }
  [[nodiscard]] rank_key spread_key(std::uint64_t seed, index_t rank, index_t expert) {
    index_t num_connected = 0;
    index_t num_shared = 0;
    for (auto const other : chosen_) {
      num_connected += at(part_of_, other) == at(part_of_, rank) ? 1 : 0;
      num_shared += shared(rank, other);
    }
    auto const draw = (seed ^ static_cast<std::uint64_t>(rank) * 0x9e3779b97f4a7c15u) * 0xd6e8feb86659fd93u >> 44;
    return {at(filled_, rank), num_connected, num_shared,
            block_load(rank, expert) + near_load(rank, block_of(expert)) / 8, draw};
  }
  /// Each of the chosen ranks is next to each other one from now on.
  void connect_chosen() {
    for (auto const rank : chosen_) {
      join_parts(at(part_of_, rank), at(part_of_, chosen_.front()));
      for (auto const other : chosen_) {
        if (rank == other || shared(rank, other)++ > 0) { continue; }
        for (index_t block = 0; block < id_blocks_; ++block) {
          near_load(rank, block) += at(block_load_, other * id_blocks_ + block);
        }
      }
    }
  }
  /// Experts that both ranks hold.
  [[nodiscard]] index_t& shared(index_t rank, index_t other) { return at(shared_, rank * num_ranks() + other); }
  /// What the ranks next to one hold of a block.
  [[nodiscard]] load_t& near_load(index_t rank, index_t block) { return at(near_load_, rank * id_blocks_ + block); }
  void join_parts(index_t part, index_t other) {
    if (part != other) { std::replace(part_of_.begin(), part_of_.end(), part, other); }
  }

  /// Largest first, to the rank where this load and the loads of the same block are smallest: neighbours in id drift
  /// together, so a rank that holds a little of each block drifts least.
  void put_single(index_t expert, std::span<index_t> out) {
    index_t best = -1;
    load_t best_key = 0;
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      if (at(filled_, rank) == where_.slots_per_rank()) { continue; }
      auto const key = at(rank_load_, rank) + 2 * block_load(rank, expert);
      if (best < 0 || key < best_key) {
        best = rank;
        best_key = key;
      }
    }
    auto const load = at(loads_, expert) * key_unit;
    at(rank_load_, best) += load;
    at(rank_of_, expert) = at(live_ranks_, best);
    at(slot_of_, expert) = put(expert, best, load, out);
  }
  index_t put(index_t expert, index_t rank, load_t load, std::span<index_t> out) {
    auto const slot = where_.first_slot(at(live_ranks_, rank)) + at(filled_, rank)++;
    out[static_cast<std::size_t>(slot)] = expert;
    block_load(rank, expert) += load;
    return slot;
  }

  // ---- even shares ----

  /// A pair of single experts that may change places.
  struct exchange_of_singles {
    load_t height = 0;  ///< of the higher of the two ranks afterwards
    index_t given = -1;
    index_t taken = -1;
  };

  /// Exchange single experts of the busiest rank for lighter ones elsewhere until even shares are nearly balanced. What
  /// connects the ranks stays as it is.
  void exchange_even(std::span<index_t> out) {
    list_singles(out);
    auto const total = std::accumulate(loads_.begin(), loads_.end(), load_t{0}) * key_unit;
    auto const mean = total / num_ranks();
    auto const goal = mean + mean / 1'000'000 * limits_.even_tolerance_ppm;
    for (index_t i = 0; i < limits_.exchanges; ++i) {
      auto const busiest = std::max_element(even_load_.begin(), even_load_.end());
      if (*busiest <= goal) { return; }
      auto const hot = static_cast<index_t>(busiest - even_load_.begin());
      auto const best = best_even_exchange(hot, goal, mean / strange_block);
      if (best.given < 0) { return; }
      change_places(best, hot, out);
    }
  }
  /// What each rank carries under even shares, and the single experts that it holds.
  void list_singles(std::span<index_t const> out) {
    singles_.clear();
    first_single_.clear();
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      first_single_.push_back(static_cast<index_t>(singles_.size()));
      auto& load = at(even_load_, rank) = 0;
      auto const first = where_.first_slot(at(live_ranks_, rank));
      for (auto slot = first; slot < first + where_.slots_per_rank(); ++slot) {
        auto const expert = out[static_cast<std::size_t>(slot)];
        load += at(loads_, expert) * key_unit / count(expert);
        if (count(expert) == 1) { singles_.push_back(expert); }
      }
    }
    first_single_.push_back(static_cast<index_t>(singles_.size()));
  }
  [[nodiscard]] std::span<index_t> singles_of(index_t rank) {
    auto const first = at(first_single_, rank);
    return std::span{singles_}.subspan(static_cast<std::size_t>(first),
                                       static_cast<std::size_t>(at(first_single_, rank + 1) - first));
  }
  /// @param strange  what an exchange costs that takes an expert out of its block
  [[nodiscard]] exchange_of_singles best_even_exchange(index_t hot, load_t goal, load_t strange) {
    exchange_of_singles best{at(even_load_, hot), -1, -1};
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      // No exchange brings the higher of the two below their mean.
      if (std::max((at(even_load_, hot) + at(even_load_, rank)) / 2, goal) >= best.height) { continue; }
      for (auto const given : singles_of(hot)) {
        for (auto const taken : singles_of(rank)) {
          auto const difference = (at(loads_, given) - at(loads_, taken)) * key_unit;
          if (difference <= 0) { continue; }
          auto const height = std::max({at(even_load_, hot) - difference, at(even_load_, rank) + difference, goal}) +
                              (block_of(given) != block_of(taken) ? strange : load_t{0});
          if (height < best.height) { best = {height, given, taken}; }
        }
      }
    }
    return best;
  }
  void change_places(exchange_of_singles const& best, index_t hot, std::span<index_t> out) {
    auto const difference = (at(loads_, best.given) - at(loads_, best.taken)) * key_unit;
    auto& given_slot = at(slot_of_, best.given);
    auto& taken_slot = at(slot_of_, best.taken);
    index_t other = 0;
    while (at(live_ranks_, other) != at(rank_of_, best.taken)) { ++other; }
    std::replace(singles_of(hot).begin(), singles_of(hot).end(), best.given, best.taken);
    std::replace(singles_of(other).begin(), singles_of(other).end(), best.taken, best.given);
    at(even_load_, hot) -= difference;
    at(even_load_, other) += difference;
    std::swap(given_slot, taken_slot);
    std::swap(at(rank_of_, best.given), at(rank_of_, best.taken));
    out[static_cast<std::size_t>(given_slot)] = best.given;
    out[static_cast<std::size_t>(taken_slot)] = best.taken;
  }

  // ---- optimal shares ----

  /// Exchange single experts across the edge of the bottleneck until these loads can be split evenly over the ranks.
  [[nodiscard]] status exchange(std::span<index_t> out) {
    if (auto result = solver_.open(where_, out, loads_); !result.ok()) { return result; }
    auto busiest = solver_.solve();
    auto const total = std::accumulate(loads_.begin(), loads_.end(), load_t{0}) * load_unit;
    auto const mean = total / num_ranks();
    auto const target = mean + mean / 1'000'000 * limits_.tolerance_ppm + 1;
    std::fill(given_up_.begin(), given_up_.end(), 0);
    index_t failures = 0;
    for (index_t i = 0; i < limits_.exchanges && busiest > target; ++i) {
      auto const [inside, outside] = best_exchange(busiest - mean);
      if (inside < 0) { break; }
      before_ = solver_;
      solver_.replace(at(slot_of_, inside), outside);
      solver_.replace(at(slot_of_, outside), inside);
      if (auto const now = solver_.solve(); now < busiest) {
        busiest = now;
        std::swap(at(slot_of_, inside), at(slot_of_, outside));
        std::swap(at(rank_of_, inside), at(rank_of_, outside));
        std::fill(given_up_.begin(), given_up_.end(), 0);
      } else {
        std::swap(solver_, before_);
        // Try a few partners before another expert of the bottleneck.
        at(given_up_, ++failures % 4 == 0 ? inside : outside) = 1;
      }
    }
    std::copy(solver_.logical_of_slot().begin(), solver_.logical_of_slot().end(), out.begin());
    return {};
  }
  /// The single expert of the bottleneck and the one outside it whose difference comes closest to what the bottleneck
  /// has too much; -1 if there are none.
  [[nodiscard]] std::pair<index_t, index_t> best_exchange(load_t excess_of_rank) {
    load_t size = 0;
    for (auto const rank : live_ranks_) { size += solver_.is_bottleneck(rank) ? 1 : 0; }
    auto const wanted = excess_of_rank / load_unit * size;
    std::pair<index_t, index_t> best{-1, -1};
    auto best_error = std::numeric_limits<load_t>::max();
    inside_.clear();
    outside_.clear();
    for (auto const expert : order_) {
      if (count(expert) > 1 || at(given_up_, expert) != 0) { continue; }
      (solver_.is_bottleneck(at(rank_of_, expert)) ? inside_ : outside_).push_back(expert);
    }
    // Both descend, so the best partner only moves down the list.
    for (std::size_t i = 0, o = 0; i < inside_.size(); ++i) {
      auto const load = at(loads_, inside_[i]);
      auto const error = [this, &load, &wanted](std::size_t k) {
        return magnitude(load - at(loads_, outside_[k]) - wanted);
      };
      while (o + 1 < outside_.size() && error(o + 1) <= error(o)) { ++o; }
      if (o < outside_.size() && at(loads_, outside_[o]) < load && error(o) < best_error) {
        best = {inside_[i], outside_[o]};
        best_error = error(o);
      }
    }
    return best;
  }

  [[nodiscard]] static load_t magnitude(load_t value) { return value < 0 ? -value : value; }

  static constexpr load_t strange_block = 100;  ///< a hundredth of the mean
  static constexpr load_t key_unit = 64;        // sums of three loads of `max_layer_tokens` stay far below 2^63

  topology const& where_;
  headroom_limits limits_;
  index_t id_blocks_;
  std::vector<load_t> loads_;            // [E] tokens
  std::vector<index_t> order_;           // [E] experts, heaviest first
  std::vector<load_t> weights_;          // [E], or empty
  std::vector<index_t> by_weight_;       // [E]
  std::vector<index_t> counts_;          // [E]
  std::vector<index_t> rank_of_;         // [E] of single experts
  std::vector<index_t> slot_of_;         // [E] of single experts
  std::vector<index_t> block_of_;        // [E] of neighbours in id
  std::vector<unsigned char> given_up_;  // [E] single experts whose exchange did not help
  std::vector<index_t> live_ranks_;
  std::vector<index_t> filled_;     // [live ranks] slots in use
  std::vector<load_t> rank_load_;   // [live ranks]
  std::vector<load_t> block_load_;  // [live ranks, id blocks]
  std::vector<load_t> near_load_;   // [live ranks, id blocks]
  std::vector<index_t> shared_;     // [live ranks, live ranks] experts that both hold
  std::vector<index_t> part_of_;    // [live ranks] the same for ranks that replicas connect
  std::vector<index_t> chosen_;
  std::vector<load_t> even_load_;      // [live ranks]
  std::vector<index_t> singles_;       // experts with one replica, by rank
  std::vector<index_t> first_single_;  // [live ranks + 1] into `singles_`
  std::vector<index_t> inside_;
  std::vector<index_t> outside_;
  share_solver solver_;
  share_solver before_;
};

}  // namespace detail

BALLAST_END_NAMESPACE

#endif
