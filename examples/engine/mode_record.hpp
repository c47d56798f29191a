// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_MODE_RECORD_HPP
#define BALLAST_EXAMPLES_ENGINE_MODE_RECORD_HPP

#include <ballast/runtime/observer.hpp>
#include <ballast/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace engine {

using ballast::index_t;

/// Stages of ballast that a step may hold.
enum class stage : std::uint8_t {
  loads,           ///< host: loads are added up over the ranks
  plan,            ///< host: a plan is made and agreed
  commit,          ///< host: layers come into force
  shares,          ///< host: the split over replicas changes
  device_receive,  ///< device: experts arrive in staging, beside the pass
  device_commit,   ///< device: staging goes to the slots, and tables change, between two passes
};
inline constexpr std::size_t num_stages = 6;
[[nodiscard]] constexpr char const* to_string(stage of) noexcept {
  constexpr std::array<char const*, num_stages> names{"loads",  "plan",           "commit",
                                                      "shares", "device receive", "device commit"};
  return names[static_cast<std::size_t>(of)];
}
using stage_times = std::array<ballast::nanoseconds_t, num_stages>;

/// What one step was like, as rank 0 saw it.
struct step_record {
  ballast::nanoseconds_t duration = 0;
  ballast::nanoseconds_t in_ballast = 0;  ///< of it, in calls of ballast and in tables and quotas
  std::int64_t tokens = 0;
  index_t idle_ranks = 0;  ///< that had no tokens, and took part
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
  stage_times stages{};             ///< what ballast told in this step; of the device, perhaps of a step before
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

/// Adds up what a rebalancer tells.
class move_counter final : public ballast::observer {
public:
  void on_event(ballast::event const& what) override {
    if (what.kind == ballast::event_kind::plan) { ++plans; }
    if (what.kind == ballast::event_kind::plan && what.moves > 0) { ++rebalances; }
    if (what.kind == ballast::event_kind::commit) {
      moves += what.moves;
      bytes += what.bytes;
    }
    switch (what.kind) {
      case ballast::event_kind::dump: add(stage::loads, what.duration); break;
      case ballast::event_kind::plan: add(stage::plan, what.duration); break;
      case ballast::event_kind::commit: add(stage::commit, what.duration); break;
      case ballast::event_kind::shares: add(stage::shares, what.duration); break;
      case ballast::event_kind::device_times:
        add(stage::device_receive, what.device_receive);
        add(stage::device_commit, what.device_commit);
        break;
      default: break;
    }
  }
  std::int64_t plans = 0;
  std::int64_t rebalances = 0;
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
  stage_times stages{};  ///< since `take_stages`

  [[nodiscard]] stage_times take_stages() { return std::exchange(stages, {}); }

private:
  void add(stage of, ballast::nanoseconds_t time) {
    if (time != ballast::not_measured) { stages[static_cast<std::size_t>(of)] += time; }
  }
};

}  // namespace engine

#endif
