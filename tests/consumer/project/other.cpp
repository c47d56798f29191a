// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/ballast.hpp>

ballast::index_t slots_seen_elsewhere() {
  return ballast::trivial_placement({.num_layers = 2, .num_logical = 6, .num_slots = 8}).num_slots();
}
