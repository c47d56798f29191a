// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_PEER_MAP_HPP
#define BALLAST_POSIX_DETAIL_PEER_MAP_HPP

#include <ballast/config.hpp>
#include <ballast/detail/owned_descriptor.hpp>
#include <ballast/detail/shared_mapping.hpp>
#include <ballast/transport/transport.hpp>

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

/// Where a peer finds a run of this process's memory: the file behind a shared mapping, as this process has it open.
struct file_range {
  int file = -1;  ///< -1: private memory, or the file is not open any more
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t offset = 0;
};

/// A descriptor of this process for that file, or -1.
[[nodiscard]] inline int find_open_file(std::uint64_t device, std::uint64_t inode) {
  ::DIR* const folder = ::opendir("/proc/self/fd");
  if (folder == nullptr) { return -1; }
  int found = -1;
  while (::dirent const* const entry = ::readdir(folder)) {
    char* end = nullptr;
    auto const file = static_cast<int>(std::strtol(entry->d_name, &end, 10));
    struct ::stat facts{};
    if (end != entry->d_name && file != ::dirfd(folder) && ::fstat(file, &facts) == 0 && facts.st_dev == device &&
        facts.st_ino == inode) {
      found = file;
      break;
    }
  }
  ::closedir(folder);
  return found;
}

/// Find the file behind the memory of `region`. @complexity reads this process's list of mappings
[[nodiscard]] inline file_range find_file_range(ballast::segment region) {
  file_range found;
  std::FILE* const maps = std::fopen("/proc/self/maps", "re");
  if (maps == nullptr) { return found; }
  auto const first = reinterpret_cast<std::uintptr_t>(region.data);
  char line[512];
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    unsigned long long begin = 0;
    unsigned long long end = 0;
    unsigned long long offset = 0;
    unsigned long long inode = 0;
    unsigned device_major = 0;
    unsigned device_minor = 0;
    char rights[8] = {};
    if (std::sscanf(line, "%llx-%llx %7s %llx %x:%x %llu", &begin, &end, rights, &offset, &device_major, &device_minor,
                    &inode) != 7 ||
        first < begin || first >= end) {
      continue;
    }
    if (rights[3] == 's' && inode != 0 && region.size <= end - first) {
      auto const device = static_cast<std::uint64_t>(makedev(device_major, device_minor));
      found = {find_open_file(device, inode), device, inode, offset + (first - begin)};
    }
    break;
  }
  std::fclose(maps);
  return found;
}

/// A peer's memory, mapped for reading.
class peer_map {
public:
  peer_map() = default;
  /// Map what the peer has told. The map is empty when this process may not, or the file is another one by now.
  peer_map(std::int64_t pid, file_range const& where, std::size_t size) {
    if (where.file < 0 || size == 0) { return; }
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%lld/fd/%d", static_cast<long long>(pid), where.file);
    ballast::detail::owned_descriptor const file{::open(path, O_RDONLY | O_CLOEXEC)};
    struct ::stat facts{};
    if (!file.is_open() || ::fstat(file.get(), &facts) != 0 || facts.st_dev != where.device ||
        facts.st_ino != where.inode || static_cast<std::uint64_t>(facts.st_size) < where.offset + size) {
      return;
    }
    skip_ = where.offset % static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    memory_ = ballast::detail::shared_mapping{file.get(), size + skip_, PROT_READ,
                                              static_cast<::off_t>(where.offset - skip_)};
  }

  /// The region's first byte, or null when it is not mapped.
  [[nodiscard]] std::byte const* data() const noexcept {
    return memory_.data() != nullptr ? memory_.data() + skip_ : nullptr;
  }

private:
  ballast::detail::shared_mapping memory_;
  std::size_t skip_ = 0;  ///< of its bytes come before the region, which need not begin at a page
};

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
