// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_DETAIL_ERRAND_HPP
#define BALLAST_NCCL_DETAIL_ERRAND_HPP

#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/device_scope.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/nccl/executor.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <pthread.h>

#include <atomic>
#include <memory>
#include <system_error>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace nccl::detail {

/// A call of NCCL that may block, made on another thread. It owns all that the call needs, and lives until the call has
/// returned, whoever has given up waiting for it.
class errand {
public:
  errand(errand const&) = delete;
  errand& operator=(errand const&) = delete;
  virtual ~errand() = default;

  /// Send it off, with the device that is current here. No allocation.
  [[nodiscard]] static status begin(std::shared_ptr<errand> what, executor const& where) {
    auto& self = *what;
    if (auto result = cudart::to_status(cudaGetDevice(&self.device_), "cudaGetDevice"); !result.ok()) { return result; }
    self.self_ = std::move(what);
    if (where.run != nullptr) {
      where.run(where.context, &errand::run, &self);
      return {};
    }
    pthread_t thread{};
    if (auto const error = pthread_create(&thread, nullptr, &errand::run_thread, &self); error != 0) {
      auto const forgotten = std::exchange(self.self_, nullptr);
      return {std::error_code{error, std::generic_category()}, "pthread_create: no thread for a call of NCCL"};
    }
    static_cast<void>(pthread_detach(thread));
    return {};
  }

  /// Make the call here, where no thread can be had.
  void run_here() noexcept {
    result_ = call();
    stage_.store(stage::returned, std::memory_order_release);
  }

  /// @return whether the call has returned by then.
  [[nodiscard]] bool wait_until(nanoseconds_t deadline) const noexcept {
    return ballast::detail::poll_until(deadline, [this] { return has_returned(); });
  }
  [[nodiscard]] bool has_returned() const noexcept { return stage_.load(std::memory_order_acquire) == stage::returned; }
  /// What the call returned, once it has.
  [[nodiscard]] ncclResult_t result() const noexcept { return result_; }
  /// Nobody waits any more. @return whether the thread cleans up; not so when the call has returned already
  [[nodiscard]] bool leave() noexcept {
    auto expected = stage::at_work;
    return stage_.compare_exchange_strong(expected, stage::left, std::memory_order_acq_rel);
  }

protected:
  errand() = default;

private:
  enum class stage { at_work, left, returned };

  virtual ncclResult_t call() noexcept = 0;
  /// On the same thread, when the call has returned to nobody.
  virtual void clean_up() noexcept {}

  /// A thread of ours, which ends then.
  static void* run_thread(void* argument) {
    static_cast<void>(cudaSetDevice(static_cast<errand*>(argument)->device_));
    run_call(argument);
    return nullptr;
  }
  /// A thread of the engine's.
  static void run(void* argument) {
    cudart::detail::device_scope const scope{static_cast<errand*>(argument)->device_};
    run_call(argument);
  }
  /// What it holds may end here, too, while its device is current.
  static void run_call(void* argument) {
    auto const self = std::move(static_cast<errand*>(argument)->self_);
    cudart::detail::capture_guard const guard;
    self->result_ = self->call();
    if (self->stage_.exchange(stage::returned, std::memory_order_acq_rel) == stage::left) { self->clean_up(); }
  }

  std::shared_ptr<errand> self_;  // from `begin` until the thread takes it
  int device_ = 0;
  ncclResult_t result_ = ncclInternalError;
  std::atomic<stage> stage_ = stage::at_work;
};

}  // namespace nccl::detail
BALLAST_END_NAMESPACE

#endif
