// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_LIMITS_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_LIMITS_HPP

namespace engine {

// What the kernels have room for: registers of a warp, and shared memory of a block.
inline constexpr int most_experts = 512;
inline constexpr int most_choices = 32;       // k
inline constexpr int most_slots = 1024;       // of a rank, with the reserved one
inline constexpr int most_ids = 6144;         // physical, of all ranks
inline constexpr int most_positions = 12288;  // of a request
inline constexpr int tile_columns = 128;
inline constexpr int tile_depth = 64;

}  // namespace engine

#endif
