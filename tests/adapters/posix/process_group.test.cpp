// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/posix/process_group.hpp>

#include "support/control_laws.hpp"
#include "support/posix_runner.hpp"
#include "support/processes.hpp"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using ballast::errc;
using ballast::posix::process_group;
using ballast::posix::process_group_options;
using ballast_test::law_log;
using ballast_test::millisecond;
using ballast_test::patience;
using ballast_test::process_exit;

namespace {

bool exists(std::string const& name) { return !ballast_test::files_of_group(name + ".").empty(); }

/// Run `body(group, log)` on ranks that have joined a group.
template <class Body>
void on_members(ballast::index_t num_ranks, Body body) {
  auto const name = ballast_test::fresh_group_name();
  ballast_test::check_complaints(
      ballast_test::run_processes(num_ranks, [&](ballast::index_t rank, process_exit, law_log& log) {
        process_group group;
        if (log.expect_ok(group.join(name, rank, num_ranks, patience), "join")) { body(group, log); }
      }));
}

}  // namespace

TEST_CASE("a group of processes obeys the laws of a control plane") {
  ballast_test::check_control_laws(ballast_test::posix_runner{});
}

TEST_CASE("join refuses impossible arguments") {
  process_group group;
  auto const invalid = make_error_code(errc::invalid_option);
  CHECK(group.join("x", 0, 0, patience).code() == invalid);
  CHECK(group.join("x", 0, 65, patience).code() == invalid);
  CHECK(group.join("x", 2, 2, patience).code() == invalid);
  CHECK(group.join("x", -1, 2, patience).code() == invalid);
  CHECK(group.join("", 0, 1, patience).code() == invalid);
  CHECK(group.join("a/b", 0, 1, patience).code() == invalid);
  CHECK_FALSE(group.joined());
}

TEST_CASE("before it has joined a group knows no rank, and after that only its own") {
  process_group group;
  CHECK_BREAKS_CONTRACT(group.is_expelled(0));
  CHECK_BREAKS_CONTRACT(group.is_live(0));
  CHECK_BREAKS_CONTRACT(group.is_lost(0));
  CHECK_BREAKS_CONTRACT(group.has_given_up(0));
  group.join(ballast_test::fresh_group_name(), 0, 1, patience).or_throw();
  CHECK(group.is_live(0));
  CHECK_FALSE(group.is_expelled(0));
  for (ballast::index_t const other : {-1, 1, 64, 1000}) {
    CHECK_BREAKS_CONTRACT(group.is_expelled(other));
    CHECK_BREAKS_CONTRACT(group.is_live(other));
    CHECK_BREAKS_CONTRACT(group.is_lost(other));
  }
#if BALLAST_CONTRACT_LEVEL >= 1
  CHECK_THROWS_WITH(static_cast<void>(group.is_live(7)), "process_group: rank 7 is not in [0, 1)");
  CHECK_THROWS_WITH(static_cast<void>(process_group{}.is_live(0)), "process_group: it has not joined a group");
#endif
  group.leave();
  CHECK_BREAKS_CONTRACT(group.is_expelled(0));
}

TEST_CASE("join names the ranks that are missing and leaves no file") {
  auto const name = ballast_test::fresh_group_name();
  ballast_test::check_complaints(ballast_test::run_processes(2, [&](ballast::index_t rank, process_exit, law_log& log) {
    process_group group;
    auto const result = group.join(name, 2 * rank, 4, 200 * millisecond);
    log.expect_failure(result, {errc::deadline_exceeded, errc::peer_lost}, "rank 1, rank 3 did not join", "join");
  }));
  CHECK_FALSE(exists(name));

  process_group alone;
  auto const result = alone.join(name, 1, 2, 50 * millisecond);
  CHECK(result.code() == make_error_code(errc::deadline_exceeded));
  CHECK(result.message().find("rank 0") != std::string::npos);
}

TEST_CASE("join clears away what a dead run has left") {
  std::string name;
  // The join of a test that runs beside this one may have cleared it away before; not time after time.
  for (int attempt = 0; attempt < 10 && (name.empty() || !exists(name)); ++attempt) {
    name = ballast_test::fresh_group_name();
    ballast_test::child_process first_run{[&](int) {
      process_group group;
      static_cast<void>(group.join(name, 0, 2, patience));
    }};
    while (!exists(name)) { ballast_test::sleep_for(millisecond); }
  }  // killed here, while it waits for rank 1
  CHECK(exists(name));
  ballast_test::check_complaints(ballast_test::run_processes(2, [&](ballast::index_t rank, process_exit, law_log& log) {
    if (rank == 0) { ballast_test::sleep_for(50 * millisecond); }  // rank 1 meets the old segment first
    process_group group;
    log.expect_ok(group.join(name, rank, 2, patience), "join");
    log.expect_ok(group.all_reduce({}, patience), "all_reduce");
  }));
  CHECK_FALSE(exists(name));
}

