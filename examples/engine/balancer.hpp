// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_BALANCER_HPP
#define BALLAST_EXAMPLES_ENGINE_BALANCER_HPP

#include <ballast/load/gate.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/survivors.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/rebalancer_state.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "settings.hpp"

#include <cstdint>
#include <functional>
#include <span>

namespace engine {

/// What the engine asks of ballast on one rank. Behind it is a rebalancer over the transport that connects the ranks;
/// only the source file that makes it knows its type, and compiles it.
class balancer {
public:
  balancer() = default;
  balancer(balancer const&) = delete;
  balancer& operator=(balancer const&) = delete;
  virtual ~balancer() = default;

  [[nodiscard]] virtual status start() = 0;
  /// @param ids  the gate's choices of this rank's tokens
  virtual void record(index_t layer, std::span<index_t const> ids) = 0;
  /// Let bytes that travel make progress, in the middle of a pass.
  [[nodiscard]] virtual status progress() = 0;
  [[nodiscard]] virtual status end_pass(ballast::pass_info const& pass) = 0;
  [[nodiscard]] virtual std::uint64_t outgoing() = 0;
  [[nodiscard]] virtual status incoming(std::span<std::uint64_t const> words) = 0;

  [[nodiscard]] virtual ballast::placement const& in_force() const = 0;
  [[nodiscard]] virtual ballast::epoch_t epoch(index_t layer) const = 0;
  [[nodiscard]] virtual ballast::rebalancer_state state() const = 0;
  /// Why the state is `failed` or `cohort_lost`.
  [[nodiscard]] virtual status const& failure() const = 0;

  /// No plan any more; moves that are not committed are dropped.
  virtual void disable() = 0;
  /// Move one layer to this placement's, over the passes that follow.
  [[nodiscard]] virtual status begin_move(ballast::placement const& target, index_t layer) = 0;
  /// What this rank has recorded since the last time. @param tokens  out: [L, E]
  [[nodiscard]] virtual status take_loads(std::span<ballast::load_t> tokens) = 0;

  /// After a failure that all ranks have heard of: the placement in force stays.
  [[nodiscard]] virtual status resume() = 0;
  [[nodiscard]] virtual status check_replicas() = 0;
  /// Go on without a rank: called by all others between the same two steps.
  /// @param where   that rank is marked dead in it
  /// @param reload  brings back a lost expert, where the slot is this rank's
  [[nodiscard]] virtual status go_on_without(index_t dead, ballast::topology const& where,
                                             std::function<void(ballast::slot_reload const&)> const& reload) = 0;
};

/// What a balancer is told; all of it outlives the balancer.
struct balanced_parts {
  settings const& how;
  mode const& of;
  ballast::observer& watcher;
};

}  // namespace engine

#endif
