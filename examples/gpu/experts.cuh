// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_GPU_EXPERTS_CUH
#define BALLAST_EXAMPLES_GPU_EXPERTS_CUH

#include <ballast/types.hpp>

#include <cstdint>

// Experts whose weights tell which expert they are, and a kernel that computes with them: where a token was sent to the
// wrong slot, or a slot holds the wrong bytes, the output is not what the host expects.

namespace gpu_example {

using ballast::index_t;

/// An expert of one layer has two tensors, one larger than the other.
inline constexpr int num_tensors = 2;
/// 32-bit words of one expert in a tensor.
[[nodiscard]] __host__ __device__ constexpr std::uint32_t words_of(int tensor) { return tensor == 0 ? 16384 : 8192; }

/// One word of the weights; no two experts, layers or tensors have the same words.
[[nodiscard]] __host__ __device__ constexpr std::uint32_t weight(index_t layer, int tensor, index_t expert,
                                                                 std::uint32_t word) {
  auto x =
      static_cast<std::uint32_t>((layer * num_tensors + tensor) * 4096 + expert) * 0x9e3779b1u + word * 0x85ebca77u;
  x = (x ^ x >> 15) * 0x2c1b3c6du;
  x = (x ^ x >> 12) * 0x297a2d39u;
  return x ^ x >> 15;
}

/// What an expert makes of a token: a product with a vector that is 1 in 32 places of each tensor and 0 elsewhere. The
/// places go with the token, so that the tokens of a pass together read all of an expert that many of them go to.
///
/// @param word_at  `word_at(tensor, word)` of the expert's weights.
template <class WordAt>
[[nodiscard]] __host__ __device__ std::int64_t output_of(std::uint32_t token, WordAt word_at) {
  constexpr std::uint32_t num_places = 32;
  std::int64_t sum = 0;
  for (int tensor = 0; tensor < num_tensors; ++tensor) {
    for (std::uint32_t i = 0; i < num_places; ++i) {
      sum += word_at(tensor, (token * num_places + i) % words_of(tensor));
    }
  }
  return sum;
}

/// What the output for a token must be.
[[nodiscard]] __host__ __device__ inline std::int64_t right_output(index_t layer, index_t expert, std::uint32_t token) {
  return output_of(token, [=](int tensor, std::uint32_t word) { return weight(layer, tensor, expert, word); });
}

/// One layer of a pass on one rank. The rank sees all tokens and computes those that were sent to its own slots.
struct expert_work {
  std::int32_t const* physical = nullptr;        ///< [T, k] physical expert of each of a token's choices
  std::uint32_t num_choices = 0;                 ///< T * k
  std::uint32_t top_k = 1;                       ///< k
  std::uint32_t const* slots[num_tensors] = {};  ///< [S, words_of(tensor)] the weights
  index_t first_physical = 0;                    ///< physical expert in this rank's first slot
  index_t num_slots = 0;                         ///< S
  std::int64_t* outputs = nullptr;               ///< [T, k] out: 0 for what other ranks compute
};

[[nodiscard]] __host__ __device__ inline std::int64_t compute(expert_work const& work, std::uint32_t choice) {
  auto const slot = work.physical[choice] - work.first_physical;
  if (slot < 0 || slot >= work.num_slots) { return 0; }
  return output_of(choice / work.top_k, [&](int tensor, std::uint32_t word) {
    return work.slots[tensor][static_cast<std::uint32_t>(slot) * words_of(tensor) + word];
  });
}

static __global__ void run_experts(expert_work const work) {
  auto const choice = blockIdx.x * blockDim.x + threadIdx.x;
  if (choice < work.num_choices) { work.outputs[choice] = compute(work, choice); }
}

}  // namespace gpu_example

#endif
