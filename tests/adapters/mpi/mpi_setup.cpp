// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Control planes and transports that come into being, or do not.
#include <ballast/mpi/control.hpp>
#include <ballast/mpi/transport.hpp>

#include "adapters/mpi/mpi_ranks.hpp"
#include "support/check_complaints.hpp"
#include "support/control_laws.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>
#include <mpi.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace {

using ballast::errc;
using ballast::index_t;
using ballast_test::dice;
using ballast_test::law_log;
using ballast_test::millisecond;
using ballast_test::patience;
using ballast_test::slack;
using ballast_test::sleep_for;

// Everything that was not set up fails alike, and nothing waits.
void expect_useless(ballast::mpi::control& control, law_log& log, errc code, std::string_view fragment) {
  auto const begin = ballast::detail::now();
  auto const expect = [&](ballast::status const& result, std::string_view what) {
    log.expect_failure(result, {code}, fragment, what);
  };
  std::array<std::int64_t, 1> value{1};
  std::array<std::uint64_t, 1> const mine{1};
  std::vector<std::uint64_t> all(static_cast<std::size_t>(control.num_ranks()));
  std::array<std::byte, 3> bytes{};
  expect(control.failure(), "failure");
  expect(control.all_reduce(value, patience), "all_reduce");
  expect(control.all_gather(mine, all, patience), "all_gather");
  expect(control.broadcast(bytes, 0, patience), "broadcast");
  expect(control.regroup(patience), "regroup");
  expect(control.trouble(), "trouble");
  auto const vote = control.vote(true, patience);
  log.expect(vote.outcome == ballast::decision::drop, "a vote that was sent to nobody did not drop");
  expect(vote.reason, "vote");
  control.give_up({errc::busy, "no use"});
  log.expect(ballast::detail::now() - begin < slack, "a call waited that could never work");
}
void expect_useless(ballast::mpi::transport& transport, law_log& log, errc code, std::string_view fragment) {
  auto const begin = ballast::detail::now();
  log.expect_failure(transport.failure(), {code}, fragment, "failure");
  log.expect_failure(transport.start({}, {}), {code}, fragment, "start");
  log.expect(transport.poll() == ballast::transfer_state::idle, "a batch is open that was refused");
  log.expect_failure(transport.wait(patience), {code}, fragment, "wait");
  log.expect(ballast::detail::now() - begin < slack, "a call waited that could never work");
}

}  // namespace

TEST_CASE("a rank that does not come to the setting up makes it fail in time, and a second one works") {
  law_log log{ballast_test::world_rank()};
  auto const timeout = 200 * millisecond;
  bool const is_late = ballast_test::world_rank() == 0;
  {
    for (index_t peer = 1; is_late && peer < ballast_test::world_size(); ++peer) { ballast_test::hear(peer); }
    auto const begin = ballast::detail::now();
    ballast::mpi::control control{MPI_COMM_WORLD, {.setup_timeout = timeout}};
    auto const between = ballast::detail::now();
    ballast::mpi::transport transport{MPI_COMM_WORLD, {.setup_timeout = timeout}};
    log.expect(between - begin < timeout + slack, "a control plane took ", between - begin, " ns");
    log.expect(control.rank() == ballast_test::world_rank(), "a wrong rank");
    log.expect(control.num_ranks() == ballast_test::world_size(), "a wrong number of ranks");
    if (!is_late) {
      expect_useless(control, log, errc::deadline_exceeded, "MPI does not tell which");
      expect_useless(transport, log, errc::deadline_exceeded, "MPI does not tell which");
      ballast_test::tell(0);
    } else {
      expect_useless(control, log, errc::deadline_exceeded, "MPI does not tell which");
    }
  }
  MPI_Barrier(MPI_COMM_WORLD);
  ballast_test::check_complaints(log.complaints());
  ballast_test::on_all_ranks(
      [](auto& self, law_log& second) { ballast_test::control_law::works(self, second, "after a second setting up"); });
}

TEST_CASE("communicators that cannot be used are refused, not fatal") {
  law_log log{ballast_test::world_rank()};
  ballast::mpi::control control{MPI_COMM_NULL};
  expect_useless(control, log, errc::invalid_option, "MPI_COMM_NULL");
  ballast::mpi::transport transport{MPI_COMM_NULL};
  expect_useless(transport, log, errc::invalid_option, "MPI_COMM_NULL");
  auto const is_even = ballast_test::world_rank() % 2 == 0;
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm both = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, is_even ? 0 : 1, ballast_test::world_rank(), &half);
  MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, is_even ? 1 : 0, 7, &both);
  {
    ballast::mpi::control across{both};
    expect_useless(across, log, errc::invalid_option, "intercommunicator");
  }
  MPI_Comm_free(&both);
  MPI_Comm_free(&half);
  ballast_test::check_complaints(log.complaints());
}

