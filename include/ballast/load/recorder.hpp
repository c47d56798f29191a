// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_RECORDER_HPP
#define BALLAST_LOAD_RECORDER_HPP

#include <ballast/detail/options.hpp>
#include <ballast/detail/reset_by_move.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/pass_timeline.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
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
/// map that was in force for that layer during the pass. Input that does not fit (a layer out of range, another number
/// of counts, a map that is none, negative counts, prefix sums that fall) is a status that names the value; a refused
/// call adds nothing. `end_pass(counted)` closes the pass: `false` discards it as if it had never run. Every rank makes
/// the same calls of `end_pass`, but ranks may count different passes.
template <class R>
concept pass_recording = requires(R& recorder, index_t number, std::span<index_t const> ids,
                                  std::span<load_t const> counts, topology const& where) {
  { recorder.record_top_k(number, ids) } -> std::same_as<status>;
  { recorder.record_logical(number, counts) } -> std::same_as<status>;
  { recorder.record_physical(number, counts, ids, where) } -> std::same_as<status>;
  { recorder.record_local(number, counts, number, ids, where) } -> std::same_as<status>;
  { recorder.record_local_prefix_sums(number, counts, number, ids, where) } -> std::same_as<status>;
  { recorder.end_pass(true) } -> std::same_as<void>;
};

/// Hands the counts of closed passes out.
///
/// @par Semantics
/// `history(out)` writes `[H, L, E]` tokens, `H = num_buckets()`, oldest first, or says why it cannot; what it writes
/// can be planned on (`validate_loads`). `clear()` forgets the closed passes, or, of a recorder whose counts were
/// brought by `prepare_history` (`preparing_recorder`), those that `history` speaks of; `clears_on_dump` says whether a
/// rebalancer calls it after each dump. `describe` mixes the options in that ranks must share.
template <class R>
concept load_dumping = requires(R& recorder, R const& constant, std::span<load_t> out, digest& description) {
  { constant.num_buckets() } -> std::same_as<index_t>;
  { constant.num_layers() } -> std::same_as<index_t>;
  { constant.num_logical() } -> std::same_as<index_t>;
  { constant.history(out) } -> std::same_as<status>;
  { recorder.clear() } -> std::same_as<void>;
  { constant.describe(description) } -> std::same_as<void>;
  { R::clears_on_dump } -> std::convertible_to<bool>;
};

/// A recorder that tells which passes it holds, so that the counts of ranks that counted different passes can be added
/// up; see `aligned_history`. Two kinds of recorders do.
///
/// @par Semantics
/// Passes are numbered backwards from the last one that has ended, counted or not: that is pass 0, the one before it
/// pass -1. Every rank makes the same calls of `end_pass`, so at a dump all ranks mean the same.
/// - `num_spans()`, `spans(out)`: what the parts of the recorder hold, oldest first; empty parts have 0 passes.
/// - `forgotten()`: the last counted pass that it had to let go to make room since `clear()`, or
///   `pass_timeline::none`. Every rank lets earlier passes go, too.
template <class R>
concept pass_telling = requires(R const& recorder, std::span<pass_span> spans) {
  { recorder.num_spans() } -> std::same_as<index_t>;
  { recorder.spans(spans) } -> std::same_as<void>;
  { recorder.forgotten() } -> std::same_as<std::int64_t>;
};
/// One kind keeps buckets. They have a span each, and `place(counted, places)` says where they belong once all ranks
/// have told which passes they counted: it fills `places`, `[num_buckets()]`, with numbers of buckets in [0, H'), -1
/// for those that are empty or too old, and returns H', the same on every rank.
template <class R>
concept bucket_placing =
    pass_telling<R> && requires(R const& recorder, pass_timeline const& counted, std::span<index_t> places) {
      { recorder.place(counted, places) } -> std::same_as<index_t>;
    };
/// The other kind fades: `fade(counted)` makes good what it would have forgotten, had it known of the passes that only
/// other ranks counted. What `history` writes after that can be added up.
template <class R>
concept load_fading = pass_telling<R> && requires(R& recorder, pass_timeline const& counted) {
  { recorder.fade(counted) } -> std::same_as<void>;
};

