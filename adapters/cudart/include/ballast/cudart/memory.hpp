// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_MEMORY_HPP
#define BALLAST_CUDART_MEMORY_HPP

#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/driver_function.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// How another process can get at an allocation.
enum class memory_export {
  none,             ///< it cannot
  ipc_handle,       ///< cudaMalloc: a CUDA IPC handle of the allocation and an offset
  file_descriptor,  ///< cuMemCreate with POSIX file descriptors: one for each physical piece
};

/// A run of device memory that is exported as a whole.
struct memory_piece {
  std::byte* base = nullptr;
  std::size_t size = 0;
  memory_export how = memory_export::none;
  bool is_part = false;  ///< of an address range made of pieces (cuMemMap): a region may go on in the next one
};

namespace detail {

/// Functions of the driver, found at run time: programs link nothing but the runtime and start without a driver.
struct driver_api {
  decltype(&cuPointerGetAttribute) pointer_get_attribute = nullptr;
  decltype(&cuMemGetAddressRange) mem_get_address_range = nullptr;
  decltype(&cuMemRetainAllocationHandle) mem_retain_allocation_handle = nullptr;
  decltype(&cuMemRelease) mem_release = nullptr;
  decltype(&cuMemExportToShareableHandle) mem_export_to_shareable_handle = nullptr;
  decltype(&cuMemImportFromShareableHandle) mem_import_from_shareable_handle = nullptr;
  decltype(&cuMemAddressReserve) mem_address_reserve = nullptr;
  decltype(&cuMemAddressFree) mem_address_free = nullptr;
  decltype(&cuMemMap) mem_map = nullptr;
  decltype(&cuMemUnmap) mem_unmap = nullptr;
  decltype(&cuMemSetAccess) mem_set_access = nullptr;
  decltype(&cuMemGetAccess) mem_get_access = nullptr;
  decltype(&cuMemPoolGetAccess) mem_pool_get_access = nullptr;
  status loaded;

  [[nodiscard]] static driver_api const& get() {
    static driver_api const api = load();
    return api;
  }

private:
  [[nodiscard]] static driver_api load() {
    driver_api api;
    api.find("cuPointerGetAttribute", api.pointer_get_attribute);
    api.find("cuMemGetAddressRange", api.mem_get_address_range);
    api.find("cuMemRetainAllocationHandle", api.mem_retain_allocation_handle);
    api.find("cuMemRelease", api.mem_release);
    api.find("cuMemExportToShareableHandle", api.mem_export_to_shareable_handle);
    api.find("cuMemImportFromShareableHandle", api.mem_import_from_shareable_handle);
    api.find("cuMemAddressReserve", api.mem_address_reserve);
    api.find("cuMemAddressFree", api.mem_address_free);
    api.find("cuMemMap", api.mem_map);
    api.find("cuMemUnmap", api.mem_unmap);
    api.find("cuMemSetAccess", api.mem_set_access);
    api.find("cuMemGetAccess", api.mem_get_access);
    api.find("cuMemPoolGetAccess", api.mem_pool_get_access);
    return api;
  }
  template <class Function>
  void find(char const* name, Function& function) {
    if (!loaded.ok()) { return; }
    auto const result = find_driver_function(name, function);
    loaded = to_status(result, name);
    if (result == cudaErrorNotSupported) {
      loaded = {make_error_code(result), ballast::detail::concat(name, ": the driver does not have it")};
    }
  }
};

/// The values of `CUresult` that we meet have equals in `cudaError_t`.
[[nodiscard]] inline status driver_status(CUresult result, char const* call) {
  return cudart::to_status(static_cast<cudaError_t>(result), call);
}

[[nodiscard]] inline CUdeviceptr to_device(std::byte const* address) noexcept {
  return static_cast<CUdeviceptr>(reinterpret_cast<std::uintptr_t>(address));
}
[[nodiscard]] inline std::byte* to_address(CUdeviceptr address) noexcept {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): the driver's pointers are integers
  return reinterpret_cast<std::byte*>(address);
}

