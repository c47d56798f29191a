// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_ROUTE_CUH
#define BALLAST_CUDART_KERNELS_ROUTE_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/route.cuh holds kernels: include it from a .cu file"
#endif

#include <ballast/cudart/error.hpp>
#include <ballast/cudart/record_view.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

namespace detail {

/// Everything a launch needs, by value. What may change after a capture is behind the pointers.
template <router_id Id>
struct route_arguments {
  routing<Id> input;
  record_view record;
  dispatch_view tables;
  Id* physical;  ///< [T, k]; may be `input.ids`
  index_t layer;
  std::uint32_t num_ids;  ///< T * k
  bool count_in_shared;   ///< block-private histograms pay from some hundred ids a block on
  bool stage_tables;      ///< the layer's tables fit into shared memory
  bool aligned;           ///< 16-byte loads and stores are possible
};

template <router_id Id>
inline constexpr std::uint32_t ids_per_load = 16 / sizeof(Id);

template <router_id Id>
struct alignas(16) id_vector {
  Id values[ids_per_load<Id>];
};

template <router_id Id>
__device__ id_vector<Id> load_ids(route_arguments<Id> const& a, std::uint32_t first) {
  if (a.aligned && first + ids_per_load<Id> <= a.num_ids) {
    return *reinterpret_cast<id_vector<Id> const*>(a.input.ids + first);
  }
  id_vector<Id> result;
#pragma unroll
  for (std::uint32_t i = 0; i < ids_per_load<Id>; ++i) {
    result.values[i] = first + i < a.num_ids ? a.input.ids[first + i] : Id{-1};
  }
  return result;
}

template <router_id Id>
__device__ void store_ids(route_arguments<Id> const& a, std::uint32_t first, id_vector<Id> const& ids) {
  if (a.aligned && first + ids_per_load<Id> <= a.num_ids) {
    *reinterpret_cast<id_vector<Id>*>(a.physical + first) = ids;
    return;
  }
#pragma unroll
  for (std::uint32_t i = 0; i < ids_per_load<Id>; ++i) {
    if (first + i < a.num_ids) { a.physical[first + i] = ids.values[i]; }
  }
}

/// Copy 8-byte table elements into shared memory. The block synchronises before it reads them.
template <class T>
__device__ void stage(T const* from, T* to, index_t count) {
  static_assert(sizeof(T) == 8);
  for (auto i = static_cast<index_t>(threadIdx.x); i < count; i += static_cast<index_t>(blockDim.x)) {
    to[i] = from[i];
  }
}

/// Count router choices, map them to physical ids, or both, in one pass over the ids.
template <router_id Id, bool Count, bool Map>
__global__ void __launch_bounds__(1024) route_kernel(route_arguments<Id> const a) {
  extern __shared__ std::uint64_t shared[];
  constexpr auto width = ids_per_load<Id>;
  auto const num_logical = a.record.num_logical;
  auto* const row = Count ? a.record.pass + static_cast<std::ptrdiff_t>(a.layer) * num_logical : nullptr;
  auto* const histogram = reinterpret_cast<std::uint32_t*>(shared);

  // The first loads of the block are independent of each other, so that their latencies overlap.
  auto first = (blockIdx.x * blockDim.x + threadIdx.x) * width;
  auto const stride = gridDim.x * blockDim.x * width;
  id_vector<Id> ids;
  if (first < a.num_ids) { ids = load_ids(a, first); }
  auto num_valid = a.num_ids;
  if (a.input.num_valid_tokens != nullptr) {
    auto const rows = max(0, min(*a.input.num_valid_tokens, a.input.num_tokens));
    num_valid = static_cast<std::uint32_t>(rows) * static_cast<std::uint32_t>(a.input.top_k);
  }
  bool const counting = Count && *a.record.gate != 0;

  auto tables = a.tables;
  if constexpr (Map) {
    if (a.stage_tables) {
      auto* const entries = reinterpret_cast<dispatch_entry*>(shared + (Count ? (num_logical + 1) / 2 : 0));
      auto* const ranges = reinterpret_cast<replica_range*>(entries + tables.num_slots);
      auto const layer = static_cast<std::ptrdiff_t>(a.layer);
      stage(tables.entries + layer * tables.num_slots, entries, tables.num_slots);
      stage(tables.ranges + layer * tables.num_logical, ranges, tables.num_logical);
      // `dispatch_one` adds the layer's offset again.
      tables.entries = entries - layer * tables.num_slots;
      tables.ranges = ranges - layer * tables.num_logical;
    }
  }
  if (Count && a.count_in_shared) {
    for (auto e = static_cast<index_t>(threadIdx.x); e < num_logical; e += static_cast<index_t>(blockDim.x)) {
      histogram[e] = 0;
    }
  }
  __syncthreads();

  for (; first < a.num_ids; first += stride) {
    auto token = first / static_cast<std::uint32_t>(a.input.top_k);
    auto k = first - token * static_cast<std::uint32_t>(a.input.top_k);
    id_vector<Id> mapped;
#pragma unroll
    for (std::uint32_t i = 0; i < width; ++i) {
      auto const id = first + i < num_valid ? ids.values[i] : Id{-1};
      if constexpr (Count) {
        if (counting && id >= 0 && id < num_logical) { atomicAdd(a.count_in_shared ? &histogram[id] : &row[id], 1u); }
      }
      if constexpr (Map) {
        mapped.values[i] = dispatch_one(tables, a.layer, token, k, static_cast<std::int64_t>(id));
        if (++k == static_cast<std::uint32_t>(a.input.top_k)) {
          k = 0;
          ++token;
        }
      }
    }
    if constexpr (Map) { store_ids(a, first, mapped); }
    if (first + stride < a.num_ids) { ids = load_ids(a, first + stride); }
  }

  if (counting && a.count_in_shared) {
    __syncthreads();
    for (auto e = static_cast<index_t>(threadIdx.x); e < num_logical; e += static_cast<index_t>(blockDim.x)) {
      if (auto const tokens = histogram[e]; tokens != 0) { atomicAdd(&row[e], tokens); }
    }
  }
}

struct launch_shape {
  unsigned blocks = 1;
  unsigned threads = 32;
};

/// As many blocks as the ids fill with one load a thread, and no more than two for each multiprocessor of a large card.
[[nodiscard]] inline launch_shape shape_for(std::uint32_t num_loads) noexcept {
  constexpr unsigned most_blocks = 128;
  unsigned const threads = num_loads <= most_blocks * 128 ? 128 : num_loads <= most_blocks * 256 ? 256 : 512;
  return {std::clamp((num_loads + threads - 1) / threads, 1u, most_blocks), threads};
}

inline constexpr std::size_t most_staged_bytes = 16 * 1024;

template <bool Count, bool Map, router_id Id>
[[nodiscard]] status launch_route(cudaStream_t stream, route_arguments<Id> a, launch_shape const* forced = nullptr) {
  if (a.num_ids == 0) { return {}; }
  auto const address = reinterpret_cast<std::uintptr_t>(a.input.ids) | reinterpret_cast<std::uintptr_t>(a.physical);
  a.aligned = address % 16 == 0;
  auto const num_loads = (a.num_ids + ids_per_load<Id> - 1) / ids_per_load<Id>;
  auto const shape = forced != nullptr ? *forced : shape_for(num_loads);
  std::size_t bytes = 0;
  if (Count) {
    a.count_in_shared = a.num_ids > 2048;
    bytes += sizeof(std::uint64_t) * static_cast<std::size_t>((a.record.num_logical + 1) / 2);
  }
  if (Map) {
    auto const tables = sizeof(std::uint64_t) * static_cast<std::size_t>(a.tables.num_slots + a.tables.num_logical);
    a.stage_tables = tables <= most_staged_bytes;
    bytes += a.stage_tables ? tables : 0;
  }
  route_kernel<Id, Count, Map><<<shape.blocks, shape.threads, bytes, stream>>>(a);
  return to_status(cudaGetLastError(), "route_kernel");
}

template <router_id Id>
[[nodiscard]] route_arguments<Id> arguments_of(routing<Id> const& input, index_t layer) {
  route_arguments<Id> result{};
  result.input = input;
  result.layer = layer;
  result.num_ids = static_cast<std::uint32_t>(input.num_tokens) * static_cast<std::uint32_t>(input.top_k);
  return result;
}

}  // namespace detail

/// Count one layer's router choices on a stream.
template <router_id Id>
[[nodiscard]] status record(cudaStream_t stream, record_view const& counters, index_t layer, routing<Id> const& input) {
  auto a = detail::arguments_of(input, layer);
  a.record = counters;
  return detail::launch_route<true, false>(stream, a);
}

/// Map one layer's router choices to physical ids on a stream.
template <router_id Id>
[[nodiscard]] status dispatch(cudaStream_t stream, dispatch_view const& tables, index_t layer, routing<Id> const& input,
                              Id* physical) {
  auto a = detail::arguments_of(input, layer);
  a.tables = tables;
  a.physical = physical;
  return detail::launch_route<false, true>(stream, a);
}

/// `record` and `dispatch` in one launch.
template <router_id Id>
[[nodiscard]] status dispatch_and_record(cudaStream_t stream, record_view const& counters, dispatch_view const& tables,
                                         index_t layer, routing<Id> const& input, Id* physical) {
  auto a = detail::arguments_of(input, layer);
  a.record = counters;
  a.tables = tables;
  a.physical = physical;
  return detail::launch_route<true, true>(stream, a);
}

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
