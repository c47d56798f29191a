// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_CHECK_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_CHECK_HPP

#include <ballast/cudart/error.hpp>

#include <cuda_runtime_api.h>

namespace engine {

/// @throws std::system_error naming the call
inline void check(cudaError_t result, char const* call) { ballast::cudart::to_status(result, call).or_throw(); }

}  // namespace engine

#endif
