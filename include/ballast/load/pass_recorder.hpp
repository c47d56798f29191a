// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_PASS_RECORDER_HPP
#define BALLAST_LOAD_PASS_RECORDER_HPP

#include <ballast/load/recorder.hpp>

#include <algorithm>
#include <cstdint>
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
class pass_recorder : public pass_counter {
public:
  static constexpr bool clears_on_dump = true;

  /// @throws std::system_error (`errc::invalid_option`) for options that `validate` refuses
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
    auto const count = static_cast<std::size_t>(std::min(passes, options_.capacity));
    tokens_.reserve(count * pass().size());
    numbers_.reserve(count);
  }

  /// Close the pass in progress: keep it when counted and below the capacity. @complexity O(L E), amortised.
  /// @throws std::bad_alloc beyond what was reserved
  void end_pass(bool counted) {
    if (counted && num_buckets() < options_.capacity) {
      tokens_.insert(tokens_.end(), pass().begin(), pass().end());
      numbers_.push_back(next_number_);
    } else if (counted) {
      ++num_dropped_;
    }
    ++next_number_;
    start_pass();
  }

  /// Passes kept.
  [[nodiscard]] index_t num_buckets() const noexcept { return static_cast<index_t>(numbers_.size()); }
  /// Which passes they are: how many, counted or not, had ended before each since construction. Ascending.
  [[nodiscard]] std::span<std::int64_t const> pass_numbers() const noexcept { return numbers_; }
  /// Counted passes that found the recorder full since the last `clear()`.
  [[nodiscard]] std::int64_t num_dropped() const noexcept { return num_dropped_; }

  /// Write all passes kept, oldest first.
  ///
  /// @param out  out: [`num_buckets()`, L, E] tokens.
  /// @complexity O(H L E), no allocation.
  /// @throws nothing
  void history(std::span<load_t> out) const {
    BALLAST_EXPECTS(out.size() == tokens_.size(), "pass_recorder: output is not [H, L, E]");
    std::copy(tokens_.begin(), tokens_.end(), out.begin());
  }

  /// Forget the closed passes, keep their memory. The pass in progress stays, and pass numbers go on.
  void clear() noexcept {
    tokens_.clear();
    numbers_.clear();
    num_dropped_ = 0;
  }

  [[nodiscard]] pass_options const& options() const noexcept { return options_; }
  void describe(digest& out) const noexcept {
    describe_shape(out.add("pass_recorder"));
    out.add(options_.capacity);
  }

private:
  pass_options options_;
  std::int64_t next_number_ = 0;
  std::int64_t num_dropped_ = 0;
  std::vector<load_t> tokens_;
  std::vector<std::int64_t> numbers_;
};

static_assert(load_recorder<pass_recorder>);

BALLAST_END_NAMESPACE

#endif
