// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_CHECK_COMPLAINTS_HPP
#define BALLAST_TESTS_SUPPORT_CHECK_COMPLAINTS_HPP

#include <doctest/doctest.h>

#include <cstddef>
#include <string>
#include <vector>

namespace ballast_test {

/// Hand complaints to doctest, in the thread that runs the test case.
inline void check_complaints(std::vector<std::string> const& complaints) {
  std::size_t shown = 0;
  for (auto const& complaint : complaints) {
    if (++shown > 20) { break; }
    FAIL_CHECK(complaint);
  }
  CHECK(complaints.empty());
}

}  // namespace ballast_test

#endif
