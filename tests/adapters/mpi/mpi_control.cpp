// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Votes that end unlike, ranks that leave, and how all come back.
#include <ballast/mpi/control.hpp>

#include "adapters/mpi/mpi_ranks.hpp"
#include "support/check_complaints.hpp"
#include "support/control_laws.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace {

using ballast::decision;
using ballast::errc;
using ballast::index_t;
using ballast::vote_result;
using ballast::detail::concat;
using ballast_test::dice;
using ballast_test::hear;
using ballast_test::law_log;
using ballast_test::millisecond;
using ballast_test::on_all_ranks;
using ballast_test::patience;
using ballast_test::slack;
using ballast_test::sleep_for;
using ballast_test::tell;
using ballast_test::control_law::expect_same_outcome;
using ballast_test::control_law::works;

template <class Endpoint>
void tell_all(Endpoint& self) {
  for (index_t rank = 0; rank < self.num_ranks(); ++rank) {
    if (rank != self.rank()) { tell(rank); }
  }
}
template <class Endpoint>
void hear_all(Endpoint& self) {
  for (index_t rank = 0; rank < self.num_ranks(); ++rank) {
    if (rank != self.rank()) { hear(rank); }
  }
}

template <class Endpoint>
[[nodiscard]] ballast::status sum(Endpoint& self, ballast::nanoseconds_t timeout) {
  std::array<std::int64_t, 1> value{1};
  return self.control.all_reduce(value, timeout);
}

// One regroup by all, and everything works.
template <class Endpoint>
void come_back(Endpoint& self, law_log& log) {
  if (log.expect_ok(self.control.regroup(patience), "regroup")) { works(self, log, "after the regroup"); }
}

}  // namespace

TEST_CASE("an undecided vote is settled by asking, and no rank commits what another has dropped") {
  on_all_ranks([](auto& self, law_log& log) {
    // Rank 0 comes when the others have given up and, very likely, are asking.
    if (self.rank() == 0) {
      hear_all(self);
      sleep_for(100 * millisecond);
    }
    auto first = self.control.vote(true, 50 * millisecond);
    if (self.rank() != 0) {
      log.expect(first.outcome != decision::commit, "a vote was committed without rank 0");
      tell(0);
    }
    auto const settled = self.control.recall(patience);
    expect_same_outcome(self, log, settled, "recall");
    log.expect(settled.reason.rank() >= 0, "nobody is blamed: ", settled.reason.message());
    ballast_test::meet(self, log);
    log.expect(self.control.vote(true, patience).outcome == decision::commit, "the next vote did not commit");
    ballast_test::meet(self, log);
  });
}

TEST_CASE("an undecided vote that another rank has committed is committed") {
  on_all_ranks([](auto& self, law_log& log) {
    // Rank 0 waits for everyone's ballots and commits; the others do not wait for its own.
    auto const first = self.control.vote(true, self.rank() == 0 ? patience : 0);
    if (self.rank() == 0) {
      log.expect(first.outcome == decision::commit, "rank 0 did not commit: ", first.reason.message());
      tell_all(self);
    } else {
      hear(0);
      auto const settled = first.outcome == decision::undecided ? self.control.recall(patience) : first;
      log.expect(settled.outcome == decision::commit, "recall did not find the commit: ", settled.reason.message());
    }
    ballast_test::meet(self, log);
  });
}

TEST_CASE("a rank that votes when the others have left drops at once") {
  for (int const leaving : {0, 1, 2}) {
    CAPTURE(leaving);
    on_all_ranks([leaving](auto& self, law_log& log) {
      // The others have voted, or not even that, and regroup or have given up; rank 0 knows nothing of it yet.
      if (self.rank() == 0) {
        hear_all(self);
        auto const begin = ballast::detail::now();
        auto vote = self.control.vote(true, patience);
        if (vote.outcome == decision::undecided) { vote = self.control.recall(patience); }
        log.expect(vote.outcome == decision::drop, "a late vote did not drop: ", vote.reason.message());
        log.expect(vote.reason.rank() >= 0, "nobody is named: ", vote.reason.message());
        log.expect(ballast::detail::now() - begin < slack, "a late vote waited");
      } else {
        if (leaving < 2) {
          // Undecided, or dropped where all others had left already.
          log.expect(self.control.vote(true, millisecond).outcome != decision::commit, "committed without rank 0");
          log.expect(self.control.recall(millisecond).outcome != decision::commit, "recalled without rank 0");
        }
        if (leaving != 1) { self.control.give_up({errc::deadline_exceeded, "rank 0 is late"}); }
        tell(0);
      }
      log.expect_ok(self.control.regroup(patience), "regroup");
      if (self.rank() != 0 && leaving < 2) {
        // Who could not settle the vote in time can now.
        auto const settled = self.control.recall(patience);
        log.expect(settled.outcome == decision::drop, "recall after the regroup: ", settled.reason.message());
        log.expect(settled.reason.rank() >= 0, "nobody is blamed: ", settled.reason.message());
      }
      works(self, log, "after the regroup");
    });
  }
}

