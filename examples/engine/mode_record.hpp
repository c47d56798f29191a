// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_MODE_RECORD_HPP
#define BALLAST_EXAMPLES_ENGINE_MODE_RECORD_HPP

#include <ballast/runtime/observer.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace engine {

using ballast::index_t;

/// What one step was like, as rank 0 saw it.
struct step_record {
  ballast::nanoseconds_t duration = 0;
  ballast::nanoseconds_t in_ballast = 0;  ///< of it, in calls of ballast and in tables and quotas
  std::int64_t tokens = 0;
  index_t idle_ranks = 0;  ///< that had no tokens, and took part
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
  std::vector<std::uint64_t> work;  ///< [R, L] rows that each rank's experts computed
};

/// What a mode came to.
struct mode_record {
  std::string name;
  bool is_nonsense = false;  ///< outputs are not compared
  std::vector<step_record> steps;
  std::int64_t rebalances = 0;     ///< plans that moved something
  std::int64_t dropped = 0;        ///< layers that were late and left out
  std::int64_t failures = 0;       ///< of moves; the ranks have resumed
  std::vector<std::size_t> wrong;  ///< requests whose outputs are not those of the reference
  std::string replicas;            ///< what comparing all replicas in the end has found; empty: nothing
};

/// Counts what a rebalancer tells.
class move_counter final : public ballast::observer {
public:
  void on_event(ballast::event const& what) override {
    if (what.kind == ballast::event_kind::plan) { ++plans; }
    if (what.kind == ballast::event_kind::plan && what.moves > 0) { ++rebalances; }
    if (what.kind == ballast::event_kind::commit) {
      moves += what.moves;
      bytes += what.bytes;
    }
  }
  std::int64_t plans = 0;
  std::int64_t rebalances = 0;
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
};

}  // namespace engine

#endif
