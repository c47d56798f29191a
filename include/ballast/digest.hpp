// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DIGEST_HPP
#define BALLAST_DIGEST_HPP

#include <ballast/config.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

BALLAST_BEGIN_NAMESPACE

/// Sixty-four bits that ranks compare before they act, and checksums of moved bytes.
///
/// Not cryptographic: it tells accidents apart, not attackers. Values are mixed as integers, bytes as little-endian
/// words, so the result is the same on every machine and compiler.
class digest {
public:
  constexpr digest& add(std::uint64_t word) noexcept {
    state_ = mix(state_ ^ mix(word + 0x9e3779b97f4a7c15u));
    ++words_;
    return *this;
  }
  template <std::integral T>
  constexpr digest& add(T value) noexcept {
    return add(static_cast<std::uint64_t>(static_cast<std::int64_t>(value)));
  }
  /// Fractions would be cut off: 0.25 and 0.75 must not look alike. Mix the bits of the number in, if it must be one.
  template <std::floating_point T>
  constexpr digest& add(T value) noexcept = delete;
  template <std::integral T>
  constexpr digest& add(std::span<T const> values) noexcept {
    add(values.size());
    for (T const value : values) { add(value); }
    return *this;
  }
  constexpr digest& add(std::string_view text) noexcept {
    add(text.size());
    for (char const c : text) { add(static_cast<std::uint64_t>(static_cast<unsigned char>(c))); }
    return *this;
  }
  /// Mix raw bytes in, eight at a time. @complexity O(bytes), no allocation.
  digest& add_bytes(std::span<std::byte const> bytes) noexcept {
    std::size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) { add(word_at(bytes, at, 8)); }
    if (at < bytes.size()) { add(word_at(bytes, at, bytes.size() - at)); }
    return add(bytes.size());
  }

  [[nodiscard]] constexpr std::uint64_t value() const noexcept { return mix(state_ + words_); }

private:
  [[nodiscard]] static constexpr std::uint64_t mix(std::uint64_t x) noexcept {
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 29;
    x *= 0xa0761d6478bd642fu;
    x ^= x >> 32;
    return x;
  }
  [[nodiscard]] static std::uint64_t word_at(std::span<std::byte const> bytes, std::size_t at, std::size_t n) noexcept {
    std::uint64_t word = 0;
    for (std::size_t i = 0; i < n; ++i) { word |= static_cast<std::uint64_t>(bytes[at + i]) << (8 * i); }
    return word;
  }

  std::uint64_t state_ = 0x243f6a8885a308d3u;
  std::uint64_t words_ = 0;
};

BALLAST_END_NAMESPACE

#endif
