// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_WINDOW_RECORDER_HPP
#define BALLAST_LOAD_WINDOW_RECORDER_HPP

#include <ballast/load/recorder.hpp>
#include <ballast/load/window_cursor.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Keeps the last W counted passes in H buckets, whatever their age.
///
/// Bucket lengths differ by at most one pass and sum to W; b = ceil(W / H) is the longest. A full window forgets a
/// whole bucket when it starts a new one, so it covers the last W passes exactly when b is 1, otherwise the last W - b
/// + 1 to W. The memory is H + 1 times [L, E], however long the window is.
///
/// Ranks may count different passes: a pass that some rank counted takes its place in every rank's window when the
/// counts are added up (`window_cursor::place`).
///
/// @determinism integer arithmetic. Ranks must share W, H, L and E, and make the same calls of `end_pass`.
class window_recorder : public pass_counter, public window_telling<window_recorder> {
public:
  static constexpr bool clears_on_dump = true;

  /// @throws std::system_error (`errc::invalid_option`) for options that `validate` refuses, or for more cells than an
  ///         array can have; std::bad_alloc where there is no memory for them
  window_recorder(index_t num_layers, index_t num_logical, window_options options = {})
      : pass_counter{num_layers, num_logical}, cursor_{options} {
    auto const buckets = static_cast<std::size_t>(num_buckets());
    if (buckets > 0 && pass().size() > tokens_.max_size() / buckets) {
      status{errc::invalid_option, detail::concat("window_recorder: ", buckets, " buckets x ", num_layers, " layers x ",
                                                  num_logical, " experts do not fit memory")}
          .or_throw();
    } else {
      tokens_.assign(buckets * pass().size(), 0);
    }
  }

  /// Say whether the options make a window, naming the first value that does not.
  [[nodiscard]] static status validate(window_options options) { return window_cursor::validate(options); }

  /// Close the pass in progress: into the window when counted, forgotten otherwise. @complexity O(L E), no allocation.
  void end_pass(bool counted) {
    if (counted) {
      auto const to = cursor_.count_pass();
      auto const tokens = bucket(to.bucket);
      if (to.fresh) { std::fill(tokens.begin(), tokens.end(), load_t{0}); }
      detail::add_saturated(pass(), tokens);
    } else {
      cursor_.skip_pass();
    }
    start_pass();
  }

  /// Write the window, oldest bucket first, with layers that are too large brought down (`fit_layers`).
  ///
  /// @param out  out: [H, L, E] tokens.
  /// @complexity O(H L E), no allocation on success.
  /// @throws nothing; the status names a size that is not [H, L, E], nothing is written then.
  [[nodiscard]] status history(std::span<load_t> out) const {
    if (auto result = check_output(out.size(), num_buckets()); !result.ok()) { return result; }
    auto const oldest = tokens_.begin() + static_cast<std::ptrdiff_t>(cursor_.bucket_of_oldest()) *
                                              static_cast<std::ptrdiff_t>(pass().size());
    std::rotate_copy(tokens_.begin(), oldest, tokens_.end(), out.begin());
    fit_layers(out, num_buckets(), num_layers(), num_logical());
    return {};
  }

  /// Forget the closed passes. The pass in progress stays.
  void clear() noexcept {
    std::fill(tokens_.begin(), tokens_.end(), load_t{0});
    cursor_.clear();
  }

  template <class Visit>
  void for_each_option(Visit&& visit) const {
    cursor_.for_each_option(visit);
    visit_shape(visit);
  }
  void describe(digest& out) const { detail::describe_options(*this, out); }

private:
  friend class window_telling<window_recorder>;
  [[nodiscard]] window_cursor const& cursor() const noexcept { return cursor_; }
  [[nodiscard]] std::span<load_t> bucket(index_t bucket) noexcept {
    return std::span{tokens_}.subspan(static_cast<std::size_t>(bucket) * pass().size(), pass().size());
  }

  window_cursor cursor_;
  std::vector<load_t> tokens_;  // [H, L, E] as stored
};

static_assert(load_recorder<window_recorder> && bucket_placing<window_recorder>);
static_assert(detail::names_options<window_recorder>);

BALLAST_END_NAMESPACE

#endif
