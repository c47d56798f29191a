// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_OPTIONAL_PARTS_HPP
#define BALLAST_RUNTIME_OPTIONAL_PARTS_HPP

#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <span>

BALLAST_BEGIN_NAMESPACE

/// A store that orders its commits and a transport's copies against each other, and learns from the transport how.
///
/// @par Semantics
/// `connect(transport)` is called by `start`, and before each group of layers that moves: a repair may have changed how
/// the transport works. It refuses a transport that it cannot be ordered against, with the remedy, and changes nothing
/// then. `disconnect(transport)` is called before the rebalancer goes, while the transport is still there.
template <class S, class Transport>
concept connecting_store = requires(S& s, Transport& transport, Transport const& same) {
  { s.connect(same) } -> std::same_as<status>;
  { s.disconnect(transport) } noexcept -> std::same_as<void>;
};

/// A store whose tables have to be told where a rebalancer starts from.
///
/// @par Semantics
/// `publish(layer, tables, epoch)` is called by `start` for every layer, with epoch 0: it publishes the layer's row of
/// `tables`, as `commit` without copies does.
template <class S>
concept publishing_store = requires(S& s, index_t layer, placement const& tables, epoch_t epoch) {
  { s.publish(layer, tables, epoch) } -> std::same_as<status>;
};

/// A store that puts the tables of several layers in force for less than one after the other.
///
/// @par Semantics
/// `commit_tables(layers, tables, epochs)` does what `commit(layers[i], {}, tables, epochs[i])` does for each i in
/// turn. `layers` ascend and are not empty. When it fails, some of them may be in force. To a `commit_timer` it is one
/// commit.
template <class S>
concept joint_tables_store =
    requires(S& s, std::span<index_t const> layers, placement const& tables, std::span<epoch_t const> epochs) {
      { s.commit_tables(layers, tables, epochs) } -> std::same_as<status>;
    };

/// A store whose tables depend on which ranks are alive.
///
/// @par Semantics
/// `set_topology(where)` is called by `set_topology` of the rebalancer, before the tables of all layers are published
/// anew, and once more with the topology before that when the ranks do not agree.
template <class S>
concept topology_following_store = requires(S& s, topology const& where) {
  { s.set_topology(where) } -> std::same_as<status>;
} || requires(S& s, topology const& where) {
  { s.set_topology(where) } -> std::same_as<void>;
};

/// A recorder whose counts take a while to reach the host.
///
/// @par Semantics
/// `prepare_history()` is called at the end of the call before one that asks `history`. The recorder begins to bring
/// the counts of the passes closed so far. `history` and what belongs to it (`spans`, `place`, `forgotten`) then speak
/// of just these passes, and `clear` forgets just these.
template <class R>
concept preparing_recorder = requires(R& r) {
  { r.prepare_history() } -> std::same_as<void>;
};

namespace detail {

template <class Store, class Transport>
[[nodiscard]] status connect(Store& store, Transport const& transport) {
  if constexpr (connecting_store<Store, Transport>) {
    return store.connect(transport);
  } else {
    return {};
  }
}

template <class Store, class Transport>
void disconnect([[maybe_unused]] Store& store, [[maybe_unused]] Transport& transport) noexcept {
  if constexpr (connecting_store<Store, Transport>) { store.disconnect(transport); }
}

template <class Recorder>
void prepare_history(Recorder& recorder) {
  if constexpr (preparing_recorder<Recorder>) { recorder.prepare_history(); }
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
