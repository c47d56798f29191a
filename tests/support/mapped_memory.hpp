// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_MAPPED_MEMORY_HPP
#define BALLAST_TESTS_SUPPORT_MAPPED_MEMORY_HPP

#include <ballast/cudart/memory.hpp>

#include "support/gpu.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>

namespace ballast_test {

inline void check_driver(CUresult result, char const* call) {
  ballast::cudart::detail::driver_status(result, call).or_throw();
}
[[nodiscard]] inline ballast::cudart::detail::driver_api const& driver() {
  ballast::cudart::detail::driver_api::get().loaded.or_throw();
  return ballast::cudart::detail::driver_api::get();
}

/// Let a device use a range of mapped memory.
inline void allow_access(std::byte* base, std::size_t bytes, int device) {
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  check_driver(driver().mem_set_access(ballast::cudart::detail::to_device(base), bytes, &access, 1), "cuMemSetAccess");
}

/// Memory of `cuMemCreate` in pieces of the smallest size, of the current device and for it alone. It can be exported
/// by file descriptor, and stays until the process ends.
inline constexpr std::size_t mapped_piece = std::size_t{2} << 20;
[[nodiscard]] inline std::byte* map_pieces(std::size_t pieces) {
  static_cast<void>(cudaFree(nullptr));  // the driver's functions need a context
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  check_cuda(cudaGetDevice(&properties.location.id), "cudaGetDevice");
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check_cuda(cudaGetDriverEntryPointByVersion("cuMemCreate", &address, 12000, cudaEnableDefault, &found),
             "cuMemCreate");
  auto const create = reinterpret_cast<decltype(&cuMemCreate)>(address);
  CUdeviceptr base = 0;
  check_driver(driver().mem_address_reserve(&base, pieces * mapped_piece, 0, 0, 0), "cuMemAddressReserve");
  for (std::size_t i = 0; i < pieces; ++i) {
    CUmemGenericAllocationHandle handle = 0;
    check_driver(create(&handle, mapped_piece, &properties, 0), "cuMemCreate");
    check_driver(driver().mem_map(base + i * mapped_piece, mapped_piece, 0, handle, 0), "cuMemMap");
    check_driver(driver().mem_release(handle), "cuMemRelease");
  }
  auto* const start = ballast::cudart::detail::to_address(base);
  allow_access(start, pieces * mapped_piece, properties.location.id);
  return start;
}

/// That memory in the form that the transport laws want: across the boundary of two pieces where it is long enough.
class mapped_memory : public gpu_memory {
public:
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    auto* const base = map_pieces((bytes + mapped_piece - 1) / mapped_piece + 1);
    return base + (bytes < mapped_piece ? mapped_piece - bytes / 2 : 17);
  }
};

}  // namespace ballast_test

#endif
