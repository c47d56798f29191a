// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Groups of processes that have come out of step, and how they come back.
#include <ballast/posix/process_group.hpp>

#include "support/check_complaints.hpp"
#include "support/control_laws.hpp"
#include "support/posix_runner.hpp"
#include "support/processes.hpp"

#include <doctest/doctest.h>
#include <signal.h>

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using ballast::decision;
using ballast::errc;
using ballast::posix::process_group;
using ballast_test::child_process;
using ballast_test::dice;
using ballast_test::law_log;
using ballast_test::millisecond;
using ballast_test::patience;
using ballast_test::sleep_for;
using ballast_test::write_line;

namespace {

/// What the laws ask of an endpoint, as far as these tests need it.
struct member {
  process_group& control;
  [[nodiscard]] ballast::index_t rank() const { return control.rank(); }
  [[nodiscard]] ballast::index_t num_ranks() const { return control.num_ranks(); }
};

/// Run `body(group, log)` on ranks that have joined a group and stay until all are done.
template <class Body>
void on_members(ballast::index_t num_ranks, Body body) {
  ballast_test::check_complaints(
      ballast_test::posix_runner{}.run(num_ranks, [&](auto& self, law_log& log) { body(self.control, log); }));
}

/// Calls of every kind, late by up to twice the deadline; what they return is not of interest.
void make_random_calls(process_group& group, dice& random, std::vector<std::string>* outcomes) {
  auto const timeout = 8 * millisecond;
  auto const count = random.below(6);
  for (int i = 0; i < count; ++i) {
    if (random.below(3) == 0) { sleep_for(random.below(16) * millisecond); }
    std::vector<std::int64_t> values(1 + random.below(std::size_t{3000}), -1'000'000);
    std::array<std::uint64_t, 1> const mine{1'000'000};
    std::vector<std::uint64_t> all(static_cast<std::size_t>(group.num_ranks()));
    std::array<std::byte, 3> bytes{};
    switch (random.below(6)) {
      case 0: static_cast<void>(group.all_reduce(values, timeout)); break;
      case 1: static_cast<void>(group.all_gather(mine, all, timeout)); break;
      case 2: static_cast<void>(group.broadcast(bytes, random.below(group.num_ranks()), timeout)); break;
      case 3:
        if (random.below(4) == 0) { group.give_up({errc::transport_failed, "a test", group.num_ranks() - 1}); }
        break;
      default: {
        auto result = group.vote(random.below(3) != 0, timeout);
        if (result.outcome == decision::undecided) { result = group.recall(timeout); }
        if (outcomes != nullptr && result.outcome == decision::undecided) { outcomes->push_back("undecided"); }
      }
    }
  }
}

[[nodiscard]] bool heal(process_group& group, law_log& log, std::string_view when) {
  return log.expect_ok(group.regroup(patience), when);
}

}  // namespace

TEST_CASE("after any mix of late, missed and failed calls one regroup brings all ranks back") {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    on_members(seed % 2 == 0 ? 3 : 5, [seed](process_group& group, law_log& log) {
      dice own{seed * 100 + static_cast<std::uint64_t>(group.rank())};
      member self{group};
      for (int round = 0; round < 6; ++round) {
        std::vector<std::string> undecided;
        make_random_calls(group, own, &undecided);
        log.expect(undecided.empty(), "a vote was undecided");
        if (!heal(group, log, "regroup")) { return; }
        for (int repeat = 0; repeat < 2; ++repeat) {
          ballast_test::control_law::works(self, log, ballast::detail::concat("after regroup ", round));
        }
        if (!log.complaints().empty()) { return; }
        ballast_test::meet(self, log);  // nobody begins to be late before the others are done
      }
    });
  }
}

