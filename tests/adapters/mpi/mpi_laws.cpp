// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The laws, on the ranks that mpirun starts, and on two emulated nodes of them.
#include <ballast/mpi/control.hpp>
#include <ballast/mpi/transport.hpp>
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/by_link.hpp>

#include "adapters/mpi/mpi_ranks.hpp"
#include "support/control_laws.hpp"
#include "support/move_laws.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>
#include <mpi.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace {

using ballast::index_t;
using ballast_test::law_log;
using ballast_test::mpi_runner;
using ballast_test::patience;
using ballast_test::world_size;

/// Two emulated nodes: peer copies inside each, MPI across.
struct two_nodes_runner {
  using wires = ballast::by_link<ballast::self_copy, ballast::posix::peer_copy, ballast::mpi::transport>;
  static constexpr bool can_lose_ranks = false;

  [[nodiscard]] std::vector<index_t> sizes() const { return {world_size()}; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(index_t num_ranks, Body body) const {
    ballast::mpi::control control{MPI_COMM_WORLD};
    ballast::mpi::transport remote{MPI_COMM_WORLD};
    ballast::topology const where{{num_ranks, 2, 1, 0}};
    law_log log{control.rank()};

    std::array<std::int64_t, 2> name{control.rank() == 0 ? ::getpid() : 0, control.rank() == 0 ? ++count() : 0};
    log.expect_ok(control.all_reduce(name, patience), "telling the name");
    ballast::posix::process_group node;
    auto const node_id = where.node_of_rank(control.rank());
    auto const joined = node.join(ballast::detail::concat("mpi-", name[0], "-", name[1], "-", node_id),
                                  control.rank() % where.ranks_per_node(), where.ranks_per_node(), patience);
    if (!log.expect_ok(joined, "join")) { return log.complaints(); }
    ballast::posix::peer_copy near{node};
    wires transport{where, near, remote};
    ballast_test::law_endpoint<ballast::mpi::control, wires> self{control, transport};
    body(self, log);
    return log.complaints();
  }

  static int& count() {
    static int count = 0;
    return count;
  }
};

static_assert(ballast::peer_copier<two_nodes_runner::wires>);

}  // namespace

TEST_CASE("MPI ranks obey the laws of a control plane") { ballast_test::check_control_laws(mpi_runner{}); }

TEST_CASE("MPI ranks obey the laws of a transport") { ballast_test::check_transport_laws(mpi_runner{}, 12); }

TEST_CASE("MPI ranks obey the laws of a transport in small pieces, one at a time") {
  ballast_test::check_transport_laws(mpi_runner{{.piece_bytes = 1000, .pieces_in_flight = 1}}, 5);
}

TEST_CASE("peer copies inside a node and MPI across obey the laws of a transport") {
  // On two ranks there is nothing to copy inside a node.
  if (world_size() % 4 == 0) { ballast_test::check_transport_laws(two_nodes_runner{}, 12); }
}

TEST_CASE("MPI ranks move random pairs of placements right") { ballast_test::check_random_moves(mpi_runner{}, 40); }

TEST_CASE("two nodes, with peer copies inside and MPI across, move random pairs of placements right") {
  if (world_size() % 2 == 0) { ballast_test::check_random_moves(two_nodes_runner{}, 40); }
}
