// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The kernel alone: nvcc takes three times as long as the C++ compiler for the ranks around it, in overlap_ranks.cpp.
#include <ballast/cudart/error.hpp>

#include "overlap_kernel.hpp"

#include <cooperative_groups.h>

namespace ballast_test {

namespace {

__global__ void meet_kernel(unsigned* arrived, unsigned pass, long long patience_cycles, int* gave_up) {
  auto const grid = cooperative_groups::this_grid();
  if (grid.thread_rank() == 0) {
    atomicAdd_system(arrived, 1u);
    auto const begin = clock64();
    while (*static_cast<unsigned volatile*>(arrived) < 2 * pass) {
      if (clock64() - begin > patience_cycles) {
        *gave_up = 1;
        break;
      }
    }
    __threadfence_system();
  }
  grid.sync();
}

void check(cudaError_t result, char const* call) { ballast::cudart::to_status(result, call).or_throw(); }

}  // namespace

void meet_on_all_multiprocessors(cudaStream_t stream, unsigned* arrived, unsigned pass, int* gave_up) {
  constexpr int threads = 1024;
  int device = 0;
  int multiprocessors = 0;
  int blocks_each = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, meet_kernel, threads, 0),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  long long patience_cycles = 20'000'000'000;
  void* arguments[] = {&arrived, &pass, &patience_cycles, &gave_up};
  check(cudaLaunchCooperativeKernel(meet_kernel, static_cast<unsigned>(multiprocessors * blocks_each), threads,
                                    arguments, 0, stream),
        "cudaLaunchCooperativeKernel");
}

}  // namespace ballast_test
