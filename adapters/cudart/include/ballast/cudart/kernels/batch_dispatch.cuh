// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_DISPATCH_CUH
#define BALLAST_CUDART_KERNELS_BATCH_DISPATCH_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch_dispatch.cuh holds kernels: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/batch/count.cuh>
#include <ballast/cudart/kernels/batch/plan.cuh>
#include <ballast/cudart/kernels/batch/remap.cuh>
#include <ballast/cudart/kernels/launch.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/cudart/layout/batch_view.hpp>
#include <ballast/cudart/record_view.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

namespace detail {

/// Threads of a block that counts: so many that its counters fit the shared memory that a block may have.
[[nodiscard]] inline unsigned count_threads(batch_view const& v) noexcept {
  auto threads = most_count_threads;
  while (threads > 32 && warp_counts::bytes(threads / 32, v.shape.num_logical) > v.shared_room) { threads /= 2; }
  return threads;
}

/// How a rank's ids are cut into blocks.
template <router_id Id>
[[nodiscard]] batch_ids<signed_id<Id>> cut(batch_view const& v, routing<Id> const& input) noexcept {
  auto const num_ids = static_cast<std::uint32_t>(input.num_tokens) * static_cast<std::uint32_t>(input.top_k);
  auto const threads = count_threads(v);
  auto const all_at_once = threads * static_cast<std::uint32_t>(max_count_blocks);
  auto const rounds = num_ids == 0 ? 1 : (num_ids + all_at_once - 1) / all_at_once;
  return {reinterpret_cast<signed_id<Id> const*>(input.ids),
          input.num_valid_tokens,
          num_ids,
          static_cast<std::uint32_t>(input.top_k),
          threads * rounds,
          v.shape.num_logical,
          v.ordinals};
}
template <router_id Id>
[[nodiscard]] std::uint32_t num_blocks(batch_ids<Id> const& ids) noexcept {
  return ids.num_ids == 0 ? 1 : (ids.num_ids + ids.ids_per_block - 1) / ids.ids_per_block;
}

/// Refuse what would make a kernel read or write elsewhere.
template <router_id Id>
[[nodiscard]] status check_batch(char const* who, batch_view const& v, index_t layer, routing<Id> const& input) {
  auto const refuse = [&](auto const&... parts) {
    return status{errc::invalid_load, ballast::detail::concat(who, ": ", parts...)};
  };
  if (auto result = check_layer(who, layer, v.num_layers); !result.ok()) { return result; }
  if (input.num_tokens < 0 || input.top_k < 1) {
    return refuse(input.num_tokens, " tokens x ", input.top_k, " choices");
  }
  auto const num_ids = static_cast<std::int64_t>(input.num_tokens) * input.top_k;
  if (num_ids > v.max_ids) { return refuse(num_ids, " choices, there is room for ", v.max_ids); }
  if (num_ids > 0 && input.ids == nullptr) { return refuse("a null pointer for ", num_ids, " ids"); }
  return {};
}

template <router_id Id>
[[nodiscard]] status launch_count(cudaStream_t stream, batch_view const& v, batch_ids<Id> const& ids, bool early) {
  static constinit early_launch waits;
  auto const kernel = count_kernel<Id>;
  auto const threads = count_threads(v);
  launch_shape const shape{num_blocks(ids), threads, warp_counts::bytes(threads / 32, v.shape.num_logical)};
  return launch("count_kernel", kernel, shape, stream, early && waits.is_possible(kernel), ids, v.block_counts);
}
[[nodiscard]] inline status launch_sum(cudaStream_t stream, batch_view const& v, std::uint32_t blocks, bool early) {
  static constinit early_launch waits;
  auto const kernel = sum_kernel<>;
  constexpr unsigned threads = 128;
  launch_shape const shape{(static_cast<unsigned>(v.shape.num_logical) + threads - 1) / threads, threads};
  return launch("sum_kernel", kernel, shape, stream, early && waits.is_possible(kernel), v, blocks);
}
[[nodiscard]] inline status launch_plan(cudaStream_t stream, plan_arguments const& a, bool early) {
  static constinit early_launch waits;
  auto const kernel =
      a.v.shape.num_ranks <= warp_search_64::most_ranks ? plan_kernel<warp_search_64> : plan_kernel<warp_search_any>;
  launch_shape const shape{1, plan_threads, a.v.has_room ? a.v.layout.size : a.v.layout.size_without_counts()};
  return launch("plan_kernel", kernel, shape, stream, early && waits.is_possible(kernel), a);
}
template <router_id Id, router_id Physical>
[[nodiscard]] status launch_remap(cudaStream_t stream, batch_view const& v, dispatch_view const& resident,
                                  batch_ids<Id> const& ids, index_t layer, Physical* physical, bool early) {
  if (ids.num_ids == 0) { return {}; }
  static constinit early_launch waits;
  auto const kernel = v.shape.num_logical <= most_fetched_experts ? remap_kernel<true, Id, Physical>
                                                                  : remap_kernel<false, Id, Physical>;
  auto const threads = std::min(remap_threads, count_threads(v));
  launch_shape const shape{(ids.num_ids + threads - 1) / threads, threads, remap_bytes(v.shape.num_logical)};
  auto const row = v.row(layer);
  batch_tables const tables{row.entries(), v.block_first, v.verdict, v.ends, row.physical()};
  return launch("remap_kernel", kernel, shape, stream, early && waits.is_possible(kernel), ids, tables, physical,
                resident, layer);
}

}  // namespace detail

