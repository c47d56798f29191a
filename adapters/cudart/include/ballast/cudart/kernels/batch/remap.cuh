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

/// Logical ids -> physical ids: by the quotas of the batch, or as `dispatch` does, as the plan has decided.
template <router_id Id>
__global__ void __launch_bounds__(256)
    remap_kernel(batch_ids<Id> const a, batch_tables const tables, Id* const physical, dispatch_view const resident,
                 index_t const layer) {
  auto const i = blockIdx.x * blockDim.x + threadIdx.x;
  auto const block = blockIdx.x * blockDim.x / a.ids_per_block;  // of those that counted: as large, or a multiple

  wait_for_predecessor();

  if (i >= a.num_ids) { return; }
  // ---- loads that depend on nothing first ----
  auto const id = a.ids[i];
  auto const local = a.ordinals[i];
  auto const verdict = *tables.verdict;
  auto const num_valid = a.num_valid();

  bool const counted = i < num_valid && id >= 0 && id < a.num_logical;
  index_t mapped = -1;
  if (counted && verdict == batch_verdict::exact) {
    auto const expert = static_cast<std::uint32_t>(id);
    auto const entry = tables.entries[expert];
    auto const before = tables.block_first[block * static_cast<std::uint32_t>(count_stride(a.num_logical)) + expert];
    mapped = place(tables, entry, static_cast<index_t>(before + local));
  } else if (i < num_valid) {
    mapped = dispatch_one(resident, layer, i / a.top_k, i % a.top_k, static_cast<std::int64_t>(id));
  }
  physical[i] = static_cast<Id>(mapped);
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
