// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_DEVICE_READER_HPP
#define BALLAST_CUDART_DETAIL_DEVICE_READER_HPP

#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Wait until a query says that the device is done, until a deadline. @param what for the message
template <class Query>
[[nodiscard]] status await_device(Query query, nanoseconds_t deadline, char const* what) {
  auto result = cudaErrorNotReady;
  auto const has_answered = [&result, &query] { return (result = query()) != cudaErrorNotReady; };
  if (ballast::detail::poll_until(deadline, has_answered)) { return to_status(result, what); }
  return {errc::deadline_exceeded, ballast::detail::concat(what, ": the device did not come to it in time")};
}

/// Wait until an event has been reached, until a deadline. @param what for the message
[[nodiscard]] inline status await_event(event const& which, nanoseconds_t deadline, char const* what) {
  return await_device([&which] { return which.query(); }, deadline, what);
}

/// Reads device memory for the host on a stream of its own, through pinned memory, never longer than a deadline.
class device_reader {
public:
  [[nodiscard]] status warm_up() {
    if (reads_.get() != nullptr) { return {}; }
    if (auto result = bounce_.allocate(bounce_bytes); !result.ok()) { return result; }
    return stream::create(reads_);
  }

  /// The digest of some memory as it is behind an event. @param out out: unchanged on failure
  [[nodiscard]] status checksum(std::span<segment const> segments, event const& behind, nanoseconds_t deadline,
                                std::uint64_t& out) {
    if (auto result = warm_up(); !result.ok()) { return result; }
    // A read that came too late last time may still write to the buffer.
    if (auto result = await(deadline); !result.ok()) { return result; }
    if (auto result = behind.hold_back(reads_.get()); !result.ok()) { return result; }
    digest sum;
    for (auto const& part : segments) {
      if (part.data == nullptr && part.size > 0) {
        return {errc::invalid_weights,
                ballast::detail::concat("device_store: checksum of ", part.size, " bytes at address 0")};
      }
      if (auto result = read(part, deadline); !result.ok()) { return result; }
      sum.add_bytes(bytes_);
    }
    out = sum.value();
    return {};
  }
  /// Wait until no read is under way: one that came too late, or failed, may still read and write.
  [[nodiscard]] status await(nanoseconds_t deadline) {
    if (!pending_) { return {}; }
    auto const idle = [this] { return reads_.query(); };
    auto result = await_device(idle, deadline, "device_store: checksum");
    pending_ = !result.ok();
    return result;
  }
  void abandon() noexcept { bounce_.abandon(); }

private:
  static constexpr std::size_t bounce_bytes = std::size_t{1} << 20;

  /// Bring a run of memory into `bytes_`.
  [[nodiscard]] status read(segment part, nanoseconds_t deadline) {
    bytes_.resize(part.size);
    for (std::size_t at = 0; at < part.size; at += bounce_bytes) {
      auto const bytes = std::min(bounce_bytes, part.size - at);
      auto const read =
          cudaMemcpyAsync(bounce_.bytes().data(), part.data + at, bytes, cudaMemcpyDeviceToHost, reads_.get());
      if (auto result = to_status(read, "cudaMemcpyAsync"); !result.ok()) { return result; }
      pending_ = true;
      if (auto result = await(deadline); !result.ok()) { return result; }
      std::copy_n(bounce_.bytes().begin(), bytes, bytes_.begin() + static_cast<std::ptrdiff_t>(at));
    }
    return {};
  }

  stream reads_;
  pinned_buffer bounce_;
  std::vector<std::byte> bytes_;
  bool pending_ = false;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
