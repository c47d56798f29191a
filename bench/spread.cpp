// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Several runs of a benchmark program as one table, with the noise of each figure:
//   ballast-bench-spread RUN.json RUN.json ...
#include "support/spread.hpp"

#include <nlohmann/json.hpp>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  try {
    std::vector<nlohmann::json> runs;
    for (int i = 1; i < argc; ++i) {
      std::ifstream file{argv[i]};
      if (!file) { throw std::runtime_error{std::string{argv[i]} + ": cannot be read"}; }
      runs.push_back(nlohmann::json::parse(file));
    }
    if (runs.empty()) { throw std::runtime_error{"usage: ballast-bench-spread RUN.json RUN.json ..."}; }
    std::cout << "Least, median and most of " << runs.size()
              << " runs of the program; one number where all are alike.\n\n";
    ballast_bench::spread_table{runs}.write(std::cout);
    return 0;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
