// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_ROUTE_CUH
#define BALLAST_CUDART_KERNELS_ROUTE_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/route.cuh holds kernels: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/launch.cuh>
#include <ballast/cudart/record_view.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

namespace detail {

/// What a launch does with an id besides counting it.
enum class mapping {
  none,     ///< nothing
  hashed,   ///< look it up, `dispatch_rule::hashed`
  rotated,  ///< look it up, `dispatch_rule::rotated`
};

/// Everything a launch needs, by value. What may change after a capture is behind the pointers.
template <router_id Id, router_id Physical = Id>
struct route_arguments {
  routing<Id> input;
  record_view record;
  dispatch_view tables;
  Physical* physical = nullptr;  ///< [T, k]; may be `input.ids`
  index_t layer = 0;
  std::uint32_t num_ids = 0;     ///< T * k
  std::uint32_t reciprocal = 0;  ///< of k, in units of 2^-32
  bool aligned = false;          ///< a thread's ids can be loaded and stored at once
};

/// What one thread takes, with one load.
template <router_id Id, std::uint32_t Width>
struct alignas(Width * sizeof(Id)) id_vector {
  Id values[Width];
};

/// The thread's ids; what lies beyond the last one, or in padded rows, reads as -1.
template <std::uint32_t Width, router_id Id, router_id Physical>
__device__ __forceinline__ id_vector<Id, Width> load_ids(route_arguments<Id, Physical> const& a, std::uint32_t first) {
  if (a.aligned && first + Width <= a.num_ids) {
    return *reinterpret_cast<id_vector<Id, Width> const*>(a.input.ids + first);
  }
  id_vector<Id, Width> result;
#pragma unroll
  for (std::uint32_t i = 0; i < Width; ++i) {
    result.values[i] = first + i < a.num_ids ? a.input.ids[first + i] : Id{-1};
  }
  return result;
}

template <std::uint32_t Width, router_id Id, router_id Physical>
__device__ __forceinline__ void store_ids(route_arguments<Id, Physical> const& a, std::uint32_t first,
                                          id_vector<Physical, Width> const& ids) {
  if (a.aligned && first + Width <= a.num_ids) {
    *reinterpret_cast<id_vector<Physical, Width>*>(a.physical + first) = ids;
    return;
  }
#pragma unroll
  for (std::uint32_t i = 0; i < Width; ++i) {
    if (first + i < a.num_ids) { a.physical[first + i] = ids.values[i]; }
  }
}

/// Ids that count: those before the first padded row.
template <router_id Id, router_id Physical>
__device__ __forceinline__ std::uint32_t count_valid(route_arguments<Id, Physical> const& a) {
  if (a.input.num_valid_tokens == nullptr) { return a.num_ids; }
  auto const rows = max(0, min(*a.input.num_valid_tokens, a.input.num_tokens));
  return static_cast<std::uint32_t>(rows) * static_cast<std::uint32_t>(a.input.top_k);
}

/// What `dispatch_one` returns, with the rule known at compile time and one layer's tables: a quarter of the code,
/// which every launch has to fetch anew. `seed` is `dispatch_seed` of expert 0.
template <mapping Map>
__device__ __forceinline__ index_t look_up(replica_range const* ranges, dispatch_entry const* entries,
                                           std::uint32_t seed, std::uint32_t row, std::uint32_t k, index_t expert) {
  using namespace ballast::detail;
  auto range = ranges[expert];
  bool const lost = range.count == 0;
  if (lost) { range = {0, 1}; }  // read something that exists, whatever it is
  seed += dispatch_seed(0, 0, expert);
  index_t physical = -1;
  if constexpr (Map == mapping::rotated) {
    auto const turn = (scramble(seed) >> 1) + row;
    physical = physical_of(entries[range.first + static_cast<index_t>(turn % static_cast<std::uint32_t>(range.count))]);
  } else {
    physical = pick_hashed(entries, range, scramble(scramble(seed + k * 0xc2b2ae3du) + row * 0x27d4eb2fu));
  }
  return lost ? -1 : physical;
}

/// Count router choices, map them to physical ids, or both, in one pass over the ids; each thread takes `Width` ids.
///
/// @tparam Shared  count in a histogram of the block first.
template <router_id Id, router_id Physical, std::uint32_t Width, bool Count, mapping Map, bool Shared>
__global__ void __launch_bounds__(1024) route_kernel(route_arguments<Id, Physical> const a) {
  extern __shared__ std::uint32_t histogram[];
  constexpr bool maps = Map != mapping::none;
  auto const first = (blockIdx.x * blockDim.x + threadIdx.x) * Width;
  auto const num_logical = maps ? a.tables.num_logical : a.record.num_logical;
  if constexpr (Count && Shared) {
#pragma unroll 1
    for (auto e = static_cast<index_t>(threadIdx.x); e < num_logical; e += static_cast<index_t>(blockDim.x)) {
      histogram[e] = 0;
    }
  }

  // What was done without the kernel before this one; from here on its results are needed.
  wait_for_predecessor();

  // These loads are independent of each other, so that their latencies overlap.
  auto const ids = load_ids<Width>(a, first);
  [[maybe_unused]] id_vector<Physical, Width> mapped;
  auto const num_valid = count_valid(a);
  bool counting = false;
  if constexpr (Count) { counting = *a.record.gate != 0; }
  auto const* const entries = a.tables.entries + static_cast<std::ptrdiff_t>(a.layer) * a.tables.num_slots;
  auto const* const ranges = a.tables.ranges + static_cast<std::ptrdiff_t>(a.layer) * num_logical;
  if constexpr (Count && Shared) { __syncthreads(); }

  auto* const row = a.record.pass + (blockIdx.x & (a.record.num_stripes - 1)) * a.record.stripe_cells +
                    static_cast<std::ptrdiff_t>(a.layer) * num_logical;
  [[maybe_unused]] auto token = __umulhi(first, a.reciprocal);
  [[maybe_unused]] auto k = first - token * static_cast<std::uint32_t>(a.input.top_k);
  if (k >= static_cast<std::uint32_t>(a.input.top_k)) {  // the reciprocal is rounded down
    k -= static_cast<std::uint32_t>(a.input.top_k);
    ++token;
  }
  [[maybe_unused]] auto const seed = ballast::detail::dispatch_seed(a.tables.salt, a.layer, 0);
#pragma unroll
  for (std::uint32_t i = 0; i < Width; ++i) {
    auto const id = first + i < num_valid ? ids.values[i] : Id{-1};
    bool const in_range = id >= 0 && id < num_logical;
    if constexpr (Count) {
      if (counting && in_range) { atomicAdd(Shared ? &histogram[id] : &row[id], 1u); }
    }
    if constexpr (maps) {
      auto physical = look_up<Map>(ranges, entries, seed, token, k, in_range ? static_cast<index_t>(id) : 0);
      bool const reserved = id >= num_logical && id - num_logical < a.tables.num_reserved;
      if (!in_range) { physical = reserved ? a.tables.first_reserved + static_cast<index_t>(id - num_logical) : -1; }
      mapped.values[i] = static_cast<Physical>(physical);
      if (++k == static_cast<std::uint32_t>(a.input.top_k)) {
        k = 0;
        ++token;
      }
    }
  }
  if constexpr (maps) {
    if (first < a.num_ids) { store_ids<Width>(a, first, mapped); }
  }

  if constexpr (Count && Shared) {
    __syncthreads();
    if (!counting) { return; }
#pragma unroll 1
    for (auto e = static_cast<index_t>(threadIdx.x); e < num_logical; e += static_cast<index_t>(blockDim.x)) {
      if (auto const tokens = histogram[e]; tokens != 0) { atomicAdd(&row[e], tokens); }
    }
  }
}

/// Found by trying: small blocks start soonest; large ones flush fewer histograms.
[[nodiscard]] inline launch_shape shape_for(std::uint32_t num_threads, bool histogram, index_t num_logical) noexcept {
  auto const threads = histogram && num_logical > 2048 ? 1024u
                       : num_threads <= 2048           ? 128u
                       : num_threads <= 16384          ? 256u
                                                       : 512u;
  return {(num_threads + threads - 1) / threads, threads,
          histogram ? sizeof(std::uint32_t) * static_cast<std::size_t>(num_logical) : 0};
}

template <std::uint32_t Width, bool Count, mapping Map, bool Shared, router_id Id, router_id Physical>
[[nodiscard]] status launch_route(cudaStream_t stream, route_arguments<Id, Physical> const& a, bool early) {
  static constinit early_launch waits;
  auto const kernel = route_kernel<Id, Physical, Width, Count, Map, Shared>;
  auto const shape = shape_for((a.num_ids + Width - 1) / Width, Count && Shared, a.record.num_logical);
  return launch("route_kernel", kernel, shape, stream, early && waits.is_possible(kernel), a);
}

/// Experts whose histogram fits the shared memory that every launch may have.
inline constexpr index_t most_shared_experts = 48 * 1024 / sizeof(std::uint32_t);

/// Below, a thread for each id: more loads are in flight at once, and there is less code to fetch. Beyond, two.
inline constexpr std::uint32_t most_ids_one_each = 32768;

template <bool Count, mapping Map, router_id Id, router_id Physical>
[[nodiscard]] status choose_route(cudaStream_t stream, route_arguments<Id, Physical> const& a, bool early) {
  bool const wide = a.num_ids > most_ids_one_each;
  if constexpr (!Count) {
    return wide ? launch_route<2, Count, Map, false>(stream, a, early)
                : launch_route<1, Count, Map, false>(stream, a, early);
  } else {
    // A histogram pays where ids are many, and many for each expert that it has to clear and flush.
    bool const histogram = a.num_ids > 4096 && a.num_ids >= 4 * static_cast<std::uint32_t>(a.record.num_logical) &&
                           a.record.num_logical <= most_shared_experts;
    if (!histogram) {
      return wide ? launch_route<2, Count, Map, false>(stream, a, early)
                  : launch_route<1, Count, Map, false>(stream, a, early);
    }
    return wide ? launch_route<2, Count, Map, true>(stream, a, early)
                : launch_route<1, Count, Map, true>(stream, a, early);
  }
}

/// Refuse what would make a kernel read or write elsewhere.
template <bool Count, bool Maps, router_id Id, router_id Physical>
[[nodiscard]] status check_route(char const* who, route_arguments<Id, Physical> const& a) {
  auto const refuse = [&](auto const&... parts) {
    return status{errc::invalid_load, ballast::detail::concat(who, ": ", parts...)};
  };
  if constexpr (Count) {
    if (auto result = check_layer(who, a.layer, a.record.num_layers); !result.ok()) { return result; }
  }
  if constexpr (Maps) {
    if (auto result = check_layer(who, a.layer, a.tables.num_layers); !result.ok()) { return result; }
  }
  if (Count && Maps && a.record.num_logical != a.tables.num_logical) {
    return refuse("counters of ", a.record.num_logical, " experts, tables of ", a.tables.num_logical);
  }
  if (a.input.num_tokens < 0 || a.input.top_k < 1) {
    return refuse(a.input.num_tokens, " tokens x ", a.input.top_k, " choices");
  }
  auto const num_ids = static_cast<std::int64_t>(a.input.num_tokens) * a.input.top_k;
  if (num_ids > std::numeric_limits<std::int32_t>::max()) {
    return refuse(num_ids, " choices, at most ", std::numeric_limits<std::int32_t>::max());
  }
  if (num_ids > 0 && (a.input.ids == nullptr || (Maps && a.physical == nullptr))) {
    return refuse("a null pointer for ", num_ids, " ids");
  }
  if constexpr (Maps) { return check_places(who, a.input.ids, a.physical, static_cast<std::size_t>(num_ids)); }
  return {};
}

template <bool Count, bool Maps, router_id Id, router_id Physical>
[[nodiscard]] status route(char const* who, cudaStream_t stream, route_arguments<Id, Physical> a, bool early) {
  if (auto result = check_route<Count, Maps>(who, a); !result.ok()) { return result; }
  a.num_ids = static_cast<std::uint32_t>(a.input.num_tokens) * static_cast<std::uint32_t>(a.input.top_k);
  if (a.num_ids == 0) { return {}; }
  a.aligned = reinterpret_cast<std::uintptr_t>(a.input.ids) % (2 * sizeof(Id)) == 0 &&
              reinterpret_cast<std::uintptr_t>(a.physical) % (2 * sizeof(Physical)) == 0;
  auto const top_k = static_cast<std::uint64_t>(a.input.top_k);
  a.reciprocal = static_cast<std::uint32_t>(std::min<std::uint64_t>((std::uint64_t{1} << 32) / top_k, 0xffffffffu));
  if constexpr (!Maps) {
    return choose_route<true, mapping::none>(stream, a, early);
  } else if (a.tables.rule == dispatch_rule::rotated) {
    return choose_route<Count, mapping::rotated>(stream, a, early);
  } else {
    return choose_route<Count, mapping::hashed>(stream, a, early);
  }
}

/// What the public functions are given; unsigned ids are read as signed ones, of which the negative ones are invalid.
template <router_id Id, router_id Physical = Id>
[[nodiscard]] route_arguments<signed_id<Id>, signed_id<Physical>> make_arguments(
    index_t layer, routing<Id> const& input, Physical* physical = nullptr) noexcept {
  route_arguments<signed_id<Id>, signed_id<Physical>> a;
  a.input = {reinterpret_cast<signed_id<Id> const*>(input.ids), input.num_tokens, input.top_k, input.num_valid_tokens};
  a.physical = reinterpret_cast<signed_id<Physical>*>(physical);
  a.layer = layer;
  return a;
}

}  // namespace detail