TEST_CASE("join refuses the name of a living group, and a group of another size") {
  auto const name = ballast_test::fresh_group_name();
  process_group_options const job{.job = 77};
  ballast_test::child_process other{[&](int report) {
    process_group group;
    static_cast<void>(group.join(name, 0, 2, patience, job));
    ballast_test::write_line(report, "joined");
  }};
  while (!exists(name)) { ballast_test::sleep_for(millisecond); }
  process_group group;
  CHECK(group.join(name, 0, 2, 50 * millisecond, job).code() == make_error_code(errc::busy));
  auto const result = group.join(name, 1, 3, patience, job);
  CHECK(result.code() == make_error_code(errc::disagreement));
  CHECK(result.message().find("expects 2 ranks, rank 1 expects 3") != std::string::npos);
  CHECK(group.join(name, 1, 2, patience, job).ok());
  CHECK(group.join(name, 1, 2, patience, job).code() == make_error_code(errc::busy));
  REQUIRE(other.finish(ballast::detail::now() + patience));
  CHECK_FALSE(exists(name));
}

TEST_CASE("a name can be used again at once") {
  auto const name = ballast_test::fresh_group_name();
  ballast_test::check_complaints(ballast_test::run_processes(3, [&](ballast::index_t rank, process_exit, law_log& log) {
    for (int i = 0; i < 20; ++i) {
      process_group group;
      if (!log.expect_ok(group.join(name, rank, 3, patience), "join")) { return; }
      log.expect_ok(group.all_reduce({}, patience), "all_reduce");
    }
  }));
}

TEST_CASE("survivors go on without an expelled rank, whose calls all fail") {
  on_members(4, [](process_group& group, law_log& log) {
    auto const before = group.membership();
    std::array<std::uint64_t, 2> const mine{static_cast<std::uint64_t>(group.rank()), 7};
    std::array<std::uint64_t, 8> all{};
    std::array<std::int64_t, 1> value{1};
    std::array<std::byte, 3> bytes{};
    if (group.rank() == 0) {  // leaves the others alone until it is out
      while (group.membership() == before) { ballast_test::sleep_for(millisecond); }
      auto const check_stale = [&](ballast::status const& result, char const* what) {
        log.expect_failure(result, {errc::stale_membership}, "rank 0 was expelled", what);
      };
      check_stale(group.all_reduce(value, patience), "all_reduce");
      check_stale(group.all_gather(mine, all, patience), "all_gather");
      check_stale(group.broadcast(bytes, 1, patience), "broadcast");
      check_stale(group.vote(true, patience).reason, "vote");
      check_stale(group.recall(patience).reason, "recall");
      check_stale(group.expel(1), "expel");
      return;
    }
    log.expect_failure(group.all_reduce(value, 100 * millisecond), {errc::deadline_exceeded}, "rank 0", "all_reduce");
    ballast_test::sleep_for(400 * millisecond);  // until everyone has missed rank 0
    log.expect_ok(group.expel(0), "expel");
    log.expect(group.membership() == before + 1, "membership is ", group.membership());
    log.expect_ok(group.all_reduce(value, patience), "all_reduce of the survivors");
    log.expect(value[0] == 3, "the survivors' sum is ", value[0]);
    log.expect_ok(group.all_gather(mine, all, patience), "all_gather of the survivors");
    log.expect(all == std::array<std::uint64_t, 8>{1, 7, 1, 7, 2, 7, 3, 7}, "all_gather of the survivors is wrong");
    log.expect(group.vote(true, patience).outcome == ballast::decision::commit, "the survivors' vote did not commit");
    log.expect_failure(group.broadcast(bytes, 0, patience), {errc::peer_lost}, "root rank 0",
                       "broadcast of the expelled");
    log.expect_ok(group.broadcast(bytes, 1, patience), "broadcast of a survivor");
  });
}

TEST_CASE("of two ranks that expel each other one stays") {
  for (int i = 0; i < 20; ++i) {
    on_members(2, [](process_group& group, law_log& log) {
      bool const stays = group.expel(1 - group.rank()).ok();
      if (stays) {
        log.expect_ok(group.all_reduce({}, patience), "all_reduce of the one that stays");
      } else {
        log.expect(group.all_reduce({}, patience).code() == make_error_code(errc::stale_membership), "both stay");
      }
      log.expect(group.membership() == 2, "membership is ", group.membership());
    });
  }
}