/// What the driver knows of an address; `otherwise` where it does not know.
template <class Value>
[[nodiscard]] Value attribute_of(std::byte const* address, CUpointer_attribute which, Value otherwise) {
  Value value{};
  auto const result = driver_api::get().pointer_get_attribute(static_cast<void*>(&value), which, to_device(address));
  return result == CUDA_SUCCESS ? value : otherwise;
}
/// The pool that memory comes from, null where it comes from none.
[[nodiscard]] inline CUmemoryPool pool_of(std::byte const* address) {
  return attribute_of<CUmemoryPool>(address, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, nullptr);
}
/// Whether memory is on a device and stays there.
[[nodiscard]] inline bool is_on_device(std::byte const* address) {
  constexpr unsigned none = 0;
  return attribute_of(address, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, none) == CU_MEMORYTYPE_DEVICE &&
         attribute_of(address, CU_POINTER_ATTRIBUTE_IS_MANAGED, none) == 0;
}

/// Why no other process can open a piece, and what to do.
[[nodiscard]] inline status no_export(memory_piece const& piece) {
  auto const refuse = [](char const* why) {
    return status{errc::invalid_weights, ballast::detail::concat("other processes cannot open this memory: ", why,
                                                                 ", or use a transport that sends (NCCL)")};
  };
  if (!is_on_device(piece.base)) { return refuse("it does not stay on a device; allocate it with cudaMalloc"); }
  if (pool_of(piece.base) != nullptr) {
    return refuse(
        "it comes from a stream-ordered pool (cudaMallocAsync), which has no handle for it; allocate it with "
        "cudaMalloc, or with cuMemCreate and CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR");
  }
  if (piece.is_part) {
    return refuse("it was made with cuMemCreate, but not with CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR; ask for that");
  }
  return refuse(
      "its device gives no IPC handles, as slices (MIG) and some systems do not; allocate it with cuMemCreate and "
      "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, or run all ranks in one process (local_peers)");
}

}  // namespace detail

