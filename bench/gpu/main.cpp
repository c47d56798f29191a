// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "markdown_reporter.hpp"
#include "rank_processes.hpp"

#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

[[nodiscard]] std::string describe_device() {
  cudaDeviceProp device{};
  int runtime = 0;
  int driver = 0;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || cudaRuntimeGetVersion(&runtime) != cudaSuccess ||
      cudaDriverGetVersion(&driver) != cudaSuccess) {
    return {};
  }
  char text[512];
  std::snprintf(text, sizeof text, "%s, %d multiprocessors, %zu MiB; CUDA runtime %d.%d, driver for CUDA %d.%d",
                device.name, device.multiProcessorCount, device.totalGlobalMem >> 20, runtime / 1000,
                runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
  return text;
}

}  // namespace

// With BALLAST_BENCH_TABLE=FILE, the results are also written there as a table.
int main(int argc, char** argv) {
  ballast_bench::become_rank_if_asked(argc, argv);
  auto const device = describe_device();
  if (device.empty()) {
    std::puts("skipped: no CUDA device");
    return 77;
  }
  benchmark::AddCustomContext("device", device);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) { return 2; }
  ballast_bench::markdown_reporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  if (auto const* const file = std::getenv("BALLAST_BENCH_TABLE"); file != nullptr) { reporter.write(file, device); }
  benchmark::Shutdown();
}
