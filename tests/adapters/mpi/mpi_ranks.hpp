// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_ADAPTERS_MPI_MPI_RANKS_HPP
#define BALLAST_TESTS_ADAPTERS_MPI_MPI_RANKS_HPP

#include <ballast/mpi/control.hpp>
#include <ballast/mpi/transport.hpp>

#include "support/control_laws.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"

#include <mpi.h>

#include <string>
#include <vector>

// The programs here are run by mpirun on some ranks; every rank runs every test case.
namespace ballast_test {

[[nodiscard]] inline ballast::index_t world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}
[[nodiscard]] inline ballast::index_t world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

/// A word outside the library's channels: that this rank has come to some point.
inline void tell(ballast::index_t rank) { MPI_Send(nullptr, 0, MPI_BYTE, rank, 0, MPI_COMM_WORLD); }
inline void hear(ballast::index_t rank) { MPI_Recv(nullptr, 0, MPI_BYTE, rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE); }

/// The ranks are the processes that run this program.
struct mpi_runner {
  static constexpr bool can_lose_ranks = false;
  ballast::mpi::transport_options options = {};

  [[nodiscard]] std::vector<ballast::index_t> sizes() const { return {world_size()}; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t, Body body) const {
    ballast::mpi::control control{MPI_COMM_WORLD};
    ballast::mpi::transport transport{MPI_COMM_WORLD, options};
    ballast::mpi::control engine{MPI_COMM_WORLD};
    law_endpoint<ballast::mpi::control, ballast::mpi::transport> self{control, transport, [] {}, exchange_over(engine)};
    law_log log{control.rank()};
    log.expect_ok(control.failure(), "setting the control plane up");
    log.expect_ok(transport.failure(), "setting the transport up");
    body(self, log);
    return log.complaints();
  }
};

/// Run `body(endpoint, log)` on every rank of this program, and check what they complain about.
template <class Body>
void on_all_ranks(Body body, ballast::mpi::transport_options const& options = {}) {
  check_complaints(mpi_runner{options}.run(world_size(), body));
}

}  // namespace ballast_test

#endif
