// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_MEMORY_HPP
#define BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_MEMORY_HPP

#include "ordering.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace ballast_test::simulated {

/// The physical memory of all devices: one file, so that the same bytes can be seen at several addresses.
class arena {
public:
  static constexpr std::size_t page = 4096;

  /// @param gap  bytes between two allocations, whole pages
  arena(std::size_t bytes, std::size_t gap);
  arena(arena const&) = delete;
  arena& operator=(arena const&) = delete;
  ~arena();

  /// @return an offset, or `none`
  [[nodiscard]] std::size_t take(std::size_t bytes);
  void give_back(std::size_t offset, std::size_t bytes);
  [[nodiscard]] std::byte* at(std::size_t offset) const noexcept { return base_ + offset; }
  [[nodiscard]] bool contains(void const* address) const noexcept {
    return address >= base_ && address < base_ + size_;
  }
  /// See the bytes at another address too, anywhere or there. @return null without room
  [[nodiscard]] std::byte* map(std::size_t offset, std::size_t bytes, std::byte* there = nullptr) const;
  [[nodiscard]] static std::byte* reserve(std::size_t bytes);
  /// Leave nothing there; the addresses stay reserved.
  static void unmap(std::byte* address, std::size_t bytes);

  static constexpr std::size_t none = SIZE_MAX;
  [[nodiscard]] static std::size_t whole_pages(std::size_t bytes) noexcept { return (bytes + page - 1) / page * page; }

private:
  int file_ = -1;
  std::size_t size_;
  std::size_t gap_;
  std::byte* base_ = nullptr;
  std::map<std::size_t, std::size_t> free_;  // offset, bytes
  std::size_t next_ = 0;                     // look for room from here on first
};

/// A run of physical memory, and who used it how.
class block {
public:
  block(arena& from, std::size_t bytes, int device);
  block(block const&) = delete;
  block& operator=(block const&) = delete;
  ~block();

  [[nodiscard]] bool is_there() const noexcept { return offset_ != arena::none; }
  [[nodiscard]] std::size_t offset() const noexcept { return offset_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] int device() const noexcept { return device_; }

  access_log log;
  bool device_writes = false;  ///< a device has written it, not the host alone
  std::uint64_t id = 0;        ///< in handles for other processes

private:
  arena* from_;
  std::size_t size_;
  std::size_t offset_;
  int device_;
};

enum class memory_kind {
  device,      ///< cudaMalloc
  pool,        ///< cudaMallocAsync
  mapped,      ///< cuMemMap
  imported,    ///< cudaIpcOpenMemHandle
  pinned,      ///< cudaMallocHost
  registered,  ///< cudaHostRegister
};

/// Memory that was given back in the order of a stream.
struct spare_block {
  std::shared_ptr<block> memory;
  std::size_t stream = 0;      // in whose order
  vector_clock clock;          // of the giving back
  std::shared_ptr<bool> done;  // the stream has come there
};
struct memory_pool {
  int device = 0;
  std::uint64_t readers = 0;  // bit d: device d may read and write
  std::vector<spare_block> spare;
};

/// Addresses that stand for memory.
struct allocation {
  std::byte* base = nullptr;
  std::size_t size = 0;
  memory_kind kind = memory_kind::device;
  int device = 0;
  std::shared_ptr<block> memory;
  std::size_t offset = 0;     // of `base` in the block
  std::uint64_t readers = 0;  // of mapped memory: devices that may read it
  std::uint64_t writers = 0;
  memory_pool* pool = nullptr;
  std::uint64_t handle_types = 0;
  std::byte* reservation = nullptr;  // of mapped memory: neighbours in it may be copied together
  bool freed = false;                // the host has given it back
  bool live = true;                  // the device still has it
  bool owns_mapping = false;

  [[nodiscard]] bool is_host() const noexcept { return kind == memory_kind::pinned || kind == memory_kind::registered; }
  allocation() = default;
  allocation(allocation const&) = delete;
  allocation& operator=(allocation const&) = delete;
  ~allocation();
};
using allocation_ptr = std::shared_ptr<allocation>;

/// Part of one allocation.
struct located {
  allocation_ptr where;  // null: memory of the host that no device knows
  std::size_t offset = 0;
  std::size_t size = 0;
};

enum class lookup { found, pageable, crosses, gone };

/// All addresses that the machine knows.
class memory_map {
public:
  memory_map(std::size_t bytes, std::size_t gap) : physical{bytes, gap} {}
  memory_map(memory_map const&) = delete;
  memory_map& operator=(memory_map const&) = delete;
  ~memory_map();

  arena physical;

  /// Addresses that are never given out again, so that whoever uses them late is seen.
  void keep(std::byte* address, std::size_t bytes) { kept_.emplace_back(address, bytes); }

  void add(allocation_ptr const& what);
  void remove(allocation_ptr const& what);
  [[nodiscard]] allocation_ptr find(void const* address) const;
  /// Find what a run of bytes lies in. Neighbours in one reservation count as one.
  [[nodiscard]] lookup resolve(void const* address, std::size_t bytes, std::vector<located>& out) const;
  [[nodiscard]] std::vector<allocation_ptr> all() const;

private:
  std::map<std::byte const*, allocation_ptr> by_address_;
  std::map<std::byte const*, std::size_t> former_;
  std::vector<std::pair<std::byte*, std::size_t>> kept_;
};

}  // namespace ballast_test::simulated

#endif
