// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_SEGMENT_HPP
#define BALLAST_POSIX_DETAIL_SEGMENT_HPP

#include <ballast/detail/owned_descriptor.hpp>
#include <ballast/detail/shared_mapping.hpp>
#include <ballast/detail/system_failure.hpp>
#include <ballast/posix/detail/segment_layout.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <new>
#include <string>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

using ballast::detail::owned_descriptor;
using ballast::detail::shared_mapping;
using ballast::detail::system_failure;

/// The memory that the ranks of a group share. Its file has a name only while the ranks find each other: a run that
/// dies later leaves nothing behind. `rendezvous` knows the names.
class segment {
public:
  /// Make a nameless segment for `num_ranks` ranks.
  [[nodiscard]] status create(index_t num_ranks, process_identity creator, std::uint64_t job) {
    segment made;
    made.file_ = owned_descriptor{::open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)};
    if (!made.file_.is_open()) {
      return system_failure(errc::transport_failed, "process_group: cannot make shared memory in /dev/shm", errno);
    }
    auto const ranks = static_cast<std::size_t>(num_ranks);
    auto const bytes = segment_bytes(ranks);
    if (::ftruncate(made.file_.get(), static_cast<::off_t>(bytes)) != 0) {
      return system_failure(errc::transport_failed, "process_group: cannot size the shared memory", errno);
    }
    if (auto result = made.obtain(0, bounce_offset(ranks)); !result.ok()) { return result; }
    if (auto result = made.map(bytes); !result.ok()) { return result; }
    auto* const start = ::new (made.memory_.data()) segment_header{};
    start->facts = {segment_magic, bytes, num_ranks, creator, pid_namespace(), job};
    *this = std::move(made);
    return {};
  }

  /// Give the complete segment its name. @return false when the name is taken
  [[nodiscard]] bool publish(std::string const& path) const {
    char self[40];
    std::snprintf(self, sizeof self, "/proc/self/fd/%d", file_.get());
    return ::linkat(AT_FDCWD, self, AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == 0;
  }

  /// Map the segment of that name. @return false when there is none, or it is not one of ours
  [[nodiscard]] bool open(std::string const& path) {
    segment found;
    found.file_ = owned_descriptor{::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
    struct ::stat facts{};
    if (!found.file_.is_open() || ::fstat(found.file_.get(), &facts) != 0 || facts.st_uid != ::geteuid()) {
      return false;
    }
    auto const bytes = static_cast<std::size_t>(facts.st_size);
    if (bytes < sizeof(segment_header) || !found.map(bytes).ok()) { return false; }
    auto const& start = found.header().facts;
    if (start.magic != segment_magic || start.bytes != bytes || start.num_ranks < 1 || start.num_ranks > max_ranks ||
        segment_bytes(static_cast<std::size_t>(start.num_ranks)) != bytes) {
      return false;
    }
    *this = std::move(found);
    return true;
  }

  /// Take the name away if it is still this segment's.
  void unpublish(std::string const& path) const {
    struct ::stat named{};
    struct ::stat own{};
    if (::stat(path.c_str(), &named) == 0 && ::fstat(file_.get(), &own) == 0 && named.st_ino == own.st_ino) {
      ::unlink(path.c_str());
    }
  }

  /// Make sure that a range has memory behind it: touching one without, when the host has none left, kills.
  [[nodiscard]] status obtain(std::size_t offset, std::size_t bytes) const {
    int const error = ::posix_fallocate(file_.get(), static_cast<::off_t>(offset), static_cast<::off_t>(bytes));
    return error == 0
               ? status{}
               : system_failure(errc::transport_failed, "process_group: not enough shared memory in /dev/shm", error);
  }

  [[nodiscard]] segment_header& header() const noexcept { return at<segment_header>(0); }
  [[nodiscard]] member& member_of(index_t rank) const noexcept {
    return at<member>(members_offset() + static_cast<std::size_t>(rank) * sizeof(member));
  }
  /// The `offers_per_pair` entries of a sender and a receiver.
  [[nodiscard]] offer* offers(index_t sender, index_t receiver) const noexcept {
    return &at<offer>(offers_offset(num_ranks()) + pair(sender, receiver) * offers_per_pair * sizeof(offer));
  }
  /// The two bounce buffers of a sender and a receiver. @pre memory was obtained
  [[nodiscard]] bounce_buffer* bounce(index_t sender, index_t receiver) const noexcept {
    return &at<bounce_buffer>(bounce_at(sender, receiver));
  }
  [[nodiscard]] status obtain_bounce(index_t sender, index_t receiver) const {
    return obtain(bounce_at(sender, receiver), 2 * sizeof(bounce_buffer));
  }

private:
  template <class T>
  [[nodiscard]] T& at(std::size_t offset) const noexcept {
    return *std::launder(reinterpret_cast<T*>(memory_.data() + offset));
  }
  [[nodiscard]] std::size_t num_ranks() const noexcept { return static_cast<std::size_t>(header().facts.num_ranks); }
  [[nodiscard]] std::size_t pair(index_t sender, index_t receiver) const noexcept {
    return static_cast<std::size_t>(sender) * num_ranks() + static_cast<std::size_t>(receiver);
  }
  [[nodiscard]] std::size_t bounce_at(index_t sender, index_t receiver) const noexcept {
    return bounce_offset(num_ranks()) + pair(sender, receiver) * 2 * sizeof(bounce_buffer);
  }

  [[nodiscard]] status map(std::size_t bytes) {
    memory_ = shared_mapping{file_.get(), bytes, PROT_READ | PROT_WRITE};
    return memory_.data() != nullptr
               ? status{}
               : system_failure(errc::transport_failed, "process_group: cannot map the shared memory", errno);
  }

  owned_descriptor file_;
  shared_mapping memory_;
};

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
