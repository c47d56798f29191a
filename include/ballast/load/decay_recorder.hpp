// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_DECAY_RECORDER_HPP
#define BALLAST_LOAD_DECAY_RECORDER_HPP

#include <ballast/contract.hpp>
#include <ballast/load/recorder.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
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
///
/// A pass that does not count does not decay, unless another rank counted it: d^k must be the same d^k on every rank.
/// This rank learns of such passes at a dump only (`fade`). Until then it keeps a sum for each run of passes that it
/// counted, up to eight: where a rank has paused more often than that since the last dump, the runs with the fewest
/// passes between them are joined as if no rank had counted those. The memory is ten times [L, E].
///
/// @determinism integer arithmetic. Ranks must share d, L and E, and make the same calls of `end_pass`.
class decay_recorder : public pass_counter {
public:
  static constexpr bool clears_on_dump = false;

  /// @throws std::system_error (`errc::invalid_option`) for options that `validate` refuses; std::bad_alloc
  decay_recorder(index_t num_layers, index_t num_logical, decay_options options = {})
      : pass_counter{num_layers, num_logical}, options_{options} {
    validate(options).or_throw();
    for (auto& run : runs_) { run.sums.assign(pass().size(), 0); }
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
    ++num_passes_;
    if (counted) {
      if (num_runs_ == 0 || newest().held.last != num_passes_ - 1) { open_run(); }
      auto& run = newest();
      auto& held = run.held;
      auto& sums = run.sums;
      for (std::size_t i = 0; i < sums.size(); ++i) { sums[i] = capped(decayed(sums[i]) + pass()[i] * one); }
      if (held.passes == 0) { held.first = num_passes_; }
      held.last = num_passes_;
      ++held.passes;
    }
    start_pass();
  }

  [[nodiscard]] index_t num_buckets() const noexcept { return 1; }

  /// Write the fading sum, rounded to whole tokens, with layers that are too large brought down (`fit_layers`).
  ///
  /// @param out  out: [1, L, E] tokens.
  /// @complexity O(L E), no allocation on success.
  /// @throws nothing; the status names a size that is not [1, L, E], nothing is written then.
  [[nodiscard]] status history(std::span<load_t> out) const {
    if (auto result = check_output(out.size(), 1); !result.ok()) { return result; }
    std::fill(out.begin(), out.end(), load_t{0});
    for (std::size_t run = 0; run < num_runs_; ++run) { add_faded(runs_[run], passes_after(run), out); }
    for (auto& sum : out) { sum = (sum + one / 2) / one; }
    fit_layers(out, 1, num_layers(), num_logical());
    return {};
  }

  /// Forget the closed passes. The pass in progress stays.
  void clear() noexcept {
    num_runs_ = 0;
    for (auto& run : runs_) { reset(run); }
  }

  // ---- what ranks tell each other; see `load_fading` ----

  [[nodiscard]] index_t num_spans() const noexcept { return max_runs; }
  void spans(std::span<pass_span> out) const {
    BALLAST_EXPECTS(out.size() == max_runs, "decay_recorder: spans are not as many as runs");
    std::fill(out.begin(), out.end(), pass_span{});
    for (std::size_t run = 0; run < num_runs_; ++run) { out[run] = relative(runs_[run].held); }
  }
  /// None: it has let nothing go that another rank could still hold.
  [[nodiscard]] std::int64_t forgotten() const noexcept { return pass_timeline::none; }
  /// Decay by the passes that only other ranks counted. @complexity O(L E), no allocation.
  void fade(pass_timeline const& counted) {
    if (num_runs_ == 0) { return; }
    auto& whole = runs_[max_runs];  // never a run: `open_run` joins two before
    for (std::size_t run = 0; run < num_runs_; ++run) {
      auto const after = counted.passes_after(relative(runs_[run].held).last);
      add_faded(runs_[run], std::max(after, passes_after(run)), whole.sums);
    }
    std::swap(runs_[0].sums, whole.sums);
    for (std::size_t run = 1; run < runs_.size(); ++run) { reset(runs_[run]); }
    // Nobody needs to hear of these passes again, and the next one may go on from here.
    runs_[0].held = {num_passes_, num_passes_, 0};
    num_runs_ = 1;
  }

  [[nodiscard]] decay_options const& options() const noexcept { return options_; }
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit(std::string_view{"decay_recorder keep"}, detail::option_bits(options_.keep));
    visit_shape(visit);
  }
  void describe(digest& out) const { detail::describe_options(*this, out); }

