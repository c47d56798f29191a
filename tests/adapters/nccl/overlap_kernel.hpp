// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_ADAPTERS_NCCL_OVERLAP_KERNEL_HPP
#define BALLAST_TESTS_ADAPTERS_NCCL_OVERLAP_KERNEL_HPP

#include <cuda_runtime_api.h>

namespace ballast_test {

/// What an all-to-all kernel does to the card: take every multiprocessor and keep it until the other rank's kernel of
/// the same pass is there too. Sets `gave_up` when that one does not come.
void meet_on_all_multiprocessors(cudaStream_t stream, unsigned* arrived, unsigned pass, int* gave_up);

}  // namespace ballast_test

#endif
