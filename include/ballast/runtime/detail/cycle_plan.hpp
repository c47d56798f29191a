// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_CYCLE_PLAN_HPP
#define BALLAST_RUNTIME_DETAIL_CYCLE_PLAN_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/migration/waypoints.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/detail/layer_mover.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A layer that moves along waypoints because it does not fit staging: `[waypoints, P]` maps.
struct layer_split {
  index_t layer = 0;
  std::vector<index_t> rows;
};

/// What one cycle moves, in which order, and in which portions: the transfers of all changed layers, cut into the
/// schedule's chunks, chunks into groups that fit staging together, and layers that fit neither staging nor a step into
/// waypoints and rounds. The same on every rank.
template <chunk_schedule Schedule, expert_store Store>
class cycle_plan {
public:
  /// The arguments outlive it.
  cycle_plan(topology const& where, Schedule const& schedule, Store const& store)
      : where_{&where}, schedule_{&schedule}, store_{&store} {}

  /// Plan the way from one placement to another.
  ///
  /// @param loads  [L, E] tokens, for what the schedule wants to know of each layer.
  /// @return why there is no way: a plan that lost an expert, or staging too small for a single one.
  [[nodiscard]] status assign(placement const& from, placement const& to, matrix_view<load_t const> loads,
                              transfer_options const& options) {
    clear();
    auto const layers = numbers_below(from.num_layers());
    if (auto result = transfers_.assign(*where_, from, to, layers, options); !result.ok()) { return result; }
    if (auto result = split_large_layers(from, to); !result.ok()) { return result; }
    schedule_->for_each_chunk(list_work(from, to, loads), [this](std::span<index_t const> chunk) {
      chunk_layers_.insert(chunk_layers_.end(), chunk.begin(), chunk.end());
      chunk_ends_.push_back(chunk_layers_.size());
    });
    num_steps_ = num_chunks();
    if constexpr (limits_step_bytes<Schedule>) { spread_large_layers(); }
    return {};
  }
  void clear() noexcept {
    transfers_.clear();
    splits_.clear();
    chunk_layers_.clear();
    chunk_ends_.clear();
    num_steps_ = 0;
  }
  void describe(digest& out) const {
    transfers_.describe(out);
    for (auto const& split : splits_) { out.add(split.layer).add(std::span<index_t const>{split.rows}); }
    out.add(std::span<index_t const>{chunk_layers_});
    for (auto const end : chunk_ends_) { out.add(end); }
  }

  [[nodiscard]] index_t num_chunks() const noexcept { return static_cast<index_t>(chunk_ends_.size()); }
  /// Calls that the chunks take; more than chunks where a layer arrives over several steps.
  [[nodiscard]] index_t num_steps() const noexcept { return num_steps_; }
  /// Layers that change.
  [[nodiscard]] std::span<layer_transfer const> transfers() const noexcept { return transfers_.layers(); }
  [[nodiscard]] std::int64_t num_moves() const noexcept { return transfers_.num_moves(); }
  /// Bytes received over all ranks.
  [[nodiscard]] std::int64_t num_bytes() const {
    std::int64_t bytes = 0;
    for (auto const& transfer : transfers_.layers()) { bytes += bytes_of(transfer); }
    return bytes;
  }
  [[nodiscard]] std::int64_t bytes_of(layer_transfer const& transfer) const {
    return static_cast<std::int64_t>(transfer.moves.size()) * payload_of(transfer.layer);
  }
  /// The waypoints of a layer that has any.
  [[nodiscard]] layer_split const* split_of(index_t layer) const noexcept {
    auto const found =
        std::find_if(splits_.begin(), splits_.end(), [&layer](layer_split const& s) { return s.layer == layer; });
    return found == splits_.end() ? nullptr : &*found;
  }

