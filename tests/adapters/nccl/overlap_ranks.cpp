// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/nccl/transport.hpp>

#include "overlap_kernel.hpp"
#include "support/check_complaints.hpp"
#include "support/gpu.hpp"
#include "support/nccl_runner.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

using namespace ballast;
using namespace ballast_test;

namespace {

gpu_only const needs_gpu;

/// One word of device memory that both processes see.
unsigned* share_word(posix::process_group& group) {
  cudaIpcMemHandle_t handle{};
  void* word = nullptr;
  if (group.rank() == 0) {
    check_cuda(cudaMalloc(&word, sizeof(unsigned)), "cudaMalloc");
    check_cuda(cudaMemset(word, 0, sizeof(unsigned)), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check_cuda(cudaIpcGetMemHandle(&handle, word), "cudaIpcGetMemHandle");
  }
  group.broadcast(std::as_writable_bytes(std::span{&handle, 1}), 0, patience).or_throw();
  if (group.rank() != 0) {
    check_cuda(cudaIpcOpenMemHandle(&word, handle, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
  }
  return static_cast<unsigned*>(word);
}

}  // namespace

TEST_CASE("moves beside kernels that take all multiprocessors never wait for each other") {
  nccl_runner const runner{};
  check_complaints(runner.run(2, [](auto& self, law_log& log) {
    constexpr unsigned num_passes = 150;
    auto const compute = cudart::stream::create();
    nccl::communicator own;
    if (!log.expect_ok(nccl::communicator::create(self.control, own), "create a communicator")) { return; }
    nccl::transport wires{std::move(own), {compute.get()}};
    auto* const word = share_word(self.control);
    auto const gave_up = cudart::device_memory<int>::create(1);
    gpu_memory memory;
    constexpr std::size_t bytes = 300'000;
    segment const mine{memory.allocate(bytes), bytes};
    segment const target{memory.allocate(bytes), bytes};
    remote_segment const source{0, 0, bytes};
    auto const other = 1 - self.rank();
    dice own_dice{static_cast<std::uint64_t>(self.rank()) + 1};
    for (unsigned pass = 1; pass <= num_passes; ++pass) {
      // Ranks reach the two launches at different times and so, on the card, in different order.
      if (own_dice.below(2) == 0) { sleep_for(own_dice.below(2) * millisecond); }
      meet_on_all_multiprocessors(compute.get(), word, pass, gave_up.data());
      if (own_dice.below(2) == 0) { sleep_for(own_dice.below(2) * millisecond); }
      outgoing_message const send{other, 0, pass, {&mine, 1}};
      incoming_message const receive{other, 0, pass, {&target, 1}, {&source, 1}};
      if (!log.expect_ok(wires.start({&send, 1}, {&receive, 1}), "start")) { return; }
      if (!log.expect_ok(wires.wait(patience), "wait")) { return; }
    }
    int hung = 0;
    check_cuda(cudaMemcpy(&hung, gave_up.data(), sizeof hung, cudaMemcpyDeviceToHost), "cudaMemcpy");
    log.expect(hung == 0, "a kernel waited in vain for the other rank's");
    static_cast<void>(self.control.vote(true, patience));
  }));
}
