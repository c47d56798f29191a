// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_PASS_KERNELS_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_PASS_KERNELS_HPP

#include "rows.hpp"

#include <cuda_runtime_api.h>

#include <cstdint>

// What a pass does between its dense products, enqueued. Every row depends on itself and its request's earlier ones
// alone, to the last bit.

namespace engine {

/// Where the kernels of a rank run.
struct pass_stream {
  cudaStream_t stream = nullptr;
  int multiprocessors = 1;
  int padded_tokens = 0;  ///< rows that the pass has room for, at most T
};

/// Weights that are the same on every rank are made where they are used: they depend on the seed alone.
/// Numbers of mean 0 and variance `gain` * `gain` / `fan_in`.
void fill_weights(cudaStream_t stream, std::uint64_t seed, int fan_in, float gain, bf16* out, std::size_t count);

/// What the host and the device tell each other in a pass, in pinned memory that kernels read and write. Copies would
/// not do: those of one rank may stand behind those of another, which wait for a pass that waits for the first.
struct pass_letters {
  std::int32_t const* num_tokens = nullptr;  ///< n
  token_entry const* tokens = nullptr;       ///< [T]
  std::uint32_t* failed = nullptr;
  std::uint64_t* work = nullptr;     ///< [L]
  std::uint64_t* outputs = nullptr;  ///< [T]
  std::uint64_t* chosen = nullptr;   ///< [L, E] or null
};
/// Read what the host has written, and forget what was chosen.
void enqueue_fetch(pass_stream const& on, pass_view const& v, pass_letters const& letters, int num_layers);
/// Write what the host waits for.
void enqueue_answer(pass_stream const& on, pass_view const& v, pass_letters const& letters, int num_layers);

/// rows = embeddings of the tokens.
void enqueue_embed(pass_stream const& on, pass_view const& v);
/// normalised = rows / their root mean square.
void enqueue_normalise(pass_stream const& on, pass_view const& v);
/// Keep the new keys and values, then attended = softmax(queries keys) values over each request's positions so far.
/// @param cache  [cache rows, 2 A] of the layer
void enqueue_attend(pass_stream const& on, pass_view const& v, bf16* cache, int longest);
/// logical, weights = the k largest of logits + bias of the token's kind, and the shared expert.
/// @param bias  [kinds, E] of the layer
void enqueue_choose(pass_stream const& on, pass_view const& v, float const* bias);
/// physical = drawn, whatever was chosen: alike many on every slot.
/// @param keeps_experts  on every rank only, and slots of a rank by what was chosen
void enqueue_perfect_routing(pass_stream const& on, pass_view const& v, bool keeps_experts);

/// Tell all ranks how many rows they get, and from whom, then send them.
/// @param physical  [T, k + 1]
void enqueue_exchange(pass_stream const& on, pass_view const& v, std::int32_t const* physical, int layer);
/// What has arrived goes through the experts of this rank's slots.
/// @param gate_up  [slots, 2 I, D] gate and up taking turns by eight rows
/// @param down     [slots, D, I]
void enqueue_experts(pass_stream const& on, pass_view const& v, bf16 const* gate_up, bf16 const* down);
/// rows += what came out, in the order of each row's choices.
void enqueue_combine(pass_stream const& on, pass_view const& v, std::int32_t const* physical);
/// outputs = bits of the rows.
void enqueue_outputs(pass_stream const& on, pass_view const& v);
/// Shared memory for the tiles. @throws std::system_error
void prepare_kernels();

}  // namespace engine

#endif
