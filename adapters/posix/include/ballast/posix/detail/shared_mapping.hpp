// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_SHARED_MAPPING_HPP
#define BALLAST_POSIX_DETAIL_SHARED_MAPPING_HPP

#include <ballast/config.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

/// An open file, closed at the end.
class file_handle {
public:
  file_handle() = default;
  explicit file_handle(int file) noexcept : file_{file} {}
  file_handle(file_handle&& other) noexcept : file_{std::exchange(other.file_, -1)} {}
  file_handle& operator=(file_handle&& other) noexcept {
    std::swap(file_, other.file_);
    return *this;
  }
  ~file_handle() {
    if (file_ >= 0) { ::close(file_); }
  }

  [[nodiscard]] bool is_open() const noexcept { return file_ >= 0; }
  [[nodiscard]] int get() const noexcept { return file_; }

private:
  int file_ = -1;
};

/// A shared mapping of a file, unmapped at the end.
class shared_mapping {
public:
  shared_mapping() = default;
  /// Empty on failure, with the reason in `errno`.
  shared_mapping(int file, std::size_t bytes, int rights, ::off_t offset = 0) noexcept {
    void* const start = ::mmap(nullptr, bytes, rights, MAP_SHARED, file, offset);
    if (start == MAP_FAILED) { return; }
    start_ = static_cast<std::byte*>(start);
    size_ = bytes;
  }
  shared_mapping(shared_mapping&& other) noexcept
      : start_{std::exchange(other.start_, nullptr)}, size_{std::exchange(other.size_, 0)} {}
  shared_mapping& operator=(shared_mapping&& other) noexcept {
    std::swap(start_, other.start_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~shared_mapping() {
    if (start_ != nullptr) { ::munmap(start_, size_); }
  }

  [[nodiscard]] std::byte* data() const noexcept { return start_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
  std::byte* start_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
