// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_REGIME_HPP
#define BALLAST_LOAD_REGIME_HPP

#include <ballast/contract.hpp>
#include <ballast/load/history.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Largest integer whose square is at most `value`.
[[nodiscard]] constexpr std::int64_t integer_root(std::int64_t value) noexcept {
  std::int64_t root = 0;
  for (std::int64_t bit = std::int64_t{1} << 31; bit > 0; bit >>= 1) {
    if ((root + bit) <= value / (root + bit)) { root += bit; }
  }
  return root;
}

/// Follows a history bucket by bucket and notices when the traffic is no longer what it was.
class regime_tracker {
public:
  explicit regime_tracker(load_history_view history)
      : history_{history},
        sums_(static_cast<std::size_t>(history.num_layers()) * static_cast<std::size_t>(history.num_logical())) {}

  /// First bucket since the last change.
  [[nodiscard]] index_t start(std::int64_t change_percent) {
    for (index_t bucket = 0; bucket < history_.num_buckets(); ++bucket) {
      if (bucket > start_) {
        auto const surprise = surprise_at(bucket);
        if (num_seen_ > 0 && surprise * num_seen_ * 100 > seen_ * change_percent) {
          restart(bucket);
        } else {
          seen_ += surprise;
          ++num_seen_;
        }
      }
      add(bucket);
    }
    return start_;
  }

private:
  static constexpr int fraction_bits = 18;  // loads of `max_layer_tokens` times this fit 63 bits

  /// How far a bucket is from the mean of the regime so far: the sum over layers and experts of the difference in the
  /// fraction of tokens, scaled to what it would be if the mean were known exactly (a mean of m buckets adds 1 / m to
  /// the variance).
  [[nodiscard]] std::int64_t surprise_at(index_t bucket) const {
    std::int64_t distance = 0;
    for (index_t layer = 0; layer < history_.num_layers(); ++layer) {
      distance += distance_between(sums(layer), history_.layer(bucket, layer));
    }
    std::int64_t const m = bucket - start_;
    return integer_root(distance * distance / (m + 1) * m);
  }
  [[nodiscard]] static std::int64_t distance_between(std::span<load_t const> a, std::span<load_t const> b) {
    load_t total_a = 0;
    load_t total_b = 0;
    for (std::size_t e = 0; e < a.size(); ++e) {
      total_a += a[e];
      total_b += b[e];
    }
    if (total_a == 0 || total_b == 0) { return 0; }
    std::int64_t distance = 0;
    for (std::size_t e = 0; e < a.size(); ++e) {
      auto const difference = (a[e] << fraction_bits) / total_a - (b[e] << fraction_bits) / total_b;
      distance += difference < 0 ? -difference : difference;
    }
    return distance;
  }
  void restart(index_t bucket) {
    start_ = bucket;
    seen_ = 0;
    num_seen_ = 0;
    std::fill(sums_.begin(), sums_.end(), load_t{0});
  }
  void add(index_t bucket) {
    auto const tokens = history_.bucket(bucket).elements();
    for (std::size_t i = 0; i < sums_.size(); ++i) { sums_[i] += tokens[i]; }
  }
  [[nodiscard]] std::span<load_t const> sums(index_t layer) const {
    auto const experts = static_cast<std::size_t>(history_.num_logical());
    return std::span{sums_}.subspan(static_cast<std::size_t>(layer) * experts, experts);
  }

  load_history_view history_;
  std::vector<load_t> sums_;  // [L, E] of the regime so far
  index_t start_ = 0;
  std::int64_t seen_ = 0;  // surprises of the regime so far
  std::int64_t num_seen_ = 0;
};

/// The newest buckets of a history, so many of them.
[[nodiscard]] inline load_history_view last_buckets(load_history_view history, index_t count) {
  auto const bucket = static_cast<std::size_t>(history.num_layers()) * static_cast<std::size_t>(history.num_logical());
  return {history.tokens().last(static_cast<std::size_t>(count) * bucket), count, history.num_layers(),
          history.num_logical()};
}

}  // namespace detail

/// When a bucket counts as a change of traffic: its surprise exceeds the usual one of the regime by this much, in
/// percent. 200 found every switch of task in the measured traces and next to no others.
inline constexpr index_t default_change_percent = 200;

/// The part of a history since the traffic last changed, a view into the same tokens.
///
/// A long window is the best forecast as long as the traffic stays the same, and the worst after it has changed. This
/// takes as long a window as the traffic allows. A change is seen in its first bucket; the newest bucket always belongs
/// to the result.
///
/// @param history         [H, L, E] tokens, oldest first, at most `max_layer_tokens` a layer.
/// @param change_percent  above 100.
/// @return [1..H, L, E]; all of it if nothing changed. @lifetime as `history`.
/// @complexity O(H L E), one allocation of [L, E].
/// @throws std::bad_alloc
/// @determinism integer arithmetic.
[[nodiscard]] inline load_history_view since_last_change(load_history_view history,
                                                         index_t change_percent = default_change_percent) {
  BALLAST_EXPECTS(change_percent > 100, "since_last_change: change_percent must be above 100");
  auto const start = detail::regime_tracker{history}.start(change_percent);
  return detail::last_buckets(history, history.num_buckets() - start);
}

BALLAST_END_NAMESPACE

#endif
