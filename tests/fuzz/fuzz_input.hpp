// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FUZZ_FUZZ_INPUT_HPP
#define BALLAST_TESTS_FUZZ_FUZZ_INPUT_HPP

#include <ballast/placement/placement.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <utility>
#include <vector>

namespace ballast_fuzz {

/// Stop where a promise is broken, so that the fuzzer keeps the input.
inline void require(bool holds, char const* promise) {
  if (holds) { return; }
  std::fprintf(stderr, "broken: %s\n", promise);
  std::abort();
}

/// Turns the fuzzer's bytes into choices; after the last byte every choice is 0.
class input {
public:
  input(std::uint8_t const* data, std::size_t size) : bytes_{data, size} {}

  [[nodiscard]] bool empty() const noexcept { return bytes_.empty(); }
  std::uint8_t byte() {
    if (bytes_.empty()) { return 0; }
    auto const first = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return first;
  }
  /// In [least, most], at most 256 values.
  template <class T>
  T between(T least, T most) {
    return static_cast<T>(least + static_cast<T>(byte() % (most - least + 1)));
  }
  bool flag() { return (byte() & 1) != 0; }

private:
  std::span<std::uint8_t const> bytes_;
};

/// Any placement of that shape: each expert somewhere, the other slots anything.
inline ballast::placement draw_placement(input& from, ballast::placement_shape shape) {
  ballast::placement made;
  made.resize(shape);
  for (ballast::index_t layer = 0; layer < shape.num_layers; ++layer) {
    auto const map = made.edit(layer).logical_of_slot;
    for (std::size_t slot = 0; slot < map.size(); ++slot) {
      map[slot] = slot < static_cast<std::size_t>(shape.num_logical)
                      ? static_cast<ballast::index_t>(slot)
                      : static_cast<ballast::index_t>(from.byte() % shape.num_logical);
    }
    for (std::size_t slot = map.size(); slot > 1; --slot) { std::swap(map[slot - 1], map[from.byte() % slot]); }
    made.index_replicas(layer);
  }
  return made;
}

}  // namespace ballast_fuzz

#endif
