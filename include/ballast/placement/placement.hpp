// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_PLACEMENT_HPP
#define BALLAST_PLACEMENT_PLACEMENT_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/matrix_view.hpp>
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

/// Sizes of a placement.
struct placement_shape {
  index_t num_layers = 0;   ///< L
  index_t num_logical = 0;  ///< E
  index_t num_slots = 0;    ///< P

  bool operator==(placement_shape const&) const = default;
};

/// Which logical expert each slot of each layer holds, and the inverse.
///
/// The map is `[L, P]`. The inverse of a layer is compressed: the slots of expert e are
/// `replica_slots(layer)[replica_offsets(layer)[e] .. replica_offsets(layer)[e + 1])`, in replica-rank order: ascending
/// slots unless a policy defines another order. Shares are optional; without them an expert's tokens are split evenly.
///
/// A default-constructed placement is empty; every other one is valid: each slot holds an expert in [0, E) and every
/// expert of every layer has a slot.
class placement {
public:
  placement() = default;
  placement(placement const&) = default;
  placement& operator=(placement const&) = default;
  /// What was moved from is empty.
  placement(placement&& other) noexcept { swap(other); }
  placement& operator=(placement&& other) noexcept {
    placement taken{std::move(other)};
    swap(taken);
    return *this;
  }
  ~placement() = default;

  /// Say whether `logical_of_slot` `[L, P]` is a placement, naming the first slot or expert that is wrong.
  /// @complexity O(L (P + E)), one allocation of [E] bytes.
  /// @param first_layer  number of the map's first layer, for the message.
  [[nodiscard]] static status validate(placement_shape shape, std::span<index_t const> logical_of_slot,
                                       index_t first_layer = 0) {
    if (auto const result = validate_shape(shape); !result.ok()) { return result; }
    auto const expected = static_cast<std::size_t>(shape.num_layers) * static_cast<std::size_t>(shape.num_slots);
    if (logical_of_slot.size() != expected) {
      return {errc::invalid_placement,
              detail::concat("placement: map has ", logical_of_slot.size(), " entries, must have ", shape.num_layers,
                             " layers x ", shape.num_slots, " slots")};
    }
    std::vector<unsigned char> seen(static_cast<std::size_t>(shape.num_logical));
    for (index_t layer = 0; layer < shape.num_layers; ++layer) {
      std::fill(seen.begin(), seen.end(), static_cast<unsigned char>(0));
      for (index_t slot = 0; slot < shape.num_slots; ++slot) {
        auto const expert =
            logical_of_slot[static_cast<std::size_t>(layer) * static_cast<std::size_t>(shape.num_slots) +
                            static_cast<std::size_t>(slot)];
        if (expert < 0 || expert >= shape.num_logical) {
          return {errc::invalid_placement,
                  detail::concat("placement: layer ", first_layer + layer, ", slot ", slot, " holds expert ", expert,
                                 ", must be in [0, ", shape.num_logical, ")")};
        }
        seen[static_cast<std::size_t>(expert)] = 1;
      }
      auto const missing = std::find(seen.begin(), seen.end(), static_cast<unsigned char>(0));
      if (missing != seen.end()) {
        return {errc::missing_expert, detail::concat("placement: layer ", first_layer + layer,
                                                     " has no slot for expert ", missing - seen.begin())};
      }
    }
    return {};
  }

  /// Refuse sizes that hold no placement, naming them.
  [[nodiscard]] static status validate_shape(placement_shape shape) {
    if (shape.num_layers < 0 || shape.num_logical < 1 || shape.num_slots < 1) {
      return {errc::invalid_placement, detail::concat("placement: ", shape.num_layers, " layers, ", shape.num_logical,
                                                      " experts, ", shape.num_slots, " slots: sizes must be positive")};
    }
    if (shape.num_slots < shape.num_logical) {
      return {errc::not_enough_slots,
              detail::concat("placement: ", shape.num_slots, " slots cannot hold ", shape.num_logical, " experts")};
    }
    return {};
  }

  /// Take a map over; replicas are ranked by ascending slot, shares are even. Nothing changes on failure.
  ///
  /// @param logical_of_slot  [L, P] logical expert ids.
  /// @complexity O(L (P + E))
  [[nodiscard]] status assign(placement_shape shape, std::span<index_t const> logical_of_slot) {
    if (auto result = validate(shape, logical_of_slot); !result.ok()) { return result; }
    resize(shape);
    std::copy(logical_of_slot.begin(), logical_of_slot.end(), logical_of_slot_.begin());
    for (index_t layer = 0; layer < shape.num_layers; ++layer) { index_replicas(layer); }
    return {};
  }

  [[nodiscard]] placement_shape const& shape() const noexcept { return shape_; }
  [[nodiscard]] index_t num_layers() const noexcept { return shape_.num_layers; }
  [[nodiscard]] index_t num_logical() const noexcept { return shape_.num_logical; }
  [[nodiscard]] index_t num_slots() const noexcept { return shape_.num_slots; }
  [[nodiscard]] bool empty() const noexcept { return shape_.num_slots == 0; }

