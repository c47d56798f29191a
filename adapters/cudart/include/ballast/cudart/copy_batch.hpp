// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_COPY_BATCH_HPP
#define BALLAST_CUDART_COPY_BATCH_HPP

#include <ballast/cudart/error.hpp>
#include <ballast/status.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Copies collected for one stream and enqueued with one call.
///
/// @threads one thread at a time.
class copy_batch {
public:
  /// Copies from the host do not belong in a batch with those on the device: the call would wait for the stream.
  static constexpr bool mixes_host_and_device = false;

  /// Note a copy down. Copies of a batch must be independent of each other. Those that touch stay apart: the driver
  /// refuses a copy over two allocations, and which allocation an address lies in is not known here.
  ///
  /// @param bytes  a copy of none is left out.
  /// @throws std::bad_alloc
  void add(std::byte* to, std::byte const* from, std::size_t bytes) {
    if (bytes == 0) { return; }
    to_.push_back(to);
    from_.push_back(from);
    bytes_.push_back(bytes);
  }
  /// Forget what was noted down. What is enqueued stays so.
  void clear() noexcept {
    to_.clear();
    from_.clear();
    bytes_.clear();
  }
  [[nodiscard]] bool empty() const noexcept { return to_.empty(); }
  /// Copies that were noted down.
  [[nodiscard]] std::size_t size() const noexcept { return to_.size(); }

  /// Ask for copy engines even where a kernel of the driver's would be faster.
  void prefer_copy_engines() noexcept { flags_ = cudaMemcpyFlagPreferOverlapWithCompute; }

  /// Enqueue everything on `on`, in no particular order among the copies, and forget it.
  ///
  /// @param on  a created stream that is not being captured.
  /// @return `cudart::category()`; what was noted down is forgotten then, too, and some of it may be enqueued.
  /// @complexity one call of the runtime; no allocation of ours.
  /// @throws std::bad_alloc on failure
  [[nodiscard]] status submit(cudaStream_t on) {
    if (empty()) { return {}; }
    if (size() == 1) {
      auto const result = cudaMemcpyAsync(to_[0], from_[0], bytes_[0], cudaMemcpyDefault, on);
      clear();
      return to_status(result, "cudaMemcpyAsync");
    }
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    attributes.flags = flags_;
    auto const result = submit(attributes, on);
    clear();
    return to_status(result, "cudaMemcpyBatchAsync");
  }

  /// Enqueue everything on `on` by way of pinned host memory, for devices that may not read each other's memory. One
  /// copy after the other, each piece by piece.
  ///
  /// @param bounce  not empty; in use until the stream has come past these copies.
  /// @return as `submit`.
  /// @complexity two calls of the runtime for each `bounce.size()` bytes
  [[nodiscard]] status submit_through(std::span<std::byte> bounce, cudaStream_t on) {
    status result;
    for (std::size_t i = 0; i < to_.size() && result.ok(); ++i) {
      auto* const to = static_cast<std::byte*>(to_[i]);
      auto const* const from = static_cast<std::byte const*>(from_[i]);
      for (std::size_t at = 0; at < bytes_[i] && result.ok(); at += bounce.size()) {
        auto const bytes = std::min(bounce.size(), bytes_[i] - at);
        result =
            to_status(cudaMemcpyAsync(bounce.data(), from + at, bytes, cudaMemcpyDeviceToHost, on), "cudaMemcpyAsync");
        if (!result.ok()) { break; }
        result =
            to_status(cudaMemcpyAsync(to + at, bounce.data(), bytes, cudaMemcpyHostToDevice, on), "cudaMemcpyAsync");
      }
    }
    clear();
    return result;
  }

private:
  [[nodiscard]] cudaError_t submit(cudaMemcpyAttributes& attributes, cudaStream_t on) {
    std::size_t first = 0;
#if CUDART_VERSION >= 13000
    return cudaMemcpyBatchAsync(to_.data(), from_.data(), bytes_.data(), to_.size(), &attributes, &first, 1, on);
#else
    std::size_t failed = 0;
    auto* const sources = const_cast<void**>(from_.data());
    return cudaMemcpyBatchAsync(to_.data(), sources, bytes_.data(), to_.size(), &attributes, &first, 1, &failed, on);
#endif
  }

  unsigned flags_ = cudaMemcpyFlagDefault;
  std::vector<void*> to_;
  std::vector<void const*> from_;
  std::vector<std::size_t> bytes_;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
