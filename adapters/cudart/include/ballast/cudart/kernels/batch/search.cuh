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
      if (level_[rank] == far) { continue; }
      sum += load_[rank];
      ++count;
    }
    for (int offset = 16; offset > 0; offset /= 2) { sum += __shfl_xor_sync(0xffffffffu, sum, offset); }
    auto const ranks = static_cast<std::int64_t>(warp_sum(count));
    return static_cast<index_t>((sum + ranks - 1) / ranks);
  }

protected:
  static constexpr index_t none = -1;
  static constexpr index_t far = 0x7fffffff;

  /// Of the ranks of a level that are below the bound the lightest, of equal ones the lowest.
  [[nodiscard]] __device__ index_t lightest_below(index_t bound, index_t level) const {
    auto least = bound;
    auto lightest = far;
#pragma unroll 1
    for (auto rank = lane_; rank < num_ranks_; rank += 32) {
      if (level_[rank] == level && load_[rank] < least) {
        least = load_[rank];
        lightest = rank;
      }
    }
    auto const least_of_all = warp_min(least);
    if (least_of_all == bound) { return none; }
    return warp_min(least == least_of_all ? lightest : far);
  }

  /// Hand tokens along the path to `target`: all lanes look for its steps, each of which one lane keeps.
  /// @param visit  called with the rank that a step reaches, once flows have changed.
  template <class Visit>
  __device__ void hand_along(index_t target, index_t bound, Visit visit) const {
    auto amount = bound - load_[target];
    auto source = target;
    index_t from = none;  // of this lane's step
    index_t to = none;
    index_t steps = 0;
    for (; level_[source] > 0; ++steps) {
      auto const step = step_before(source);
      amount = min(amount, flow_[step.from]);
      if (lane_ == (steps & 31)) {
        from = step.from;
        to = step.to;
      }
      source = row_.holders()[step.from].rank;
      if ((steps & 31) == 31 && level_[source] > 0) { break; }  // longer paths: see `hand_along_slowly`
    }
    if (level_[source] > 0) { return hand_along_slowly(target, bound, visit); }
    amount = min(amount, load_[source] - bound);
    __syncwarp();
    if (from != none) {  // a shortest path meets a rank, and a group, once
      flow_[from] -= amount;
      flow_[to] += amount;
    }
    if (lane_ == 0) {
      load_[source] -= amount;
      load_[target] += amount;
    }
    __syncwarp();
#pragma unroll 1
    for (index_t i = 0; i < steps; ++i) {
      visit(static_cast<index_t>(row_.holders()[__shfl_sync(0xffffffffu, to, i)].rank));
    }
    visit(source);
  }

private:
  struct path_step {
    index_t from;
    index_t to;
  };
  /// The step that reaches a rank: from the lowest rank of the level before, and there the lowest position.
  [[nodiscard]] __device__ path_step step_before(index_t rank) const {
    auto const level = level_[rank] - 1;
    auto best = far;  // rank and position of who hands over
    auto best_to = far;
    auto const end = row_.rank_first()[rank + 1];
#pragma unroll 1
    for (auto i = row_.rank_first()[rank] + lane_; i < end; i += 32) {
      auto const to = row_.by_rank()[i];
      auto const group = row_.holders()[to].group;
#pragma unroll 1
      for (auto p = row_.group_first()[group]; p < row_.group_first()[group + 1]; ++p) {
        auto const at = static_cast<index_t>(row_.holders()[p].rank);
        if (flow_[p] <= 0 || level_[at] != level) { continue; }
        auto const key = best == far ? far : static_cast<index_t>(row_.holders()[best].rank);
        if (at < key || (at == key && p < best)) {
          best = p;
          best_to = to;
        }
      }
    }
    auto const lowest_rank = warp_min(best == far ? far : static_cast<index_t>(row_.holders()[best].rank));
    bool const is_lowest = best != far && static_cast<index_t>(row_.holders()[best].rank) == lowest_rank;
    auto const from = warp_min(is_lowest ? best : far);
    return {from, warp_min(best == from ? best_to : far)};
  }
  /// Paths of more than 32 steps: walk twice.
  template <class Visit>
  __device__ void hand_along_slowly(index_t target, index_t bound, Visit visit) const {
    auto amount = bound - load_[target];
    auto source = target;
    while (level_[source] > 0) {
      auto const step = step_before(source);
      amount = min(amount, flow_[step.from]);
      source = row_.holders()[step.from].rank;
    }
    amount = min(amount, load_[source] - bound);
    // Steps are looked for anew: flows of earlier ones may have changed, but only on ranks of other levels.
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
#pragma unroll 1
    for (auto rank = index_t{0}; rank < num_ranks_; ++rank) { visit(rank); }
  }

protected:
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
    auto level_low = (reached >> lane_ & 1u) != 0 ? 0 : far;
    auto level_high = (reached >> (lane_ + 32) & 1u) != 0 ? 0 : far;
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
        auto const least = warp_min(min(in_low != 0 ? load_low : far, in_high != 0 ? load_high : far));
        auto const lightest = ranks_where(in_low != 0 && load_low == least, in_high != 0 && load_high == least);
        target = __ffsll(static_cast<long long>(lightest)) - 1;
      }
    }
    if (lane_ < num_ranks_) { level_[lane_] = level_low; }
    if (lane_ + 32 < num_ranks_) { level_[lane_ + 32] = level_high; }
    __syncwarp();
    return target;
  }
  __device__ void hand_along(index_t target, index_t bound) {
    std::uint64_t changed = 0;
    warp_search::hand_along(target, bound, [&](index_t rank) { changed |= std::uint64_t{1} << rank; });
    if ((changed >> lane_ & 1u) != 0) { near_low_ = reach_of(lane_); }
    if ((changed >> (lane_ + 32) & 1u) != 0) { near_high_ = reach_of(lane_ + 32); }
    __syncwarp();
  }

private:
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

/// Any number of ranks: levels in shared memory.
class warp_search_any : public warp_search {
public:
  using warp_search::warp_search;

  __device__ void begin() const {}
  [[nodiscard]] __device__ index_t find(index_t bound, index_t accepted) const {
#pragma unroll 1
    for (auto rank = lane_; rank < num_ranks_; rank += 32) { level_[rank] = load_[rank] > accepted ? 0 : far; }
    __syncwarp();
    for (index_t level = 0;; ++level) {
      bool const grows = reach_from(level);
      auto const target = grows ? lightest_below(bound, level + 1) : none;
      if (!grows || target != none) { return target; }
    }
  }
  __device__ void hand_along(index_t target, index_t bound) const {
    warp_search::hand_along(target, bound, [](index_t) {});
  }

private:
  [[nodiscard]] __device__ bool reach_from(index_t level) const {
    bool any = false;
#pragma unroll 1
    for (auto position = lane_; position < row_.sizes().num_movable; position += 32) {
      auto const at = row_.holders()[position];
      if (flow_[position] <= 0 || level_[at.rank] != level) { continue; }
#pragma unroll 1
      for (auto other = row_.group_first()[at.group]; other < row_.group_first()[at.group + 1]; ++other) {
        auto const rank = row_.holders()[other].rank;
        if (level_[rank] != far) { continue; }
        level_[rank] = level + 1;  // whoever else reaches it now writes the same
        any = true;
      }
    }
    __syncwarp();
    return __any_sync(0xffffffffu, any);
  }
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
