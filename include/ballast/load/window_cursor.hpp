// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_WINDOW_CURSOR_HPP
#define BALLAST_LOAD_WINDOW_CURSOR_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/load/pass_timeline.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Options of `window_recorder`.
struct window_options {
  index_t passes = 1000;  ///< W, counted passes that the window holds
  index_t buckets = 8;    ///< H, parts that the window is cut into; more than W counts as W

  bool operator==(window_options const&) const = default;
};

/// Which bucket of a window the next pass goes to, and which passes each bucket holds: all of a `window_recorder` but
/// the counts, for recorders that keep these elsewhere. What was moved from has no buckets, and forgets every pass.
class window_cursor {
public:
  /// @throws std::system_error (`errc::invalid_option`) for options that `validate` refuses
  explicit window_cursor(window_options options) : options_{options} {
    validate(options).or_throw();
    held_.assign(static_cast<std::size_t>(std::max<index_t>(std::min(options.passes, options.buckets), 0)), {});
  }

  /// Say whether the options make a window, naming the first value that does not.
  [[nodiscard]] static status validate(window_options options) {
    if (options.passes < 1) {
      return {errc::invalid_option,
              detail::concat("window_recorder: window is ", options.passes, " passes, must be at least 1")};
    }
    if (options.buckets < 1) {
      return {errc::invalid_option,
              detail::concat("window_recorder: number of buckets is ", options.buckets, ", must be at least 1")};
    }
    return {};
  }

  /// Where a counted pass goes.
  struct target {
    index_t bucket = 0;  ///< in [0, H), as stored
    bool fresh = false;  ///< what the bucket holds is to be forgotten first
  };

  /// Close a counted pass. @complexity O(1), no allocation.
  [[nodiscard]] target count_pass() noexcept {
    ++num_passes_;
    if (held_.empty()) { return {}; }
    target to{newest_, false};
    if (held().passes == length_of(newest_)) {
      to = {bucket_of_oldest(), true};
      newest_ = to.bucket;
      if (held().passes > 0) { forgotten_ = held().last; }
      held() = {};
    }
    if (held().passes == 0) { held().first = num_passes_; }
    held().last = num_passes_;
    ++held().passes;
    return to;
  }
  /// Close a pass that does not count.
  void skip_pass() noexcept { ++num_passes_; }
  /// Forget all closed passes.
  void clear() noexcept {
    std::fill(held_.begin(), held_.end(), pass_span{});
    newest_ = 0;
    forgotten_ = pass_timeline::none;
  }

  [[nodiscard]] index_t num_buckets() const noexcept { return static_cast<index_t>(held_.size()); }
  /// The stored bucket that comes first in a history; the others follow in a circle.
  [[nodiscard]] index_t bucket_of_oldest() const noexcept {
    return num_buckets() == 0 ? 0 : (newest_ + 1) % num_buckets();
  }
  [[nodiscard]] window_options const& options() const noexcept { return options_; }

  // ---- what ranks tell each other; see `pass_telling` ----

  [[nodiscard]] index_t num_spans() const noexcept { return num_buckets(); }
  void spans(std::span<pass_span> out) const {
    BALLAST_EXPECTS(out.size() == held_.size(), "window_cursor: spans are not [H]");
    for (std::size_t i = 0; i < out.size(); ++i) {
      auto span = held_[(i + static_cast<std::size_t>(bucket_of_oldest())) % held_.size()];
      span.first -= num_passes_;
      span.last -= num_passes_;
      out[i] = span;
    }
  }
  [[nodiscard]] std::int64_t forgotten() const noexcept {
    return forgotten_ == pass_timeline::none ? forgotten_ : forgotten_ - num_passes_;
  }
  /// Where each bucket belongs in the window over the passes that any rank counted.
  ///
  /// Too old are buckets all of whose passes come before the last W that are known, or that some rank has let go. What
  /// is left of the timeline is put into H buckets: cut where the ranks cut theirs, as far as they agree, else so that
  /// no bucket is longer than ceil(W / H). Of ranks that count the same passes, nothing is changed; with buckets of one
  /// pass the result is exactly that of recorders that had counted each pass that any rank counted.
  ///
  /// @param counted  of all ranks.
  /// @param places   out: [H] the bucket that each belongs to, oldest first; -1: empty or too old.
  /// @return H
  /// @complexity O(n + H log n) for n stretches.
  /// @throws std::bad_alloc
  [[nodiscard]] index_t place(pass_timeline const& counted, std::span<index_t> places) const {
    if (held_.empty()) { return 0; }
    std::vector<pass_span> mine(held_.size());
    spans(mine);
    auto const first = static_cast<std::size_t>(
        std::partition_point(counted.stretches().begin(), counted.stretches().end(),
                             [this, &counted](pass_span const& stretch) { return is_too_old(counted, stretch.last); }) -
        counted.stretches().begin());
    auto const bucket_of = buckets_of_stretches(counted, first);
    for (std::size_t i = 0; i < mine.size(); ++i) {
      if (mine[i].passes == 0 || is_too_old(counted, mine[i].last)) {
        places[i] = -1;
      } else {
        // Spans with gaps may reach beyond the last stretch.
        auto const at = counted.stretch_at(mine[i].last) - first;
        places[i] = at < bucket_of.size() ? bucket_of[at] : num_buckets() - 1;
      }
    }
    return num_buckets();
  }

