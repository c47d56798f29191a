// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_WINDOW_RECORDER_HPP
#define BALLAST_LOAD_WINDOW_RECORDER_HPP

#include <ballast/load/recorder.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Options of `window_recorder`.
struct window_options {
  index_t passes = 1000;  ///< W, counted passes that the window holds
  index_t buckets = 8;    ///< H, parts that the window is cut into; more than W counts as W

  bool operator==(window_options const&) const = default;
};

/// Keeps the last W counted passes in H buckets, whatever their age.
///
/// Bucket lengths differ by at most one pass and sum to W; b = ceil(W / H) is the longest. A full window forgets a
/// whole bucket when it starts a new one, so it covers the last W passes exactly when b is 1, otherwise the last W - b
/// + 1 to W. The memory is H + 1 times [L, E], however long the window is.
class window_recorder : public pass_counter {
public:
  static constexpr bool clears_on_dump = true;

  /// @throws std::system_error (`errc::invalid_option`) for options that `validate` refuses
  window_recorder(index_t num_layers, index_t num_logical, window_options options = {})
      : pass_counter{num_layers, num_logical}, options_{options} {
    validate(options).or_throw();
    num_buckets_ = std::min(options.passes, options.buckets);
    tokens_.assign(static_cast<std::size_t>(num_buckets_) * pass().size(), 0);
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

  /// Close the pass in progress: into the window when counted, forgotten otherwise. @complexity O(L E), no allocation.
  void end_pass(bool counted) {
    if (counted) {
      if (filled_ == length_of(newest_)) { open_next_bucket(); }
      detail::add_saturated(pass(), bucket(newest_));
      ++filled_;
    }
    start_pass();
  }

  /// H, the same before and after the window has filled: buckets not reached yet are all zero.
  [[nodiscard]] index_t num_buckets() const noexcept { return num_buckets_; }

  /// Write the window, oldest bucket first.
  ///
  /// @param out  out: [H, L, E] tokens.
  /// @complexity O(H L E), no allocation.
  /// @throws nothing
  void history(std::span<load_t> out) const {
    BALLAST_EXPECTS(out.size() == tokens_.size(), "window_recorder: output is not [H, L, E]");
    auto const oldest = tokens_.begin() + static_cast<std::ptrdiff_t>(next_bucket()) * bucket_size();
    std::rotate_copy(tokens_.begin(), oldest, tokens_.end(), out.begin());
  }

  /// Forget the closed passes. The pass in progress stays.
  void clear() noexcept {
    std::fill(tokens_.begin(), tokens_.end(), load_t{0});
    newest_ = 0;
    filled_ = 0;
  }

  [[nodiscard]] window_options const& options() const noexcept { return options_; }
  void describe(digest& out) const noexcept {
    describe_shape(out.add("window_recorder"));
    out.add(options_.passes).add(num_buckets_);
  }

private:
  /// Passes that a bucket holds: W / H, rounded so that all of them together hold W.
  [[nodiscard]] index_t length_of(index_t bucket) const noexcept {
    auto const end_of = [&](index_t b) {
      return static_cast<index_t>(static_cast<std::int64_t>(b) * options_.passes / num_buckets_);
    };
    return end_of(bucket + 1) - end_of(bucket);
  }
  [[nodiscard]] index_t next_bucket() const noexcept { return (newest_ + 1) % num_buckets_; }
  [[nodiscard]] std::ptrdiff_t bucket_size() const noexcept { return static_cast<std::ptrdiff_t>(pass().size()); }
  [[nodiscard]] std::span<load_t> bucket(index_t bucket) noexcept {
    return std::span{tokens_}.subspan(static_cast<std::size_t>(bucket) * pass().size(), pass().size());
  }
  void open_next_bucket() noexcept {
    newest_ = next_bucket();
    filled_ = 0;
    auto const reused = bucket(newest_);
    std::fill(reused.begin(), reused.end(), load_t{0});
  }

  window_options options_;
  index_t num_buckets_ = 0;
  index_t newest_ = 0;
  index_t filled_ = 0;
  std::vector<load_t> tokens_;
};

static_assert(load_recorder<window_recorder>);

BALLAST_END_NAMESPACE

#endif
