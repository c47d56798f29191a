// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The integer arithmetic against the processor's: the same bits.
#include <ballast/policies/detail/deepseek/float32.hpp>

#include "../support/random.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cstdint>
#include <initializer_list>

namespace {

using namespace ballast;
using detail::float32_bits;
using exact = detail::integer_float32;
using native = detail::native_float32;

constexpr float32_bits bits(float value) { return std::bit_cast<float32_bits>(value); }

static_assert(exact::from_integer(0) == 0);
static_assert(exact::from_integer(1) == bits(1.0f));
static_assert(exact::from_integer((1 << 24) + 1) == bits(16777216.0f), "halfway, to even: down");
static_assert(exact::from_integer((1 << 24) + 3) == bits(16777220.0f), "halfway, to even: up");
static_assert(exact::from_integer((1 << 25) - 1) == bits(33554432.0f), "a carry through all digits");
static_assert(exact::sum(bits(16777216.0f), bits(1.0f)) == bits(16777216.0f));
static_assert(exact::sum(bits(1.0f), bits(16777218.0f)) == bits(16777220.0f));
static_assert(exact::quotient(bits(1.0f), 3) == bits(1.0f / 3.0f));
static_assert(exact::quotient(0, 7) == 0);

/// Any number of bits, so that all magnitudes come up.
load_t random_load(ballast_test::generator& random) {
  return static_cast<load_t>(random.next() >> (20 + random.below(44)));
}

}  // namespace

// What the compiler does to `native` under these flags is not defined, and not used.
#if !defined(__FAST_MATH__)

TEST_CASE("integers are rounded as the processor rounds them") {
  ballast_test::generator random{1};
  for (int trial = 0; trial < 50'000; ++trial) {
    auto const value = random_load(random);
    CAPTURE(value);
    REQUIRE(exact::from_integer(value) == native::from_integer(value));
  }
  for (int place = 24; place < 44; ++place) {
    for (load_t const offset : {-2, -1, 0, 1, 2, 3}) {
      auto const value = (load_t{1} << place) + (load_t{1} << (place - 24)) + offset;
      CAPTURE(value);
      REQUIRE(exact::from_integer(value) == native::from_integer(value));
    }
  }
}

TEST_CASE("sums are the processor's, far apart, halfway and equal") {
  ballast_test::generator random{2};
  for (int trial = 0; trial < 50'000; ++trial) {
    auto const a = native::from_integer(random_load(random));
    auto const b = trial % 3 == 0 ? a : native::from_integer(random_load(random));
    CAPTURE(a);
    CAPTURE(b);
    REQUIRE(exact::sum(a, b) == native::sum(a, b));
    auto const third = native::quotient(b, 3);
    REQUIRE(exact::sum(third, a) == native::sum(third, a));
  }
}

TEST_CASE("quotients are the processor's, up to the largest divisor") {
  ballast_test::generator random{3};
  for (int trial = 0; trial < 50'000; ++trial) {
    auto const a = native::from_integer(random_load(random));
    auto const divisor = static_cast<index_t>(1 + (random.next() >> (40 + random.below(24))));
    CAPTURE(a);
    CAPTURE(divisor);
    REQUIRE(exact::quotient(a, divisor) == native::quotient(a, divisor));
  }
  REQUIRE(exact::quotient(bits(16777215.0f), 1 << 24) == native::quotient(bits(16777215.0f), 1 << 24));
}

TEST_CASE("quotients a hair above halfway are rounded up") {
  int cases = 0;
  for (index_t divisor = (1 << 24) - 1; divisor > (1 << 24) - 20'000; divisor -= 2) {
    // The inverse of 2^25 modulo the divisor: its quotient, 24 places up, is 1 / (2 divisor) above a half.
    index_t dividend = 1;
    for (int i = 0; i < 25; ++i) { dividend = dividend % 2 == 0 ? dividend / 2 : (dividend + divisor) / 2; }
    if (dividend < (1 << 23)) { continue; }
    auto const a = native::from_integer(dividend);
    CAPTURE(dividend);
    CAPTURE(divisor);
    REQUIRE(exact::quotient(a, divisor) == native::quotient(a, divisor));
    ++cases;
  }
  CHECK(cases > 1000);
}

#endif