  /// The whole map, `[L, P]`.
  [[nodiscard]] matrix_view<index_t const> logical_of_slot() const noexcept {
    return {logical_of_slot_, shape_.num_layers, shape_.num_slots};
  }
  /// One layer of the map, `[P]`.
  [[nodiscard]] std::span<index_t const> logical_of_slot(index_t layer) const {
    return row(logical_of_slot_, layer, shape_.num_slots);
  }
  /// `[E + 1]` offsets into `replica_slots(layer)`.
  [[nodiscard]] std::span<index_t const> replica_offsets(index_t layer) const {
    return row(replica_offsets_, layer, shape_.num_logical + 1);
  }
  /// `[P]` slots grouped by logical expert, in replica-rank order within an expert.
  [[nodiscard]] std::span<index_t const> replica_slots(index_t layer) const {
    return row(replica_slots_, layer, shape_.num_slots);
  }
  /// Slots of one logical expert, in replica-rank order.
  [[nodiscard]] std::span<index_t const> replicas_of(index_t layer, index_t expert) const {
    auto const offsets = replica_offsets(layer);
    BALLAST_EXPECTS_BELOW(expert, shape_.num_logical, "placement: expert");
    auto const first = offsets[static_cast<std::size_t>(expert)];
    auto const last = offsets[static_cast<std::size_t>(expert) + 1];
    return replica_slots(layer).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first));
  }
  /// c_e, physical experts that hold this logical expert.
  [[nodiscard]] index_t replica_count(index_t layer, index_t expert) const {
    return static_cast<index_t>(replicas_of(layer, expert).size());
  }

  [[nodiscard]] bool has_shares() const noexcept { return !shares_.empty(); }
  /// `[P]` share of each slot's replica in units of 1 / `share_one`, summing to `share_one` per expert. @pre
  /// `has_shares()`
  [[nodiscard]] std::span<share_t const> shares(index_t layer) const {
    BALLAST_EXPECTS(has_shares(), "placement: no shares, the split is even");
    return row(shares_, layer, shape_.num_slots);
  }

  /// Mix map, replica order and shares of one layer into what the ranks compare.
  void describe(index_t layer, digest& out) const {
    out.add(shape_.num_logical).add(logical_of_slot(layer)).add(replica_slots(layer)).add(has_shares());
    if (has_shares()) { out.add(shares(layer)); }
  }
  /// As above, for every layer.
  void describe(digest& out) const {
    out.add(shape_.num_layers);
    for (index_t layer = 0; layer < shape_.num_layers; ++layer) { describe(layer, out); }
  }

  bool operator==(placement const&) const = default;

  // ---- for policies, which fill a placement in layer by layer ----

  /// Make room for a placement of this shape; contents are unspecified until every layer is filled in. Keeps capacity,
  /// drops shares. @pre `validate_shape(shape)` succeeds
  void resize(placement_shape shape) {
    BALLAST_EXPECTS(validate_shape(shape).ok(), "placement: sizes that hold no placement");
    shape_ = shape;
    auto const layers = static_cast<std::size_t>(shape.num_layers);
    logical_of_slot_.resize(layers * static_cast<std::size_t>(shape.num_slots));
    replica_offsets_.resize(layers * (static_cast<std::size_t>(shape.num_logical) + 1));
    replica_slots_.resize(layers * static_cast<std::size_t>(shape.num_slots));
    shares_.clear();
  }
  /// Writable parts of one layer. Whoever writes keeps map and inverse consistent.
  struct layer_writer {
    std::span<index_t> logical_of_slot;  ///< [P]
    std::span<index_t> replica_offsets;  ///< [E + 1]
    std::span<index_t> replica_slots;    ///< [P]
  };
  [[nodiscard]] layer_writer edit(index_t layer) {
    return {row(logical_of_slot_, layer, shape_.num_slots), row(replica_offsets_, layer, shape_.num_logical + 1),
            row(replica_slots_, layer, shape_.num_slots)};
  }
  /// Derive the inverse of one layer from its map, replicas ranked by ascending slot. @complexity O(P + E), no
  /// allocation.
  void index_replicas(index_t layer) {
    auto const [experts, offsets, slots] = edit(layer);
    std::fill(offsets.begin(), offsets.end(), 0);
    for (auto const expert : experts) { ++offsets[static_cast<std::size_t>(expert) + 1]; }
    for (std::size_t e = 1; e < offsets.size(); ++e) { offsets[e] += offsets[e - 1]; }
    // `offsets[e]` serves as expert e's write cursor and ends up one expert late; the second pass puts it back.
    for (std::size_t p = 0; p < experts.size(); ++p) {
      slots[static_cast<std::size_t>(offsets[static_cast<std::size_t>(experts[p])]++)] = static_cast<index_t>(p);
    }
    for (std::size_t e = offsets.size() - 1; e > 0; --e) { offsets[e] = offsets[e - 1]; }
    offsets[0] = 0;
  }
  /// Give the placement shares, even ones to start with: the remainder of `share_one` goes to the first replicas.
  void make_shares_even() {
    shares_.resize(logical_of_slot_.size());
    for (index_t layer = 0; layer < shape_.num_layers; ++layer) { make_shares_even(layer); }
  }
  /// As above, for one layer. @pre `has_shares()`
  void make_shares_even(index_t layer) {
    auto const out = edit_shares(layer);
    for (index_t expert = 0; expert < shape_.num_logical; ++expert) {
      auto const replicas = replicas_of(layer, expert);
      auto const count = static_cast<share_t>(replicas.size());
      for (share_t i = 0; i < count; ++i) { out[static_cast<std::size_t>(replicas[i])] = even_share(count, i); }
    }
  }
  /// Whether each expert of a layer is split as `make_shares_even` does: without shares it is.
  [[nodiscard]] bool has_even_shares(index_t layer) const {
    if (!has_shares()) { return true; }
    auto const given = shares(layer);
    for (index_t expert = 0; expert < shape_.num_logical; ++expert) {
      auto const replicas = replicas_of(layer, expert);
      auto const count = static_cast<share_t>(replicas.size());
      for (share_t i = 0; i < count; ++i) {
        if (given[static_cast<std::size_t>(replicas[i])] != even_share(count, i)) { return false; }
      }
    }
    return true;
  }
  void drop_shares() noexcept { shares_.clear(); }
  /// `[P]` writable shares of one layer; whoever writes keeps each expert's sum at `share_one`. @pre `has_shares()`
  [[nodiscard]] std::span<share_t> edit_shares(index_t layer) {
    BALLAST_EXPECTS(has_shares(), "placement: no shares, the split is even");
    return row(shares_, layer, shape_.num_slots);
  }
  /// Take one layer over from another placement of the same shape: map, inverse and shares.
  void copy_layer(placement const& from, index_t layer) {
    BALLAST_EXPECTS(from.shape_ == shape_, "placement: copy_layer needs equal shapes");
    auto const copy = [](auto const& source, auto const& target) {
      std::copy(source.begin(), source.end(), target.begin());
    };
    auto const to = edit(layer);
    copy(from.logical_of_slot(layer), to.logical_of_slot);
    copy(from.replica_offsets(layer), to.replica_offsets);
    copy(from.replica_slots(layer), to.replica_slots);
    if (from.has_shares()) {
      if (!has_shares()) { make_shares_even(); }
      copy(from.shares(layer), edit_shares(layer));
    } else if (has_shares()) {
      make_shares_even(layer);
    }
  }

