// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_SHARED_BUFFER_HPP
#define BALLAST_POSIX_SHARED_BUFFER_HPP

#include <ballast/detail/owned_descriptor.hpp>
#include <ballast/detail/shared_mapping.hpp>
#include <ballast/detail/system_failure.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace posix {

/// Memory that the processes of this user can map: weights that lie here travel at the speed of `memcpy`.
///
/// Nothing has to be said about it to `peer_copy`, which recognises any shared mapping whose file is still open.
///
/// @lifetime it outlives every store and transport that uses its memory. What a peer has mapped stays valid for it.
class shared_buffer {
public:
  /// Obtain zeroed memory, all of it at once: the kernel finds every page before this returns.
  ///
  /// @param bytes  > 0.
  /// @return `errc::out_of_memory` when the host has none left, `errc::busy` when this buffer has memory already,
  ///         `errc::invalid_option` for 0 bytes; nothing changes then.
  /// @complexity O(bytes)
  [[nodiscard]] status allocate(std::size_t bytes) {
    if (data() != nullptr) { return {errc::busy, "shared_buffer: already allocated"}; }
    if (bytes == 0) { return {errc::invalid_option, "shared_buffer: of 0 bytes"}; }
    auto const refuse = [&bytes](int error) {
      auto const what = ballast::detail::concat("shared_buffer: no ", bytes, " bytes");
      return ballast::detail::system_failure(errc::out_of_memory, what, error);
    };
    // Asking for more than there is would take all before it failed, and cost other processes their lives.
    auto const page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    if (bytes / page >= static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES))) { return refuse(ENOMEM); }
    shared_buffer made;
    made.file_ = ballast::detail::owned_descriptor{::memfd_create("ballast weights", MFD_CLOEXEC)};
    if (!made.file_.is_open()) { return refuse(errno); }
    // Touching a page that the host cannot provide would kill the process, so all are obtained now.
    if (int const error = ::posix_fallocate(made.file_.get(), 0, static_cast<::off_t>(bytes)); error != 0) {
      return refuse(error);
    }
    made.memory_ = ballast::detail::shared_mapping{made.file_.get(), bytes, PROT_READ | PROT_WRITE};
    if (made.memory_.data() == nullptr) { return refuse(errno); }
    *this = std::move(made);
    return {};
  }

  /// The memory, at the start of a page; null before `allocate`.
  [[nodiscard]] std::byte* data() const noexcept { return memory_.data(); }
  /// In bytes, as it was asked for.
  [[nodiscard]] std::size_t size() const noexcept { return memory_.size(); }

private:
  ballast::detail::owned_descriptor file_;
  ballast::detail::shared_mapping memory_;
};

}  // namespace posix
BALLAST_END_NAMESPACE

#endif
