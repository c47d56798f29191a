// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SPLITMIX_HPP
#define BALLAST_TESTS_SUPPORT_SPLITMIX_HPP

#include <cstdint>

namespace ballast_test {

/// Seeded numbers that are the same everywhere (splitmix64).
class splitmix {
public:
  explicit splitmix(std::uint64_t seed) : state_{seed} {}
  std::uint64_t next() {
    std::uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }

private:
  std::uint64_t state_;
};

}  // namespace ballast_test

#endif
