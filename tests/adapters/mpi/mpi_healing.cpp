// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "mpi_ranks.hpp"
#include "support/healing_laws.hpp"
#include "support/sharing_laws.hpp"

#include <doctest/doctest.h>

TEST_CASE("MPI ranks heal after every mishap, in both modes") {
  ballast_test::check_healing(ballast_test::mpi_runner{}, 500 * ballast_test::millisecond);
}

TEST_CASE("two models share MPI's transport and control plane, in both modes") {
  ballast_test::check_sharing(ballast_test::mpi_runner{});
}
