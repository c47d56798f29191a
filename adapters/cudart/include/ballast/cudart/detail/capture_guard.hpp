// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_CAPTURE_GUARD_HPP
#define BALLAST_CUDART_DETAIL_CAPTURE_GUARD_HPP

#include <ballast/config.hpp>

#include <cuda_runtime_api.h>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// While it lives, calls of this thread neither fail because another thread captures a graph in global mode, nor spoil
/// that capture. What this thread captures itself is captured as ever.
class capture_guard {
public:
  capture_guard() noexcept : changed_{cudaThreadExchangeStreamCaptureMode(&mode_) == cudaSuccess} {
    // Without a device; the call that is guarded will say so.
    if (!changed_) { static_cast<void>(cudaGetLastError()); }
  }
  capture_guard(capture_guard const&) = delete;
  capture_guard& operator=(capture_guard const&) = delete;
  ~capture_guard() {
    if (changed_) { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  }

private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // then the thread's own
  bool changed_;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
