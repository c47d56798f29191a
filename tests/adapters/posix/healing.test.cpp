// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "support/healing_laws.hpp"
#include "support/posix_runner.hpp"
#include "support/sharing_laws.hpp"

#include <doctest/doctest.h>

TEST_CASE("processes heal after every mishap, in both modes") {
  ballast_test::check_healing(ballast_test::posix_runner{});
}

TEST_CASE("two models share the memory that peers read, in both modes") {
  ballast_test::check_sharing(ballast_test::posix_runner{});
}
