// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MPI_DETAIL_VOTE_RECORD_HPP
#define BALLAST_MPI_DETAIL_VOTE_RECORD_HPP

#include <ballast/contract.hpp>
#include <ballast/control/control.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace mpi::detail {

/// What a rank can say of a vote, for good.
enum class vote_knowledge : std::uint64_t {
  none,
  committed,
  dropped,         ///< nobody can commit it
  not_by_ballots,  ///< it has not committed, and will not by ballots
};

/// How a vote ended.
struct vote_entry {
  std::uint64_t vote = 0;
  decision outcome = decision::undecided;
};

[[nodiscard]] inline vote_knowledge knowledge_of(decision outcome) noexcept {
  switch (outcome) {
    case decision::commit: return vote_knowledge::committed;
    case decision::drop: return vote_knowledge::dropped;
    case decision::undecided: break;
  }
  return vote_knowledge::not_by_ballots;
}

/// Look a vote up among `entries`, ascending, which hold every vote after `forgotten` that the rank took part in. It
/// will not take part any more in the others up to its last: they are dropped.
template <class Entries>
[[nodiscard]] vote_knowledge find_vote(Entries const& entries, std::uint64_t forgotten, std::uint64_t vote) {
  auto const found = std::ranges::lower_bound(entries, vote, {}, &vote_entry::vote);
  if (found != entries.end() && found->vote == vote) { return knowledge_of(found->outcome); }
  return vote > forgotten ? vote_knowledge::dropped : vote_knowledge::none;
}

/// The outcomes of a rank's last votes, by number.
class vote_record {
public:
  /// @pre larger than all numbers before
  void add(std::uint64_t vote, decision outcome) {
    entries_.push_back({vote, outcome});
    if (entries_.size() <= entries_kept) { return; }
    forgotten_ = entries_.front().vote;
    entries_.pop_front();
  }
  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
  /// @pre not empty
  [[nodiscard]] vote_entry last() const { return entries_.back(); }
  void settle_last(decision outcome) { entries_.back().outcome = outcome; }

  /// Of a vote up to this rank's last.
  [[nodiscard]] vote_knowledge find(std::uint64_t vote) const { return find_vote(entries_, forgotten_, vote); }

  /// For `told_votes`. @param votes  number of the rank's last vote, its own or not.
  [[nodiscard]] std::vector<std::uint64_t> write(std::uint64_t votes) const {
    auto const skipped = entries_.size() - std::min(entries_.size(), entries_told);
    std::vector<std::uint64_t> words{votes, skipped > 0 ? entries_[skipped - 1].vote : forgotten_};
    for (auto i = skipped; i < entries_.size(); ++i) {
      words.push_back(entries_[i].vote);
      words.push_back(static_cast<std::uint64_t>(entries_[i].outcome));
    }
    return words;
  }

private:
  static constexpr std::size_t entries_kept = 4096;
  static constexpr std::size_t entries_told = 16;

  std::deque<vote_entry> entries_;
  std::uint64_t forgotten_ = 0;
};

/// What another rank has told of its last votes.
class told_votes {
public:
  void read(std::span<std::byte const> bytes) {
    std::vector<std::uint64_t> words(bytes.size() / sizeof(std::uint64_t));
    if (words.size() < 2) { return; }
    std::memcpy(words.data(), bytes.data(), words.size() * sizeof(std::uint64_t));
    votes_ = words[0];
    forgotten_ = words[1];
    entries_.clear();
    for (std::size_t i = 2; i + 1 < words.size(); i += 2) {
      entries_.push_back({words[i], static_cast<decision>(words[i + 1])});
    }
  }
  /// Number of its last vote.
  [[nodiscard]] std::uint64_t votes() const noexcept { return votes_; }
  /// @param makes_no_more  it takes part in no vote after its last until this rank has regrouped with it.
  [[nodiscard]] vote_knowledge find(std::uint64_t vote, bool makes_no_more) const {
    if (vote > votes_) { return makes_no_more ? vote_knowledge::dropped : vote_knowledge::none; }
    return find_vote(entries_, forgotten_, vote);
  }

private:
  std::uint64_t votes_ = 0;
  std::uint64_t forgotten_ = 0;
  std::vector<vote_entry> entries_;
};

}  // namespace mpi::detail
BALLAST_END_NAMESPACE

#endif
