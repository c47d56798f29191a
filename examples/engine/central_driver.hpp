// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_CENTRAL_DRIVER_HPP
#define BALLAST_EXAMPLES_ENGINE_CENTRAL_DRIVER_HPP

#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>

#include "balancer.hpp"
#include "exchange.hpp"
#include "scheduler.hpp"
#include "settings.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

namespace engine {

/// How an engine with a central scheduler drives ballast. The scheduler, here rank 0, plans alone. Its message before a
/// pass tells all ranks to set a layer off, where the pass leaves room for it, or to drop one that is late; a layer
/// that has arrived everywhere is put in force after a pass. Nobody counts passes, and nobody plans but rank 0.
class central_driver {
public:
  central_driver(settings const& how, mode const& of, token_exchange& ranks, balancer& own);

  /// Before a pass, on every rank: hear what the scheduler says, and do it.
  [[nodiscard]] status before_pass(pass_plan const& plan);
  /// After a pass, on every rank: give the scheduler the loads when it is time to plan.
  [[nodiscard]] status after_pass(ballast::topology const& where);
  /// Forget what is planned: the ranks are others.
  void forget_plan() { waiting_.clear(); }

  [[nodiscard]] std::int64_t rebalances() const noexcept { return rebalances_; }
  [[nodiscard]] std::int64_t dropped() const noexcept { return dropped_; }

private:
  enum order : index_t { go_on, move_layer, drop_layer };

  [[nodiscard]] bool is_scheduler() const { return ranks_.rank() == 0; }
  [[nodiscard]] std::size_t message_size() const { return 2 + 2 * static_cast<std::size_t>(how_.where.num_slots()); }
  /// [2 + 2 P] what to do, with which layer, its map, and its shares or -1 where there are none.
  [[nodiscard]] std::vector<index_t> decide(pass_plan const& plan);
  /// @param rows  [2 P] of the message
  [[nodiscard]] status begin_move(index_t layer, std::span<index_t const> rows);
  [[nodiscard]] bool may_move(pass_plan const& plan) const;
  [[nodiscard]] status plan_moves(ballast::topology const& where, std::vector<ballast::load_t> const& loads);

  settings const& how_;
  mode const& of_;
  token_exchange& ranks_;
  balancer& own_;
  index_t passes_ = 0;
  // Of the scheduler:
  ballast::placement planned_;
  std::deque<index_t> waiting_;  ///< layers that are to move
  index_t passes_under_way_ = 0;
  std::int64_t rebalances_ = 0;
  std::int64_t dropped_ = 0;
};

}  // namespace engine

#endif
