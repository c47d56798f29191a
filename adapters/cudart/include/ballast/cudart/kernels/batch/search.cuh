// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_SEARCH_CUH
#define BALLAST_CUDART_KERNELS_BATCH_SEARCH_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/search.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/batch/warp.cuh>
#include <ballast/cudart/layout/plan_memory.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/types.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// The searches of a `quota_solver`, by one warp: what they share for any number of ranks.
class warp_search {
public:
  __device__ explicit warp_search(plan_memory const& memory)
      : row_{memory.row()},
        load_{memory.load()},
        level_{memory.level()},
        flow_{memory.flow()},
        num_ranks_{row_.shape().num_ranks},
        lane_{static_cast<index_t>(threadIdx.x & 31u)} {}

  [[nodiscard]] __device__ index_t max_load() const {
    index_t most = 0;
#pragma unroll 1
    for (auto rank = lane_; rank < num_ranks_; rank += 32) { most = max(most, load_[rank]); }
    return warp_max(most);
  }
  /// Of the ranks that the last search reached, rounded up.
  [[nodiscard]] __device__ index_t mean_of_reached() const {
    std::int64_t sum = 0;
    index_t count = 0;
#pragma unroll 1
    for (auto rank = lane_; rank < num_ranks_; rank += 32) {
      if (level_[rank] == unreached) { continue; }
      sum += load_[rank];
      ++count;
    }
    sum = fold_warp(sum, [](std::int64_t a, std::int64_t b) { return a + b; });
    auto const ranks = static_cast<std::int64_t>(warp_sum(count));
    return static_cast<index_t>((sum + ranks - 1) / ranks);
  }

protected:
  static constexpr index_t none = -1;
  static constexpr index_t unreached = 0x7fffffff;
  /// Replicas of an expert of which one hands tokens to the other.
  struct path_step {
    index_t from = none;
    index_t to = none;
  };

  quota_row row_;
  index_t* load_;
  index_t* level_;
  index_t* flow_;
  index_t num_ranks_;
  index_t lane_;
};

/// Up to 64 ranks: a set of ranks is 64 bits, and each lane knows whom two ranks can hand tokens to.
class warp_search_64 : public warp_search {
public:
  static constexpr index_t most_ranks = 64;

  __device__ explicit warp_search_64(plan_memory const& memory)
      : warp_search{memory}, group_ranks_{memory.group_ranks()} {}

