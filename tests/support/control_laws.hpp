// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_CONTROL_LAWS_HPP
#define BALLAST_TESTS_SUPPORT_CONTROL_LAWS_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include "support/check_complaints.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ballast_test {

/// Everybody has come here. Tests use it to bring ranks that were late back into step.
template <class Endpoint>
void meet(Endpoint& self, law_log& log) {
  std::array<std::int64_t, 1> one{1};
  log.expect_ok(self.control.all_reduce(one, patience), "meeting");
  log.expect(one[0] == self.num_ranks(), "meeting of ", one[0], " ranks");
}

namespace control_law {

template <class Endpoint>
void reduces(Endpoint& self, law_log& log) {
  auto const ranks = static_cast<std::int64_t>(self.num_ranks());
  dice jitter{static_cast<std::uint64_t>(self.rank())};
  for (std::size_t const size : {0u, 1u, 7u, 4096u, 4097u, 20'000u, 3u}) {
    std::vector<std::int64_t> values(size);
    for (std::size_t i = 0; i < size; ++i) {
      values[i] = static_cast<std::int64_t>(i) * (self.rank() + 1) - 5 * self.rank();
    }
    sleep_for(jitter.below(3) * millisecond);
    log.expect_ok(self.control.all_reduce(values, patience), "all_reduce");
    for (std::size_t i = 0; i < size; ++i) {
      auto const expected = static_cast<std::int64_t>(i) * ranks * (ranks + 1) / 2 - 5 * (ranks * (ranks - 1) / 2);
      if (!log.expect(values[i] == expected, "sum ", i, " of ", size, " is ", values[i], ", not ", expected)) {
        return;
      }
    }
  }
}

template <class Endpoint>
void gathers(Endpoint& self, law_log& log) {
  dice jitter{static_cast<std::uint64_t>(self.rank()) + 100};
  for (std::size_t const size : {1u, 0u, 3u, 4096u, 9001u, 2u}) {
    std::vector<std::uint64_t> mine(size);
    for (std::size_t i = 0; i < size; ++i) { mine[i] = static_cast<std::uint64_t>(self.rank()) << 32 | i; }
    std::vector<std::uint64_t> all(size * static_cast<std::size_t>(self.num_ranks()), 99);
    sleep_for(jitter.below(3) * millisecond);
    log.expect_ok(self.control.all_gather(mine, all, patience), "all_gather");
    auto word = all.begin();
    for (std::uint64_t rank = 0; word != all.end(); ++rank) {
      for (std::size_t i = 0; i < size; ++i) {
        if (!log.expect(*word++ == (rank << 32 | i), "word ", i, " of rank ", rank, " is wrong")) { return; }
      }
    }
  }
}

template <class Endpoint>
void broadcasts(Endpoint& self, law_log& log) {
  for (ballast::index_t root = 0; root < self.num_ranks(); ++root) {
    for (std::size_t const size : {0u, 1u, 13u, 100'003u}) {
      std::vector<std::byte> bytes(size, std::byte{7});
      auto const expected = [&](std::size_t i) {
        return static_cast<std::byte>(i * 31 + static_cast<std::size_t>(root));
      };
      if (self.rank() == root) {
        for (std::size_t i = 0; i < size; ++i) { bytes[i] = expected(i); }
      }
      log.expect_ok(self.control.broadcast(bytes, root, patience), "broadcast");
      for (std::size_t i = 0; i < size; ++i) {
        if (!log.expect(bytes[i] == expected(i), "byte ", i, " of a broadcast of ", size, " is wrong")) { return; }
      }
    }
  }
}

template <class Endpoint>
void votes(Endpoint& self, law_log& log) {
  for (ballast::index_t against = -1; against < self.num_ranks(); ++against) {
    auto const result = self.control.vote(self.rank() != against, patience);
    if (against < 0) {
      log.expect(result.outcome == ballast::decision::commit, "a unanimous vote dropped: ", result.reason.message());
      log.expect_ok(result.reason, "a commit's reason");
    } else {
      log.expect(result.outcome == ballast::decision::drop, "a vote with one against did not drop");
      log.expect_failure(result.reason, {ballast::errc::transport_failed}, ballast::detail::concat("rank ", against),
                         "reason of a vote against");
    }
  }
}

// Hundreds of votes in a row, in some of which one rank is against: a no that comes while the others look is heard.
template <class Endpoint>
void hears_every_no(Endpoint& self, law_log& log) {
  dice shared{11};
  dice own{static_cast<std::uint64_t>(self.rank()) + 40};
  for (int round = 0; round < 1000; ++round) {
    auto const against = shared.below(2) == 0 ? shared.below(self.num_ranks()) : ballast::index_t{-1};
    for (auto spin = own.below(2000); spin > 0; --spin) { static_cast<void>(own.next()); }
    auto const vote = self.control.vote(self.rank() != against, patience);
    auto const expected = against < 0 ? ballast::decision::commit : ballast::decision::drop;
    if (!log.expect(vote.outcome == expected, "vote ", round, " with rank ", against,
                    " against ended otherwise: ", vote.reason.message())) {
      return;
    }
  }
}

template <class Endpoint>
void agrees(Endpoint& self, law_log& log) {
  std::vector<ballast::agreed_word> words{{"plan", 11}, {"step", 22}};
  log.expect_ok(ballast::agree(self.control, words, patience), "agree");
  auto const odd_one = self.num_ranks() - 1;
  if (self.rank() == odd_one) { words[1].value = 23; }
  auto const result = ballast::agree(self.control, words, patience);
  if (odd_one == 0) { return; }
  log.expect_failure(result, {ballast::errc::disagreement}, ballast::detail::concat("rank ", odd_one, " differs"),
                     "agree");
  log.expect_failure(result, {ballast::errc::disagreement}, "step: 23 against 22", "agree");
  log.expect(result.rank() == odd_one, "agree blames rank ", result.rank());
}

// A rank that is late makes the others' call fail in time; afterwards all are in step again.
template <class Endpoint>
void survives_lateness(Endpoint& self, law_log& log) {
  auto const late_one = self.num_ranks() - 1;
  auto const timeout = 100 * millisecond;
  std::vector<std::int64_t> values{1, 2, 3};
  std::array<std::int64_t, 1> num_patient{0};
  if (self.rank() == late_one) {
    sleep_for(4 * timeout);
    static_cast<void>(self.control.all_reduce(values, timeout));
  } else {
    auto const begin = ballast::detail::now();
    auto const result = self.control.all_reduce(values, timeout);
    auto const taken = ballast::detail::now() - begin;
    log.expect_failure(result, {ballast::errc::deadline_exceeded}, ballast::detail::concat("rank ", late_one),
                       "all_reduce without the last rank");
    log.expect(taken < timeout + slack, "the deadline passed after ", taken, " ns");
    log.expect(values == std::vector<std::int64_t>{1, 2, 3}, "a failed all_reduce changed the values");
    num_patient[0] = taken >= timeout / 2 ? 1 : 0;
  }
  meet(self, log);
  // Whoever gives up takes the others along, also those that came after it. The first has waited.
  log.expect_ok(self.control.all_reduce(num_patient, patience), "all_reduce");
  log.expect(num_patient[0] > 0, "no rank has waited for the deadline");
}

// All ranks have learned the same from the last vote.
template <class Endpoint>
void expect_same_outcome(Endpoint& self, law_log& log, ballast::vote_result const& result, std::string_view what) {
  std::vector<std::uint64_t> const mine{static_cast<std::uint64_t>(result.outcome)};
  std::vector<std::uint64_t> all(static_cast<std::size_t>(self.num_ranks()));
  log.expect(result.outcome != ballast::decision::undecided, what, ": still undecided: ", result.reason.message());
  log.expect(result.reason.ok() == (result.outcome == ballast::decision::commit), what, ": reason and outcome differ");
  log.expect_ok(self.control.all_gather(mine, all, patience), "telling the outcome");
  for (auto const outcome : all) {
    log.expect(outcome == mine[0], what, ": one rank learned ", mine[0], ", another ", outcome);
  }
}

// A rank that votes when the others have given up learns what they learned.
template <class Endpoint>
void late_voters_learn_the_same(Endpoint& self, law_log& log) {
  auto const timeout = 100 * millisecond;
  if (self.rank() == 0) { sleep_for(4 * timeout); }
  auto result = self.control.vote(true, timeout);
  if (result.outcome == ballast::decision::undecided) { result = self.control.recall(patience); }
  expect_same_outcome(self, log, result, "a vote that one rank missed");
}

// Ranks are late by about the deadline. Whoever decides, nobody commits what another one drops.
template <class Endpoint>
void never_splits(Endpoint& self, law_log& log, std::uint64_t seed) {
  dice shared{seed};
  for (int round = 0; round < 12; ++round) {
    auto const timeout = 20 * millisecond;
    auto const late_one = shared.below(self.num_ranks());
    auto const delay = static_cast<ballast::nanoseconds_t>(shared.below(40)) * millisecond;
    if (self.rank() == late_one) { sleep_for(delay); }
    auto result = self.control.vote(true, timeout);
    if (result.outcome == ballast::decision::undecided) { result = self.control.recall(patience); }
    expect_same_outcome(self, log, result, ballast::detail::concat("round ", round));
  }
}

template <class Endpoint>
void notices_death(Endpoint& self, law_log& log) {
  auto const victim = self.num_ranks() / 2;
  auto const name = ballast::detail::concat("rank ", victim);
  if (self.rank() == victim) {
    self.die();
    return;
  }
  auto const timeout = 2'000 * millisecond;
  std::vector<std::int64_t> values{1};
  auto const begin = ballast::detail::now();
  log.expect_failure(self.control.all_reduce(values, timeout),
                     {ballast::errc::peer_lost, ballast::errc::deadline_exceeded}, name, "all_reduce with a dead rank");
  auto const result = self.control.vote(true, timeout);
  log.expect(result.outcome != ballast::decision::commit, "a vote without a dead rank's ballot committed");
  log.expect_failure(result.reason, {ballast::errc::peer_lost, ballast::errc::deadline_exceeded}, name,
                     "vote with a dead rank");
  log.expect(ballast::detail::now() - begin < 2 * timeout + slack, "a dead rank was noticed too late");
  // Those that give up because of it do not stand before it.
  self.control.give_up(result.reason);
  sleep_for(20 * millisecond);
  for (auto const& after : {self.control.all_reduce(values, timeout), self.control.trouble()}) {
    log.expect_failure(after, {ballast::errc::peer_lost, ballast::errc::deadline_exceeded}, name,
                       "a call when others have given up because of a dead rank");
    log.expect(after.rank() == victim, "rank ", after.rank(), " is blamed for a dead one: ", after.message());
  }
}

// A rank says no because of another one: that is the one to blame, and the vote is dropped as by any no.
template <class Endpoint>
void says_why_not(Endpoint& self, law_log& log) {
  auto const culprit = self.num_ranks() - 1;
  auto const vote = [&](ballast::status const& why) {
    return self.rank() == 0 ? self.control.vote_no(why, patience) : self.control.vote(true, patience);
  };
  auto const late =
      vote({ballast::errc::deadline_exceeded, ballast::detail::concat("rank ", culprit, " is late"), culprit});
  log.expect_failure(late.reason, {ballast::errc::deadline_exceeded}, "rank 0 voted no", "a no because of another");
  log.expect(late.outcome == ballast::decision::drop && late.reason.rank() == culprit, "rank ", late.reason.rank(),
             " is blamed: ", late.reason.message());
  meet(self, log);
  // A reason that names nobody is its own, and the next no has nothing to do with the last one's reason.
  for (auto const& why : {ballast::status{ballast::errc::out_of_memory, "no staging"}, ballast::status{}}) {
    auto const own = vote(why);
    log.expect(own.outcome == ballast::decision::drop && own.reason.rank() == 0, "rank ", own.reason.rank(),
               " is blamed: ", own.reason.message());
    meet(self, log);
  }
  auto const yes = self.control.vote(true, patience);
  log.expect(yes.outcome == ballast::decision::commit, "a vote of all: ", yes.reason.message());
}

template <class Endpoint>
void has_members(Endpoint& self, law_log& log) {
  std::vector<std::uint64_t> const mine{self.control.membership()};
  std::vector<std::uint64_t> all(static_cast<std::size_t>(self.num_ranks()));
  log.expect_ok(self.control.all_gather(mine, all, patience), "all_gather of the membership");
  for (auto const membership : all) { log.expect(membership == mine[0], "ranks see different memberships"); }
}

// A few calls of every kind that must all go well, with their results.
template <class Endpoint>
void works(Endpoint& self, law_log& log, std::string_view when) {
  auto const ranks = static_cast<std::int64_t>(self.num_ranks());
  for (std::int64_t round = 1; round <= 4; ++round) {
    std::array<std::int64_t, 2> sums{self.rank() + round, 7 * round};
    if (!log.expect_ok(self.control.all_reduce(sums, patience), when)) { return; }
    log.expect(sums[0] == ranks * (ranks - 1) / 2 + ranks * round && sums[1] == 7 * round * ranks, when, ": sums of ",
               sums[0], " and ", sums[1]);
    // Nobody is through the gather without this rank. Behind it one that is quick may be in trouble again: the vote
    // does not wait for all once there is a no.
    log.expect_ok(self.control.trouble(), when);
    std::vector<std::uint64_t> const mine{static_cast<std::uint64_t>(100 * round + self.rank())};
    std::vector<std::uint64_t> all(static_cast<std::size_t>(ranks));
    if (!log.expect_ok(self.control.all_gather(mine, all, patience), when)) { return; }
    for (std::size_t r = 0; r < all.size(); ++r) {
      log.expect(all[r] == static_cast<std::uint64_t>(100 * round) + r, when, ": rank ", r, " gave ", all[r]);
    }
    auto const root = static_cast<ballast::index_t>(round % ranks);
    std::array<std::byte, 3> bytes{};
    if (self.rank() == root) { bytes.fill(static_cast<std::byte>(round)); }
    if (!log.expect_ok(self.control.broadcast(bytes, root, patience), when)) { return; }
    log.expect(bytes[2] == static_cast<std::byte>(round), when, ": broadcast of another byte");
    auto const against = round % 2 == 0 ? static_cast<ballast::index_t>(round % ranks) : ballast::index_t{-1};
    auto const vote = self.control.vote(self.rank() != against, patience);
    auto const expected = against < 0 ? ballast::decision::commit : ballast::decision::drop;
    if (!log.expect(vote.outcome == expected, when, ": a vote ended otherwise: ", vote.reason.message())) { return; }
  }
}

// Ranks that have made different numbers of calls and votes are in step again after one regroup, and what was said
// before is not heard after it.
template <class Endpoint>
void regroups(Endpoint& self, law_log& log, std::uint64_t seed) {
  dice shared{seed};
  works(self, log, "before anything went wrong");
  for (int round = 0; round < 3; ++round) {
    for (ballast::index_t rank = 0; rank < self.num_ranks(); ++rank) {
      auto const calls = shared.below(4);
      auto const votes = shared.below(3);
      auto const delay = shared.below(40) * millisecond;
      if (rank != self.rank()) { continue; }
      for (int call = 0; call < calls; ++call) {
        std::array<std::int64_t, 2> values{1'000'000, 1'000'000};
        static_cast<void>(self.control.all_reduce(values, millisecond));
        std::vector<std::uint64_t> const mine{1'000'000};
        std::vector<std::uint64_t> all(static_cast<std::size_t>(self.num_ranks()));
        static_cast<void>(self.control.all_gather(mine, all, millisecond));
      }
      for (int vote = 0; vote < votes; ++vote) {
        log.expect(self.control.vote(false, millisecond).outcome == ballast::decision::drop, "a no did not drop");
      }
      sleep_for(delay);
    }
    if (!log.expect_ok(self.control.regroup(patience), "regroup")) { return; }
    works(self, log, ballast::detail::concat("after regroup ", round));
  }
}

// Nothing is wrong: a regroup disturbs nothing, however often.
template <class Endpoint>
void regroups_for_nothing(Endpoint& self, law_log& log) {
  dice own{static_cast<std::uint64_t>(self.rank()) + 7};
  for (int round = 0; round < 8; ++round) {
    sleep_for(own.below(4) * millisecond);
    if (!log.expect_ok(self.control.regroup(patience), "regroup")) { return; }
  }
  works(self, log, "after eight regroups");
}

// A rank does not come to a regroup in time: it is named, and the next one works.
template <class Endpoint>
void regroups_again(Endpoint& self, law_log& log) {
  auto const late_one = self.num_ranks() - 1;
  auto const timeout = 500 * millisecond;
  if (self.rank() == late_one) { sleep_for(2 * timeout); }
  auto const begin = ballast::detail::now();
  ballast::status result;
  if (self.rank() != late_one) {
    result = self.control.regroup(timeout);
    log.expect_failure(result, {ballast::errc::deadline_exceeded}, ballast::detail::concat("rank ", late_one),
                       "regroup without the last rank");
    log.expect(ballast::detail::now() - begin < timeout + slack, "a regroup outlasted its deadline");
  }
  if (!log.expect_ok(self.control.regroup(patience), "the second regroup")) { return; }
  works(self, log, "after the second regroup");
  // A plane over somebody else's channel says what that says: who came to the last of several calls, on a busy machine.
  if constexpr (requires { Endpoint::is_over_a_channel; }) { return; }
  // Where all but one came together, that one is named and no other. On a busy machine they may not have.
  std::array<std::uint64_t, 1> const mine{static_cast<std::uint64_t>(begin)};
  std::vector<std::uint64_t> begins(static_cast<std::size_t>(self.num_ranks()));
  if (!log.expect_ok(self.control.all_gather(mine, begins, patience), "gather")) { return; }
  begins.pop_back();
  auto const [first, last] = std::minmax_element(begins.begin(), begins.end());
  if (self.rank() == late_one || *last - *first > static_cast<std::uint64_t>(10 * millisecond)) { return; }
  log.expect(result.rank() == late_one, "regroup blames rank ", result.rank(), ": ", result.message());
  for (ballast::index_t rank = 0; rank < late_one; ++rank) {
    log.expect(result.message().find(ballast::detail::concat("rank ", rank)) == std::string::npos,
               "regroup names a rank that came: ", result.message());
  }
}

// Whoever waits for a rank that has given up hears of it, at the latest by the deadline; afterwards all go on.
template <class Endpoint>
void gives_up(Endpoint& self, law_log& log) {
  auto const quitter = self.num_ranks() - 1;
  auto const timeout = 300 * millisecond;
  std::array<std::int64_t, 1> values{5};
  if (self.rank() == quitter) {
    self.control.give_up({ballast::errc::out_of_memory, "no staging"});
    self.control.give_up({ballast::errc::out_of_memory, "no staging"});
    log.expect(!self.control.trouble().ok(), "a rank that has given up sees no trouble");
    auto const begin = ballast::detail::now();
    log.expect(!self.control.all_reduce(values, patience).ok(), "a call after giving up succeeded");
    auto const vote = self.control.vote(true, patience);
    log.expect(vote.outcome == ballast::decision::drop, "a vote after giving up did not drop");
    log.expect(ballast::detail::now() - begin < slack, "a call after giving up waited");
  } else {
    auto const result = self.control.all_reduce(values, timeout);
    log.expect_failure(result,
                       {ballast::errc::deadline_exceeded, ballast::errc::transport_failed, ballast::errc::peer_lost,
                        ballast::errc::out_of_memory},
                       ballast::detail::concat("rank ", quitter), "a call without a rank that has given up");
    log.expect(result.rank() == quitter, "rank ", result.rank(), " is blamed");
    log.expect(values[0] == 5, "a failed all_reduce changed the values");
  }
  if (!log.expect_ok(self.control.regroup(patience), "regroup")) { return; }
  works(self, log, "after a rank had given up");
}

// A rank gives up because of another one: that is the one to blame, not the rank that says so.
template <class Endpoint>
void carries_the_culprit(Endpoint& self, law_log& log) {
  auto const culprit = self.num_ranks() - 1;
  auto const blames = [&](ballast::status const& result, std::string_view what) {
    log.expect(!result.ok() && result.rank() == culprit, what, " blames rank ", result.rank(), ": ", result.message());
  };
  if (self.rank() == 0) {
    self.control.give_up(
        {ballast::errc::deadline_exceeded, ballast::detail::concat("rank ", culprit, " is late"), culprit});
    blames(self.control.trouble(), "its own trouble");
    blames(self.control.vote(true, patience).reason, "its own vote");
  } else {
    std::array<std::int64_t, 1> values{5};
    blames(self.control.all_reduce(values, patience), "a call");
    blames(self.control.trouble(), "trouble");
  }
  if (!log.expect_ok(self.control.regroup(patience), "regroup")) { return; }
  works(self, log, "after a rank had given up because of another one");
}

}  // namespace control_law

/// What every `control_plane` obeys. Call it in a test case.
template <class Runner>
void check_control_laws(Runner runner) {
  auto const check = [&](auto law) {
    for (auto const size : runner.sizes()) {
      CAPTURE(size);
      check_complaints(runner.run(size, law));
    }
  };
  SUBCASE("all_reduce sums") {
    check([](auto& self, law_log& log) { control_law::reduces(self, log); });
  }
  SUBCASE("all_gather keeps the order of the ranks") {
    check([](auto& self, law_log& log) { control_law::gathers(self, log); });
  }
  SUBCASE("broadcast copies the root's bytes") {
    check([](auto& self, law_log& log) { control_law::broadcasts(self, log); });
  }
  SUBCASE("a vote commits if and only if everyone says yes") {
    check([](auto& self, law_log& log) { control_law::votes(self, log); });
  }
  SUBCASE("a no is heard however close it comes") {
    check([](auto& self, law_log& log) { control_law::hears_every_no(self, log); });
  }
  SUBCASE("a no tells whom it blames") {
    check([](auto& self, law_log& log) {
      if (self.num_ranks() > 1) { control_law::says_why_not(self, log); }
    });
  }
  SUBCASE("agree names what differs, alike on every rank") {
    check([](auto& self, law_log& log) { control_law::agrees(self, log); });
  }
  SUBCASE("every rank sees the same membership") {
    check([](auto& self, law_log& log) { control_law::has_members(self, log); });
  }
  SUBCASE("a late rank fails the others' call in time, and the next call works") {
    check([](auto& self, law_log& log) {
      if (self.num_ranks() > 1) { control_law::survives_lateness(self, log); }
    });
  }
  SUBCASE("a late voter learns what the others learned") {
    check([](auto& self, law_log& log) {
      if (self.num_ranks() > 1) { control_law::late_voters_learn_the_same(self, log); }
    });
  }
  SUBCASE("no vote commits on one rank and drops on another") {
    for (std::uint64_t seed = 1; seed <= 2; ++seed) {
      CAPTURE(seed);
      check([seed](auto& self, law_log& log) { control_law::never_splits(self, log, seed); });
    }
  }
  SUBCASE("one regroup brings ranks that have drifted apart back into step") {
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      CAPTURE(seed);
      check([seed](auto& self, law_log& log) { control_law::regroups(self, log, seed); });
    }
  }
  SUBCASE("a regroup when nothing is wrong disturbs nothing") {
    check([](auto& self, law_log& log) { control_law::regroups_for_nothing(self, log); });
  }
  SUBCASE("a regroup that a rank misses fails in time, and the next works") {
    check([](auto& self, law_log& log) {
      if (self.num_ranks() > 1) { control_law::regroups_again(self, log); }
    });
  }
  SUBCASE("a rank that gives up is named, and a regroup ends it") {
    check([](auto& self, law_log& log) {
      if (self.num_ranks() > 1) { control_law::gives_up(self, log); }
    });
  }
  SUBCASE("who gives up because of another rank carries its name along") {
    check([](auto& self, law_log& log) {
      if (self.num_ranks() > 1) { control_law::carries_the_culprit(self, log); }
    });
  }
  if constexpr (Runner::can_lose_ranks) {
    SUBCASE("a dead rank is named on every survivor") {
      check([](auto& self, law_log& log) {
        if (self.num_ranks() > 1) { control_law::notices_death(self, log); }
      });
    }
  }
}

}  // namespace ballast_test

#endif