private:
  void swap(placement& other) noexcept {
    std::swap(shape_, other.shape_);
    logical_of_slot_.swap(other.logical_of_slot_);
    replica_offsets_.swap(other.replica_offsets_);
    replica_slots_.swap(other.replica_slots_);
    shares_.swap(other.shares_);
  }
  /// What the i-th of so many replicas has.
  [[nodiscard]] static constexpr share_t even_share(share_t count, share_t i) noexcept {
    return share_one / count + (i < share_one % count ? 1 : 0);
  }
  template <class T>
  [[nodiscard]] std::span<T const> row(std::vector<T> const& elements, index_t layer, index_t width) const {
    BALLAST_EXPECTS_BELOW(layer, shape_.num_layers, "placement: layer");
    return std::span{elements}.subspan(static_cast<std::size_t>(layer) * static_cast<std::size_t>(width),
                                       static_cast<std::size_t>(width));
  }
  template <class T>
  [[nodiscard]] std::span<T> row(std::vector<T>& elements, index_t layer, index_t width) {
    BALLAST_EXPECTS_BELOW(layer, shape_.num_layers, "placement: layer");
    return std::span{elements}.subspan(static_cast<std::size_t>(layer) * static_cast<std::size_t>(width),
                                       static_cast<std::size_t>(width));
  }

  placement_shape shape_;
  std::vector<index_t> logical_of_slot_;
  std::vector<index_t> replica_offsets_;
  std::vector<index_t> replica_slots_;
  std::vector<share_t> shares_;
};

namespace detail {

/// Whether tokens are split otherwise, where maps are the same. Without shares the split is even.
[[nodiscard]] inline bool shares_differ(placement const& a, placement const& b, index_t layer) {
  if (a.has_shares() && b.has_shares()) { return !std::ranges::equal(a.shares(layer), b.shares(layer)); }
  return !a.has_even_shares(layer) || !b.has_even_shares(layer);
}

}  // namespace detail

/// The placement that engines start from: slot p holds expert p mod E.
/// @throws std::system_error for sizes that hold no placement
/// @source SGLang `init_trivial`
[[nodiscard]] inline placement trivial_placement(placement_shape shape) {
  placement::validate_shape(shape).or_throw();
  placement result;
  result.resize(shape);
  for (index_t layer = 0; layer < shape.num_layers; ++layer) {
    auto const map = result.edit(layer).logical_of_slot;
    for (std::size_t p = 0; p < map.size(); ++p) { map[p] = static_cast<index_t>(p) % shape.num_logical; }
    result.index_replicas(layer);
  }
  return result;
}

BALLAST_END_NAMESPACE

#endif
