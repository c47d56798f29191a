// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DISPATCH_TABLE_VIEW_HPP
#define BALLAST_DISPATCH_TABLE_VIEW_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE

/// Where the candidates of one logical expert start among a layer's entries, and how many there are.
struct replica_range {
  index_t first = 0;  ///< in [0, P)
  index_t count = 0;  ///< 0 for an expert that has no live replica: its ids map to -1

  bool operator==(replica_range const&) const = default;
};

/// One candidate, packed so that a lookup reads it with a single load: `physical` in bits 0 to 23, `alias` in bits 24
/// to 47, `threshold` in bits 48 to 63. The candidate keeps `threshold` / 65536 of the tokens that draw it and hands
/// the rest to `alias` (alias sampling); a candidate that keeps everything names itself as its alias.
using dispatch_entry = std::uint64_t;

/// Physical ids fit 24 bits of a `dispatch_entry`.
inline constexpr index_t max_dispatch_ids = index_t{1} << 24;

[[nodiscard]] BALLAST_HOST_DEVICE constexpr dispatch_entry make_dispatch_entry(index_t physical, index_t alias,
                                                                               std::uint32_t threshold) noexcept {
  return static_cast<dispatch_entry>(physical) | static_cast<dispatch_entry>(alias) << 24 |
         static_cast<dispatch_entry>(threshold & 0xffffu) << 48;
}
[[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t physical_of(dispatch_entry entry) noexcept {
  return static_cast<index_t>(entry & 0xffffffu);
}
[[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t alias_of(dispatch_entry entry) noexcept {
  return static_cast<index_t>(entry >> 24 & 0xffffffu);
}
[[nodiscard]] BALLAST_HOST_DEVICE constexpr std::uint32_t threshold_of(dispatch_entry entry) noexcept {
  return static_cast<std::uint32_t>(entry >> 48);
}

/// How a lookup chooses among several candidates.
enum class dispatch_rule : std::uint32_t {
  hashed,   ///< by a hash of row, k, expert, layer and salt, in proportion to the candidates' shares
  rotated,  ///< by row, one candidate after the other, starting at a hash of expert, layer and salt
};

/// The tables of one rank as plain pointers and sizes, in host or in device memory.
///
/// Pointers and sizes never change for the life of the tables, so that a captured graph may hold a copy of the view;
/// what a commit changes is what the pointers lead to.
struct dispatch_view {
  replica_range const* ranges = nullptr;    ///< [L, E]
  dispatch_entry const* entries = nullptr;  ///< [L, P]
  index_t num_layers = 0;                   ///< L
  index_t num_logical = 0;                  ///< E
  index_t num_slots = 0;                    ///< P, entries that a layer has room for
  index_t num_reserved = 0;                 ///< F, ids [E, E + F) are this rank's reserved slots
  index_t first_reserved = 0;               ///< physical id of this rank's first reserved slot
  std::uint32_t salt = 0;                   ///< differs from rank to rank; 0 where all ranks must agree
  dispatch_rule rule = dispatch_rule::hashed;
};

namespace detail {

/// Spread every input bit over all output bits.
[[nodiscard]] BALLAST_HOST_DEVICE constexpr std::uint32_t scramble(std::uint32_t x) noexcept {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

/// What a draw depends on besides the row and k: the same for all tokens of a layer and expert on one rank.
[[nodiscard]] BALLAST_HOST_DEVICE constexpr std::uint32_t dispatch_seed(std::uint32_t salt, index_t layer,
                                                                        index_t expert) noexcept {
  return salt + static_cast<std::uint32_t>(layer) * 0x9e3779b1u + static_cast<std::uint32_t>(expert) * 0x85ebca77u;
}

/// Candidate of `range` for a 32-bit draw: the high half of draw * count is the column, the next 16 bits decide
/// between the column's candidate and its alias.
[[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t pick_hashed(dispatch_entry const* entries, replica_range range,
                                                                std::uint32_t draw) noexcept {
  auto const scaled = static_cast<std::uint64_t>(draw) * static_cast<std::uint32_t>(range.count);
  auto const entry = entries[range.first + static_cast<index_t>(scaled >> 32)];
  auto const fraction = static_cast<std::uint32_t>(scaled) >> 16;
  return fraction < threshold_of(entry) ? physical_of(entry) : alias_of(entry);
}

}  // namespace detail

/// Map one logical id of the router to the physical id that this token goes to.
///
/// @param view   tables of this rank; `layer` in [0, L).
/// @param row    position of the token in the batch, `k` position of the id among the token's choices.
/// @param id     logical expert in [0, E), reserved id in [E, E + F), anything else is invalid.
/// @return physical id in [0, R (S + F)), or -1 for an invalid id and for an expert without a live replica.
/// @pre `0 <= layer < view.num_layers`
/// @complexity O(1), three dependent loads.
/// @throws nothing
/// @determinism depends on the arguments and the tables alone; identical on host and device.
[[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t dispatch_one(dispatch_view const& view, index_t layer,
                                                                 std::uint32_t row, std::uint32_t k,
                                                                 std::int64_t id) noexcept {
  if (id < 0 || id >= static_cast<std::int64_t>(view.num_logical) + view.num_reserved) { return -1; }
  auto const expert = static_cast<index_t>(id);
  if (expert >= view.num_logical) { return view.first_reserved + (expert - view.num_logical); }
  auto const range = view.ranges[static_cast<std::ptrdiff_t>(layer) * view.num_logical + expert];
  if (range.count == 0) { return -1; }
  auto const* entries = view.entries + static_cast<std::ptrdiff_t>(layer) * view.num_slots;
  auto const seed = detail::dispatch_seed(view.salt, layer, expert);
  if (view.rule == dispatch_rule::rotated) {
    auto const turn = (detail::scramble(seed) >> 1) + row;
    return physical_of(entries[range.first + static_cast<index_t>(turn % static_cast<std::uint32_t>(range.count))]);
  }
  auto const draw = detail::scramble(detail::scramble(seed + k * 0xc2b2ae3du) + row * 0x27d4eb2fu);
  return detail::pick_hashed(entries, range, draw);
}

BALLAST_END_NAMESPACE

#endif
