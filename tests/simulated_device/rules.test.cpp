// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "simulated_device.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace simulated = ballast_test::simulated;
using simulated::machine_options;

namespace {

constexpr std::size_t size = 10'000;

machine_options in_virtual_time(int devices = 1, std::uint64_t seed = 1) {
  machine_options options;
  options.num_devices = devices;
  options.seed = seed;
  options.virtual_time = true;
  return options;
}

cudaStream_t make_stream() {
  cudaStream_t made = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking) == cudaSuccess);
  return made;
}
cudaEvent_t make_event(unsigned flags = cudaEventDisableTiming) {
  cudaEvent_t made = nullptr;
  REQUIRE(cudaEventCreateWithFlags(&made, flags) == cudaSuccess);
  return made;
}
std::byte* make_memory(std::size_t bytes = size) {
  void* made = nullptr;
  REQUIRE(cudaMalloc(&made, bytes) == cudaSuccess);
  return static_cast<std::byte*>(made);
}
cudaError_t copy_bytes(void* to, void const* from, cudaStream_t on, std::size_t bytes = size) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, on);
}
cudaError_t copy_two(void* a, void* b, void const* from, cudaStream_t on, std::size_t bytes = size) {
  void* const to[] = {a, b};
  void const* const sources[] = {from, from};
  std::size_t const sizes[] = {bytes, bytes};
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  std::size_t first = 0;
  return cudaMemcpyBatchAsync(to, sources, sizes, 2, &attributes, &first, 1, on);
}

/// The rules that were broken since the last look, each once.
std::vector<std::string> broken_rules() {
  std::vector<std::string> rules;
  for (auto const& each : simulated::take_violations()) { rules.push_back(each.rule); }
  std::sort(rules.begin(), rules.end());
  rules.erase(std::unique(rules.begin(), rules.end()), rules.end());
  return rules;
}
using rules = std::vector<std::string>;

/// Run one rank to its end, with its streams.
template <class Body>
void on_one_rank(machine_options const& options, Body body) {
  simulated::reset(options);
  simulated::run_ranks(1, [&](int) { body(); });
}

void empty_kernel(int) {}

}  // namespace

TEST_CASE("work on two streams without an event between them is seen on every schedule, and with one it is not") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    for (bool const ordered : {false, true}) {
      on_one_rank(in_virtual_time(1, seed), [&] {
        auto const first = make_stream();
        auto const second = make_stream();
        auto* const memory = make_memory();
        auto* const target = make_memory();
        auto const event = make_event();
        CHECK(cudaMemsetAsync(memory, 1, size, first) == cudaSuccess);
        if (ordered) {
          CHECK(cudaEventRecord(event, first) == cudaSuccess);
          CHECK(cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
        }
        CHECK(copy_bytes(target, memory, second) == cudaSuccess);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
      });
      CHECK(broken_rules() == (ordered ? rules{} : rules{"order"}));
    }
  }
}

TEST_CASE("what the host has seen done is ordered") {
  on_one_rank(in_virtual_time(), [] {
    auto const first = make_stream();
    auto const second = make_stream();
    auto const event = make_event();
    auto* const memory = make_memory();
    auto* const target = make_memory();
    CHECK(cudaMemsetAsync(memory, 1, size, first) == cudaSuccess);
    CHECK(cudaEventRecord(event, first) == cudaSuccess);
    while (cudaEventQuery(event) == cudaErrorNotReady) { simulated::sleep_for(0); }
    CHECK(copy_bytes(target, memory, second) == cudaSuccess);
    CHECK(cudaMemsetAsync(memory, 2, size, first) == cudaSuccess);  // not behind the copy
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
  });
  CHECK(broken_rules() == rules{"order"});
}