/// Balance one layer of one batch: map this rank's router choices to physical ids so that, over all ranks, each replica
/// gets exactly the tokens of its quota, and the busiest rank as few as replicas allow. Nothing is moved.
///
/// Three launches: count, exchange and plan, map. Capturable; no call of the host stands between them. Every rank of
/// the group makes the same calls in the same order, ranks without tokens too. Where the batch is not balanced (turned
/// off, too small, a rank late, placements unlike) tokens go by the shares in force, as `dispatch` sends them, on all
/// ranks alike; `batch_statistics` says why.
///
/// @param stream    the engine's compute stream, where commits run too.
/// @param view      as `batch_balancer::view()`.
/// @param counters  as `device_recorder::view()`: the counts are added there too. `{}`: they are not.
/// @param resident  as `device_store::view()`.
/// @param layer     in [0, L).
/// @param input     [T, k] logical experts, of at most `view.max_ids` choices; a rank without tokens has T = 0.
/// @param physical  out: [T, k] of any id type; -1 (the largest number of an unsigned type) for invalid ids and padded
///                  rows. May be `input.ids` where elements are as wide; otherwise the two must not touch.
/// @param early     as for `record`.
/// @return `errc::invalid_load` for a layer out of range, sizes that do not fit each other or a null pointer; nothing
///         is launched then. A failure of a launch, in `cudart::category()`.
/// @complexity three launches; no allocation.
/// @throws std::bad_alloc on failure
/// @determinism equals `quota_solver`, `quota_sources` and `quota_dispatch` on the host, id for id.
template <router_id Id, router_id Physical>
[[nodiscard]] status balance_and_dispatch(cudaStream_t stream, batch_view const& view, record_view const& counters,
                                          dispatch_view const& resident, index_t layer, routing<Id> const& input,
                                          Physical* physical, bool early = true);

/// The first half, for engines that exchange the counts of all ranks themselves: count this rank's ids.
///
/// Capturable. Two launches. Behind them `view.counts`, [E] in device memory, has this rank's counts, which the engine
/// gathers on the stream; `plan_and_dispatch` does the rest.
///
/// @param stream  the engine's compute stream.
/// @param view    as `batch_balancer::view()`.
/// @param layer   in [0, L).
/// @param input   [T, k] logical experts, of at most `view.max_ids` choices; a rank without tokens has T = 0.
/// @param early   as for `record`.
/// @return `errc::invalid_load` for a layer out of range, impossible sizes or a null pointer; nothing is launched then.
///         A failure of a launch, in `cudart::category()`.
/// @complexity O(T k + E blocks) work; no allocation.
/// @throws std::bad_alloc on failure
template <router_id Id>
[[nodiscard]] status count_batch(cudaStream_t stream, batch_view const& view, index_t layer, routing<Id> const& input,
                                 bool early = true) {
  if (auto result = detail::check_batch("count_batch", view, layer, input); !result.ok()) { return result; }
  auto const ids = detail::cut(view, input);
  if (auto result = detail::launch_count(stream, view, ids, early); !result.ok()) { return result; }
  return detail::launch_sum(stream, view, detail::num_blocks(ids), early);
}

/// The second half, where the engine has gathered the counts of all ranks, on `stream`, since `count_batch`. What is
/// not said here is as for `balance_and_dispatch`.
///
/// @param gathered  [R, E] in device memory: the counts of all ranks, this one's as `count_batch` counted them; of dead
///                  ranks zeros.
template <router_id Id, router_id Physical>
[[nodiscard]] status plan_and_dispatch(cudaStream_t stream, batch_view const& view, index_t const* gathered,
                                       record_view const& counters, dispatch_view const& resident, index_t layer,
                                       routing<Id> const& input, Physical* physical, bool early = true) {
  constexpr auto who = "balance_and_dispatch";
  if (auto result = detail::check_batch(who, view, layer, input); !result.ok()) { return result; }
  if (auto result = detail::check_layer(who, layer, resident.num_layers); !result.ok()) { return result; }
  auto const refuse = [&](auto const&... parts) {
    return status{errc::invalid_load, ballast::detail::concat(who, ": ", parts...)};
  };
  if (resident.num_logical != view.shape.num_logical ||
      (counters.pass != nullptr && counters.num_logical != view.shape.num_logical)) {
    return refuse("quotas of ", view.shape.num_logical, " experts, tables of ", resident.num_logical, ", counters of ",
                  counters.num_logical);
  }
  if (gathered == nullptr && view.boards == nullptr && view.shape.num_ranks > 1) {
    return refuse("the ranks' boards are not connected, and no counts were gathered");
  }
  auto const ids = detail::cut(view, input);
  if (ids.num_ids > 0 && physical == nullptr) { return refuse("a null pointer for ", ids.num_ids, " physical ids"); }
  if (auto result = detail::check_places(who, input.ids, physical, ids.num_ids); !result.ok()) { return result; }
  detail::plan_arguments const plan{view, counters, gathered, layer, detail::num_blocks(ids)};
  if (auto result = detail::launch_plan(stream, plan, early); !result.ok()) { return result; }
  return detail::launch_remap(stream, view, resident, ids, layer,
                              reinterpret_cast<detail::signed_id<Physical>*>(physical), early);
}

template <router_id Id, router_id Physical>
[[nodiscard]] status balance_and_dispatch(cudaStream_t stream, batch_view const& view, record_view const& counters,
                                          dispatch_view const& resident, index_t layer, routing<Id> const& input,
                                          Physical* physical, bool early) {
  if (auto result = detail::check_batch("balance_and_dispatch", view, layer, input); !result.ok()) { return result; }
  auto const ids = detail::cut(view, input);
  if (auto result = detail::launch_count(stream, view, ids, early); !result.ok()) { return result; }
  return plan_and_dispatch(stream, view, nullptr, counters, resident, layer, input, physical, early);
}

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
