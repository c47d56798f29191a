// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_VALIDATE_HPP
#define BALLAST_PLACEMENT_VALIDATE_HPP

#include <ballast/detail/index.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

[[nodiscard]] inline std::string shape_text(placement_shape const& shape) {
  return concat(shape.num_layers, " layers x ", shape.num_slots, " slots of ", shape.num_logical, " experts");
}

/// One layer of a placement whose content nobody has checked.
struct unchecked_layer {
  std::span<index_t const> logical_of_slot;  ///< [P]
  std::span<index_t const> replica_offsets;  ///< [E + 1]
  std::span<index_t const> replica_slots;    ///< [P]
  std::span<share_t const> shares;           ///< [P] or empty

  unchecked_layer(placement const& in, index_t layer)
      : logical_of_slot{in.logical_of_slot(layer)},
        replica_offsets{in.replica_offsets(layer)},
        replica_slots{in.replica_slots(layer)} {
    if (in.has_shares()) { shares = in.shares(layer); }
  }

  [[nodiscard]] index_t num_slots() const noexcept { return static_cast<index_t>(logical_of_slot.size()); }
  [[nodiscard]] index_t num_logical() const noexcept { return static_cast<index_t>(replica_offsets.size()) - 1; }
  [[nodiscard]] bool has_slot(index_t slot) const noexcept { return slot >= 0 && slot < num_slots(); }
  [[nodiscard]] index_t offset(index_t expert) const noexcept {
    return replica_offsets[static_cast<std::size_t>(expert)];
  }
  /// @pre the expert's offsets are in order, in [0, P]
  [[nodiscard]] std::span<index_t const> replicas_of(index_t expert) const noexcept {
    return replica_slots.subspan(static_cast<std::size_t>(offset(expert)),
                                 static_cast<std::size_t>(offset(expert + 1) - offset(expert)));
  }
  [[nodiscard]] bool is_held_in(index_t expert, index_t slot) const noexcept {
    return has_slot(slot) && logical_of_slot[static_cast<std::size_t>(slot)] == expert;
  }
};

/// Checks layers one after the other; working memory is kept.
class placement_checker {
public:
  /// Whether the inverse is the map's. That says all about the map, too: the P listed slots are all different, and the
  /// experts that the map has there run from 0 to E - 1, each from its offset on. One pass without a branch: this is
  /// done to every plan.
  [[nodiscard]] bool is_consistent(unchecked_layer const& in) {
    auto const num_slots = static_cast<std::uint32_t>(in.logical_of_slot.size());
    auto const num_logical = static_cast<std::uint32_t>(in.replica_offsets.size()) - 1;
    auto const* const offsets = in.replica_offsets.data();
    auto const* const slots = in.replica_slots.data();
    auto const* const experts = in.logical_of_slot.data();
    if (num_logical == 0 || num_slots == 0) { return false; }
    seen_.assign(num_slots, 0);
    auto* const seen = seen_.data();
    std::uint32_t wrong = 0;
    std::uint32_t before = ~std::uint32_t{0};
    for (std::uint32_t i = 0; i < num_slots; ++i) {
      auto const slot = static_cast<std::uint32_t>(slots[i]);
      auto const in_range = std::min(slot, num_slots - 1);
      auto const expert = static_cast<std::uint32_t>(experts[in_range]);
      auto const offset = static_cast<std::uint32_t>(offsets[std::min(expert, num_logical)]);
      seen[in_range] = 1;
      wrong |= slot ^ in_range;
      wrong |= (expert - before) >> 1;            // the same or the next
      wrong |= (expert - before) * (offset ^ i);  // the next starts here
      before = expert;
    }
    wrong |= (before + 1) ^ num_logical;
    wrong |= static_cast<std::uint32_t>(offsets[num_logical]) ^ num_slots;
    return wrong == 0 && std::memchr(seen, 0, num_slots) == nullptr;
  }

