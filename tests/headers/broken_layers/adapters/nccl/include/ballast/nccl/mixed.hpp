// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_MIXED_HPP
#define BALLAST_NCCL_MIXED_HPP

#include <mpi.h>

inline int mixed(int one) {
  // clang-format off
  return [&,
          two = one] { return one + two; }();
  // clang-format on
}

#endif
