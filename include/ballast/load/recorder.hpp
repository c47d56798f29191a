// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_RECORDER_HPP
#define BALLAST_LOAD_RECORDER_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

namespace detail {
/// What `std::span` can be deduced from and whose elements are integers of at least 32 bits.
template <class Array>
concept integer_array = requires(Array const& array) {
  std::span{array}.size();
  requires std::integral<typename decltype(std::span{array})::value_type>;
  requires sizeof(typename decltype(std::span{array})::value_type) >= 4;
};

/// a + b, at most `max_layer_tokens`. @pre both are in [0, `max_layer_tokens`]
[[nodiscard]] constexpr load_t add_saturated(load_t a, load_t b) noexcept { return std::min(a + b, max_layer_tokens); }

inline void add_saturated(std::span<load_t const> from, std::span<load_t> to) noexcept {
  for (std::size_t i = 0; i < to.size(); ++i) { to[i] = add_saturated(to[i], from[i]); }
}
}  // namespace detail

/// Takes the counts of one forward pass in.
///
/// @par Semantics
/// Every input counts this rank's own tokens and adds to the pass in progress, so a layer may be recorded several times
/// in a pass; give each token through one input only. Physical and local counts become logical ones at once, under the
/// map that was in force for that layer during the pass. A refused call adds nothing. `end_pass(counted)` closes the
/// pass: `false` discards it as if it had never run.
template <class R>
concept pass_recording = requires(R& recorder, index_t number, std::span<index_t const> ids,
                                  std::span<load_t const> counts, topology const& where) {
  { recorder.record_top_k(number, ids) } -> std::same_as<void>;
  { recorder.record_logical(number, counts) } -> std::same_as<status>;
  { recorder.record_physical(number, counts, ids, where) } -> std::same_as<status>;
  { recorder.record_local(number, counts, number, ids, where) } -> std::same_as<status>;
  { recorder.record_local_prefix_sums(number, counts, number, ids, where) } -> std::same_as<status>;
  { recorder.end_pass(true) } -> std::same_as<void>;
};

/// Hands the counts of closed passes out.
///
/// @par Semantics
/// `history(out)` writes `[H, L, E]` tokens, `H = num_buckets()`, oldest first. `clear()` forgets the closed passes;
/// `clears_on_dump` says whether a rebalancer calls it after each dump. `describe` mixes the options in that ranks must
/// share.
template <class R>
concept load_dumping = requires(R& recorder, R const& constant, std::span<load_t> out, digest& description) {
  { constant.num_buckets() } -> std::same_as<index_t>;
  { constant.num_layers() } -> std::same_as<index_t>;
  { constant.num_logical() } -> std::same_as<index_t>;
  { constant.history(out) } -> std::same_as<void>;
  { recorder.clear() } -> std::same_as<void>;
  { constant.describe(description) } -> std::same_as<void>;
  { R::clears_on_dump } -> std::convertible_to<bool>;
};

/// Counts which logical experts this rank's tokens pick, pass by pass.
template <class R>
concept load_recorder = std::movable<R> && pass_recording<R> && load_dumping<R>;

