// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_WORDS_HPP
#define BALLAST_RUNTIME_DETAIL_WORDS_HPP

#include <ballast/topology.hpp>
#include <ballast/types.hpp>

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

/// A rank's standing, the groups that it has committed, and while recording the calls since the last plan, in one word:
/// two bits, 31 and 31.
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
  [[nodiscard]] static constexpr step_word failed(std::uint64_t committed) noexcept {
    return step_word{(committed & mask) << 2 | static_cast<std::uint64_t>(standing::failed)};
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

  bool operator==(step_word const&) const = default;

private:
  static constexpr std::uint64_t mask = (std::uint64_t{1} << 31) - 1;
  static constexpr int waited_shift = 33;

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
    return first_rank([&](step_word word) { return word.committed() > committed; });
  }
  /// Whether the next group has arrived on every rank.
  [[nodiscard]] bool all_ready(std::uint64_t committed) const {
    return first_rank(
               [&](step_word word) { return word.stands() != standing::ready || word.committed() != committed; }) < 0;
  }
  /// A rank that has given its moves up, -1 if there is none.
  [[nodiscard]] index_t failed_rank() const {
    return first_other([](step_word word) { return word.stands() == standing::failed; });
  }
  /// A rank that does not move where this one does, -1 if there is none.
  [[nodiscard]] index_t idle_rank(std::uint64_t committed) const {
    return first_other(
        [&](step_word word) { return word.stands() == standing::recording && word.committed() == committed; });
  }
  /// Whether the others have stopped without committing the group in question, and never will. @param asynchronous  in
  /// synchronous mode a rank may have told that it records before a vote that it makes late
  [[nodiscard]] bool everybody_stands(bool asynchronous) const {
    return first_other([&](step_word word) {
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