TEST_CASE("impossible options of a transport are refused by name") {
  law_log log{ballast_test::world_rank()};
  ballast::mpi::transport no_bytes{MPI_COMM_WORLD, {.piece_bytes = 0}};
  expect_useless(no_bytes, log, errc::invalid_option, "pieces of 0 bytes");
  ballast::mpi::transport huge{MPI_COMM_WORLD, {.piece_bytes = (std::size_t{1} << 30) + 1}};
  expect_useless(huge, log, errc::invalid_option, "pieces of 1073741825 bytes");
  ballast::mpi::transport no_pieces{MPI_COMM_WORLD, {.pieces_in_flight = 0}};
  expect_useless(no_pieces, log, errc::invalid_option, "0 pieces in flight");
  ballast_test::check_complaints(log.complaints());
}

TEST_CASE("two models have a control plane and a transport each, on one communicator") {
  using endpoint = ballast_test::law_endpoint<ballast::mpi::control, ballast::mpi::transport>;
  law_log log{ballast_test::world_rank()};
  ballast::mpi::control first_control{MPI_COMM_WORLD};
  ballast::mpi::control second_control{MPI_COMM_WORLD};
  ballast::mpi::transport first_transport{MPI_COMM_WORLD};
  ballast::mpi::transport second_transport{MPI_COMM_WORLD};
  endpoint first{first_control, first_transport};
  endpoint second{second_control, second_transport};
  // Both have a batch with the same tags open at once; the control planes are used in another order on every rank.
  ballast_test::batch_memory of_first{first, log, 1000, 5000, 0};
  ballast_test::batch_memory of_second{second, log, 1000, 5000, 1};
  auto const batch = ballast_test::transport_law::single_message(1, 700);
  auto const first_view = of_first.view(batch);
  auto const second_view = of_second.view(batch);
  log.expect_ok(first_transport.start(first_view.sends, first_view.receives), "start of the first");
  log.expect_ok(second_transport.start(second_view.sends, second_view.receives), "start of the second");
  log.expect_ok(second_transport.wait(patience), "wait for the second");
  log.expect_ok(first_transport.wait(patience), "wait for the first");
  of_first.expect_received(batch, "the first model's batch");
  of_second.expect_received(batch, "the second model's batch");
  for (int round = 0; round < 10; ++round) {
    ballast_test::control_law::works(first, log, "the first control plane");
    if (ballast_test::world_rank() == 0) { second_control.give_up({errc::busy, "the second model alone"}); }
    log.expect_ok(first_control.trouble(), "trouble of the first after the second has given up");
    log.expect_ok(second_control.regroup(patience), "regroup of the second");
    ballast_test::control_law::works(second, log, "the second control plane");
  }
  ballast_test::check_complaints(log.complaints());
}

TEST_CASE("what a control plane has not heard is not heard by the next") {
  law_log log{ballast_test::world_rank()};
  dice own{static_cast<std::uint64_t>(ballast_test::world_rank())};
  for (int round = 0; round < 30; ++round) {
    ballast::mpi::control control{MPI_COMM_WORLD};
    ballast::mpi::transport transport{MPI_COMM_WORLD};
    ballast_test::law_endpoint<ballast::mpi::control, ballast::mpi::transport> self{control, transport};
    ballast_test::control_law::works(self, log, ballast::detail::concat("control plane ", round));
    if (!log.complaints().empty()) { break; }
    // Who votes no does not wait for the others' votes.
    for (int vote = 0; vote < 3; ++vote) { static_cast<void>(control.vote(own.below(2) == 0, millisecond)); }
    sleep_for(own.below(3) * millisecond);
  }
  ballast_test::check_complaints(log.complaints());
}

TEST_CASE("whoever needs a control plane that is no more learns so at once") {
  law_log log{ballast_test::world_rank()};
  auto const begin = ballast::detail::now();
  {
    ballast::mpi::control control{MPI_COMM_WORLD};
    std::array<std::int64_t, 1> value{1};
    auto const expect_lost = [&](ballast::status const& result, std::string_view what) {
      log.expect_failure(result, {errc::peer_lost}, "rank 0 is no more", what);
      log.expect(result.rank() == 0, "rank ", result.rank(), " is blamed for ", what);
    };
    log.expect_ok(control.all_reduce(value, patience), "the last call of all");
    // The others leave together, so that none of them leaves before another one is done.
    if (control.rank() > 0) {
      expect_lost(control.all_reduce(value, patience), "all_reduce");
      auto const vote = control.vote(true, patience);
      log.expect(vote.outcome == ballast::decision::drop, "a vote without a rank did not drop");
      expect_lost(vote.reason, "vote");
      expect_lost(control.regroup(patience), "regroup");
    }
    for (index_t peer = 2; peer < control.num_ranks() && control.rank() == 1; ++peer) { ballast_test::hear(peer); }
    for (index_t peer = 2; peer < control.num_ranks() && control.rank() == 1; ++peer) { ballast_test::tell(peer); }
    if (control.rank() > 1) {
      ballast_test::tell(1);
      ballast_test::hear(1);
    }
  }
  log.expect(ballast::detail::now() - begin < slack, "a call waited for a control plane that is no more");
  MPI_Barrier(MPI_COMM_WORLD);
  ballast_test::check_complaints(log.complaints());
}
