// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/posix/process_group.hpp>

#include "support/control_laws.hpp"
#include "support/posix_runner.hpp"

#include <doctest/doctest.h>

TEST_CASE("a group of processes obeys the laws of a control plane") {
  ballast_test::check_control_laws(ballast_test::posix_runner{});
}
