// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_REACH_LAWS_HPP
#define BALLAST_TESTS_SUPPORT_REACH_LAWS_HPP

#include <ballast/cudart/peer_directory.hpp>

#include "support/gpu.hpp"
#include "support/mapped_memory.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>

// What `local_peers` refuses to expose, on cards and on the simulated device. The devices 0 and 1 have peer access.

namespace ballast_test {

/// @param pair  two allocations of equal size that touch, of the current device
inline void check_one_allocation_a_region(ballast::segment pair) {
  ballast::cudart::local_peers peers{1};
  auto member = peers.join(0);
  auto const result = member.expose({&pair, 1}, 0);
  CAPTURE(result.message());
  CHECK(result.code() == make_error_code(ballast::errc::invalid_weights));
  CHECK(result.rank() == 0);
  CHECK(result.message().find("region 0 of rank 0: it lies in several allocations") != std::string::npos);
  CHECK(result.message().find("register what lies in each") != std::string::npos);
  CHECK(member.next_region() == 0);  // nothing has changed
  ballast::segment const halves[] = {{pair.data, pair.size / 2}, {pair.data + pair.size / 2, pair.size / 2}};
  CHECK(member.expose(halves, 0).ok());
}

/// Rank 0's memory of each kind. Device 0 is current.
struct reach_kinds {
  static constexpr std::size_t bytes = mapped_piece;
  gpu_memory memory;
  ballast::segment plain{memory.allocate(bytes), bytes};
  ballast::segment mapped{map_pieces(2), 2 * bytes};
  ballast::segment pooled = allocate_from_pool();

  [[nodiscard]] static ballast::segment allocate_from_pool() {
    void* data = nullptr;
    check_cuda(cudaMallocAsync(&data, bytes, nullptr), "cudaMallocAsync");
    check_cuda(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
    return {static_cast<std::byte*>(data), bytes};
  }
  static void let_pool_be_read(cudaMemAccessFlags flags) {
    cudaMemPool_t pool = nullptr;
    check_cuda(cudaDeviceGetDefaultMemPool(&pool, 0), "cudaDeviceGetDefaultMemPool");
    cudaMemAccessDesc access{};
    access.location.type = cudaMemLocationTypeDevice;
    access.location.id = 1;
    access.flags = flags;
    check_cuda(cudaMemPoolSetAccess(pool, &access, 1), "cudaMemPoolSetAccess");
  }
};

inline void expect_unreachable(ballast::status const& result, char const* remedy) {
  CAPTURE(result.message());
  CHECK(result.code() == make_error_code(ballast::errc::invalid_weights));
  CHECK(result.rank() == 0);
  CHECK(result.message().find("device 1 may not read") != std::string::npos);
  CHECK(result.message().find(remedy) != std::string::npos);
}
inline void join_on_device(ballast::cudart::local_peers& peers, ballast::index_t rank) {
  use_device_of(rank);
  static_cast<void>(peers.join(rank));
  use_device_of(0);
}

/// All ranks have joined when memory is exposed.
inline void check_reach_of_present_ranks() {
  use_device_of(0);
  reach_kinds const mine;
  ballast::cudart::local_peers peers{2};
  auto self = peers.join(0);
  join_on_device(peers, 1);
  CHECK(self.expose({&mine.plain, 1}, 0).ok());
  expect_unreachable(self.expose({&mine.mapped, 1}, 1), "cuMemSetAccess");
  expect_unreachable(self.expose({&mine.pooled, 1}, 1), "cudaMemPoolSetAccess");
  allow_access(mine.mapped.data, mapped_piece, 1);  // one piece of two is not enough
  expect_unreachable(self.expose({&mine.mapped, 1}, 1), "cuMemSetAccess");
  CHECK(self.next_region() == 1);
  allow_access(mine.mapped.data, 2 * mapped_piece, 1);
  CHECK(self.expose({&mine.mapped, 1}, 1).ok());
  reach_kinds::let_pool_be_read(cudaMemAccessFlagsProtReadWrite);
  CHECK(self.expose({&mine.pooled, 1}, 2).ok());
  CHECK(self.check_reach().ok());
  reach_kinds::let_pool_be_read(cudaMemAccessFlagsProtNone);
  expect_unreachable(self.check_reach(), "cudaMemPoolSetAccess");
  check_cuda(cudaFreeAsync(mine.pooled.data, nullptr), "cudaFreeAsync");
}

/// A rank joins when the other has exposed its memory.
inline void check_reach_of_late_ranks() {
  use_device_of(0);
  reach_kinds const mine;
  ballast::cudart::local_peers peers{2};
  auto self = peers.join(0);
  CHECK(self.expose({&mine.mapped, 1}, 0).ok());
  CHECK(self.check_reach().ok());
  join_on_device(peers, 1);
  expect_unreachable(self.check_reach(), "cuMemSetAccess");
  self.retract(0);
  CHECK(self.check_reach().ok());
  check_cuda(cudaFreeAsync(mine.pooled.data, nullptr), "cudaFreeAsync");
}

}  // namespace ballast_test

#endif
