// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_TWO_SLOTS_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_TWO_SLOTS_HPP

#include <ballast/contract.hpp>
#include <ballast/policies/detail/balanced/level_model.hpp>
#include <ballast/policies/detail/balanced/level_search.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Chooses replica counts for ranks of two slots, and proves how good they are.
///
/// Bisects the heaviest rank: `level_search` says whether a limit can be reached. Quick answers come first, from above
/// and from below; what lies between is left to branch and bound, which is first asked for any improvement at all: a no
/// is the proof that the counts are optimal.
class two_slot_counter {
public:
  struct outcome {
    load_t max = 0;    ///< heaviest rank with the counts found
    load_t bound = 0;  ///< no counts and no packing have a lighter heaviest rank
  };

  /// @param loads      [E] load units of each expert, E <= 2 * num_ranks.
  /// @param num_ranks  ranks of two slots.
  /// @param counts     in/out: [E] counts to start from, 1 to num_ranks each, summing to 2 * num_ranks; better or the
  ///                   same on return.
  /// @param bound      a bound that is already known.
  /// @param good       a maximum that needs no improvement.
  /// @param work       in/out: units of work.
  outcome run(std::span<load_t const> loads, index_t num_ranks, std::span<index_t> counts, load_t bound, load_t good,
              std::int64_t& work) {
    loads_ = loads;
    num_ranks_ = num_ranks;
    model_.open(loads, num_ranks);
    search_.reset();
    counts_ = counts;
    max_ = max_of_pairs(counts);
    refuted_ = bound - 1;
    if (max_ > good) { narrow(good, work); }
    if (max_ > good) { settle(work); }
    return {max_, std::max(bound, std::min(refuted_ + 1, max_))};
  }

  /// Heaviest rank when the copies are paired heaviest with lightest. @complexity O(E log E + R)
  [[nodiscard]] load_t max_of_pairs(std::span<index_t const> counts) {
    runs_.clear();
    for (std::size_t e = 0; e < loads_.size(); ++e) { runs_.push_back({loads_[e] / counts[e], counts[e]}); }
    std::sort(runs_.begin(), runs_.end(),
              [](run_of_copies const& a, run_of_copies const& b) { return a.load < b.load; });
    copies_.clear();
    for (auto const& run : runs_) { copies_.insert(copies_.end(), static_cast<std::size_t>(run.copies), run.load); }
    load_t max = 0;
    for (std::size_t i = 0, j = copies_.size() - 1; i < j; ++i, --j) { max = std::max(max, copies_[i] + copies_[j]); }
    return max;
  }

private:
  static constexpr load_t closing_gap = 1000;
  struct run_of_copies {
    load_t load;
    index_t copies;
  };

  using answer = level_search::answer;

  [[nodiscard]] answer decide(load_t limit, level_search::effort how, std::int64_t& work) {
    bool const fits = model_.set_limit(limit);
    work -= static_cast<std::int64_t>(16 * loads_.size() + 16 * model_.options().size());
    auto result = fits ? search_.run(model_, how, work) : answer::no;
    if (result == answer::no) { refuted_ = std::max(refuted_, limit); }
    if (result == answer::yes && !take_counts()) { result = answer::unknown; }
    return result;
  }
  [[nodiscard]] bool is_close(load_t low, load_t high) const noexcept { return high - low <= max_ / closing_gap; }
  [[nodiscard]] static load_t middle(load_t low, load_t high) noexcept { return low + (high - low) / 2; }

  /// Bring the best counts down and the bound up as far as quick answers go. Between them lies what they leave unsure;
  /// the wider of the two gaps around it is halved next.
  void narrow(load_t good, std::int64_t& work) {
    load_t unsure_from = max_;
    load_t unsure_to = max_;
    while (max_ > good && work > 0) {
      bool const is_sure = unsure_from == max_;
      auto const above = max_ - unsure_to;
      auto const below = unsure_from - refuted_;
      bool const from_above = !is_sure && above > below;
      if (std::max(above, below) <= max_ / closing_gap) { return; }
      auto const limit = from_above ? middle(unsure_to, max_) : middle(refuted_, unsure_from);
      auto const result = decide(limit, level_search::effort::quick, work);
      if (result == answer::yes) {
        unsure_from = std::min(unsure_from, max_);
        unsure_to = std::min(unsure_to, max_);
        if (is_sure || !from_above) { unsure_from = unsure_to = max_; }
      } else if (result == answer::no) {
        if (from_above) { unsure_from = unsure_to = limit; }
      } else if (is_sure) {
        unsure_from = unsure_to = limit;
      } else {
        (from_above ? unsure_to : unsure_from) = limit;
      }
    }
  }
  /// Close the gap that is left by branch and bound, from above first.
  void settle(std::int64_t& work) {
    load_t stuck = max_;  // branch and bound gave up here
    while (refuted_ + 1 < max_ && work > 0) {
      if (stuck < max_ && is_close(refuted_, stuck)) { return; }
      auto const limit = stuck < max_ ? middle(refuted_, stuck) : max_ - 1;
      auto const result = decide(limit, level_search::effort::full, work);
      if (result == answer::yes) { stuck = max_; }
      if (result == answer::unknown) { stuck = limit; }
    }
  }

  /// Take the counts over that the search has found. False when they are no better, which its checks exclude where
  /// lightest experts can take every spare.
  [[nodiscard]] bool take_counts() {
    trial_.assign(search_.counts().begin(), search_.counts().end());
    spend_spares();
    auto const reached = max_of_pairs(trial_);
    if (reached >= max_) { return false; }
    std::copy(trial_.begin(), trial_.end(), counts_.begin());
    max_ = reached;
    return true;
  }
  /// Give what is left to the lightest copies.
  void spend_spares() {
    index_t left = 2 * num_ranks_;
    for (auto const count : trial_) { left -= count; }
    for (; left > 0; --left) {
      std::size_t best = trial_.size();
      for (std::size_t e = 0; e < trial_.size(); ++e) {
        if (trial_[e] >= num_ranks_) { continue; }
        if (best == trial_.size() || loads_[e] / trial_[e] < loads_[best] / trial_[best]) { best = e; }
      }
      ++trial_[best];
    }
  }

  std::span<load_t const> loads_;
  index_t num_ranks_ = 0;
  std::span<index_t> counts_;
  load_t max_ = 0;      ///< heaviest rank with `counts_`
  load_t refuted_ = 0;  ///< no counts reach this
  level_model model_;
  level_search search_;
  std::vector<index_t> trial_;
  std::vector<run_of_copies> runs_;
  std::vector<load_t> copies_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
