// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_PASS_TIMELINE_HPP
#define BALLAST_LOAD_PASS_TIMELINE_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Passes that one rank counted, one after the other, and put together.
struct pass_span {
  std::int64_t first = 0;   ///< number of the first one
  std::int64_t last = 0;    ///< number of the last one
  std::int64_t passes = 0;  ///< how many they are; fewer than last - first + 1 where some in between did not count

  /// Whether every pass from first to last was counted.
  [[nodiscard]] constexpr bool is_run() const noexcept { return passes == last - first + 1; }
  auto operator<=>(pass_span const&) const = default;
};

/// What is known of the passes that some rank counted, once every rank has told its spans: a sequence of stretches that
/// do not overlap.
///
/// Where the spans are runs (single passes among them) that is exactly the union over the ranks. Spans with gaps do not
/// tell which of their passes another rank counted as well; where they overlap with others, the sequence with the most
/// passes stands for all: a number of passes is then never too large.
///
/// @determinism depends on the set of spans alone, not on their order.
class pass_timeline {
public:
  /// No pass.
  static constexpr std::int64_t none = std::numeric_limits<std::int64_t>::min();

  pass_timeline() = default;
  /// @param spans      of all ranks, in any order; empty ones are skipped. @pre 0 <= passes <= last - first + 1
  /// @param forgotten  the last pass that some rank had to let go.
  /// @complexity O(n log n) for n spans.
  /// @throws std::bad_alloc
  explicit pass_timeline(std::vector<pass_span> spans, std::int64_t forgotten = none) : forgotten_{forgotten} {
    std::erase_if(spans, [](pass_span const& span) { return span.passes <= 0; });
    std::sort(spans.begin(), spans.end());
    spans.erase(std::unique(spans.begin(), spans.end()), spans.end());
    choose(candidates(spans));
    sum_up();
    find_seams(spans);
  }

  /// The stretches, oldest first.
  [[nodiscard]] std::span<pass_span const> stretches() const noexcept { return stretches_; }
  [[nodiscard]] std::int64_t num_passes() const noexcept { return passes_from(0); }
  [[nodiscard]] std::int64_t forgotten() const noexcept { return forgotten_; }

  /// Passes later than `pass` that some rank counted. @complexity O(log n)
  [[nodiscard]] std::int64_t passes_after(std::int64_t pass) const noexcept {
    auto const at = stretch_at(pass == std::numeric_limits<std::int64_t>::max() ? pass : pass + 1);
    if (at == stretches_.size()) { return 0; }
    auto const& cut = stretches_[at];
    auto const before = cut.first > pass ? 0 : std::min(pass - cut.first + 1, cut.passes);
    return passes_from(at) - before;
  }
  /// The first stretch that ends with `pass` or later.
  [[nodiscard]] std::size_t stretch_at(std::int64_t pass) const noexcept {
    auto const at = std::partition_point(stretches_.begin(), stretches_.end(),
                                         [&pass](pass_span const& stretch) { return stretch.last < pass; });
    return static_cast<std::size_t>(at - stretches_.begin());
  }
  /// Passes of a stretch and of all later ones.
  [[nodiscard]] std::int64_t passes_from(std::size_t stretch) const noexcept {
    return stretch < from_.size() ? from_[stretch] : 0;
  }
  /// Whether no rank's span reaches over the end of this stretch into the next one.
  [[nodiscard]] bool ends_a_span(std::size_t stretch) const noexcept { return seams_[stretch] != 0; }

private:
  /// Spans with gaps as they are, and the union of the runs, cut wherever a span starts or ends.
  [[nodiscard]] static std::vector<pass_span> candidates(std::vector<pass_span> const& spans) {
    std::vector<std::int64_t> cuts;  // passes that a piece may start with
    cuts.reserve(2 * spans.size());
    for (auto const& span : spans) {
      cuts.push_back(span.first);
      cuts.push_back(span.last + 1);
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());

    std::vector<pass_span> found;
    std::int64_t covered = none;  // the last pass of the runs so far
    for (auto const& span : spans) {
      if (!span.is_run()) {
        found.push_back(span);
        continue;
      }
      if (covered >= span.last) { continue; }
      auto start = std::max(span.first, covered == none ? span.first : covered + 1);
      for (auto cut = std::upper_bound(cuts.begin(), cuts.end(), start); start <= span.last; ++cut) {
        found.push_back({start, *cut - 1, *cut - start});
        start = *cut;
      }
      covered = span.last;
    }
    return found;
  }

  /// The sequence of candidates that do not overlap and have the most passes.
  void choose(std::vector<pass_span> candidates) {
    std::sort(candidates.begin(), candidates.end(), [](pass_span const& a, pass_span const& b) {
      return std::pair{a.last, a.first} < std::pair{b.last, b.first};
    });
    auto const size = candidates.size();
    std::vector<std::int64_t> most(size + 1, 0);  // passes of the best choice among the first i
    std::vector<std::size_t> before(size, 0);     // candidates that end before this one starts
    for (std::size_t i = 0; i < size; ++i) {
      auto const end = candidates.begin() + static_cast<std::ptrdiff_t>(i);
      auto const fits = std::partition_point(
          candidates.begin(), end, [&candidates, &i](pass_span const& one) { return one.last < candidates[i].first; });
      before[i] = static_cast<std::size_t>(fits - candidates.begin());
      most[i + 1] = std::max(most[i], most[before[i]] + candidates[i].passes);
    }
    for (auto i = size; i > 0;) {
      if (most[i] == most[i - 1]) {
        --i;
      } else {
        stretches_.push_back(candidates[i - 1]);
        i = before[i - 1];
      }
    }
    std::reverse(stretches_.begin(), stretches_.end());
  }
  void sum_up() {
    from_.assign(stretches_.size(), 0);
    std::int64_t sum = 0;
    for (auto i = stretches_.size(); i > 0; --i) { from_[i - 1] = sum += stretches_[i - 1].passes; }
  }
  void find_seams(std::vector<pass_span> const& spans) {
    seams_.assign(stretches_.size(), 1);
    auto span = spans.begin();
    std::int64_t reach = none;  // where the spans that start by the end of this stretch end
    for (std::size_t i = 0; i + 1 < stretches_.size(); ++i) {
      for (; span != spans.end() && span->first <= stretches_[i].last; ++span) { reach = std::max(reach, span->last); }
      seams_[i] = reach < stretches_[i + 1].first ? 1 : 0;
    }
  }

  std::int64_t forgotten_ = none;
  std::vector<pass_span> stretches_;
  std::vector<std::int64_t> from_;
  std::vector<unsigned char> seams_;
};

BALLAST_END_NAMESPACE

#endif
