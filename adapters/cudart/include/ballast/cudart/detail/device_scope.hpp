// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_DEVICE_SCOPE_HPP
#define BALLAST_CUDART_DETAIL_DEVICE_SCOPE_HPP

#include <ballast/config.hpp>
#include <ballast/cudart/detail/driver_function.hpp>

#include <cuda.h>
#include <cuda_runtime_api.h>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Whether this process uses a device already. To make one current that it does not use would make a context there,
/// hundreds of megabytes that nobody asked for.
[[nodiscard]] inline bool is_in_use(int device) noexcept {
  static auto const ask = [] {
    decltype(&cuDevicePrimaryCtxGetState) function = nullptr;
    static_cast<void>(find_driver_function("cuDevicePrimaryCtxGetState", function));
    return function;
  }();
  unsigned flags = 0;
  int active = 1;
  return ask == nullptr || ask(device, &flags, &active) != CUDA_SUCCESS || active != 0;
}

/// Makes a device current for this thread while it lives. The one before comes back if the process uses it: a thread
/// that never chose one has device 0.
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
    if (before_ >= 0 && is_in_use(before_)) { static_cast<void>(cudaSetDevice(before_)); }
  }

private:
  int before_ = -1;  // nothing to go back to
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
