// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_PLAN_PARTS_HPP
#define BALLAST_RUNTIME_DETAIL_PLAN_PARTS_HPP

#include <ballast/detail/text.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Which of the layers of each rank, by their number among them.
struct part_range {
  index_t first = 0;
  index_t count = std::numeric_limits<index_t>::max();  ///< fewer where there are fewer
};

/// A plan that is made layer by layer: the i-th of the ranks that make it together plans layers i, i + R, i + 2 R, ...,
/// or a range of these, and all get all rows. A rank may plan the first of the next one's as well, to compare.
///
/// The words of a rank: what it has (a plan, shares), then for each of its layers the layer, and for each slot the
/// expert and its share.
class plan_parts {
public:
  /// All live ranks make it. @param rank  this one. @param num_checked  layers of the next rank that it plans as well
  plan_parts(topology const& where, placement_shape shape, index_t rank, index_t num_checked, part_range range = {})
      : plan_parts{live_ranks(where), where.num_ranks(), shape, rank, num_checked, range} {}
  /// This rank makes it alone.
  [[nodiscard]] static plan_parts alone(placement_shape shape, part_range range = {}) {
    return {std::vector<index_t>{0}, 1, shape, 0, 0, range};
  }
  /// The most layers that one of so many ranks has.
  [[nodiscard]] static index_t most_layers(index_t num_layers, index_t ranks) noexcept {
    return (num_layers + ranks - 1) / ranks;
  }

  /// The layers that this rank plans, ascending, those that it checks among them.
  [[nodiscard]] std::span<index_t const> layers() const noexcept { return layers_; }
  /// The most layers that any rank plans.
  [[nodiscard]] index_t most_layers() const noexcept { return static_cast<index_t>(rows_ + most_checked_); }
  /// The layers that a rank plans for all, ascending; none for a rank that is dead.
  [[nodiscard]] std::vector<index_t> layers_of(index_t rank) const {
    std::vector<index_t> layers;
    auto const at = std::find(ranks_.begin(), ranks_.end(), rank);
    if (at == ranks_.end()) { return layers; }
    auto const planners = static_cast<index_t>(ranks_.size());
    auto layer = static_cast<index_t>(at - ranks_.begin()) + first_row_ * planners;
    for (std::size_t row = 0; row < rows_ && layer < shape_.num_layers; ++row, layer += planners) {
      layers.push_back(layer);
    }
    return layers;
  }

  [[nodiscard]] std::span<std::uint64_t const> mine() const noexcept { return mine_; }
  [[nodiscard]] std::span<std::uint64_t> all() noexcept { return all_; }

  /// Keep the rows of some of `layers()`. Every rank has to, also one without layers.
  void write(placement const& plan, std::span<index_t const> layers) {
    mine_[0] = std::max(mine_[0], plan.has_shares() ? with_shares : without_shares);
    for (auto const layer : layers) {
      auto const words = is_mine(layer) ? std::span{mine_}.subspan(first_word(layer), row_words())
                                        : std::span{checked_}.subspan(first_word(layer) - head, row_words());
      words[0] = static_cast<std::uint64_t>(layer);
      for (std::size_t slot = 0; slot + 1 < words.size(); ++slot) { words[slot + 1] = word_of(plan, layer, slot); }
    }
  }
  /// This rank has no plan; it tells the others.
  void give_up() noexcept { mine_[0] = 0; }
  /// In place of an all-gather, where nobody else makes the plan.
  void keep() { all_ = mine_; }

