// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Kernels, captures and graphs.
#include "machine.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

using namespace ballast_test::simulated;
using lock_type = scheduler::lock_type;

namespace {

/// Collects what an emulation says.
class collected_actions final : public kernel_actions {
public:
  void copy(void* to, void const* from, std::size_t bytes) override {
    if (bytes > 0) { copies.push_back({static_cast<std::byte*>(to), static_cast<std::byte const*>(from), bytes}); }
  }
  void reads(void const* from, std::size_t bytes) override {
    if (bytes > 0) { touches.push_back({static_cast<std::byte const*>(from), bytes, access_kind::reads}); }
  }
  void writes(void* to, std::size_t bytes) override {
    if (bytes > 0) { touches.push_back({static_cast<std::byte const*>(to), bytes, access_kind::writes}); }
  }
  void adds(void* to, std::size_t bytes) override {
    if (bytes > 0) { touches.push_back({static_cast<std::byte const*>(to), bytes, access_kind::adds}); }
  }
  void compute(std::function<void()> work) override {
    if (works) {
      work = [first = std::exchange(works, {}), next = std::move(work)] {
        first();
        next();
      };
    }
    works = std::move(work);
  }

  std::vector<copy_item> copies;
  std::vector<touched> touches;
  std::function<void()> works;
};

/// Emulations by the address of the kernel's host function; known before the first machine and after the last.
std::map<void const*, kernel_emulation>& emulations() {
  static auto& all = *new std::map<void const*, kernel_emulation>;
  return all;
}
/// Kernels that nvcc's code has registered: what they are called, and how large their arguments are not.
std::map<void const*, std::string>& kernel_names() {
  static auto& all = *new std::map<void const*, std::string>;
  return all;
}
std::mutex registering;

/// Arguments are copied when a launch is made: the emulation is asked at once.
[[nodiscard]] cudaError_t make_kernel(machine& all, void const* kernel, dim3 blocks, dim3 threads, void** arguments,
                                      operation_maker& out) {
  kernel_emulation emulation;
  {
    std::lock_guard const held{registering};
    auto const found = emulations().find(kernel);
    if (found != emulations().end()) { emulation = found->second; }
  }
  if (!emulation) {
    std::lock_guard const held{registering};
    auto const name = kernel_names().find(kernel);
    all.complain("unknown kernel",
                 "no emulation of kernel " + (name == kernel_names().end() ? std::string{"?"} : name->second));
    return cudaErrorInvalidDeviceFunction;
  }
  auto actions = std::make_shared<collected_actions>();
  emulation(*actions, blocks, threads, arguments);
  out = [actions](machine&) {
    auto made = std::make_unique<memory_operation>("kernel", actions->copies, actions->touches, actions->works);
    made->is_kernel = true;
    return made;
  };
  return cudaSuccess;
}

[[nodiscard]] cudaError_t launch(machine& all, void const* kernel, dim3 blocks, dim3 threads, void** arguments,
                                 cudaStream_t where) {
  auto* const on = all.find(where);
  if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
  auto const is_empty = [](dim3 const& size) { return size.x == 0 || size.y == 0 || size.z == 0; };
  if (is_empty(blocks) || is_empty(threads)) { return cudaErrorInvalidConfiguration; }
  operation_maker make;
  if (auto const result = make_kernel(all, kernel, blocks, threads, arguments, make); result != cudaSuccess) {
    return result;
  }
  all.enqueue(*on, make);
  return cudaSuccess;
}

[[nodiscard]] std::shared_ptr<graph> to_graph(machine& all, cudaGraph_t handle) {
  for (auto const& each : all.graphs) {
    if (each.get() == reinterpret_cast<graph*>(handle)) { return each; }
  }
  return nullptr;
}
[[nodiscard]] graph_exec* to_executable(machine& all, cudaGraphExec_t handle) {
  for (auto const& each : all.executables) {
    if (each.get() == reinterpret_cast<graph_exec*>(handle)) { return each.get(); }
  }
  return nullptr;
}
[[nodiscard]] cudaGraph_t add_graph(machine& all, std::shared_ptr<graph> what) {
  all.graphs.push_back(std::move(what));
  return reinterpret_cast<cudaGraph_t>(all.graphs.back().get());
}

[[nodiscard]] cudaError_t end_capture(machine& all, stream& on, cudaGraph_t* out) {
  auto const ended = on.capturing;
  *out = nullptr;
  if (ended == nullptr) { return cudaErrorIllegalState; }
  if (ended->origin != &on) { return cudaErrorStreamCaptureUnmatched; }
  if (ended->thread != std::this_thread::get_id() && ended->mode != cudaStreamCaptureModeRelaxed) {
    return cudaErrorStreamCaptureWrongThread;
  }
  for (auto const& each : all.streams()) {
    if (each->capturing == ended) { each->capturing = nullptr; }
  }
  std::erase(all.captures, ended);
  if (ended->broken) { return cudaErrorStreamCaptureInvalidated; }
  *out = add_graph(all, ended->into);
  return cudaSuccess;
}

}  // namespace

