// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_SHARED_MAPPING_HPP
#define BALLAST_DETAIL_SHARED_MAPPING_HPP

#include <ballast/config.hpp>

#include <sys/mman.h>

#include <cstddef>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

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

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
