// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// All that FindNCCL.cmake reads of a header that is too old.
#define NCCL_MAJOR 2
#define NCCL_MINOR 10
#define NCCL_PATCH 3
