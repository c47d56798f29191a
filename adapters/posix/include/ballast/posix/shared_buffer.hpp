// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_SHARED_BUFFER_HPP
#define BALLAST_POSIX_SHARED_BUFFER_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace posix {

/// Memory that the processes of this user can map: weights that lie here travel at the speed of `memcpy`.
///
/// Nothing has to be said about it to `peer_copy`, which recognises any shared mapping whose file is still open.
class shared_buffer {
public:
  shared_buffer() = default;
  shared_buffer(shared_buffer&& other) noexcept
      : file_{std::exchange(other.file_, -1)},
        data_{std::exchange(other.data_, nullptr)},
        size_{std::exchange(other.size_, 0)} {}
  shared_buffer& operator=(shared_buffer&& other) noexcept {
    std::swap(file_, other.file_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~shared_buffer() {
    if (data_ != nullptr) { ::munmap(data_, size_); }
    if (file_ >= 0) { ::close(file_); }
  }

  /// Obtain zeroed memory.
  ///
  /// @param bytes  > 0.
  /// @pre empty
  /// @return `errc::out_of_memory` when the host has none left.
  [[nodiscard]] status allocate(std::size_t bytes) {
    BALLAST_EXPECTS(data_ == nullptr && bytes > 0, "shared_buffer: already allocated, or of no bytes");
    auto const refuse = [&](int error) {
      return status{errc::out_of_memory,
                    ballast::detail::concat("shared_buffer: no ", bytes, " bytes: ", std::strerror(error))};
    };
    shared_buffer made;
    made.file_ = ::memfd_create("ballast weights", MFD_CLOEXEC);
    if (made.file_ < 0) { return refuse(errno); }
    // Touching a page that the host cannot provide would kill the process, so all are obtained now.
    if (int const error = ::posix_fallocate(made.file_, 0, static_cast<::off_t>(bytes)); error != 0) {
      return refuse(error);
    }
    void* const start = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, made.file_, 0);
    if (start == MAP_FAILED) { return refuse(errno); }
    made.data_ = static_cast<std::byte*>(start);
    made.size_ = bytes;
    *this = std::move(made);
    return {};
  }

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
  int file_ = -1;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace posix
BALLAST_END_NAMESPACE

#endif
