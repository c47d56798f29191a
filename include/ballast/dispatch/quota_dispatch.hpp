// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DISPATCH_QUOTA_DISPATCH_HPP
#define BALLAST_DISPATCH_QUOTA_DISPATCH_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Maps a batch's router ids to physical ids so that each replica gets exactly the tokens that its quota says.
///
/// @threads distinct objects are independent.
class quota_dispatch {
public:
  /// @param row             replicas of the layer.
  /// @param ends            [movable] of this rank, as `quota_sources::ends`.
  /// @param num_reserved    F, ids [E, E + F) are this rank's reserved slots.
  /// @param first_reserved  physical id of the first of them.
  /// @param logical         [tokens, top_k] row by row.
  /// @param physical        out: [tokens, top_k]; -1 for invalid ids and experts without a live replica. May be
  ///                        `logical` where elements are of one type, as they are unless `Physical` is named.
  /// @pre the ends were worked out for the counts of these ids
  /// @complexity O(ids * log replicas + E)
  /// @throws std::bad_alloc while sizes grow
  /// @determinism ordinals count in the order of the ids.
  template <std::signed_integral Id, std::signed_integral Physical = Id>
  void map(quota_row row, std::span<index_t const> ends, index_t num_reserved, index_t first_reserved,
           std::span<Id const> logical, std::span<std::type_identity_t<Physical>> physical) {
    BALLAST_EXPECTS(logical.size() == physical.size(), "quota_dispatch: arrays differ in size");
    BALLAST_EXPECTS(ends.size() == static_cast<std::size_t>(row.sizes().num_movable), "quota_dispatch: ends");
    auto const num_logical = row.shape().num_logical;
    seen_.assign(static_cast<std::size_t>(num_logical), 0);
    for (std::size_t i = 0; i < logical.size(); ++i) {
      auto const id = static_cast<std::int64_t>(logical[i]);
      if (id < 0 || id >= static_cast<std::int64_t>(num_logical) + num_reserved) {
        physical[i] = -1;
      } else if (id >= num_logical) {
        physical[i] = static_cast<Physical>(first_reserved + (id - num_logical));
      } else {
        auto const expert = static_cast<index_t>(id);
        physical[i] = static_cast<Physical>(place(row, ends, expert, detail::at(seen_, expert)++));
      }
    }
  }

private:
  [[nodiscard]] static index_t place(quota_row row, std::span<index_t const> ends, index_t expert, index_t ordinal) {
    auto const& entry = row.entries()[expert];
    if (entry.count <= 1) { return entry.count == 0 ? -1 : entry.first; }
    auto const own = ends.subspan(static_cast<std::size_t>(entry.first), static_cast<std::size_t>(entry.count) - 1);
    auto const position = std::upper_bound(own.begin(), own.end(), ordinal) - own.begin();
    return row.physical()[entry.first + position];
  }

  std::vector<index_t> seen_;  ///< [E] tokens so far
};

BALLAST_END_NAMESPACE

#endif
