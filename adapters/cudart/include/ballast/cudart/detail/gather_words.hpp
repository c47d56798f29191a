// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_GATHER_WORDS_HPP
#define BALLAST_CUDART_DETAIL_GATHER_WORDS_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// An `all_gather` of as many words as each rank likes. @param all out: [R] the words of each rank
template <control_plane Control>
[[nodiscard]] status gather_words(Control& control, std::span<std::uint64_t const> mine,
                                  std::vector<std::vector<std::uint64_t>>& all, nanoseconds_t deadline) {
  auto const ranks = static_cast<std::size_t>(control.num_ranks());
  std::uint64_t const size = mine.size();
  std::vector<std::uint64_t> sizes(ranks);
  if (auto result = control.all_gather({&size, 1}, sizes, ballast::detail::time_until(deadline)); !result.ok()) {
    return result;
  }
  auto const longest = static_cast<std::size_t>(*std::max_element(sizes.begin(), sizes.end()));
  std::vector<std::uint64_t> padded(mine.begin(), mine.end());
  padded.resize(longest);
  std::vector<std::uint64_t> words(longest * ranks);
  if (auto result = control.all_gather(padded, words, ballast::detail::time_until(deadline)); !result.ok()) {
    return result;
  }
  all.resize(ranks);
  for (std::size_t r = 0; r < ranks; ++r) {
    auto const first = words.begin() + static_cast<std::ptrdiff_t>(r * longest);
    all[r].assign(first, first + static_cast<std::ptrdiff_t>(sizes[r]));
  }
  return {};
}

/// Wait until every rank is here and learn whether all are well.
///
/// @param mine  `errc::peer_lost` where this rank is well but misses another.
/// @return this rank's own failure; otherwise `errc::peer_lost` naming the first rank that reports one of its own, or
///         else whom this rank misses, or else the first rank that misses another.
template <control_plane Control>
[[nodiscard]] status meet(Control& control, status mine, nanoseconds_t deadline) {
  enum word : std::uint64_t { ill, well, misses_another };
  std::uint64_t const said = mine.ok() ? well : mine.code() == errc::peer_lost ? misses_another : ill;
  // And who says so: an expelled rank's words are those of another.
  constexpr int rank_shift = 2;
  std::uint64_t const words = static_cast<std::uint64_t>(control.rank()) << rank_shift | said;
  std::vector<std::uint64_t> all(static_cast<std::size_t>(control.num_ranks()));
  auto result = control.all_gather({&words, 1}, all, ballast::detail::time_until(deadline));
  if (said == ill) { return mine; }
  if (!result.ok()) { return mine.ok() ? result : mine; }
  auto const first = [&all](word what) {
    return std::find_if(all.begin(), all.end(), [&what](auto const& one) { return (one & 3) == what; });
  };
  auto found = first(ill);
  if (found == all.end() && !mine.ok()) { return mine; }
  if (found == all.end()) { found = first(misses_another); }
  if (found == all.end()) { return {}; }
  auto const peer = static_cast<index_t>(*found >> rank_shift);
  return {errc::peer_lost, ballast::detail::concat("ipc_peers: rank ", peer, " could not share its memory"), peer};
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
