// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_WORDS_HPP
#define BALLAST_RUNTIME_DETAIL_WORDS_HPP

#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// What a rank tells the others with the engine's exchange, once a step.
enum class standing : std::uint64_t {
  recording,
  pending,  ///< the next group is on its way
  ready,    ///< it is here
  failed,
};

/// Why a rank has given its moves up, as much of it as has room in a word: the code, and whom it blames.
struct failure_cause {
  errc why = errc::transport_failed;
  index_t culprit = -1;  ///< maybe the rank itself; -1 when it waited in vain and does not know for whom

  /// @param why  a failure of rank `rank`, which is its own where it names nobody.
  [[nodiscard]] static failure_cause of(status const& why, index_t rank) noexcept {
    failure_cause cause{code_for_others(why), why.rank()};
    if (why.rank() == status::no_rank && cause.why != errc::deadline_exceeded) { cause.culprit = rank; }
    return cause;
  }
  bool operator==(failure_cause const&) const = default;
};

/// A rank's standing, the groups that it has committed, and what goes with the standing, in one word: two bits, 31 and
/// 31. While recording the last are the calls since the last plan, after a failure its cause: code and rank, 7 and 24.
class step_word {
public:
  constexpr step_word() = default;
  constexpr explicit step_word(std::uint64_t bits) noexcept : bits_{bits} {}

  [[nodiscard]] static constexpr step_word recording(std::uint64_t committed, index_t waited) noexcept {
    return step_word{static_cast<std::uint64_t>(waited) << waited_shift | (committed & mask) << 2};
  }
  /// A rank that moves its next group. @param here  its bytes have arrived
  [[nodiscard]] static constexpr step_word moving(std::uint64_t committed, bool here) noexcept {
    return step_word{((committed & mask) + 1) << 2 |
                     static_cast<std::uint64_t>(here ? standing::ready : standing::pending)};
  }
  [[nodiscard]] static constexpr step_word failed(std::uint64_t committed, failure_cause cause) noexcept {
    auto const culprit = static_cast<std::uint64_t>(cause.culprit + 1) & culprit_mask;
    return step_word{(static_cast<std::uint64_t>(cause.why) << culprit_bits | culprit) << waited_shift |
                     (committed & mask) << 2 | static_cast<std::uint64_t>(standing::failed)};
  }

  [[nodiscard]] constexpr std::uint64_t bits() const noexcept { return bits_; }
  [[nodiscard]] constexpr standing stands() const noexcept {
    constexpr standing all[] = {standing::recording, standing::pending, standing::ready, standing::failed};
    return all[bits_ & 3];
  }
  [[nodiscard]] constexpr bool moves() const noexcept {
    return stands() == standing::pending || stands() == standing::ready;
  }
  /// Groups that the rank had committed when it told this.
  [[nodiscard]] constexpr std::uint64_t committed() const noexcept {
    auto const number = bits_ >> 2 & mask;
    return moves() ? number - 1 : number;
  }
  /// Calls since the last plan, of a rank that records.
  [[nodiscard]] constexpr index_t waited() const noexcept { return static_cast<index_t>(bits_ >> waited_shift); }
  /// Why, of a rank that has failed.
  [[nodiscard]] constexpr failure_cause cause() const noexcept {
    auto const bits = bits_ >> waited_shift;
    return {static_cast<errc>(bits >> culprit_bits), static_cast<index_t>(bits & culprit_mask) - 1};
  }

  bool operator==(step_word const&) const = default;

private:
  static constexpr std::uint64_t mask = (std::uint64_t{1} << 31) - 1;
  static constexpr int waited_shift = 33;
  static constexpr int culprit_bits = 24;
  static constexpr std::uint64_t culprit_mask = (std::uint64_t{1} << culprit_bits) - 1;

  std::uint64_t bits_ = 0;
};

/// The words of all ranks of one exchange, seen by one of them. Dead ranks tell nothing.
class exchanged_words {
public:
  /// @param words  [R]; they outlive this object.
  exchanged_words(std::span<std::uint64_t const> words, topology const& where, index_t rank) noexcept
      : words_{words}, where_{&where}, rank_{rank} {}

  [[nodiscard]] step_word of(index_t rank) const noexcept { return step_word{words_[static_cast<std::size_t>(rank)]}; }

  /// A rank that has committed more groups than this one, -1 if there is none.
  [[nodiscard]] index_t rank_ahead(std::uint64_t committed) const {
    return first_rank([&committed](step_word word) { return word.committed() > committed; });
  }
  /// Whether a rank moves.
  [[nodiscard]] bool any_moves() const {
    return first_rank([](step_word word) { return word.moves(); }) >= 0;
  }
  /// Whether the next group has arrived on every rank.
  [[nodiscard]] bool all_ready(std::uint64_t committed) const {
    return first_rank([&committed](step_word word) {
             return word.stands() != standing::ready || word.committed() != committed;
           }) < 0;
  }
  /// Of the ranks that have given their moves up the one that knows most of why, -1 if there is none: one with a reason
  /// of its own, then one that blames a rank which blames nobody else, then any that blames another.
  [[nodiscard]] index_t failed_rank() const {
    index_t found = -1;
    int known = -1;
    for (index_t rank = 0; rank < where_->num_ranks(); ++rank) {
      if (rank == rank_ || !where_->is_live(rank) || of(rank).stands() != standing::failed) { continue; }
      auto const culprit = of(rank).cause().culprit;
      int const knows = culprit == rank ? 3 : culprit < 0 ? 0 : blamed_by(culprit) == culprit ? 2 : 1;
      if (knows > known) { found = rank; }
      known = std::max(known, knows);
    }
    return found;
  }
  /// Whom a rank blames that has failed; else the rank itself, and one that is dead or blames nobody.
  [[nodiscard]] index_t blamed_by(index_t rank) const {
    if (rank < 0 || rank >= where_->num_ranks() || !where_->is_live(rank)) { return rank; }
    auto const word = of(rank);
    auto const culprit = word.stands() == standing::failed ? word.cause().culprit : -1;
    return culprit < 0 ? rank : culprit;
  }
  /// Where the trouble began that has reached this rank by way of rank `rank`.
  [[nodiscard]] index_t origin(index_t rank) const {
    for (index_t i = 0; i < where_->num_ranks(); ++i) { rank = blamed_by(rank); }
    return rank;
  }
  /// A rank that does not move where this one does, -1 if there is none.
  [[nodiscard]] index_t idle_rank(std::uint64_t committed) const {
    return first_other(
        [&committed](step_word word) { return word.stands() == standing::recording && word.committed() == committed; });
  }
  /// Whether the others have stopped without committing the group in question, and never will. @param asynchronous  in
  /// synchronous mode a rank may have told that it records before a vote that it makes late
  [[nodiscard]] bool everybody_stands(bool asynchronous) const {
    return first_other([&asynchronous](step_word word) {
             return word.moves() || (word.stands() == standing::recording && !asynchronous);
           }) < 0;
  }

private:
  /// The first live rank, `but` one, of which `is_so(word)` holds, -1 if there is none.
  template <class Predicate>
  [[nodiscard]] index_t first_rank(Predicate is_so, index_t but = -1) const {
    for (index_t rank = 0; rank < where_->num_ranks(); ++rank) {
      if (rank != but && where_->is_live(rank) && is_so(of(rank))) { return rank; }
    }
    return -1;
  }
  template <class Predicate>
  [[nodiscard]] index_t first_other(Predicate is_so) const {
    return first_rank(is_so, rank_);
  }

  std::span<std::uint64_t const> words_;
  topology const* where_;
  index_t rank_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
