// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_BATCH_COUNTERS_HPP
#define BALLAST_RUNTIME_BATCH_COUNTERS_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstdint>
#include <optional>

BALLAST_BEGIN_NAMESPACE

/// What balancing every batch came to, over all layers of one rank.
struct batch_counters {
  // ---- batches, each layer's counted by itself, modulo 2^32 ----
  std::int64_t batches = 0;  ///< all of them
  std::int64_t exact = 0;    ///< by quotas
  std::int64_t below = 0;    ///< not worth it: too few tokens, or too little to gain
  std::int64_t off = 0;      ///< a rank had it turned off
  std::int64_t late = 0;     ///< a rank's counts did not come in time
  std::int64_t unlike = 0;   ///< ranks differed in options, or in the placement that they had in force
  std::int64_t alone = 0;    ///< this rank fell back and the others did not: balance was lost, nothing else

  // ---- of each layer's last batch that was solved: sums of tiles over those layers ----
  double mean = 0;            ///< of the average live rank
  std::int64_t planned = 0;   ///< of the busiest rank under the quotas
  std::int64_t realised = 0;  ///< the same by what the batch went by: quotas, or the shares in force up to chance
  std::int64_t resident = 0;  ///< of the busiest rank under the shares in force
  std::int64_t bound = 0;     ///< what no quotas could bring it below

  nanoseconds_t longest_wait = 0;  ///< of the layers' last batches, for the counts of other ranks
  std::uint64_t late_ranks = 0;    ///< one bit for each rank below 64 that was missed in a layer's last late batch

  /// Those of two balancers together, such as one for each of two batches that overlap.
  batch_counters& operator+=(batch_counters const& other) noexcept {
    batches += other.batches;
    exact += other.exact;
    below += other.below;
    off += other.off;
    late += other.late;
    unlike += other.unlike;
    alone += other.alone;
    mean += other.mean;
    planned += other.planned;
    realised += other.realised;
    resident += other.resident;
    bound += other.bound;
    longest_wait = longest_wait < other.longest_wait ? other.longest_wait : longest_wait;
    late_ranks |= other.late_ranks;
    return *this;
  }
  bool operator==(batch_counters const&) const = default;
};

/// A store that knows what balancing every batch comes to.
///
/// @par Semantics
/// `balanced_batches()` waits for nothing, and gives nothing where no batches are balanced. The rebalancer asks at the
/// end of each window and tells its observer what is new, see `event_kind::batches`.
template <class S>
concept batch_counting_store = requires(S const& s) {
  { s.balanced_batches() } -> std::same_as<std::optional<batch_counters>>;
};

BALLAST_END_NAMESPACE

#endif