/// Count one layer's router choices on a stream.
///
/// Capturable: a capture counts nothing, each replay once.
///
/// @param stream    the engine's compute stream.
/// @param counters  as `device_recorder::view()`.
/// @param layer     in [0, L).
/// @param input     [T, k] logical experts; ids outside [0, E) and padded rows are not counted.
/// @param early     let the launch overlap with the end of the kernel before it, on which it waits before it reads
///                  anything (programmatic dependent launch), where the device and the compiled code can.
/// @return `errc::invalid_load` for a layer out of range, impossible sizes or a null pointer; nothing is launched then.
///         A failure of the launch, in `cudart::category()`.
/// @complexity one launch, O(T k + E) work; no allocation.
/// @throws std::bad_alloc on failure
template <router_id Id>
[[nodiscard]] status record(cudaStream_t stream, record_view const& counters, index_t layer, routing<Id> const& input,
                            bool early = true) {
  auto a = detail::make_arguments(layer, input);
  a.record = counters;
  return detail::route<true, false>("record", stream, a, early);
}

/// Map one layer's router choices to physical ids on a stream. What is not said here is as for `record`.
///
/// @param stream    the engine's compute stream, where commits run too.
/// @param tables    as `device_store::view()`.
/// @param layer     in [0, L).
/// @param input     [T, k] logical experts.
/// @param physical  out: [T, k], of the element type that the next kernel wants, which need not be the router's; -1
/// (the
///                  largest number of an unsigned type) for invalid ids and padded rows. May be `input.ids` where
///                  elements are as wide; otherwise the two must not touch.
/// @param early     as for `record`.
/// @return also `errc::invalid_load` for arrays that overlap in any other way.
/// @complexity one launch, O(T k) work; no allocation.
/// @determinism equals `dispatch_ids` on the host, id for id.
template <router_id Id, router_id Physical>
[[nodiscard]] status dispatch(cudaStream_t stream, dispatch_view const& tables, index_t layer, routing<Id> const& input,
                              Physical* physical, bool early = true) {
  auto a = detail::make_arguments(layer, input, physical);
  a.tables = tables;
  return detail::route<false, true>("dispatch", stream, a, early);
}

/// `record` and `dispatch` in one launch, for counters and tables of as many experts; parameters, errors and promises
/// are theirs.
///
/// @return also `errc::invalid_load` for counters and tables of different numbers of experts.
template <router_id Id, router_id Physical>
[[nodiscard]] status dispatch_and_record(cudaStream_t stream, record_view const& counters, dispatch_view const& tables,
                                         index_t layer, routing<Id> const& input, Physical* physical,
                                         bool early = true) {
  auto a = detail::make_arguments(layer, input, physical);
  a.record = counters;
  a.tables = tables;
  return detail::route<true, true>("dispatch_and_record", stream, a, early);
}

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
