// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_REMAP_CUH
#define BALLAST_CUDART_KERNELS_BATCH_REMAP_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/remap.cuh holds kernels: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/batch/count.cuh>
#include <ballast/cudart/kernels/launch.cuh>
#include <ballast/cudart/layout/batch_view.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// What the lookup reads of a batch and layer.
struct batch_tables {
  quota_entry const* entries = nullptr;        ///< [E]
  std::uint32_t const* block_first = nullptr;  ///< [blocks] rows of `count_stride`
  batch_verdict const* verdict = nullptr;
  index_t const* ends = nullptr;      ///< [movable]
  index_t const* physical = nullptr;  ///< [movable]
};

/// The replica that takes the token with this ordinal of its expert.
[[nodiscard]] __device__ __forceinline__ index_t place(batch_tables const& tables, quota_entry const& entry,
                                                       index_t ordinal) {
  if (entry.count <= 2) {
    return entry.count == 0 ? -1 : entry.count == 2 && ordinal >= entry.end ? entry.second : entry.first;
  }
  auto position = entry.first;
  auto const last = entry.first + entry.count - 1;
#pragma unroll 1
  while (position < last && ordinal >= tables.ends[position]) { ++position; }
  return tables.physical[position];
}

/// Threads of a block that maps.
inline constexpr unsigned remap_threads = 512;
/// Up to that many experts a block fetches the entries of all of them in one go; with more its threads fetch what they
/// want, which is less.
inline constexpr index_t most_fetched_experts = 256;

/// Shared memory of such a block.
[[nodiscard]] inline std::size_t remap_bytes(index_t num_logical) noexcept {
  if (num_logical > most_fetched_experts) { return 0; }
  return static_cast<std::size_t>(num_logical) * (sizeof(quota_entry) + sizeof(std::uint32_t));
}

/// Logical ids -> physical ids: by the quotas of the batch, or as `dispatch` does, as the plan has decided.
///
/// @tparam FetchesAll  for up to `most_fetched_experts`. A kernel that could do either would be a tenth slower.
template <bool FetchesAll, router_id Id, router_id Physical>
__global__ void __launch_bounds__(remap_threads)
    remap_kernel(batch_ids<Id> const a, batch_tables const tables, Physical* const physical,
                 dispatch_view const resident, index_t const layer) {
  extern __shared__ uint4 remap_chunks[];
  auto const i = blockIdx.x * blockDim.x + threadIdx.x;
  auto const block = blockIdx.x * blockDim.x / a.ids_per_block;  // of those that counted: as large, or a multiple
  auto const* const block_first = tables.block_first + block * static_cast<std::uint32_t>(count_stride(a.num_logical));
  // What the ids are has been known since before they were counted, and the kernel before lets this one start only
  // then.
  auto const id = i < a.num_ids ? __ldcg(a.ids + i) : Id{-1};
  auto const num_valid = a.num_valid();
  bool const counted = i < num_valid && id >= 0 && id < a.num_logical;
  auto const expert = counted ? static_cast<std::uint32_t>(id) : 0u;

  wait_for_predecessor();

  // ---- all loads at once: none depends on another one ----
  auto const verdict = *tables.verdict;
  auto const local = i < a.num_ids ? a.ordinals[i] : std::uint16_t{0};
  quota_entry entry{};
  std::uint32_t before = 0;
  if constexpr (FetchesAll) {
    auto* const entries = reinterpret_cast<quota_entry*>(remap_chunks);
    auto* const firsts = reinterpret_cast<std::uint32_t*>(entries + a.num_logical);
    for (auto e = threadIdx.x; e < static_cast<unsigned>(a.num_logical); e += blockDim.x) {
      auto const fetched = tables.entries[e];
      auto const first = block_first[e];
      entries[e] = fetched;
      firsts[e] = first;
    }
    __syncthreads();
    entry = entries[expert];
    before = firsts[expert];
  } else {
    entry = tables.entries[expert];
    before = block_first[expert];
  }
  if (i >= a.num_ids) { return; }

  index_t mapped = -1;
  if (counted && verdict == batch_verdict::exact) {
    mapped = place(tables, entry, static_cast<index_t>(before + local));
  } else if (i < num_valid) {
    mapped = dispatch_one(resident, layer, i / a.top_k, i % a.top_k, static_cast<std::int64_t>(id));
  }
  physical[i] = static_cast<Physical>(mapped);
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
