// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/version.hpp>

#include <benchmark/benchmark.h>

#include <string>

int main(int argc, char** argv) {
  benchmark::AddCustomContext("ballast_version", std::to_string(BALLAST_VERSION_MAJOR) + "." +
                                                     std::to_string(BALLAST_VERSION_MINOR) + "." +
                                                     std::to_string(BALLAST_VERSION_PATCH));
  benchmark::AddCustomContext("instruction_set", BALLAST_BENCH_INSTRUCTION_SET);
  benchmark::AddCustomContext("compiler", __VERSION__);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) { return 2; }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