  /// Whether the next rank has planned what this one has, where it has planned anything.
  [[nodiscard]] status check() const {
    for (auto const layer : layers_) {
      auto const other = planner_of(layer);
      if (other == rank_ || words_of(other)[0] == 0) { continue; }
      auto const theirs = words_of(other).subspan(first_word(layer), row_words());
      if (std::ranges::equal(theirs, std::span{checked_}.subspan(first_word(layer) - head, row_words()))) { continue; }
      return {errc::disagreement,
              concat("plan: rank ", rank_, " and rank ", other, " plan layer ", layer, " differently"), other};
    }
    return {};
  }
  /// Put the rows of all ranks together. @param plan  in/out: [L, P]
  [[nodiscard]] status read(placement& plan) const {
    bool shares = false;
    for (auto const rank : ranks_) {
      auto const has = words_of(rank)[0];
      if (has != with_shares && has != without_shares) {
        return {errc::policy_failed, concat("plan: rank ", rank, " could not plan its layers"), rank};
      }
      shares = shares || has == with_shares;
    }
    if (shares) {
      plan.make_shares_even();
    } else {
      plan.drop_shares();
    }
    for (auto const rank : ranks_) {
      if (auto result = read_rows(rank, plan); !result.ok()) { return result; }
    }
    return {};
  }

private:
  plan_parts(std::vector<index_t> ranks, index_t num_ranks, placement_shape shape, index_t rank, index_t num_checked,
             part_range range)
      : ranks_{std::move(ranks)},
        num_ranks_{num_ranks},
        shape_{shape},
        rank_{rank},
        first_row_{range.first},
        rows_{static_cast<std::size_t>(
            std::min(range.count, most_layers(shape.num_layers, static_cast<index_t>(ranks_.size())) - range.first))},
        most_checked_{std::min(rows_, static_cast<std::size_t>(num_checked))},
        mine_(head + rows_ * row_words()),
        checked_(most_checked_ * row_words()),
        all_(mine_.size() * static_cast<std::size_t>(num_ranks_)) {
    layers_ = layers_of(rank);
    auto const of_next = layers_of(rank_after(rank));
    auto const checked = std::min(of_next.size(), most_checked_);
    layers_.insert(layers_.end(), of_next.begin(), of_next.begin() + static_cast<std::ptrdiff_t>(checked));
    std::sort(layers_.begin(), layers_.end());
  }

  static constexpr std::size_t head = 1;
  static constexpr std::uint64_t without_shares = 1;
  static constexpr std::uint64_t with_shares = 2;
  static constexpr int share_bits = 32;

  /// The rank after another one, round all that plan.
  [[nodiscard]] index_t rank_after(index_t rank) const {
    auto const at = std::find(ranks_.begin(), ranks_.end(), rank);
    return at == ranks_.end() || at + 1 == ranks_.end() ? ranks_.front() : *(at + 1);
  }
  [[nodiscard]] index_t planner_of(index_t layer) const {
    return ranks_[static_cast<std::size_t>(layer) % ranks_.size()];
  }
  [[nodiscard]] bool is_mine(index_t layer) const { return planner_of(layer) == rank_; }
  /// Of a layer's row among the words of its rank.
  [[nodiscard]] std::size_t first_word(index_t layer) const noexcept {
    return head +
           (static_cast<std::size_t>(layer) / ranks_.size() - static_cast<std::size_t>(first_row_)) * row_words();
  }
  [[nodiscard]] std::size_t row_words() const noexcept { return 1 + static_cast<std::size_t>(shape_.num_slots); }
  [[nodiscard]] std::span<std::uint64_t const> words_of(index_t rank) const {
    return std::span{all_}.subspan(static_cast<std::size_t>(rank) * mine_.size(), mine_.size());
  }
  [[nodiscard]] static std::uint64_t word_of(placement const& plan, index_t layer, std::size_t slot) {
    auto const share = plan.has_shares() ? plan.shares(layer)[slot] : share_t{0};
    return static_cast<std::uint64_t>(plan.logical_of_slot(layer)[slot]) << share_bits | share;
  }
  [[nodiscard]] status read_rows(index_t rank, placement& plan) const {
    auto const layers = layers_of(rank);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      auto const words = words_of(rank).subspan(head + i * row_words(), row_words());
      if (words[0] != static_cast<std::uint64_t>(layers[i])) {
        return {errc::disagreement, concat("plan: rank ", rank, " planned layer ", words[0], ", not layer ", layers[i]),
                rank};
      }
      auto const map = plan.edit(layers[i]).logical_of_slot;
      for (std::size_t slot = 0; slot < map.size(); ++slot) {
        map[slot] = static_cast<index_t>(words[slot + 1] >> share_bits);
        if (map[slot] < 0 || map[slot] >= shape_.num_logical) {
          return {errc::policy_failed,
                  concat("plan: rank ", rank, ", layer ", layers[i], ": slot ", slot, " holds expert ", map[slot]),
                  rank};
        }
        if (plan.has_shares()) { plan.edit_shares(layers[i])[slot] = static_cast<share_t>(words[slot + 1]); }
      }
      plan.index_replicas(layers[i]);
    }
    return {};
  }

  std::vector<index_t> ranks_;
  index_t num_ranks_;
  placement_shape shape_;
  index_t rank_;
  index_t first_row_;  ///< number of each rank's first layer among its own
  std::size_t rows_;   ///< of the rank with most layers
  std::size_t most_checked_;
  std::vector<index_t> layers_;
  std::vector<std::uint64_t> mine_;
  std::vector<std::uint64_t> checked_;  ///< rows of the next rank's layers
  std::vector<std::uint64_t> all_;      ///< [R, words]
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
