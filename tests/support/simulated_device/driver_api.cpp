// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The driver's functions, which programs find by name at run time.
#include "machine.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <utility>

using namespace ballast_test::simulated;
using lock_type = scheduler::lock_type;

namespace {

constexpr std::size_t granularity = std::size_t{64} << 10;

// NOLINTNEXTLINE(performance-no-int-to-ptr): the driver's addresses are integers
[[nodiscard]] std::byte* to_address(CUdeviceptr value) { return reinterpret_cast<std::byte*>(value); }
[[nodiscard]] CUresult to_driver(cudaError_t error) { return static_cast<CUresult>(error); }

template <class Body>
CUresult driver_call(std::string_view name, unsigned traits, Body body) {
  auto& self = machine::thread();
  auto const last = self.last;
  auto const result = runtime_call(name, traits, body);
  self.last = last;  // the driver has none
  return to_driver(result);
}

/// What the driver calls one allocation: neighbouring maps of one reservation are several.
[[nodiscard]] allocation_ptr find_live(machine& all, CUdeviceptr address) {
  auto const found = all.memory.find(to_address(address));
  return found == nullptr || found->freed ? nullptr : found;
}

CUresult pointer_get_attribute(void* out, CUpointer_attribute what, CUdeviceptr address) {
  return driver_call("cuPointerGetAttribute", plain, [&](machine& all, thread_state&, lock_type&) {
    auto const found = find_live(all, address);
    if (found == nullptr) { return cudaErrorInvalidValue; }
    switch (what) {
      case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        *static_cast<int*>(out) = found->kind == memory_kind::device ? 1 : 0;
        return cudaSuccess;
      case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        *static_cast<unsigned long long*>(out) = found->handle_types;
        return cudaSuccess;
      case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int*>(out) = found->device; return cudaSuccess;
      case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *static_cast<unsigned*>(out) = found->is_host() ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        return cudaSuccess;
      case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        *static_cast<CUmemoryPool*>(out) = reinterpret_cast<CUmemoryPool>(found->pool);
        return cudaSuccess;
      case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *static_cast<CUdeviceptr*>(out) = reinterpret_cast<CUdeviceptr>(found->base);
        return cudaSuccess;
      case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *static_cast<std::size_t*>(out) = found->size; return cudaSuccess;
      case CU_POINTER_ATTRIBUTE_MAPPED: *static_cast<int*>(out) = 1; return cudaSuccess;
      default: return cudaErrorInvalidValue;
    }
  });
}

CUresult mem_get_address_range(CUdeviceptr* base, std::size_t* size, CUdeviceptr address) {
  return driver_call("cuMemGetAddressRange", plain, [&](machine& all, thread_state&, lock_type&) {
    auto const found = find_live(all, address);
    if (found == nullptr) { return cudaErrorInvalidValue; }
    if (base != nullptr) { *base = reinterpret_cast<CUdeviceptr>(found->base); }
    if (size != nullptr) { *size = found->size; }
    return cudaSuccess;
  });
}

CUresult mem_get_granularity(std::size_t* out, CUmemAllocationProp const*, CUmemAllocationGranularity_flags) {
  *out = granularity;
  return CUDA_SUCCESS;
}

CUresult mem_create(CUmemGenericAllocationHandle* out, std::size_t bytes, CUmemAllocationProp const* properties,
                    unsigned long long) {
  return driver_call("cuMemCreate", unsafe, [&](machine& all, thread_state&, lock_type&) {
    if (bytes == 0 || bytes % granularity != 0) { return cudaErrorInvalidValue; }
    auto made = std::make_unique<physical_handle>();
    made->memory = std::make_shared<block>(all.memory.physical, bytes, properties->location.id);
    if (!made->memory->is_there()) { return cudaErrorMemoryAllocation; }
    made->memory->id = all.next_id++;
    made->types = static_cast<std::uint64_t>(properties->requestedHandleTypes);
    *out = made->memory->id;
    all.physical[*out] = std::move(made);
    return cudaSuccess;
  });
}

CUresult mem_release(CUmemGenericAllocationHandle handle) {
  return driver_call("cuMemRelease", always_ok, [&](machine& all, thread_state&, lock_type&) {
    auto const found = all.physical.find(handle);
    if (found == all.physical.end() || found->second->references == 0) { return cudaErrorInvalidValue; }
    // Maps keep the memory; the handle can be had again from them.
    if (--found->second->references == 0 && found->second->memory.use_count() == 1) { all.physical.erase(found); }
    return cudaSuccess;
  });
}

CUresult mem_retain_allocation_handle(CUmemGenericAllocationHandle* out, void* address) {
  return driver_call("cuMemRetainAllocationHandle", plain, [&](machine& all, thread_state&, lock_type&) {
    auto const found = all.memory.find(address);
    if (found == nullptr || found->kind != memory_kind::mapped) { return cudaErrorInvalidValue; }
    auto const physical = all.physical.find(found->memory->id);
    if (physical == all.physical.end()) { return cudaErrorInvalidValue; }
    *out = physical->first;
    ++physical->second->references;
    return cudaSuccess;
  });
}

/// A descriptor is a small file that holds the handle's number.
CUresult mem_export(void* out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                    unsigned long long) {
  return driver_call("cuMemExportToShareableHandle", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto const found = all.physical.find(handle);
    if (found == all.physical.end() || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
        (found->second->types & static_cast<std::uint64_t>(type)) == 0) {
      return cudaErrorInvalidValue;
    }
    auto const file = ::memfd_create("simulated-handle", MFD_CLOEXEC);
    if (file < 0 || ::pwrite(file, &handle, sizeof handle, 0) != sizeof handle) { return cudaErrorUnknown; }
    all.shared_blocks[handle] = found->second->memory;
    *static_cast<int*>(out) = file;
    return cudaSuccess;
  });
}

