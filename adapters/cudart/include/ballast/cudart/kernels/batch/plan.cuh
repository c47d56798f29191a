// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_PLAN_CUH
#define BALLAST_CUDART_KERNELS_BATCH_PLAN_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/plan.cuh holds kernels: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/batch/gather.cuh>
#include <ballast/cudart/kernels/batch/outcome.cuh>
#include <ballast/cudart/kernels/batch/solve.cuh>
#include <ballast/cudart/kernels/batch/start.cuh>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Counts of all ranks -> quotas -> which of this rank's tokens go where. One block.
///
/// @tparam Search  `warp_search_64` for up to 64 ranks, `warp_search_any` for any number.
template <class Search>
__global__ void __launch_bounds__(plan_threads, 1) plan_kernel(plan_arguments const a) {
  extern __shared__ uint4 shared_chunks[];
  __shared__ plan_state state;
  auto* const shared = reinterpret_cast<std::byte*>(shared_chunks);
  plan_gather const gather{a, shared, state};
  plan_start const start{a, shared, state};
  plan_outcome const outcome{a, shared, state};
  constexpr index_t solver_threads = 32;
  bool const solves = threadIdx.x < solver_threads;

  // ---- while the kernel before still counts ----
  gather.load();
  __syncthreads();
  gather.expand();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif

  // ---- the counts of all ranks ----
  gather.add_blocks_up();
  __syncthreads();
  bool const complete = gather.gather();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();  // not before: blocks that wait take the place of those we wait for
#endif

  // ---- quotas, by one warp; the others do what needs no quotas ----
  start.begin();
  bool const balances = complete && start.is_worth_it();
  if (!solves) {
    if (threadIdx.x == solver_threads && complete) { outcome.hear_verdict(); }
    outcome.prepare(solver_threads, balances);
  } else if (balances) {
    auto balance = state.balance;
    solve<Search>(start.memory, a.v.options, balance);
    __syncwarp();
    if (threadIdx.x == 0) { state.balance = balance; }
  }
  __syncthreads();

  // ---- where this rank's tokens go ----
  if (outcome.verdict(complete, balances) == batch_verdict::exact) {
    outcome.assign();
    if (a.v.starts != nullptr) { outcome.keep(); }
  }
  if (threadIdx.x == blockDim.x - 1) { outcome.tell(complete, balances); }
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
