// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_GPU_HPP
#define BALLAST_TESTS_SUPPORT_GPU_HPP

#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include "expert_layout.hpp"

#include <cuda_runtime_api.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ballast_test {

/// Whether there is a device. Asked in a fork: a process that has talked to the driver cannot fork ranks that use it.
[[nodiscard]] inline bool has_gpu() {
  auto const child = ::fork();
  if (child == 0) {
    int count = 0;
    ::_exit(cudaGetDeviceCount(&count) == cudaSuccess && count > 0 ? 0 : 1);
  }
  int exit_status = 1;
  ::waitpid(child, &exit_status, 0);
  return exit_status == 0;
}

/// One of these at namespace scope makes a test program end as skipped where there is no device.
struct gpu_only {
  gpu_only() {
    if (has_gpu()) { return; }
    std::puts("skipped: no CUDA device");
    std::exit(77);
  }
};

inline void check_cuda(cudaError_t result, char const* call) { ballast::cudart::to_status(result, call).or_throw(); }

/// The number of ranks that `./dev gpu --ranks` asks for, 0 when it asks for none.
[[nodiscard]] inline ballast::index_t wanted_ranks() {
  auto const* const wanted = std::getenv("BALLAST_GPU_RANKS");
  return wanted == nullptr ? 0 : static_cast<ballast::index_t>(std::atoi(wanted));
}
/// Group sizes to test: the wanted one, or else the usual ones.
[[nodiscard]] inline std::vector<ballast::index_t> rank_counts(std::vector<ballast::index_t> usual) {
  if (wanted_ranks() > 0) { return {wanted_ranks()}; }
#if BALLAST_TESTS_QUICK
  std::erase_if(usual, [](ballast::index_t ranks) { return ranks > 4; });
#endif
  return usual;
}
/// The same for a test of one size that makes no sense below `at_least` ranks.
[[nodiscard]] inline ballast::index_t rank_count(ballast::index_t usual, ballast::index_t at_least) {
  return wanted_ranks() >= at_least ? wanted_ranks() : usual;
}

[[nodiscard]] inline int num_devices() {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}
/// Make a rank's device current for this thread: one of its own where there are enough, otherwise ranks share.
inline void use_device_of(ballast::index_t rank) { check_cuda(cudaSetDevice(rank % num_devices()), "cudaSetDevice"); }

/// Keeps a stream busy until released, or for a few seconds.
class busy_stream {
public:
  explicit busy_stream(cudaStream_t stream) : stream_{stream} {
    check_cuda(cudaLaunchHostFunc(stream, &hold, this), "cudaLaunchHostFunc");
  }
  busy_stream(busy_stream const&) = delete;
  busy_stream& operator=(busy_stream const&) = delete;
  ~busy_stream() {
    release();
    static_cast<void>(cudaStreamSynchronize(stream_));
  }
  /// @return whether it was busy up to now.
  bool release() {
    released_ = true;
    return !expired_;
  }

private:
  static void hold(void* context) {
    auto& self = *static_cast<busy_stream*>(context);
    auto const end = ballast::detail::now() + 3'000'000'000;
    std::timespec const nap{0, 100'000};
    while (!self.released_ && !self.expired_) {
      static_cast<void>(::nanosleep(&nap, nullptr));
      self.expired_ = ballast::detail::now() > end;
    }
  }
  cudaStream_t stream_;
  std::atomic<bool> released_ = false;
  std::atomic<bool> expired_ = false;
};

/// Two allocations of equal size that touch, as one region; null where the driver made none. They stay.
[[nodiscard]] inline ballast::segment touching_allocations() {
  constexpr std::size_t bytes = std::size_t{32} << 20;
  std::vector<std::byte*> made;
  for (int i = 0; i < 24; ++i) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes), "cudaMalloc");
    made.push_back(static_cast<std::byte*>(memory));
    for (auto* const other : made) {
      if (other + bytes == made.back()) { return {other, 2 * bytes}; }
      if (made.back() + bytes == other) { return {made.back(), 2 * bytes}; }
    }
  }
  return {};
}

/// Device memory in the form that the transport laws want.
class gpu_memory {
public:
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    blocks_.push_back(ballast::cudart::device_memory<std::byte>::create(bytes));
    return blocks_.back().data();
  }
  void write(std::byte* to, std::span<std::byte const> bytes) {
    check_cuda(cudaMemcpy(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
    check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
  }
  void read(std::byte const* from, std::span<std::byte> bytes) {
    check_cuda(cudaMemcpy(bytes.data(), from, bytes.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
  }

private:
  std::vector<ballast::cudart::device_memory<std::byte>> blocks_;
};

/// One rank's expert weights in device memory, as an `expert_layout` has them.
class gpu_weights {
public:
  gpu_weights(ballast::topology const& where, ballast::index_t rank, ballast::placement const& holds,
              std::vector<tensor_shape> tensors)
      : layout_{where, rank, std::move(tensors), 256} {
    for (ballast::index_t layer = 0; layer < holds.num_layers(); ++layer) {
      for (std::size_t t = 0; t < layout_.num_tensors(); ++t) {
        auto const bytes = layout_.expected(holds, layer, t);
        blocks_.push_back(memory_.allocate(bytes.size()));
        memory_.write(blocks_.back(), bytes);
      }
    }
  }

  /// Register everything with a store.
  template <class Store>
  void add_to(Store& store) {
    for (std::size_t i = 0; i < blocks_.size(); ++i) { layout_.add_to(store, i, blocks_[i]); }
  }

  /// The first bytes of an expert in one tensor, as a number.
  [[nodiscard]] static std::uint64_t signature(ballast::index_t layer, std::size_t tensor, ballast::index_t expert) {
    std::array<std::byte, sizeof(std::uint64_t)> bytes{};
    expert_layout::fill(bytes, layer, tensor, expert);
    return std::bit_cast<std::uint64_t>(bytes);
  }
  /// Where the expert in slot 0 is.
  [[nodiscard]] std::byte* slots_of(ballast::index_t layer, std::size_t tensor) const {
    return block(layer, tensor) + layout_.margin();
  }

  /// Empty when every slot holds what `tables` names and no guard byte has changed; otherwise the first wrong place.
  [[nodiscard]] std::string first_error(ballast::placement const& tables) {
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    for (ballast::index_t layer = 0; layer < tables.num_layers(); ++layer) {
      for (std::size_t t = 0; t < layout_.num_tensors(); ++t) {
        std::vector<std::byte> found(layout_.num_bytes(t));
        memory_.read(block(layer, t), found);
        if (auto wrong = layout_.first_error(tables, layer, t, found); !wrong.empty()) { return wrong; }
      }
    }
    return {};
  }

private:
  [[nodiscard]] std::byte* block(ballast::index_t layer, std::size_t tensor) const {
    return blocks_[static_cast<std::size_t>(layer) * layout_.num_tensors() + tensor];
  }

  expert_layout layout_;
  gpu_memory memory_;
  std::vector<std::byte*> blocks_;  // [L * tensors]
};

}  // namespace ballast_test

#endif