  /// Positions of a chunk's layers in the order of all chunks.
  struct chunk_range {
    std::size_t begin = 0;
    std::size_t end = 0;
  };
  [[nodiscard]] chunk_range chunk(index_t index) const {
    auto const at = static_cast<std::size_t>(index);
    return {at == 0 ? 0 : chunk_ends_[at - 1], chunk_ends_[at]};
  }
  /// The layer of a chunk that arrives over several steps; null if the chunk moves at once.
  [[nodiscard]] layer_transfer const* spread_layer(chunk_range chunk) const {
    auto const* const first = transfers_.find(chunk_layers_[chunk.begin]);
    return chunk.end - chunk.begin == 1 && first != nullptr && arrives_in_steps(*first) ? first : nullptr;
  }
  /// First round of a spread layer after those that one step may carry from `round` on.
  [[nodiscard]] index_t round_after_step(layer_transfer const& transfer, index_t round) const {
    auto const moves_in = [&transfer](index_t r) {
      return std::count_if(transfer.moves.begin(), transfer.moves.end(),
                           [r](expert_move const& move) { return move.round == r; });
    };
    auto left = moves_per_step(transfer.layer) - moves_in(round++);
    while (round < transfer.num_rounds && moves_in(round) <= left) { left -= moves_in(round++); }
    return round;
  }
  /// Gather changed layers of a chunk from position `at` on, as many as fit staging; a layer with waypoints is a group
  /// of its own.
  ///
  /// @param out  out: the group, empty if nothing from `at` to `end` has changed.
  /// @return the position after them.
  [[nodiscard]] std::size_t next_group(std::size_t at, std::size_t end, std::vector<layer_transfer const*>& out) {
    out.clear();
    std::size_t spent = 0;
    for (; at < end; ++at) {
      auto const* const transfer = transfers_.find(chunk_layers_[at]);
      if (transfer == nullptr) { continue; }
      if (split_of(transfer->layer) != nullptr) {
        if (!out.empty()) { break; }
        out.push_back(transfer);
        return at + 1;
      }
      auto const need = staging_need(*transfer);
      if (!out.empty() && need > store_->staging_limit() - spent) { break; }
      spent += need;
      out.push_back(transfer);
    }
    return at;
  }

private:
  /// Find waypoints for the layers that do not fit staging as a whole.
  [[nodiscard]] status split_large_layers(placement const& from, placement const& to) {
    for (auto const& transfer : transfers_.layers()) {
      if (staging_need(transfer) <= store_->staging_limit()) { continue; }
      auto const layer = transfer.layer;
      auto const expert = size_of_expert(store_->tensors(layer)).staged;
      BALLAST_ASSERT(expert > 0, "cycle_plan: a layer without bytes needs staging");
      auto const room = store_->staging_limit() / expert;
      if (room == 0) {
        return {errc::out_of_memory, concat("rebalancer: one expert of layer ", layer, " needs ", expert,
                                            " bytes of staging, the limit is ", store_->staging_limit())};
      }
      auto const arrivals = static_cast<index_t>(std::min(room, static_cast<std::size_t>(where_->slots_per_rank())));
      splits_.push_back({layer, {}});
      waypoints_.split(*where_, from.logical_of_slot(layer), to.logical_of_slot(layer), from.num_logical(), arrivals,
                       splits_.back().rows);
    }
    return {};
  }

  [[nodiscard]] std::vector<layer_work> list_work(placement const& from, placement const& to,
                                                  matrix_view<load_t const> loads) const {
    std::vector<layer_work> work(static_cast<std::size_t>(from.num_layers()));
    std::vector<load_t> ranks(static_cast<std::size_t>(where_->num_ranks()));
    for (index_t layer = 0; layer < from.num_layers(); ++layer) {
      auto& item = work[static_cast<std::size_t>(layer)];
      item.layer = layer;
      auto const* const transfer = transfers_.find(layer);
      if (transfer == nullptr) { continue; }
      item.changed = true;
      item.moves = static_cast<index_t>(transfer->moves.size());
      item.bytes = bytes_of(*transfer);
      item.busiest_rank_bytes = transfer->num_rounds * payload_of(layer);
      rank_loads(*where_, from, layer, loads.row(layer), ranks);
      item.gain = *std::max_element(ranks.begin(), ranks.end());
      rank_loads(*where_, to, layer, loads.row(layer), ranks);
      item.gain -= *std::max_element(ranks.begin(), ranks.end());
    }
    return work;
  }

  /// Cut the rounds of layers that exceed the bytes of a step, and count the steps they take.
  void spread_large_layers() {
    for (std::size_t i = 0; i < transfers_.layers().size(); ++i) {
      auto const& transfer = transfers_.layers()[i];
      if (!arrives_in_steps(transfer)) { continue; }
      transfers_.limit_rounds(i, moves_per_step(transfer.layer));
      for (index_t round = round_after_step(transfer, 0); round < transfer.num_rounds; ++num_steps_) {
        round = round_after_step(transfer, round);
      }
    }
  }
  [[nodiscard]] index_t moves_per_step(index_t layer) const {
    if constexpr (limits_step_bytes<Schedule>) {
      auto const moves =
          std::max<std::int64_t>(schedule_->step_bytes() / std::max<std::int64_t>(payload_of(layer), 1), 1);
      return static_cast<index_t>(std::min<std::int64_t>(moves, where_->num_slots()));
    } else {
      return where_->num_slots();
    }
  }
  /// A layer that is split into waypoints is not spread as well.
  [[nodiscard]] bool arrives_in_steps(layer_transfer const& transfer) const {
    return static_cast<index_t>(transfer.moves.size()) > moves_per_step(transfer.layer) &&
           split_of(transfer.layer) == nullptr;
  }

  [[nodiscard]] std::int64_t payload_of(index_t layer) const {
    return static_cast<std::int64_t>(size_of_expert(store_->tensors(layer)).payload);
  }
  /// Staging that the neediest rank wants for one layer, in bytes.
  [[nodiscard]] std::size_t staging_need(layer_transfer const& transfer) {
    staged_.resize(static_cast<std::size_t>(where_->num_ranks()));
    staged_experts(*where_, transfer, staged_);
    return static_cast<std::size_t>(*std::max_element(staged_.begin(), staged_.end())) *
           size_of_expert(store_->tensors(transfer.layer)).staged;
  }

  topology const* where_;
  Schedule const* schedule_;
  Store const* store_;
  transfer_plan transfers_;
  waypoint_planner waypoints_;
  std::vector<layer_split> splits_;
  std::vector<index_t> chunk_layers_;    // layers of all chunks, one chunk after the other
  std::vector<std::size_t> chunk_ends_;  // end of each chunk in it
  index_t num_steps_ = 0;
  std::vector<index_t> staged_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
