// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/version.hpp>

#include <benchmark/benchmark.h>

#include <array>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  // Every row five times, so that the fastest can be told from the noise; options that are given come later and win.
  std::array<std::string, 2> defaults{"--benchmark_repetitions=5", "--benchmark_min_time=0.1"};
  std::vector<char*> arguments{argv, argv + argc};
  arguments.insert(arguments.begin() + 1, {defaults[0].data(), defaults[1].data()});
  auto count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);

  benchmark::AddCustomContext("ballast_version", std::to_string(BALLAST_VERSION_MAJOR) + "." +
                                                     std::to_string(BALLAST_VERSION_MINOR) + "." +
                                                     std::to_string(BALLAST_VERSION_PATCH));
  benchmark::AddCustomContext("instruction_set", BALLAST_BENCH_INSTRUCTION_SET);
  benchmark::AddCustomContext("compiler", __VERSION__);
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) { return 2; }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
