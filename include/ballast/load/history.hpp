// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_HISTORY_HPP
#define BALLAST_LOAD_HISTORY_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Loads that somebody else owns, `[H, L, E]` tokens: H buckets of passes, oldest first.
class load_history_view {
public:
  constexpr load_history_view() = default;
  /// @pre `tokens.size() == num_buckets * num_layers * num_logical`
  constexpr load_history_view(std::span<load_t const> tokens, index_t num_buckets, index_t num_layers,
                              index_t num_logical)
      : tokens_{tokens}, num_buckets_{num_buckets}, num_layers_{num_layers}, num_logical_{num_logical} {
    BALLAST_EXPECTS(num_buckets >= 0 && num_layers >= 0 && num_logical >= 0, "load_history_view: negative extent");
    BALLAST_EXPECTS(tokens.size() == static_cast<std::size_t>(num_buckets) * static_cast<std::size_t>(num_layers) *
                                         static_cast<std::size_t>(num_logical),
                    "load_history_view: element count is not H * L * E");
  }
  /// A single bucket, `[L, E]`.
  // NOLINTNEXTLINE(google-explicit-constructor): a history of one bucket
  constexpr load_history_view(matrix_view<load_t const> loads)
      : load_history_view{loads.elements(), 1, loads.rows(), loads.columns()} {}

  [[nodiscard]] constexpr index_t num_buckets() const noexcept { return num_buckets_; }
  [[nodiscard]] constexpr index_t num_layers() const noexcept { return num_layers_; }
  [[nodiscard]] constexpr index_t num_logical() const noexcept { return num_logical_; }
  [[nodiscard]] constexpr std::span<load_t const> tokens() const noexcept { return tokens_; }
  /// One bucket, `[L, E]`. @pre in range
  [[nodiscard]] constexpr matrix_view<load_t const> bucket(index_t bucket) const {
    BALLAST_EXPECTS_BELOW(bucket, num_buckets_, "load_history_view: bucket");
    auto const size = static_cast<std::size_t>(num_layers_) * static_cast<std::size_t>(num_logical_);
    return {tokens_.subspan(static_cast<std::size_t>(bucket) * size, size), num_layers_, num_logical_};
  }
  /// One layer of one bucket, `[E]`. @pre in range
  [[nodiscard]] constexpr std::span<load_t const> layer(index_t bucket, index_t layer) const {
    return this->bucket(bucket).row(layer);
  }

private:
  std::span<load_t const> tokens_;
  index_t num_buckets_ = 0;
  index_t num_layers_ = 0;
  index_t num_logical_ = 0;
};

/// Add the buckets of one layer up.
///
/// @param history  [H, L, E] tokens.
/// @param layer    in [0, L).
/// @param out      out: [E] tokens over all buckets.
/// @pre `out.size() == E`
/// @complexity O(H E), no allocation.
/// @throws nothing
inline void sum_buckets(load_history_view history, index_t layer, std::span<load_t> out) {
  BALLAST_EXPECTS(out.size() == static_cast<std::size_t>(history.num_logical()), "sum_buckets: output is not [E]");
  for (auto& tokens : out) { tokens = 0; }
  for (index_t bucket = 0; bucket < history.num_buckets(); ++bucket) {
    auto const row = history.layer(bucket, layer);
    for (std::size_t e = 0; e < out.size(); ++e) { out[e] += row[e]; }
  }
}

/// Largest number of tokens that a layer's whole history may hold; planners scale loads up without overflow below it.
inline constexpr load_t max_layer_tokens = load_t{1} << 44;

/// Refuse loads that no planner can use: negative cells, or a layer above `max_layer_tokens`.
///
/// @param history  [H, L, E] tokens.
/// @complexity O(H L E), no allocation on success.
/// @throws nothing; the status names bucket, layer, expert and value.
[[nodiscard]] inline status validate_loads(load_history_view history) {
  for (index_t layer = 0; layer < history.num_layers(); ++layer) {
    load_t total = 0;
    for (index_t bucket = 0; bucket < history.num_buckets(); ++bucket) {
      auto const row = history.layer(bucket, layer);
      for (std::size_t e = 0; e < row.size(); ++e) {
        if (row[e] < 0) {
          return {errc::invalid_load, detail::concat("load of layer ", layer, ", expert ", e, ", bucket ", bucket,
                                                     " is ", row[e], ", must not be negative")};
        }
        if (row[e] > max_layer_tokens - total) {
          return {errc::invalid_load, detail::concat("load of layer ", layer, " exceeds ", max_layer_tokens,
                                                     " tokens at expert ", e, ", bucket ", bucket)};
        }
        total += row[e];
      }
    }
  }
  return {};
}