  /// Name the first thing that is wrong with map or inverse. @pre `!is_consistent(in)`
  [[nodiscard]] static status explain(unchecked_layer const& in, index_t layer) {
    placement_shape const one_layer{1, in.num_logical(), in.num_slots()};
    if (auto const result = placement::validate(one_layer, in.logical_of_slot, layer); !result.ok()) { return result; }
    auto const refuse = [layer](auto const&... parts) {
      return status{errc::invalid_placement, concat("placement: layer ", layer, ", ", parts...)};
    };
    if (in.offset(0) != 0) { return refuse("replicas of expert 0 start at offset ", in.offset(0), ", must be 0"); }
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      auto const first = in.offset(expert);
      auto const last = in.offset(expert + 1);
      if (last <= first || last > in.num_slots()) {
        return refuse("replicas of expert ", expert, " are from offset ", first, " to ", last, " of ", in.num_slots());
      }
      for (auto const slot : in.replicas_of(expert)) {
        if (!in.has_slot(slot)) {
          return refuse("expert ", expert, " is listed in slot ", slot, ", must be in [0, ", in.num_slots(), ")");
        }
        if (!in.is_held_in(expert, slot)) {
          return refuse("expert ", expert, " is listed in slot ", slot, ", which holds expert ",
                        in.logical_of_slot[static_cast<std::size_t>(slot)]);
        }
      }
      if (auto const slot = repeated(in.replicas_of(expert)); slot >= 0) {
        return refuse("expert ", expert, " is listed twice in slot ", slot);
      }
    }
    return refuse("replicas end at offset ", in.offset(in.num_logical()), ", must be ", in.num_slots());
  }

  /// Shares of each expert's replicas sum to one. @pre `is_consistent(in)`
  [[nodiscard]] static status check_shares(unchecked_layer const& in, index_t layer) {
    if (in.shares.empty()) { return {}; }
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      std::uint64_t sum = 0;
      for (auto const slot : in.replicas_of(expert)) { sum += in.shares[static_cast<std::size_t>(slot)]; }
      if (sum != share_one) {
        return {errc::invalid_placement, concat("placement: layer ", layer, ", shares of expert ", expert, " sum to ",
                                                sum, ", must be ", share_one)};
      }
    }
    return {};
  }

private:
  /// A slot that is there twice, -1 if there is none. @pre all in [0, num_slots)
  [[nodiscard]] static index_t repeated(std::span<index_t const> slots) {
    std::vector<index_t> sorted{slots.begin(), slots.end()};
    std::sort(sorted.begin(), sorted.end());
    auto const twice = std::adjacent_find(sorted.begin(), sorted.end());
    return twice != sorted.end() ? *twice : -1;
  }

  std::vector<unsigned char> seen_;  // [P]
};

}  // namespace detail

namespace detail {

/// The same as `validate_placement`, of some layers.
[[nodiscard]] inline status validate_layers(placement const& in, placement_shape const& expected,
                                            std::span<index_t const> layers) {
  if (in.shape() != expected) {
    return {errc::invalid_placement, concat("placement: ", shape_text(in.shape()), ", must be ", shape_text(expected))};
  }
  placement_checker checker;
  for (auto const layer : layers) {
    unchecked_layer const content{in, layer};
    if (!checker.is_consistent(content)) { return placement_checker::explain(content, layer); }
    if (auto result = placement_checker::check_shares(content, layer); !result.ok()) { return result; }
  }
  return {};
}

}  // namespace detail

/// Check a whole placement that somebody else filled in, naming the first layer and the slot or expert that is wrong.
///
/// It has the expected sizes; each slot holds an expert in [0, E), every expert of every layer has a slot, the inverse
/// is the map's, in any order of replicas, and the shares of an expert, where there are shares, sum to exactly one.
///
/// @param in        whatever a policy or a file made of it; nothing outside it is read, whatever it holds.
/// @param expected  L, E and P.
/// @return `errc::missing_expert` or `errc::invalid_placement`
/// @complexity O(L (P + E)); one allocation of [P] on success.
/// @throws std::bad_alloc
[[nodiscard]] inline status validate_placement(placement const& in, placement_shape const& expected) {
  return detail::validate_layers(in, expected, detail::numbers_below(in.num_layers()));
}

/// Check that every expert of every layer has a slot on a live rank, naming the first that has none.
///
/// @param where  R ranks of S slots, and which are alive.
/// @param in     [L, P], valid.
/// @return `errc::missing_expert`, or `errc::invalid_topology` where slots do not match
/// @complexity O(L P); O(1) where all ranks live.
[[nodiscard]] inline status validate_live(topology const& where, placement const& in) {
  if (in.num_slots() != where.num_slots()) {
    return {errc::invalid_topology, detail::concat("placement: ", in.num_slots(), " slots, the topology has ",
                                                   where.num_ranks(), " ranks x ", where.slots_per_rank(), " slots")};
  }
  if (where.num_live_ranks() == where.num_ranks()) { return {}; }
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      auto const replicas = in.replicas_of(layer, expert);
      auto const is_live = [&where](index_t slot) { return where.is_live(where.rank_of_slot(slot)); };
      if (std::none_of(replicas.begin(), replicas.end(), is_live)) {
        return {errc::missing_expert,
                detail::concat("placement: layer ", layer, ": no live rank holds expert ", expert)};
      }
    }
  }
  return {};
}

BALLAST_END_NAMESPACE

#endif
