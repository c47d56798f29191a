// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_LOAD_WINDOW_HPP
#define BALLAST_RUNTIME_DETAIL_LOAD_WINDOW_HPP

#include <ballast/control/control.hpp>
#include <ballast/load/alignment.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// What the recorders of all ranks have counted in a window, added up.
class load_window {
public:
  load_window(index_t num_layers, index_t num_logical)
      : num_layers_{num_layers}, num_logical_{num_logical}, loads_(num_cells(), 0) {}

  /// Reduce the whole window, bucket by bucket; a collective of the ranks that are alive in `where`.
  template <load_recorder Recorder, control_plane Control>
  [[nodiscard]] status reduce(Recorder& recorder, Control& control, topology const& where, nanoseconds_t timeout) {
    if (auto result = read(recorder, control, where, timeout); !result.ok()) { return result; }
    if (auto result = control.all_reduce(history_, timeout); !result.ok()) { return result; }
    fit_layers(history_, history().num_buckets(), num_layers_, num_logical_);
    sum();
    return {};
  }
  /// Reduce the sum over the buckets alone, which is less to send; a collective. `history()` is this rank's afterwards.
  template <load_recorder Recorder, control_plane Control>
  [[nodiscard]] status reduce_sum(Recorder& recorder, Control& control, topology const& where, nanoseconds_t timeout) {
    if (auto result = read(recorder, control, where, timeout); !result.ok()) { return result; }
    sum();
    if (auto result = control.all_reduce(loads_, timeout); !result.ok()) { return result; }
    fit_layers(loads_, 1, num_layers_, num_logical_);
    return {};
  }

  /// [H, L, E] of the last `reduce`.
  [[nodiscard]] load_history_view history() const {
    return {history_, static_cast<index_t>(history_.size() / std::max<std::size_t>(num_cells(), 1)), num_layers_,
            num_logical_};
  }
  /// [L, E], the sum over the buckets; 0 before anything was reduced.
  [[nodiscard]] matrix_view<load_t const> loads() const { return {loads_, num_layers_, num_logical_}; }
  [[nodiscard]] bool is_empty() const noexcept {
    return std::all_of(loads_.begin(), loads_.end(), [](load_t tokens) { return tokens == 0; });
  }

private:
  [[nodiscard]] std::size_t row() const noexcept { return static_cast<std::size_t>(num_logical_); }
  [[nodiscard]] std::size_t num_cells() const noexcept { return static_cast<std::size_t>(num_layers_) * row(); }

  /// This rank's part, of the same passes on every rank whichever each of them has counted.
  template <class Recorder, class Control>
  [[nodiscard]] status read(Recorder& recorder, Control& control, topology const& where, nanoseconds_t timeout) {
    auto const gather = [&control, &timeout](std::span<std::uint64_t const> mine, std::vector<std::uint64_t>& all) {
      all.resize(mine.size() * static_cast<std::size_t>(control.num_ranks()));
      return control.all_gather(mine, all, timeout);
    };
    return aligned_history(recorder, gather, history_, [&where](index_t rank) { return where.is_live(rank); });
  }
  void sum() {
    for (index_t layer = 0; layer < num_layers_; ++layer) {
      sum_buckets(history(), layer, std::span{loads_}.subspan(static_cast<std::size_t>(layer) * row(), row()));
    }
  }

  index_t num_layers_;
  index_t num_logical_;
  std::vector<load_t> history_;
  std::vector<load_t> loads_;
};

/// How balanced the placement in force is under the last loads, kept up to date layer by layer.
class balance_sheet {
public:
  explicit balance_sheet(index_t num_layers) : layers_(static_cast<std::size_t>(num_layers)) {}

  void measure(topology const& where, placement const& in_force, matrix_view<load_t const> loads, index_t layer) {
    layers_[static_cast<std::size_t>(layer)] = balance_of(where, in_force, layer, loads.row(layer));
  }
  void measure(topology const& where, placement const& in_force, matrix_view<load_t const> loads) {
    for (index_t layer = 0; layer < in_force.num_layers(); ++layer) { measure(where, in_force, loads, layer); }
  }
  /// Over all layers; see `balancedness`.
  [[nodiscard]] double balancedness() const noexcept {
    layer_balance sum;
    for (auto const& layer : layers_) { sum += layer; }
    return sum.balancedness();
  }

private:
  std::vector<layer_balance> layers_;  // [L]
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
