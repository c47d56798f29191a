// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/gpu.hpp"
#include "support/ipc_copy_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

ballast_test::gpu_only const needs_gpu;

/// Memory of `cuMemCreate`, exported by file descriptor, in physical pieces of the smallest size.
class vmm_memory : public ballast_test::gpu_memory {
public:
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    static_cast<void>(cudaFree(nullptr));  // the driver's functions need a context
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    ballast_test::check_cuda(cudaGetDevice(&properties.location.id), "cudaGetDevice");
    properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    constexpr std::size_t granularity = std::size_t{2} << 20;
    auto const pieces = (bytes + granularity - 1) / granularity + 1;
    CUdeviceptr base = 0;
    check(driver().mem_address_reserve(&base, pieces * granularity, 0, 0, 0), "cuMemAddressReserve");
    for (std::size_t i = 0; i < pieces; ++i) {
      CUmemGenericAllocationHandle handle = 0;
      check(create()(&handle, granularity, &properties, 0), "cuMemCreate");
      check(driver().mem_map(base + i * granularity, granularity, 0, handle, 0), "cuMemMap");
      check(driver().mem_release(handle), "cuMemRelease");
    }
    CUmemAccessDesc access{};
    access.location = properties.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    check(driver().mem_set_access(base, pieces * granularity, &access, 1), "cuMemSetAccess");
    // Across the boundary of two pieces where it is long enough; unmapped when the process ends.
    auto const shift = bytes < granularity ? granularity - bytes / 2 : 17;
    return cudart::detail::to_address(base) + shift;
  }

private:
  static void check(CUresult result, char const* call) { cudart::detail::driver_status(result, call).or_throw(); }
  static cudart::detail::driver_api const& driver() {
    cudart::detail::driver_api::get().loaded.or_throw();
    return cudart::detail::driver_api::get();
  }
  static decltype(&cuMemCreate) create() {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found{};
    ballast_test::check_cuda(
        cudaGetDriverEntryPointByVersion("cuMemCreate", &address, 12000, cudaEnableDefault, &found), "cuMemCreate");
    return reinterpret_cast<decltype(&cuMemCreate)>(address);
  }
};

}  // namespace

TEST_CASE("peer copies between processes obey the laws of transports") {
  ballast_test::check_transport_laws(ballast_test::ipc_copy_runner<>{}, 30);
}

TEST_CASE("memory of the virtual memory API is shared by file descriptors") {
  using namespace ballast_test;
  ipc_copy_runner<vmm_memory> const runner{rank_counts({2, 4})};
  for (auto const size : runner.sizes()) {
    check_complaints(
        runner.run(size, [](auto& self, law_log& log) { transport_law::moves_random_batches(self, log, 5, 20); }));
  }
}

TEST_CASE("memory that no other process can open is refused with the remedy, on every rank") {
  using namespace ballast_test;
  ipc_copy_runner<> const runner{{2}};
  check_complaints(runner.run(2, [](auto& self, law_log& log) {
    void* pooled = nullptr;
    check_cuda(cudaMallocAsync(&pooled, 4096, nullptr), "cudaMallocAsync");
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    segment mine{self.memory.allocate(4096), 4096};
    if (self.rank() == 1) { mine.data = static_cast<std::byte*>(pooled); }
    auto const result = self.transport.expose({&mine, 1}, 0);
    log.expect(!result.ok(), "pooled memory was accepted");
    auto const* const wanted = self.rank() == 1 ? "cudaMalloc" : "rank 1";
    log.expect(result.message().find(wanted) != std::string::npos, "no ", wanted, " in: ", result.message());
    log.expect(result.rank() == 1, "rank ", result.rank(), " is blamed");
    // Numbers of a set that failed are used; the next one makes the group whole.
    mine.data = self.memory.allocate(4096);
    log.expect(self.transport.next_region() == 1, "the next number is ", self.transport.next_region());
    log.expect_ok(self.transport.expose({&mine, 1}, 1), "expose after a failure");
    meet(self, log);
  }));
}

TEST_CASE("sets that differ between processes are refused, on every rank alike") {
  using namespace ballast_test;
  ipc_copy_runner<> const runner{{3}};
  check_complaints(runner.run(3, [](auto& self, law_log& log) {
    segment const mine[] = {{self.memory.allocate(4096), 4096}, {self.memory.allocate(64), 64}};
    auto const is_refused = [&](std::size_t count, std::uint32_t first, errc code, index_t blamed, char const* what) {
      auto const result = self.transport.expose(std::span{mine}.first(count), first);
      log.expect_failure(result, {code}, ballast::detail::concat("rank ", blamed), what);
      log.expect(result.rank() == blamed, "rank ", result.rank(), " is blamed for ", what);
    };
    is_refused(self.rank() == 2 ? 1u : 2u, 0, errc::disagreement, 2, "another number of regions");
    is_refused(2, self.rank() == 1 ? 7u : 5u, errc::disagreement, 1, "other numbers");
    log.expect(self.transport.next_region() == 0, "a refused set took numbers");
    log.expect_ok(self.transport.expose(mine, 5), "expose");
    is_refused(2, 6, errc::invalid_option, 0, "numbers that were used");
    log.expect(self.transport.next_region() == 7, "the next number is ", self.transport.next_region());
    meet(self, log);
  }));
}

TEST_CASE("no batch without memory that was exposed") {
  using namespace ballast_test;
  ipc_copy_runner<> const runner{{2}};
  check_complaints(runner.run(2, [](auto& self, law_log& log) {
    segment const mine{self.memory.allocate(64), 64};
    outgoing_message const send{1 - self.rank(), 0, 1, {&mine, 1}};
    log.expect_failure(self.transport.start({&send, 1}, {}), {errc::transport_failed}, "exposed", "start");
    log.expect_ok(self.transport.start({}, {}), "start an empty batch");
    log.expect_ok(self.transport.wait(patience), "wait for an empty batch");
    meet(self, log);
  }));
}

// Memory that is exposed twice is opened once; the second set must outlive the first.
TEST_CASE("two sets over the same memory come and go by themselves") {
  using namespace ballast_test;
  ipc_copy_runner<> const runner{{2}};
  check_complaints(runner.run(2, [](auto& self, law_log& log) {
    constexpr std::size_t bytes = 4096;
    segment const mine{self.memory.allocate(bytes), bytes};
    segment const target{self.memory.allocate(bytes), bytes};
    self.memory.write(mine.data, std::vector<std::byte>(bytes, static_cast<std::byte>(40 + self.rank())));
    for (std::uint32_t set = 0; set < 6; ++set) {
      if (!log.expect_ok(self.transport.expose({&mine, 1}, set), "expose")) { return; }
      if (set > 0) { self.transport.retract(set - 1); }
      self.memory.write(target.data, std::vector<std::byte>(bytes));
      meet(self, log);
      remote_segment const source{set, 0, bytes};
      outgoing_message const send{1 - self.rank(), 0, set + 1, {&mine, 1}};
      incoming_message const receive{1 - self.rank(), 0, set + 1, {&target, 1}, {&source, 1}};
      log.expect_ok(self.transport.start({&send, 1}, {&receive, 1}), "start");
      log.expect_ok(self.transport.wait(patience), "wait");
      std::vector<std::byte> got(bytes);
      self.memory.read(target.data, got);
      log.expect(got == std::vector<std::byte>(bytes, static_cast<std::byte>(41 - self.rank())), "set ", set,
                 " gave other bytes");
      meet(self, log);
    }
  }));
}
