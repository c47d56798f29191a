// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_LONG_RUNS_HPP
#define BALLAST_TESTS_SUPPORT_LONG_RUNS_HPP

#include <cstdlib>

namespace ballast_test {

/// Whether this run may take its time: with BALLAST_TESTS_LONG=1 in the environment, as `./dev test --all` sets it.
[[nodiscard]] inline bool is_long_run() {
  char const* const text = std::getenv("BALLAST_TESTS_LONG");
  return text != nullptr && text[0] == '1';
}

/// How many random cases to try: so many, and twenty times that in a long run.
[[nodiscard]] inline int cases(int usual) { return is_long_run() ? 20 * usual : usual; }

}  // namespace ballast_test

#endif
