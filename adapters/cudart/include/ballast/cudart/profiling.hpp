// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_PROFILING_HPP
#define BALLAST_CUDART_PROFILING_HPP

#include <ballast/contract.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>
#include <nvtx3/nvToolsExt.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

namespace detail {

/// Looks for a profiler once. NVTX does so by itself in its first call, and writes pointers that a second thread may be
/// reading without a lock.
inline void find_profiler() noexcept {
  [[maybe_unused]] static bool const looked = [] {
    nvtxInitialize(nullptr);
    return true;
  }();
}

}  // namespace detail

/// A named range on the timeline of NVIDIA's profilers, from construction to destruction. Free where none is attached.
class profiler_range {
public:
  /// @param name  copied.
  explicit profiler_range(char const* name) noexcept {
    detail::find_profiler();
    nvtxRangePushA(name);
  }
  profiler_range(profiler_range const&) = delete;
  profiler_range& operator=(profiler_range const&) = delete;
  ~profiler_range() { nvtxRangePop(); }
};

/// Puts a rebalancer's events on the timeline of NVIDIA's profilers, and hands them on.
///
/// @lifetime the next observer must outlive it.
class profiler_marks final : public observer {
public:
  /// @param next  gets every event after it is on the timeline; null: nobody does.
  explicit profiler_marks(observer* next = nullptr) : next_{next} {}
  void on_event(ballast::event const& what) override {
    auto text = ballast::detail::concat("ballast ", to_string(what.kind), ": step ", what.step, ", ",
                                        what.layers.size(), " layers, ", what.moves, " moves, ", what.bytes,
                                        " bytes, balancedness ", what.balancedness);
    append_time(text, ", device: receive ", what.device_receive);
    append_time(text, ", device: commit ", what.device_commit);
    detail::find_profiler();
    nvtxMarkA(text.c_str());
    if (next_ != nullptr) { next_->on_event(what); }
  }

private:
  static void append_time(std::string& text, char const* what, nanoseconds_t time) {
    if (time >= 0) { text += ballast::detail::concat(what, time, " ns"); }
  }

  observer* next_;
};

/// Measures stages on the device, each from one point of a stream to another, one after the other. Does nothing unless
/// switched on.
///
/// @threads one thread at a time; the stream's device is current there.
class stage_timer {
public:
  /// @param on  measure; otherwise all calls do nothing, and `take` has nothing to give.
  explicit stage_timer(bool on) noexcept : on_{on} {}
  [[nodiscard]] bool is_on() const noexcept { return on_; }

  /// Make the events of a few stages ahead, so that the first ones need not. @return `cudart::category()`
  [[nodiscard]] status warm_up() {
    constexpr std::size_t num_stages = 4;  // that may be out at once without more being made
    while (on_ && spare_.size() < num_stages) {
      stage made;
      if (auto result = make(made); !result.ok()) { return result; }
      spare_.push_back(std::move(made));
    }
    return {};
  }

  /// Let a stage begin behind what is enqueued on `where`. One that was begun before and did not end is forgotten.
  /// Makes two events where none are to spare; never waits.
  /// @return `cudart::category()`
  [[nodiscard]] status start(cudaStream_t where) {
    if (!on_) { return {}; }
    if (auto result = open_next(); !result.ok()) { return result; }
    return open_.begin.record(where);
  }
  /// Let the stage end there. @pre it has begun @return `cudart::category()`
  [[nodiscard]] status stop(cudaStream_t where) {
    if (!on_) { return {}; }
    BALLAST_EXPECTS(open_.is_made(), "stage_timer: stopped before it was started");
    if (auto result = open_.end.record(where); !result.ok()) { return result; }
    running_.push_back(std::move(open_));
    return {};
  }
  /// Nanoseconds of the oldest stage that has not been taken; `not_measured` while the device is not done with it, or
  /// when there is none. Never waits.
  [[nodiscard]] nanoseconds_t take() {
    if (running_.empty()) { return not_measured; }
    auto const time = running_.front().begin.elapsed_until(running_.front().end);
    if (time < 0) { return time; }
    spare_.push_back(std::move(running_.front()));
    running_.erase(running_.begin());
    return time;
  }

private:
  struct stage {
    event begin;
    event end;
    [[nodiscard]] bool is_made() const noexcept { return end.get() != nullptr; }
  };

  [[nodiscard]] status open_next() {
    if (open_.is_made()) { return {}; }
    if (!spare_.empty()) {
      open_ = std::move(spare_.back());
      spare_.pop_back();
      return {};
    }
    return make(open_);
  }
  [[nodiscard]] static status make(stage& out) {
    if (auto result = event::create(out.begin, cudaEventDefault); !result.ok()) { return result; }
    return event::create(out.end, cudaEventDefault);
  }

  bool on_;
  stage open_;                  // begun and not ended
  std::vector<stage> running_;  // ended on their stream, not taken; oldest first
  std::vector<stage> spare_;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
