// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/check_complaints.hpp"
#include "support/gpu.hpp"
#include "support/gpu_member.hpp"
#include "support/group_runner.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using namespace ballast;
using namespace ballast_test;

namespace {

gpu_only const needs_gpu;

/// What an expert kernel does with dispatched tokens: read the weights in the slots of this rank that they go to.
__global__ void read_slots(std::int32_t const* physical, unsigned count, std::byte const* slots, std::size_t stride,
                           index_t first_physical, index_t num_slots, std::uint64_t* out) {
  auto const i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) { return; }
  auto const slot = physical[i] - first_physical;
  bool const here = slot >= 0 && slot < num_slots;
  out[i] = here ? *reinterpret_cast<std::uint64_t const*>(slots + static_cast<std::size_t>(slot) * stride) : 0;
}

using wires = cudart::peer_copy<cudart::local_peers::member, cudart::kernel_copies>;
using store_type = cudart::device_store<dispatch_tables, cudart::kernel_copies>;

/// A graph of one layer's pass: dispatch and count the router's choices, then read the experts' weights.
class captured_pass {
public:
  static constexpr index_t num_tokens = 512;
  static constexpr index_t top_k = 4;

  captured_pass(cudaStream_t stream, topology const& where, index_t rank, cudart::record_view const& counters,
                dispatch_view const& tables, gpu_weights const& weights, index_t layer)
      : stream_{stream}, ids_(static_cast<std::size_t>(num_tokens * top_k)) {
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      ids_[i] = static_cast<std::int32_t>((i * 7 + i / 5 + static_cast<std::size_t>(rank)) %
                                          static_cast<std::size_t>(tables.num_logical));
    }
    auto const count = static_cast<unsigned>(ids_.size());
    logical_ = cudart::device_memory<std::int32_t>::create(count);
    physical_ = cudart::device_memory<std::int32_t>::create(count);
    read_ = cudart::device_memory<std::uint64_t>::create(count);
    check_cuda(cudaMemcpy(logical_.data(), ids_.data(), count * sizeof(std::int32_t), cudaMemcpyHostToDevice),
               "cudaMemcpy");
    check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudart::routing<std::int32_t> const input{logical_.data(), num_tokens, top_k, nullptr};
    cudart::dispatch_and_record(stream, counters, tables, layer, input, physical_.data()).or_throw();
    read_slots<<<(count + 255) / 256, 256, 0, stream>>>(
        physical_.data(), count, weights.slots_of(layer, 0), odd_tensors()[0].stride,
        where.physical_id(where.first_slot(rank)), where.slots_per_rank(), read_.data());
    check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check_cuda(cudaGraphInstantiate(&executable_, graph, 0), "cudaGraphInstantiate");
    check_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  captured_pass(captured_pass const&) = delete;
  captured_pass& operator=(captured_pass const&) = delete;
  ~captured_pass() { static_cast<void>(cudaGraphExecDestroy(executable_)); }

  void replay() const { check_cuda(cudaGraphLaunch(executable_, stream_), "cudaGraphLaunch"); }

  /// Empty when each token went to a slot that holds its expert, and what was read there was that expert.
  [[nodiscard]] std::string first_error(topology const& where, index_t rank, index_t layer,
                                        placement const& holds) const {
    std::vector<std::int32_t> physical(ids_.size());
    std::vector<std::uint64_t> read(ids_.size());
    check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    check_cuda(
        cudaMemcpy(physical.data(), physical_.data(), ids_.size() * sizeof(std::int32_t), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
    check_cuda(cudaMemcpy(read.data(), read_.data(), ids_.size() * sizeof(std::uint64_t), cudaMemcpyDeviceToHost),
               "cudaMemcpy");
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      auto const slot = physical[i];  // no reserved slots: physical ids are slot indices
      if (slot < 0 || slot >= where.num_slots() ||
          holds.logical_of_slot(layer)[static_cast<std::size_t>(slot)] != ids_[i]) {
        return ballast::detail::concat("choice ", i, " of expert ", ids_[i], " went to slot ", slot);
      }
      if (where.rank_of_slot(slot) == rank && read[i] != gpu_weights::signature(layer, 0, ids_[i])) {
        return ballast::detail::concat("slot ", slot, " does not hold expert ", ids_[i]);
      }
    }
    return {};
  }

private:
  cudaStream_t stream_;
  std::vector<std::int32_t> ids_;
  cudart::device_memory<std::int32_t> logical_;
  cudart::device_memory<std::int32_t> physical_;
  cudart::device_memory<std::uint64_t> read_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

TEST_CASE("graphs captured before ten rebalances are right when replayed between them") {
  auto const num_ranks = rank_count(4, 2);
  constexpr index_t num_layers = 2;
  topology const where{{num_ranks, num_ranks % 2 == 0 ? 2 : 1, 6, 0}};
  auto const initial = spread_placement(where, num_layers);
  in_process_group group{num_ranks};
  cudart::local_peers peers{num_ranks};
  std::vector<std::vector<std::string>> complaints(static_cast<std::size_t>(num_ranks));
  group.run([&](in_process_endpoint& control) {
    use_device_of(control.rank());
    law_log log{control.rank()};
    auto const compute = cudart::stream::create();
    wires copies{peers.join(control.rank())};
    gpu_weights weights{where, control.rank(), initial, odd_tensors()};
    store_type store{
        where, control.rank(), initial, {.compute_stream = compute.get(), .copy_streams = {copies.copy_stream()}}};
    weights.add_to(store);
    cudart::device_recorder recorder{compute.get(), num_layers, initial.num_logical(), {2, 2}};
    auto const counters = recorder.view();
    captured_pass const passes[] = {{compute.get(), where, control.rank(), counters, store.view(), weights, 0},
                                    {compute.get(), where, control.rank(), counters, store.view(), weights, 1}};
    auto moved = make_rebalancer(
        where, initial, rebalancing{std::move(recorder), shuffle_placement{}, layers_per_chunk{1}, {.interval = 2}},
        store, copies, control);
    log.expect_ok(moved.start(), "start");
    for (int step = 0; step < 60 && log.complaints().empty(); ++step) {
      for (index_t layer = 0; layer < num_layers; ++layer) { passes[layer].replay(); }
      // The call comes while the pass may still be running; its commits are for the next one.
      auto const during = moved.current();
      log.expect_ok(moved.on_forward_pass_end(), "on_forward_pass_end");
      for (index_t layer = 0; layer < num_layers; ++layer) {
        auto const error = passes[layer].first_error(where, control.rank(), layer, during);
        log.expect(error.empty(), "step ", step, ", layer ", layer, ": ", error);
      }
    }
    log.expect(moved.epoch(0) >= 10 && moved.epoch(1) >= 10, "only ", moved.epoch(0), " and ", moved.epoch(1),
               " rebalances");
    auto const error = weights.first_error(moved.current());
    log.expect(error.empty(), "wrong at ", error);
    static_cast<void>(control.vote(true, patience));
    complaints[static_cast<std::size_t>(control.rank())] = log.complaints();
  });
  for (auto const& some : complaints) { check_complaints(some); }
}
