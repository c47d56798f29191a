// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_CAPTURE_GUARD_HPP
#define BALLAST_CUDART_DETAIL_CAPTURE_GUARD_HPP

#include <ballast/config.hpp>

#include <cuda_runtime_api.h>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// While it lives, this thread's calls neither fail nor break a capture because another thread captures a stream in
/// global mode, the default of frameworks.
class capture_guard {
public:
  capture_guard() noexcept {
    if (depth()++ == 0) { exchange(); }
  }
  capture_guard(capture_guard const&) = delete;
  capture_guard& operator=(capture_guard const&) = delete;
  ~capture_guard() {
    if (--depth() == 0) { exchange(); }
  }

private:
  /// Guards of this thread: public calls use each other, and an exchange costs as much as a query.
  [[nodiscard]] static int& depth() noexcept {
    static thread_local int count = 0;
    return count;
  }
  void exchange() noexcept { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
