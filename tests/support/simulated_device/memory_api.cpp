// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The CUDA runtime's functions that give and take memory.
#include "machine.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

using namespace ballast_test::simulated;
using lock_type = scheduler::lock_type;

namespace {

/// Wait for the device and forget an allocation.
[[nodiscard]] cudaError_t free_now(machine& all, lock_type& lock, void* address, std::string_view call,
                                   bool waits_for_all) {
  if (address == nullptr) { return cudaSuccess; }
  auto const found = all.memory.find(address);
  if (found == nullptr || found->base != address || found->freed) {
    all.complain("use after free", std::string{call} + " of memory that is not there");
    return cudaErrorInvalidValue;
  }
  found->freed = true;
  bool ended = true;
  if (waits_for_all) {
    for (int i = 0; i < static_cast<int>(all.devices.size()); ++i) { ended = all.wait_for_device(lock, i, call); }
  } else {
    ended = all.wait_for_device(lock, found->device, call);
  }
  all.check_unused(*found, call);
  all.memory.remove(found);
  return ended ? cudaSuccess : cudaErrorLaunchTimeout;
}

/// Memory that no stream still has, or that this one is ordered behind.
[[nodiscard]] std::shared_ptr<block> take_spare(memory_pool& pool, std::size_t bytes, stream& on) {
  for (auto spare = pool.spare.begin(); spare != pool.spare.end(); ++spare) {
    bool const fits = spare->memory->size() >= bytes && spare->memory->size() <= 2 * bytes;
    if (!fits || (spare->stream != on.number && !*spare->done)) { continue; }
    auto memory = spare->memory;
    on.clock.join(spare->clock);
    pool.spare.erase(spare);
    return memory;
  }
  return nullptr;
}

[[nodiscard]] cudaError_t allocate_in_order(machine& all, void** out, std::size_t bytes, memory_pool& pool,
                                            stream& on) {
  if (bytes == 0) {
    *out = nullptr;
    return cudaSuccess;
  }
  auto made = std::make_shared<allocation>();
  made->memory = take_spare(pool, bytes, on);
  if (made->memory == nullptr) { made->memory = std::make_shared<block>(all.memory.physical, bytes, pool.device); }
  if (!made->memory->is_there()) { return cudaErrorMemoryAllocation; }
  made->base = all.memory.physical.at(made->memory->offset());
  made->size = bytes;
  made->kind = memory_kind::pool;
  made->device = pool.device;
  made->pool = &pool;
  all.memory.add(made);
  all.push(on, std::make_unique<function_operation>("allocation", [] { return step::done(); }));
  all.check_order({made, 0, bytes}, access_kind::writes, {on.number, on.entered, "allocation"}, on.clock);
  *out = made->base;
  return cudaSuccess;
}

[[nodiscard]] cudaError_t free_in_order(machine& all, void* address, stream& on) {
  if (address == nullptr) { return cudaSuccess; }
  auto const found = all.memory.find(address);
  if (found == nullptr || found->base != address || found->freed || found->kind != memory_kind::pool) {
    all.complain("use after free", "cudaFreeAsync of memory that is not there");
    return cudaErrorInvalidValue;
  }
  found->freed = true;
  auto done = std::make_shared<bool>(false);
  all.push(on, std::make_unique<function_operation>("giving back", [&all, found, done] {
             all.memory.remove(found);
             *done = true;
             return step::done();
           }));
  all.check_order({found, 0, found->size}, access_kind::writes, {on.number, on.entered, "giving back"}, on.clock);
  found->pool->spare.push_back({found->memory, on.number, on.clock, done});
  return cudaSuccess;
}

[[nodiscard]] cudaError_t allocate_pinned(machine& all, void** out, std::size_t bytes) {
  auto const made = all.allocate(bytes, memory_kind::pinned, machine::thread().device);
  if (made == nullptr) { return cudaErrorMemoryAllocation; }
  *out = made->base;
  return cudaSuccess;
}

[[nodiscard]] memory_pool* to_pool(cudaMemPool_t handle) { return reinterpret_cast<memory_pool*>(handle); }
[[nodiscard]] cudaMemPool_t to_handle(memory_pool& pool) { return reinterpret_cast<cudaMemPool_t>(&pool); }

}  // namespace

