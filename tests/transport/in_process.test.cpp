// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/detail/clock.hpp>
#include <ballast/transport/in_process.hpp>
#include <ballast/transport/transport.hpp>

#include "support/control_laws.hpp"
#include "support/in_process_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace {

using ballast::errc;
using ballast::in_process_endpoint;
using ballast_test::in_process_runner;

}  // namespace

TEST_CASE("threads of one process obey the laws of a control plane") {
  ballast_test::check_control_laws(in_process_runner{});
}

TEST_CASE("threads of one process obey the laws of a transport") {
  ballast_test::check_transport_laws(in_process_runner{});
}

TEST_CASE("an expelled rank is refused by every call, and the membership grows") {
  ballast::in_process_group group{3};
  auto const before = group.endpoint(0).membership();
  group.expel(2);
  CHECK(group.endpoint(0).membership() > before);

  auto& expelled = group.endpoint(2);
  std::array<std::int64_t, 1> value{};
  std::array<std::uint64_t, 1> mine{};
  std::array<std::uint64_t, 3> all{};
  std::array<std::byte, 1> bytes{};
  auto const stale = make_error_code(errc::stale_membership);
  CHECK(expelled.all_reduce(value, ballast_test::patience).code() == stale);
  CHECK(expelled.all_gather(mine, all, ballast_test::patience).code() == stale);
  CHECK(expelled.broadcast(bytes, 0, ballast_test::patience).code() == stale);
  CHECK(expelled.vote(true, ballast_test::patience).reason.code() == stale);
  CHECK(expelled.start({}, {}).code() == stale);
}

TEST_CASE("a rank expels another, as a process does") {
  ballast::in_process_group group{3};
  auto& self = group.endpoint(0);
  auto const before = self.membership();
  for (int again = 0; again < 2; ++again) { CHECK(self.expel(2).ok()); }
  CHECK(self.membership() == before + 1);
  CHECK(self.is_expelled(2));
  CHECK_FALSE(self.is_expelled(1));
  CHECK(group.endpoint(1).expel(2).ok());
  for (ballast::index_t const none : {0, -1, 3}) {
    CHECK(self.expel(none).code() == make_error_code(errc::invalid_option));
  }
  CHECK(group.endpoint(2).expel(0).code() == make_error_code(errc::stale_membership));
}

TEST_CASE("ranks that call different collectives are told so") {
  ballast::in_process_group group{2};
  std::array<ballast::status, 2> results;
  group.run([&](in_process_endpoint& self) {
    std::array<std::int64_t, 1> value{};
    results[static_cast<std::size_t>(self.rank())] = self.rank() == 0 ? self.all_reduce(value, ballast_test::patience)
                                                                      : self.vote(true, ballast_test::patience).reason;
  });
  for (auto const& result : results) {
    CHECK(result.code() == make_error_code(errc::disagreement));
    CHECK(result.message().find("vote") != std::string::npos);
    CHECK(result.message().find("all_reduce") != std::string::npos);
  }
}

TEST_CASE("a second batch is refused while one is open") {
  ballast::in_process_group group{2};
  auto& self = group.endpoint(0);
  REQUIRE(self.start({}, {}).ok());
  CHECK(self.start({}, {}).code() == make_error_code(errc::busy));
  CHECK(self.wait(0).ok());
  CHECK(self.start({}, {}).ok());
  CHECK(self.wait(0).ok());
}

TEST_CASE("who waits for bytes hears at once that another rank votes no in the vote that comes next") {
  ballast::in_process_group group{2};
  group.run([](in_process_endpoint& self) {
    auto const start = ballast::detail::now();
    if (self.rank() == 0) {
      std::array<std::byte, 8> bytes{};
      std::array<ballast::segment, 1> const segments{{{bytes.data(), bytes.size()}}};
      std::array<ballast::incoming_message, 1> const receives{
          {{.peer = 1, .tag = 7, .segments = segments, .source = {}}}};
      REQUIRE(self.start({}, receives).ok());
      auto const result = self.wait(ballast_test::patience);
      CHECK(result.code() == make_error_code(errc::transport_failed));
      CHECK(result.message().find("rank 1 voted no") != std::string::npos);
      CHECK(result.rank() == 1);
    }
    CHECK(self.vote(self.rank() == 0, ballast_test::patience).outcome == ballast::decision::drop);
    CHECK(ballast::detail::now() - start < ballast_test::patience / 2);
  });
}

TEST_CASE("what a batch had to offer ends with it") {
  ballast::in_process_group group{2};
  std::array<std::byte, 8> from{};
  std::array<std::byte, 8> to{};
  std::array<ballast::segment, 1> const sent{{{from.data(), from.size()}}};
  std::array<ballast::segment, 1> const expected{{{to.data(), to.size()}}};
  std::array<ballast::outgoing_message, 1> const sends{{{.peer = 1, .tag = 7, .segments = sent}}};
  std::array<ballast::incoming_message, 1> const receives{{{.peer = 0, .tag = 7, .segments = expected, .source = {}}}};
  REQUIRE(group.endpoint(0).start(sends, {}).ok());
  CHECK(group.endpoint(0).wait(0).code() == make_error_code(errc::deadline_exceeded));
  REQUIRE(group.endpoint(1).start({}, receives).ok());
  CHECK(group.endpoint(1).poll() == ballast::transfer_state::pending);
  CHECK(group.endpoint(1).wait(0).code() == make_error_code(errc::deadline_exceeded));
}