namespace ballast_test::simulated {
void simulate_kernel_by_address(void const* kernel, kernel_emulation emulation) {
  std::lock_guard const held{registering};
  if (emulation) {
    emulations()[kernel] = std::move(emulation);
  } else {
    emulations().erase(kernel);
  }
}
}  // namespace ballast_test::simulated

extern "C" {

// ---- kernels ------------------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaLaunchKernel(void const* kernel, dim3 blocks, dim3 threads, void** arguments,
                                       std::size_t /*shared*/, cudaStream_t where) {
  return runtime_call("cudaLaunchKernel", plain, [&](machine& all, thread_state&, lock_type&) {
    return launch(all, kernel, blocks, threads, arguments, where);
  });
}
cudaError_t CUDARTAPI cudaLaunchKernelExC(cudaLaunchConfig_t const* how, void const* kernel, void** arguments) {
  return runtime_call("cudaLaunchKernelEx", plain, [&](machine& all, thread_state&, lock_type&) {
    return launch(all, kernel, how->gridDim, how->blockDim, arguments, how->stream);
  });
}
cudaError_t CUDARTAPI cudaLaunchCooperativeKernel(void const* kernel, dim3 blocks, dim3 threads, void** arguments,
                                                  std::size_t /*shared*/, cudaStream_t where) {
  return runtime_call("cudaLaunchCooperativeKernel", plain, [&](machine& all, thread_state&, lock_type&) {
    return launch(all, kernel, blocks, threads, arguments, where);
  });
}
cudaError_t CUDARTAPI cudaFuncGetAttributes(cudaFuncAttributes* out, void const* /*kernel*/) {
  *out = {};
  out->maxThreadsPerBlock = 1024;
  out->binaryVersion = out->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaFuncSetAttribute(void const*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void const*, int, std::size_t) {
  *blocks = 1;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void const*, int, std::size_t,
                                                                             unsigned) {
  *blocks = 1;
  return cudaSuccess;
}

// What nvcc's code calls: registration before main, and the two halves of <<<>>>. The names are nvcc's.
// NOLINTBEGIN(bugprone-reserved-identifier, readability-identifier-naming, bugprone-sizeof-expression)
// NOLINTBEGIN(bugprone-multi-level-implicit-pointer-conversion): handles are pointers

void** CUDARTAPI __cudaRegisterFatBinary(void* /*binary*/) {
  static void* handle = nullptr;
  return &handle;
}
void CUDARTAPI __cudaRegisterFatBinaryEnd(void** /*handle*/) {}
void CUDARTAPI __cudaUnregisterFatBinary(void** /*handle*/) {}
void CUDARTAPI __cudaRegisterFunction(void** /*handle*/, char const* kernel, char* /*device_function*/,
                                      char const* name, int /*thread_limit*/, uint3* /*thread*/, uint3* /*block*/,
                                      dim3* /*threads*/, dim3* /*blocks*/, int* /*warp_size*/) {
  std::lock_guard const held{registering};
  kernel_names()[kernel] = name;
}
void CUDARTAPI __cudaRegisterVar(void**, char*, char*, char const*, int, std::size_t, int, int) {}
char CUDARTAPI __cudaInitModule(void**) { return 1; }
unsigned CUDARTAPI __cudaPushCallConfiguration(dim3 blocks, dim3 threads, std::size_t shared, cudaStream_t where) {
  machine::thread().launches.push_back({blocks, threads, shared, where});
  return 0;
}
cudaError_t CUDARTAPI __cudaPopCallConfiguration(dim3* blocks, dim3* threads, std::size_t* shared, void* where) {
  auto& launches = machine::thread().launches;
  if (launches.empty()) { return cudaErrorUnknown; }
  auto const& last = launches.back();
  *blocks = last.blocks;
  *threads = last.threads;
  *shared = last.shared;
  std::memcpy(where, &last.stream, sizeof last.stream);
  launches.pop_back();
  return cudaSuccess;
}
cudaError_t CUDARTAPI __cudaGetKernel(cudaKernel_t* out, void const* kernel) {
  void* const address = const_cast<void*>(kernel);
  std::memcpy(out, &address, sizeof address);
  return cudaSuccess;
}
cudaError_t CUDARTAPI __cudaLaunchKernel(cudaKernel_t kernel, dim3 blocks, dim3 threads, void** arguments,
                                         std::size_t shared, cudaStream_t where) {
  void const* address = nullptr;
  std::memcpy(&address, &kernel, sizeof address);
  return cudaLaunchKernel(address, blocks, threads, arguments, shared, where);
}
// NOLINTEND(bugprone-multi-level-implicit-pointer-conversion)
// NOLINTEND(bugprone-reserved-identifier, readability-identifier-naming, bugprone-sizeof-expression)

// ---- captures -----------------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(machine::thread().mode, *mode);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t where, cudaStreamCaptureMode mode) {
  return runtime_call("cudaStreamBeginCapture", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(where);
    if (on == nullptr || on->is_legacy) { return cudaErrorStreamCaptureUnsupported; }
    if (on->capturing != nullptr) { return cudaErrorIllegalState; }
    auto begun = std::make_shared<capture>();
    begun->origin = on;
    begun->mode = mode;
    begun->thread = std::this_thread::get_id();
    begun->id = all.next_capture++;
    begun->into = std::make_shared<graph>();
    on->capturing = begun;
    all.captures.push_back(std::move(begun));
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t where, cudaGraph_t* out) {
  return runtime_call("cudaStreamEndCapture", always_ok, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(where);
    return on == nullptr ? cudaErrorInvalidResourceHandle : end_capture(all, *on, out);
  });
}
cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t where, cudaStreamCaptureStatus* out) {
  return runtime_call("cudaStreamIsCapturing", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(where);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    *out = on->capturing == nullptr ? cudaStreamCaptureStatusNone
           : on->capturing->broken  ? cudaStreamCaptureStatusInvalidated
                                    : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}

// ---- graphs -------------------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaGraphCreate(cudaGraph_t* out, unsigned /*flags*/) {
  return runtime_call("cudaGraphCreate", plain, [&](machine& all, thread_state&, lock_type&) {
    *out = add_graph(all, std::make_shared<graph>());
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t handle) {
  return runtime_call("cudaGraphDestroy", always_ok, [&](machine& all, thread_state&, lock_type&) {
    auto const which = to_graph(all, handle);
    if (which == nullptr) { return cudaErrorInvalidValue; }
    std::erase(all.graphs, which);
    return cudaSuccess;
  });
}
/// Nodes run one after the other, in the order in which they were added.
cudaError_t CUDARTAPI cudaGraphAddKernelNode(cudaGraphNode_t* out, cudaGraph_t handle,
                                             cudaGraphNode_t const* /*dependencies*/, std::size_t /*count*/,
                                             cudaKernelNodeParams const* node) {
  return runtime_call("cudaGraphAddKernelNode", plain, [&](machine& all, thread_state&, lock_type&) {
    auto const which = to_graph(all, handle);
    if (which == nullptr) { return cudaErrorInvalidValue; }
    graph_node made;
    auto const result = make_kernel(all, node->func, node->gridDim, node->blockDim, node->kernelParams, made.make);
    if (result != cudaSuccess) { return result; }
    which->nodes.push_back(std::make_unique<graph_node>(std::move(made)));
    *out = reinterpret_cast<cudaGraphNode_t>(which->nodes.back().get());
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGraphGetNodes(cudaGraph_t handle, cudaGraphNode_t* nodes, std::size_t* count) {
  return runtime_call("cudaGraphGetNodes", plain, [&](machine& all, thread_state&, lock_type&) {
    auto const which = to_graph(all, handle);
    if (which == nullptr) { return cudaErrorInvalidValue; }
    for (std::size_t i = 0; nodes != nullptr && i < std::min(*count, which->nodes.size()); ++i) {
      nodes[i] = reinterpret_cast<cudaGraphNode_t>(which->nodes[i].get());
    }
    *count = which->nodes.size();
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t handle, unsigned long long /*flags*/) {
  return runtime_call("cudaGraphInstantiate", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto const which = to_graph(all, handle);
    if (which == nullptr) { return cudaErrorInvalidValue; }
    auto made = std::make_unique<graph_exec>();
    for (auto const& node : which->nodes) {
      made->places[node.get()] = made->makers.size();
      made->makers.push_back(node->make);
    }
    *out = reinterpret_cast<cudaGraphExec_t>(made.get());
    all.executables.push_back(std::move(made));
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGraphExecKernelNodeSetParams(cudaGraphExec_t handle, cudaGraphNode_t node,
                                                       cudaKernelNodeParams const* to) {
  return runtime_call("cudaGraphExecKernelNodeSetParams", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const which = to_executable(all, handle);
    if (which == nullptr) { return cudaErrorInvalidValue; }
    auto const place = which->places.find(reinterpret_cast<graph_node const*>(node));
    if (place == which->places.end()) { return cudaErrorInvalidValue; }
    return make_kernel(all, to->func, to->gridDim, to->blockDim, to->kernelParams, which->makers[place->second]);
  });
}
cudaError_t CUDARTAPI cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t where) {
  return runtime_call("cudaGraphLaunch", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const which = to_executable(all, handle);
    auto* const on = all.find(where);
    if (which == nullptr || on == nullptr) { return cudaErrorInvalidValue; }
    for (auto const& make : which->makers) { all.enqueue(*on, make); }
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t handle) {
  return runtime_call("cudaGraphExecDestroy", always_ok, [&](machine& all, thread_state&, lock_type&) {
    auto* const which = to_executable(all, handle);
    if (which == nullptr) { return cudaErrorInvalidValue; }
    std::erase_if(all.executables, [&](auto const& each) { return each.get() == which; });
    return cudaSuccess;
  });
}

}  // extern "C"
