// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A program of a .cpp and a .cu that use the same inline functions. The linker keeps one of each, so both compilers
// must mean the same by it, down to the layout of closures.
#include "serve.hpp"

#include <cstdio>
#include <exception>

namespace {
struct in_cpp {};
}  // namespace

int main() {
  try {
    ballast::in_process_group{ballast_test::num_ranks}.run([](ballast::in_process_endpoint& endpoint) {
      auto const here = ballast_test::serve<in_cpp>(endpoint);
      ballast_test::expect(here == ballast_test::serve_in_cu(endpoint), "both units end with the same placement");
    });
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