TEST_CASE("copies move bytes in portions, so that what is not ordered can be torn") {
  bool torn = false;
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    auto options = in_virtual_time(1, seed);
    options.bytes_per_nanosecond = 1;
    on_one_rank(options, [&] {
      auto const first = make_stream();
      auto const second = make_stream();
      auto* const memory = make_memory();
      auto* const other = make_memory();
      auto* const target = make_memory();
      CHECK(cudaMemset(memory, 1, size) == cudaSuccess);
      CHECK(cudaMemset(other, 2, size) == cudaSuccess);
      CHECK(cudaDeviceSynchronize() == cudaSuccess);
      CHECK(copy_bytes(memory, other, first) == cudaSuccess);
      CHECK(copy_bytes(target, memory, second) == cudaSuccess);
      CHECK(cudaDeviceSynchronize() == cudaSuccess);
      std::vector<unsigned char> bytes(size);
      CHECK(cudaMemcpy(bytes.data(), target, size, cudaMemcpyDeviceToHost) == cudaSuccess);
      torn = torn || bytes.front() != bytes.back();
    });
  }
  CHECK(torn);
}

TEST_CASE("a seed replays exactly, another one does not") {
  auto const run = [](std::uint64_t seed) {
    simulated::reset(in_virtual_time(2, seed));
    simulated::run_ranks(4, [](int rank) {
      static_cast<void>(cudaSetDevice(rank % 2));
      auto const stream = make_stream();
      auto* const memory = make_memory();
      for (int i = 0; i < 20; ++i) {
        static_cast<void>(cudaMemsetAsync(memory, i, size, stream));
        simulated::sleep_for(0);
      }
      static_cast<void>(cudaStreamSynchronize(stream));
    });
    CHECK(simulated::violations().empty());
    return simulated::trace_digest();
  };
  CHECK(run(7) == run(7));
  CHECK(run(7) != run(8));
}

