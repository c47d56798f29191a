// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TRANSPORT_CONTROL_HPP
#define BALLAST_TRANSPORT_CONTROL_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// What the ranks made of a vote.
enum class decision {
  commit,     ///< every rank voted yes, and every rank that learns the outcome learns this one
  drop,       ///< a rank voted no, died or was late; no rank will ever learn `commit` for this vote
  undecided,  ///< this rank cannot tell yet; ask `recall`
};

/// A vote's outcome and, unless it is `commit`, the reason.
struct vote_result {
  decision outcome = decision::undecided;
  status reason;
};

/// The host-side collective channel of a group, apart from the transport that carries expert weights.
///
/// @par Semantics
/// Every member is called by all live ranks in the same order. No call waits longer than `timeout` nanoseconds; a rank
/// that is missing or dead by then is named in the status (`errc::deadline_exceeded`, `errc::peer_lost`).
/// - `all_reduce(values, timeout)` replaces `values` by their sums over the ranks; sizes are equal on all ranks.
/// - `all_gather(mine, all, timeout)` writes rank r's words to `all[r * mine.size() ..]`.
/// - `broadcast(bytes, root, timeout)` copies the root's bytes to every rank.
/// - `vote(yes, timeout)` commits if and only if every rank voted yes in time; see `decision`.
/// - `recall(timeout)` resolves the last vote that was `undecided` here by asking the live ranks.
/// - `membership()` is a number that grows when the group expels a rank; calls of an expelled rank fail with
///   `errc::stale_membership`.
template <class C>
concept control_plane =
    requires(C& c, C const& k, std::span<std::int64_t> values, std::span<std::uint64_t const> mine,
             std::span<std::uint64_t> all, std::span<std::byte> bytes, index_t root, bool yes, nanoseconds_t timeout) {
      { k.rank() } noexcept -> std::same_as<index_t>;
      { k.num_ranks() } noexcept -> std::same_as<index_t>;
      { k.membership() } -> std::same_as<std::uint64_t>;
      { c.all_reduce(values, timeout) } -> std::same_as<status>;
      { c.all_gather(mine, all, timeout) } -> std::same_as<status>;
      { c.broadcast(bytes, root, timeout) } -> std::same_as<status>;
      { c.vote(yes, timeout) } -> std::same_as<vote_result>;
      { c.recall(timeout) } -> std::same_as<vote_result>;
    };

/// One of the things that ranks compare before they act.
struct agreed_word {
  std::string_view name;  ///< what it is, for the message: "plan", "step"
  std::uint64_t value = 0;
};

/// Check that every rank holds the same words.
///
/// @param control  the group.
/// @param words    what must be equal, the same names in the same order on every rank.
/// @param timeout  nanoseconds.
/// @complexity one all-gather of `words.size()` words; allocates R * words.size() words.
/// @throws std::bad_alloc
/// @return `errc::disagreement` naming the first rank that differs from rank 0, what differs and both values; the
///         message is the same on every rank.
template <control_plane Control>
[[nodiscard]] status agree(Control& control, std::span<agreed_word const> words, nanoseconds_t timeout) {
  std::vector<std::uint64_t> mine;
  mine.reserve(words.size());
  for (auto const& word : words) { mine.push_back(word.value); }
  std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(control.num_ranks()));
  if (auto result = control.all_gather(mine, all, timeout); !result.ok()) { return result; }
  for (std::size_t at = mine.size(); at < all.size(); ++at) {
    auto const word = at % mine.size();
    if (all[at] != all[word]) {
      return {errc::disagreement,
              detail::concat("rank ", at / mine.size(), " differs from rank 0 in ", words[word].name, ": ",
                             detail::hex(all[at]), " against ", detail::hex(all[word]))};
    }
  }
  return {};
}

BALLAST_END_NAMESPACE

#endif
