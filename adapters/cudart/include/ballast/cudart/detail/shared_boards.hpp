// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_SHARED_BOARDS_HPP
#define BALLAST_CUDART_DETAIL_SHARED_BOARDS_HPP

#include <ballast/cudart/detail/gather_words.hpp>
#include <ballast/cudart/peer_directory.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/types.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <system_error>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

[[nodiscard]] inline status system_failure(char const* call) {
  auto const number = errno;
  return {std::error_code{number, std::generic_category()}, ballast::detail::concat(call, ": ", std::strerror(number))};
}

/// The boards of all ranks of a host, in memory that their processes share.
class shared_boards {
public:
  shared_boards() = default;
  shared_boards(shared_boards const&) = delete;
  shared_boards& operator=(shared_boards const&) = delete;
  ~shared_boards() {
    if (memory_ != nullptr) { ::munmap(memory_, size_); }
  }

  [[nodiscard]] pair_board& at(index_t sender, index_t receiver) const noexcept {
    return boards()[static_cast<std::ptrdiff_t>(sender) * num_ranks_ + receiver];
  }

  /// Make the boards on one rank and find them on the others; no name stays behind.
  /// @param maker  the rank that makes them, the same on all.
  template <control_plane Control>
  [[nodiscard]] status open(Control& control, index_t maker, nanoseconds_t timeout) {
    std::array<char, 64> name{};
    bool const first = control.rank() == maker;
    status mine;
    if (first) {
      auto const text = ballast::detail::concat("/ballast-boards-", ::getpid(), "-", ballast::detail::now());
      std::memcpy(name.data(), text.data(), text.size());
      mine = map(name.data(), O_CREAT | O_EXCL, control.num_ranks());
    }
    if (auto result = control.broadcast(std::as_writable_bytes(std::span{name}), maker, timeout); !result.ok()) {
      if (first) { ::shm_unlink(name.data()); }
      return result;
    }
    if (!first) { mine = map(name.data(), 0, control.num_ranks()); }
    auto result = meet(control, std::move(mine), timeout);
    if (first) { ::shm_unlink(name.data()); }
    return result;
  }

private:
  [[nodiscard]] pair_board* boards() const noexcept { return static_cast<pair_board*>(memory_); }

  [[nodiscard]] status map(char const* name, int flags, index_t num_ranks) {
    auto const count = static_cast<std::size_t>(num_ranks) * static_cast<std::size_t>(num_ranks);
    auto const bytes = count * sizeof(pair_board);
    auto const file = ::shm_open(name, flags | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0) { return system_failure("shm_open"); }
    status result;
    if (flags != 0 && ::ftruncate(file, static_cast<::off_t>(bytes)) != 0) { result = system_failure("ftruncate"); }
    if (result.ok()) {
      auto* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
      if (memory == MAP_FAILED) {
        result = system_failure("mmap");
      } else {
        memory_ = memory;
        size_ = bytes;
        num_ranks_ = num_ranks;
      }
    }
    ::close(file);
    if (result.ok() && flags != 0) {
      for (std::size_t i = 0; i < count; ++i) { ::new (static_cast<void*>(boards() + i)) pair_board; }
    }
    return result;
  }

  void* memory_ = nullptr;
  std::size_t size_ = 0;
  index_t num_ranks_ = 0;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
