// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_SOLVE_CUH
#define BALLAST_CUDART_KERNELS_BATCH_SOLVE_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/solve.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/batch/search.cuh>
#include <ballast/cudart/kernels/batch/warp.cuh>
#include <ballast/cudart/layout/plan_memory.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/types.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// The sweeps of a `quota_solver`, by one warp, step for step as there: what is not said here is said there. Loads and
/// flows are in shared memory, where the whole block has started them.
class warp_sweeps {
public:
  __device__ explicit warp_sweeps(plan_memory const& memory)
      : pairs_{memory.sweep_pairs()},
        class_end_{memory.row().class_end()},
        num_classes_{memory.row().sizes().num_classes},
        nobody_{shared_address(memory.nobody() + 4 * (threadIdx.x & 31u))} {}

  /// The pairs of a class share no rank, so a lane has its own two. What comes next is loaded ahead.
  __device__ void sweep(index_t number) const {
    auto const lane = static_cast<index_t>(threadIdx.x & 31u);
    auto const odd = (number + lane) & 1;
    auto const long_from = number >= first_long ? few : 0x7fffffff;
    auto i = lane;
    auto end = end_of(0);
    auto next_end = end_of(1);
    auto pair = pair_at(i, end);
#pragma unroll 1
    for (index_t c = 0; c < num_classes_; ++c) {
      auto const next = end + lane;
      auto const next_pair = pair_at(next, next_end);
      auto const end_after = end_of(c + 2);
      level_out(pair, odd, long_from);
#pragma unroll 1
      for (i += 32; i < end; i += 32) { level_out(pairs_[i], odd, long_from); }
      __syncwarp();
      i = next;
      end = next_end;
      next_end = end_after;
      pair = next_pair;
    }
  }

private:
  static constexpr index_t few = 16;
  static constexpr index_t first_long = 2;

  [[nodiscard]] __device__ __forceinline__ index_t end_of(index_t c) const {
    return c < num_classes_ ? class_end_[c] : 0;
  }
  /// Where there is none, zeros of the lane's own: to level them out changes nothing, and no lane takes another way.
  [[nodiscard]] __device__ __forceinline__ sweep_pair pair_at(index_t i, index_t end) const {
    return i < end ? pairs_[i] : sweep_pair{nobody_, nobody_ + 4, nobody_ + 8, nobody_ + 12};
  }
  static __device__ __forceinline__ void level_out(sweep_pair const& pair, index_t odd, index_t long_from) {
    auto const load_a = shared_load(pair.load_a);
    auto const load_b = shared_load(pair.load_b);
    auto const flow_a = shared_load(pair.flow_a);
    auto const flow_b = shared_load(pair.flow_b);
    auto const difference = load_a - load_b;
    auto const further = difference > long_from || difference < -long_from ? difference >> 3 : 0;
    auto const step = ((difference + odd) >> 1) + further;
    auto const moved = max(-flow_b, min(flow_a, step));
    shared_store(pair.flow_a, flow_a - moved);
    shared_store(pair.flow_b, flow_b + moved);
    shared_store(pair.load_a, load_a - moved);
    shared_store(pair.load_b, load_b + moved);
  }
  [[nodiscard]] static __device__ __forceinline__ index_t shared_load(std::uint32_t address) {
    index_t value = 0;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
  }
  static __device__ __forceinline__ void shared_store(std::uint32_t address, index_t value) {
    asm volatile("st.shared.s32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
  }

  sweep_pair const* pairs_;
  index_t const* class_end_;
  index_t num_classes_;
  std::uint32_t nobody_;
};

/// `quota_solver::solve` behind its start. One warp.
///
/// @param balance  in/out: `bound`, `max` and `total` are known.
template <class Search>
__device__ __forceinline__ void solve(plan_memory const& memory, quota_options const& options, quota_balance& balance) {
  auto const accepted = [&] { return balance.bound + (balance.bound >> options.tolerance_bits); };
  warp_sweeps const sweeps{memory};
  Search search{memory};
  while (balance.max > accepted() && balance.sweeps < options.sweeps) {
    sweeps.sweep(balance.sweeps++);
    balance.max = search.max_load();
  }
  if (balance.max <= accepted() || options.searches == 0) { return; }
  search.begin();
  while (balance.max > accepted() && balance.searches < options.searches) {
    ++balance.searches;
    auto const target = search.find(balance.bound, accepted());
    if (target >= 0) {
      search.hand_along(target, balance.bound);
      balance.max = search.max_load();
    } else {
      balance.bound = search.mean_of_reached();
    }
  }
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