namespace detail {

/// Whether none of a layer's tokens is below 0 and all together are at most `max_layer_tokens`. Without branches, which
/// compilers turn into few instructions; may say no of more than 2^18 experts. @complexity O(E)
[[nodiscard]] inline bool are_usable(std::span<load_t const> loads) noexcept {
  constexpr std::size_t most_experts = std::size_t{1} << 18;
  std::uint64_t bits = 0;
  std::uint64_t sum = 0;
  for (auto const tokens : loads) {
    bits |= static_cast<std::uint64_t>(tokens);
    sum += static_cast<std::uint64_t>(tokens);
  }
  constexpr auto most = static_cast<std::uint64_t>(max_layer_tokens);
  return loads.size() <= most_experts && bits < 2 * most && sum <= most;
}

/// The caller's promise that planners can use a layer's tokens. `of_expert` and `of_layer` say which are named.
inline void expect_usable(std::span<load_t const> loads, [[maybe_unused]] char const* of_expert,
                          [[maybe_unused]] char const* of_layer) {
  if (are_usable(loads)) { return; }
  load_t sum = 0;
  for (auto const tokens : loads) {
    BALLAST_EXPECTS_WITHIN(tokens, 0, max_layer_tokens, of_expert);
    sum += tokens;
    BALLAST_EXPECTS_WITHIN(sum, 0, max_layer_tokens, of_layer);
  }
}

/// What is left of a cell that is divided by 2^shift.
[[nodiscard]] constexpr load_t fitted(load_t tokens, int shift) noexcept {
  return tokens <= 0 ? tokens : std::max<load_t>(tokens >> shift, 1);
}

/// Calls `visit` with each cell of one layer until it says false.
template <class Visit>
void visit_layer(std::span<load_t> tokens, index_t num_layers, index_t num_logical, index_t layer, Visit visit) {
  auto const experts = static_cast<std::size_t>(num_logical);
  auto const bucket = static_cast<std::size_t>(num_layers) * experts;
  for (auto at = static_cast<std::size_t>(layer) * experts; at < tokens.size(); at += bucket) {
    for (auto& cell : tokens.subspan(at, experts)) {
      if (!visit(cell)) { return; }
    }
  }
}

}  // namespace detail

/// Bring layers above `max_layer_tokens` down, so that `validate_loads` does not refuse them: counts of a faulty
/// kernel, or the sums of many ranks.
///
/// All cells of such a layer, over all buckets, are divided by the same power of two, the smallest that does it: what
/// experts and buckets have in proportion stays. A cell with tokens keeps at least one. Other layers, and negative
/// cells, are not touched.
///
/// @param tokens  in and out: [H, L, E], each in [0, 2^63). Histories that went through here can be added up over
///                2^18 ranks without overflow.
/// @pre `tokens.size() == H * L * E`
/// @complexity O(H L E), times up to 64 for layers that are too large; no allocation.
/// @throws nothing
/// @determinism integer arithmetic: the same on every rank that has the same tokens.
inline void fit_layers(std::span<load_t> tokens, index_t num_buckets, index_t num_layers, index_t num_logical) {
  BALLAST_EXPECTS(tokens.size() == static_cast<std::size_t>(num_buckets) * static_cast<std::size_t>(num_layers) *
                                       static_cast<std::size_t>(num_logical),
                  "fit_layers: element count is not H * L * E");
  static_cast<void>(num_buckets);
  auto const fits = [&tokens, &num_layers, &num_logical](index_t layer, int shift) {
    load_t left = max_layer_tokens;
    detail::visit_layer(tokens, num_layers, num_logical, layer, [&left, &shift](load_t cell) {
      left -= std::clamp<load_t>(detail::fitted(cell, shift), 0, max_layer_tokens + 1);
      return left >= 0;
    });
    return left >= 0;
  };
  for (index_t layer = 0; layer < num_layers; ++layer) {
    int shift = 0;
    while (shift < 63 && !fits(layer, shift)) { ++shift; }
    if (shift == 0) { continue; }
    detail::visit_layer(tokens, num_layers, num_logical, layer, [&shift](load_t& cell) {
      cell = detail::fitted(cell, shift);
      return true;
    });
  }
}

BALLAST_END_NAMESPACE

#endif
