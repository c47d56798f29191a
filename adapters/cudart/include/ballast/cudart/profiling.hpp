// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_PROFILING_HPP
#define BALLAST_CUDART_PROFILING_HPP

#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/status.hpp>

#include <cuda_runtime_api.h>
#include <nvtx3/nvToolsExt.h>

#include <optional>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// A named range on the timeline of NVIDIA's profilers, from construction to destruction. Free where none is attached.
class profiler_range {
public:
  explicit profiler_range(char const* name) noexcept { nvtxRangePushA(name); }
  profiler_range(profiler_range const&) = delete;
  profiler_range& operator=(profiler_range const&) = delete;
  ~profiler_range() { nvtxRangePop(); }
};

/// Puts a rebalancer's events on the timeline of NVIDIA's profilers, and hands them on.
///
/// @lifetime the next observer must outlive it.
class profiler_marks final : public observer {
public:
  explicit profiler_marks(observer* next = nullptr) : next_{next} {}
  void on_event(ballast::event const& what) override {
    auto const text = ballast::detail::concat("ballast ", to_string(what.kind), ": step ", what.step, ", ",
                                              what.layers.size(), " layers, ", what.moves, " moves, ", what.bytes,
                                              " bytes, balancedness ", what.balancedness);
    nvtxMarkA(text.c_str());
    if (next_ != nullptr) { next_->on_event(what); }
  }

private:
  observer* next_;
};

/// Measures a stage on the device, from one point of a stream to another. Does nothing unless switched on.
class stage_timer {
public:
  explicit stage_timer(bool on) {
    if (on) { ends_.emplace(event::create(cudaEventDefault), event::create(cudaEventDefault)); }
  }
  [[nodiscard]] status start(cudaStream_t where) const { return ends_ ? ends_->first.record(where) : status{}; }
  [[nodiscard]] status stop(cudaStream_t where) const { return ends_ ? ends_->second.record(where) : status{}; }
  /// Microseconds of the last stage; nothing before it is over on the device, or when switched off.
  [[nodiscard]] std::optional<double> microseconds() const {
    float milliseconds = 0;
    if (!ends_ || cudaEventElapsedTime(&milliseconds, ends_->first.get(), ends_->second.get()) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return std::nullopt;
    }
    return 1e3 * static_cast<double>(milliseconds);
  }

private:
  std::optional<std::pair<event, event>> ends_;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