TEST_CASE("a vote is told of by its number, over later votes and regroups") {
  for (int const later : {0, 1, 3, 40}) {
    CAPTURE(later);
    on_all_ranks([later](auto& self, law_log& log) {
      // Rank 1 does not see the commit of the first vote. The others make `later` more that it knows nothing of.
      bool const knows = self.rank() != 1;
      auto const first = self.control.vote(true, knows ? patience : -1);
      if (knows) {
        log.expect(first.outcome == decision::commit, "the first vote: ", first.reason.message());
        for (int vote = 0; vote < later; ++vote) {
          log.expect(self.control.vote(false, patience).outcome == decision::drop, "a vote against did not drop");
        }
      }
      if (log.expect_ok(self.control.regroup(patience), "regroup") && !knows && first.outcome != decision::commit) {
        auto const settled = self.control.recall(patience);
        log.expect(settled.outcome == decision::commit, "recall after the regroup: ", settled.reason.message());
      }
      works(self, log, "after the regroup");
    });
  }
}

TEST_CASE("recall is answered inside a regroup, by what a rank that leaves has said, and while it looks for trouble") {
  for (int const where : {0, 1, 2}) {
    CAPTURE(where);
    on_all_ranks([where](auto& self, law_log& log) {
      auto const first = self.control.vote(true, self.rank() == 1 ? -1 : patience);
      if (self.rank() == 1) {
        hear_all(self);
        auto const settled = first.outcome == decision::undecided ? self.control.recall(patience) : first;
        log.expect(settled.outcome == decision::commit, "recall did not find the commit: ", settled.reason.message());
        tell_all(self);
      } else {
        log.expect(first.outcome == decision::commit, "the first vote: ", first.reason.message());
        if (where == 0) { self.control.give_up({errc::busy, "elsewhere"}); }
        tell(1);
        if (where == 2) {
          int heard = 0;
          while (heard == 0) {
            static_cast<void>(self.control.trouble());
            sleep_for(millisecond);
            MPI_Iprobe(1, 0, MPI_COMM_WORLD, &heard, MPI_STATUS_IGNORE);
          }
        }
        if (where != 1) { hear(1); }
      }
      log.expect_ok(self.control.regroup(patience), "regroup");
      if (where == 1 && self.rank() != 1) { hear(1); }
      works(self, log, "after the regroup");
    });
  }
}

TEST_CASE("a completed call succeeds although a rank has given up since, and the next fails at once") {
  on_all_ranks([](auto& self, law_log& log) {
    auto const quitter = self.num_ranks() - 1;
    if (self.rank() == quitter) {
      static_cast<void>(sum(self, -1));  // its part is on its way
      self.control.give_up({errc::out_of_memory, "no staging"});
      tell_all(self);
    } else {
      hear(quitter);
      auto const begin = ballast::detail::now();
      log.expect_ok(sum(self, patience), "the call that all have come to");
      auto const next = sum(self, patience);
      log.expect_failure(next, {errc::out_of_memory}, concat("rank ", quitter, " has given up: no staging"),
                         "the next");
      log.expect(next.rank() == quitter, "rank ", next.rank(), " is blamed");
      auto const vote = self.control.vote(true, patience);
      log.expect(vote.outcome == decision::drop, "a vote that a rank has left did not drop");
      log.expect(vote.reason.rank() == quitter, "rank ", vote.reason.rank(), " is blamed for the vote");
      log.expect(ballast::detail::now() - begin < slack, "a call waited for a rank that had given up");
    }
    come_back(self, log);
  });
}

TEST_CASE("trouble is known without a call, and over with the regroup") {
  on_all_ranks([](auto& self, law_log& log) {
    log.expect_ok(self.control.trouble(), "trouble before there is any");
    ballast_test::meet(self, log);
    auto const quitter = 0;
    if (self.rank() == quitter) {
      self.control.give_up({});
      tell_all(self);
    } else {
      hear(quitter);
      auto const deadline = ballast::detail::now() + slack;
      while (self.control.trouble().ok() && ballast::detail::now() < deadline) { sleep_for(millisecond); }
    }
    auto const trouble = self.control.trouble();
    log.expect_failure(trouble, {errc::transport_failed}, "rank 0 has given up", "trouble");
    log.expect(trouble.rank() == quitter, "rank ", trouble.rank(), " is blamed");
    come_back(self, log);
  });
}

