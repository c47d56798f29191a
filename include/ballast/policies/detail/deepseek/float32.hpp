// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_DEEPSEEK_FLOAT32_HPP
#define BALLAST_POLICIES_DETAIL_DEEPSEEK_FLOAT32_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <bit>
#include <cstdint>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A non-negative IEEE 754 binary32 number as its bits: as integers they order as the numbers do.
using float32_bits = std::int32_t;

/// Arithmetic of the processor's float unit. Needs round-to-nearest, and a compiler that keeps to IEEE 754.
struct native_float32 {
  [[nodiscard]] static constexpr float32_bits from_integer(load_t value) noexcept {
    return std::bit_cast<float32_bits>(static_cast<float>(value));
  }
  [[nodiscard]] static constexpr float32_bits sum(float32_bits a, float32_bits b) noexcept {
    return std::bit_cast<float32_bits>(std::bit_cast<float>(a) + std::bit_cast<float>(b));
  }
  [[nodiscard]] static constexpr float32_bits quotient(float32_bits a, index_t divisor) noexcept {
    return std::bit_cast<float32_bits>(std::bit_cast<float>(a) / static_cast<float>(divisor));
  }
};

/// The same results from integers alone, whatever the compiler may do to floats.
///
/// Covers what a planner needs: non-negative normal numbers and zero, results below 2^127, divisors in [1, 2^24].
struct integer_float32 {
  [[nodiscard]] static constexpr float32_bits from_integer(load_t value) noexcept {
    return rounded(static_cast<std::uint64_t>(value), 0);
  }
  [[nodiscard]] static constexpr float32_bits sum(float32_bits a, float32_bits b) noexcept {
    if (a < b) { std::swap(a, b); }
    int const distance = exponent(a) - exponent(b);
    // Beyond 25 places the smaller number is less than half of the larger one's last digit.
    if (b == 0 || distance > 25) { return a; }
    return rounded((mantissa(a) << distance) + mantissa(b), exponent(b));
  }
  [[nodiscard]] static constexpr float32_bits quotient(float32_bits a, index_t divisor) noexcept {
    if (a == 0) { return 0; }
    auto const numerator = mantissa(a) << 39;
    auto const by = static_cast<std::uint64_t>(divisor);
    std::uint64_t const remains = numerator % by != 0 ? 1 : 0;
    return rounded((numerator / by) | remains, exponent(a) - 39);
  }

private:
  static constexpr int mantissa_bits = 24;
  static constexpr int exponent_bias = 150;

  [[nodiscard]] static constexpr std::uint64_t mantissa(float32_bits bits) noexcept {
    return (static_cast<std::uint64_t>(bits) & 0x7fffffu) | 0x800000u;
  }
  [[nodiscard]] static constexpr int exponent(float32_bits bits) noexcept { return (bits >> 23) - exponent_bias; }

  /// `value` * 2^`power`, rounded to nearest, ties to even. The lowest bit of a long `value` may stand for all below.
  [[nodiscard]] static constexpr float32_bits rounded(std::uint64_t value, int power) noexcept {
    if (value == 0) { return 0; }
    int const excess = static_cast<int>(std::bit_width(value)) - mantissa_bits;
    if (excess <= 0) {
      value <<= -excess;
    } else {
      auto const cut = value & ((std::uint64_t{1} << excess) - 1);
      auto const half = std::uint64_t{1} << (excess - 1);
      value >>= excess;
      value += (cut > half || (cut == half && (value & 1) != 0)) ? 1 : 0;
    }
    // The mantissa's leading one adds the missing 1 to the exponent field, and so does a carry out of the rounding.
    return ((power + excess + exponent_bias - 1) << 23) + static_cast<float32_bits>(value);
  }
};

// Compilers that are allowed to reorder, approximate or widen floats get the integer arithmetic.
#if defined(__FAST_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(_M_FP_FAST)
using float32 = integer_float32;
#elif defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
using float32 = integer_float32;
#else
using float32 = native_float32;
#endif

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
