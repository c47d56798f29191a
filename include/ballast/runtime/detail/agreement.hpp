// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_AGREEMENT_HPP
#define BALLAST_RUNTIME_DETAIL_AGREEMENT_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// What the ranks agree on, and by when: words, votes, the next free tag. Every rank makes the same calls.
template <control_plane Control>
class agreement {
public:
  /// @param timeout  nanoseconds, > 0, that each batch of a group has, and what follows the last one.
  agreement(Control& control, nanoseconds_t timeout) noexcept
      : control_{&control}, timeout_{timeout}, span_{std::min(timeout, longest)} {}

  [[nodiscard]] Control& control() const noexcept { return *control_; }
  [[nodiscard]] nanoseconds_t timeout() const noexcept { return timeout_; }

  // ---- the time of the group that moves ----

  /// This rank begins a group, or to vote where there is nothing to receive. @param batches  that it receives
  void begin(index_t batches = 1) noexcept {
    start_ = now();
    batches_ = std::max<index_t>(batches, 1);
  }
  /// It began later: it had to wait for its turn.
  void begin_no_sooner(nanoseconds_t time) noexcept { start_ = std::max(start_, time); }
  [[nodiscard]] nanoseconds_t began_at() const noexcept { return start_; }
  /// Time until so many eighths of the timeout have passed after the group's batches have had theirs: each takes up to
  /// one timeout. What follows waits a little longer than that, so that a rank which was ready at once still hears the
  /// no of one that received in vain. The last wait ends after seven: the eighth is for waking up, so that every rank
  /// has its answer within one timeout more than its batches have.
  [[nodiscard]] nanoseconds_t time_left(nanoseconds_t eighths) const noexcept {
    auto const batches = std::min<nanoseconds_t>(batches_, longest / span_);
    auto const budget = span_ * batches + span_ / 8 * eighths;
    return std::max<nanoseconds_t>(budget - (now() - start_), 0);
  }
  /// Whether the group has had the time of its batches and one timeout more. @param began_at  the last batch
  [[nodiscard]] bool is_late(nanoseconds_t began_at) const noexcept {
    auto const periods = std::min<nanoseconds_t>(batches_ + nanoseconds_t{1}, longest / span_);
    return now() - std::max(start_, began_at) > span_ * periods;
  }

  // ---- votes ----

  /// Vote, and ask the live ranks when this rank missed the outcome. @param ready  success is a yes
  [[nodiscard]] vote_result decide(status const& ready = {}) {
    auto vote = cast(ready, time_left(4));
    if (vote.outcome != decision::undecided) { return vote; }
    auto told = control_->recall(time_left(7));
    if (told.outcome != decision::undecided) { return told; }
    // What held the vote up says more than why nobody answers.
    return {decision::undecided,
            {vote.reason.code(), concat(vote.reason.message(), "; then ", told.reason.message()), vote.reason.rank()}};
  }

  // ---- words ----

  /// Compare words of all ranks; agree on the next free tag.
  [[nodiscard]] status compare(std::span<agreed_word const> words) {
    std::vector<std::uint64_t> mine;
    for (auto const& word : words) { mine.push_back(word.value); }
    // A rank that gave a group up before it set off has used fewer tags than the others.
    mine.push_back(next_tag_);
    std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(control_->num_ranks()));
    if (auto result = control_->all_gather(mine, all, timeout_); !result.ok()) { return result; }
    for (auto at = mine.size() - 1; at < all.size(); at += mine.size()) { next_tag_ = std::max(next_tag_, all[at]); }
    return compare_words(words, all, mine.size());
  }

  /// The next free tag of this session; the same on every rank.
  [[nodiscard]] std::uint64_t next_tag() const noexcept { return next_tag_; }
  void set_next_tag(std::uint64_t tag) noexcept { next_tag_ = tag; }
  void use_tags(std::size_t count) noexcept { next_tag_ += count; }

  // ---- where the plane knows more ----

  [[nodiscard]] status regroup([[maybe_unused]] nanoseconds_t timeout) {
    if constexpr (regrouping_plane<Control>) {
      return control_->regroup(timeout);
    } else {
      return {};
    }
  }
  void give_up([[maybe_unused]] status const& why) {
    if constexpr (regrouping_plane<Control>) { control_->give_up(why); }
  }
  [[nodiscard]] status trouble() {
    if constexpr (regrouping_plane<Control>) {
      return control_->trouble();
    } else {
      return {};
    }
  }

private:
  [[nodiscard]] vote_result cast(status const& ready, nanoseconds_t timeout) {
    if constexpr (explaining_plane<Control>) {
      if (!ready.ok()) { return control_->vote_no(ready, timeout); }
    }
    return control_->vote(ready.ok(), timeout);
  }

  static constexpr nanoseconds_t longest = std::numeric_limits<nanoseconds_t>::max() / 4;

  Control* control_;
  nanoseconds_t timeout_;
  nanoseconds_t span_;  // the timeout, so that sums of several do not overflow
  nanoseconds_t start_ = 0;
  index_t batches_ = 1;
  std::uint64_t next_tag_ = 0;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