// Every rank numbers its votes for itself, counts calls for itself, and is stopped anywhere, in regroups too.
TEST_CASE("ranks that are stopped anywhere regroup, and no vote splits") {
  constexpr ballast::index_t num_ranks = 4;
  auto const name = ballast_test::fresh_group_name();
  std::vector<child_process> ranks;
  for (ballast::index_t rank = 0; rank < num_ranks; ++rank) {
    ranks.emplace_back([&](int report) {
      process_group group;
      if (!group.join(name, rank, num_ranks, patience).ok()) { return; }
      std::uint64_t healed = 0;
      std::uint64_t good_rounds = 0;
      auto const end = ballast::detail::now() + 4'000 * millisecond;
      for (bool is_over = false; !is_over && ballast::detail::now() < end + patience;) {
        std::array<std::int64_t, 1> value{1};
        bool good = group.all_reduce(value, 10 * millisecond).ok();
        if (good && value[0] != num_ranks) { write_line(report, "wrong sum"); }
        std::array<std::uint64_t, 2> const mine{good_rounds, ballast::detail::now() > end ? 1u : 0u};
        std::array<std::uint64_t, 2 * num_ranks> all{};
        if (good) { good = group.all_gather(mine, all, 10 * millisecond).ok(); }
        auto const vote = group.vote(good, 10 * millisecond);
        if (vote.outcome == decision::undecided) { write_line(report, "undecided: " + vote.reason.message()); }
        if (vote.outcome != decision::commit) {
          group.give_up(vote.reason);
          while (!group.regroup(30 * millisecond).ok() && ballast::detail::now() < end + patience) {}
          ++healed;
          continue;
        }
        is_over = true;  // on all ranks or on none
        for (std::size_t r = 0; r < num_ranks; ++r) {
          if (all[2 * r] != good_rounds) {
            write_line(report, ballast::detail::concat("a vote has split: ", all[2 * r], " and ", good_rounds));
          }
          is_over = is_over && all[2 * r + 1] != 0;
        }
        ++good_rounds;
      }
      write_line(report, good_rounds > 10 && healed > 2 ? "worked" : "did too little");
    });
  }
  dice random{5};
  for (int stop = 0; stop < 60; ++stop) {
    auto const& victim = ranks[random.below(ranks.size())];
    victim.signal(SIGSTOP);
    sleep_for(static_cast<ballast::nanoseconds_t>(random.below(stop % 5 == 0 ? 120 : 25)) * millisecond);
    victim.signal(SIGCONT);
    sleep_for(static_cast<ballast::nanoseconds_t>(random.below(20'000)) * 1000);
  }
  for (auto& rank : ranks) {
    REQUIRE(rank.finish(ballast::detail::now() + patience));
    CHECK(rank.text() == "worked\n");
  }
}

TEST_CASE("a regroup fails at once for a dead rank, and works without it once it is expelled") {
  ballast_test::check_complaints(ballast_test::posix_runner{}.run(4, [](auto& self, law_log& log) {
    auto& group = self.control;
    ballast_test::meet(self, log);
    if (self.rank() == 2) {
      self.die();
      return;
    }
    auto const begin = ballast::detail::now();
    auto result = group.regroup(patience);
    log.expect_failure(result, {errc::peer_lost}, "rank 2", "regroup with a dead rank");
    log.expect(result.rank() == 2, "rank ", result.rank(), " is blamed");
    log.expect(ballast::detail::now() - begin < ballast_test::slack, "a dead rank was noticed too late");
    result = group.trouble();
    log.expect_failure(result, {errc::peer_lost}, "rank 2", "trouble with a dead rank");
    log.expect(result.rank() == 2, "rank ", result.rank(), " is the trouble");
    sleep_for(300 * millisecond);  // until everyone has seen that
    log.expect_ok(group.expel(2), "expel");
    log.expect_ok(group.regroup(patience), "regroup of the survivors");
    log.expect_ok(group.trouble(), "trouble of the survivors");
    std::array<std::int64_t, 1> value{1};
    log.expect_ok(group.all_reduce(value, patience), "all_reduce of the survivors");
    log.expect(value[0] == 3, "the survivors' sum is ", value[0]);
    log.expect(group.vote(true, patience).outcome == decision::commit, "the survivors' vote did not commit");
  }));
}

TEST_CASE("whoever waits for a rank that gives up hears of it in milliseconds, and why") {
  on_members(4, [](process_group& group, law_log& log) {
    member self{group};
    std::array<std::int64_t, 1> value{1};
    auto const at_once = [&](auto call, char const* what) {
      auto const begin = ballast::detail::now();
      ballast::status const result = call();
      log.expect_failure(result, {errc::deadline_exceeded}, "rank 2 has given up because rank 1 was late", what);
      log.expect(result.rank() == 1, what, " blames rank ", result.rank());
      log.expect(ballast::detail::now() - begin < patience / 2, what, " waited");
    };
    for (int round = 0; round < 2; ++round) {
      // A call that rank 2 has made before still succeeds, also for those that come to it later.
      if (group.rank() == 3) { sleep_for(50 * millisecond); }
      value[0] = 1;
      log.expect_ok(group.all_reduce(value, patience), "a call that all have made");
      if (group.rank() == 2) {
        group.give_up({errc::deadline_exceeded, "late", 1});
        group.give_up({errc::peer_lost, "the first reason stands", 3});
        log.expect_failure(group.all_reduce(value, patience), {errc::deadline_exceeded}, "must regroup first",
                           "a call after giving up");
        log.expect_failure(group.trouble(), {errc::deadline_exceeded}, "rank 1 was late", "its own trouble");
      } else if (group.rank() == 3) {
        at_once([&] { return group.vote(true, patience).reason; }, "vote");
      } else {
        sleep_for(20 * millisecond * round);
        at_once([&] { return group.all_reduce(value, patience); }, "all_reduce");
        at_once([&] { return group.trouble(); }, "trouble");
      }
      if (!heal(group, log, "regroup")) { return; }
      log.expect_ok(group.trouble(), "trouble after the regroup");
      ballast_test::control_law::works(self, log, "after the regroup");
    }
  });
}

TEST_CASE("a rank that regroups makes no further call, so the others' fail at once") {
  on_members(3, [](process_group& group, law_log& log) {
    member self{group};
    std::array<std::int64_t, 1> value{1};
    if (group.rank() != 0) {
      auto const begin = ballast::detail::now();
      log.expect_failure(group.all_reduce(value, patience), {errc::transport_failed}, "rank 0 regroups", "all_reduce");
      log.expect(ballast::detail::now() - begin < patience / 2, "all_reduce waited");
    }
    if (!heal(group, log, "regroup")) { return; }
    ballast_test::control_law::works(self, log, "after the regroup");
  });
}

TEST_CASE("an impatient rank ends no other rank's regroup") {
  on_members(3, [](process_group& group, law_log& log) {
    member self{group};
    if (group.rank() == 0) {
      for (int i = 0; i < 5; ++i) {
        log.expect_failure(group.regroup(20 * millisecond), {errc::deadline_exceeded}, "rank 2", "impatient regroup");
      }
    } else if (group.rank() == 2) {
      sleep_for(400 * millisecond);
    }
    if (!heal(group, log, "regroup")) { return; }
    ballast_test::control_law::works(self, log, "after the regroup");
  });
}

TEST_CASE("a rank whose regroup failed makes no calls until one succeeds") {
  on_members(2, [](process_group& group, law_log& log) {
    member self{group};
    if (group.rank() == 0) {
      auto const result = group.regroup(20 * millisecond);
      log.expect_failure(result, {errc::deadline_exceeded}, "rank 1", "regroup alone");
      log.expect(result.rank() == 1, "rank ", result.rank(), " is blamed");
      auto const vote = group.vote(true, patience);
      log.expect_failure(vote.reason, {errc::transport_failed}, "must regroup first", "vote");
      log.expect(vote.outcome == decision::drop, "a vote nobody heard of did not drop");
      log.expect(!group.trouble().ok(), "no trouble");
    } else {
      sleep_for(100 * millisecond);
    }
    if (!heal(group, log, "regroup")) { return; }
    ballast_test::control_law::works(self, log, "after the regroup");
  });
}

TEST_CASE("the largest timeout is never over, and none is over at once") {
  constexpr auto never = std::numeric_limits<ballast::nanoseconds_t>::max();
  auto const name = ballast_test::fresh_group_name();
  ballast_test::check_complaints(
      ballast_test::run_processes(2, [&](ballast::index_t rank, ballast_test::process_exit, law_log& log) {
        if (rank == 1) { sleep_for(50 * millisecond); }
        process_group group;
        if (!log.expect_ok(group.join(name, rank, 2, never), "join")) { return; }
        std::array<std::int64_t, 1> value{1};
        std::array<std::byte, 1> bytes{};
        std::array<std::uint64_t, 2> all{};
        std::array<std::uint64_t, 1> const mine{1};
        auto const late = [&] {
          if (rank == 1) { sleep_for(20 * millisecond); }
        };
        late();
        log.expect_ok(group.all_reduce(value, never), "all_reduce");
        late();
        log.expect_ok(group.all_gather(mine, all, never), "all_gather");
        late();
        log.expect_ok(group.broadcast(bytes, 1, never), "broadcast");
        late();
        log.expect(group.vote(true, never).outcome == decision::commit, "vote did not commit");
        late();
        log.expect_ok(group.regroup(never), "regroup");
        log.expect_ok(group.all_reduce(value, patience), "all_reduce");
        if (rank == 0) {
          auto const begin = ballast::detail::now();
          log.expect(!group.all_reduce(value, std::numeric_limits<ballast::nanoseconds_t>::min()).ok(), "no failure");
          log.expect(!group.regroup(-1).ok(), "no failure");
          log.expect(ballast::detail::now() - begin < ballast_test::slack, "a negative timeout is long");
        } else {
          sleep_for(100 * millisecond);
        }
        log.expect_ok(group.regroup(patience), "regroup");
        log.expect_ok(group.all_reduce(value, patience), "all_reduce");
      }));
}
