// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_LEVEL_MODEL_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_LEVEL_MODEL_HPP

#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Whether ranks of two slots can stay at or below a limit T, as a covering problem over replica counts.
///
/// With given counts, pairing the heaviest copy with the lightest is optimal. A copy heavier than T / 2 is *big* and
/// needs a partner of at most T minus its load; all others are *small*. All copies pair up if and only if, for every
/// *level* v > T / 2 that a big copy can have, the big copies of at least v are no more than the small ones of at most
/// T - v. Every expert has a few *options*, counts that keep its copies at or below T; an option beyond the first
/// takes *extra* spare copies. A spare that is not needed may split a lightest expert once more, which adds one small
/// copy from the first *served* level on.
class level_model {
public:
  struct choice {
    index_t count;     ///< copies
    index_t extra;     ///< copies beyond the expert's first option
    index_t position;  ///< first level that the copies count at
    index_t weight;    ///< copies, negative where they are small
  };

  /// @param loads      [E] load units.
  /// @param num_ranks  R ranks of two slots, E <= 2 R.
  void open(std::span<load_t const> loads, index_t num_ranks) noexcept {
    loads_ = loads;
    num_ranks_ = num_ranks;
  }

  /// List levels and options for a limit. False when the copies at or below it are too many already.
  /// @complexity O(options log(levels)); no allocation when the sizes are not larger than before.
  [[nodiscard]] bool set_limit(load_t limit) {
    limit_ = limit;
    if (!count_least()) { return false; }
    list_levels();
    first_served_ = find_first_served();
    options_.clear();
    first_option_.clear();
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      first_option_.push_back(options_.size());
      list_options(e);
    }
    first_option_.push_back(options_.size());
    return true;
  }

  [[nodiscard]] std::size_t num_experts() const noexcept { return loads_.size(); }
  [[nodiscard]] std::size_t num_levels() const noexcept { return levels_.size(); }
  /// Loads of big copies, descending.
  [[nodiscard]] std::span<load_t const> levels() const noexcept { return levels_; }
  /// Spare copies beyond every expert's first option.
  [[nodiscard]] index_t num_spares() const noexcept { return spares_; }
  [[nodiscard]] std::span<choice const> options() const noexcept { return options_; }
  [[nodiscard]] load_t load(std::size_t expert) const noexcept { return loads_[expert]; }
  /// Options of an expert, in ascending order of copies: [first, last).
  [[nodiscard]] std::size_t first_option(std::size_t expert) const noexcept { return first_option_[expert]; }
  [[nodiscard]] std::size_t last_option(std::size_t expert) const noexcept { return first_option_[expert + 1]; }
  /// Whether a spare adds a small copy at this level.
  [[nodiscard]] bool is_served(std::size_t level) const noexcept { return level >= first_served_; }
  [[nodiscard]] std::size_t first_served() const noexcept { return first_served_; }
  /// What an option adds to the need for small copies at a level.
  [[nodiscard]] index_t need(std::size_t option, std::size_t level) const noexcept {
    auto const& o = options_[option];
    return static_cast<std::size_t>(o.position) <= level ? o.weight : 0;
  }

private:
  [[nodiscard]] bool count_least() {
    spares_ = 2 * num_ranks_ - static_cast<index_t>(loads_.size());
    least_.resize(loads_.size());
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      auto const count = loads_[e] / (limit_ + 1) + 1;  // the fewest with load / count <= limit
      if (count > num_ranks_ || count - 1 > spares_) { return false; }
      least_[e] = static_cast<index_t>(count);
      spares_ -= least_[e] - 1;
    }
    return true;
  }
  [[nodiscard]] index_t most_copies(std::size_t expert) const noexcept {
    return std::min(num_ranks_, least_[expert] + spares_);
  }
  void list_levels() {
    levels_.clear();
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      for (auto count = least_[e]; count <= most_copies(e); ++count) {
        auto const load = loads_[e] / count;
        if (load <= limit_ / 2) { break; }
        levels_.push_back(load);
      }
    }
    std::sort(levels_.begin(), levels_.end(), [](load_t a, load_t b) { return a > b; });
    levels_.erase(std::unique(levels_.begin(), levels_.end()), levels_.end());
  }
  [[nodiscard]] std::size_t first_level_at_most(load_t load) const noexcept {
    auto const found = std::partition_point(levels_.begin(), levels_.end(), [load](load_t v) { return v > load; });
    return static_cast<std::size_t>(found - levels_.begin());
  }
  /// Spares split the lightest experts; one of them takes R - 1.
  [[nodiscard]] std::size_t find_first_served() {
    auto const splitters = static_cast<std::size_t>(spares_ / std::max(num_ranks_ - 1, 1));
    if (splitters >= loads_.size()) { return levels_.size(); }
    lightest_.assign(loads_.begin(), loads_.end());
    auto const last = lightest_.begin() + static_cast<std::ptrdiff_t>(splitters);
    std::nth_element(lightest_.begin(), last, lightest_.end());
    return first_level_at_most(limit_ - *last);
  }
  void list_options(std::size_t expert) {
    auto const least = least_[expert];
    auto const most = most_copies(expert);
    auto count = least;
    // Big copies: the levels at or below their load count them. More copies are lighter, so levels only go on.
    std::size_t level = 0;
    for (; count <= most && loads_[expert] / count > limit_ / 2; ++count) {
      while (levels_[level] > loads_[expert] / count) { ++level; }
      options_.push_back({count, count - least, static_cast<index_t>(level), count});
    }
    // Small copies: the levels at or below the limit less their load count them, ever earlier ones.
    if (count > most) { return; }
    level = first_level_at_most(limit_ - loads_[expert] / count);
    options_.push_back({count, count - least, static_cast<index_t>(level), -count});
    for (++count; count <= most; ++count) {
      auto const before = level;
      while (level > 0 && levels_[level - 1] <= limit_ - loads_[expert] / count) { --level; }
      // One more small copy that counts no earlier is what any spare adds.
      if (level == before && is_served(level)) { continue; }
      options_.push_back({count, count - least, static_cast<index_t>(level), -count});
    }
  }

  std::span<load_t const> loads_;
  index_t num_ranks_ = 0;
  load_t limit_ = 0;
  index_t spares_ = 0;
  std::size_t first_served_ = 0;
  std::vector<index_t> least_;  // [E]
  std::vector<load_t> levels_;  // descending
  std::vector<load_t> lightest_;
  std::vector<choice> options_;
  std::vector<std::size_t> first_option_;  // [E + 1]
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
