// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_SERVED_MODE_HPP
#define BALLAST_EXAMPLES_ENGINE_SERVED_MODE_HPP

#include <ballast/topology.hpp>

#include "balancer.hpp"
#include "central_driver.hpp"
#include "mode_record.hpp"
#include "model_runner.hpp"
#include "rank_links.hpp"
#include "scheduler.hpp"
#include "settings.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace engine {

/// One rank of an engine that serves all requests in one mode, with weights and caches of its own.
class served_mode {
public:
  /// @param number  of the mode
  /// @throws std::system_error for parts that do not fit together
  served_mode(settings const& how, std::span<request const> requests, std::size_t number, rank_links& links);

  [[nodiscard]] status start();
  [[nodiscard]] bool is_done() const noexcept { return passes_.is_done(); }
  [[nodiscard]] index_t num_steps() const noexcept { return passes_.num_passes(); }

  /// Serve one pass. @return why it was not finished: a rank does not answer
  [[nodiscard]] status step();

  /// Steps that were finished on this rank.
  [[nodiscard]] std::size_t num_finished() const noexcept { return record_.steps.size(); }
  /// Take back what not all ranks have finished: at most one step.
  void undo_steps_after(std::size_t finished);
  /// Go on without a rank, on all others between the same two steps.
  [[nodiscard]] status go_on_without(index_t dead);

  /// Bits of the outputs of requests that this rank serves; 0 for those of others. @param out  out: [requests]
  void write_outcomes(std::span<std::int64_t> out) const;
  /// [passes, L, E] what the gate chose for this rank's tokens; empty where that is not kept.
  [[nodiscard]] std::vector<std::int64_t>& routing() noexcept { return routing_; }
  /// Compare the replicas of all experts, on all ranks together.
  void check_replicas();
  [[nodiscard]] mode_record& record() noexcept { return record_; }

private:
  /// The calls that close a pass, and the message between the ranks.
  [[nodiscard]] status end_step(pass_plan const& plan, step_record& facts);
  [[nodiscard]] status exchange_message(step_record& facts);
  [[nodiscard]] status heal();
  void note_moves(step_record& facts);
  void keep_routing();
  void stop_if_ordered(stop_place place) const;

  settings const& how_;
  mode const& of_;
  std::size_t number_;
  token_exchange& ranks_;
  ballast::topology where_;
  scheduler passes_;
  scheduler before_;  ///< the last step
  move_counter counter_;
  ballast_clock clock_;
  std::unique_ptr<model_runner> runner_;
  balancer* balancer_;  ///< null where nothing moves
  std::optional<central_driver> central_;

  std::int64_t noted_moves_ = 0;
  std::int64_t noted_bytes_ = 0;
  mode_record record_;
  std::vector<std::int64_t> routing_;
};

}  // namespace engine

#endif
