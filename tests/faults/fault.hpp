// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_FAULT_HPP
#define BALLAST_TESTS_FAULTS_FAULT_HPP

#include <ballast/types.hpp>

#include "support/group_runner.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace ballast_test {

enum class fault_kind {
  kill_at_point,    ///< SIGKILL at a step of the protocol
  kill_any_time,    ///< SIGKILL from outside at a random moment
  pause_at_point,   ///< SIGSTOP at a step of the protocol, SIGCONT past everyone's deadline
  pause_any_time,   ///< the same from outside at a random moment
  pause_in_vote,    ///< the same just after a vote has begun
  pause_and_expel,  ///< as pause_at_point, and the others expel the rank before it resumes
  other_plan,       ///< a rank plans something else
  one_call_behind,  ///< a rank misses one step
  message_lost,
  message_doubled,
  message_truncated,
  bit_flipped,
  source_overwritten,  ///< a rank writes into a slot that others are reading; only detection is possible
  staging_exhausted,
  observer_throws,
  count
};

inline constexpr std::array<char const*, static_cast<std::size_t>(fault_kind::count)> fault_names{
    "killed at a step",    "killed at any time", "paused at a step",   "paused at any time", "paused in a vote",
    "paused and expelled", "plans differently",  "one call behind",    "message lost",       "message doubled",
    "message truncated",   "bit flipped",        "source overwritten", "staging exhausted",  "observer throws"};

/// Steps of the protocol at which a rank can be struck.
inline constexpr std::array<char const*, 16> fault_points{
    "between steps", "before reduce", "after reduce", "before agree", "after agree", "before start",
    "after start",   "before wait",   "in wait",      "after wait",   "before vote", "after vote",
    "before commit", "in commit",     "after commit", "after a step"};

/// One fault in the life of one group. Everything about it follows from a seed and an index.
struct fault {
  std::uint64_t seed = 0;
  std::uint64_t index = 0;
  fault_kind kind = fault_kind::kill_at_point;
  ballast::index_t num_ranks = 2;
  ballast::index_t victim = 0;
  char const* point = "";
  int occurrence = 0;                ///< strike when the point is reached for this time, from 0
  ballast::nanoseconds_t delay = 0;  ///< of strikes from outside, after all ranks have started
  bool engine_control = false;       ///< votes travel as messages and may be undecided; otherwise one word decides
  bool verify = false;
  ballast::nanoseconds_t deadline = 0;

  [[nodiscard]] bool is(fault_kind other) const noexcept { return kind == other; }
  [[nodiscard]] bool kills() const noexcept { return is(fault_kind::kill_at_point) || is(fault_kind::kill_any_time); }
  [[nodiscard]] bool pauses() const noexcept {
    return kind >= fault_kind::pause_at_point && kind <= fault_kind::pause_and_expel;
  }
  /// The group should finish all its work in spite of it.
  [[nodiscard]] bool harmless() const noexcept { return is(fault_kind::observer_throws); }
  [[nodiscard]] char const* name() const noexcept { return fault_names[static_cast<std::size_t>(kind)]; }
};

[[nodiscard]] inline fault draw_fault(std::uint64_t seed, std::uint64_t index, ballast::nanoseconds_t deadline) {
  dice random{seed * 1'000'003 + index};
  fault drawn;
  drawn.seed = seed;
  drawn.index = index;
  drawn.kind = static_cast<fault_kind>(index % fault_names.size());
  drawn.num_ranks = 2 + 2 * random.below(3);
  drawn.victim = random.below(drawn.num_ranks);
  drawn.point = fault_points[(index / fault_names.size()) % fault_points.size()];
  drawn.occurrence = random.below(4);
  drawn.delay = static_cast<ballast::nanoseconds_t>(random.below(12'000)) * 1000;
  drawn.engine_control = random.below(3) == 0;
  drawn.verify = drawn.is(fault_kind::bit_flipped) || random.below(3) == 0;
  drawn.deadline = deadline;
  return drawn;
}

}  // namespace ballast_test

#endif
