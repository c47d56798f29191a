// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_PLAN_MESSAGE_HPP
#define BALLAST_RUNTIME_DETAIL_PLAN_MESSAGE_HPP

#include <ballast/config.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A placement as one rank tells it to the others: map, replica order and shares, `[L, P]` each, then whether there is
/// a placement at all and whether it has shares.
class plan_message {
public:
  /// No placement yet, of the shape that every rank has.
  explicit plan_message(placement_shape shape)
      : shape_{shape},
        slots_{static_cast<std::size_t>(shape.num_slots)},
        cells_{slots_ * static_cast<std::size_t>(shape.num_layers)},
        words_(3 * cells_ + 2) {}

  [[nodiscard]] std::span<std::byte> bytes() noexcept { return std::as_writable_bytes(std::span{words_}); }
  [[nodiscard]] bool has_plan() const noexcept { return words_[3 * cells_] != 0; }

  void write(placement const& plan) {
    for (index_t layer = 0; layer < shape_.num_layers; ++layer) {
      std::ranges::copy(plan.logical_of_slot(layer), row(0, layer).begin());
      std::ranges::copy(plan.replica_slots(layer), row(1, layer).begin());
      if (plan.has_shares()) { std::ranges::copy(plan.shares(layer), row(2, layer).begin()); }
    }
    words_[3 * cells_] = 1;
    words_[3 * cells_ + 1] = plan.has_shares() ? 1 : 0;
  }
  /// @pre has_plan()
  [[nodiscard]] status read(placement& plan) const {
    std::vector<index_t> const map(words_.begin(), words_.begin() + static_cast<std::ptrdiff_t>(cells_));
    if (auto result = plan.assign(shape_, map); !result.ok()) { return result; }
    if (words_[3 * cells_ + 1] != 0) { plan.make_shares_even(); }
    for (index_t layer = 0; layer < shape_.num_layers; ++layer) {
      std::ranges::copy(row(1, layer), plan.edit(layer).replica_slots.begin());
      if (plan.has_shares()) { std::ranges::copy(row(2, layer), plan.edit_shares(layer).begin()); }
    }
    return {};
  }

private:
  /// A layer's row of the map (0), the replica order (1) or the shares (2).
  [[nodiscard]] std::span<std::uint32_t> row(std::size_t part, index_t layer) {
    return std::span{words_}.subspan(first_of_row(part, layer), slots_);
  }
  [[nodiscard]] std::span<std::uint32_t const> row(std::size_t part, index_t layer) const {
    return std::span{words_}.subspan(first_of_row(part, layer), slots_);
  }
  [[nodiscard]] std::size_t first_of_row(std::size_t part, index_t layer) const noexcept {
    return part * cells_ + static_cast<std::size_t>(layer) * slots_;
  }

  placement_shape shape_;
  std::size_t slots_;
  std::size_t cells_;
  std::vector<std::uint32_t> words_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
