// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_PASS_RECORDER_HPP
#define BALLAST_LOAD_PASS_RECORDER_HPP

#include <ballast/load/recorder.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Options of `pass_recorder`.
struct pass_options {
  index_t capacity = 1024;  ///< passes that are kept; further ones are dropped and counted

  bool operator==(pass_options const&) const = default;
};

/// Keeps every counted pass by itself, to be written to a file.
///
/// One bucket a pass. The memory grows with the passes kept, by doubling, up to the capacity: when that is reached the
/// first passes stay and later ones are dropped. `pass_numbers()` tells the passes of several ranks apart or together,
/// where ranks count different ones.
///
/// Added up over ranks, the passes are those that any rank counted, as many as the capacity from the first on.
///
/// @determinism integer arithmetic. Ranks must share the capacity, L and E, and make the same calls of `end_pass`.
class pass_recorder : public pass_counter {
public:
  static constexpr bool clears_on_dump = true;

  /// @throws std::system_error (`errc::invalid_option`) for options that `validate` refuses; std::bad_alloc
  pass_recorder(index_t num_layers, index_t num_logical, pass_options options = {})
      : pass_counter{num_layers, num_logical}, options_{options} {
    validate(options).or_throw();
  }

  /// Say whether the options make a recorder, naming the value that does not.
  [[nodiscard]] static status validate(pass_options options) {
    if (options.capacity < 1) {
      return {errc::invalid_option,
              detail::concat("pass_recorder: capacity is ", options.capacity, " passes, must be at least 1")};
    }
    return {};
  }

  /// Get the memory for so many passes now. Nothing allocates until they are full.
  /// @throws std::bad_alloc
  void reserve(index_t passes) {
    BALLAST_EXPECTS(passes >= 0, "pass_recorder: cannot reserve a negative number of passes");
    auto const count = static_cast<std::size_t>(std::clamp<index_t>(passes, 0, options_.capacity));
    tokens_.reserve(count * pass().size());
    numbers_.reserve(count);
  }

  /// Close the pass in progress: keep it when counted and below the capacity. @complexity O(L E), amortised.
  /// @throws std::bad_alloc beyond what was reserved
  void end_pass(bool counted) {
    // Also where there is no memory for the pass: then it is lost, and the next one has its own number.
    struct next_pass {
      pass_recorder* self;
      ~next_pass() {
        ++self->next_number_;
        self->start_pass();
      }
    } const at_end{this};
    if (counted && num_buckets() < options_.capacity) {
      if (numbers_.size() == numbers_.capacity()) { numbers_.reserve(2 * numbers_.size() + 1); }
      tokens_.insert(tokens_.end(), pass().begin(), pass().end());
      numbers_.push_back(next_number_);
    } else if (counted) {
      ++num_dropped_;
    }
  }

  /// Passes kept.
  [[nodiscard]] index_t num_buckets() const noexcept { return static_cast<index_t>(numbers_.size()); }
  /// Which passes they are: how many, counted or not, had ended before each since construction. Ascending.
  [[nodiscard]] std::span<std::int64_t const> pass_numbers() const noexcept { return numbers_; }
  /// Counted passes that found the recorder full since the last `clear()`.
  [[nodiscard]] std::int64_t num_dropped() const noexcept { return num_dropped_; }

  /// Write all passes kept, oldest first, with layers that are too large brought down (`fit_layers`).
  ///
  /// @param out  out: [`num_buckets()`, L, E] tokens.
  /// @complexity O(H L E), no allocation on success.
  /// @throws nothing; the status names a size that is not [H, L, E], nothing is written then.
  [[nodiscard]] status history(std::span<load_t> out) const {
    if (auto result = check_output(out.size(), num_buckets()); !result.ok()) { return result; }
    std::copy(tokens_.begin(), tokens_.end(), out.begin());
    fit_layers(out, num_buckets(), num_layers(), num_logical());
    return {};
  }

  /// Forget the closed passes, keep their memory. The pass in progress stays, and pass numbers go on.
  void clear() noexcept {
    tokens_.clear();
    numbers_.clear();
    num_dropped_ = 0;
  }

  // ---- what ranks tell each other; see `bucket_placing` ----

  [[nodiscard]] index_t num_spans() const noexcept { return num_buckets(); }
  void spans(std::span<pass_span> out) const {
    BALLAST_EXPECTS(out.size() == numbers_.size(), "pass_recorder: spans are not [H]");
    for (std::size_t i = 0; i < out.size(); ++i) { out[i] = {relative(numbers_[i]), relative(numbers_[i]), 1}; }
  }
  /// None: what it drops is later than all that it keeps.
  [[nodiscard]] std::int64_t forgotten() const noexcept { return pass_timeline::none; }
  /// Each pass at its number among those that any rank counted. @complexity O(H log n) for n passes.
  [[nodiscard]] index_t place(pass_timeline const& counted, std::span<index_t> places) const {
    auto const total = counted.num_passes();
    for (std::size_t i = 0; i < numbers_.size(); ++i) {
      auto const position = total - counted.passes_after(relative(numbers_[i])) - 1;
      places[i] = position < options_.capacity ? static_cast<index_t>(position) : -1;
    }
    return static_cast<index_t>(std::min<std::int64_t>(total, options_.capacity));
  }

  [[nodiscard]] pass_options const& options() const noexcept { return options_; }
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit(std::string_view{"pass_recorder capacity"}, detail::option_bits(options_.capacity));
    visit_shape(visit);
  }
  void describe(digest& out) const { detail::describe_options(*this, out); }

private:
  /// The number of a pass, counted back from the last one that has ended.
  [[nodiscard]] std::int64_t relative(std::int64_t number) const noexcept { return number - (next_number_ - 1); }

  pass_options options_;
  std::int64_t next_number_ = 0;
  std::int64_t num_dropped_ = 0;
  std::vector<load_t> tokens_;
  std::vector<std::int64_t> numbers_;
};

static_assert(load_recorder<pass_recorder> && bucket_placing<pass_recorder>);
static_assert(detail::names_options<pass_recorder>);

BALLAST_END_NAMESPACE

#endif
