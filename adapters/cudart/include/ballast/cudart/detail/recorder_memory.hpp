// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_RECORDER_MEMORY_HPP
#define BALLAST_CUDART_DETAIL_RECORDER_MEMORY_HPP

#include <ballast/cudart/compute_streams.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/count_ring.hpp>
#include <ballast/cudart/detail/device_reader.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// What a device recorder has on the device and in pinned memory. Given back when its streams have come to the end of
/// what uses it; never, where one of them does not come there within `timeout`.
struct recorder_memory {
  /// @param on  that counts are made on; all but kernels that count is enqueued on the first. @param pass_cells    of
  /// the counters of a pass, all stripes.
  /// @param bucket_cells  of one bucket, padded. @param num_buckets of a window
  /// @throws std::system_error in `cudart::category()`
  recorder_memory(compute_streams on, std::size_t pass_cells, std::size_t bucket_cells, std::size_t num_buckets)
      : streams{std::move(on)},
        stream{streams.first()},
        copied{event::create()},
        sent{bucket_cells},
        pass{device_memory<std::uint32_t>::create(pass_cells)},
        gate{device_memory<std::uint32_t>::create(1)},
        windows{device_memory<load_t>::create(num_buckets * bucket_cells),
                device_memory<load_t>::create(num_buckets * bucket_cells)} {
    mirror.allocate(num_buckets * bucket_cells * sizeof(load_t)).or_throw();
  }
  recorder_memory(recorder_memory const&) = delete;
  recorder_memory& operator=(recorder_memory const&) = delete;
  ~recorder_memory() {
    capture_guard const guard;
    auto const deadline = ballast::detail::deadline_after(timeout);
    if (streams.gather().ok() && copied.record(stream).ok() && await_event(copied, deadline, "device_recorder").ok()) {
      return;
    }
    mirror.abandon();
    sent.abandon();
    pass.abandon();
    gate.abandon();
    for (auto& window : windows) { window.abandon(); }
  }

  compute_streams streams;
  cudaStream_t stream;  // the first of them
  nanoseconds_t timeout = 5'000'000'000;
  pinned_buffer mirror;                          // [H, L, E] as in the window that was copied last
  event copied;                                  // behind that copy
  count_ring sent;                               // counts of the host
  device_memory<std::uint32_t> pass;             // [stripes, L, E], each stripe padded
  device_memory<std::uint32_t> gate;             // one word
  std::array<device_memory<load_t>, 2> windows;  // [H, L, E], each bucket padded
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
