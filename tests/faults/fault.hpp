// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_FAULT_HPP
#define BALLAST_TESTS_FAULTS_FAULT_HPP

#include <ballast/detail/text.hpp>
#include <ballast/types.hpp>

#include "support/group_runner.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ballast_test {

enum class fault_kind {
  kill_at_point,    ///< SIGKILL at a step of the protocol
  kill_any_time,    ///< SIGKILL from outside at a random moment
  pause_at_point,   ///< SIGSTOP at a step of the protocol, SIGCONT 0.1 to 3 deadlines later
  pause_any_time,   ///< the same from outside at a random moment
  pause_in_vote,    ///< the same just after a vote has begun
  pause_and_expel,  ///< as pause_at_point, and ranks that fail meanwhile expel the rank
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

/// How the ranks agree.
enum class votes_by {
  word,            ///< one word in shared memory decides
  messages,        ///< votes travel through an engine's all-gather, and may be undecided
  strict_messages  ///< the same; where the others succeed, the rank that is struck fails when it comes too late
};

/// What every rank runs: a target and a draft model, on one transport and one control plane.
inline constexpr std::size_t num_models = 2;
inline constexpr std::array<char const*, num_models> model_names{"target", "draft"};

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
  int pause_tenths = 0;              ///< of the deadline, how long a rank is stopped
  ballast::nanoseconds_t deadline = 0;
  bool verify = false;

  votes_by votes = votes_by::word;
  std::array<bool, num_models> asynchronous{};
  bool exchanges = false;   ///< the engine exchanges words between two steps; otherwise ranks run freely
  bool impatient = false;   ///< its exchange has a deadline too, and is missed by the rank that is late
  bool few_moves = false;   ///< plans move one expert a layer, so that most ranks are in no group
  bool idle_ranks = false;  ///< passes that some ranks do not count, and layers without tokens
  bool small_staging = false;
  ballast::index_t layers_per_chunk = 1;
  ballast::index_t share_interval = 0;  ///< of the draft model

  [[nodiscard]] bool is(fault_kind other) const noexcept { return kind == other; }
  [[nodiscard]] bool kills() const noexcept { return is(fault_kind::kill_at_point) || is(fault_kind::kill_any_time); }
  [[nodiscard]] bool pauses() const noexcept {
    return kind >= fault_kind::pause_at_point && kind <= fault_kind::pause_and_expel;
  }
  [[nodiscard]] ballast::nanoseconds_t pause() const noexcept { return deadline / 10 * pause_tenths; }
  /// The group should finish all its work in spite of it.
  [[nodiscard]] bool harmless() const noexcept { return is(fault_kind::observer_throws); }
  [[nodiscard]] char const* name() const noexcept { return fault_names[static_cast<std::size_t>(kind)]; }

  [[nodiscard]] std::string text() const {
    constexpr std::array<char const*, 3> planes{"votes by one word", "votes by message", "votes by strict message"};
    auto const mode = [this](std::size_t model) { return asynchronous[model] ? "asynchronous" : "synchronous"; };
    return ballast::detail::concat(
        name(), ", point '", point, "', time ", occurrence, ", pause ", pause_tenths, " tenths, rank ", victim, " of ",
        num_ranks, ", ", planes[static_cast<std::size_t>(votes)], ", ", mode(0), " and ", mode(1),
        exchanges ? impatient ? ", impatient words" : ", words" : "", few_moves ? ", few moves" : "",
        idle_ranks ? ", idle ranks" : "", small_staging ? ", small staging" : "", verify ? ", verifying" : "",
        share_interval > 0 ? ", shares" : "", ", ", layers_per_chunk, " layers a chunk");
  }
};

[[nodiscard]] inline fault draw_fault(std::uint64_t seed, std::uint64_t index, ballast::nanoseconds_t deadline) {
  constexpr std::array<ballast::index_t, 8> sizes{2, 3, 3, 4, 4, 4, 6, 6};
  dice random{seed * 1'000'003 + index};
  fault drawn;
  drawn.seed = seed;
  drawn.index = index;
  drawn.kind = static_cast<fault_kind>(index % fault_names.size());
  drawn.num_ranks = sizes[random.below(sizes.size())];
  drawn.victim = random.below(drawn.num_ranks);
  drawn.point = fault_points[(index / fault_names.size()) % fault_points.size()];
  drawn.occurrence = random.below(8);
  drawn.delay = static_cast<ballast::nanoseconds_t>(random.below(12'000)) * 1000;
  drawn.pause_tenths = 1 + random.below(30);
  drawn.deadline = deadline;
  drawn.votes = static_cast<votes_by>(random.below(3));
  drawn.asynchronous = {random.below(2) == 0, random.below(2) == 0};
  bool const asynchronous = drawn.asynchronous[0] || drawn.asynchronous[1];
  drawn.exchanges = asynchronous || drawn.is(fault_kind::one_call_behind) || random.below(4) == 0;
  drawn.impatient = drawn.exchanges && random.below(3) == 0;
  drawn.few_moves = random.below(2) == 0;
  drawn.idle_ranks = random.below(2) == 0;
  drawn.small_staging = random.below(2) == 0;
  drawn.layers_per_chunk = 1 + random.below(3);
  drawn.share_interval = random.below(3) == 0 ? 3 : 0;
  // Asynchronous moves vote only where they verify.
  bool const needs_votes =
      drawn.is(fault_kind::pause_in_vote) || std::string_view{drawn.point}.find("vote") != std::string_view::npos;
  drawn.verify = drawn.is(fault_kind::bit_flipped) || (needs_votes && asynchronous) || random.below(3) == 0;
  return drawn;
}

}  // namespace ballast_test

#endif
