// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_HANDLES_HPP
#define BALLAST_CUDART_HANDLES_HPP

#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/quiet_query.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Owns a CUDA stream that does not order itself against the legacy default stream.
class stream {
public:
  /// On the current device. @throws std::system_error in `cudart::category()`
  [[nodiscard]] static stream create() {
    stream made;
    create(made).or_throw();
    return made;
  }
  /// The same for those who want a status.
  ///
  /// @param out  out: replaced on success.
  /// @return `cudart::category()`
  [[nodiscard]] static status create(stream& out) {
    detail::capture_guard const guard;
    cudaStream_t handle = nullptr;
    auto result = to_status(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    if (result.ok()) { out = stream{handle}; }
    return result;
  }

  stream() = default;
  stream(stream&& other) noexcept : handle_{std::exchange(other.handle_, nullptr)} {}
  stream& operator=(stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~stream() {
    if (handle_ == nullptr) { return; }
    detail::capture_guard const guard;
    static_cast<void>(cudaStreamDestroy(handle_));
  }

  /// Leave it in place for the life of the process: somebody may still enqueue on it.
  void abandon() noexcept { handle_ = nullptr; }

  /// Null where there is none.
  [[nodiscard]] cudaStream_t get() const noexcept { return handle_; }
  /// `cudaSuccess` when all work on it is done, `cudaErrorNotReady` before, anything else is a failure. Does not wait,
  /// and leaves the thread's last error alone.
  [[nodiscard]] cudaError_t query() const noexcept { return detail::quiet_query::stream(handle_); }

private:
  explicit stream(cudaStream_t handle) noexcept : handle_{handle} {}
  cudaStream_t handle_ = nullptr;
};

/// Owns a CUDA event.
class event {
public:
  /// On the current device; without timing unless asked for. @throws std::system_error in `cudart::category()`
  [[nodiscard]] static event create(unsigned flags = cudaEventDisableTiming) {
    event made;
    create(made, flags).or_throw();
    return made;
  }
  /// The same for those who want a status.
  ///
  /// @param out    out: replaced on success.
  /// @param flags  as of `cudaEventCreateWithFlags`.
  /// @return `cudart::category()`
  [[nodiscard]] static status create(event& out, unsigned flags = cudaEventDisableTiming) {
    detail::capture_guard const guard;
    cudaEvent_t handle = nullptr;
    auto result = to_status(cudaEventCreateWithFlags(&handle, flags), "cudaEventCreateWithFlags");
    if (result.ok()) { out = event{handle}; }
    return result;
  }
  /// Take over a handle that nobody else destroys.
  [[nodiscard]] static event adopt(cudaEvent_t handle) noexcept { return event{handle}; }

  event() = default;
  event(event&& other) noexcept : handle_{std::exchange(other.handle_, nullptr)} {}
  event& operator=(event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~event() {
    if (handle_ == nullptr) { return; }
    detail::capture_guard const guard;
    static_cast<void>(cudaEventDestroy(handle_));
  }

  /// Null where there is none.
  [[nodiscard]] cudaEvent_t get() const noexcept { return handle_; }
  /// Put it behind what is enqueued on `on` so far. @return `cudart::category()`
  [[nodiscard]] status record(cudaStream_t on) const {
    return to_status(cudaEventRecord(handle_, on), "cudaEventRecord");
  }
  /// What is enqueued on `waiter` from now on starts after the last record of this event; the host does not wait.
  /// @return `cudart::category()`
  [[nodiscard]] status hold_back(cudaStream_t waiter) const {
    return to_status(cudaStreamWaitEvent(waiter, handle_, 0), "cudaStreamWaitEvent");
  }
  /// `cudaSuccess` when the last record has been reached, `cudaErrorNotReady` before, anything else is a failure. Does
  /// not wait, and leaves the thread's last error alone.
  [[nodiscard]] cudaError_t query() const noexcept { return detail::quiet_query::event(handle_); }
  /// Nanoseconds on the device from the last record of this event to that of `later`; `not_measured` while either has
  /// not been reached, or was created without timing.
  [[nodiscard]] nanoseconds_t elapsed_until(event const& later) const noexcept {
    if (query() != cudaSuccess || later.query() != cudaSuccess) { return not_measured; }
    float milliseconds = 0;
    if (cudaEventElapsedTime(&milliseconds, handle_, later.handle_) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return not_measured;
    }
    return static_cast<nanoseconds_t>(1e6 * static_cast<double>(milliseconds));
  }

private:
  explicit event(cudaEvent_t handle) noexcept : handle_{handle} {}
  cudaEvent_t handle_ = nullptr;
};

/// Owns pinned host memory. Its end may wait for the device; see `abandon`.
class pinned_buffer {
public:
  pinned_buffer() = default;
  pinned_buffer(pinned_buffer&& other) noexcept
      : data_{std::exchange(other.data_, nullptr)}, size_{std::exchange(other.size_, 0)} {}
  pinned_buffer& operator=(pinned_buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~pinned_buffer() {
    if (data_ == nullptr) { return; }
    detail::capture_guard const guard;
    static_cast<void>(cudaFreeHost(data_));
  }
  /// Obtain memory, unless it has some, or is asked for none. May wait for the device.
  ///
  /// @return `cudart::category()`
  [[nodiscard]] status allocate(std::size_t bytes) {
    if (data_ != nullptr || bytes == 0) { return {}; }
    detail::capture_guard const guard;
    auto result = to_status(cudaMallocHost(&data_, bytes), "cudaMallocHost");
    size_ = result.ok() ? bytes : 0;
    return result;
  }
  /// The memory; none before `allocate`.
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {static_cast<std::byte*>(data_), size_}; }
  /// Never give it back: to do so would wait for a device that does not answer.
  void abandon() noexcept { data_ = nullptr; }

private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Owns an array in the memory of the current device. Its end may wait for the device; see `abandon`.
template <class T>
class device_memory {
public:
  /// Zero at first. Waits until the device has cleared it, on a stream of its own.
  ///
  /// @param count  elements; may be 0.
  /// @throws std::system_error in `cudart::category()`, or with `errc::deadline_exceeded` where the device does not
  ///         come to it in ten seconds: the memory stays in place for the life of the process then
  [[nodiscard]] static device_memory create(std::size_t count) {
    device_memory result;
    allocate(result, count).or_throw();
    auto const cleared = result.clear();
    if (!cleared.ok()) { result.abandon(); }
    cleared.or_throw();
    return result;
  }
  /// With any contents, for those who want a status. May wait for the device.
  ///
  /// @param out    out: replaced on success.
  /// @param count  elements; may be 0.
  /// @return `cudart::category()`
  [[nodiscard]] static status allocate(device_memory& out, std::size_t count) {
    detail::capture_guard const guard;
    device_memory fresh;
    void* memory = nullptr;
    auto result = to_status(cudaMalloc(&memory, (count == 0 ? 1 : count) * sizeof(T)), "cudaMalloc");
    if (!result.ok()) { return result; }
    fresh.data_ = static_cast<T*>(memory);
    fresh.size_ = count;
    out = std::move(fresh);
    return {};
  }

  device_memory() = default;
  device_memory(device_memory&& other) noexcept
      : data_{std::exchange(other.data_, nullptr)}, size_{std::exchange(other.size_, 0)} {}
  device_memory& operator=(device_memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~device_memory() {
    if (data_ == nullptr) { return; }
    detail::capture_guard const guard;
    static_cast<void>(cudaFree(data_));
  }
  /// In device memory; null where there is none.
  [[nodiscard]] T* data() const noexcept { return data_; }
  /// Elements.
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Never give it back: to do so would wait for a device that does not answer.
  void abandon() noexcept { data_ = nullptr; }

private:
  /// Not on the default stream, which belongs to the engine.
  [[nodiscard]] status clear() const {
    detail::capture_guard const guard;
    auto const own = stream::create();
    auto const bytes = (size_ == 0 ? 1 : size_) * sizeof(T);
    auto result = cudaMemsetAsync(data_, 0, bytes, own.get());
    if (result != cudaSuccess) { return to_status(result, "cudaMemsetAsync"); }
    constexpr nanoseconds_t patience = 10'000'000'000;
    auto const has_answered = [&result, &own] { return (result = own.query()) != cudaErrorNotReady; };
    if (ballast::detail::poll_until(ballast::detail::deadline_after(patience), has_answered)) {
      return to_status(result, "cudaMemsetAsync");
    }
    return {errc::deadline_exceeded, "the device does not come to clear memory"};
  }

  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
