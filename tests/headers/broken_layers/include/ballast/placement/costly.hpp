// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_COSTLY_HPP
#define BALLAST_PLACEMENT_COSTLY_HPP

#include "costly_detail.hpp"

#include <range/v3/view/chunk.hpp>

#include <functional>

// Fine: [&one] { return one; }, and in a comment even [&] { return one; }.
inline int costly(int one, int two) {
  auto const both = [&one, &two] { return one + two; };
  auto const any = [&] { return one; };
  return both() + any() + [=, &one] { return one + two; }();
}

#endif
