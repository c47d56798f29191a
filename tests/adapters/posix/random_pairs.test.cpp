// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Random pairs of placements, moved by real processes: what runtime/random_pairs.test.cpp checks on one thread.
#include "support/move_laws.hpp"
#include "support/posix_runner.hpp"

#include <doctest/doctest.h>

#include <cerrno>

TEST_CASE("processes move random pairs of placements right") {
  ballast_test::posix_runner runner;
  runner.group_sizes = {2, 4, 8};
  ballast_test::check_random_moves(runner, 60);
}

TEST_CASE("processes that the kernel forbids to read each other do so too") {
  ballast_test::posix_runner runner;
  runner.options.read_peer = [](auto...) -> ::ssize_t {
    errno = EPERM;
    return -1;
  };
  runner.group_sizes = {4};
  ballast_test::check_random_moves(runner, 10);
}
