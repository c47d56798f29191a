// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/ballast.hpp>

#include <cstdio>

ballast::index_t slots_seen_elsewhere(ballast::placement const& of);

int main() {
  auto const initial = ballast::trivial_placement({.num_layers = 2, .num_logical = 6, .num_slots = 8});
  auto const here = initial.num_slots();
  std::printf("ballast %d.%d.%d: %d slots\n", BALLAST_VERSION_MAJOR, BALLAST_VERSION_MINOR, BALLAST_VERSION_PATCH,
              here);
  return here == slots_seen_elsewhere(initial) ? 0 : 1;
}
