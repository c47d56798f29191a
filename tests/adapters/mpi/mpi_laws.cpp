// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Run by mpirun on some ranks; every rank runs every test case.
#define DOCTEST_CONFIG_IMPLEMENT
#include <ballast/mpi/control.hpp>
#include <ballast/mpi/transport.hpp>
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/by_link.hpp>

#include "support/check_complaints.hpp"
#include "support/control_laws.hpp"
#include "support/move_laws.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>
#include <mpi.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <exception>
#include <span>
#include <string>
#include <vector>

namespace {

using ballast::decision;
using ballast::index_t;
using ballast_test::law_log;
using ballast_test::millisecond;
using ballast_test::patience;

index_t world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

/// A word outside the library's channels: that this rank has come to some point.
void tell(index_t rank) { MPI_Send(nullptr, 0, MPI_BYTE, rank, 0, MPI_COMM_WORLD); }
void hear(index_t rank) { MPI_Recv(nullptr, 0, MPI_BYTE, rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE); }

/// The ranks are the processes that run this program.
struct mpi_runner {
  static constexpr bool can_lose_ranks = false;
  ballast::mpi::transport_options options = {};

  [[nodiscard]] std::vector<index_t> sizes() const { return {world_size()}; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(index_t, Body body) const {
    ballast::mpi::control control{MPI_COMM_WORLD};
    ballast::mpi::transport transport{MPI_COMM_WORLD, options};
    ballast_test::law_endpoint<ballast::mpi::control, ballast::mpi::transport> self{control, transport};
    law_log log{control.rank()};
    body(self, log);
    return log.complaints();
  }
};

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
  if (world_size() % 2 == 0) { ballast_test::check_transport_laws(two_nodes_runner{}, 12); }
}

TEST_CASE("MPI ranks move random pairs of placements right") { ballast_test::check_random_moves(mpi_runner{}, 40); }

TEST_CASE("two nodes, with peer copies inside and MPI across, move random pairs of placements right") {
  if (world_size() % 2 == 0) { ballast_test::check_random_moves(two_nodes_runner{}, 40); }
}

TEST_CASE("an undecided vote is settled by asking, and no rank commits what another has dropped") {
  ballast_test::check_complaints(mpi_runner{}.run(world_size(), [](auto& self, law_log& log) {
    // Rank 0 comes when the others have given up and, very likely, are asking.
    if (self.rank() == 0) {
      for (index_t rank = 1; rank < self.num_ranks(); ++rank) { hear(rank); }
      ballast_test::sleep_for(100 * millisecond);
    }
    auto const first = self.control.vote(true, 50 * millisecond);
    if (self.rank() != 0) {
      log.expect(first.outcome == decision::undecided, "a vote was decided without rank 0");
      tell(0);
    }
    auto const settled = self.control.recall(patience);
    ballast_test::control_law::expect_same_outcome(self, log, settled, "recall");
    ballast_test::meet(self, log);
    log.expect(self.control.vote(true, patience).outcome == decision::commit, "the next vote did not commit");
    ballast_test::meet(self, log);
  }));
}

TEST_CASE("an undecided vote that another rank has committed is committed") {
  ballast_test::check_complaints(mpi_runner{}.run(world_size(), [](auto& self, law_log& log) {
    // Rank 0 waits for everyone's ballots and commits; the others do not wait for its own.
    auto const first = self.control.vote(true, self.rank() == 0 ? patience : 0);
    if (self.rank() == 0) {
      log.expect(first.outcome == decision::commit, "rank 0 did not commit: ", first.reason.message());
      for (index_t rank = 1; rank < self.num_ranks(); ++rank) { tell(rank); }
    } else {
      hear(0);
      auto const settled = first.outcome == decision::undecided ? self.control.recall(patience) : first;
      log.expect(settled.outcome == decision::commit, "recall did not find the commit: ", settled.reason.message());
    }
    ballast_test::meet(self, log);
  }));
}

TEST_CASE("ranks that call different collectives are told so") {
  if (world_size() == 1) { return; }
  ballast_test::check_complaints(mpi_runner{}.run(world_size(), [](auto& self, law_log& log) {
    std::array<std::int64_t, 1> value{1};
    std::array<std::byte, 8> bytes{};
    auto const result =
        self.rank() == 0 ? self.control.broadcast(bytes, 0, patience) : self.control.all_reduce(value, patience);
    log.expect_failure(result, {ballast::errc::disagreement}, "broadcast", "a mixed call");
    ballast_test::meet(self, log);
  }));
}

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  doctest::Context context{argc, argv};
  auto const result = context.run();
  MPI_Finalize();
  return result;
}
