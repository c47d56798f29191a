// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_COUNT_RING_HPP
#define BALLAST_CUDART_DETAIL_COUNT_RING_HPP

#include <ballast/cudart/handles.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <span>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Counts of a few passes in pinned memory, on their way from the host to the device.
class count_ring {
public:
  /// @param cells  of one pass; those that are never written stay zero.
  /// @throws std::system_error in `cudart::category()`
  explicit count_ring(std::size_t cells) : cells_{cells} {
    memory_.allocate(num_passes * cells * sizeof(load_t)).or_throw();
    for (auto& cell : all()) { cell = 0; }
    for (auto& each : read_) { each = event::create(); }
  }

  /// Room for the next pass; empty while the device has still to read what is there.
  [[nodiscard]] std::span<load_t> room() const noexcept {
    return read_[next_].query() == cudaSuccess ? all().subspan(next_ * cells_, cells_) : std::span<load_t>{};
  }
  /// Say that what was written to `room()` is read by what is enqueued on `by` so far.
  [[nodiscard]] status send(cudaStream_t by) {
    auto const sent = next_;
    next_ = (next_ + 1) % num_passes;
    return read_[sent].record(by);
  }

  /// Never give the memory back: the device still reads it.
  void abandon() noexcept { memory_.abandon(); }

private:
  static constexpr std::size_t num_passes = 4;

  [[nodiscard]] std::span<load_t> all() const noexcept {
    return {reinterpret_cast<load_t*>(memory_.bytes().data()), num_passes * cells_};
  }

  std::size_t cells_ = 0;
  pinned_buffer memory_;
  std::array<event, num_passes> read_;
  std::size_t next_ = 0;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
