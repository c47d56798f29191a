// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TYPES_HPP
#define BALLAST_TYPES_HPP

#include <ballast/config.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE

/// Every id and count of ids that is stored in an array (engines hand these arrays to kernels as int32).
using index_t = std::int32_t;

/// Tokens routed to an expert in a window. Signed, so that bad input can be told from a large count.
using load_t = std::int64_t;

/// Fraction of a logical expert's tokens that one replica takes, in units of 1 / `share_one`.
/// An integer, so that shares are the same on every rank and sum to exactly one.
using share_t = std::uint32_t;
inline constexpr share_t share_one = share_t{1} << 30;

/// Number of the placement in force for one layer; 0 is the placement the engine loaded its weights with.
using epoch_t = std::uint64_t;

/// Host time in nanoseconds on a monotonic clock (`detail/clock.hpp`), or a duration in nanoseconds.
using nanoseconds_t = std::int64_t;

/// Stands for a duration that was not measured, or is not known yet; every negative one does.
inline constexpr nanoseconds_t not_measured = -1;

/// Position of a GPU in the expert-parallel group, in [0, R). A scalar parameter type: arrays hold `index_t`.
enum class rank_id : index_t {};
[[nodiscard]] constexpr index_t to_index(rank_id rank) noexcept { return static_cast<index_t>(rank); }

BALLAST_END_NAMESPACE

#endif
