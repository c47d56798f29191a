// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/placement.hpp>

ballast::index_t slots_seen_elsewhere(ballast::placement const& of) { return of.num_slots(); }
