// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Force-included where mutants are built: every mutant is in the program, and BALLAST_MUTANT says which one is on.
#ifndef BALLAST_TESTS_MUTATION_SWITCH_HPP
#define BALLAST_TESTS_MUTATION_SWITCH_HPP

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <type_traits>

namespace ballast_mutation {

inline constexpr int capacity = 1 << 16;

inline int const active = [] {
  char const* const text = std::getenv("BALLAST_MUTANT");
  return text == nullptr ? -1 : std::atoi(text);
}();

/// One byte for each mutant, set once it is reached: a file shared by all processes of a test, so that those that are
/// killed have told too.
inline unsigned char* const reached = []() -> unsigned char* {
  char const* const path = std::getenv("BALLAST_MUTANTS_REACHED");
  if (path == nullptr) { return nullptr; }
  int const file = ::open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) { return nullptr; }
  void* const memory = ::mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  return memory == MAP_FAILED ? nullptr : static_cast<unsigned char*>(memory);
}();

inline bool is_on(int mutant) noexcept {
  if (reached != nullptr) { reached[mutant] = 1; }
  return active == mutant;
}

/// Constant evaluation sees no mutants.
constexpr bool on(int mutant) noexcept { return std::is_constant_evaluated() ? false : is_on(mutant); }

}  // namespace ballast_mutation

#endif
