// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Counts the program's allocations. It replaces the global `operator new`: include it in one source of a program only.
#ifndef BALLAST_TESTS_SUPPORT_ALLOCATION_COUNTER_HPP
#define BALLAST_TESTS_SUPPORT_ALLOCATION_COUNTER_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace ballast_test {

inline std::atomic<std::int64_t> allocations{0};

/// Allocations, of all threads, since this object was made.
class allocation_count {
public:
  [[nodiscard]] std::int64_t operator()() const noexcept { return allocations.load() - start_; }

private:
  std::int64_t start_ = allocations.load();
};

namespace detail {
inline void* allocate(std::size_t size, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  // aligned_alloc wants a multiple of the alignment.
  auto const rounded = (size + alignment - 1) / alignment * alignment;
  if (void* const memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded)) { return memory; }
  throw std::bad_alloc{};
}
}  // namespace detail
}  // namespace ballast_test

// Not inlined: where g++ sees through one of a pair only, it warns of mismatched allocation functions.
// NOLINTBEGIN(misc-definitions-in-headers): a replacement of operator new may not be inline
[[gnu::noinline]] void* operator new(std::size_t size) {
  return ballast_test::detail::allocate(size, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new[](std::size_t size) {
  return ballast_test::detail::allocate(size, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  return ballast_test::detail::allocate(size, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void* operator new[](std::size_t size, std::align_val_t alignment) {
  return ballast_test::detail::allocate(size, static_cast<std::size_t>(alignment));
}
// Allocations that may fail quietly, such as the buffer of std::stable_sort, count as well.
[[gnu::noinline]] void* operator new(std::size_t size, std::nothrow_t const&) noexcept {
  try {
    return ballast_test::detail::allocate(size, alignof(std::max_align_t));
  } catch (std::bad_alloc const&) { return nullptr; }
}
[[gnu::noinline]] void* operator new[](std::size_t size, std::nothrow_t const& tag) noexcept {
  return operator new(size, tag);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
// NOLINTEND(misc-definitions-in-headers)

#endif
