// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_COMPUTE_STREAMS_HPP
#define BALLAST_CUDART_COMPUTE_STREAMS_HPP

#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// The streams that an engine's forward passes run on, where they are several: two batches that overlap, or graphs that
/// take turns. What ballast does between two passes is enqueued on the first one, behind what all of them hold, and all
/// of them go on behind it.
///
/// With one stream nothing is called: it is in order by itself.
///
/// @threads  one thread at a time; the streams' device is current there. Where several threads of an engine enqueue
///           passes, all have done so before one of them ends the pass.
/// @lifetime the streams belong to the engine and outlive it.
class compute_streams {
public:
  /// @param first  where work goes.
  /// @param more   what passes run on besides; may be empty.
  /// @throws std::system_error (as `validate`, and `cudart::category()`)
  explicit compute_streams(cudaStream_t first, std::span<cudaStream_t const> more = {}) : first_{first} {
    validate(first, more).or_throw();
    for (auto const stream : more) { others_.push_back({stream, event::create()}); }
    if (!more.empty()) { done_ = event::create(); }
  }

  /// Refuse streams that cannot be ordered against each other by events.
  ///
  /// @return `errc::invalid_option` where there are several and one of them is a default stream or named twice
  /// @complexity O(streams^2)
  [[nodiscard]] static status validate(cudaStream_t first, std::span<cudaStream_t const> more) {
    for (std::size_t i = 0; i < more.size(); ++i) {
      auto const stream = more[i];
      if (is_default(stream) || is_default(first)) {
        return {errc::invalid_option,
                "compute streams: where passes run on several streams, each is one that the engine has made, none a "
                "default stream"};
      }
      bool is_known = stream == first;
      for (std::size_t j = 0; j < i; ++j) { is_known = is_known || stream == more[j]; }
      if (is_known) {
        return {errc::invalid_option,
                ballast::detail::concat("compute streams: number ", i + 1, " besides the first is named twice")};
      }
    }
    return {};
  }
  /// Whether events can be relied on to order a stream.
  [[nodiscard]] static bool is_default(cudaStream_t stream) noexcept {
    return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
  }

  [[nodiscard]] cudaStream_t first() const noexcept { return first_; }
  [[nodiscard]] bool are_several() const noexcept { return !others_.empty(); }

  /// What is enqueued on `follower` from now on, by default the first stream, starts behind what the other compute
  /// streams hold now. The host does not wait.
  ///
  /// @return `cudart::category()`
  /// @complexity two calls of the driver for each stream besides the first.
  [[nodiscard]] status gather(cudaStream_t follower) const {
    for (auto const& other : others_) {
      auto result = other.held.record(other.stream);
      if (result.ok()) { result = other.held.hold_back(follower); }
      if (!result.ok()) { return result; }
    }
    return {};
  }
  [[nodiscard]] status gather() const { return gather(first_); }

  /// What is enqueued on the other streams from now on starts behind an event on the first.
  ///
  /// @return `cudart::category()`
  /// @complexity a call of the driver for each stream besides the first.
  [[nodiscard]] status release(event const& done) const {
    for (auto const& other : others_) {
      if (auto result = done.hold_back(other.stream); !result.ok()) { return result; }
    }
    return {};
  }
  /// The same behind all that the first stream holds now: one call more.
  [[nodiscard]] status release() const {
    if (others_.empty()) { return {}; }
    auto result = done_.record(first_);
    return result.ok() ? release(done_) : std::move(result);
  }

private:
  struct other_stream {
    cudaStream_t stream = nullptr;
    event held;  // behind what it holds
  };

  cudaStream_t first_;
  std::vector<other_stream> others_;
  event done_;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
