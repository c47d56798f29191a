// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_DEVICE_SCOPE_HPP
#define BALLAST_CUDART_DETAIL_DEVICE_SCOPE_HPP

#include <ballast/config.hpp>

#include <cuda_runtime_api.h>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Makes a device current for this thread while it lives.
class device_scope {
public:
  explicit device_scope(int device) noexcept {
    if (cudaGetDevice(&before_) != cudaSuccess || before_ == device) {
      before_ = -1;
    } else {
      static_cast<void>(cudaSetDevice(device));
    }
  }
  device_scope(device_scope const&) = delete;
  device_scope& operator=(device_scope const&) = delete;
  ~device_scope() {
    if (before_ >= 0) { static_cast<void>(cudaSetDevice(before_)); }
  }

private:
  int before_ = -1;  // nothing to go back to
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
