// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_BALANCEDNESS_HPP
#define BALLAST_PLACEMENT_BALANCEDNESS_HPP

#include <ballast/contract.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

namespace detail {
/// Replica loads are integers in units of 1 / `load_unit` token, so that sums do not depend on order or flags.
inline constexpr int load_unit_bits = 18;
inline constexpr load_t load_unit = load_t{1} << load_unit_bits;
static_assert(max_layer_tokens <= (load_t{1} << 62) / load_unit);

/// tokens * share, in load units, rounded to nearest. Exact in the two halves, so no wide integer is needed.
[[nodiscard]] constexpr load_t shared_load(load_t tokens, share_t share) noexcept {
  // share_one is 2^30 and load_unit 2^18: tokens * share / 2^12. Split tokens to stay below 2^63.
  constexpr int shift = 30 - load_unit_bits;
  load_t const high = tokens >> 22;
  load_t const low = tokens & ((load_t{1} << 22) - 1);
  return ((high * static_cast<load_t>(share)) << (22 - shift)) +
         ((low * static_cast<load_t>(share) + (load_t{1} << (shift - 1))) >> shift);
}
}  // namespace detail

/// Mean and maximum rank load of one layer.
struct layer_balance {
  double mean = 0;  ///< tokens a live rank
  double max = 0;   ///< tokens on the busiest rank

  /// Of several layers together.
  layer_balance& operator+=(layer_balance const& other) noexcept {
    mean += other.mean;
    max += other.max;
    return *this;
  }
  /// mean / max, in (0, 1]; 1 for a layer without load.
  [[nodiscard]] double balancedness() const noexcept { return max > 0 ? mean / max : 1.0; }
};

/// Tokens that each rank computes in one layer, in units of 1 / 2^18 token, under the placement's shares; without any
/// an expert's live replicas have even ones.
///
/// @param where   R ranks.
/// @param in      [L, P]
/// @param layer   in [0, L)
/// @param loads   [E] tokens, >= 0, at most `max_layer_tokens` together.
/// @param out     out: [R] load of each rank.
/// @complexity O(P), no allocation.
/// @throws nothing
/// @determinism integer arithmetic; with an even split a replica's load is tokens / count, rounded down to the unit.
inline void rank_loads(topology const& where, placement const& in, index_t layer, std::span<load_t const> loads,
                       std::span<load_t> out) {
  BALLAST_EXPECTS(in.num_slots() == where.num_slots(), "rank_loads: placement and topology differ in slots");
  BALLAST_EXPECTS(loads.size() == static_cast<std::size_t>(in.num_logical()), "rank_loads: loads are not [E]");
  BALLAST_EXPECTS(out.size() == static_cast<std::size_t>(where.num_ranks()), "rank_loads: output is not [R]");
  detail::expect_usable(loads, "rank_loads: tokens of an expert", "rank_loads: tokens of a layer");
  std::fill(out.begin(), out.end(), load_t{0});
  auto const offsets = in.replica_offsets(layer);
  auto const slots = in.replica_slots(layer);
  auto const shares = in.has_shares() ? in.shares(layer) : std::span<share_t const>{};
  bool const all_live = where.num_live_ranks() == where.num_ranks();
  auto const is_idle = [&where, &shares](index_t slot) {
    return shares.empty() && !where.is_live(where.rank_of_slot(slot));
  };
  for (std::size_t e = 0; e < loads.size(); ++e) {
    auto const replicas =
        slots.subspan(static_cast<std::size_t>(offsets[e]), static_cast<std::size_t>(offsets[e + 1] - offsets[e]));
    auto const idle = all_live ? 0 : std::count_if(replicas.begin(), replicas.end(), is_idle);
    auto const used = std::max<load_t>(static_cast<load_t>(replicas.size()) - idle, 1);
    auto const even = loads[e] * detail::load_unit / used;
    for (auto const slot : replicas) {
      if (idle > 0 && is_idle(slot)) { continue; }
      out[static_cast<std::size_t>(where.rank_of_slot(slot))] +=
          shares.empty() ? even : detail::shared_load(loads[e], shares[static_cast<std::size_t>(slot)]);
    }
  }
}

/// Balance of one layer over the live ranks.
///
/// @param loads  [E] tokens, >= 0, at most `max_layer_tokens` together.
/// @complexity O(P + R), one allocation of [R].
/// @throws std::bad_alloc
[[nodiscard]] inline layer_balance balance_of(topology const& where, placement const& in, index_t layer,
                                              std::span<load_t const> loads) {
  std::vector<load_t> per_rank(static_cast<std::size_t>(where.num_ranks()));
  rank_loads(where, in, layer, loads, per_rank);
  load_t total = 0;
  load_t max = 0;
  for (auto const load : per_rank) {
    total += load;
    max = std::max(max, load);
  }
  auto const unit = static_cast<double>(detail::load_unit);
  return {static_cast<double>(total) / unit / static_cast<double>(where.num_live_ranks()),
          static_cast<double>(max) / unit};
}

/// Balancedness over all layers: sum of the layers' mean rank loads / sum of their maxima, in (0, 1].
///
/// @param loads  [L, E] tokens, >= 0, at most `max_layer_tokens` a layer.
/// @complexity O(L (P + R))
/// @throws std::bad_alloc
/// @determinism layers are added in ascending order.
[[nodiscard]] inline double balancedness(topology const& where, placement const& in, matrix_view<load_t const> loads) {
  layer_balance sum;
  for (index_t layer = 0; layer < in.num_layers(); ++layer) { sum += balance_of(where, in, layer, loads.row(layer)); }
  return sum.balancedness();
}

BALLAST_END_NAMESPACE

#endif
