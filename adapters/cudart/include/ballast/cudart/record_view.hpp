// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_RECORD_VIEW_HPP
#define BALLAST_CUDART_RECORD_VIEW_HPP

#include <ballast/config.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Element types in which routers hand their choices out.
template <class Id>
concept router_id = std::same_as<Id, std::int32_t> || std::same_as<Id, std::uint32_t> ||
                    std::same_as<Id, std::int64_t> || std::same_as<Id, std::uint64_t>;

/// Counters of one rank in device memory as plain pointers and sizes.
///
/// Pointers and sizes never change for the life of the recorder, so that a captured graph may hold a copy of the view.
struct record_view {
  std::uint32_t* pass = nullptr;        ///< [stripes, L, E] tokens of the pass in progress; a count is their sum
  std::uint32_t const* gate = nullptr;  ///< 0 while nothing is to be counted
  index_t const* local_map = nullptr;   ///< [L, S] logical expert in each slot of this rank
  index_t num_layers = 0;               ///< L
  index_t num_logical = 0;              ///< E
  index_t slots_per_rank = 0;           ///< S
  std::size_t stripe_cells = 0;         ///< from one stripe to the next
  /// Blocks deal their counts to that many stripes: atomics on one address take turns. A power of two.
  std::uint32_t num_stripes = 1;
};

/// The choices of one layer's router in device memory.
template <router_id Id>
struct routing {
  Id const* ids = nullptr;                         ///< [T, k] logical experts, row by row
  index_t num_tokens = 0;                          ///< T, rows that there is room for
  index_t top_k = 1;                               ///< k
  std::int32_t const* num_valid_tokens = nullptr;  ///< in device memory; rows from there on are padding. Null: none are
};

namespace detail {

/// As which kernels read ids: there are none for unsigned ones.
template <router_id Id>
using signed_id = std::make_signed_t<Id>;

/// Refuse a layer that a kernel would find outside its arrays. @param who begins the message
[[nodiscard]] inline status check_layer(char const* who, index_t layer, index_t num_layers) {
  if (layer >= 0 && layer < num_layers) { return {}; }
  return {errc::invalid_load, ballast::detail::concat(who, ": layer ", layer, " is not in [0, ", num_layers, ")")};
}

/// Refuse ids that would be overwritten before they are read. @param who begins the message
template <router_id Id, router_id Physical>
[[nodiscard]] status check_places(char const* who, Id const* ids, Physical const* physical, std::size_t num_ids) {
  auto const from = reinterpret_cast<std::uintptr_t>(ids);
  auto const to = reinterpret_cast<std::uintptr_t>(physical);
  bool const overlap = from < to + num_ids * sizeof(Physical) && to < from + num_ids * sizeof(Id);
  if (!overlap || (from == to && sizeof(Id) == sizeof(Physical))) { return {}; }
  return {errc::invalid_load,
          ballast::detail::concat(who, ": physical ids of ", sizeof(Physical), " bytes overlap with ids of ",
                                  sizeof(Id), ": only arrays of as wide elements may be the same")};
}

}  // namespace detail

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
