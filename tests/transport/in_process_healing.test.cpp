// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "support/healing_laws.hpp"
#include "support/in_process_runner.hpp"
#include "support/sharing_laws.hpp"

#include <doctest/doctest.h>

TEST_CASE("threads of one process heal after every mishap, in both modes") {
  ballast_test::check_healing(ballast_test::in_process_runner{});
}

TEST_CASE("two models share one endpoint of threads, in both modes") {
  ballast_test::check_sharing(ballast_test::in_process_runner{});
}
