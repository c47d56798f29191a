// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The CUDA runtime's functions: devices, streams, events, copies.
#include "machine.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

using namespace ballast_test::simulated;
using lock_type = scheduler::lock_type;

namespace {

[[nodiscard]] bool is_device(machine const& all, int number) {
  return number >= 0 && number < static_cast<int>(all.devices.size());
}

struct error_text {
  cudaError_t value;
  char const* name;
  char const* text;
};
constexpr error_text texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorPeerAccessAlreadyEnabled, "cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
    {cudaErrorPeerAccessUnsupported, "cudaErrorPeerAccessUnsupported", "peer access is not supported"},
    {cudaErrorPeerAccessNotEnabled, "cudaErrorPeerAccessNotEnabled", "peer access has not been enabled"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation", "dependency on uncaptured work"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread", "capture ended by another thread"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capture"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

/// What a call returns that waited for work that poisoned the context, or never ended.
[[nodiscard]] cudaError_t outcome(machine& all, bool ended, int device) {
  if (!ended) { return cudaErrorLaunchTimeout; }
  return all.devices[static_cast<std::size_t>(device)]->poisoned;
}

/// Look at one end of a copy.
/// @param with_host  the other end is memory of the host: then a device that holds the memory itself does the copy
/// @param pageable   in/out: whether some end is memory that the driver does not know
[[nodiscard]] cudaError_t check_end(machine& all, thread_state const& self, stream const& on, void const* address,
                                    std::size_t bytes, bool writes, bool with_host, bool& pageable) {
  std::vector<located> parts;
  switch (all.memory.resolve(address, bytes, parts)) {
    case lookup::found: break;
    case lookup::pageable: pageable = true; return cudaSuccess;
    case lookup::crosses:
      all.complain("spans allocations", "a copy spans two allocations");
      return cudaErrorInvalidValue;
    case lookup::gone:
      all.complain("use after free", "a copy of memory that is not there");
      return cudaErrorInvalidValue;
  }
  for (auto const& part : parts) {
    auto const& where = *part.where;
    bool const is_plain = where.kind == memory_kind::device || where.kind == memory_kind::imported;
    if (!(with_host && is_plain) && !all.can_access(where, on.device, writes)) {
      all.complain("no access", "device " + std::to_string(on.device) + " may not reach memory of device " +
                                    std::to_string(where.device));
      return cudaErrorInvalidValue;
    }
    if (all.options.bug_3446335 && where.kind == memory_kind::pool && where.device != self.device) {
      return cudaErrorInvalidValue;
    }
  }
  return cudaSuccess;
}
[[nodiscard]] bool is_of_host(machine const& all, void const* address) {
  auto const found = all.memory.find(address);
  return found == nullptr || found->is_host();
}

/// Whether the ends are what the caller says they are.
[[nodiscard]] bool is_of_kind(machine const& all, void const* to, void const* from, cudaMemcpyKind kind) {
  bool const reads_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  bool const writes_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  return (!reads_device || all.memory.find(from) != nullptr) && (!writes_device || all.memory.find(to) != nullptr);
}

/// Enqueue copies; wait where the runtime would.
[[nodiscard]] cudaError_t copy(machine& all, thread_state& self, lock_type& lock, std::string_view call, stream& on,
                               std::vector<copy_item> items, bool waits) {
  std::erase_if(items, [](copy_item const& item) { return item.bytes == 0; });
  bool pageable = false;
  for (auto const& item : items) {
    bool const with_host = is_of_host(all, item.from) || is_of_host(all, item.to);
    auto result = check_end(all, self, on, item.from, item.bytes, false, with_host, pageable);
    if (result == cudaSuccess) { result = check_end(all, self, on, item.to, item.bytes, true, with_host, pageable); }
    if (result != cudaSuccess) { return result; }
  }
  if (on.is_legacy && !all.may_be_unsafe(call)) { return cudaErrorStreamCaptureUnsupported; }
  all.enqueue(on, [items = std::move(items)](machine&) {
    auto made = std::make_unique<memory_operation>("copy", items, std::vector<touched>{});
    made->goes_anywhere = true;  // looked at above
    return made;
  });
  if ((!pageable && !waits) || on.capturing != nullptr) { return cudaSuccess; }
  return outcome(all, all.wait_for_stream(lock, on, call), on.device);
}

[[nodiscard]] cudaError_t fill(machine& all, thread_state const& self, std::string_view call, stream& on, void* to,
                               int value, std::size_t bytes) {
  bool pageable = false;
  if (auto const result = check_end(all, self, on, to, bytes, true, true, pageable); result != cudaSuccess) {
    return result;
  }
  if (pageable) { return cudaErrorInvalidValue; }
  if (on.is_legacy && !all.may_be_unsafe(call)) { return cudaErrorStreamCaptureUnsupported; }
  auto* const bytes_of = static_cast<std::byte*>(to);
  all.enqueue(on, [=](machine&) {
    return std::make_unique<memory_operation>("fill", std::vector<copy_item>{},
                                              std::vector<touched>{{bytes_of, bytes, access_kind::writes}},
                                              [=] { std::memset(to, value, bytes); });
  });
  return cudaSuccess;
}

/// What a stream that captures does not allow.
[[nodiscard]] bool breaks_capture(machine& all, stream const& on, std::string_view call) {
  if (on.capturing == nullptr) { return false; }
  if (!std::exchange(on.capturing->broken, true)) {
    all.complain("capture lost", std::string{call} + " on a stream that captures");
  }
  return true;
}

[[nodiscard]] ballast_test::simulated::event* to_event(machine& all, cudaEvent_t handle) {
  for (auto const& each : all.events) {
    if (each.get() == reinterpret_cast<ballast_test::simulated::event*>(handle)) { return each.get(); }
  }
  all.complain("invalid event", "an event that was destroyed, or never made, is used");
  return nullptr;
}

[[nodiscard]] cudaEvent_t add_event(machine& all, std::shared_ptr<event_core> core, int device) {
  all.events.push_back(
      std::make_unique<ballast_test::simulated::event>(ballast_test::simulated::event{std::move(core), device}));
  return reinterpret_cast<cudaEvent_t>(all.events.back().get());
}

}  // namespace

extern "C" {

// ---- errors and devices -------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaGetLastError(void) { return std::exchange(machine::thread().last, cudaSuccess); }
cudaError_t CUDARTAPI cudaPeekAtLastError(void) { return machine::thread().last; }
char const* CUDARTAPI cudaGetErrorString(cudaError_t error) {
  for (auto const& each : texts) {
    if (each.value == error) { return each.text; }
  }
  return "unrecognized error code";
}
char const* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  for (auto const& each : texts) {
    if (each.value == error) { return each.name; }
  }
  return "cudaErrorUnrecognized";
}
cudaError_t CUDARTAPI cudaGetDeviceCount(int* count) {
  return runtime_call("cudaGetDeviceCount", always_ok, [&](machine& all, thread_state&, lock_type&) {
    *count = static_cast<int>(all.devices.size());
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  *device = machine::thread().device;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaSetDevice(int device) {
  return runtime_call("cudaSetDevice", always_ok, [&](machine& all, thread_state& self, lock_type&) {
    if (!is_device(all, device)) { return cudaErrorInvalidDevice; }
    self.device = device;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceSynchronize(void) {
  return runtime_call("cudaDeviceSynchronize", unsafe, [&](machine& all, thread_state& self, lock_type& lock) {
    return outcome(all, all.wait_for_device(lock, self.device, "cudaDeviceSynchronize"), self.device);
  });
}
cudaError_t CUDARTAPI cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return runtime_call("cudaDeviceCanAccessPeer", plain, [&](machine& all, thread_state&, lock_type&) {
    if (!is_device(all, device) || !is_device(all, peer)) { return cudaErrorInvalidDevice; }
    *can = device != peer && all.options.peer_access ? 1 : 0;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  return runtime_call("cudaDeviceEnablePeerAccess", unsafe, [&](machine& all, thread_state& self, lock_type&) {
    if (flags != 0) { return cudaErrorInvalidValue; }
    if (!is_device(all, peer) || peer == self.device) { return cudaErrorInvalidDevice; }
    if (!all.options.peer_access) { return cudaErrorPeerAccessUnsupported; }
    auto& peers = all.devices[static_cast<std::size_t>(self.device)]->peers;
    if ((peers >> peer & 1) != 0) { return cudaErrorPeerAccessAlreadyEnabled; }
    peers |= std::uint64_t{1} << peer;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceDisablePeerAccess(int peer) {
  return runtime_call("cudaDeviceDisablePeerAccess", unsafe, [&](machine& all, thread_state& self, lock_type&) {
    auto& peers = all.devices[static_cast<std::size_t>(self.device)]->peers;
    if ((peers >> peer & 1) == 0) { return cudaErrorPeerAccessNotEnabled; }
    peers &= ~(std::uint64_t{1} << peer);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device) {
  return runtime_call("cudaDeviceGetAttribute", plain, [&](machine& all, thread_state&, lock_type&) {
    if (!is_device(all, device)) { return cudaErrorInvalidDevice; }
    switch (what) {
      case cudaDevAttrMultiProcessorCount: *value = 4; break;
      case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
      case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
      case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
      case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
      case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
      case cudaDevAttrWarpSize: *value = 32; break;
      case cudaDevAttrPciBusId: *value = device + 1; break;
      case cudaDevAttrPciDeviceId:
      case cudaDevAttrPciDomainId: *value = 0; break;
      default: *value = 1; break;
    }
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGetDeviceProperties(cudaDeviceProp* out, int device) {
  return runtime_call("cudaGetDeviceProperties", plain, [&](machine& all, thread_state&, lock_type&) {
    if (!is_device(all, device)) { return cudaErrorInvalidDevice; }
    *out = {};
    std::strcpy(out->name, "simulated device");
    out->major = 9;
    out->multiProcessorCount = 4;
    out->warpSize = 32;
    out->maxThreadsPerBlock = 1024;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDeviceGetPCIBusId(char* id, int size, int device) {
  return runtime_call("cudaDeviceGetPCIBusId", plain, [&](machine&, thread_state&, lock_type&) {
    auto const text = "0000:0" + std::to_string(device) + ":00.0";
    if (size <= static_cast<int>(text.size())) { return cudaErrorInvalidValue; }
    std::memcpy(id, text.c_str(), text.size() + 1);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

// ---- streams ------------------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int /*priority*/) {
  return runtime_call("cudaStreamCreate", plain, [&](machine& all, thread_state& self, lock_type&) {
    *out = reinterpret_cast<cudaStream_t>(&all.create_stream(self.device, (flags & cudaStreamNonBlocking) == 0));
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
  return cudaStreamCreateWithPriority(out, flags, 0);
}
cudaError_t CUDARTAPI cudaStreamCreate(cudaStream_t* out) { return cudaStreamCreateWithPriority(out, 0, 0); }
cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t handle) {
  return runtime_call("cudaStreamDestroy", always_ok, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(handle);
    if (on == nullptr || reinterpret_cast<std::uintptr_t>(handle) <= 2) { return cudaErrorInvalidResourceHandle; }
    all.destroy_stream(*on);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t handle) {
  return runtime_call("cudaStreamSynchronize", unsafe, [&](machine& all, thread_state&, lock_type& lock) {
    auto* const on = all.find(handle);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    if (breaks_capture(all, *on, "cudaStreamSynchronize")) { return cudaErrorStreamCaptureUnsupported; }
    return outcome(all, all.wait_for_stream(lock, *on, "cudaStreamSynchronize"), on->device);
  });
}
cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t handle) {
  return runtime_call("cudaStreamQuery", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(handle);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    if (breaks_capture(all, *on, "cudaStreamQuery")) { return cudaErrorStreamCaptureUnsupported; }
    if (!on->is_idle()) { return cudaErrorNotReady; }
    all.observed.join(on->clock);
    return outcome(all, true, on->device);
  });
}
cudaError_t CUDARTAPI cudaStreamGetDevice(cudaStream_t handle, int* device) {
  return runtime_call("cudaStreamGetDevice", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(handle);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    *device = on->device;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  return runtime_call("cudaStreamGetFlags", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(handle);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    *flags = on->is_blocking || on->is_legacy ? cudaStreamDefault : cudaStreamNonBlocking;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaStreamGetPriority(cudaStream_t /*handle*/, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* argument) {
  return runtime_call("cudaLaunchHostFunc", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(handle);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    all.enqueue(*on, [=](machine&) {
      auto called = std::make_shared<bool>(false);
      return std::make_unique<function_operation>("host function", [=] {
        if (std::exchange(*called, true)) { return step::done(); }
        return step::later(0, [=] { function(argument); });
      });
    });
    return cudaSuccess;
  });
}

// ---- events -------------------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
  return runtime_call("cudaEventCreate", plain, [&](machine& all, thread_state& self, lock_type&) {
    bool const timed = (flags & cudaEventDisableTiming) == 0;
    if (timed && (flags & cudaEventInterprocess) != 0) { return cudaErrorInvalidValue; }
    auto core = std::make_shared<event_core>();
    core->device = self.device;
    core->flags = flags;
    *out = add_event(all, std::move(core), self.device);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t* out) { return cudaEventCreateWithFlags(out, cudaEventDefault); }
cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t handle) {
  return runtime_call("cudaEventDestroy", always_ok, [&](machine& all, thread_state&, lock_type&) {
    auto* const which = to_event(all, handle);
    if (which == nullptr) { return cudaErrorInvalidResourceHandle; }
    std::erase_if(all.events, [&](auto const& each) { return each.get() == which; });
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t where, unsigned /*flags*/) {
  return runtime_call("cudaEventRecord", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(where);
    auto* const which = to_event(all, handle);
    if (on == nullptr || which == nullptr) { return cudaErrorInvalidResourceHandle; }
    if (which->core->device != on->device) {
      all.complain("event of another device", "cudaEventRecord: event and stream are of different devices");
      return cudaErrorInvalidResourceHandle;
    }
    auto state = std::make_shared<record_state>();
    state->inside = on->capturing;
    which->core->last = state;
    if (on->capturing == nullptr) { all.push(*on, std::make_unique<record_operation>(state)); }
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t handle, cudaStream_t where) {
  return cudaEventRecordWithFlags(handle, where, 0);
}
cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t handle) {
  return runtime_call("cudaEventQuery", unsafe, [&](machine& all, thread_state& self, lock_type&) {
    auto* const which = to_event(all, handle);
    if (which == nullptr) { return cudaErrorInvalidResourceHandle; }
    auto const& last = which->core->last;
    if (last == nullptr) { return cudaSuccess; }
    if (last->inside != nullptr) { return cudaErrorCapturedEvent; }
    if (!last->reached) { return cudaErrorNotReady; }
    all.observed.join(last->clock);
    return outcome(all, true, self.device);
  });
}
cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t handle) {
  return runtime_call("cudaEventSynchronize", unsafe, [&](machine& all, thread_state& self, lock_type& lock) {
    auto* const which = to_event(all, handle);
    if (which == nullptr) { return cudaErrorInvalidResourceHandle; }
    auto const last = which->core->last;
    if (last == nullptr) { return cudaSuccess; }
    if (last->inside != nullptr) { return cudaErrorCapturedEvent; }
    bool const ended = all.wait(lock, "cudaEventSynchronize", [&] { return last->reached; });
    if (ended) { all.observed.join(last->clock); }
    return outcome(all, ended, self.device);
  });
}
cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t where, cudaEvent_t handle, unsigned /*flags*/) {
  return runtime_call("cudaStreamWaitEvent", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(where);
    auto* const which = to_event(all, handle);
    if (on == nullptr || which == nullptr) { return cudaErrorInvalidResourceHandle; }
    auto const& last = which->core->last;
    if (last == nullptr) { return cudaSuccess; }
    if (last->inside != nullptr) {
      if (on->capturing == nullptr) { on->capturing = last->inside; }
      return on->capturing == last->inside ? cudaSuccess : cudaErrorStreamCaptureMerge;
    }
    if (on->capturing != nullptr) {
      on->capturing->broken = true;
      return cudaErrorStreamCaptureIsolation;
    }
    all.push(*on, std::make_unique<wait_operation>(last));
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  return runtime_call("cudaEventElapsedTime", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const begin = to_event(all, from);
    auto* const end = to_event(all, to);
    if (begin == nullptr || end == nullptr) { return cudaErrorInvalidResourceHandle; }
    if (begin->core->device != end->core->device) {
      all.complain("event of another device", "cudaEventElapsedTime: the events are of different devices");
      return cudaErrorInvalidResourceHandle;
    }
    for (auto const* each : {begin, end}) {
      if (each->core->last == nullptr || (each->core->flags & cudaEventDisableTiming) != 0) {
        return cudaErrorInvalidResourceHandle;
      }
    }
    if (!begin->core->last->reached || !end->core->last->reached) { return cudaErrorNotReady; }
    *milliseconds = static_cast<float>(end->core->last->time - begin->core->last->time) * 1e-6f;
    return cudaSuccess;
  });
}

// ---- copies -------------------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaMemcpyAsync(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind,
                                      cudaStream_t where) {
  return runtime_call("cudaMemcpyAsync", plain, [&](machine& all, thread_state& self, lock_type& lock) {
    auto* const on = all.find(where);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    if (!is_of_kind(all, to, from, kind)) { return cudaErrorInvalidValue; }
    return copy(all, self, lock, "cudaMemcpyAsync", *on,
                {{static_cast<std::byte*>(to), static_cast<std::byte const*>(from), bytes}}, false);
  });
}
cudaError_t CUDARTAPI cudaMemcpy(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind) {
  return runtime_call("cudaMemcpy", unsafe, [&](machine& all, thread_state& self, lock_type& lock) {
    if (!is_of_kind(all, to, from, kind)) { return cudaErrorInvalidValue; }
    return copy(all, self, lock, "cudaMemcpy", *all.find(nullptr),
                {{static_cast<std::byte*>(to), static_cast<std::byte const*>(from), bytes}}, true);
  });
}
cudaError_t CUDARTAPI cudaMemcpy2DAsync(void* to, std::size_t to_pitch, void const* from, std::size_t from_pitch,
                                        std::size_t width, std::size_t height, cudaMemcpyKind kind,
                                        cudaStream_t where) {
  return runtime_call("cudaMemcpy2DAsync", plain, [&](machine& all, thread_state& self, lock_type& lock) {
    auto* const on = all.find(where);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    if (width > to_pitch || width > from_pitch || !is_of_kind(all, to, from, kind)) { return cudaErrorInvalidValue; }
    std::vector<copy_item> rows;
    for (std::size_t row = 0; row < height; ++row) {
      rows.push_back({static_cast<std::byte*>(to) + row * to_pitch,
                      static_cast<std::byte const*>(from) + row * from_pitch, width});
    }
    return copy(all, self, lock, "cudaMemcpy2DAsync", *on, std::move(rows), false);
  });
}
cudaError_t CUDARTAPI cudaMemcpyPeerAsync(void* to, int /*to_device*/, void const* from, int /*from_device*/,
                                          std::size_t bytes, cudaStream_t where) {
  return runtime_call("cudaMemcpyPeerAsync", plain, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(where);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    auto* const target = static_cast<std::byte*>(to);
    auto const* const source = static_cast<std::byte const*>(from);
    std::vector<located> parts;
    if (all.memory.resolve(to, bytes, parts) != lookup::found ||
        all.memory.resolve(from, bytes, parts) != lookup::found) {
      return cudaErrorInvalidValue;
    }
    all.enqueue(*on, [=](machine&) {
      auto made = std::make_unique<memory_operation>("peer copy", std::vector<copy_item>{{target, source, bytes}},
                                                     std::vector<touched>{});
      made->goes_anywhere = true;
      return made;
    });
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaMemcpyBatchAsync(void* const* to, void const* const* from, std::size_t const* bytes,
                                           std::size_t count, cudaMemcpyAttributes* attributes,
                                           std::size_t* /*first_of_attribute*/, std::size_t num_attributes,
                                           cudaStream_t where) {
  return runtime_call("cudaMemcpyBatchAsync", plain, [&](machine& all, thread_state& self, lock_type& lock) {
    auto* const on = all.find(where);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    if (on->is_legacy || count == 0 || attributes == nullptr || num_attributes == 0) {
      all.complain("batch refused", "cudaMemcpyBatchAsync on a legacy stream, or of nothing");
      return cudaErrorInvalidValue;
    }
    if (breaks_capture(all, *on, "cudaMemcpyBatchAsync")) { return cudaErrorStreamCaptureUnsupported; }
    std::vector<copy_item> items;
    bool from_host = false;
    bool from_device = false;
    for (std::size_t i = 0; i < count; ++i) {
      if (bytes[i] == 0 || to[i] == nullptr || from[i] == nullptr) { return cudaErrorInvalidValue; }
      items.push_back({static_cast<std::byte*>(to[i]), static_cast<std::byte const*>(from[i]), bytes[i]});
      auto const source = all.memory.find(from[i]);
      (source == nullptr || source->is_host() ? from_host : from_device) = true;
    }
    bool const waits = all.options.mixed_batches_wait && from_host && from_device;
    return copy(all, self, lock, "cudaMemcpyBatchAsync", *on, std::move(items), waits);
  });
}
cudaError_t CUDARTAPI cudaMemset(void* to, int value, std::size_t bytes) {
  return runtime_call("cudaMemset", unsafe, [&](machine& all, thread_state& self, lock_type&) {
    return fill(all, self, "cudaMemset", *all.find(nullptr), to, value, bytes);
  });
}
cudaError_t CUDARTAPI cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t where) {
  return runtime_call("cudaMemsetAsync", plain, [&](machine& all, thread_state& self, lock_type&) {
    auto* const on = all.find(where);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    return fill(all, self, "cudaMemsetAsync", *on, to, value, bytes);
  });
}

// ---- events of other processes ------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaIpcGetEventHandle(cudaIpcEventHandle_t* out, cudaEvent_t handle) {
  return runtime_call("cudaIpcGetEventHandle", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto* const which = to_event(all, handle);
    if (which == nullptr) { return cudaErrorInvalidResourceHandle; }
    if ((which->core->flags & cudaEventInterprocess) == 0) { return cudaErrorInvalidValue; }
    if (which->core->id == 0) { which->core->id = all.next_id++; }
    all.shared_events[which->core->id] = which->core;
    *out = {};
    std::memcpy(out, &which->core->id, sizeof which->core->id);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaIpcOpenEventHandle(cudaEvent_t* out, cudaIpcEventHandle_t handle) {
  return runtime_call("cudaIpcOpenEventHandle", unsafe, [&](machine& all, thread_state& self, lock_type&) {
    std::uint64_t id = 0;
    std::memcpy(&id, &handle, sizeof id);
    auto core = all.shared_events[id].lock();
    if (core == nullptr) { return cudaErrorInvalidValue; }
    *out = add_event(all, std::move(core), self.device);
    return cudaSuccess;
  });
}

}  // extern "C"
