// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Feed the kept corpus to the fuzz targets, every file and every beginning of it: what a fuzzer once found stays found.
#include "placement_file.hpp"
#include "state_machine.hpp"
#include "trace_file.hpp"
#include "transfer_plan.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

namespace {

struct target {
  char const* name;
  void (*run)(std::uint8_t const*, std::size_t);
};
constexpr target targets[] = {{"placement_file", ballast_fuzz::placement_file},
                              {"state_machine", ballast_fuzz::state_machine},
                              {"trace_file", ballast_fuzz::trace_file},
                              {"transfer_plan", ballast_fuzz::transfer_plan}};

int replay(std::filesystem::path const& folder, target const& on) {
  int files = 0;
  for (auto const& entry : std::filesystem::directory_iterator{folder}) {
    std::fprintf(stderr, "%s\n", entry.path().c_str());  // the last line names the input that broke a promise
    std::ifstream file{entry.path(), std::ios::binary};
    std::vector<char> const text{std::istreambuf_iterator<char>{file}, {}};
    std::vector<std::uint8_t> const bytes{text.begin(), text.end()};
    // In a buffer of its own, so that the address sanitizer sees what is read behind its end.
    for (std::size_t size = 0; size <= bytes.size(); ++size) {
      std::vector<std::uint8_t> const beginning(bytes.data(), bytes.data() + size);
      on.run(beginning.data(), beginning.size());
    }
    ++files;
  }
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: replay-corpus FOLDER\n", stderr);
    return 2;
  }
  for (auto const& on : targets) {
    if (replay(std::filesystem::path{argv[1]} / on.name, on) == 0) {
      std::fprintf(stderr, "no inputs for %s\n", on.name);
      return 1;
    }
  }
  return 0;
}
