// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_DEEPSEEK_DESCENDING_ORDER_HPP
#define BALLAST_POLICIES_DETAIL_DEEPSEEK_DESCENDING_ORDER_HPP

#include <ballast/config.hpp>
#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Sorts positions by descending key, equal keys by ascending position. Holds the memory that this takes.
///
/// Time hardly depends on the keys: few keys are ranked by counting the greater ones, which compilers vectorise, many
/// are sorted by radix.
class descending_order {
public:
  explicit descending_order(std::size_t max_keys)
      : ties_(std::min(max_keys, max_counted)),
        radix_(max_keys > max_counted ? 2 * max_keys : 0),
        histograms_(max_keys > max_counted ? num_digits : 0) {}

  /// Keys are read in blocks of this many: `keys` must be readable up to a multiple of it.
  static constexpr std::size_t block = 8;
  [[nodiscard]] static constexpr std::size_t padded(std::size_t num_keys) noexcept {
    return (num_keys + block - 1) / block * block;
  }

  /// @param keys   [padded(n)], >= 0; what is behind the n-th does not matter.
  /// @param order  out: [n] positions.
  void operator()(std::int32_t const* keys, std::span<index_t> order) {
    if (order.size() <= max_counted) {
      sort_by_counting(keys, order);
    } else {
      sort_by_radix(keys, order);
    }
  }

private:
  static constexpr std::size_t max_counted = 192;
  static constexpr std::size_t num_digits = 4;
  using histogram = std::array<std::uint32_t, 256>;

  void sort_by_counting(std::int32_t const* keys, std::span<index_t> order) {
    std::size_t const n = order.size();
    std::fill_n(ties_.begin(), n, std::uint32_t{0});
    for (std::size_t first = 0; first < n; first += block) {
      std::array<std::int32_t, block> own{};
      std::array<std::int32_t, block> greater{};
      for (std::size_t i = 0; i < block; ++i) { own[i] = keys[first + i]; }
      for (std::size_t j = 0; j < n; ++j) {
        auto const key = keys[j];
        for (std::size_t i = 0; i < block; ++i) { greater[i] += key > own[i] ? 1 : 0; }
      }
      std::size_t const last = std::min(block, n - first);
      for (std::size_t i = 0; i < last; ++i) {
        auto const place = static_cast<std::size_t>(greater[i]);
        order[place + ties_[place]++] = static_cast<index_t>(first + i);
      }
    }
  }

  void sort_by_radix(std::int32_t const* keys, std::span<index_t> order) {
    std::size_t const n = order.size();
    std::uint64_t* from = radix_.data();
    std::uint64_t* to = from + n;
    for (auto& counts : histograms_) { counts.fill(0); }
    for (std::size_t i = 0; i < n; ++i) {
      auto const descending = ~static_cast<std::uint32_t>(keys[i]);
      from[i] = (std::uint64_t{descending} << 32) | i;
      for (std::size_t d = 0; d < num_digits; ++d) { ++histograms_[d][(descending >> (8 * d)) & 255]; }
    }
    for (std::size_t d = 0; d < num_digits; ++d) {
      auto& place = histograms_[d];
      std::uint32_t sum = 0;
      for (auto& count : place) { sum += std::exchange(count, sum); }
      for (std::size_t i = 0; i < n; ++i) { to[place[(from[i] >> (32 + 8 * d)) & 255]++] = from[i]; }
      std::swap(from, to);
    }
    for (std::size_t i = 0; i < n; ++i) { order[i] = static_cast<index_t>(from[i] & 0xffffffffu); }
  }

  std::vector<std::uint32_t> ties_;
  std::vector<std::uint64_t> radix_;
  std::vector<histogram> histograms_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
