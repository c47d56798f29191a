// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_LEDGER_HPP
#define BALLAST_RUNTIME_DETAIL_LEDGER_HPP

#include <ballast/contract.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/map_history.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/runtime/detail/load_window.hpp>
#include <ballast/runtime/detail/replica_check.hpp>
#include <ballast/runtime/store.hpp>
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

/// What is in force on this rank, and what goes with it: epochs, the maps of the last passes, the loads that were
/// reduced last, the balance under them, and the sums of replicas.
template <expert_store Store>
class ledger {
public:
  ledger(topology where, placement initial, Store& store, index_t rank)
      : where_{std::move(where)},
        in_force_{std::move(initial)},
        epochs_(static_cast<std::size_t>(in_force_.num_layers()), 0),
        maps_{in_force_.num_layers(), in_force_.num_slots()},
        window_{in_force_.num_layers(), in_force_.num_logical()},
        balance_{in_force_.num_layers()},
        replicas_{where_, in_force_, store, rank} {}
  ledger(ledger const&) = delete;  // the check of replicas looks at what stands here
  ledger& operator=(ledger const&) = delete;
  ~ledger() = default;

  [[nodiscard]] topology const& where() const noexcept { return where_; }
  [[nodiscard]] placement const& in_force() const noexcept { return in_force_; }
  [[nodiscard]] index_t num_layers() const noexcept { return in_force_.num_layers(); }
  /// Commits of one layer so far.
  [[nodiscard]] epoch_t epoch(index_t layer) const {
    BALLAST_EXPECTS_BELOW(layer, num_layers(), "rebalancer: layer");
    return epochs_[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] std::uint64_t digest_of_epochs() const noexcept {
    digest epochs;
    for (auto const epoch : epochs_) { epochs.add(epoch); }
    return epochs.value();
  }
  /// Passes closed so far.
  [[nodiscard]] std::uint64_t step() const noexcept { return step_; }
  /// Groups and changes of shares that were committed so far, the same on every rank.
  [[nodiscard]] std::uint64_t committed() const noexcept { return committed_; }

  [[nodiscard]] load_window& window() noexcept { return window_; }
  [[nodiscard]] matrix_view<load_t const> loads() const { return window_.loads(); }
  [[nodiscard]] replica_check<Store>& replicas() noexcept { return replicas_; }
  /// Of what is in force, under the loads that were reduced last.
  [[nodiscard]] double balancedness() const noexcept { return balance_.balancedness(); }

  /// The map that was in force for a layer in pass `pass`; see `map_history::row_for`.
  [[nodiscard]] status map_of(index_t layer, std::uint64_t pass, std::span<index_t const>& out) const {
    bool const in_range = layer >= 0 && layer < num_layers();
    auto const now = in_range ? in_force_.logical_of_slot(layer) : std::span<index_t const>{};
    return maps_.row_for(layer, static_cast<std::int64_t>(pass), static_cast<std::int64_t>(step_ + 1), now, out);
  }

  void begin_step() noexcept { ++step_; }
  /// The loads are others now.
  void measure() { balance_.measure(where_, in_force_, loads()); }
  /// Put a layer's new row in force.
  void take_row(placement const& from, index_t layer) {
    auto const old_row = in_force_.logical_of_slot(layer);
    if (!std::ranges::equal(old_row, from.logical_of_slot(layer))) {
      maps_.note_commit(layer, static_cast<std::int64_t>(step_), old_row);
      replicas_.forget(layer);
    }
    in_force_.copy_layer(from, layer);
    ++epochs_[static_cast<std::size_t>(layer)];
    balance_.measure(where_, in_force_, loads(), layer);
  }
  void drop_shares() { in_force_.drop_shares(); }
  void set_topology(topology const& where) { where_ = where; }
  /// Where ranks are dead from the start on, they have no share of what they hold.
  void leave_dead_out() {
    if (validate_live(where_, in_force_).ok()) { split_among_live(where_, in_force_); }
  }
  /// From here to `count_commit` a layer may be half of one and half of another placement.
  void open_commit() noexcept { committing_ = true; }
  void count_commit() noexcept {
    committing_ = false;
    ++committed_;
  }
  /// It never ends: this rank is lost.
  void abandon_commit() noexcept { committing_ = false; }
  [[nodiscard]] bool is_committing() const noexcept { return committing_; }
  /// Go on with the numbers that all ranks have agreed on.
  void follow(std::uint64_t committed, std::uint64_t step) {
    committed_ = committed;
    if (step_ != step) { maps_.clear(static_cast<std::int64_t>(step)); }
    step_ = step;
  }

private:
  topology where_;
  placement in_force_;
  std::vector<epoch_t> epochs_;  // [L]
  map_history maps_;
  load_window window_;
  balance_sheet balance_;
  replica_check<Store> replicas_;
  std::uint64_t step_ = 0;
  std::uint64_t committed_ = 0;
  bool committing_ = false;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
