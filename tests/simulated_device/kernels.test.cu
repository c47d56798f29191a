// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Kernels are emulated, but nvcc's code around them is the real one.
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/kernels/sized_copies.cuh>

#include "simulated_device.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using namespace ballast;
namespace simulated = ballast_test::simulated;

namespace {

__global__ void add_one(unsigned char* bytes, int count) {
  auto const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) { bytes[i] = static_cast<unsigned char>(bytes[i] + 1); }
}

std::vector<std::uint64_t> sizes_by_kernel;

void emulate_kernels() {
  simulated::simulate_kernel(cudart::detail::copy_kernel<>,
                             [](simulated::kernel_actions& actions, dim3, dim3, cudart::detail::copy_list const& list) {
                               sizes_by_kernel.assign(list.bytes, list.bytes + list.count);
                               for (int i = 0; i < list.count; ++i) {
                                 actions.copy(list.to[i], list.from[i], list.bytes[i]);
                               }
                             });
  simulated::simulate_kernel(&add_one,
                             [](simulated::kernel_actions& actions, dim3, dim3, unsigned char* bytes, int count) {
                               actions.reads(bytes, static_cast<std::size_t>(count));
                               actions.writes(bytes, static_cast<std::size_t>(count));
                               actions.compute([bytes, count] {
                                 for (int i = 0; i < count; ++i) { ++bytes[i]; }
                               });
                             });
}

template <class Body>
void in_virtual_time(Body body) {
  simulated::machine_options options;
  options.virtual_time = true;
  simulated::reset(options);
  emulate_kernels();
  simulated::run_ranks(1, [&](int) { body(); });
  CHECK(simulated::to_text(simulated::take_violations()) == "");
}

std::vector<unsigned char> read(std::byte const* from, std::size_t bytes) {
  std::vector<unsigned char> result(bytes);
  CHECK(cudaMemcpy(result.data(), from, bytes, cudaMemcpyDeviceToHost) == cudaSuccess);
  return result;
}

}  // namespace

TEST_CASE("kernels that copy, launched as graphs, and launches with triple brackets") {
  in_virtual_time([] {
    constexpr int bytes = 1000;
    auto const stream = cudart::stream::create();
    auto const from = cudart::device_memory<std::byte>::create(2 * bytes);
    auto const to = cudart::device_memory<std::byte>::create(2 * bytes);
    CHECK(cudaMemsetAsync(from.data(), 7, 2 * bytes, stream.get()) == cudaSuccess);
    cudart::kernel_copies copies;
    for (int round = 0; round < 2; ++round) {
      copies.add(to.data() + round * bytes, from.data(), bytes);
      CHECK(copies.submit(stream.get()).ok());
    }
    add_one<<<4, 256, 0, stream.get()>>>(reinterpret_cast<unsigned char*>(to.data()), bytes);
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream.get()) == cudaSuccess);
    auto const seen = read(to.data(), 2 * bytes);
    CHECK(seen[0] == 8);
    CHECK(seen[bytes - 1] == 8);
    CHECK(seen[bytes] == 7);
    CHECK(seen[2 * bytes - 1] == 7);
  });
}

TEST_CASE("sized copies leave to copy engines what is longer than a kernel may copy, and all of it arrives") {
  in_virtual_time([] {
    auto const stream = cudart::stream::create();
    constexpr std::size_t room = 16384;
    auto const from = cudart::device_memory<std::byte>::create(room);
    auto const to = cudart::device_memory<std::byte>::create(room);
    CHECK(cudaMemsetAsync(from.data(), 7, room, stream.get()) == cudaSuccess);
    CHECK(cudaMemsetAsync(to.data(), 0, room, stream.get()) == cudaSuccess);
    cudart::sized_copies<1000> copies;
    CHECK(copies.empty());
    copies.add(to.data(), from.data(), room);
    copies.clear();
    CHECK(copies.empty());
    std::vector<unsigned char> wanted(room);
    std::size_t at = 0;
    auto const copy = [&](std::vector<std::size_t> const& sizes) {
      sizes_by_kernel.clear();
      for (auto const size : sizes) {
        copies.add(to.data() + at, from.data() + at, size);
        std::fill_n(wanted.begin() + static_cast<std::ptrdiff_t>(at), size, static_cast<unsigned char>(7));
        at += size + 100;
      }
      REQUIRE(at <= room);
      CHECK_FALSE(copies.empty());
      CHECK(copies.submit(stream.get()).ok());
      CHECK(copies.empty());
      CHECK(cudaStreamSynchronize(stream.get()) == cudaSuccess);
      CHECK(read(to.data(), room) == wanted);
    };
    copy({1, 1001, 1000, 0, 5000, 16, 2, 3, 4});
    CHECK(sizes_by_kernel == std::vector<std::uint64_t>{1, 1000, 16, 2, 3, 4});
    // For fewer than these a kernel does not pay.
    copy({1, 1001, 1000, 0, 16, 2, 3});
    CHECK(sizes_by_kernel.empty());
  });
}

TEST_CASE("a kernel without an emulation is refused by name") {
  simulated::reset({});
  auto const stream = cudart::stream::create();
  simulated::simulate_kernel_by_address(reinterpret_cast<void const*>(&add_one), nullptr);
  add_one<<<1, 1, 0, stream.get()>>>(nullptr, 0);
  CHECK(cudaGetLastError() == cudaErrorInvalidDeviceFunction);
  auto const seen = simulated::take_violations();
  REQUIRE(seen.size() == 1);
  CHECK(seen.front().text.find("add_one") != std::string::npos);
}