private:
  static constexpr load_t one = load_t{1} << 16;
  static_assert(max_layer_tokens <= (load_t{1} << 61) / one, "the sum of two capped values must fit");
  static constexpr std::size_t max_runs = 8;
  /// Powers of d are fractions of 2^31.
  static constexpr int power_bits = 31;

  /// Consecutive passes that this rank counted, and their fading sum as of the last of them.
  struct run_of_passes {
    pass_span held;
    std::vector<load_t> sums;  // [L, E]
  };

  [[nodiscard]] static load_t capped(load_t sum) noexcept { return std::min(sum, max_layer_tokens * one); }
  /// d * sum, exact in the two halves, so no wide integer is needed.
  [[nodiscard]] load_t decayed(load_t sum) const noexcept {
    load_t const high = sum / one;
    load_t const low = sum % one;
    return high * options_.keep + (low * options_.keep + one / 2) / one;
  }
  /// a * b for fractions of 2^31, and for a sum and a fraction.
  [[nodiscard]] static std::int64_t scaled(std::int64_t a, std::int64_t fraction) noexcept {
    constexpr auto low_bits = (std::int64_t{1} << power_bits) - 1;
    return (a >> power_bits) * fraction +
           (((a & low_bits) * fraction + (std::int64_t{1} << (power_bits - 1))) >> power_bits);
  }
  /// d^passes.
  [[nodiscard]] std::int64_t power(std::int64_t passes) const noexcept {
    auto result = std::int64_t{1} << power_bits;
    auto factor = static_cast<std::int64_t>(options_.keep) << (power_bits - 16);
    for (; passes > 0; passes /= 2) {
      if (passes % 2 != 0) { result = scaled(result, factor); }
      factor = scaled(factor, factor);
    }
    return result;
  }
  void add_faded(run_of_passes const& run, std::int64_t passes, std::span<load_t> to) const {
    auto const factor = power(passes);
    for (std::size_t i = 0; i < to.size(); ++i) { to[i] = capped(to[i] + scaled(run.sums[i], factor)); }
  }

  [[nodiscard]] run_of_passes& newest() noexcept { return runs_[num_runs_ - 1]; }
  static void reset(run_of_passes& run) noexcept {
    run.held = {};
    std::fill(run.sums.begin(), run.sums.end(), load_t{0});
  }
  /// Passes that this rank counted after a run.
  [[nodiscard]] std::int64_t passes_after(std::size_t run) const noexcept {
    std::int64_t sum = 0;
    for (auto later = run + 1; later < num_runs_; ++later) { sum += runs_[later].held.passes; }
    return sum;
  }
  [[nodiscard]] pass_span relative(pass_span held) const noexcept {
    return {held.first - num_passes_, held.last - num_passes_, held.passes};
  }

  void open_run() noexcept {
    if (num_runs_ == max_runs) { join_closest(); }
    ++num_runs_;
  }
  /// Join the two neighbours with the fewest passes between them.
  void join_closest() noexcept {
    std::size_t closest = 0;
    for (std::size_t run = 1; run + 1 < num_runs_; ++run) {
      if (gap_after(run) < gap_after(closest)) { closest = run; }
    }
    auto& older = runs_[closest];
    auto& younger = runs_[closest + 1];
    add_faded(older, younger.held.passes, younger.sums);
    if (older.held.passes > 0) { younger.held.first = older.held.first; }
    younger.held.passes += older.held.passes;
    reset(older);
    std::rotate(runs_.begin() + static_cast<std::ptrdiff_t>(closest),
                runs_.begin() + static_cast<std::ptrdiff_t>(closest) + 1, runs_.end());
    --num_runs_;
  }
  [[nodiscard]] std::int64_t gap_after(std::size_t run) const noexcept {
    return runs_[run + 1].held.first - runs_[run].held.last;
  }

  decay_options options_;
  std::int64_t num_passes_ = 0;  // that have ended, counted or not
  std::size_t num_runs_ = 0;
  std::array<run_of_passes, max_runs + 1> runs_;  // oldest first, the unused ones all zero
};

static_assert(load_recorder<decay_recorder> && load_fading<decay_recorder>);
static_assert(detail::names_options<decay_recorder>);

BALLAST_END_NAMESPACE

#endif
