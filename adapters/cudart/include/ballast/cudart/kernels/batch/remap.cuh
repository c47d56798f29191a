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
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// The replica that takes the token with this ordinal of its expert.
[[nodiscard]] __device__ __forceinline__ index_t place(batch_view const& v, index_t const* physical,
                                                       quota_entry const& entry, index_t ordinal) {
  if (entry.count <= 2) { return entry.count == 2 && ordinal >= entry.end ? entry.second : entry.first; }
  auto position = entry.first;
  auto const last = entry.first + entry.count - 1;
  while (position < last && ordinal >= v.ends[position]) { ++position; }
  return physical[position];
}

/// Logical ids -> physical ids: by the quotas of the batch, or as `dispatch` does, as the plan has decided.
template <router_id Id>
__global__ void __launch_bounds__(256) remap_kernel(batch_view const v, dispatch_view const resident,
                                                    batch_ids<Id> const ids, index_t layer, Id* physical) {
  wait_for_predecessor();
  auto const i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= ids.num_ids) { return; }
  // ---- loads that depend on nothing first ----
  auto const id = ids.input.ids[i];
  auto const num_valid = ids.num_valid();
  auto const verdict = *v.verdict;
  auto const local = v.ordinals[i];

  auto const num_logical = v.shape.num_logical;
  auto const row = v.row(layer);
  auto const block =
      blockIdx.x * blockDim.x / ids.ids_per_block;  // of those that counted: they are larger, or as large
  bool const counted = i < num_valid && id >= 0 && id < num_logical;
  index_t mapped = -1;
  if (counted && verdict == batch_verdict::exact) {
    auto const expert = static_cast<index_t>(id);
    auto const entry = row.entries()[expert];
    auto const before =
        v.block_first[static_cast<std::size_t>(block) * static_cast<std::size_t>(count_stride(num_logical)) +
                      static_cast<std::size_t>(expert)];
    mapped = place(v, row.physical(), entry, static_cast<index_t>(before + local));
  } else if (i < num_valid) {
    auto const top_k = static_cast<std::uint32_t>(ids.input.top_k);
    mapped = dispatch_one(resident, layer, i / top_k, i % top_k, static_cast<std::int64_t>(id));
  }
  physical[i] = static_cast<Id>(mapped);
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