/// Find the allocation, or the physical piece of one, that an address of device memory lies in.
///
/// @param address  of this process.
/// @param out      out: the piece and how it can be exported.
/// @return `cudart::category()`, also where there is no driver.
/// @complexity a few calls of the driver, no allocation on success.
/// @throws std::bad_alloc on failure
[[nodiscard]] inline status find_piece(std::byte const* address, memory_piece& out) {
  auto const& driver = detail::driver_api::get();
  if (!driver.loaded.ok()) { return driver.loaded; }
  detail::capture_guard const guard;
  CUdeviceptr base = 0;
  std::size_t size = 0;
  if (auto const result = driver.mem_get_address_range(&base, &size, detail::to_device(address));
      result != CUDA_SUCCESS) {
    return detail::driver_status(result, "cuMemGetAddressRange");
  }
  out = {detail::to_address(base), size};
  if (detail::attribute_of(address, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, 0) != 0) {
    out.how = memory_export::ipc_handle;
    return {};
  }
  // Memory of stream-ordered pools may allow descriptors too, but of the pool: it has no handle of its own.
  CUmemGenericAllocationHandle handle = 0;
  if (driver.mem_retain_allocation_handle(&handle, out.base) != CUDA_SUCCESS) { return {}; }
  static_cast<void>(driver.mem_release(handle));
  out.is_part = true;
  constexpr unsigned long long none = 0;
  auto const types = detail::attribute_of(address, CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES, none);
  if ((types & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0) { out.how = memory_export::file_descriptor; }
  return {};
}

/// List the pieces that a run of device memory lies in, in the order of their addresses.
///
/// @param region  of this process.
/// @param out     out: pieces are appended; on failure, what was appended is unspecified.
/// @return `errc::invalid_weights` with the remedy when it lies in several allocations: the driver copies within one;
///         as `find_piece`.
/// @complexity O(pieces)
/// @throws std::bad_alloc
[[nodiscard]] inline status find_pieces(segment region, std::vector<memory_piece>& out) {
  auto const first = out.size();
  for (auto const* at = region.data; at < region.data + region.size;) {
    memory_piece piece;
    if (auto result = find_piece(at, piece); !result.ok()) { return result; }
    out.push_back(piece);
    if (out.size() > first + 1 && !(out[first].is_part && piece.is_part)) {
      return {errc::invalid_weights,
              ballast::detail::concat("it lies in several allocations that touch, of which one ends after ",
                                      out[first].base + out[first].size - region.data, " of its ", region.size,
                                      " bytes: register what lies in each as a tensor of its own, or allocate it as a "
                                      "whole")};
    }
    at = piece.base + piece.size;
  }
  return {};
}

/// The same for memory that other processes are to open.
///
/// @return also `errc::invalid_weights` with the remedy when a piece cannot be exported.
[[nodiscard]] inline status find_exportable_pieces(segment region, std::vector<memory_piece>& out) {
  auto const first = out.size();
  if (auto result = find_pieces(region, out); !result.ok()) { return result; }
  detail::capture_guard const guard;
  for (auto i = first; i < out.size(); ++i) {
    if (out[i].how == memory_export::none) { return detail::no_export(out[i]); }
  }
  return {};
}

namespace detail {

/// Whether a device may read a piece that lies on another one, which it has peer access to.
[[nodiscard]] inline status reachable_from(memory_piece const& piece, int device) {
  auto const& driver = driver_api::get();
  CUmemLocation where{};
  where.type = CU_MEM_LOCATION_TYPE_DEVICE;
  where.id = device;
  auto const refuse = [device](char const* what, char const* remedy) {
    return status{errc::invalid_weights, ballast::detail::concat("device ", device, " may not read this memory, ", what,
                                                                 ": call ", remedy, " for that device first")};
  };
  if (auto* const pool = pool_of(piece.base); pool != nullptr) {
    CUmemAccess_flags flags{};
    auto const result = driver.mem_pool_get_access(&flags, pool, &where);
    if (result != CUDA_SUCCESS) { return driver_status(result, "cuMemPoolGetAccess"); }
    if ((flags & CU_MEM_ACCESS_FLAGS_PROT_READ) != 0) { return {}; }
    return refuse("which comes from a stream-ordered pool", "cudaMemPoolSetAccess");
  }
  if (!piece.is_part) { return {}; }  // cudaMalloc: peer access is switched on for all of it
  unsigned long long flags = 0;
  auto const result = driver.mem_get_access(&flags, &where, to_device(piece.base));
  if (result != CUDA_SUCCESS) { return driver_status(result, "cuMemGetAccess"); }
  if ((flags & CU_MEM_ACCESS_FLAGS_PROT_READ) != 0) { return {}; }
  return refuse("which was made with cuMemCreate", "cuMemSetAccess");
}

/// Whether one device may read what is another's, if it is asked for.
[[nodiscard]] inline bool has_peer_access(int reader, int owner) noexcept {
  int possible = 0;
  auto const result = cudaDeviceCanAccessPeer(&possible, reader, owner);
  if (result != cudaSuccess) { static_cast<void>(cudaGetLastError()); }
  return result == cudaSuccess && possible != 0;
}

}  // namespace detail

/// Say whether a device can read a region of this process, as far as the driver tells: copies from memory that it
/// cannot read fail in mid-batch, and kernels that read it end the context of the whole engine.
///
/// `cudaMalloc` memory can be read by every device with peer access; memory of `cuMemCreate`, such as an expandable
/// segment of PyTorch, by those that `cuMemSetAccess` was called for; memory of a pool by those that
/// `cudaMemPoolSetAccess` was called for. A device can read its own memory. Where two devices have no peer access at
/// all, bytes go through the host, and nothing is refused.
///
/// @param region  of this process; host memory can be read.
/// @param device  ordinal in this process.
/// @return `errc::invalid_weights` with the remedy; `cudart::category()`
/// @complexity a few calls of the driver for each physical piece
/// @throws std::bad_alloc
[[nodiscard]] inline status reachable_from(segment region, int device) {
  auto const& driver = detail::driver_api::get();
  detail::capture_guard const guard;
  if (!driver.loaded.ok() || region.size == 0 || !detail::is_on_device(region.data)) { return {}; }
  auto const owner = detail::attribute_of(region.data, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, device);
  if (owner == device || !detail::has_peer_access(device, owner)) { return {}; }
  std::vector<memory_piece> pieces;
  if (auto result = find_pieces(region, pieces); !result.ok()) { return result; }
  for (auto const& piece : pieces) {
    if (auto result = detail::reachable_from(piece, device); !result.ok()) { return result; }
  }
  return {};
}

/// Say whether a region of this process lies in one allocation, as far as the driver tells: it copies within one.
///
/// @param region  of this process; nothing is refused of host memory, nor without a driver.
/// @return as `find_pieces`.
/// @complexity O(pieces)
/// @throws std::bad_alloc
[[nodiscard]] inline status in_one_allocation(segment region) {
  auto const& driver = detail::driver_api::get();
  detail::capture_guard const guard;
  if (!driver.loaded.ok() || region.size == 0 || !detail::is_on_device(region.data)) { return {}; }
  std::vector<memory_piece> pieces;
  return find_pieces(region, pieces);
}

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
