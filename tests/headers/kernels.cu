// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Everything with kernels, instantiated: that it compiles for every architecture is all that is tested.
#include <ballast/cudart/kernels/batch_balancer.cuh>
#include <ballast/cudart/kernels/batch_dispatch.cuh>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/fold.cuh>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/kernels/kernel_graph.cuh>
#include <ballast/cudart/kernels/launch.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/cudart/kernels/sized_copies.cuh>

#include <cstdint>

#if BALLAST_KERNELS_FOR_ALL_TYPES
  #include <ballast/cudart/device_store.hpp>
template class ballast::cudart::device_store<ballast::dispatch_tables, ballast::cudart::kernel_copies>;
template class ballast::cudart::device_store<ballast::invariant_dispatch_tables, ballast::cudart::kernel_copies>;
#endif

namespace cudart = ballast::cudart;
using ballast::status;

namespace {

template <class Id>
status route_all(cudaStream_t on, cudart::record_view const& counters, ballast::dispatch_view const& tables, Id* ids) {
  cudart::routing<Id> const input{ids, 1, 1, nullptr};
  auto result = cudart::record(on, counters, 0, input);
  if (result.ok()) { result = cudart::dispatch(on, tables, 0, input, ids); }
  if (result.ok()) { result = cudart::dispatch_and_record(on, counters, tables, 0, input, ids); }
  auto* const physical = reinterpret_cast<std::int64_t*>(ids) + 1;
  if (result.ok()) { result = cudart::dispatch(on, tables, 0, input, physical); }
  if (result.ok()) { result = cudart::dispatch_and_record(on, counters, tables, 0, input, physical); }
  return result.ok() ? cudart::record_arrivals(on, counters, 0, cudart::arrivals<Id>{ids}) : result;
}

template <class Id>
status balance_all(cudaStream_t on, cudart::batch_view const& batch, cudart::record_view const& counters,
                   ballast::dispatch_view const& tables, Id* ids) {
  cudart::routing<Id> const input{ids, 1, 1, nullptr};
  auto result = cudart::balance_and_dispatch(on, batch, counters, tables, 0, input, ids);
  if (result.ok()) { result = cudart::count_batch(on, batch, 0, input); }
  return result.ok() ? cudart::plan_and_dispatch(on, batch, batch.counts, counters, tables, 0, input, ids) : result;
}

}  // namespace

status balance_everything(cudaStream_t on, cudart::batch_balancer const& balancer, cudart::record_view const& counters,
                          ballast::dispatch_view const& tables, void* ids) {
  auto result = balance_all(on, balancer.view(), counters, tables, static_cast<std::int32_t*>(ids));
#if BALLAST_KERNELS_FOR_ALL_TYPES
  if (result.ok()) { result = balance_all(on, balancer.view(), counters, tables, static_cast<std::uint64_t*>(ids)); }
#endif
  return result;
}

status launch_everything(cudaStream_t on, cudart::device_recorder& recorder, cudart::sized_copies<>& copies,
                         ballast::dispatch_view const& tables, void* ids) {
  recorder.end_pass(true);
  auto result = copies.submit(on);
  if (result.ok()) { result = route_all(on, recorder.view(), tables, static_cast<std::int32_t*>(ids)); }
#if BALLAST_KERNELS_FOR_ALL_TYPES
  if (result.ok()) { result = route_all(on, recorder.view(), tables, static_cast<std::uint32_t*>(ids)); }
  if (result.ok()) { result = route_all(on, recorder.view(), tables, static_cast<std::int64_t*>(ids)); }
  if (result.ok()) { result = route_all(on, recorder.view(), tables, static_cast<std::uint64_t*>(ids)); }
#endif
  return result;
}
