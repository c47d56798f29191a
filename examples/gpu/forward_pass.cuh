// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_GPU_FORWARD_PASS_CUH
#define BALLAST_EXAMPLES_GPU_FORWARD_PASS_CUH

#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/cudart/record_view.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/types.hpp>

#include "experts.cuh"
#include "rank.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

// A rank's weights in device memory, and the forward pass that reads them.

namespace gpu_example {

namespace cudart = ballast::cudart;

inline void check(cudaError_t result, char const* call) { cudart::to_status(result, call).or_throw(); }

/// T * k
[[nodiscard]] inline std::size_t choices_of_layer(settings const& how) {
  return static_cast<std::size_t>(how.num_tokens) * static_cast<std::size_t>(how.top_k);
}

/// The slots of this rank in every layer.
class expert_weights {
public:
  expert_weights(settings const& how, index_t rank) {
    auto const num_slots = static_cast<std::size_t>(how.where.slots_per_rank());
    auto const first_slot = static_cast<std::size_t>(how.where.first_slot(rank));
    for (index_t layer = 0; layer < how.initial.num_layers(); ++layer) {
      auto const experts = how.initial.logical_of_slot(layer).subspan(first_slot, num_slots);
      for (int tensor = 0; tensor < num_tensors; ++tensor) {
        std::vector<std::uint32_t> words;
        for (auto const expert : experts) {
          for (std::uint32_t i = 0; i < words_of(tensor); ++i) { words.push_back(weight(layer, tensor, expert, i)); }
        }
        auto const& block = blocks_.emplace_back(cudart::device_memory<std::uint32_t>::create(words.size()));
        check(cudaMemcpy(block.data(), words.data(), words.size() * sizeof(std::uint32_t), cudaMemcpyHostToDevice),
              "cudaMemcpy");
        check(cudaStreamSynchronize(cudaStreamLegacy),
              "cudaStreamSynchronize");  // it may return before the bytes are there
      }
    }
  }
  template <class Store>
  void add_to(Store& store) const {
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      auto const tensor = static_cast<int>(i) % num_tensors;
      store
          .add(static_cast<index_t>(i) / num_tensors, tensor == 0 ? "up" : "down", blocks_[i].data(),
               words_of(tensor) * sizeof(std::uint32_t))
          .or_throw();
    }
  }
  /// [S, words_of(tensor)]
  [[nodiscard]] std::uint32_t const* slots(index_t layer, int tensor) const {
    return blocks_[static_cast<std::size_t>(layer * num_tensors + tensor)].data();
  }

private:
  std::vector<cudart::device_memory<std::uint32_t>> blocks_;  // [L, num_tensors]
};

/// The forward pass of all layers. Captured once: recorder, tables and weights keep their addresses, and what a commit
/// changes is behind them.
class forward_pass {
public:
  forward_pass(cudaStream_t stream, settings const& how, index_t rank, cudart::record_view const& counters,
               ballast::dispatch_view const& tables, expert_weights const& weights)
      : stream_{stream} {
    auto const count = static_cast<std::size_t>(how.initial.num_layers()) * choices_of_layer(how);
    logical_ = cudart::device_memory<std::int32_t>::create(count);
    physical_ = cudart::device_memory<std::int32_t>::create(count);
    computed_ = cudart::device_memory<std::int64_t>::create(count);
    host_choices_.allocate(count * sizeof(std::int32_t)).or_throw();
    host_outputs_.allocate(count * sizeof(std::int64_t)).or_throw();

    // Once outside of a capture, because a first launch loads its kernel. Ids of -1 are neither counted nor computed.
    check(cudaMemsetAsync(logical_.data(), 0xff, count * sizeof(std::int32_t), stream), "cudaMemsetAsync");
    enqueue(how, rank, counters, tables, weights);
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    enqueue(how, rank, counters, tables, weights);
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    auto const made = cudaGraphInstantiate(&pass_, graph, 0);
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    check(made, "cudaGraphInstantiate");
  }
  forward_pass(forward_pass const&) = delete;
  forward_pass& operator=(forward_pass const&) = delete;
  ~forward_pass() { static_cast<void>(cudaGraphExecDestroy(pass_)); }

  /// @param choices  [L, T, k] logical experts
  void launch(std::span<std::int32_t const> choices) {
    auto const bytes = host_choices_.bytes();
    std::memcpy(bytes.data(), choices.data(), bytes.size());
    check(cudaMemcpyAsync(logical_.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream_),
          "cudaMemcpyAsync");
    check(cudaGraphLaunch(pass_, stream_), "cudaGraphLaunch");
    auto const outputs = host_outputs_.bytes();
    check(cudaMemcpyAsync(outputs.data(), computed_.data(), outputs.size(), cudaMemcpyDeviceToHost, stream_),
          "cudaMemcpyAsync");
  }
  /// Wait for the pass. @return [L, T, k], 0 for what other ranks compute
  [[nodiscard]] std::span<std::int64_t> await_outputs() {
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    return {reinterpret_cast<std::int64_t*>(host_outputs_.bytes().data()), computed_.size()};
  }

private:
  void enqueue(settings const& how, index_t rank, cudart::record_view const& counters,
               ballast::dispatch_view const& tables, expert_weights const& weights) {
    auto const count = choices_of_layer(how);
    for (index_t layer = 0; layer < how.initial.num_layers(); ++layer) {
      auto const first = static_cast<std::size_t>(layer) * count;
      cudart::routing<std::int32_t> const router{logical_.data() + first, how.num_tokens, how.top_k};
      cudart::dispatch_and_record(stream_, counters, tables, layer, router, physical_.data() + first).or_throw();
      expert_work work;
      work.physical = physical_.data() + first;
      work.num_choices = static_cast<std::uint32_t>(count);
      work.top_k = static_cast<std::uint32_t>(how.top_k);
      for (int tensor = 0; tensor < num_tensors; ++tensor) { work.slots[tensor] = weights.slots(layer, tensor); }
      work.first_physical = how.where.physical_id(how.where.first_slot(rank));
      work.num_slots = how.where.slots_per_rank();
      work.outputs = computed_.data() + first;
      constexpr unsigned threads = 128;
      run_experts<<<(work.num_choices + threads - 1) / threads, threads, 0, stream_>>>(work);
      check(cudaGetLastError(), "run_experts");
    }
  }

  cudaStream_t stream_;
  cudart::device_memory<std::int32_t> logical_;
  cudart::device_memory<std::int32_t> physical_;
  cudart::device_memory<std::int64_t> computed_;
  cudart::pinned_buffer host_choices_;
  cudart::pinned_buffer host_outputs_;
  cudaGraphExec_t pass_ = nullptr;
};

}  // namespace gpu_example

#endif