/// Counting of the pass in progress, `[L, E]`, which every recorder on the host shares.
///
/// Counts are 64 bits wide and stop at `max_layer_tokens` instead of wrapping round. Recording allocates nothing.
class pass_counter {
public:
  /// @throws std::system_error (`errc::invalid_option`) without layers or experts
  pass_counter(index_t num_layers, index_t num_logical) : num_layers_{num_layers}, num_logical_{num_logical} {
    if (num_layers < 0 || num_logical < 1) {
      status{errc::invalid_option,
             detail::concat("recorder: ", num_layers, " layers x ", num_logical, " experts: sizes must be positive")}
          .or_throw();
    } else {
      tokens_.assign(static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_logical), 0);
    }
  }

  [[nodiscard]] index_t num_layers() const noexcept { return num_layers_; }
  [[nodiscard]] index_t num_logical() const noexcept { return num_logical_; }

  /// Count router choices of one layer: one token for each id.
  ///
  /// @param layer        in [0, L).
  /// @param logical_ids  [T * k] logical experts; ids outside [0, E) are padding, masked or reserved, and ignored.
  /// @complexity O(T k), no allocation.
  /// @throws nothing
  template <detail::integer_array Ids>
  void record_top_k(index_t layer, Ids const& logical_ids) {
    auto const row = layer_row(layer);
    for (auto const id : std::span{logical_ids}) {
      if (std::cmp_greater_equal(id, 0) && std::cmp_less(id, num_logical_)) {
        auto& tokens = row[static_cast<std::size_t>(id)];
        tokens = detail::add_saturated(tokens, 1);
      }
    }
  }

  /// Add tokens per logical expert of one layer.
  ///
  /// @param layer   in [0, L).
  /// @param counts  [E] tokens; a negative one refuses the call.
  /// @complexity O(E), no allocation on success.
  /// @throws nothing; the status names layer, expert and value.
  template <detail::integer_array Counts>
  [[nodiscard]] status record_logical(index_t layer, Counts const& counts) {
    auto const values = std::span{counts};
    BALLAST_EXPECTS(values.size() == static_cast<std::size_t>(num_logical_), "record_logical: counts are not [E]");
    return add(
        layer, "expert", values.size(), [&](std::size_t e) { return values[e]; }, [](std::size_t e) { return e; });
  }

  /// Add tokens per physical expert of one layer, as seen by the senders of an all-to-all.
  ///
  /// @param layer            in [0, L).
  /// @param counts           [R (S + F)] tokens by physical id; those of reserved slots are ignored.
  /// @param logical_of_slot  [P] the layer's map in force during this pass.
  /// @param where            R, S and F.
  /// @complexity O(P), no allocation on success.
  /// @throws nothing; the status names layer, physical expert and value of a negative count.
  template <detail::integer_array Counts>
  [[nodiscard]] status record_physical(index_t layer, Counts const& counts, std::span<index_t const> logical_of_slot,
                                       topology const& where) {
    auto const values = std::span{counts};
    BALLAST_EXPECTS(values.size() == static_cast<std::size_t>(where.num_physical_ids()),
                    "record_physical: counts are not [R (S + F)]");
    BALLAST_EXPECTS(is_map(logical_of_slot, where), "record_physical: the map is not [P] logical experts");
    auto const slots = static_cast<std::size_t>(where.slots_per_rank());
    auto const stride = slots + static_cast<std::size_t>(where.reserved_slots());
    return add(
        layer, "physical expert", values.size(), [&](std::size_t id) { return values[id]; },
        [&](std::size_t id) {
          return id % stride < slots ? expert_in(logical_of_slot, id / stride * slots + id % stride) : ignored;
        });
  }

  /// Add tokens that arrived at each of this rank's slots in one layer.
  ///
  /// @param layer            in [0, L).
  /// @param counts           [S] or [S + F] tokens by slot in the rank; those of reserved slots are ignored.
  /// @param rank             the rank that counted, in [0, R).
  /// @param logical_of_slot  [P] the layer's map in force during this pass.
  /// @param where            R, S and F.
  /// @complexity O(S), no allocation on success.
  /// @throws nothing; the status names layer, slot and value of a negative count.
  template <detail::integer_array Counts>
  [[nodiscard]] status record_local(index_t layer, Counts const& counts, index_t rank,
                                    std::span<index_t const> logical_of_slot, topology const& where) {
    auto const values = std::span{counts};
    return add_local(layer, values.size(), [&](std::size_t i) { return values[i]; }, rank, logical_of_slot, where);
  }

  /// As `record_local`, from running sums over the rank's slots: slot i received `sums[i] - sums[i - 1]`.
  ///
  /// @param sums  [S] or [S + F] inclusive prefix sums. Where a library puts a zero first, pass what follows it.
  template <detail::integer_array Sums>
  [[nodiscard]] status record_local_prefix_sums(index_t layer, Sums const& sums, index_t rank,
                                                std::span<index_t const> logical_of_slot, topology const& where) {
    auto const values = std::span{sums};
    auto const count_of = [&](std::size_t i) {
      return static_cast<load_t>(values[i]) - (i == 0 ? load_t{0} : static_cast<load_t>(values[i - 1]));
    };
    return add_local(layer, values.size(), count_of, rank, logical_of_slot, where);
  }

