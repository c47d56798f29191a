// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/digest.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace {

using namespace ballast;

constexpr std::uint64_t of(auto const&... values) {
  digest result;  // NOLINT(misc-const-correctness): const only where there are no values
  (result.add(values), ...);
  return result.value();
}

std::uint64_t of_bytes(std::vector<unsigned char> const& bytes) {
  digest result;
  result.add_bytes(std::as_bytes(std::span{bytes}));
  return result.value();
}

static_assert(of(1, 2) == of(1, 2));
static_assert(of(1, 2) != of(2, 1), "order counts");
static_assert(of() != of(0), "a zero counts");
static_assert(of(0) != of(0, 0));
static_assert(of(std::string_view{"ab"}, std::string_view{"c"}) != of(std::string_view{"a"}, std::string_view{"bc"}));

// A fraction would be cut off to an integer: 0.25 and 0.75 would look alike.
template <class T>
constexpr bool can_be_added = requires(digest& to, T value) { to.add(value); };
static_assert(!can_be_added<double> && !can_be_added<float> && !can_be_added<long double>);
static_assert(can_be_added<int> && can_be_added<bool> && can_be_added<std::uint64_t> && can_be_added<std::int8_t>);
static_assert(can_be_added<std::string_view> && can_be_added<std::span<int const>>);

}  // namespace

TEST_CASE("the digest is the same on every machine") {
  // Printed once on x86-64; a rank of another kind must agree.
  CHECK(of() == 0xcbc4067cdadf7585u);
  CHECK(of(std::int32_t{-1}, std::uint64_t{7}, std::string_view{"ballast"}) == 0x8ebb07f0a3efa06eu);
  CHECK(of_bytes({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}) == 0x93169e95833fb948u);
}

TEST_CASE("integers count by value, whatever their type") {
  CHECK(of(std::int32_t{-5}) == of(std::int64_t{-5}));
  CHECK(of(std::uint8_t{200}) == of(std::int32_t{200}));
  CHECK(of(true) == of(1));
  CHECK(of(std::int32_t{-5}) != of(std::uint32_t{0xfffffffb}));
}

TEST_CASE("the length of a row counts") {
  std::array<std::int32_t, 4> const row{1, 2, 3, 4};
  auto const split = [&row](std::size_t at) {
    digest result;
    result.add(std::span<std::int32_t const>{row}.first(at)).add(std::span<std::int32_t const>{row}.subspan(at));
    return result.value();
  };
  CHECK(split(1) != split(2));
  CHECK(split(0) != split(4));
}

TEST_CASE("every byte counts, and so do trailing zeros") {
  std::vector<unsigned char> bytes(100, 0);
  auto const before = of_bytes(bytes);
  for (auto& byte : bytes) {
    byte = 1;
    CHECK(of_bytes(bytes) != before);
    byte = 0;
  }
  CHECK(of_bytes(std::vector<unsigned char>(99, 0)) != before);
  CHECK(of_bytes({}) != of_bytes({0}));
}