CUresult mem_import(CUmemGenericAllocationHandle* out, void* descriptor, CUmemAllocationHandleType type) {
  return driver_call("cuMemImportFromShareableHandle", unsafe, [&](machine& all, thread_state&, lock_type&) {
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) { return cudaErrorInvalidValue; }
    std::uint64_t number = 0;
    auto const file = static_cast<int>(reinterpret_cast<std::intptr_t>(descriptor));
    if (::pread(file, &number, sizeof number, 0) != sizeof number) { return cudaErrorInvalidValue; }
    auto memory = all.shared_blocks[number].lock();
    if (memory == nullptr) { return cudaErrorInvalidValue; }
    auto made = std::make_unique<physical_handle>();
    made->memory = std::move(memory);
    *out = all.next_id++;
    all.physical[*out] = std::move(made);
    return cudaSuccess;
  });
}

CUresult mem_address_reserve(CUdeviceptr* out, std::size_t bytes, std::size_t, CUdeviceptr, unsigned long long) {
  return driver_call("cuMemAddressReserve", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto* const address = arena::reserve(bytes);
    if (address == nullptr) { return cudaErrorMemoryAllocation; }
    all.memory.keep(address, bytes);
    all.reservations[address] = bytes;
    *out = reinterpret_cast<CUdeviceptr>(address);
    return cudaSuccess;
  });
}

CUresult mem_address_free(CUdeviceptr address, std::size_t) {
  return driver_call("cuMemAddressFree", always_ok, [&](machine& all, thread_state&, lock_type&) {
    return all.reservations.erase(to_address(address)) == 1 ? cudaSuccess : cudaErrorInvalidValue;
  });
}

CUresult mem_map(CUdeviceptr address, std::size_t bytes, std::size_t offset, CUmemGenericAllocationHandle handle,
                 unsigned long long) {
  return driver_call("cuMemMap", unsafe, [&](machine& all, thread_state&, lock_type&) {
    auto const physical = all.physical.find(handle);
    auto* const at = to_address(address);
    auto reservation = all.reservations.upper_bound(at);
    if (physical == all.physical.end() || offset != 0 || reservation == all.reservations.begin()) {
      return cudaErrorInvalidValue;
    }
    --reservation;
    if (at + bytes > reservation->first + reservation->second) { return cudaErrorInvalidValue; }
    auto const& memory = physical->second->memory;
    if (bytes != memory->size()) { return cudaErrorInvalidValue; }
    if (all.memory.physical.map(memory->offset(), bytes, at) == nullptr) { return cudaErrorMemoryAllocation; }
    auto made = std::make_shared<allocation>();
    made->base = at;
    made->size = bytes;
    made->kind = memory_kind::mapped;
    made->device = memory->device();
    made->memory = memory;
    made->handle_types = physical->second->types;
    made->reservation = reservation->first;
    made->owns_mapping = true;
    all.memory.add(made);
    return cudaSuccess;
  });
}

CUresult mem_unmap(CUdeviceptr address, std::size_t bytes) {
  return driver_call("cuMemUnmap", unsafe, [&](machine& all, thread_state&, lock_type&) {
    for (std::size_t done = 0; done < bytes;) {
      auto const found = all.memory.find(to_address(address) + done);
      if (found == nullptr || found->kind != memory_kind::mapped) { return cudaErrorInvalidValue; }
      all.memory.remove(found);
      done += found->size;
    }
    return cudaSuccess;
  });
}

