// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/gpu.hpp"
#include "support/ipc_copy_runner.hpp"
#include "support/mapped_memory.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

ballast_test::gpu_only const needs_gpu;

}  // namespace

TEST_CASE("peer copies between processes obey the laws of transports") {
  ballast_test::check_transport_laws(ballast_test::ipc_copy_runner<>{}, 30);
}

TEST_CASE("memory of the virtual memory API is shared by file descriptors") {
  using namespace ballast_test;
  ipc_copy_runner<mapped_memory> const runner{rank_counts({2, 4})};
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
      segment const given{mine.data, target.size};
      outgoing_message const send{1 - self.rank(), 0, set + 1, {&given, 1}};
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

namespace {

/// Take bytes from the other of two ranks, as set `set` of one region gives them, and compare with what it wrote.
template <class Endpoint>
void pull_from_the_other(Endpoint& self, ballast_test::law_log& log, std::uint32_t set, segment mine, segment target) {
  using ballast_test::patience;
  remote_segment const source{set, 0, target.size};
  segment const given{mine.data, target.size};
  outgoing_message const send{1 - self.rank(), 0, set + 1, {&given, 1}};
  incoming_message const receive{1 - self.rank(), 0, set + 1, {&target, 1}, {&source, 1}};
  log.expect_ok(self.transport.start({&send, 1}, {&receive, 1}), "start");
  log.expect_ok(self.transport.wait(patience), "wait");
  std::vector<std::byte> got(target.size);
  self.memory.read(target.data, got);
  log.expect(got == std::vector<std::byte>(target.size, static_cast<std::byte>(41 - self.rank())), "other bytes");
}

/// What the device that reads it may do with an address of this process.
[[nodiscard]] unsigned long long access_flags(std::byte const* address) {
  CUmemLocation where{};
  where.type = CU_MEM_LOCATION_TYPE_DEVICE;
  ballast_test::check_cuda(cudaGetDevice(&where.id), "cudaGetDevice");
  unsigned long long flags = 0;
  ballast_test::check_driver(ballast_test::driver().mem_get_access(&flags, &where, cudart::detail::to_device(address)),
                             "cuMemGetAccess");
  return flags;
}

}  // namespace

TEST_CASE("memory in hundreds of pieces is shared within the limits of an ordinary user, and can only be read") {
  using namespace ballast_test;
  ipc_copy_runner<> const runner{{2}};
  check_complaints(runner.run(2, [](auto& self, law_log& log) {
    ::rlimit const limit{128, 128};
    // The driver keeps descriptors of its own: what is left has to do.
    if (cudaFree(nullptr) == cudaSuccess) { static_cast<void>(::setrlimit(RLIMIT_NOFILE, &limit)); }
    constexpr std::size_t pieces = 300;
    segment const mine{map_pieces(pieces), pieces * mapped_piece};
    constexpr std::size_t bytes = 5 * mapped_piece;
    segment const target{self.memory.allocate(bytes), bytes};
    self.memory.write(mine.data, std::vector<std::byte>(bytes, static_cast<std::byte>(40 + self.rank())));
    if (!log.expect_ok(self.transport.expose({&mine, 1}, 0), "expose")) { return; }
    pull_from_the_other(self, log, 0, mine, target);
    auto const imported = self.transport.directory().region(1 - self.rank(), 0);
    for (auto const piece : {std::size_t{0}, pieces - 1}) {
      auto const flags = access_flags(imported.data + piece * mapped_piece);
      log.expect(flags == CU_MEM_ACCESS_FLAGS_PROT_READ, "access flags of piece ", piece, " are ", flags);
    }
    meet(self, log);
  }));
}

TEST_CASE("a region over two allocations is refused, with the remedy, on every rank") {
  using namespace ballast_test;
  ipc_copy_runner<> const runner{{2}};
  check_complaints(runner.run(2, [](auto& self, law_log& log) {
    auto const pair = touching_allocations();
    std::int64_t found[] = {pair.data != nullptr ? 1 : 0};
    if (!log.expect_ok(self.control.all_reduce(found, patience), "all_reduce") || found[0] < 2) { return; }
    segment mine = pair;
    if (self.rank() == 0) { mine.size /= 2; }
    auto const result = self.transport.expose({&mine, 1}, 0);
    log.expect(!result.ok(), "a region over two allocations was accepted");
    auto const* const wanted = self.rank() == 1 ? "several allocations" : "rank 1";
    log.expect(result.message().find(wanted) != std::string::npos, "no ", wanted, " in: ", result.message());
    mine.size = pair.size / 2;
    log.expect_ok(self.transport.expose({&mine, 1}, 1), "expose one of the two");
    meet(self, log);
  }));
}

TEST_CASE("a dead peer is known in milliseconds") {
  using namespace ballast_test;
  ipc_copy_runner<> const runner{{2}};
  check_complaints(runner.run(2, [](auto& self, law_log& log) {
    segment const mine{self.memory.allocate(64), 64};
    if (!log.expect_ok(self.transport.expose({&mine, 1}, 0), "expose")) { return; }
    auto const& directory = self.transport.directory();
    log.expect_ok(directory.peer_trouble(0), "rank 0 lives");
    log.expect_ok(directory.peer_trouble(1), "rank 1 lives");
    meet(self, log);
    if (self.rank() == 1) {
      ballast::detail::sleep_for(20 * millisecond);
      self.die();
    }
    auto const begin = ballast::detail::now();
    status trouble;
    while (trouble.ok() && ballast::detail::now() - begin < patience) {
      ballast::detail::sleep_for(millisecond);
      trouble = directory.peer_trouble(1);
    }
    log.expect_failure(trouble, {errc::peer_lost}, "rank 1", "peer_trouble");
    // A process with a context takes the driver a while to tear down.
    log.expect(ballast::detail::now() - begin < 2'000 * millisecond, "it took ", ballast::detail::now() - begin, " ns");
  }));
}

TEST_CASE("what is left mapped can be read when the directory is gone") {
  using namespace ballast_test;
  auto const name = fresh_group_name();
  for (bool const by_descriptor : {false, true}) {
    CAPTURE(by_descriptor);
    check_complaints(run_processes(2, [&](index_t rank, process_exit, law_log& log) {
      use_device_of(rank);
      posix::process_group group;
      if (!log.expect_ok(group.join(name + (by_descriptor ? "a" : "b"), rank, 2, patience), "join")) { return; }
      gpu_memory memory;
      mapped_memory mapped;
      constexpr std::size_t bytes = 4096;
      segment const mine{by_descriptor ? mapped.allocate(bytes) : memory.allocate(bytes), bytes};
      memory.write(mine.data, std::vector<std::byte>(bytes, static_cast<std::byte>(40 + rank)));
      segment theirs;
      {
        cudart::ipc_peers<posix::process_group> peers{group};
        if (!log.expect_ok(peers.expose({&mine, 1}, 0), "expose")) { return; }
        theirs = peers.region(1 - rank, 0);
        peers.leave_mapped();
      }
      std::vector<std::byte> got(bytes);
      memory.read(theirs.data, got);
      log.expect(got == std::vector<std::byte>(bytes, static_cast<std::byte>(41 - rank)), "other bytes");
      static_cast<void>(group.all_reduce({}, patience));
    }));
  }
}

TEST_CASE("the device is the one of the construction, whatever is current when memory is exposed") {
  using namespace ballast_test;
  auto const name = fresh_group_name();
  check_complaints(run_processes(2, [&](index_t rank, process_exit, law_log& log) {
    if (num_devices() < 2) { return; }
    use_device_of(rank);
    posix::process_group group;
    if (!log.expect_ok(group.join(name, rank, 2, patience), "join")) { return; }
    mapped_memory mapped;
    segment const mine{mapped.allocate(64), 64};
    cudart::peer_copy<cudart::ipc_peers<posix::process_group>> wires{cudart::ipc_peers<posix::process_group>{group}};
    use_device_of(1 - rank);
    log.expect_ok(wires.expose({&mine, 1}, 0), "expose");
    int current = -1;
    check_cuda(cudaGetDevice(&current), "cudaGetDevice");
    log.expect(current == 1 - rank, "device ", current, " is current afterwards");
    use_device_of(rank);
    auto const flags = access_flags(wires.directory().region(1 - rank, 0).data);
    log.expect((flags & CU_MEM_ACCESS_FLAGS_PROT_READ) != 0, "the rank's device may not read what was imported");
    static_cast<void>(group.all_reduce({}, patience));
  }));
}