  __device__ void begin() {
    near_low_ = reach_of(lane_);
    near_high_ = reach_of(lane_ + 32);
  }
  [[nodiscard]] __device__ index_t find(index_t bound, index_t accepted) {
    auto const load_low = lane_ < num_ranks_ ? load_[lane_] : bound;
    auto const load_high = lane_ + 32 < num_ranks_ ? load_[lane_ + 32] : bound;
    auto const below = ranks_where(load_low < bound, load_high < bound);
    auto reached = ranks_where(load_low > accepted, load_high > accepted);
    auto level_low = (reached >> lane_ & 1u) != 0 ? 0 : unreached;
    auto level_high = (reached >> (lane_ + 32) & 1u) != 0 ? 0 : unreached;
    auto edge = reached;
    index_t target = none;
    for (index_t level = 1; edge != 0 && target == none; ++level) {
      auto const mine =
          ((edge >> lane_ & 1u) != 0 ? near_low_ : 0) | ((edge >> (lane_ + 32) & 1u) != 0 ? near_high_ : 0);
      edge = warp_or(mine) & ~reached;
      reached |= edge;
      if ((edge >> lane_ & 1u) != 0) { level_low = level; }
      if ((edge >> (lane_ + 32) & 1u) != 0) { level_high = level; }
      if ((edge & below) != 0) {
        auto const in_low = (edge & below) >> lane_ & 1u;
        auto const in_high = (edge & below) >> (lane_ + 32) & 1u;
        auto const least = warp_min(min(in_low != 0 ? load_low : unreached, in_high != 0 ? load_high : unreached));
        auto const lightest = ranks_where(in_low != 0 && load_low == least, in_high != 0 && load_high == least);
        target = __ffsll(static_cast<long long>(lightest)) - 1;
      }
    }
    if (lane_ < num_ranks_) { level_[lane_] = level_low; }
    if (lane_ + 32 < num_ranks_) { level_[lane_ + 32] = level_high; }
    __syncwarp();
    return target;
  }
  /// The path's ranks are found by the lanes' sets; the replicas of its steps by a lane for each, two beyond 32 steps.
  __device__ void hand_along(index_t target, index_t bound) {
    auto const low_level = lane_ < num_ranks_ ? level_[lane_] : unreached;
    auto const high_level = lane_ + 32 < num_ranks_ ? level_[lane_ + 32] : unreached;
    auto changed = std::uint64_t{1} << target;
    auto source = target;
    rank_step first;
    rank_step second;
    index_t steps = 0;
#pragma unroll 1
    for (auto level = level_[target]; level > 0; --level, ++steps) {
      // From the lowest rank of the level before.
      auto const before = ranks_where(low_level == level - 1 && (near_low_ >> source & 1u) != 0,
                                      high_level == level - 1 && (near_high_ >> source & 1u) != 0);
      auto const rank = __ffsll(static_cast<long long>(before)) - 1;
      if (lane_ == steps) { first = {rank, source}; }
      if (lane_ + 32 == steps) { second = {rank, source}; }
      source = rank;
      changed |= std::uint64_t{1} << rank;
    }
    auto const step = replicas_of(first);
    auto const late_step = steps > 32 ? replicas_of(second) : path_step{};
    auto const can = min(step.from == none ? unreached : flow_[step.from],
                         late_step.from == none ? unreached : flow_[late_step.from]);
    auto const amount = min(min(bound - load_[target], warp_min(can)), load_[source] - bound);
    __syncwarp();
    hand_over(step, amount);
    hand_over(late_step, amount);
    if (lane_ == 0) {
      load_[source] -= amount;
      load_[target] += amount;
    }
    __syncwarp();
    if ((changed >> lane_ & 1u) != 0) { near_low_ = reach_of(lane_); }
    if ((changed >> (lane_ + 32) & 1u) != 0) { near_high_ = reach_of(lane_ + 32); }
    __syncwarp();
  }

private:
  struct rank_step {
    index_t from = none;
    index_t to = none;
  };
  /// Of the replicas by which a rank can hand tokens to another the lowest.
  [[nodiscard]] __device__ path_step replicas_of(rank_step const& step) const {
    if (step.from == none) { return {}; }
    path_step found;
#pragma unroll 1
    for (auto i = row_.rank_first()[step.from]; found.from == none; ++i) {
      auto const position = row_.by_rank()[i];
      if (flow_[position] > 0 && (group_ranks_[row_.holders()[position].group] >> step.to & 1u) != 0) {
        found.from = position;
      }
    }
    found.to = row_.group_first()[row_.holders()[found.from].group];
    while (row_.holders()[found.to].rank != step.to) { ++found.to; }
    return found;
  }
  /// A shortest path meets a rank, and a group, once.
  __device__ void hand_over(path_step const& step, index_t amount) const {
    if (step.from == none) { return; }
    flow_[step.from] -= amount;
    flow_[step.to] += amount;
  }
  /// The ranks that a rank can hand tokens to.
  [[nodiscard]] __device__ std::uint64_t reach_of(index_t rank) const {
    std::uint64_t ranks = 0;
    if (rank >= num_ranks_) { return ranks; }
#pragma unroll 1
    for (auto i = row_.rank_first()[rank]; i < row_.rank_first()[rank + 1]; ++i) {
      auto const position = row_.by_rank()[i];
      if (flow_[position] > 0) { ranks |= group_ranks_[row_.holders()[position].group]; }
    }
    return ranks;
  }
  [[nodiscard]] static __device__ std::uint64_t ranks_where(bool low, bool high) {
    return __ballot_sync(0xffffffffu, low) | static_cast<std::uint64_t>(__ballot_sync(0xffffffffu, high)) << 32;
  }

  std::uint64_t const* group_ranks_;
  std::uint64_t near_low_ = 0;   ///< of rank `lane`
  std::uint64_t near_high_ = 0;  ///< of rank `lane` + 32
};

/// Any number of ranks: levels in shared memory alone.
class warp_search_any : public warp_search {
public:
  __device__ explicit warp_search_any(plan_memory const& memory) : warp_search{memory}, reached_{memory.reached()} {}