TEST_CASE("whoever hears of a no hears why, and where it began") {
  ballast::in_process_group group{3};
  std::array<ballast::status, 3> results;
  group.run([&](in_process_endpoint& self) {
    if (self.rank() == 1) {
      std::array<std::byte, 8> bytes{};
      std::array<ballast::segment, 1> const segments{{{bytes.data(), bytes.size()}}};
      std::array<ballast::incoming_message, 1> const receives{
          {{.peer = 2, .tag = 7, .segments = segments, .source = {}}}};
      REQUIRE(self.start({}, receives).ok());
      CHECK(self.wait(1'000'000).code() == make_error_code(errc::deadline_exceeded));
    }
    auto vote = self.vote(self.rank() != 1, ballast_test::patience);
    CHECK(vote.outcome == ballast::decision::drop);
    results[static_cast<std::size_t>(self.rank())] = std::move(vote.reason);
    // The batch is forgotten with its vote.
    CHECK(self.vote(self.rank() != 1, ballast_test::patience).reason.rank() == 1);
  });
  for (auto const& result : results) {
    CHECK(result.code() == make_error_code(errc::deadline_exceeded));
    CHECK(result.message() == "rank 1 voted no: in_process: rank 1 waited in vain for a message of rank 2");
    CHECK(result.rank() == 2);
  }
}

TEST_CASE("a rank that has a reason of its own stands before those that gave up because of it") {
  ballast::in_process_group group{4};
  group.endpoint(0).give_up({errc::transport_failed, "rank 2 has given up", 2});
  CHECK(group.endpoint(1).trouble().rank() == 2);
  group.endpoint(2).give_up({errc::out_of_memory, "no staging"});
  CHECK(group.endpoint(1).trouble().message() == "in_process: rank 2 has given up: no staging");
  CHECK(group.endpoint(1).trouble().rank() == 2);
  group.kill(3);
  CHECK(group.endpoint(1).trouble().message() == "in_process: rank 3 is dead");
  CHECK(group.endpoint(1).trouble().rank() == 3);
}

TEST_CASE("a regroup blames neither who was there a moment before nor who waits") {
  ballast::in_process_group group{3};
  std::array<ballast::status, 3> results;
  group.run([&](in_process_endpoint& self) {
    if (self.rank() == 2) { return; }
    results[static_cast<std::size_t>(self.rank())] =
        self.regroup((100 + 200 * self.rank()) * ballast_test::millisecond);
  });
  for (std::size_t rank : {0u, 1u}) {
    CHECK(results[rank].message() == "regroup: rank 2 did not come in time");
    CHECK(results[rank].rank() == 2);
  }
  // Now rank 1 is alone, and rank 2 is the one that has never come.
  auto const alone = group.endpoint(1).regroup(0);
  CHECK(alone.message() == "regroup: rank 0, rank 2 did not come in time");
  CHECK(alone.rank() == 2);
}

TEST_CASE("ranks that wait in a regroup need not wait for one that is shut out meanwhile") {
  ballast::in_process_group group{3};
  std::array<ballast::status, 3> results;
  std::array<ballast::status, 3> afterwards;
  group.run([&](in_process_endpoint& self) {
    if (self.rank() == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds{100});
      group.expel(2);
      return;
    }
    auto const rank = static_cast<std::size_t>(self.rank());
    results[rank] = self.regroup(ballast_test::patience);
    std::array<std::int64_t, 1> ones{1};
    afterwards[rank] = self.all_reduce(ones, ballast_test::patience);
    CHECK(ones[0] == 2);
  });
  for (auto const& result : results) { CHECK(result.message() == ""); }
  for (auto const& result : afterwards) { CHECK(result.message() == ""); }
  // One that is shut out while it waits is told so.
  group.run([&](in_process_endpoint& self) {
    if (self.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds{100});
      group.expel(1);
      results[0] = self.regroup(ballast_test::patience);
    } else if (self.rank() == 1) {
      results[1] = self.regroup(ballast_test::patience);
    }
  });
  CHECK(results[0].ok());
  CHECK(results[1].code() == errc::stale_membership);
}

TEST_CASE("a rank whose body throws is dead at once, and run throws what came first") {
  ballast::in_process_group group{3};
  auto const start = ballast::detail::now();
  auto const run = [&] {
    group.run([](in_process_endpoint& self) {
      if (self.rank() == 2) { throw std::runtime_error{"the disk is full"}; }
      std::array<std::int64_t, 1> value{};
      self.all_reduce(value, ballast_test::patience).or_throw();
    });
  };
  CHECK_THROWS_WITH(run(), "the disk is full");
  CHECK(ballast::detail::now() - start < ballast_test::patience / 2);
  // The others have thrown because of it, and are dead, too.
  CHECK(group.endpoint(0).trouble().message() == "in_process: rank 2 is dead");
}

TEST_CASE("a group of no ranks, or fewer, breaks the contract before it has room for them") {
  CHECK_BREAKS_CONTRACT(ballast::in_process_group{0});
  CHECK_BREAKS_CONTRACT(ballast::in_process_group{-1});
#if BALLAST_CONTRACT_LEVEL >= 1
  CHECK_THROWS_WITH(ballast::in_process_group{-1}, doctest::Contains("in_process_group: number of ranks -1"));
#endif
}
