// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_FIT_HPP
#define BALLAST_RUNTIME_DETAIL_FIT_HPP

#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/runtime/detail/expert_size.hpp>
#include <ballast/runtime/rebalancer_options.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <span>
#include <string>

BALLAST_BEGIN_NAMESPACE

/// Whether the parts of a rebalancer, and what it is given later, fit together. Each check names the first value that
/// does not.
namespace detail {

/// Ranks of transport, control plane, store and topology.
template <class Transport, class Store, class Control>
[[nodiscard]] status check_ranks(topology const& where, Transport const& transport, Store const& store,
                                 Control const& control) {
  if (transport.rank() != control.rank()) {
    return {errc::invalid_topology, concat("rebalancer: this is rank ", transport.rank(), " of the transport and rank ",
                                           control.rank(), " of the control plane")};
  }
  if constexpr (requires { store.rank(); }) {
    if (store.rank() != transport.rank()) {
      return {errc::invalid_topology, concat("rebalancer: this is rank ", transport.rank(),
                                             " of the transport and rank ", store.rank(), " of the store")};
    }
  }
  if (transport.num_ranks() != where.num_ranks() || control.num_ranks() != where.num_ranks()) {
    return {errc::invalid_topology, concat("rebalancer: the topology has ", where.num_ranks(), " ranks, the transport ",
                                           transport.num_ranks(), ", the control plane ", control.num_ranks())};
  }
  return {};
}

/// Asynchronous moves only poll.
template <class Transport>
[[nodiscard]] status check_mode(rebalancer_options const& options, Transport const& transport) {
  if (!options.asynchronous || moves_in_poll(transport)) { return {}; }
  return {errc::invalid_option,
          "rebalancer: asynchronous mode needs a transport that moves bytes while it is polled, and this one moves "
          "them only inside of wait: let its kernels run beside the engine's (NCCL: allow_sm_overlap), or switch "
          "asynchronous mode off"};
}

/// The store is this model's: its layers, its slots, and room for one expert at a time.
template <class Store>
[[nodiscard]] status check_store(Store const& store, topology const& where, placement const& in_force) {
  if (store.num_layers() != in_force.num_layers() || store.slots_per_rank() != where.slots_per_rank()) {
    return {errc::invalid_topology,
            concat("rebalancer: the store is for ", store.num_layers(), " layers x ", store.slots_per_rank(),
                   " slots a rank, the placement has ", in_force.num_layers(), " layers, the topology ",
                   where.slots_per_rank(), " slots a rank")};
  }
  for (index_t layer = 0; layer < in_force.num_layers(); ++layer) {
    if (store.tensors(layer).empty()) {
      return {errc::invalid_weights, concat("rebalancer: layer ", layer, " has no registered tensors")};
    }
    auto const expert = size_of_expert(store.tensors(layer)).staged;
    if (expert > store.staging_limit()) {
      return {errc::out_of_memory,
              concat("rebalancer: one expert of layer ", layer, " needs ", expert, " bytes of staging, the limit is ",
                     store.staging_limit(), "; give the store a larger limit")};
    }
  }
  return {};
}

/// What `apply` is given.
[[nodiscard]] inline status check_target(char const* call, placement const& target, std::span<index_t const> layers,
                                         placement const& in_force) {
  if (target.shape() != in_force.shape()) {
    return {errc::invalid_placement,
            concat(call, ": the target has ", target.num_layers(), " layers x ", target.num_slots(), " slots of ",
                   target.num_logical(), " experts, in force are ", in_force.num_layers(), " x ", in_force.num_slots(),
                   " of ", in_force.num_logical())};
  }
  if (auto result = validate_placement(target, in_force.shape()); !result.ok()) { return result; }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i] < 0 || layers[i] >= in_force.num_layers() || (i > 0 && layers[i] <= layers[i - 1])) {
      return {errc::invalid_option, concat(call, ": layer ", layers[i], " at position ", i, " is not ascending in [0, ",
                                           in_force.num_layers(), ")")};
    }
  }
  return {};
}

/// "2 ranks on 1 nodes, 3 slots and 0 reserved ones a rank"
[[nodiscard]] inline std::string text_of(topology_shape const& shape) {
  return concat(shape.num_ranks, " ranks on ", shape.num_nodes, " nodes, ", shape.slots_per_rank, " slots and ",
                shape.reserved_slots, " reserved ones a rank");
}

/// What `set_topology` is given. @param before  the topology so far. @param rank  this one
[[nodiscard]] inline status check_topology(topology const& where, placement const& in_force, topology const& before,
                                           placement_shape shape, index_t rank) {
  if (where.shape() != before.shape()) {
    return {errc::invalid_topology,
            concat("set_topology: ", text_of(where.shape()), "; they must stay ", text_of(before.shape()))};
  }
  if (!where.is_live(rank)) {
    return {errc::invalid_topology, concat("set_topology: this rank, ", rank, ", is marked dead"), rank};
  }
  if (auto result = validate_placement(in_force, shape); !result.ok()) { return result; }
  return validate_live(where, in_force);
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
