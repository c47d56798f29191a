// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_WORK_SLICE_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_WORK_SLICE_HPP

#include <ballast/config.hpp>

#include <cstdint>
#include <limits>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// How much may be done before a search stops, to go on with the next slice: candidates looked at, and for all else as
/// many as take about as long. Counted, never timed: where a search stops is the same on every machine. It stops
/// between two steps, so what a slice ends with may be below 0 by the last one.
class work_slice {
public:
  constexpr explicit work_slice(std::int64_t work) noexcept : left_{work} {}
  [[nodiscard]] static constexpr work_slice endless() noexcept {
    return work_slice{std::numeric_limits<std::int64_t>::max()};
  }

  [[nodiscard]] constexpr bool is_used_up() const noexcept { return left_ <= 0; }
  constexpr void spend(std::int64_t work) noexcept { left_ -= work; }
  [[nodiscard]] constexpr std::int64_t left() const noexcept { return left_; }

private:
  std::int64_t left_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
