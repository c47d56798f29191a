// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CONTROL_CONTROL_HPP
#define BALLAST_CONTROL_CONTROL_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
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
/// Every collective member is called by all live ranks in the same order. No call waits longer than `timeout`
/// nanoseconds; a rank that is missing or dead by then is named in the status (`errc::deadline_exceeded`,
/// `errc::peer_lost`). A call may end well on one rank and fail on another: from then on the group is out of step until
/// `regroup`.
/// - `all_reduce(values, timeout)` replaces `values` by their sums over the ranks; sizes are equal on all ranks.
/// - `all_gather(mine, all, timeout)` writes rank r's words to `all[r * mine.size() ..]`.
/// - `broadcast(bytes, root, timeout)` copies the root's bytes to every rank.
/// - `vote(yes, timeout)` commits if and only if every rank voted yes in time; see `decision`.
/// - `recall(timeout)` resolves the last vote that was `undecided` here by asking the live ranks. The others answer in
///   whatever call they make next, also when they have voted since.
/// - `membership()` is a number that grows when the group expels a rank; calls of an expelled rank fail with
///   `errc::stale_membership`. Calls of the others go on without it: it adds nothing to sums, and in `all_gather` the
///   words of the lowest live rank stand in for its own, so that comparisons hold.
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

/// A control plane that brings ranks back which have fallen out of step. All of ballast's do.
///
/// Without it a call that ended well on one rank and failed on another leaves the ranks apart for ever: `resume` of a
/// rebalancer on such a plane helps only where every call has ended alike on all ranks.
///
/// @par Semantics
/// - `regroup(timeout)` meets all live ranks, however many calls and votes each has made or missed. Afterwards all
///   number them alike, and nothing that was said before is taken for something said after. It may end well on one rank
///   and fail on another; then it is repeated by all of them.
/// - `give_up(why)` says that this rank makes no further call until it regroups. It waits for nobody. The others' calls
///   that would wait for it fail as soon as the plane can tell them. Idempotent; `regroup` ends it.
/// - `trouble()` is a failure if it is known, without waiting, that this group cannot go on without `regroup`: a rank
///   that is not expelled is dead, or a rank, maybe this one, has given up. A plane that learns such things only inside
///   of its calls says what the last of them told.
template <class C>
concept regrouping_plane = control_plane<C> && requires(C& c, nanoseconds_t timeout, status const& why) {
  { c.regroup(timeout) } -> std::same_as<status>;
  { c.give_up(why) } -> std::same_as<void>;
  { c.trouble() } -> std::same_as<status>;
};

/// A control plane that can tell which ranks the group has expelled: `is_expelled(rank)`, of a rank in [0, R). A
/// rebalancer then plans nothing while its topology has such a rank alive.
template <class C>
concept expelling_plane = control_plane<C> && requires(C const& k, index_t rank) {
  { k.is_expelled(rank) } -> std::same_as<bool>;
};

/// A control plane that tells the others why a rank says no. All of ballast's do.
///
/// Without it they learn who said no, and blame that rank also where it was another one that failed.
///
/// @par Semantics
/// `vote_no(why, timeout)` is `vote(false, timeout)`. What drops the vote on the others has as much of `why` as the
/// plane can carry, the code and the rank at least where it names another one.
template <class C>
concept explaining_plane = control_plane<C> && requires(C& c, nanoseconds_t timeout, status const& why) {
  { c.vote_no(why, timeout) } -> std::same_as<vote_result>;
};

/// One of the things that ranks compare before they act.
struct agreed_word {
  std::string_view name;  ///< what it is, for the message: "plan", "step"
  std::uint64_t value = 0;
  bool is_digest = false;  ///< the message gives it in hexadecimal, otherwise as a signed number
};

namespace detail {
[[nodiscard]] inline std::string text_of(agreed_word const& word, std::uint64_t value) {
  return word.is_digest ? hex(value) : concat(static_cast<std::int64_t>(value));
}

/// The first rank that differs from rank 0. @param all [R, n] words of every rank, of which the first `words.size()`
/// are compared
[[nodiscard]] inline status compare_words(std::span<agreed_word const> words, std::span<std::uint64_t const> all,
                                          std::size_t words_of_rank) {
  for (std::size_t rank = 1; rank * words_of_rank < all.size(); ++rank) {
    for (std::size_t i = 0; i < words.size(); ++i) {
      auto const theirs = all[rank * words_of_rank + i];
      if (theirs == all[i]) { continue; }
      return {errc::disagreement,
              concat("rank ", rank, " differs from rank 0 in ", words[i].name, ": ", text_of(words[i], theirs),
                     " against ", text_of(words[i], all[i])),
              static_cast<index_t>(rank)};
    }
  }
  return {};
}

}  // namespace detail

/// Check that every rank holds the same words.
///
/// @param control  the group.
/// @param words    what must be equal, the same names in the same order on every rank.
/// @param timeout  nanoseconds.
/// @complexity one all-gather of `words.size()` words; allocates R * words.size() words.
/// @throws std::bad_alloc
/// @return `errc::disagreement` naming the first rank that differs from rank 0, what differs and both values; the
///         message is the same on every rank, and `status::rank()` is that rank.
template <control_plane Control>
[[nodiscard]] status agree(Control& control, std::span<agreed_word const> words, nanoseconds_t timeout) {
  std::vector<std::uint64_t> mine;
  mine.reserve(words.size());
  for (auto const& word : words) { mine.push_back(word.value); }
  std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(control.num_ranks()));
  if (auto result = control.all_gather(mine, all, timeout); !result.ok()) { return result; }
  return detail::compare_words(words, all, mine.size());
}

BALLAST_END_NAMESPACE

#endif
