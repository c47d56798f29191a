// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_LAUNCH_CUH
#define BALLAST_CUDART_KERNELS_LAUNCH_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/launch.cuh launches kernels: include it from a .cu file"
#endif

#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/status.hpp>

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstddef>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

struct launch_shape {
  unsigned blocks = 1;
  unsigned threads = 32;
  std::size_t shared_bytes = 0;
};

/// Launch a kernel. The status is that of this launch: an error that the program has not asked for yet stays where it
/// is.
///
/// @param name   of the kernel, for the message.
/// @param early  let the launch overlap with the end of the kernel before it; only for kernels that call
///               `wait_for_predecessor`, and where `early_launch` says that they do.
template <class... Parameters, class... Arguments>
[[nodiscard]] status launch(char const* name, void (*kernel)(Parameters...), launch_shape shape, cudaStream_t on,
                            bool early, Arguments const&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.blocks;
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = on;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return to_status(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

/// Wait for the results of what was enqueued before this kernel, and let what comes after it start.
__device__ __forceinline__ void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/// Whether a kernel may be launched before its predecessor has ended. It may not where the code that the device runs
/// has no `wait_for_predecessor`: on devices below compute capability 9, and on later ones in programs that were
/// compiled for earlier ones only, such as by nvcc's default. Asked once for each device.
class early_launch {
public:
  template <class... Parameters>
  [[nodiscard]] bool is_possible(void (*kernel)(Parameters...)) noexcept {
    int device = -1;
    if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= max_devices) { return false; }
    auto& known = known_[static_cast<std::size_t>(device)];
    auto answer = known.load(std::memory_order_relaxed);
    if (answer == unknown) {
      answer = ask(reinterpret_cast<void const*>(kernel));
      known.store(answer, std::memory_order_relaxed);
    }
    return answer == yes;
  }

private:
  static constexpr int max_devices = 64;  // beyond: never early
  static constexpr unsigned char unknown = 0;
  static constexpr unsigned char no = 1;
  static constexpr unsigned char yes = 2;

  [[nodiscard]] static unsigned char ask(void const* kernel) noexcept {
    capture_guard const guard;
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return no;
    }
    constexpr int first_version = 90;  // `__CUDA_ARCH__` / 10 that the code was compiled for
    return attributes.ptxVersion >= first_version ? yes : no;
  }

  std::array<std::atomic<unsigned char>, max_devices> known_{};
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
