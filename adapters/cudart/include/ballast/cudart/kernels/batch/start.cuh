// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_START_CUH
#define BALLAST_CUDART_KERNELS_BATCH_START_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/start.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/batch/block.cuh>
#include <ballast/cudart/kernels/batch/warp.cuh>
#include <ballast/types.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// The flow that sweeps start from: every expert split by the shares in force, or as in an earlier batch.
class plan_start : public plan_block {
public:
  using plan_block::plan_block;

  /// Loads, flows, and the bound that loads and their mean give. Everybody calls; the first warp has the results, the
  /// others know `state.tokens`.
  __device__ void begin() const {
    auto const& sizes = row.sizes();
    auto* const stays = memory.level();  // what cannot leave a rank; searches use it later
    index_t tokens = 0;
    index_t tiles = 0;
    for_threads(sizes.num_replicas - sizes.num_movable, [&](index_t i) {
      auto const at = row.holders()[sizes.num_movable + i];
      auto const load = units(at.expert);
      if (load != 0) { atomicAdd(&stays[at.rank], load); }
      tiles += load;
      tokens += memory.tokens()[at.expert];
    });
    // What the shares in force would give is told in either case.
    bool const from_quotas = starts_from_quotas();
    for_threads(sizes.num_groups, [&](index_t group) {
      auto const expert = row.holders()[row.group_first()[group]].expert;
      tokens += memory.tokens()[expert];
      tiles += units(expert);
#pragma unroll 1
      for (bool last = !from_quotas;; last = true) {
        split(group, units(expert), last && from_quotas ? memory.start() : row.share(),
              last ? memory.load() : memory.reached());
        if (last) { break; }
      }
    });
    tokens = warp_sum(tokens);
    tiles = warp_sum(tiles);
    if ((threadIdx.x & 31u) == 0 && tokens != 0) {
      atomicAdd(&state.tokens, static_cast<std::uint32_t>(tokens));
      atomicAdd(&state.balance.total, tiles);
    }
    __syncthreads();
    if (threadIdx.x >= 32) { return; }
    index_t most_stays = 0;
    index_t most = 0;
    index_t most_resident = 0;
#pragma unroll 1
    for (auto rank = static_cast<index_t>(threadIdx.x); rank < v.shape.num_ranks; rank += 32) {
      auto const load = memory.load()[rank] + stays[rank];
      memory.load()[rank] = load;
      most_stays = max(most_stays, stays[rank]);
      most = max(most, load);
      most_resident = max(most_resident, memory.reached()[rank] + stays[rank]);
    }
    most_stays = warp_max(most_stays);
    most = warp_max(most);
    most_resident = from_quotas ? warp_max(most_resident) : most;
    if (threadIdx.x == 0) {
      auto const live = sizes.num_live_ranks;
      state.balance.bound = max(most_stays, state.balance.total / live + (state.balance.total % live != 0 ? 1 : 0));
      state.balance.max = most;
      state.balance.resident = most_resident;
    }
    __syncwarp();
  }
  /// Whether there is something to balance, as far as counts tell. Everybody knows the same, behind `begin`.
  [[nodiscard]] __device__ bool is_worth_it() const {
    return state.unlike == 0 && state.min_tokens != ~0u && state.tokens >= state.min_tokens && state.tokens > 0;
  }

private:
  /// @param part   [movable] of the expert's tiles, in units of 1 / `share_one`.
  /// @param loads  in/out: [R]
  __device__ void split(index_t group, index_t load, index_t const* part, index_t* loads) const {
    auto const end = row.group_first()[group + 1];
    auto rest = load;
#pragma unroll 1
    for (auto position = row.group_first()[group]; position < end; ++position) {
      auto const wanted =
          static_cast<index_t>(static_cast<std::uint64_t>(load) * static_cast<std::uint64_t>(part[position]) >> 30);
      auto const taken = position + 1 == end ? rest : wanted;
      rest -= taken;
      memory.flow()[position] = taken;
      if (taken != 0) { atomicAdd(&loads[row.holders()[position].rank], taken); }
    }
  }
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