CUresult mem_set_access(CUdeviceptr address, std::size_t bytes, CUmemAccessDesc const* list, std::size_t count) {
  return driver_call("cuMemSetAccess", unsafe, [&](machine& all, thread_state&, lock_type&) {
    for (std::size_t done = 0; done < bytes;) {
      auto const found = all.memory.find(to_address(address) + done);
      if (found == nullptr || found->kind != memory_kind::mapped) { return cudaErrorInvalidValue; }
      for (std::size_t i = 0; i < count; ++i) {
        if (list[i].location.id != found->device && !all.options.peer_access) { return cudaErrorInvalidDevice; }
        auto const bit = std::uint64_t{1} << list[i].location.id;
        bool const reads = list[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE;
        bool const writes = list[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        found->readers = reads ? found->readers | bit : found->readers & ~bit;
        found->writers = writes ? found->writers | bit : found->writers & ~bit;
      }
      done += found->size;
    }
    return cudaSuccess;
  });
}

CUresult mem_get_access(unsigned long long* flags, CUmemLocation const* location, CUdeviceptr address) {
  return driver_call("cuMemGetAccess", plain, [&](machine& all, thread_state&, lock_type&) {
    auto const found = find_live(all, address);
    if (found == nullptr || found->kind != memory_kind::mapped) { return cudaErrorInvalidValue; }
    bool const reads = (found->readers >> location->id & 1) != 0;
    bool const writes = (found->writers >> location->id & 1) != 0;
    *flags = writes  ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
             : reads ? CU_MEM_ACCESS_FLAGS_PROT_READ
                     : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    return cudaSuccess;
  });
}

CUresult pool_get_access(CUmemAccess_flags* flags, CUmemoryPool pool, CUmemLocation* location) {
  bool const reads = (reinterpret_cast<memory_pool*>(pool)->readers >> location->id & 1) != 0;
  *flags = reads ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE;
  return CUDA_SUCCESS;
}

CUresult get_error_string(CUresult error, char const** out) {
  *out = cudaGetErrorString(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

/// As the runtime's, but for the thread's last error.
template <class Handle, cudaError_t (*Query)(Handle)>
CUresult query(Handle which) {
  auto& self = machine::thread();
  auto const last = self.last;
  auto const result = Query(which);
  self.last = last;
  return to_driver(result);
}

struct entry_point {
  std::string_view name;
  void* address;
};
template <class Function>
[[nodiscard]] void* address_of(Function* function) {
  return reinterpret_cast<void*>(function);
}
[[nodiscard]] void* find_entry(std::string_view name) {
  static entry_point const all[] = {
      {"cuPointerGetAttribute", address_of(&pointer_get_attribute)},
      {"cuMemGetAddressRange", address_of(&mem_get_address_range)},
      {"cuMemGetAllocationGranularity", address_of(&mem_get_granularity)},
      {"cuMemCreate", address_of(&mem_create)},
      {"cuMemRelease", address_of(&mem_release)},
      {"cuMemRetainAllocationHandle", address_of(&mem_retain_allocation_handle)},
      {"cuMemExportToShareableHandle", address_of(&mem_export)},
      {"cuMemImportFromShareableHandle", address_of(&mem_import)},
      {"cuMemAddressReserve", address_of(&mem_address_reserve)},
      {"cuMemAddressFree", address_of(&mem_address_free)},
      {"cuMemMap", address_of(&mem_map)},
      {"cuMemUnmap", address_of(&mem_unmap)},
      {"cuMemSetAccess", address_of(&mem_set_access)},
      {"cuMemGetAccess", address_of(&mem_get_access)},
      {"cuMemPoolGetAccess", address_of(&pool_get_access)},
      {"cuEventQuery", address_of(&query<CUevent, &cudaEventQuery>)},
      {"cuStreamQuery", address_of(&query<CUstream, &cudaStreamQuery>)},
      {"cuGetErrorString", address_of(&get_error_string)},
  };
  auto const found = std::find_if(std::begin(all), std::end(all), [&](auto const& each) { return each.name == name; });
  return found == std::end(all) ? nullptr : found->address;
}

}  // namespace

extern "C" {

cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(char const* name, void** out, unsigned /*version*/,
                                                       unsigned long long /*flags*/,
                                                       cudaDriverEntryPointQueryResult* result) {
  *out = find_entry(name);
  auto const state = *out == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  if (result != nullptr) { *result = state; }
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetDriverEntryPoint(char const* name, void** out, unsigned long long flags,
                                              cudaDriverEntryPointQueryResult* result) {
  return cudaGetDriverEntryPointByVersion(name, out, CUDART_VERSION, flags, result);
}

}  // extern "C"
