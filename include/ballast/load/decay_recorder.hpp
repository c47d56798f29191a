// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_DECAY_RECORDER_HPP
#define BALLAST_LOAD_DECAY_RECORDER_HPP

#include <ballast/load/recorder.hpp>

#include <algorithm>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Options of `decay_recorder`.
struct decay_options {
  /// d * 65536: what a counted pass leaves of all that came before it. The default is d = 0.99, a memory of about a
  /// hundred passes; 65536 forgets nothing, 0 remembers one pass.
  index_t keep = 64881;

  bool operator==(decay_options const&) const = default;
};

/// Keeps a fading sum, x = d * x + count, that is never cleared at a dump.
///
/// x is an integer in units of 1 / 65536 token and d a fraction of 65536, each product rounded to nearest: the result
/// is the same on every machine.
class decay_recorder : public pass_counter {
public:
  static constexpr bool clears_on_dump = false;

  /// @throws std::system_error (`errc::invalid_option`) for options that `validate` refuses
  decay_recorder(index_t num_layers, index_t num_logical, decay_options options = {})
      : pass_counter{num_layers, num_logical}, options_{options} {
    validate(options).or_throw();
    sums_.assign(pass().size(), 0);
  }

  /// Say whether the options make a decay, naming the value that does not.
  [[nodiscard]] static status validate(decay_options options) {
    if (options.keep < 0 || options.keep > one) {
      return {errc::invalid_option,
              detail::concat("decay_recorder: keep is ", options.keep, ", must be in [0, ", one, "]")};
    }
    return {};
  }

  /// Close the pass in progress: decay and add it when counted, forget it otherwise. @complexity O(L E), no allocation.
  void end_pass(bool counted) {
    if (counted) {
      for (std::size_t i = 0; i < sums_.size(); ++i) {
        sums_[i] = std::min(decayed(sums_[i]) + pass()[i] * one, max_layer_tokens * one);
      }
    }
    start_pass();
  }

  [[nodiscard]] index_t num_buckets() const noexcept { return 1; }

  /// Write the fading sum, rounded to whole tokens.
  ///
  /// @param out  out: [1, L, E] tokens.
  /// @complexity O(L E), no allocation.
  /// @throws nothing
  void history(std::span<load_t> out) const {
    BALLAST_EXPECTS(out.size() == sums_.size(), "decay_recorder: output is not [1, L, E]");
    std::transform(sums_.begin(), sums_.end(), out.begin(), [](load_t sum) { return (sum + one / 2) / one; });
  }

  /// Forget the closed passes. The pass in progress stays.
  void clear() noexcept { std::fill(sums_.begin(), sums_.end(), load_t{0}); }

  [[nodiscard]] decay_options const& options() const noexcept { return options_; }
  void describe(digest& out) const noexcept {
    describe_shape(out.add("decay_recorder"));
    out.add(options_.keep);
  }

private:
  static constexpr load_t one = load_t{1} << 16;
  static_assert(max_layer_tokens <= (load_t{1} << 61) / one, "the sum of two capped values must fit");

  /// d * sum, exact in the two halves, so no wide integer is needed.
  [[nodiscard]] load_t decayed(load_t sum) const noexcept {
    load_t const high = sum / one;
    load_t const low = sum % one;
    return high * options_.keep + (low * options_.keep + one / 2) / one;
  }

  decay_options options_;
  std::vector<load_t> sums_;
};

static_assert(load_recorder<decay_recorder>);

BALLAST_END_NAMESPACE

#endif