TEST_CASE("a rank that goes in peace is named like a dead one") {
  on_members(3, [](process_group& group, law_log& log) {
    if (group.rank() == 1) { return; }
    log.expect_failure(group.all_reduce({}, patience), {errc::peer_lost}, "rank 1", "all_reduce");
    log.expect_failure(group.vote(true, patience).reason, {errc::peer_lost}, "rank 1", "vote");
    log.expect(!group.is_live(1), "a rank that went is live");
  });
}

// The case that matters most: ranks are stopped anywhere in a vote, past the others' deadline, and resumed.
TEST_CASE("a rank that is stopped in a vote and resumed learns what the others learned") {
  auto const name = ballast_test::fresh_group_name();
  constexpr ballast::index_t num_ranks = 4;
  std::vector<ballast_test::child_process> ranks;
  for (ballast::index_t rank = 0; rank < num_ranks; ++rank) {
    ranks.emplace_back([&](int report) {
      process_group group;
      if (!group.join(name, rank, num_ranks, patience).ok()) { return; }
      for (int vote = 0; vote < 150; ++vote) {
        auto const result = group.vote(true, 10 * millisecond);
        ballast_test::write_line(report, result.outcome == ballast::decision::commit ? "commit"
                                         : result.outcome == ballast::decision::drop ? "drop"
                                                                                     : "undecided");
        ballast_test::sleep_for(millisecond / 2);
      }
    });
  }
  ballast_test::dice random{5};
  for (int stop = 0; stop < 25; ++stop) {
    auto const& victim = ranks[random.below(ranks.size())];
    victim.signal(SIGSTOP);
    ballast_test::sleep_for(static_cast<ballast::nanoseconds_t>(random.below(25)) * millisecond);
    victim.signal(SIGCONT);
    ballast_test::sleep_for(static_cast<ballast::nanoseconds_t>(random.below(10'000)) * 1000);
  }
  std::vector<std::vector<std::string>> outcomes;
  for (auto& rank : ranks) {
    REQUIRE(rank.finish(ballast::detail::now() + patience));
    outcomes.push_back(ballast_test::lines_of(rank.text()));
    CHECK(outcomes.back().size() == 150);
    CHECK(outcomes.back() == outcomes.front());
  }
  CHECK(std::ranges::count(outcomes.front(), "commit") > 0);
  CHECK(std::ranges::count(outcomes.front(), "undecided") == 0);
}

TEST_CASE("a rank that is so far behind that the others' words are gone is told so, and takes no later ones for them") {
  auto const name = ballast_test::fresh_group_name();
  ballast_test::check_complaints(ballast_test::run_processes(2, [&](ballast::index_t rank, process_exit, law_log& log) {
    process_group group;
    process_group aside;
    if (!log.expect_ok(group.join(name, rank, 2, patience), "join")) { return; }
    if (!log.expect_ok(aside.join(name + ".aside", rank, 2, patience), "join")) { return; }
    std::array<std::uint64_t, 2> all{};
    for (std::uint64_t call = 0; rank == 0 && call <= ballast::posix::detail::mails_kept; ++call) {
      std::array<std::uint64_t, 1> const mine{call};
      log.expect(!group.all_gather(mine, all, 0).ok(), "rank 1 was not there");
    }
    static_cast<void>(aside.all_reduce({}, patience));
    if (rank == 1) {
      std::array<std::uint64_t, 1> const mine{0};
      auto const result = group.all_gather(mine, all, patience);
      log.expect(result.code() == make_error_code(errc::deadline_exceeded), "code of: ", result.message());
      log.expect(result.message().find("rank 1 is late") != std::string::npos, "message: ", result.message());
    }
    static_cast<void>(aside.all_reduce({}, patience));
  }));
}

TEST_CASE("a rank that is late is named, also by one whose time is over just when another expels it") {
  auto const name = ballast_test::fresh_group_name();
  ballast_test::check_complaints(ballast_test::run_processes(3, [&](ballast::index_t rank, process_exit, law_log& log) {
    process_group end;
    if (!log.expect_ok(end.join(name, rank, 3, patience), "join")) { return; }
    for (int round = 0; round < 300; ++round) {
      process_group group;
      auto const place = ballast::detail::concat(name, '.', round);
      if (!log.expect_ok(group.join(place, rank, 3, patience), "join")) { return; }
      if (!log.expect_ok(end.all_reduce({}, patience), "begin of a round")) { return; }
      if (rank != 2) {
        // It succeeds where the other has expelled rank 2 before this rank began.
        auto const result = group.all_reduce({}, 2 * millisecond);
        log.expect(result.ok() || result.rank() >= 0, "nobody is blamed: ", result.message());
        log.expect_ok(group.expel(2), "expel");
      }
      if (!log.expect_ok(end.all_reduce({}, patience), "end of a round")) { return; }
    }
  }));
}
