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
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A plan that the ranks make together: the i-th live rank plans layers i, i + R, i + 2 R, ..., and all get all rows.
///
/// The words of a rank: what it has (a plan, shares), then for each of its layers the layer, and for each slot the
/// expert and its share.
class plan_parts {
public:
  plan_parts(topology const& where, placement_shape shape)
      : ranks_{live_ranks(where)},
        num_ranks_{where.num_ranks()},
        shape_{shape},
        rows_{(static_cast<std::size_t>(shape.num_layers) + ranks_.size() - 1) / ranks_.size()},
        mine_(head + rows_ * row_words()),
        all_(mine_.size() * static_cast<std::size_t>(num_ranks_)) {}

  /// The layers that a rank plans, ascending; none for a rank that is dead.
  [[nodiscard]] std::vector<index_t> layers_of(index_t rank) const {
    std::vector<index_t> layers;
    auto const at = std::find(ranks_.begin(), ranks_.end(), rank);
    if (at == ranks_.end()) { return layers; }
    for (auto layer = at - ranks_.begin(); layer < shape_.num_layers; layer += std::ssize(ranks_)) {
      layers.push_back(static_cast<index_t>(layer));
    }
    return layers;
  }
  /// The rank after another one, round all that plan.
  [[nodiscard]] index_t rank_after(index_t rank) const {
    auto const at = std::find(ranks_.begin(), ranks_.end(), rank);
    return at == ranks_.end() || at + 1 == ranks_.end() ? ranks_.front() : *(at + 1);
  }

  [[nodiscard]] std::span<std::uint64_t const> mine() const noexcept { return mine_; }
  [[nodiscard]] std::span<std::uint64_t> all() noexcept { return all_; }

  void write(placement const& plan, std::span<index_t const> layers) {
    mine_[0] = plan.has_shares() ? with_shares : without_shares;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      auto const words = std::span{mine_}.subspan(head + i * row_words(), row_words());
      words[0] = static_cast<std::uint64_t>(layers[i]);
      for (std::size_t slot = 0; slot + 1 < words.size(); ++slot) { words[slot + 1] = word_of(plan, layers[i], slot); }
    }
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
  /// Whether a layer of a plan is what its rank has told.
  [[nodiscard]] bool agrees(placement const& plan, index_t layer) const {
    auto const width = static_cast<index_t>(ranks_.size());
    auto const words = words_of(ranks_[static_cast<std::size_t>(layer % width)]);
    auto const row = words.subspan(head + static_cast<std::size_t>(layer / width) * row_words(), row_words());
    for (std::size_t slot = 0; slot + 1 < row.size(); ++slot) {
      if (row[slot + 1] != word_of(plan, layer, slot)) { return false; }
    }
    return true;
  }

private:
  static constexpr std::size_t head = 1;
  static constexpr std::uint64_t without_shares = 1;
  static constexpr std::uint64_t with_shares = 2;
  static constexpr int share_bits = 32;

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
  std::size_t rows_;  ///< of the rank with most layers
  std::vector<std::uint64_t> mine_;
  std::vector<std::uint64_t> all_;  ///< [R, words]
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
