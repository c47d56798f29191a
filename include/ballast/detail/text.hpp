// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_TEXT_HPP
#define BALLAST_DETAIL_TEXT_HPP

#include <ballast/config.hpp>

#include <charconv>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

BALLAST_BEGIN_NAMESPACE
namespace detail {

inline void append(std::string& text, std::string_view part) { text += part; }
inline void append(std::string& text, char const* part) { text += part; }
inline void append(std::string& text, char part) { text += part; }
template <std::integral T>
void append(std::string& text, T value) {
  char digits[24];
  auto const end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  text.append(digits, static_cast<std::size_t>(end - digits));  // of pointers, g++ 12 warns at -O3
}
inline void append(std::string& text, double value) {
  char digits[40];
  std::snprintf(digits, sizeof digits, "%.6g", value);
  text += digits;
}

/// Error messages are made here; libstdc++ 12 has no `std::format`.
template <class... Parts>
[[nodiscard]] std::string concat(Parts const&... parts) {
  std::string text;
  (append(text, parts), ...);
  return text;
}

[[nodiscard]] inline std::string hex(std::uint64_t value) {
  char digits[20];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(value));
  return digits;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
