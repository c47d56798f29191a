// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_SHARE_REFRESH_HPP
#define BALLAST_RUNTIME_DETAIL_SHARE_REFRESH_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/runtime/detail/device_times.hpp>
#include <ballast/runtime/detail/ledger.hpp>
#include <ballast/runtime/detail/outcome.hpp>
#include <ballast/runtime/detail/teller.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Put the tables of some layers in force without moving bytes, all at once where the store can.
///
/// @param layers   ascending.
/// @param commits  out: commits that the store counts, for their times.
/// @return as `commit`; rows that are in force are noted down in `books`
template <expert_store Store>
[[nodiscard]] status commit_tables(Store& store, std::span<index_t const> layers, placement const& tables,
                                   ledger<Store>& books, std::size_t& commits) {
  commits = 0;
  if constexpr (joint_tables_store<Store>) {
    if (layers.empty()) { return {}; }
    std::vector<epoch_t> epochs;
    for (auto const layer : layers) { epochs.push_back(books.epoch(layer) + 1); }
    if (auto result = store.commit_tables(layers, tables, epochs); !result.ok()) { return result; }
    for (auto const layer : layers) { books.take_row(tables, layer); }
    commits = 1;
  } else {
    for (auto const layer : layers) {
      if (auto result = store.commit(layer, {}, tables, books.epoch(layer) + 1); !result.ok()) { return result; }
      books.take_row(tables, layer);
      ++commits;
    }
  }
  return {};
}

/// The same map, another split of every expert's tokens: a commit of tables without bytes.
template <expert_store Store>
class share_refresh {
public:
  explicit share_refresh(Store& store) : store_{&store} {}

  /// Find the shares that balance the loads best on the maps in force. Layers that are still to move take part too:
  /// their transfers depend on maps, not on shares.
  [[nodiscard]] status solve(ledger<Store> const& books) {
    auto const& in_force = books.in_force();
    next_ = in_force;
    layers_.clear();
    if (auto result = solve_for(next_, books); !result.ok()) { return result; }
    keep_idle_layers(books.loads(), in_force, next_);
    for (index_t layer = 0; layer < in_force.num_layers(); ++layer) {
      if (shares_differ(in_force, next_, layer)) { layers_.push_back(layer); }
    }
    return {};
  }
  /// Give any map the shares that balance the loads best.
  [[nodiscard]] status solve_for(placement& target, ledger<Store> const& books) {
    return optimal_shares(books.where(), target, books.loads(), solver_);
  }
  /// What the ranks compare. @param solved  what `solve` said
  [[nodiscard]] std::uint64_t digest_of(status const& solved) const {
    digest shares;
    for (index_t layer = 0; layer < next_.num_layers() && solved.ok(); ++layer) { shares.add(next_.shares(layer)); }
    shares.add(solved.code().value());
    return shares.value();
  }
  /// Layers whose shares change, ascending.
  [[nodiscard]] std::span<index_t const> layers() const noexcept { return layers_; }

  /// Publish them. @param layers  those that change. @param start  when this began, for the observer
  [[nodiscard]] outcome commit(std::span<index_t const> layers, nanoseconds_t start, ledger<Store>& books,
                               device_times<Store>& times, teller& events) {
    is_undecided_ = false;
    books.open_commit();
    std::size_t commits = 0;
    if (auto result = commit_tables(*store_, layers, next_, books, commits); !result.ok()) {
      return {outcome::ending::torn, std::move(result)};
    }
    books.count_commit();
    event const what{.kind = event_kind::shares,
                     .step = books.step(),
                     .layers = layers,
                     .balancedness = books.balancedness(),
                     .duration = now() - start};
    events.tell(what);
    times.add_chunk(what, commits);
    return {};
  }

  /// The others may have committed them.
  void note_undecided() noexcept { is_undecided_ = true; }
  void forget() noexcept { is_undecided_ = false; }
  [[nodiscard]] bool is_undecided() const noexcept { return is_undecided_; }

private:
  Store* store_;
  share_solver solver_;
  placement next_;
  std::vector<index_t> layers_;
  bool is_undecided_ = false;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
