// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_SIZED_COPIES_CUH
#define BALLAST_CUDART_KERNELS_SIZED_COPIES_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/sized_copies.cuh holds kernels: include it from a .cu file"
#endif

#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/status.hpp>

#include <cstddef>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Small copies with one kernel, where they are many, and large ones with copy engines: scales and biases cost the host
/// nothing each, and the weights take no multiprocessor from the pass that runs meanwhile.
///
/// For the pulls of a `peer_copy` of experts that have both; `kernel_copies` costs the host less for commits.
///
/// @tparam LongestByKernel  bytes of the largest copy that a kernel makes.
/// @threads one thread at a time.
template <std::size_t LongestByKernel = std::size_t{256} << 10>
class sized_copies {
public:
  /// Where they are fewer, copy engines take the small ones too: a launch takes the host as long as five or six copies.
  static constexpr std::size_t fewest_by_kernel = 6;

  /// What is large may not: see `copy_batch`.
  static constexpr bool mixes_host_and_device = false;

  /// Note a copy down, as `kernel_copies::add` or `copy_batch::add`.
  ///
  /// @throws std::bad_alloc
  void add(std::byte* to, std::byte const* from, std::size_t bytes) {
    if (bytes > LongestByKernel) {
      large_.add(to, from, bytes);
    } else {
      small_.add(to, from, bytes);
    }
  }
  /// Forget what was noted down. What is enqueued stays so.
  void clear() noexcept {
    small_.clear();
    large_.clear();
  }
  [[nodiscard]] bool empty() const noexcept { return small_.empty() && large_.empty(); }

  /// See `copy_batch::prefer_copy_engines`.
  void prefer_copy_engines() noexcept { large_.prefer_copy_engines(); }

  /// Enqueue everything on `on` and forget it: what a kernel copies first, as it takes microseconds.
  ///
  /// @param on  a created stream that is not being captured.
  /// @return `cudart::category()`; what was noted down is forgotten then, too, and some of it may be enqueued.
  /// @complexity one call of the runtime for the large copies, and a launch for each 128 small ones.
  /// @throws std::bad_alloc on failure
  [[nodiscard]] status submit(cudaStream_t on) {
    if (small_.size() < fewest_by_kernel) { small_.hand_over(large_); }
    auto result = small_.submit(on);
    if (result.ok()) { result = large_.submit(on); }
    clear();
    return result;
  }

  /// See `kernel_copies::warm_up`.
  [[nodiscard]] status warm_up() { return small_.warm_up(); }

private:
  kernel_copies small_;
  copy_batch large_;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