/// Counts which logical experts this rank's tokens pick, pass by pass.
template <class R>
concept load_recorder = std::movable<R> && pass_recording<R> && load_dumping<R>;

/// Counting of the pass in progress, `[L, E]`, which every recorder on the host shares.
///
/// Counts are 64 bits wide and stop at `max_layer_tokens` a cell instead of wrapping round. Recording allocates
/// nothing. What was moved from has no layers and no experts: it refuses counts, and its passes hold none.
///
/// @determinism sums of integers: the order of calls in a pass does not matter.
class pass_counter {
public:
  /// @throws std::system_error (`errc::invalid_option`) without layers or experts, or for more cells than an array can
  ///         have; std::bad_alloc where there is no memory for them
  pass_counter(index_t num_layers, index_t num_logical) : num_layers_{num_layers}, num_logical_{num_logical} {
    if (num_layers < 0 || num_logical < 1) {
      status{errc::invalid_option,
             detail::concat("recorder: ", num_layers, " layers x ", num_logical, " experts: sizes must be positive")}
          .or_throw();
      return;
    }
    auto const cells = static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_logical);
    if (cells > tokens_.max_size()) {
      status{errc::invalid_option,
             detail::concat("recorder: ", num_layers, " layers x ", num_logical, " experts do not fit memory")}
          .or_throw();
      return;
    }
    tokens_.assign(cells, 0);
  }

  [[nodiscard]] index_t num_layers() const noexcept { return num_layers_; }
  [[nodiscard]] index_t num_logical() const noexcept { return num_logical_; }

  /// Count router choices of one layer: one token for each id.
  ///
  /// @param layer        in [0, L).
  /// @param logical_ids  [T * k] logical experts; ids outside [0, E) are padding, masked or reserved, and ignored.
  /// @complexity O(T k), no allocation on success.
  /// @throws nothing; the status names a layer out of range.
  template <detail::integer_array Ids>
  [[nodiscard]] status record_top_k(index_t layer, Ids const& logical_ids) {
    if (auto result = check_layer(layer); !result.ok()) { return result; }
    auto const row = layer_row(layer);
    for (auto const id : std::span{logical_ids}) {
      if (std::cmp_greater_equal(id, 0) && std::cmp_less(id, num_logical())) {
        auto& tokens = row[static_cast<std::size_t>(id)];
        tokens = detail::add_saturated(tokens, 1);
      }
    }
    return {};
  }

  /// Add tokens per logical expert of one layer.
  ///
  /// @param layer   in [0, L).
  /// @param counts  [E] tokens; a negative one refuses the call.
  /// @complexity O(E), no allocation on success.
  /// @throws nothing; the status names the layer and what does not fit.
  template <detail::integer_array Counts>
  [[nodiscard]] status record_logical(index_t layer, Counts const& counts) {
    auto const values = std::span{counts};
    if (auto result = check_layer(layer); !result.ok()) { return result; }
    if (auto result = check_size(layer, values.size(), num_logical(), "[E]"); !result.ok()) { return result; }
    return add(
        layer, "expert", values.size(), [&values](std::size_t e) { return values[e]; },
        [](std::size_t e) { return e; });
  }

  /// Add tokens per physical expert of one layer, as seen by the senders of an all-to-all.
  ///
  /// @param layer            in [0, L).
  /// @param counts           [R (S + F)] tokens by physical id; those of reserved slots are ignored.
  /// @param logical_of_slot  [P] the layer's map in force during this pass.
  /// @param where            R, S and F.
  /// @complexity O(P), no allocation on success.
  /// @throws nothing; the status names the layer and what does not fit.
  template <detail::integer_array Counts>
  [[nodiscard]] status record_physical(index_t layer, Counts const& counts, std::span<index_t const> logical_of_slot,
                                       topology const& where) {
    auto const values = std::span{counts};
    if (auto result = check_layer(layer); !result.ok()) { return result; }
    if (auto result = check_size(layer, values.size(), where.num_physical_ids(), "[R (S + F)]"); !result.ok()) {
      return result;
    }
    if (auto result = check_map(layer, logical_of_slot, where, 0, where.num_slots()); !result.ok()) { return result; }
    auto const slots = static_cast<std::size_t>(where.slots_per_rank());
    auto const stride = slots + static_cast<std::size_t>(where.reserved_slots());
    return add(
        layer, "physical expert", values.size(), [&values](std::size_t id) { return values[id]; },
        [&stride, &slots, &logical_of_slot](std::size_t id) {
          return id % stride < slots ? expert_in(logical_of_slot, id / stride * slots + id % stride) : ignored;
        });
  }

  /// Add tokens that arrived at each of this rank's slots in one layer.
  ///
  /// @param layer            in [0, L).
  /// @param counts           [S] or [S + F] tokens by slot in the rank; those of reserved slots are ignored.
  /// @param rank             the rank that counted, in [0, R).
  /// @param logical_of_slot  [P] the layer's map in force during this pass; only the rank's own part is read.
  /// @param where            R, S and F.
  /// @complexity O(S), no allocation on success.
  /// @throws nothing; the status names the layer and what does not fit.
  template <detail::integer_array Counts>
  [[nodiscard]] status record_local(index_t layer, Counts const& counts, index_t rank,
                                    std::span<index_t const> logical_of_slot, topology const& where) {
    auto const values = std::span{counts};
    if (auto result = check_local(layer, values.size(), rank, logical_of_slot, where); !result.ok()) { return result; }
    return add_local(
        layer, values.size(), [&values](std::size_t i) { return values[i]; }, rank, logical_of_slot, where);
  }

  /// As `record_local`, from running sums over the rank's slots: slot i received `sums[i] - sums[i - 1]`.
  ///
  /// @param sums  [S] or [S + F] inclusive prefix sums, none below the one before it. Where a library puts a zero
  ///              first, pass what follows it.
  template <detail::integer_array Sums>
  [[nodiscard]] status record_local_prefix_sums(index_t layer, Sums const& sums, index_t rank,
                                                std::span<index_t const> logical_of_slot, topology const& where) {
    auto const values = std::span{sums};
    if (auto result = check_local(layer, values.size(), rank, logical_of_slot, where); !result.ok()) { return result; }
    for (std::size_t i = 1; i < values.size(); ++i) {
      if (values[i] < values[i - 1]) {
        return refuse(layer, "the prefix sum falls from ", values[i - 1], " to ", values[i], " at local slot ", i);
      }
    }
    // Sums ascend: only the first can be negative, and where it is not, no difference overflows.
    if (!values.empty() && std::cmp_less(values[0], 0)) {
      return refuse(layer, "the prefix sum at local slot 0 is ", values[0], ", must not be negative");
    }
    auto const count_of = [&values](std::size_t i) {
      return static_cast<std::uint64_t>(values[i]) - (i == 0 ? 0 : static_cast<std::uint64_t>(values[i - 1]));
    };
    return add_local(layer, values.size(), count_of, rank, logical_of_slot, where);
  }