  /// Host and device keep the same windows, so that ranks may mix them.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit(std::string_view{"window_recorder passes"}, detail::option_bits(options_.passes));
    visit(std::string_view{"window_recorder buckets"}, detail::option_bits(num_buckets()));
  }

private:
  /// Passes that a bucket holds: W / H, rounded so that all of them together hold W.
  [[nodiscard]] index_t length_of(index_t bucket) const noexcept {
    auto const end_of = [this](index_t b) {
      return static_cast<index_t>(static_cast<std::int64_t>(b) * options_.passes / num_buckets());
    };
    return end_of(bucket + 1) - end_of(bucket);
  }
  [[nodiscard]] std::int64_t longest() const noexcept {
    return (static_cast<std::int64_t>(options_.passes) + num_buckets() - 1) / num_buckets();
  }
  [[nodiscard]] pass_span& held() noexcept { return held_[static_cast<std::size_t>(newest_)]; }
  [[nodiscard]] pass_span const& held() const noexcept { return held_[static_cast<std::size_t>(newest_)]; }

  [[nodiscard]] bool is_too_old(pass_timeline const& counted, std::int64_t last) const noexcept {
    return last <= counted.forgotten() || counted.passes_after(last) >= options_.passes;
  }

  /// The bucket of each stretch from `first` on, the newest stretch in the newest bucket.
  [[nodiscard]] std::vector<index_t> buckets_of_stretches(pass_timeline const& counted, std::size_t first) const {
    auto groups = groups_of_stretches(counted, first);
    if (groups.empty()) { return groups; }
    if (groups.back() >= num_buckets()) { spread(counted, first, groups); }
    auto const shift = num_buckets() - 1 - groups.back();
    for (auto& group : groups) { group += shift; }
    return groups;
  }
  /// Number the stretches by group: one ends where all ranks end a bucket, or where it would become too long.
  [[nodiscard]] std::vector<index_t> groups_of_stretches(pass_timeline const& counted, std::size_t first) const {
    auto const stretches = counted.stretches();
    std::vector<index_t> groups;
    std::int64_t length = 0;
    for (auto i = first; i < stretches.size(); ++i) {
      bool const ends = i > first && (counted.ends_a_span(i - 1) || length + stretches[i].passes > longest());
      groups.push_back(i == first ? 0 : groups.back() + (ends ? 1 : 0));
      length = (ends ? 0 : length) + stretches[i].passes;
    }
    return groups;
  }
  /// Where these groups are more than there are buckets, the place in the window decides.
  void spread(pass_timeline const& counted, std::size_t first, std::vector<index_t>& groups) const {
    auto const total = counted.passes_from(first);
    auto const window = std::max<std::int64_t>(total, options_.passes);
    for (std::size_t i = 0; i < groups.size(); ++i) {
      auto const position = total - counted.passes_from(first + i + 1) - 1;
      groups[i] = static_cast<index_t>(position * num_buckets() / window);
    }
  }

  window_options options_;
  index_t newest_ = 0;
  std::int64_t num_passes_ = 0;  // that have ended, counted or not
  std::int64_t forgotten_ = pass_timeline::none;
  std::vector<pass_span> held_;  // [H] as stored
};

static_assert(detail::names_options<window_cursor>);

/// What a recorder with a window tells of it, by way of its member `cursor()`, the `window_cursor` of the passes that
/// its `history` speaks of. A base class of recorders.
template <class Recorder>
class window_telling {
public:
  /// H, the same before and after the window has filled: buckets not reached yet are all zero.
  [[nodiscard]] index_t num_buckets() const noexcept { return cursor().num_buckets(); }
  [[nodiscard]] window_options const& options() const noexcept { return cursor().options(); }

  // ---- what ranks tell each other; see `bucket_placing` ----

  [[nodiscard]] index_t num_spans() const noexcept { return cursor().num_spans(); }
  void spans(std::span<pass_span> out) const { cursor().spans(out); }
  [[nodiscard]] std::int64_t forgotten() const noexcept { return cursor().forgotten(); }
  [[nodiscard]] index_t place(pass_timeline const& counted, std::span<index_t> places) const {
    return cursor().place(counted, places);
  }

private:
  friend Recorder;
  window_telling() = default;
  [[nodiscard]] window_cursor const& cursor() const noexcept { return static_cast<Recorder const*>(this)->cursor(); }
};

BALLAST_END_NAMESPACE

#endif