TEST_CASE("a rank whose regroup failed is heard by those for whom it ended well") {
  on_all_ranks([](auto& self, law_log& log) {
    // Nobody waits long enough but, maybe, the last to come. Then all come again.
    auto const result = self.control.regroup(self.rank() * millisecond / 4);
    if (!result.ok()) {
      log.expect_failure(result, {errc::deadline_exceeded}, "rank ", "a short regroup");
      log.expect(!sum(self, patience).ok(), "a call after a failed regroup");
      log.expect(!self.control.trouble().ok(), "no trouble after a failed regroup");
    } else if (self.num_ranks() > 1) {
      auto const begin = ballast::detail::now();
      static_cast<void>(sum(self, patience));
      log.expect(ballast::detail::now() - begin < slack, "a call waited for a rank whose regroup had failed");
    }
    MPI_Barrier(MPI_COMM_WORLD);
    come_back(self, log);
  });
}

TEST_CASE("a rank that sends slowly is the only one that is late") {
  if (ballast_test::world_size() < 3) { return; }
  on_all_ranks([](auto& self, law_log& log) {
    // MPI has announced rank 1's part and cannot move it while that rank makes no call; the others' parts come later.
    std::vector<std::int64_t> values(200'000, 1);
    MPI_Barrier(MPI_COMM_WORLD);
    if (self.rank() == 1) {
      static_cast<void>(self.control.all_reduce(values, -1));
      sleep_for(1'200 * millisecond);
    } else {
      if (self.rank() == 2) { sleep_for(100 * millisecond); }
      auto const result = self.control.all_reduce(values, 800 * millisecond);
      log.expect_failure(result, {errc::deadline_exceeded}, "all_reduce: rank 1 did not", "a call with a slow rank");
      log.expect(result.rank() == 1, "rank ", result.rank(), " is blamed");
    }
    come_back(self, log);
  });
}

TEST_CASE("ranks that call different collectives are told so") {
  on_all_ranks([](auto& self, law_log& log) {
    std::array<std::byte, 8> bytes{};
    auto const result = self.rank() == 0 ? self.control.broadcast(bytes, 0, patience) : sum(self, patience);
    log.expect_failure(result, {errc::disagreement}, "broadcast", "a mixed call");
    log.expect(result.rank() == (self.rank() == 0 ? 1 : 0), "rank ", result.rank(), " is blamed");
    ballast_test::meet(self, log);
    auto const rooted = self.control.broadcast(bytes, self.rank() == 0 ? 0 : 1, patience);
    log.expect_failure(rooted, {errc::disagreement}, "root 1", "two roots");
    ballast_test::meet(self, log);
  });
}

TEST_CASE("what cannot be right is refused, and the ranks stay in step") {
  on_all_ranks([](auto& self, law_log& log) {
    std::array<std::byte, 8> bytes{};
    std::array<std::uint64_t, 1> const mine{};
    std::array<std::uint64_t, 1> all{};
    log.expect_failure(self.control.broadcast(bytes, self.num_ranks(), patience), {errc::invalid_option},
                       concat("root ", self.num_ranks()), "a root out of range");
    log.expect_failure(self.control.broadcast(bytes, -1, patience), {errc::invalid_option}, "root -1", "a root of -1");
    log.expect_failure(self.control.all_gather(mine, all, patience), {errc::invalid_option}, "all_gather",
                       "a gather into too little");
    log.expect(self.control.recall(patience).outcome == decision::drop, "a recall before any vote");
    works(self, log, "after refused calls");
  });
}

TEST_CASE("the longest timeout is never over") {
  on_all_ranks([](auto& self, law_log& log) {
    constexpr auto never = std::numeric_limits<ballast::nanoseconds_t>::max();
    if (self.rank() == 0) { sleep_for(20 * millisecond); }
    log.expect_ok(sum(self, never), "all_reduce");
    if (self.rank() == 0) { sleep_for(20 * millisecond); }
    log.expect(self.control.vote(true, never).outcome == decision::commit, "vote");
    if (self.rank() == 0) { sleep_for(20 * millisecond); }
    log.expect_ok(self.control.regroup(never), "regroup");
    log.expect(self.control.recall(never).outcome == decision::commit, "recall");
  });
}

namespace {

// What an engine does: calls and votes until one fails, then it may settle a vote, and stops.
class fallible_cycle {
public:
  static constexpr int num_steps = 6;
  static constexpr ballast::nanoseconds_t timeout = 20 * millisecond;

  fallible_cycle(law_log& log, dice shared, dice own) : log_{log}, shared_{shared}, own_{own} {}

  template <class Endpoint>
  void run(Endpoint& self) {
    for (int step = 0; step < num_steps; ++step) {
      auto const kind = shared_.below(4);
      auto const against = shared_.below(4 * self.num_ranks());
      if (own_.below(4) == 0) { sleep_for((own_.below(30) + 1) * timeout / 10); }
      auto const result = make_step(self, kind, self.rank() != against, step);
      if (result.ok()) { continue; }
      if (own_.below(2) == 0) { self.control.give_up(result); }
      return;
    }
  }
  // Once all have regrouped, everything is known.
  template <class Endpoint>
  void settle(Endpoint& self) {
    if (open_vote_ < 0) { return; }
    ++num_open;
    auto const settled = self.control.recall(patience);
    log_.expect(settled.outcome != decision::undecided, "lost for good: ", settled.reason.message());
    outcome_of(open_vote_) = number_of(settled.outcome);
  }
  // 0 for a vote that this rank did not make.
  std::array<std::uint64_t, num_steps> outcomes{};
  int num_open = 0;

private:
  [[nodiscard]] static std::uint64_t number_of(decision outcome) { return static_cast<std::uint64_t>(outcome) + 1; }
  [[nodiscard]] std::uint64_t& outcome_of(int step) { return outcomes[static_cast<std::size_t>(step)]; }

  template <class Endpoint>
  [[nodiscard]] ballast::status make_step(Endpoint& self, int kind, bool yes, int step) {
    auto const ranks = self.num_ranks();
    if (kind == 0) {
      std::array<std::int64_t, 1> values{1 << step};
      auto result = self.control.all_reduce(values, timeout);
      log_.expect(!result.ok() || values[0] == static_cast<std::int64_t>(ranks) << step, "a wrong sum: ", values[0]);
      return result;
    }
    if (kind == 1) {
      std::array<std::byte, 9000> bytes{};
      bytes.fill(self.rank() == 0 ? static_cast<std::byte>(step + 1) : std::byte{});
      auto result = self.control.broadcast(bytes, 0, timeout);
      log_.expect(!result.ok() || bytes[8999] == static_cast<std::byte>(step + 1), "a wrong broadcast");
      return result;
    }
    auto vote = self.control.vote(yes, timeout);
    if (vote.outcome == decision::undecided) { vote = self.control.recall(timeout); }
    if (vote.outcome == decision::undecided) { open_vote_ = step; }
    outcome_of(step) = number_of(vote.outcome);
    log_.expect(vote.reason.ok() == (vote.outcome == decision::commit), "reason and outcome differ");
    return vote.reason;
  }

  law_log& log_;
  dice shared_;
  dice own_;
  int open_vote_ = -1;
};

template <class Endpoint>
void expect_no_split(Endpoint& self, law_log& log, fallible_cycle const& cycle) {
  constexpr auto steps = static_cast<std::size_t>(fallible_cycle::num_steps);
  std::vector<std::uint64_t> all(steps * static_cast<std::size_t>(self.num_ranks()));
  if (!log.expect_ok(self.control.all_gather(cycle.outcomes, all, patience), "telling the outcomes")) { return; }
  constexpr auto commit = static_cast<std::uint64_t>(decision::commit) + 1;
  for (std::size_t at = 0; at < all.size(); ++at) {
    if (all[at] != commit) { continue; }
    auto const mine = cycle.outcomes[at % steps];
    log.expect(mine == commit, "step ", at % steps, ": rank ", at / steps, " has committed, this one has ", mine);
  }
}

}  // namespace

TEST_CASE("whatever fails and whoever is late, one regroup brings all back, and no vote is split") {
  on_all_ranks([](auto& self, law_log& log) {
    for (std::uint64_t seed = 1; seed <= 40; ++seed) {
      fallible_cycle cycle{log, dice{seed}, dice{seed * 100 + static_cast<std::uint64_t>(self.rank())}};
      cycle.run(self);
      if (!log.expect_ok(self.control.regroup(patience), concat("regroup ", seed))) { return; }
      cycle.settle(self);
      expect_no_split(self, log, cycle);
      for (int round = 0; round < 5; ++round) { works(self, log, concat("after regroup ", seed)); }
      if (!log.complaints().empty()) { return; }
      MPI_Barrier(MPI_COMM_WORLD);
    }
  });
}
