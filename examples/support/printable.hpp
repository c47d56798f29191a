// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_PRINTABLE_HPP
#define BALLAST_EXAMPLES_SUPPORT_PRINTABLE_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ballast_tools {

namespace detail {

/// A character at the start of a text: its code point and its bytes; no bytes where the text is not UTF-8.
struct utf8_character {
  std::uint32_t code = 0;
  std::size_t size = 0;
};

[[nodiscard]] inline utf8_character first_character(std::string_view text) {
  auto const byte = [text](std::size_t at) { return std::uint32_t{static_cast<unsigned char>(text[at])}; };
  if (byte(0) < 0x80) { return {byte(0), 1}; }
  std::size_t const size = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
  if (byte(0) < 0xc2 || byte(0) > 0xf4 || text.size() < size) { return {}; }
  auto code = byte(0) & (0x7fu >> size);
  for (std::size_t at = 1; at < size; ++at) {
    if ((byte(at) & 0xc0) != 0x80) { return {}; }
    code = code << 6 | (byte(at) & 0x3f);
  }
  constexpr std::array<std::uint32_t, 5> least_of_size{0, 0, 0x80, 0x800, 0x10000};
  bool const surrogate = code >= 0xd800 && code <= 0xdfff;
  if (code < least_of_size[size] || code > 0x10ffff || surrogate) { return {}; }
  return {code, size};
}

/// Whether a terminal shows the character as what it is: no control, no invisible character, no change of direction.
[[nodiscard]] inline bool shows(std::uint32_t code) {
  struct range {
    std::uint32_t first;
    std::uint32_t last;
  };
  constexpr std::array hidden{range{0, 0x1f},        range{0x7f, 0x9f},      range{0xad, 0xad},
                              range{0x061c, 0x061c}, range{0x180e, 0x180e},  range{0x200b, 0x200f},
                              range{0x2028, 0x202e}, range{0x2060, 0x206f},  range{0xfeff, 0xfeff},
                              range{0xfff9, 0xfffb}, range{0xe0000, 0xe007f}};
  return std::none_of(hidden.begin(), hidden.end(), [code](range in) { return code >= in.first && code <= in.last; });
}

}  // namespace detail

/// A text that somebody else wrote, as it can be shown on a terminal: control characters, invisible ones and bytes that
/// are no UTF-8 become `\xHH`, byte by byte. Nothing is cut off.
[[nodiscard]] inline std::string printable(std::string_view text) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string shown;
  while (!text.empty()) {
    auto const character = detail::first_character(text);
    auto const size = std::max(character.size, std::size_t{1});
    if (character.size > 0 && detail::shows(character.code)) {
      shown += text.substr(0, size);
    } else {
      for (auto const letter : text.substr(0, size)) {
        auto const byte = static_cast<unsigned char>(letter);
        (((shown += "\\x") += digits[byte / 16]) += digits[byte % 16]);
      }
    }
    text.remove_prefix(size);
  }
  return shown;
}

/// The first characters of a text that may be long, for a message.
[[nodiscard]] inline std::string excerpt(std::string_view text) {
  constexpr std::size_t longest = 40;
  if (text.size() <= longest) { return std::string{text}; }
  return std::string{text.substr(0, longest - 3)} + "...";
}

}  // namespace ballast_tools

#endif