protected:
  /// [L, E] tokens of the pass in progress.
  [[nodiscard]] std::span<load_t const> pass() const noexcept { return tokens_; }
  void start_pass() noexcept { std::fill(tokens_.begin(), tokens_.end(), load_t{0}); }
  void describe_shape(digest& out) const noexcept { out.add(num_layers_).add(num_logical_); }

private:
  static constexpr std::size_t ignored = static_cast<std::size_t>(-1);

  [[nodiscard]] std::span<load_t> layer_row(index_t layer) {
    BALLAST_EXPECTS(layer >= 0 && layer < num_layers_, "recorder: layer out of range");
    return std::span{tokens_}.subspan(static_cast<std::size_t>(layer) * static_cast<std::size_t>(num_logical_),
                                      static_cast<std::size_t>(num_logical_));
  }
  [[nodiscard]] bool is_map(std::span<index_t const> logical_of_slot, topology const& where) const noexcept {
    return logical_of_slot.size() == static_cast<std::size_t>(where.num_slots()) &&
           std::all_of(logical_of_slot.begin(), logical_of_slot.end(),
                       [this](index_t expert) { return expert >= 0 && expert < num_logical_; });
  }
  [[nodiscard]] static std::size_t expert_in(std::span<index_t const> logical_of_slot, std::size_t slot) noexcept {
    return static_cast<std::size_t>(logical_of_slot[slot]);
  }

  template <class CountOf>
  [[nodiscard]] status add_local(index_t layer, std::size_t size, CountOf count_of, index_t rank,
                                 std::span<index_t const> logical_of_slot, topology const& where) {
    auto const slots = static_cast<std::size_t>(where.slots_per_rank());
    BALLAST_EXPECTS(size == slots || size == slots + static_cast<std::size_t>(where.reserved_slots()),
                    "record_local: counts are neither [S] nor [S + F]");
    BALLAST_EXPECTS(rank >= 0 && rank < where.num_ranks(), "record_local: rank out of range");
    BALLAST_EXPECTS(is_map(logical_of_slot, where), "record_local: the map is not [P] logical experts");
    auto const first = static_cast<std::size_t>(where.first_slot(rank));
    return add(layer, "local slot", size, count_of,
               [&](std::size_t i) { return i < slots ? expert_in(logical_of_slot, first + i) : ignored; });
  }

  /// Add `size` counts to the experts they belong to, or nothing at all when one is negative.
  template <class CountOf, class ExpertOf>
  [[nodiscard]] status add(index_t layer, char const* what, std::size_t size, CountOf count_of, ExpertOf expert_of) {
    auto const row = layer_row(layer);
    for (std::size_t i = 0; i < size; ++i) {
      if (std::cmp_less(count_of(i), 0)) {
        return {errc::invalid_load, detail::concat("recorder: layer ", layer, ", ", what, " ", i, " has ", count_of(i),
                                                   " tokens, must not be negative")};
      }
    }
    for (std::size_t i = 0; i < size; ++i) {
      auto const expert = expert_of(i);
      if (expert == ignored) { continue; }
      auto const count = count_of(i);
      auto const tokens = std::cmp_less(count, max_layer_tokens) ? static_cast<load_t>(count) : max_layer_tokens;
      row[expert] = detail::add_saturated(row[expert], tokens);
    }
    return {};
  }

  index_t num_layers_;
  index_t num_logical_;
  std::vector<load_t> tokens_;
};

BALLAST_END_NAMESPACE

#endif
