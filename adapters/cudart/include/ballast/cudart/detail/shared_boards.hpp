// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_SHARED_BOARDS_HPP
#define BALLAST_CUDART_DETAIL_SHARED_BOARDS_HPP

#include <ballast/control/control.hpp>
#include <ballast/cudart/detail/gather_words.hpp>
#include <ballast/cudart/peer_directory.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/owned_descriptor.hpp>
#include <ballast/detail/process_watch.hpp>
#include <ballast/detail/shared_mapping.hpp>
#include <ballast/detail/system_failure.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Names of boards while ranks look for them. They tell who has made them: one that dies in between leaves its file.
class board_name {
public:
  /// A name that no other boards of this host have.
  [[nodiscard]] static std::string fresh() {
    static std::atomic<std::uint64_t> count{0};
    auto const self = ballast::detail::this_process();
    return ballast::detail::concat('/', prefix, ballast::detail::pid_namespace(), '-', self.pid, '-', self.start_time,
                                   '-', count.fetch_add(1, std::memory_order_relaxed));
  }

  /// Take away what processes that died have left.
  static void clear_away_dead() {
    auto* const folder = ::opendir("/dev/shm");
    if (folder == nullptr) { return; }
    auto const here = ballast::detail::pid_namespace();
    while (auto const* const entry = ::readdir(folder)) {
      std::string_view const name{entry->d_name};
      if (name.substr(0, prefix.size()) != prefix) { continue; }
      unsigned long long where = 0;
      long long pid = 0;
      unsigned long long start_time = 0;
      if (std::sscanf(entry->d_name + prefix.size(), "%llu-%lld-%llu-", &where, &pid, &start_time) != 3) { continue; }
      ballast::detail::process_identity const maker{pid, start_time};
      if (where == here && ballast::detail::process_watch{maker}.dead()) {
        ::shm_unlink(ballast::detail::concat('/', name).c_str());
      }
    }
    ::closedir(folder);
  }

private:
  static constexpr std::string_view prefix = "ballast-boards-";
};

/// The boards of all ranks of a host, in memory that their processes share.
class shared_boards {
public:
  shared_boards() = default;
  shared_boards(shared_boards const&) = delete;
  shared_boards& operator=(shared_boards const&) = delete;
  ~shared_boards() = default;

  [[nodiscard]] pair_board& at(index_t sender, index_t receiver) const noexcept {
    return boards()[static_cast<std::ptrdiff_t>(sender) * num_ranks_ + receiver];
  }

  /// Make the boards on one rank and find them on the others; no name stays behind.
  /// @param maker  the rank that makes them, the same on all.
  template <control_plane Control>
  [[nodiscard]] status open(Control& control, index_t maker, nanoseconds_t deadline) {
    std::array<char, 128> name{};
    bool const first = control.rank() == maker;
    status mine;
    if (first) {
      board_name::clear_away_dead();
      auto const text = board_name::fresh();
      std::memcpy(name.data(), text.data(), text.size());
      mine = map(name.data(), O_CREAT | O_EXCL, control.num_ranks());
    }
    if (auto result =
            control.broadcast(std::as_writable_bytes(std::span{name}), maker, ballast::detail::time_until(deadline));
        !result.ok()) {
      if (first) { ::shm_unlink(name.data()); }
      return result;
    }
    if (!first) { mine = map(name.data(), 0, control.num_ranks()); }
    auto result = meet(control, std::move(mine), deadline);
    if (first) { ::shm_unlink(name.data()); }
    return result;
  }

private:
  [[nodiscard]] pair_board* boards() const noexcept { return reinterpret_cast<pair_board*>(memory_.data()); }

  [[nodiscard]] status map(char const* name, int flags, index_t num_ranks) {
    auto const count = static_cast<std::size_t>(num_ranks) * static_cast<std::size_t>(num_ranks);
    auto const bytes = count * sizeof(pair_board);
    ballast::detail::owned_descriptor const file{::shm_open(name, flags | O_RDWR | O_CLOEXEC, 0600)};
    if (!file.is_open()) { return ballast::detail::system_failure("shm_open"); }
    // Not a file with holes: to touch one where there is no memory left for it kills.
    if (auto const error = flags != 0 ? ::posix_fallocate(file.get(), 0, static_cast<::off_t>(bytes)) : 0; error != 0) {
      return {std::error_code{error, std::generic_category()},
              "posix_fallocate: no shared memory for the ranks' boards"};
    }
    memory_ = ballast::detail::shared_mapping{file.get(), bytes, PROT_READ | PROT_WRITE};
    if (memory_.data() == nullptr) { return ballast::detail::system_failure("mmap"); }
    num_ranks_ = num_ranks;
    if (flags != 0) {
      for (std::size_t i = 0; i < count; ++i) { ::new (static_cast<void*>(boards() + i)) pair_board; }
    }
    return {};
  }

  ballast::detail::shared_mapping memory_;
  index_t num_ranks_ = 0;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
