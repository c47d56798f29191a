// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_MEMORY_HPP
#define BALLAST_CUDART_MEMORY_HPP

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
    return api;
  }
  template <class Function>
  void find(char const* name, Function& function) {
    if (!loaded.ok()) { return; }
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found{};
    constexpr unsigned version = 12000;
    loaded = to_status(cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found), name);
    if (loaded.ok() && found != cudaDriverEntryPointSuccess) {
      loaded = {make_error_code(cudaErrorNotSupported), ballast::detail::concat(name, ": the driver does not have it")};
    }
    function = reinterpret_cast<Function>(address);
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

}  // namespace detail

/// Find the allocation, or the physical piece of one, that an address of device memory lies in.
///
/// @param address  of this process.
/// @param out      out: the piece and how it can be exported.
/// @complexity O(1), no allocation on success.
/// @throws std::bad_alloc on failure
[[nodiscard]] inline status find_piece(std::byte const* address, memory_piece& out) {
  auto const& driver = detail::driver_api::get();
  if (!driver.loaded.ok()) { return driver.loaded; }
  CUdeviceptr base = 0;
  std::size_t size = 0;
  auto const device_address = detail::to_device(address);
  if (auto const result = driver.mem_get_address_range(&base, &size, device_address); result != CUDA_SUCCESS) {
    return detail::driver_status(result, "cuMemGetAddressRange");
  }
  out = {detail::to_address(base), size, memory_export::none};
  int legacy = 0;
  auto result = driver.pointer_get_attribute(&legacy, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, device_address);
  if (result == CUDA_SUCCESS && legacy != 0) {
    out.how = memory_export::ipc_handle;
    return {};
  }
  unsigned long long types = 0;
  result = driver.pointer_get_attribute(&types, CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES, device_address);
  // Memory of stream-ordered pools may allow descriptors too, but of the pool: it has no handle of its own.
  CUmemGenericAllocationHandle handle = 0;
  if (result == CUDA_SUCCESS && (types & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0 &&
      driver.mem_retain_allocation_handle(&handle, out.base) == CUDA_SUCCESS) {
    static_cast<void>(driver.mem_release(handle));
    out.how = memory_export::file_descriptor;
  }
  return {};
}

/// List the pieces that a run of device memory lies in, in the order of their addresses.
///
/// @param region  of this process.
/// @param out     out: pieces are appended; on failure, what was appended is unspecified.
/// @return `errc::invalid_weights` with the remedy when a piece cannot be exported.
/// @complexity O(pieces)
/// @throws std::bad_alloc
[[nodiscard]] inline status find_pieces(segment region, std::vector<memory_piece>& out) {
  for (auto const* at = region.data; at < region.data + region.size;) {
    memory_piece piece;
    if (auto result = find_piece(at, piece); !result.ok()) { return result; }
    if (piece.how == memory_export::none) {
      return {errc::invalid_weights,
              "other processes cannot open this memory: allocate it with cudaMalloc, or with cuMemCreate and "
              "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, or use a transport that sends (NCCL)"};
    }
    out.push_back(piece);
    at = piece.base + piece.size;
  }
  return {};
}

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
