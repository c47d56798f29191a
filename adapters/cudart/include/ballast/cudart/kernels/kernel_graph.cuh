// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_KERNEL_GRAPH_CUH
#define BALLAST_CUDART_KERNELS_KERNEL_GRAPH_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/kernel_graph.cuh launches kernels: include it from a .cu file"
#endif

#include <ballast/contract.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/status.hpp>

#include <cuda_runtime_api.h>

#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// A kernel in a graph of its own: enqueuing the graph takes the host half the time of a launch, even where the
/// arguments are new.
///
/// @tparam Arguments  of the kernel.
/// @threads one thread at a time; the same device is current in all calls.
template <class... Arguments>
class kernel_graph {
public:
  /// @param kernel  loaded by the first `prepare`, not here.
  explicit kernel_graph(void (*kernel)(Arguments...)) noexcept : kernel_{kernel} {}
  kernel_graph(kernel_graph&& other) noexcept
      : kernel_{other.kernel_},
        graph_{std::exchange(other.graph_, nullptr)},
        node_{other.node_},
        executable_{std::exchange(other.executable_, nullptr)} {}
  kernel_graph& operator=(kernel_graph&& other) noexcept {
    std::swap(kernel_, other.kernel_);
    std::swap(graph_, other.graph_);
    std::swap(node_, other.node_);
    std::swap(executable_, other.executable_);
    return *this;
  }
  ~kernel_graph() {
    detail::capture_guard const guard;
    if (executable_ != nullptr) { static_cast<void>(cudaGraphExecDestroy(executable_)); }
    if (graph_ != nullptr) { static_cast<void>(cudaGraphDestroy(graph_)); }
  }

  /// Set shape and arguments of the launches to come; the first time, load the kernel and make its graph. What is
  /// already enqueued keeps its own.
  ///
  /// @param blocks     of the grid, at least 1.
  /// @param threads    of each block.
  /// @param arguments  of the kernel, copied.
  /// @return `cudart::category()`; after it, the launches to come may be as before.
  /// @complexity one call of the driver; the first time several, and it may wait for the device.
  [[nodiscard]] status prepare(unsigned blocks, unsigned threads, Arguments... arguments) {
    void* pointers[] = {&arguments...};
    cudaKernelNodeParams node{};
    node.func = reinterpret_cast<void*>(kernel_);
    node.gridDim = dim3{blocks};
    node.blockDim = dim3{threads};
    node.kernelParams = pointers;
    if (executable_ != nullptr) {
      return to_status(cudaGraphExecKernelNodeSetParams(executable_, node_, &node), "cudaGraphExecKernelNodeSetParams");
    }
    return instantiate(node);
  }

  /// Enqueue the kernel, as prepared last. Does not wait.
  ///
  /// @return `cudart::category()`
  /// @pre `prepare` succeeded; the stream is not being captured
  [[nodiscard]] status launch(cudaStream_t on) const {
    BALLAST_ASSERT(executable_ != nullptr, "kernel_graph: launched before it was prepared");
    return to_status(cudaGraphLaunch(executable_, on), "cudaGraphLaunch");
  }

private:
  [[nodiscard]] status instantiate(cudaKernelNodeParams const& node) {
    if (graph_ != nullptr) {  // a node of a try that failed would run as well
      static_cast<void>(cudaGraphDestroy(graph_));
      graph_ = nullptr;
    }
    if (auto result = to_status(cudaGraphCreate(&graph_, 0), "cudaGraphCreate"); !result.ok()) { return result; }
    auto result = to_status(cudaGraphAddKernelNode(&node_, graph_, nullptr, 0, &node), "cudaGraphAddKernelNode");
    return result.ok() ? to_status(cudaGraphInstantiate(&executable_, graph_, 0), "cudaGraphInstantiate") : result;
  }

  void (*kernel_)(Arguments...);
  cudaGraph_t graph_ = nullptr;
  cudaGraphNode_t node_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