  __device__ void begin() const {}
  [[nodiscard]] __device__ index_t find(index_t bound, index_t accepted) const {
#pragma unroll 1
    for (auto rank = lane_; rank < num_ranks_; rank += 32) { level_[rank] = load_[rank] > accepted ? 0 : unreached; }
    __syncwarp();
    for (index_t level = 0;; ++level) {
      bool const grows = reach_from(level);
      auto const target = grows ? lightest_below(bound, level + 1) : none;
      if (!grows || target != none) { return target; }
    }
  }
  /// All lanes look for each step; twice, because nobody keeps them.
  __device__ void hand_along(index_t target, index_t bound) const {
    auto amount = bound - load_[target];
    auto source = target;
    while (level_[source] > 0) {
      auto const step = step_before(source);
      amount = min(amount, flow_[step.from]);
      source = row_.holders()[step.from].rank;
    }
    amount = min(amount, load_[source] - bound);
#pragma unroll 1
    for (auto rank = target; rank != source;) {
      auto const step = step_before(rank);
      __syncwarp();
      if (lane_ == 0) {
        flow_[step.from] -= amount;
        flow_[step.to] += amount;
      }
      __syncwarp();
      rank = row_.holders()[step.from].rank;
    }
    if (lane_ == 0) {
      load_[source] -= amount;
      load_[target] += amount;
    }
    __syncwarp();
  }

private:
  /// Of the ranks of a level that are below the bound the lightest, of equal ones the lowest.
  [[nodiscard]] __device__ index_t lightest_below(index_t bound, index_t level) const {
    auto least = bound;
    auto lightest = unreached;
#pragma unroll 1
    for (auto rank = lane_; rank < num_ranks_; rank += 32) {
      if (level_[rank] == level && load_[rank] < least) {
        least = load_[rank];
        lightest = rank;
      }
    }
    auto const least_of_all = warp_min(least);
    if (least_of_all == bound) { return none; }
    return warp_min(least == least_of_all ? lightest : unreached);
  }
  /// The step that reaches a rank: from the lowest rank of the level before, and there the lowest position.
  [[nodiscard]] __device__ path_step step_before(index_t rank) const {
    auto const level = level_[rank] - 1;
    auto best_rank = unreached;
    auto best = unreached;
    auto best_to = unreached;
    auto const end = row_.rank_first()[rank + 1];
#pragma unroll 1
    for (auto i = row_.rank_first()[rank] + lane_; i < end; i += 32) {
      auto const to = row_.by_rank()[i];
      auto const group = row_.holders()[to].group;
#pragma unroll 1
      for (auto p = row_.group_first()[group]; p < row_.group_first()[group + 1]; ++p) {
        auto const at = static_cast<index_t>(row_.holders()[p].rank);
        if (flow_[p] <= 0 || level_[at] != level) { continue; }
        if (at < best_rank || (at == best_rank && p < best)) {
          best_rank = at;
          best = p;
          best_to = to;
        }
      }
    }
    auto const from = warp_min(best_rank == warp_min(best_rank) ? best : unreached);
    return {from, warp_min(best == from ? best_to : unreached)};
  }
  /// Each lane looks at ranks of its own that were not reached yet, and marks them once all have looked.
  [[nodiscard]] __device__ bool reach_from(index_t level) const {
    bool any = false;
#pragma unroll 1
    for (auto rank = lane_; rank < num_ranks_; rank += 32) {
      reached_[rank] = level_[rank] == unreached && can_be_reached(rank, level) ? 1 : 0;
      any = any || reached_[rank] != 0;
    }
    __syncwarp();
#pragma unroll 1
    for (auto rank = lane_; rank < num_ranks_; rank += 32) {
      if (reached_[rank] != 0) { level_[rank] = level + 1; }
    }
    __syncwarp();
    return __any_sync(0xffffffffu, any);
  }
  [[nodiscard]] __device__ bool can_be_reached(index_t rank, index_t level) const {
    auto const end = row_.rank_first()[rank + 1];
#pragma unroll 1
    for (auto i = row_.rank_first()[rank]; i < end; ++i) {
      auto const group = row_.holders()[row_.by_rank()[i]].group;
#pragma unroll 1
      for (auto p = row_.group_first()[group]; p < row_.group_first()[group + 1]; ++p) {
        if (flow_[p] > 0 && level_[row_.holders()[p].rank] == level) { return true; }
      }
    }
    return false;
  }

  index_t* reached_;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
