// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_SETTINGS_HPP
#define BALLAST_EXAMPLES_ENGINE_SETTINGS_HPP

#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "model.hpp"
#include "modes.hpp"
#include "scheduler.hpp"
#include "traffic.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace engine {

/// What is spoiled on rank 1, to see that it shows in the outputs.
enum class damage_kind : std::uint8_t {
  none,
  weight,  ///< one weight of one expert is off
  table,   ///< a rank routes on by tables that are no longer in force
  move,    ///< a slot keeps the expert that it had before a move
};

/// Where a rank stops answering.
enum class stop_place : std::uint8_t {
  pass,     ///< in the middle of a forward pass
  balance,  ///< before its call of ballast at the end of a pass
  message,  ///< before the message that ends the step
};

/// A rank that stops for good: it neither ends nor answers.
struct stop_order {
  index_t rank = -1;  ///< -1: none does
  index_t pass = 0;   ///< counted from 0
  stop_place place = stop_place::pass;
};

/// What moves experts between cards.
enum class mover_kind : std::uint8_t { copy_engines, kernels, nccl };

/// What every rank is told.
struct settings {
  model_shape shape;
  traffic_options traffic;
  schedule_options schedule;
  ballast::topology where;
  ballast::placement initial;  ///< [L, P]
  std::vector<mode> modes;
  index_t interval = 4;  ///< passes between plans
  index_t layers_per_chunk = 1;
  std::int64_t work_per_plan_call = 0;
  index_t patience = 8;    ///< passes that the central scheduler waits for a layer
  index_t slow_rank = -1;  ///< lets bytes travel at the end of its passes only; -1: none does
  ballast::nanoseconds_t timeout = 10'000'000'000;
  bool keeps_routing = false;                  ///< count what the gate chooses in every pass
  bool verifies = true;                        ///< moves are compared with their source
  bool has_reference = true;                   ///< outputs are compared with one rank's; else with the first mode's
  index_t turn = 1;                            ///< passes of a mode before the next mode's
  std::size_t bytes_a_number = sizeof(float);  ///< of weights
  damage_kind damage = damage_kind::none;
  stop_order stop;
  // On GPUs:
  mover_kind mover = mover_kind::copy_engines;
  int cards = 0;                  ///< at most; 0: all that there are
  int small_pass = 128;           ///< tokens of a rank up to which a pass is a small one
  std::uint32_t least_batch = 0;  ///< choices of all ranks below which a batch is not balanced

  /// Numbers that an outbox must hold: all rows of all ranks may go to one.
  [[nodiscard]] std::size_t outbox_floats() const noexcept {
    return static_cast<std::size_t>(schedule.num_ranks) * static_cast<std::size_t>(schedule.tokens_a_rank) *
           (static_cast<std::size_t>(shape.top_k) + 1) * static_cast<std::size_t>(shape.hidden);
  }
};

}  // namespace engine

#endif
