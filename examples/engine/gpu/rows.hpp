// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_ROWS_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_ROWS_HPP

#include <cuda_bf16.h>

#include <cstdint>

namespace engine {

using bf16 = __nv_bfloat16;

/// Width of queries, keys and values.
inline constexpr int attention_width = 128;

/// One token of a pass, as the host describes it.
struct token_entry {
  std::uint64_t seed = 0;      ///< its embedding depends on it alone
  std::int32_t kind = 0;       ///< of text
  std::int32_t cache_row = 0;  ///< of its request's first position
  std::int32_t position = 0;
};

/// Places that a rank's peers write to or read from, in one piece of its memory.
struct mailbox {
  std::uint32_t* counts = nullptr;        ///< [R, physical ids] rows of each rank for each
  std::uint32_t* has_counted = nullptr;   ///< [R] number of the layer whose counts are there
  std::uint32_t* has_sent = nullptr;      ///< [R] the same for rows
  std::uint32_t* has_computed = nullptr;  ///< [R] the same for what came out
  bf16* arrived = nullptr;                ///< [capacity, D]
  bf16* results = nullptr;                ///< [capacity, D]
};

/// Why what comes out of a pass must not be used.
enum class trouble : std::uint32_t {
  none = 0,
  late = 1,     ///< a peer's rows did not come; the low half says whose
  missing = 2,  ///< an id has no physical expert
};

/// One rank's memory for a pass, as kernels see it. Stays where it is, for captured graphs.
struct pass_view {
  int rank = 0;
  int num_ranks = 1;
  int num_ids = 0;     ///< physical ids of all ranks
  int ids_a_rank = 0;  ///< slots and reserved slots
  int num_reserved = 1;
  int hidden = 0;        ///< D
  int intermediate = 0;  ///< I
  int num_experts = 0;   ///< E
  int top_k = 0;         ///< k, without the shared expert
  int max_tokens = 0;    ///< T
  std::uint32_t capacity = 0;
  std::uint64_t timeout_ns = 0;
  mailbox* peers = nullptr;       ///< [R], this rank's own among them
  std::uint32_t* live = nullptr;  ///< [R] 0 for a rank that is lost

  std::int32_t* num_tokens = nullptr;    ///< n of this pass
  token_entry* tokens = nullptr;         ///< [T]
  float* rows = nullptr;                 ///< [T, D]
  bf16* normalised = nullptr;            ///< [T, D]
  bf16* projected = nullptr;             ///< [T, 3 A] queries, keys, values
  bf16* attended = nullptr;              ///< [T, A]
  float* logits = nullptr;               ///< [T, E]
  std::int32_t* logical = nullptr;       ///< [T, k + 1]
  std::int32_t* physical = nullptr;      ///< [T, k + 1]
  float* weights = nullptr;              ///< [T, k + 1]
  std::uint32_t* places = nullptr;       ///< [T, k + 1] row in the mailbox of the rank that computes it
  bf16* inner = nullptr;                 ///< [capacity, I]
  std::uint64_t* outputs = nullptr;      ///< [T]
  std::uint32_t* epoch = nullptr;        ///< layers exchanged so far
  std::uint32_t* counts = nullptr;       ///< [physical ids] 0 between layers
  std::uint32_t* cursors = nullptr;      ///< [physical ids] 0 between layers
  std::uint32_t* blocks_done = nullptr;  ///< [3] 0 between kernels
  std::uint32_t* tiles_taken = nullptr;  ///< [2] of the two products of a layer, 0 between layers
  std::uint32_t* begins = nullptr;       ///< [ids_a_rank + 1] where a slot's rows begin in the mailbox
  std::uint64_t* work = nullptr;         ///< [L]
  std::int32_t* even = nullptr;          ///< [T, k] physical ids, alike many of each, in no order: for `limit_modes`
  unsigned long long* chosen = nullptr;  ///< [L, E] or null
  std::uint32_t* failed = nullptr;       ///< a `trouble` in the high half, and what it is about
};

}  // namespace engine

#endif
