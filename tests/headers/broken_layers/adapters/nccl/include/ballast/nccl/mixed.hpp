// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_MIXED_HPP
#define BALLAST_NCCL_MIXED_HPP

#include <mpi.h>

inline int mixed(int one) {
  return [&,
          two = one] { return one + two; }();
}

#endif
