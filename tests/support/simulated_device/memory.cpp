// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace ballast_test::simulated {

arena::arena(std::size_t bytes, std::size_t gap)
    : file_{::memfd_create("simulated-device", MFD_CLOEXEC)}, size_{whole_pages(bytes)}, gap_{gap} {
  auto const resized = ::ftruncate(file_, static_cast<::off_t>(size_));
  auto* const memory = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_, 0);
  if (resized != 0 || memory == MAP_FAILED) {
    std::perror("simulated device: no memory");
    std::abort();
  }
  base_ = static_cast<std::byte*>(memory);
  free_[0] = size_;
}

arena::~arena() {
  ::munmap(base_, size_);
  ::close(file_);
}

std::size_t arena::take(std::size_t bytes) {
  auto const wanted = whole_pages(std::max<std::size_t>(bytes, 1)) + gap_;
  // What was given back is given out again as late as possible, so that whoever still uses it is seen.
  for (auto const from : {next_, std::size_t{0}}) {
    for (auto const& [offset, size] : free_) {
      auto const begin = std::max(offset, from);
      auto const end = offset + size;
      if (begin >= end || end - begin < wanted) { continue; }
      auto const first = offset;
      free_.erase(first);
      if (begin > first) { free_[first] = begin - first; }
      if (begin + wanted < end) { free_[begin + wanted] = end - begin - wanted; }
      next_ = begin + wanted;
      return begin;
    }
  }
  return none;
}

void arena::give_back(std::size_t offset, std::size_t bytes) {
  constexpr std::size_t worth_a_call = std::size_t{1} << 20;
  auto size = whole_pages(std::max<std::size_t>(bytes, 1)) + gap_;
  if (size > worth_a_call) { ::madvise(base_ + offset, size, MADV_REMOVE); }
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + size) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    auto const before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += size;
      return;
    }
  }
  free_[offset] = size;
}

std::byte* arena::map(std::size_t offset, std::size_t bytes, std::byte* there) const {
  auto const flags = MAP_SHARED | (there != nullptr ? MAP_FIXED : 0);
  auto* const memory =
      ::mmap(there, whole_pages(bytes), PROT_READ | PROT_WRITE, flags, file_, static_cast<::off_t>(offset));
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

std::byte* arena::reserve(std::size_t bytes) {
  auto* const memory =
      ::mmap(nullptr, whole_pages(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

void arena::unmap(std::byte* address, std::size_t bytes) {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (::mmap(address, whole_pages(bytes), PROT_NONE, flags, -1, 0) == MAP_FAILED) { std::abort(); }
}

block::block(arena& from, std::size_t bytes, int device)
    : from_{&from}, size_{bytes}, offset_{from.take(bytes)}, device_{device} {
  // Nobody may rely on zeros.
  constexpr std::size_t worth_it = std::size_t{1} << 20;
  if (is_there() && bytes <= worth_it) { std::memset(from.at(offset_), 0xcd, bytes); }
}

block::~block() {
  if (is_there()) { from_->give_back(offset_, size_); }
}

allocation::~allocation() {
  if (owns_mapping) { arena::unmap(base, size); }
}

memory_map::~memory_map() {
  by_address_.clear();
  for (auto const& [address, bytes] : kept_) { ::munmap(address, arena::whole_pages(bytes)); }
}

void memory_map::add(allocation_ptr const& what) {
  std::erase_if(former_, [&](auto const& range) {
    return range.first < what->base + what->size && what->base < range.first + range.second;
  });
  by_address_[what->base] = what;
}

void memory_map::remove(allocation_ptr const& what) {
  what->live = false;
  auto const found = by_address_.find(what->base);
  if (found == by_address_.end() || found->second != what) { return; }  // given out again
  by_address_.erase(found);
  if (what->kind != memory_kind::registered) { former_[what->base] = what->size; }
}

allocation_ptr memory_map::find(void const* address) const {
  auto const* const byte = static_cast<std::byte const*>(address);
  auto const next = by_address_.upper_bound(byte);
  if (next == by_address_.begin()) { return nullptr; }
  auto const& found = std::prev(next)->second;
  return byte < found->base + found->size ? found : nullptr;
}

lookup memory_map::resolve(void const* address, std::size_t bytes, std::vector<located>& out) const {
  auto const* at = static_cast<std::byte const*>(address);
  auto const* const end = at + bytes;
  std::byte* reservation = nullptr;
  for (bool first = true; first || at < end; first = false) {
    auto const found = find(at);
    if (found == nullptr) {
      if (!first) { return lookup::crosses; }
      auto const next = former_.upper_bound(at);
      bool const was_there = next != former_.begin() && at < std::prev(next)->first + std::prev(next)->second;
      if (was_there || physical.contains(at)) { return lookup::gone; }
      out.push_back({nullptr, 0, bytes});
      return lookup::pageable;
    }
    if (!first && (reservation == nullptr || found->reservation != reservation)) { return lookup::crosses; }
    if (found->freed) { return lookup::gone; }
    reservation = found->reservation;
    auto const offset = static_cast<std::size_t>(at - found->base);
    auto const size = std::min(found->size - offset, static_cast<std::size_t>(end - at));
    out.push_back({found, offset, size});
    at += size;
    if (at < end && reservation == nullptr) { return lookup::crosses; }
  }
  return lookup::found;
}

std::vector<allocation_ptr> memory_map::all() const {
  std::vector<allocation_ptr> result;
  for (auto const& [address, what] : by_address_) { result.push_back(what); }
  return result;
}

}  // namespace ballast_test::simulated
