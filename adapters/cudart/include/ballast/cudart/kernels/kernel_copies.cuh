// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_KERNEL_COPIES_CUH
#define BALLAST_CUDART_KERNELS_KERNEL_COPIES_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/kernel_copies.cuh holds kernels: include it from a .cu file"
#endif

#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/kernel_graph.cuh>
#include <ballast/status.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

namespace detail {

/// Copies of one launch, by value: a launch takes 4 KiB of arguments.
struct copy_list {
  static constexpr int room = 128;
  std::byte* to[room];
  std::byte const* from[room];
  std::uint64_t bytes[room];
  int count = 0;
};

inline constexpr unsigned copy_threads = 512;
inline constexpr std::uint64_t copy_piece = 32 * 1024;

template <class Word>
__device__ void copy_words(std::byte const* from, std::byte* to, std::uint64_t bytes) {
  auto const* const source = reinterpret_cast<Word const*>(from);
  auto* const target = reinterpret_cast<Word*>(to);
  auto const count = static_cast<unsigned>(bytes / sizeof(Word));
  constexpr unsigned at_once = 4;
  for (auto i = threadIdx.x; i < count; i += at_once * copy_threads) {
    Word words[at_once];
#pragma unroll
    for (unsigned u = 0; u < at_once; ++u) {
      if (i + u * copy_threads < count) { words[u] = __ldcs(source + i + u * copy_threads); }
    }
#pragma unroll
    for (unsigned u = 0; u < at_once; ++u) {
      if (i + u * copy_threads < count) { __stcs(target + i + u * copy_threads, words[u]); }
    }
  }
}

/// Each block takes every `gridDim.x`-th piece of the list's copies.
template <class = void>
__global__ void __launch_bounds__(copy_threads) copy_kernel(__grid_constant__ copy_list const list) {
  std::uint64_t piece = blockIdx.x;
  for (int i = 0; i < list.count; ++i) {
    auto const bytes = list.bytes[i];
    auto const num_pieces = (bytes + copy_piece - 1) / copy_piece;
    for (; piece < num_pieces; piece += gridDim.x) {
      auto const* const from = list.from[i] + piece * copy_piece;
      auto* const to = list.to[i] + piece * copy_piece;
      auto const size = min(copy_piece, bytes - piece * copy_piece);
      auto const alignment = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to) | size;
      if (alignment % sizeof(uint4) == 0) {
        copy_words<uint4>(from, to, size);
      } else if (alignment % sizeof(unsigned) == 0) {
        copy_words<unsigned>(from, to, size);
      } else {
        copy_words<unsigned char>(from, to, size);
      }
    }
    piece -= num_pieces;
  }
}

}  // namespace detail

/// A `copy_batch` that does its copies with one kernel, where the driver takes two to six microseconds of the host for
/// each copy.
///
/// For the commits of a `device_store`, which take the multiprocessors that the forward passes before and after them
/// would have; and for the pulls of a `peer_copy`, which then take multiprocessors from the pass that runs meanwhile.
///
/// @threads one thread at a time.
class kernel_copies {
public:
  static constexpr bool mixes_host_and_device = true;  // one kernel reads pinned memory and device memory

  /// @throws std::system_error in `cudart::category()`
  kernel_copies() {
    detail::capture_guard const guard;
    int device = 0;
    int multiprocessors = 0;
    to_status(cudaGetDevice(&device), "cudaGetDevice").or_throw();
    to_status(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
              "cudaDeviceGetAttribute")
        .or_throw();
    most_blocks_ = 2 * static_cast<std::uint64_t>(multiprocessors);
  }

  /// Note a copy down. Copies of a batch must be independent of each other.
  ///
  /// @param to     memory that the device can write.
  /// @param from   memory that the device can read: its own, a peer's, or pinned.
  /// @param bytes  a copy of none is left out.
  /// @throws std::bad_alloc
  void add(std::byte* to, std::byte const* from, std::size_t bytes) {
    if (bytes > 0) { copies_.push_back({to, from, bytes}); }
  }

  /// Forget what was noted down. What is enqueued stays so.
  void clear() noexcept { copies_.clear(); }
  [[nodiscard]] bool empty() const noexcept { return copies_.empty(); }
  /// Copies that were noted down.
  [[nodiscard]] std::size_t size() const noexcept { return copies_.size(); }
  /// Have another batch make them. @throws std::bad_alloc
  template <class Batch>
  void hand_over(Batch& to) {
    for (auto const& each : copies_) { to.add(each.to, each.from, each.bytes); }
    copies_.clear();
  }

  /// Enqueue everything on `on` and forget it.
  ///
  /// @param on  a created stream that is not being captured.
  /// @return `cudart::category()`; what was noted down is forgotten then, too, and some of it may be enqueued.
  /// @complexity a launch for each 128 copies, no allocation.
  [[nodiscard]] status submit(cudaStream_t on) {
    if (empty()) { return {}; }
    detail::capture_guard const guard;
    status result;
    for (std::size_t first = 0; first < copies_.size() && result.ok(); first += detail::copy_list::room) {
      result = launch(first, on);
    }
    copies_.clear();
    return result;
  }

  /// Let a launch that copies nothing pay for what the first one costs: loading the kernel, making its graph.
  ///
  /// @return `cudart::category()`
  /// @complexity one launch on a stream of its own; allocates what `add` needs for one launch's copies. May wait for
  ///             the device.
  [[nodiscard]] status warm_up() {
    detail::capture_guard const guard;
    copies_.reserve(detail::copy_list::room);
    if (auto result = kernel_.prepare(1, detail::copy_threads, detail::copy_list{}); !result.ok()) { return result; }
    stream own;
    if (auto result = stream::create(own); !result.ok()) { return result; }
    return kernel_.launch(own.get());
  }

private:
  struct copy {
    std::byte* to;
    std::byte const* from;
    std::size_t bytes;
  };

  [[nodiscard]] status launch(std::size_t first, cudaStream_t on) {
    detail::copy_list list;
    std::uint64_t pieces = 0;
    for (; first < copies_.size() && list.count < detail::copy_list::room; ++first, ++list.count) {
      auto const& each = copies_[first];
      list.to[list.count] = each.to;
      list.from[list.count] = each.from;
      list.bytes[list.count] = each.bytes;
      pieces += (each.bytes + detail::copy_piece - 1) / detail::copy_piece;
    }
    auto const blocks = static_cast<unsigned>(std::min(pieces, most_blocks_));
    if (auto result = kernel_.prepare(blocks, detail::copy_threads, list); !result.ok()) { return result; }
    return kernel_.launch(on);
  }

  std::vector<copy> copies_;
  kernel_graph<detail::copy_list> kernel_{detail::copy_kernel<>};
  std::uint64_t most_blocks_ = 1;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