protected:
  /// [L, E] tokens of the pass in progress.
  [[nodiscard]] std::span<load_t const> pass() const noexcept { return tokens_; }
  void start_pass() noexcept { std::fill(tokens_.begin(), tokens_.end(), load_t{0}); }
  void describe_shape(digest& out) const noexcept { out.add(num_layers()).add(num_logical()); }
  /// The options that every recorder has.
  template <class Visit>
  void visit_shape(Visit&& visit) const {
    visit(std::string_view{"recorded layers"}, detail::option_bits(num_layers()));
    visit(std::string_view{"recorded experts"}, detail::option_bits(num_logical()));
  }
  /// Refuse room for a history that is not `[num_buckets, L, E]`. @throws nothing
  [[nodiscard]] status check_output(std::size_t size, index_t num_buckets) const {
    if (size == static_cast<std::size_t>(num_buckets) * tokens_.size()) { return {}; }
    return {errc::invalid_load, detail::concat("recorder: the output has ", size, " cells, must have ", num_buckets,
                                               " buckets x ", num_layers(), " layers x ", num_logical(), " experts")};
  }

private:
  static constexpr std::size_t ignored = static_cast<std::size_t>(-1);

  template <class... Parts>
  [[nodiscard]] static status refuse(index_t layer, Parts const&... parts) {
    return {errc::invalid_load, detail::concat("recorder: layer ", layer, ", ", parts...)};
  }
  [[nodiscard]] status check_layer(index_t layer) const {
    if (layer >= 0 && layer < num_layers()) { return {}; }
    return {errc::invalid_load, detail::concat("recorder: layer ", layer, " is not in [0, ", num_layers(), ")")};
  }
  [[nodiscard]] static status check_size(index_t layer, std::size_t size, index_t wanted, char const* shape) {
    if (std::cmp_equal(size, wanted)) { return {}; }
    return refuse(layer, size, " counts, must be ", wanted, " ", shape);
  }
  /// Check the size of a map, and its entries from slot `first` on.
  [[nodiscard]] status check_map(index_t layer, std::span<index_t const> logical_of_slot, topology const& where,
                                 index_t first, index_t num_slots) const {
    if (!std::cmp_equal(logical_of_slot.size(), where.num_slots())) {
      return refuse(layer, "the map has ", logical_of_slot.size(), " slots, must have ", where.num_slots());
    }
    for (auto slot = first; slot < first + num_slots; ++slot) {
      auto const expert = logical_of_slot[static_cast<std::size_t>(slot)];
      if (expert < 0 || expert >= num_logical()) {
        return refuse(layer, "the map holds expert ", expert, " at slot ", slot, ", must be in [0, ", num_logical(),
                      ")");
      }
    }
    return {};
  }
  [[nodiscard]] status check_local(index_t layer, std::size_t size, index_t rank,
                                   std::span<index_t const> logical_of_slot, topology const& where) const {
    if (auto result = check_layer(layer); !result.ok()) { return result; }
    auto const slots = where.slots_per_rank();
    if (!std::cmp_equal(size, slots) && !std::cmp_equal(size, slots + where.reserved_slots())) {
      return refuse(layer, size, " counts, must be ", slots, " [S] or ", slots + where.reserved_slots(), " [S + F]");
    }
    if (rank < 0 || rank >= where.num_ranks()) {
      return refuse(layer, "rank ", rank, " is not in [0, ", where.num_ranks(), ")");
    }
    return check_map(layer, logical_of_slot, where, where.first_slot(rank), slots);
  }

  /// @pre the layer is in range
  [[nodiscard]] std::span<load_t> layer_row(index_t layer) {
    return std::span{tokens_}.subspan(static_cast<std::size_t>(layer) * static_cast<std::size_t>(num_logical()),
                                      static_cast<std::size_t>(num_logical()));
  }
  [[nodiscard]] static std::size_t expert_in(std::span<index_t const> logical_of_slot, std::size_t slot) noexcept {
    return static_cast<std::size_t>(logical_of_slot[slot]);
  }

  /// @pre `check_local`
  template <class CountOf>
  [[nodiscard]] status add_local(index_t layer, std::size_t size, CountOf count_of, index_t rank,
                                 std::span<index_t const> logical_of_slot, topology const& where) {
    auto const slots = static_cast<std::size_t>(where.slots_per_rank());
    auto const first = static_cast<std::size_t>(where.first_slot(rank));
    return add(layer, "local slot", size, count_of, [&slots, &logical_of_slot, &first](std::size_t i) {
      return i < slots ? expert_in(logical_of_slot, first + i) : ignored;
    });
  }

  /// Add `size` counts to the experts they belong to, or nothing at all when one is negative.
  template <class CountOf, class ExpertOf>
  [[nodiscard]] status add(index_t layer, char const* what, std::size_t size, CountOf count_of, ExpertOf expert_of) {
    auto const row = layer_row(layer);
    for (std::size_t i = 0; i < size; ++i) {
      if (std::cmp_less(count_of(i), 0)) {
        return refuse(layer, what, " ", i, " has ", count_of(i), " tokens, must not be negative");
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

  detail::reset_by_move<index_t> num_layers_;
  detail::reset_by_move<index_t> num_logical_;
  std::vector<load_t> tokens_;
};

BALLAST_END_NAMESPACE

#endif
