// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_GPU_EMPTY_RACE_CUH
#define BALLAST_BENCH_GPU_EMPTY_RACE_CUH

#include "support.hpp"

#include <benchmark/benchmark.h>

#include <vector>

namespace ballast_bench {

template <class = void>
__global__ void empty_kernel() {}

/// Replay a graph of launches and, in turn with it, one of empty kernels.
inline void race_with_empty(benchmark::State& state, cudaStream_t stream, launch_graph const& graph) {
  launch_graph const empty{stream, [stream](int) { empty_kernel<><<<1, 32, 0, stream>>>(); }};
  stopwatch watch;
  std::vector<double> times;
  std::vector<double> empty_times;
  for (int i = 0; i < 5; ++i) {
    static_cast<void>(graph.time(stream, watch));
    static_cast<void>(empty.time(stream, watch));
  }
  for (auto _ : state) {
    empty_times.push_back(empty.time(stream, watch));
    times.push_back(graph.time(stream, watch));
    state.SetIterationTime(times.back() * 1e-6);
  }
  state.counters["median_us"] = median(times);
  state.counters["p90_us"] = quantile(times, 0.9);
  state.counters["empty_us"] = median(empty_times);
  state.counters["x_empty"] = median(times) / median(empty_times);
}

}  // namespace ballast_bench

#endif
