// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_BLOCK_CUH
#define BALLAST_CUDART_KERNELS_BATCH_BLOCK_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/block.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/batch/sources.cuh>
#include <ballast/cudart/layout/batch_view.hpp>
#include <ballast/cudart/layout/plan_memory.hpp>
#include <ballast/cudart/record_view.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Everything that the plan of a batch and layer needs.
struct plan_arguments {
  batch_view v;
  record_view record;                 ///< this rank's counts are added there; `pass` null: they are not
  index_t const* gathered = nullptr;  ///< [R, E] counts that the engine has exchanged; null: ours, by the boards
  index_t layer = 0;
  std::uint32_t num_blocks = 1;  ///< of `count_kernel`
};

/// Threads of the block that plans.
inline constexpr unsigned plan_threads = 512;

/// What the threads of the block tell each other of a batch.
struct plan_state {
  std::uint32_t tag;
  batch_control control;
  batch_statistics statistics;
  std::uint32_t tokens;        ///< of all ranks
  std::uint32_t min_tokens;    ///< of the rank that asks for most; all ones: a rank does not balance
  std::uint32_t min_gain_ppm;  ///< of the rank that asks for most
  std::uint32_t unlike;        ///< 1: a rank's settings or placement differ from ours
  std::uint32_t start;         ///< the batch that this rank could start from; 0: none
  std::uint32_t starts_apart;  ///< 1: not all ranks could start from that one
  std::uint32_t waited;        ///< nanoseconds for the last rank's counts
  unsigned long long missing;  ///< one bit for each rank whose counts did not come
  batch_verdict judged;        ///< for all ranks: whether some had to give the batch up
  quota_balance balance;
};

/// As loads and stores of shared memory want it.
[[nodiscard]] __device__ __forceinline__ std::uint32_t shared_address(void const* at) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(at));
}

/// Call `visit(i)` for i in [0, count), dealt to the threads of the block; those before `first` get none.
template <class Visit>
__device__ __forceinline__ void for_threads(index_t count, Visit visit, index_t first = 0) {
  auto const thread = static_cast<index_t>(threadIdx.x);
  if (thread < first) { return; }
#pragma unroll 1
  for (auto i = thread - first; i < count; i += static_cast<index_t>(blockDim.x) - first) { visit(i); }
}

/// The shared memory of a block, the layer's row and the arguments, for the stages of a plan.
struct plan_block {
  plan_arguments const& a;
  batch_view const& v;
  plan_memory memory;
  quota_row row;  ///< the copy
  plan_state& state;

  __device__ plan_block(plan_arguments const& arguments, std::byte* shared, plan_state& known)
      : a{arguments}, v{arguments.v}, memory{arguments.v.layout, shared}, row{memory.row()}, state{known} {}

  [[nodiscard]] __device__ index_t units(index_t expert) const {
    auto const tokens = memory.tokens()[expert];
    auto const tile = v.options.tile;
    return tile == 1 ? tokens : tokens / tile + (tokens % tile != 0 ? 1 : 0);
  }
  [[nodiscard]] __device__ bool exchanges() const { return v.boards != nullptr && a.gathered == nullptr; }

  /// All ranks' tokens of an expert, where they came from.
  [[nodiscard]] __device__ source_counts counts_of(index_t expert) const {
    if (a.gathered != nullptr) { return {a.gathered + expert, v.shape.num_logical}; }
    if (v.boards == nullptr) { return {memory.own() + expert, 0}; }
    auto const board = v.board(v.rank);
    // Word w of a message is the low half of the w-th eight bytes.
    auto const* const words = reinterpret_cast<index_t const*>(board.source(state.tag, 0));
    return {words + 4 * count_header::lines + 2 * expert, 4 * board.lines_per_source()};
  }

  /// What is as old as the placement, or as the last batch: it does not wait for the kernel before.
  __device__ void load() const {
    auto const* const from = reinterpret_cast<uint4 const*>(v.row(a.layer).bytes());
    auto* const to = reinterpret_cast<uint4*>(memory.row().bytes());
    auto const chunks = static_cast<index_t>(v.layout.row.entries / sizeof(uint4));
#pragma unroll 4
    for (auto i = static_cast<index_t>(threadIdx.x); i < chunks; i += static_cast<index_t>(blockDim.x)) {
      to[i] = from[i];
    }
    for_threads(v.shape.num_logical + 1, [&](index_t expert) {
      memory.own()[expert] = 0;
      memory.tokens()[expert] = 0;
    });
    for_threads(v.shape.num_ranks, [&](index_t rank) {
      memory.load()[rank] = 0;
      memory.level()[rank] = 0;
      memory.reached()[rank] = 0;
    });
    for_threads(4 * 32, [&](index_t i) { memory.nobody()[i] = 0; });
    if (threadIdx.x == 0) {
      state = {};
      state.tag = *v.tag;
      state.control = *v.control;
      state.statistics = v.statistics[a.layer];
    }
    if (v.starts != nullptr) { load_start(); }
  }
  __device__ void load_start() const {
    auto const* const from = v.start_parts + static_cast<std::ptrdiff_t>(a.layer) * v.shape.max_movable();
    for_threads(v.shape.max_movable(), [&](index_t position) { memory.start()[position] = from[position]; });
    if (threadIdx.x != 0) { return; }
    auto const start = v.starts[a.layer];
    state.start = start.version == v.row(a.layer).sizes().version ? start.batch : 0;
  }
  /// Whether sweeps start from the quotas of an earlier batch: all ranks have those of the same one.
  [[nodiscard]] __device__ bool starts_from_quotas() const { return state.start != 0 && state.starts_apart == 0; }
  /// What the solver wants to have at hand, behind `load`.
  __device__ void expand() const {
    for_threads(row.sizes().num_pairs, [&](index_t i) {
      auto const pair = row.pairs()[i];
      memory.sweep_pairs()[i] = {shared_address(memory.flow() + pair.a), shared_address(memory.flow() + pair.b),
                                 shared_address(memory.load() + pair.rank_a),
                                 shared_address(memory.load() + pair.rank_b)};
    });
    if (v.shape.num_ranks > 64) { return; }
    for_threads(row.sizes().num_groups, [&](index_t group) {
      std::uint64_t ranks = 0;
#pragma unroll 1
      for (auto position = row.group_first()[group]; position < row.group_first()[group + 1]; ++position) {
        ranks |= std::uint64_t{1} << row.holders()[position].rank;
      }
      memory.group_ranks()[group] = ranks;
    });
  }
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