extern "C" {

cudaError_t CUDARTAPI cudaMalloc(void** out, std::size_t bytes) {
  return runtime_call("cudaMalloc", unsafe, [&](machine& all, thread_state& self, lock_type&) {
    *out = nullptr;
    if (bytes == 0) { return cudaSuccess; }
    auto const made = all.allocate(bytes, memory_kind::device, self.device);
    if (made == nullptr) { return cudaErrorMemoryAllocation; }
    *out = made->base;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaFree(void* address) {
  return runtime_call("cudaFree", unsafe, [&](machine& all, thread_state&, lock_type& lock) {
    return free_now(all, lock, address, "cudaFree", false);
  });
}
cudaError_t CUDARTAPI cudaMallocHost(void** out, std::size_t bytes) {
  return runtime_call("cudaMallocHost", unsafe,
                      [&](machine& all, thread_state&, lock_type&) { return allocate_pinned(all, out, bytes); });
}
cudaError_t CUDARTAPI cudaHostAlloc(void** out, std::size_t bytes, unsigned /*flags*/) {
  return runtime_call("cudaHostAlloc", unsafe,
                      [&](machine& all, thread_state&, lock_type&) { return allocate_pinned(all, out, bytes); });
}
cudaError_t CUDARTAPI cudaFreeHost(void* address) {
  return runtime_call("cudaFreeHost", unsafe, [&](machine& all, thread_state&, lock_type& lock) {
    return free_now(all, lock, address, "cudaFreeHost", true);
  });
}
cudaError_t CUDARTAPI cudaHostRegister(void* address, std::size_t bytes, unsigned /*flags*/) {
  return runtime_call("cudaHostRegister", unsafe, [&](machine& all, thread_state& self, lock_type&) {
    auto made = std::make_shared<allocation>();
    made->base = static_cast<std::byte*>(address);
    made->size = bytes;
    made->kind = memory_kind::registered;
    made->device = self.device;
    all.memory.add(made);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaHostUnregister(void* address) {
  return runtime_call("cudaHostUnregister", unsafe, [&](machine& all, thread_state&, lock_type& lock) {
    return free_now(all, lock, address, "cudaHostUnregister", true);
  });
}
cudaError_t CUDARTAPI cudaHostGetDevicePointer(void** out, void* address, unsigned /*flags*/) {
  *out = address;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = *total = options().device_bytes;
  return cudaSuccess;
}

// ---- in the order of streams --------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaMallocFromPoolAsync(void** out, std::size_t bytes, cudaMemPool_t pool, cudaStream_t where) {
  return runtime_call("cudaMallocAsync", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(where);
    if (on == nullptr || on->capturing != nullptr) { return cudaErrorInvalidResourceHandle; }
    return allocate_in_order(all, out, bytes, *to_pool(pool), *on);
  });
}
cudaError_t CUDARTAPI cudaMallocAsync(void** out, std::size_t bytes, cudaStream_t where) {
  return runtime_call("cudaMallocAsync", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(where);
    if (on == nullptr || on->capturing != nullptr) { return cudaErrorInvalidResourceHandle; }
    return allocate_in_order(all, out, bytes, all.devices[static_cast<std::size_t>(on->device)]->pool, *on);
  });
}
cudaError_t CUDARTAPI cudaFreeAsync(void* address, cudaStream_t where) {
  return runtime_call("cudaFreeAsync", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto* const on = all.find(where);
    if (on == nullptr) { return cudaErrorInvalidResourceHandle; }
    return free_in_order(all, address, *on);
  });
}
cudaError_t CUDARTAPI cudaDeviceGetDefaultMemPool(cudaMemPool_t* out, int device) {
  return runtime_call("cudaDeviceGetDefaultMemPool", plain, [&](machine& all, thread_state&, lock_type&) {
    *out = to_handle(all.devices[static_cast<std::size_t>(device)]->pool);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceGetMemPool(cudaMemPool_t* out, int device) {
  return cudaDeviceGetDefaultMemPool(out, device);
}
cudaError_t CUDARTAPI cudaMemPoolCreate(cudaMemPool_t* out, cudaMemPoolProps const* properties) {
  return runtime_call("cudaMemPoolCreate", plain, [&](machine& all, thread_state&, lock_type&) {
    auto made = std::make_unique<memory_pool>();
    made->device = properties->location.id;
    made->readers = std::uint64_t{1} << made->device;
    *out = to_handle(*made);
    all.pools.push_back(std::move(made));
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaMemPoolDestroy(cudaMemPool_t /*pool*/) { return cudaSuccess; }
cudaError_t CUDARTAPI cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t CUDARTAPI cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return cudaSuccess; }
cudaError_t CUDARTAPI cudaMemPoolSetAccess(cudaMemPool_t pool, cudaMemAccessDesc const* list, std::size_t count) {
  return runtime_call("cudaMemPoolSetAccess", unsafe, [&](machine& all, thread_state&, lock_type&) {
    if (!all.options.peer_access) { return cudaErrorInvalidDevice; }
    for (std::size_t i = 0; i < count; ++i) {
      auto const bit = std::uint64_t{1} << list[i].location.id;
      auto& readers = to_pool(pool)->readers;
      readers = list[i].flags == cudaMemAccessFlagsProtNone ? readers & ~bit : readers | bit;
    }
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaMemPoolGetAccess(cudaMemAccessFlags* flags, cudaMemPool_t pool, cudaMemLocation* location) {
  return runtime_call("cudaMemPoolGetAccess", plain, [&](machine&, thread_state&, lock_type&) {
    bool const reads = (to_pool(pool)->readers >> location->id & 1) != 0;
    *flags = reads ? cudaMemAccessFlagsProtReadWrite : cudaMemAccessFlagsProtNone;
    return cudaSuccess;
  });
}

// ---- what pointers are, and memory of other processes -------------------------------------------------------------

cudaError_t CUDARTAPI cudaPointerGetAttributes(cudaPointerAttributes* out, void const* address) {
  return runtime_call("cudaPointerGetAttributes", plain, [&](machine& all, thread_state&, lock_type&) {
    *out = {};
    out->device = -1;
    auto const found = all.memory.find(address);
    if (found == nullptr || found->freed) {
      out->type = cudaMemoryTypeUnregistered;
      return cudaSuccess;
    }
    out->device = found->device;
    out->type = found->is_host() ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    out->devicePointer = const_cast<void*>(address);
    if (found->is_host()) { out->hostPointer = const_cast<void*>(address); }
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaIpcGetMemHandle(cudaIpcMemHandle_t* out, void* address) {
  return runtime_call("cudaIpcGetMemHandle", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto const found = all.memory.find(address);
    if (found == nullptr || found->freed || found->kind != memory_kind::device) { return cudaErrorInvalidValue; }
    if (found->memory->id == 0) { found->memory->id = all.next_id++; }
    all.shared_blocks[found->memory->id] = found->memory;
    *out = {};
    std::memcpy(out, &found->memory->id, sizeof found->memory->id);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaIpcOpenMemHandle(void** out, cudaIpcMemHandle_t handle, unsigned /*flags*/) {
  return runtime_call("cudaIpcOpenMemHandle", unsafe, [&](machine& all, thread_state& self, lock_type&) {
    std::uint64_t id = 0;
    std::memcpy(&id, &handle, sizeof id);
    auto const memory = all.shared_blocks[id].lock();
    if (memory == nullptr) { return cudaErrorInvalidValue; }
    if (memory->device() != self.device && !all.options.peer_access) { return cudaErrorPeerAccessUnsupported; }
    auto* const address = all.memory.physical.map(memory->offset(), memory->size());
    if (address == nullptr) { return cudaErrorMemoryAllocation; }
    all.memory.keep(address, memory->size());
    auto made = std::make_shared<allocation>();
    made->base = address;
    made->size = memory->size();
    made->kind = memory_kind::imported;
    made->device = self.device;
    made->memory = memory;
    made->owns_mapping = true;
    all.memory.add(made);
    *out = address;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaIpcCloseMemHandle(void* address) {
  return runtime_call("cudaIpcCloseMemHandle", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto const found = all.memory.find(address);
    if (found == nullptr || found->base != address || found->kind != memory_kind::imported) {
      return cudaErrorInvalidValue;
    }
    all.memory.remove(found);
    return cudaSuccess;
  });
}

}  // extern "C"
