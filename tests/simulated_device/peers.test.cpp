// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Directories of peers on the simulated device: what `expose` refuses, what imports allow, what a failure leaves.
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/cudart/peer_directory.hpp>
#include <ballast/transport/in_process.hpp>

#include "simulated_device.hpp"
#include "support/check_complaints.hpp"
#include "support/gpu.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/mapped_memory.hpp"
#include "support/reach_laws.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

using namespace ballast;
using ballast_test::law_log;
using ballast_test::patience;
namespace simulated = ballast_test::simulated;
using peers = cudart::ipc_peers<in_process_endpoint>;

namespace {

/// Descriptors that this process has open while all ranks are here; 0 on all but rank 0, because looking takes one.
[[nodiscard]] std::size_t num_open_descriptors(in_process_endpoint& control) {
  static_cast<void>(control.all_reduce({}, patience));
  std::size_t count = 0;
  if (control.rank() == 0) {
    auto const entries = std::filesystem::directory_iterator{"/proc/self/fd"};
    count = static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
  }
  static_cast<void>(control.all_reduce({}, patience));
  return count;
}

/// Run `body(control, log)` on a thread for each rank, each with a device of its own.
template <class Body>
void run_ranks(index_t num_ranks, simulated::machine_options options, Body body) {
  options.num_devices = num_ranks;
  simulated::reset(options);
  in_process_group group{num_ranks};
  std::vector<std::vector<std::string>> complaints(static_cast<std::size_t>(num_ranks));
  group.run([&](in_process_endpoint& control) {
    ballast_test::use_device_of(control.rank());
    law_log log{control.rank()};
    body(control, log);
    complaints[static_cast<std::size_t>(control.rank())] = log.complaints();
  });
  for (auto const& some : complaints) { ballast_test::check_complaints(some); }
  CHECK(simulated::to_text(simulated::take_violations()) == "");
}

/// The two ends of a region, which are one where it is short.
[[nodiscard]] std::vector<segment> ends_of(segment region) {
  auto const bytes = std::min<std::size_t>(region.size, 4096);
  return {{region.data, bytes}, {region.data + region.size - bytes, bytes}};
}
/// A region of a rank whose ends say whose it is.
[[nodiscard]] segment region_of(std::byte* data, std::size_t bytes, index_t rank) {
  for (auto const& end : ends_of({data, bytes})) {
    std::vector<std::byte> const own(end.size, static_cast<std::byte>(40 + rank));
    ballast_test::check_cuda(cudaMemcpy(end.data, own.data(), end.size, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  return {data, bytes};
}
[[nodiscard]] bool holds_bytes_of(segment region, index_t rank) {
  for (auto const& end : ends_of(region)) {
    std::vector<std::byte> found(end.size);
    ballast_test::check_cuda(cudaMemcpy(found.data(), end.data, end.size, cudaMemcpyDeviceToHost), "cudaMemcpy");
    if (found != std::vector<std::byte>(end.size, static_cast<std::byte>(40 + rank))) { return false; }
  }
  return true;
}

[[nodiscard]] unsigned long long access_flags(std::byte const* address, int device) {
  CUmemLocation where{};
  where.type = CU_MEM_LOCATION_TYPE_DEVICE;
  where.id = device;
  unsigned long long flags = 0;
  ballast_test::check_driver(ballast_test::driver().mem_get_access(&flags, &where, cudart::detail::to_device(address)),
                             "cuMemGetAccess");
  return flags;
}

}  // namespace

TEST_CASE("imports of many pieces can only be read, by the device of the construction, and keep no descriptor") {
  run_ranks(3, {}, [](in_process_endpoint& control, law_log& log) {
    constexpr std::size_t pieces = 150;
    auto const rank = control.rank();
    auto const mapped = region_of(ballast_test::map_pieces(pieces), pieces * ballast_test::mapped_piece, rank);
    segment const parts[] = {{mapped.data + 17, 2 * ballast_test::mapped_piece}, {mapped.data + 17, 64}, mapped};
    peers directory{control};
    ballast_test::use_device_of(rank + 1);  // another one, when memory is exposed
    auto const before = num_open_descriptors(control);
    log.expect_ok(directory.expose(parts, 0), "expose");
    constexpr std::size_t watches = 6;
    auto const after = num_open_descriptors(control);
    log.expect(rank != 0 || after == before + watches, after, " descriptors are open, ", before, " before");
    int current = -1;
    ballast_test::check_cuda(cudaGetDevice(&current), "cudaGetDevice");
    log.expect(current == (rank + 1) % 3, "device ", current, " is current afterwards");
    ballast_test::use_device_of(rank);
    for (index_t peer = 0; peer < 3; ++peer) {
      if (peer == rank) { continue; }
      log.expect(holds_bytes_of(directory.region(peer, 2), peer), "other bytes of rank ", peer);
      for (std::uint32_t number = 0; number < 3; ++number) {
        auto const* const at = directory.region(peer, number).data;
        log.expect(access_flags(at, rank) == CU_MEM_ACCESS_FLAGS_PROT_READ, "rank ", peer, "'s memory can be written");
        log.expect(access_flags(at, (rank + 1) % 3) == CU_MEM_ACCESS_FLAGS_PROT_NONE, "another device may read it");
      }
      log.expect_ok(directory.peer_trouble(peer), "a living peer");
    }
    log.expect_ok(directory.check_reach(), "check_reach");
    static_cast<void>(control.all_reduce({}, patience));
  });
}

TEST_CASE("a driver that fails in the middle is told of on every rank, and leaves nothing open") {
  for (std::string const call : {"cuMemExportToShareableHandle", "cuMemImportFromShareableHandle", "cuMemMap",
                                 "cuMemAddressReserve", "cudaIpcOpenMemHandle", "cudaIpcOpenEventHandle"}) {
    CAPTURE(call);
    run_ranks(3, {}, [&](in_process_endpoint& control, law_log& log) {
      auto const rank = control.rank();
      ballast_test::gpu_memory memory;
      segment const mine[] = {region_of(ballast_test::map_pieces(100), 100 * ballast_test::mapped_piece, rank),
                              region_of(memory.allocate(4096), 4096, rank)};
      peers directory{control};
      auto const before = num_open_descriptors(control);
      if (rank == 1) { simulated::fail_next(call, cudaErrorMemoryAllocation, 1); }
      auto const begin = ballast::detail::now();
      auto const failed = directory.expose(mine, 0);
      log.expect(ballast::detail::now() - begin < patience / 4, "it took long");
      if (rank == 1) {
        log.expect(failed.code() == cudart::make_error_code(cudaErrorMemoryAllocation), failed.message());
        log.expect(simulated::forget_failures() == 0, "the call did not come");
      } else {
        log.expect_failure(failed, {errc::peer_lost}, "rank 1 could not share", "another rank");
      }
      log.expect(num_open_descriptors(control) == before, "descriptors stay open");
      log.expect_ok(directory.expose(mine, directory.next_region()), "expose once more");
      for (index_t peer = 0; peer < 3; ++peer) {
        if (peer == rank) { continue; }
        log.expect(holds_bytes_of(directory.region(peer, 2), peer), "other bytes of rank ", peer);
        log.expect(holds_bytes_of(directory.region(peer, 3), peer), "other bytes of rank ", peer);
      }
      static_cast<void>(control.all_reduce({}, patience));
    });
  }
}

TEST_CASE("without peer access the error names both devices and the remedy") {
  simulated::machine_options options;
  options.peer_access = false;
  run_ranks(2, options, [](in_process_endpoint& control, law_log& log) {
    ballast_test::gpu_memory memory;
    auto const mine = region_of(memory.allocate(4096), 4096, control.rank());
    peers directory{control};
    auto const result = directory.expose({&mine, 1}, 0);
    for (auto const* const wanted : {"cannot map memory of device", "nccl::transport", "local_peers"}) {
      log.expect(result.message().find(wanted) != std::string::npos, "no ", wanted, " in: ", result.message());
    }
    log.expect(result.rank() == 1 - control.rank(), "rank ", result.rank(), " is blamed");
  });
}

TEST_CASE("what is left mapped outlives the directory, other imports do not") {
  run_ranks(2, {}, [](in_process_endpoint& control, law_log& log) {
    auto const rank = control.rank();
    ballast_test::gpu_memory memory;
    segment const mine[] = {region_of(ballast_test::map_pieces(1), 64, rank),
                            region_of(memory.allocate(4096), 4096, rank)};
    for (bool const leaves : {false, true}) {
      std::optional<peers> directory{control};
      log.expect_ok(directory->expose(mine, 0), "expose");
      segment const theirs[] = {directory->region(1 - rank, 0), directory->region(1 - rank, 1)};
      if (leaves) { directory->leave_mapped(); }
      directory.reset();
      for (auto const& region : theirs) {
        if (leaves) { log.expect(holds_bytes_of(region, 1 - rank), "other bytes"); }
        cudart::memory_piece piece;
        log.expect(cudart::find_piece(region.data, piece).ok() == leaves,
                   leaves ? "it is unmapped" : "it stays mapped");
      }
      static_cast<void>(control.all_reduce({}, patience));
    }
  });
}

TEST_CASE("a transport that is destroyed while the device still copies leaves the peers' memory in place") {
  run_ranks(2, {}, [](in_process_endpoint& control, law_log& log) {
    auto const rank = control.rank();
    ballast_test::gpu_memory memory;
    constexpr std::size_t bytes = 4096;
    segment const mine[] = {region_of(ballast_test::map_pieces(1), bytes, rank),
                            region_of(memory.allocate(bytes), bytes, rank)};
    segment const target{memory.allocate(2 * bytes), 2 * bytes};  // no longer than its two ends
    std::optional<cudart::peer_copy<peers>> wires{peers{control}};
    log.expect_ok(wires->expose(mine, 0), "expose");
    std::optional<simulated::held_stream> held{wires->copy_stream()};
    remote_segment const source[] = {{0, 0, bytes}, {1, 0, bytes}};
    outgoing_message const send{1 - rank, 0, 1, mine};
    incoming_message const receive{1 - rank, 0, 1, {&target, 1}, source};
    log.expect_ok(wires->start({&send, 1}, {&receive, 1}), "start");
    static_cast<void>(control.all_reduce({}, patience));  // both have offered
    constexpr nanoseconds_t milliseconds = 1'000'000;
    auto const begin = ballast::detail::now();
    while (ballast::detail::now() - begin < 20 * milliseconds) { static_cast<void>(wires->poll()); }
    wires.reset();  // the copies are enqueued, and have not begun
    static_cast<void>(control.all_reduce({}, patience));
    held.reset();
    ballast_test::check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    log.expect(holds_bytes_of(target, 1 - rank), "the copies read other bytes");
    static_cast<void>(control.all_reduce({}, patience));
  });
}

TEST_CASE("exposing memory leaves another thread's capture alone") {
  run_ranks(2, {}, [](in_process_endpoint& control, law_log& log) {
    auto const rank = control.rank();
    ballast_test::gpu_memory memory;
    segment const mine[] = {region_of(ballast_test::map_pieces(3), 64, rank), region_of(memory.allocate(64), 64, rank)};
    static_cast<void>(control.all_reduce({}, patience));
    cudaStream_t captured = nullptr;
    std::optional<cudart::stream> own;
    if (rank == 1) {
      own = cudart::stream::create();
      captured = own->get();
      ballast_test::check_cuda(cudaStreamBeginCapture(captured, cudaStreamCaptureModeGlobal), "begin");
    }
    static_cast<void>(control.all_reduce({}, patience));
    if (rank == 0) {
      cudart::local_peers threads{1};
      auto member = threads.join(0);
      log.expect_ok(member.expose(mine, 0), "local_peers: expose");
      log.expect_ok(member.check_reach(), "local_peers: check_reach");
    }
    static_cast<void>(control.all_reduce({}, patience));
    if (rank == 1) {
      cudaGraph_t graph = nullptr;
      log.expect(cudaStreamEndCapture(captured, &graph) == cudaSuccess, "the capture is lost");
      if (graph != nullptr) { static_cast<void>(cudaGraphDestroy(graph)); }
    }
  });
}

TEST_CASE("memory that a peer's device cannot read is refused with the remedy before anything moves") {
  simulated::reset({.num_devices = 2});
  SUBCASE("late ranks") { ballast_test::check_reach_of_late_ranks(); }
  SUBCASE("present ranks") { ballast_test::check_reach_of_present_ranks(); }
  CHECK(simulated::to_text(simulated::take_violations()) == "");
}

TEST_CASE("where devices have no peer access at all, bytes go through the host, and nothing is refused") {
  simulated::reset({.num_devices = 2, .peer_access = false});
  ballast_test::use_device_of(0);
  ballast_test::reach_kinds const mine;
  cudart::local_peers ranks{2};
  auto self = ranks.join(0);
  ballast_test::join_on_device(ranks, 1);
  segment const all[] = {mine.plain, mine.mapped, mine.pooled};
  CHECK(self.expose(all, 0).ok());
  CHECK(self.check_reach().ok());
}

TEST_CASE("a region over two allocations is refused with the remedy") {
  simulated::reset({.neighbours_touch = true});
  auto const pair = ballast_test::touching_allocations();
  REQUIRE(pair.data != nullptr);
  ballast_test::check_one_allocation_a_region(pair);
}