TEST_CASE("events and streams of different devices do not mix") {
  on_one_rank(in_virtual_time(2), [] {
    auto const stream = make_stream();
    auto const own = make_event(cudaEventDefault);
    CHECK(cudaSetDevice(1) == cudaSuccess);
    auto const other = make_event(cudaEventDefault);
    auto const other_stream = make_stream();
    CHECK(cudaEventRecord(other, stream) == cudaErrorInvalidResourceHandle);
    CHECK(broken_rules() == rules{"event of another device"});
    CHECK(cudaEventRecord(other, other_stream) == cudaSuccess);
    CHECK(cudaEventRecord(own, stream) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(stream, other, 0) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    float time = 0;
    CHECK(cudaEventElapsedTime(&time, own, other) == cudaErrorInvalidResourceHandle);
    CHECK(broken_rules() == rules{"event of another device"});
  });
}

TEST_CASE("a copy stays inside one allocation, and where its device can reach") {
  on_one_rank(in_virtual_time(2), [] {
    auto const stream = make_stream();
    auto* const memory = make_memory(4096);
    auto* const target = make_memory(std::size_t{3} * 4096);
    CHECK(copy_bytes(target, memory, stream, std::size_t{2} * 4096) == cudaErrorInvalidValue);
    CHECK(broken_rules() == rules{"spans allocations"});
    CHECK(cudaSetDevice(1) == cudaSuccess);
    auto* const far = make_memory(4096);
    CHECK(cudaSetDevice(0) == cudaSuccess);
    CHECK(copy_bytes(memory, far, stream, 4096) == cudaErrorInvalidValue);
    CHECK(broken_rules() == rules{"no access"});
    CHECK(cudaDeviceEnablePeerAccess(1, 0) == cudaSuccess);
    CHECK(copy_bytes(memory, far, stream, 4096) == cudaSuccess);
    CHECK(cudaDeviceEnablePeerAccess(1, 0) == cudaErrorPeerAccessAlreadyEnabled);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(broken_rules().empty());
  });
}

TEST_CASE("pools are out of reach for other devices until access is given") {
  on_one_rank(in_virtual_time(2), [] {
    auto const own = make_stream();
    auto* const target = make_memory(4096);
    CHECK(cudaDeviceEnablePeerAccess(1, 0) == cudaSuccess);
    CHECK(cudaSetDevice(1) == cudaSuccess);
    auto const far_stream = make_stream();
    void* far = nullptr;
    CHECK(cudaMallocAsync(&far, 4096, far_stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(far_stream) == cudaSuccess);
    CHECK(copy_bytes(target, far, own, 4096) == cudaErrorInvalidValue);
    CHECK(broken_rules() == rules{"no access"});
    cudaMemPool_t pool = nullptr;
    CHECK(cudaDeviceGetDefaultMemPool(&pool, 1) == cudaSuccess);
    cudaMemAccessDesc access{};
    access.location.type = cudaMemLocationTypeDevice;
    access.flags = cudaMemAccessFlagsProtReadWrite;
    CHECK(cudaMemPoolSetAccess(pool, &access, 1) == cudaSuccess);
    CHECK(copy_bytes(target, far, own, 4096) == cudaSuccess);
    CHECK(cudaStreamSynchronize(own) == cudaSuccess);
    CHECK(broken_rules().empty());
  });
}

TEST_CASE("a kernel on memory that its device may not reach poisons the context") {
  on_one_rank(in_virtual_time(2), [] {
    CHECK(cudaSetDevice(1) == cudaSuccess);
    auto* const far = make_memory();
    CHECK(cudaSetDevice(0) == cudaSuccess);
    auto const stream = make_stream();
    simulated::simulate_kernel(
        &empty_kernel, [far](simulated::kernel_actions& actions, dim3, dim3, int) { actions.reads(far, size); });
    int argument = 0;
    void* arguments[] = {&argument};
    CHECK(cudaLaunchKernel(reinterpret_cast<void const*>(&empty_kernel), dim3{1}, dim3{1}, arguments, 0, stream) ==
          cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaErrorIllegalAddress);
    CHECK(cudaStreamQuery(stream) == cudaErrorIllegalAddress);
    CHECK(broken_rules() == rules{"illegal address"});
  });
}

TEST_CASE("batches of copies are refused on the legacy stream") {
  on_one_rank(in_virtual_time(), [] {
    auto* const memory = make_memory(4 * size);
    CHECK(copy_two(memory, memory + size, memory + 2 * size, nullptr) == cudaErrorInvalidValue);
    CHECK(broken_rules() == rules{"batch refused"});
  });
}

TEST_CASE("memory that is given back while it is in use is seen") {
  on_one_rank(in_virtual_time(), [] {
    auto const first = make_stream();
    auto const second = make_stream();
    auto* const target = make_memory();
    void* pooled = nullptr;
    CHECK(cudaMallocAsync(&pooled, size, first) == cudaSuccess);
    CHECK(cudaStreamSynchronize(first) == cudaSuccess);
    CHECK(copy_bytes(target, pooled, second) == cudaSuccess);
    CHECK(cudaFreeAsync(pooled, first) == cudaSuccess);  // not behind the copy
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    auto const seen = broken_rules();
    CHECK(std::count(seen.begin(), seen.end(), "order") == 1);
    CHECK(copy_bytes(target, pooled, second) == cudaErrorInvalidValue);
    CHECK(broken_rules() == rules{"use after free"});
    CHECK(cudaFree(target) == cudaSuccess);
    CHECK(cudaFree(target) == cudaErrorInvalidValue);
    CHECK(broken_rules() == rules{"use after free"});
  });
}

TEST_CASE("cudaFree waits for the device, and how long is known") {
  on_one_rank(in_virtual_time(), [] {
    auto const stream = make_stream();
    auto* const memory = make_memory();
    CHECK(cudaMemsetAsync(memory, 1, size, stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    simulated::forget_waits();
    constexpr simulated::nanoseconds pass = 4'000'000'000;
    simulated::hold_until(stream, simulated::now() + pass);
    CHECK(simulated::calls_that_waited().empty());
    CHECK(cudaFree(memory) == cudaSuccess);
    CHECK(simulated::longest_wait("cudaFree") >= pass / 2);
    CHECK(simulated::calls_that_waited() == rules{"cudaFree"});
  });
  CHECK(broken_rules().empty());
}

TEST_CASE("memory of another device is freed under its readers") {
  on_one_rank(in_virtual_time(2), [] {
    auto const stream = make_stream();
    auto* const target = make_memory();
    CHECK(cudaDeviceEnablePeerAccess(1, 0) == cudaSuccess);
    CHECK(cudaSetDevice(1) == cudaSuccess);
    auto* const far = make_memory();
    simulated::held_stream held{stream};
    CHECK(copy_bytes(target, far, stream) == cudaSuccess);
    CHECK(cudaFree(far) == cudaSuccess);
    CHECK(broken_rules() == rules{"free under way"});
    held.release();
    CHECK(cudaSetDevice(0) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(broken_rules() == rules{"use after free"});
  });
}

TEST_CASE("imported memory that is closed under a copy poisons the context") {
  on_one_rank(in_virtual_time(), [] {
    auto const stream = make_stream();
    auto* const memory = make_memory();
    auto* const target = make_memory();
    CHECK(cudaMemset(memory, 7, size) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    cudaIpcMemHandle_t handle{};
    CHECK(cudaIpcGetMemHandle(&handle, memory) == cudaSuccess);
    void* alias = nullptr;
    CHECK(cudaIpcOpenMemHandle(&alias, handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess);
    CHECK(alias != memory);
    CHECK(copy_bytes(target, alias, stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    std::vector<unsigned char> bytes(size);
    CHECK(cudaMemcpy(bytes.data(), target, size, cudaMemcpyDeviceToHost) == cudaSuccess);
    CHECK(std::count(bytes.begin(), bytes.end(), 7) == static_cast<std::ptrdiff_t>(size));
    CHECK(broken_rules().empty());
    simulated::held_stream held{stream};
    CHECK(copy_bytes(target, alias, stream) == cudaSuccess);
    CHECK(cudaIpcCloseMemHandle(alias) == cudaSuccess);
    held.release();
    CHECK(cudaStreamSynchronize(stream) == cudaErrorIllegalAddress);
    CHECK(broken_rules() == rules{"use after free"});
  });
}

TEST_CASE("an alias of memory is the same memory for the order of accesses") {
  on_one_rank(in_virtual_time(), [] {
    auto const first = make_stream();
    auto const second = make_stream();
    auto* const memory = make_memory();
    auto* const target = make_memory();
    cudaIpcMemHandle_t handle{};
    CHECK(cudaIpcGetMemHandle(&handle, memory) == cudaSuccess);
    void* alias = nullptr;
    CHECK(cudaIpcOpenMemHandle(&alias, handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess);
    CHECK(cudaMemsetAsync(memory, 1, size, first) == cudaSuccess);
    CHECK(copy_bytes(target, alias, second) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(broken_rules() == rules{"order"});
  });
}

TEST_CASE("copies of memory that is not pinned wait for the stream, copies of pinned memory do not") {
  on_one_rank(in_virtual_time(), [] {
    auto const stream = make_stream();
    auto* const memory = make_memory();
    void* pinned = nullptr;
    CHECK(cudaMallocHost(&pinned, size) == cudaSuccess);
    constexpr simulated::nanoseconds pass = 1'000'000;
    simulated::hold_until(stream, simulated::now() + pass);
    auto const begin = simulated::now();
    CHECK(copy_bytes(pinned, memory, stream) == cudaSuccess);
    CHECK(simulated::now() - begin < pass / 2);
    std::vector<std::byte> pageable(size);
    CHECK(copy_bytes(pageable.data(), memory, stream) == cudaSuccess);
    CHECK(simulated::now() - begin >= pass / 2);
    CHECK(simulated::calls_that_waited() == rules{"cudaMemcpyAsync"});
  });
  CHECK(broken_rules().empty());
}

TEST_CASE("pinned memory that the host writes before a copy has read it is seen") {
  on_one_rank(in_virtual_time(), [] {
    auto const stream = make_stream();
    auto* const memory = make_memory();
    void* pinned = nullptr;
    CHECK(cudaMallocHost(&pinned, size) == cudaSuccess);
    simulated::held_stream held{stream};
    CHECK(copy_bytes(memory, pinned, stream) == cudaSuccess);
    static_cast<unsigned char*>(pinned)[size / 2] ^= 1;
    held.release();
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(broken_rules() == rules{"host memory changed"});
  });
}

TEST_CASE("work on a stream that was destroyed goes on, but the handle is dead") {
  on_one_rank(in_virtual_time(), [] {
    auto const stream = make_stream();
    auto* const memory = make_memory();
    CHECK(cudaMemset(memory, 1, size) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(cudaMemsetAsync(memory, 2, size, stream) == cudaSuccess);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
    CHECK(cudaStreamQuery(stream) == cudaErrorInvalidResourceHandle);
    CHECK(broken_rules() == rules{"invalid stream"});
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    unsigned char byte = 0;
    CHECK(cudaMemcpy(&byte, memory, 1, cudaMemcpyDeviceToHost) == cudaSuccess);
    CHECK(byte == 2);
  });
}

TEST_CASE(
    "a global capture of another thread is lost to calls that are potentially unsafe, unless the thread is relaxed") {
  for (bool const relaxed : {false, true}) {
    simulated::reset(in_virtual_time());
    auto ended = cudaSuccess;
    simulated::run_ranks(2, [&](int rank) {
      if (rank == 0) {
        auto const stream = make_stream();
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
        simulated::sleep_for(2'000'000);
        cudaGraph_t graph = nullptr;
        ended = cudaStreamEndCapture(stream, &graph);
        return;
      }
      auto const event = make_event();
      simulated::sleep_for(1'000'000);
      auto mode = relaxed ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal;
      CHECK(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
      CHECK(cudaEventQuery(event) == (relaxed ? cudaSuccess : cudaErrorStreamCaptureUnsupported));
      CHECK(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
    });
    CHECK(ended == (relaxed ? cudaSuccess : cudaErrorStreamCaptureInvalidated));
    CHECK(broken_rules() == (relaxed ? rules{} : rules{"capture lost"}));
  }
}

TEST_CASE("what a capture recorded runs at each launch") {
  on_one_rank(in_virtual_time(), [] {
    auto const stream = make_stream();
    auto* const memory = make_memory();
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    CHECK(cudaMemsetAsync(memory, 5, size, stream) == cudaSuccess);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    cudaGraphExec_t executable = nullptr;
    CHECK(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess);
    CHECK(cudaMemsetAsync(memory, 1, size, stream) == cudaSuccess);
    CHECK(cudaGraphLaunch(executable, stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    unsigned char byte = 0;
    CHECK(cudaMemcpy(&byte, memory, 1, cudaMemcpyDeviceToHost) == cudaSuccess);
    CHECK(byte == 5);
    CHECK(cudaGraphExecDestroy(executable) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  });
  CHECK(broken_rules().empty());
}

TEST_CASE("calls fail when a test wants them to") {
  on_one_rank(in_virtual_time(), [] {
    simulated::fail_next("cudaMalloc", cudaErrorMemoryAllocation, 1);
    static_cast<void>(make_memory());
    void* memory = nullptr;
    CHECK(cudaMalloc(&memory, size) == cudaErrorMemoryAllocation);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    CHECK(cudaGetLastError() == cudaSuccess);
    static_cast<void>(make_memory());
    simulated::fail_next("cudaFree", cudaErrorUnknown);
    CHECK(simulated::forget_failures() == 1);
  });
}

TEST_CASE("waiting for what never comes is a hang") {
  on_one_rank(in_virtual_time(), [] {
    auto const stream = make_stream();
    simulated::held_stream const held{stream};
    CHECK(cudaStreamSynchronize(stream) == cudaErrorLaunchTimeout);
    CHECK(broken_rules() == rules{"hang"});
  });
}

TEST_CASE("the driver's bug 3446335 can be switched on") {
  for (bool const bug : {false, true}) {
    auto options = in_virtual_time(2);
    options.bug_3446335 = bug;
    on_one_rank(options, [&] {
      auto const stream = make_stream();
      void* pooled = nullptr;
      CHECK(cudaMallocAsync(&pooled, size, stream) == cudaSuccess);
      auto* const memory = make_memory();
      CHECK(cudaSetDevice(1) == cudaSuccess);
      CHECK(copy_bytes(memory, pooled, stream) == (bug ? cudaErrorInvalidValue : cudaSuccess));
    });
  }
}
