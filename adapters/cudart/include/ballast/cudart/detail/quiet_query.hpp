// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_QUIET_QUERY_HPP
#define BALLAST_CUDART_DETAIL_QUIET_QUERY_HPP

#include <ballast/config.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/driver_function.hpp>

#include <cuda.h>
#include <cuda_runtime_api.h>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Queries that leave the thread's last error alone: the runtime's own put `cudaErrorNotReady` there, over an error
/// that the engine has not looked at yet.
class quiet_query {
public:
  /// `cudaSuccess` when the last record of the event has been reached, `cudaErrorNotReady` before.
  [[nodiscard]] static cudaError_t event(cudaEvent_t which) noexcept {
    capture_guard const guard;
    auto const ask = get().event_;
    return ask != nullptr ? static_cast<cudaError_t>(ask(which)) : cleared(cudaEventQuery(which));
  }
  /// `cudaSuccess` when the stream is idle, `cudaErrorNotReady` before.
  [[nodiscard]] static cudaError_t stream(cudaStream_t which) noexcept {
    capture_guard const guard;
    auto const ask = get().stream_;
    return ask != nullptr ? static_cast<cudaError_t>(ask(which)) : cleared(cudaStreamQuery(which));
  }

private:
  quiet_query() noexcept {
    static_cast<void>(find_driver_function("cuEventQuery", event_));
    static_cast<void>(find_driver_function("cuStreamQuery", stream_));
  }
  [[nodiscard]] static quiet_query const& get() noexcept {
    static quiet_query const driver;
    return driver;
  }
  [[nodiscard]] static cudaError_t cleared(cudaError_t result) noexcept {
    if (result != cudaSuccess) { static_cast<void>(cudaGetLastError()); }
    return result;
  }

  decltype(&cuEventQuery) event_ = nullptr;
  decltype(&cuStreamQuery) stream_ = nullptr;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
