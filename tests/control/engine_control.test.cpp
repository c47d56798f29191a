// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/control/engine_control.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/control_laws.hpp"
#include "support/in_process_runner.hpp"
#include "support/law_log.hpp"
#include "support/paused_channel.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using ballast::decision;
using ballast::errc;
using ballast::nanoseconds_t;
using ballast::status;
using words_view = std::span<std::uint64_t const>;
using words_out = std::span<std::uint64_t>;

/// The channel of an engine, here in-process ranks: nothing but an all-gather.
struct gather_on {
  ballast::in_process_endpoint* endpoint;
  status operator()(words_view mine, words_out all, nanoseconds_t timeout) {
    return endpoint->all_gather(mine, all, timeout);
  }
};
using control = ballast::engine_control<gather_on>;
static_assert(ballast::regrouping_plane<control> && ballast::expelling_plane<control>);

struct engine_endpoint : ballast_test::law_endpoint<control, ballast::in_process_endpoint> {
  static constexpr bool is_over_a_channel = true;
};

struct engine_runner {
  static constexpr bool can_lose_ranks = true;
  [[nodiscard]] std::vector<ballast::index_t> sizes() const { return {1, 2, 5}; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    return ballast_test::in_process_runner{}.run(num_ranks, [&](auto& inner, ballast_test::law_log& log) {
      control plane{inner.rank(), inner.num_ranks(), gather_on{&inner.control}};
      engine_endpoint self{{plane, inner.transport, inner.die}};
      body(self, log);
    });
  }
};

/// A frame as another rank may send it, here rank 1 of two.
struct frame {
  enum activity : std::uint64_t { recalls = 1, reduces, gathers, broadcasts, votes, regroups };
  activity what = votes;
  std::uint64_t root = 0;
  std::uint64_t size = 1;  // of votes and recalls: the number of the vote
  std::uint64_t call = 1;
  std::uint64_t last_vote = 0;
  std::uint64_t history = 0;
  std::uint64_t generation = 0;
  std::uint64_t proposal = generation + 1;
  std::uint64_t first_vote = 0;
  bool has_given_up = what == regroups;
  std::uint64_t payload = 1;
  std::uint64_t sender = 1;
  std::uint64_t piece = 0;

  [[nodiscard]] std::vector<std::uint64_t> words() const {
    return {static_cast<std::uint64_t>(what) << 32 | (has_given_up ? std::uint64_t{1} << 63 : 0) | root,
            size,
            sender,
            generation,
            call,
            piece,
            last_vote,
            history,
            first_vote,
            proposal,
            payload,
            0};
  }
};
constexpr std::size_t frame_words = 12;
// Outcomes in a history; the last vote comes last.
constexpr std::uint64_t undecided = 1;
constexpr std::uint64_t committed = 2;
constexpr std::uint64_t dropped = 3;
std::uint64_t history(std::initializer_list<std::uint64_t> outcomes) {
  std::uint64_t word = 0;
  for (auto const outcome : outcomes) { word = word << 2 | outcome; }
  return word;
}

struct answer {
  answer(status why) : failure{std::move(why)} {}                    // NOLINT(google-explicit-constructor)
  answer(frame const& other) : words{other.words()} {}               // NOLINT(google-explicit-constructor)
  answer(std::vector<std::uint64_t> all) : words{std::move(all)} {}  // NOLINT(google-explicit-constructor)
  status failure;
  std::vector<std::uint64_t> words;
};
status late() { return {errc::deadline_exceeded, "rank 1 did not come in time", 1}; }

/// An all-gather in which the test decides what comes back: the other rank's frame, or a failure.
struct scripted_gather {
  std::vector<answer>* answers;
  status operator()(words_view mine, words_out all, nanoseconds_t) {
    if (answers->empty()) { throw std::runtime_error{"nothing more is scripted"}; }
    auto const next = answers->front();
    answers->erase(answers->begin());
    if (!next.failure.ok()) { return next.failure; }
    std::ranges::copy(mine, all.begin());
    std::ranges::copy(next.words, all.begin() + static_cast<std::ptrdiff_t>(mine.size()));
    return {};
  }
};

ballast::engine_control<scripted_gather> scripted(std::vector<answer>& answers) {
  return {0, 2, scripted_gather{&answers}, {.frame_words = frame_words}};
}

void check_failure(status const& result, errc code, std::string_view fragment, ballast::index_t rank) {
  CHECK(result.code() == make_error_code(code));
  CHECK_MESSAGE(result.message().find(fragment) != std::string::npos, result.message());
  CHECK(result.rank() == rank);
}

}  // namespace

TEST_CASE("a control plane derived from an all-gather obeys the laws") {
  ballast_test::check_control_laws(engine_runner{});
}

TEST_CASE("an undecided vote commits when another rank has committed it") {
  std::vector<answer> answers{late(), frame{.call = 2, .last_vote = 1, .history = committed}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  auto const result = plane.recall(0);
  CHECK(result.outcome == decision::commit);
  CHECK(result.reason.ok());
  CHECK(plane.recall(0).outcome == decision::commit);  // settled: nobody is asked again
}

TEST_CASE("an undecided vote commits when another rank has committed it and voted since") {
  for (std::uint64_t since = 1; since <= 30; ++since) {
    CAPTURE(since);
    auto const later = (std::uint64_t{committed} << 2 * since) | dropped;
    for (auto const what : {frame::recalls, frame::votes, frame::reduces, frame::regroups}) {
      std::vector<answer> answers{late(), frame{.what = what, .call = 9, .last_vote = 1 + since, .history = later}};
      auto plane = scripted(answers);
      CHECK(plane.vote(true, 0).outcome == decision::undecided);
      CHECK(plane.recall(0).outcome == decision::commit);
    }
  }
}

TEST_CASE("an undecided vote that others have forgotten stays undecided") {
  std::vector<answer> answers{late(), frame{.what = frame::recalls, .last_vote = 32, .history = dropped}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  auto const result = plane.recall(0);
  CHECK(result.outcome == decision::undecided);
  CHECK_FALSE(result.reason.ok());
}

TEST_CASE("an undecided vote drops when no other rank has committed it, and the reason names who was late") {
  std::vector<answer> answers{late(), frame{.what = frame::recalls, .last_vote = 1, .history = undecided}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  auto const result = plane.recall(0);
  CHECK(result.outcome == decision::drop);
  check_failure(result.reason, errc::deadline_exceeded, "vote 1 was dropped: no rank has committed it", 1);
  CHECK(plane.recall(0).outcome == decision::drop);
}

TEST_CASE("an outcome of another vote settles nothing") {
  // Rank 1 has committed votes 2 and 4, or an earlier one; not the one that is asked for.
  for (auto const& other : {frame{.last_vote = 4, .history = history({dropped, committed, dropped, committed})},
                            frame{.last_vote = 4, .history = history({undecided, committed, undecided, committed})},
                            frame{.last_vote = 2, .history = committed}, frame{.last_vote = 0, .history = 0}}) {
    std::vector<answer> answers{late(), other};
    auto plane = scripted(answers);
    CHECK(plane.vote(true, 0).outcome == decision::undecided);
    CHECK(plane.recall(0).outcome == decision::drop);
  }
}

TEST_CASE("a rank that said no needs nobody to know that the vote dropped") {
  std::vector<answer> answers{late()};
  auto plane = scripted(answers);
  CHECK(plane.vote(false, 0).outcome == decision::drop);
}

TEST_CASE("a recall that fails leaves the vote undecided, and can be repeated") {
  std::vector<answer> answers{late(), late(), frame{.call = 2, .last_vote = 1, .history = committed}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  auto const result = plane.recall(0);
  CHECK(result.outcome == decision::undecided);
  check_failure(result.reason, errc::deadline_exceeded, "rank 1 did not come", 1);
  CHECK(plane.recall(0).outcome == decision::commit);
}

TEST_CASE("a recall settles every vote that is undecided") {
  std::vector<answer> answers{late(), late(),
                              frame{.call = 3, .last_vote = 2, .history = history({committed, dropped})},
                              frame{.what = frame::regroups, .last_vote = 2}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  CHECK(plane.recall(0).outcome == decision::drop);
  CHECK(plane.regroup(0).ok());
}

TEST_CASE("a recall settles a vote that is undecided though a later one is not") {
  auto const other = frame{.what = frame::regroups, .last_vote = 2, .history = history({committed, dropped})};
  std::vector<answer> answers{late(), late(), other, other};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  CHECK(plane.vote(false, 0).outcome == decision::drop);
  CHECK(plane.recall(0).outcome == decision::commit);
  CHECK(plane.regroup(0).ok());
}

TEST_CASE("recall and regroup ask again when the others' deadline ends an all-gather before theirs") {
  std::vector<answer> answers{late(),
                              late(),
                              late(),
                              frame{.call = 2, .last_vote = 1, .history = committed},
                              late(),
                              late(),
                              frame{.what = frame::regroups, .last_vote = 1}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, ballast_test::patience).outcome == decision::undecided);
  CHECK(plane.recall(ballast_test::patience).outcome == decision::commit);
  CHECK(plane.regroup(ballast_test::patience).ok());
}

TEST_CASE("a vote that meets a rank that has left it is over at once, and not undecided") {
  auto const open = frame{.last_vote = 1, .history = undecided};
  auto recalls = open, regroups = open, later = open;
  recalls.what = frame::recalls;
  regroups.what = frame::regroups;
  regroups.has_given_up = true;
  later.what = frame::reduces;
  later.call = 2;
  for (auto const& other : {recalls, regroups, later}) {
    std::vector<answer> answers{other};
    auto plane = scripted(answers);
    auto const result = plane.vote(true, ballast_test::patience);
    CHECK(result.outcome == decision::drop);
    CHECK(result.reason.rank() == 1);
  }
}

TEST_CASE("a vote that the others did not come to is dropped by a rank that heard all the time") {
  std::vector<answer> answers{frame{.what = frame::reduces, .call = 0}};
  auto plane = scripted(answers);
  auto const result = plane.vote(true, 0);
  CHECK(result.outcome == decision::drop);
  check_failure(result.reason, errc::deadline_exceeded, "rank 1 did not come in time to call 1", 1);
}

TEST_CASE("a call that meets a recall is repeated, until its deadline") {
  auto const recalling = frame{.what = frame::recalls, .call = 0};
  std::vector<answer> answers{recalling, recalling, frame{}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, ballast_test::patience).outcome == decision::commit);
  CHECK(answers.empty());

  answers = {recalling, frame{.what = frame::reduces, .call = 2, .last_vote = 1}};
  std::array<std::int64_t, 1> value{};
  check_failure(plane.all_reduce(value, 0), errc::deadline_exceeded, "rank 1 recalled a vote until the deadline", 1);
  CHECK(answers.size() == 1);
}

TEST_CASE("a call that meets an earlier one is repeated, and one that meets a later one is late") {
  std::vector<answer> answers{frame{.call = 0}, frame{.call = 1},
                              frame{.what = frame::reduces, .call = 3, .last_vote = 1}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, ballast_test::patience).outcome == decision::commit);
  auto const result = plane.vote(true, ballast_test::patience);
  CHECK(result.outcome == decision::drop);
  check_failure(result.reason, errc::deadline_exceeded, "rank 0 is late: rank 1 is at call 3", 0);
}

TEST_CASE("different calls are told apart") {
  std::vector<answer> answers{frame{}};
  auto plane = scripted(answers);
  std::array<std::int64_t, 1> value{};
  check_failure(plane.all_reduce(value, 0), errc::disagreement, "rank 0 and rank 1 make different calls", 1);
}

TEST_CASE("every rank that said no is named") {
  ballast_test::check_complaints(engine_runner{}.run(3, [](auto& self, ballast_test::law_log& log) {
    auto const result = self.control.vote(self.rank() == 0, ballast_test::patience);
    log.expect_failure(result.reason, {errc::transport_failed}, "rank 1, rank 2 voted no", "vote");
    log.expect(result.reason.rank() == 1, "rank ", result.reason.rank(), " is blamed");
    ballast_test::meet(self, log);
  }));
}

TEST_CASE("of several that say no, the one is told that knows most of why") {
  ballast_test::check_complaints(engine_runner{}.run(4, [](auto& self, ballast_test::law_log& log) {
    auto const vote = [&](ballast::status const& of_1, ballast::status const& of_2) {
      switch (self.rank()) {
        case 1: return self.control.vote_no(of_1, ballast_test::patience);
        case 2: return self.control.vote_no(of_2, ballast_test::patience);
        default: return self.control.vote(true, ballast_test::patience);
      }
    };
    ballast::status const nothing;
    ballast::status const late{errc::deadline_exceeded, "rank 3 is late", 3};
    ballast::status const own{errc::out_of_memory, "no staging"};
    auto result = vote(late, own).reason;
    log.expect_failure(result, {errc::out_of_memory}, "rank 1, rank 2 voted no; rank 2: out of memory", "own");
    log.expect(result.rank() == 2, "rank ", result.rank(), " is blamed for its own");
    result = vote(nothing, late).reason;
    log.expect_failure(result, {errc::deadline_exceeded},
                       "rank 1, rank 2 voted no; rank 2 because of rank 3: deadline exceeded", "late");
    log.expect(result.rank() == 3, "rank ", result.rank(), " is blamed for being late");
    result = vote(nothing, nothing).reason;
    log.expect(result.message() == "rank 1, rank 2 voted no" && result.rank() == 1,
               "without reasons: ", result.message());
    ballast_test::meet(self, log);
  }));
}

TEST_CASE(
    "whoever meets a rank that regroups fails at once, knows of the trouble, and waits for nobody until regroup") {
  auto const quitter = frame{.what = frame::regroups};
  std::vector<answer> answers{quitter};
  auto plane = scripted(answers);
  CHECK(plane.trouble().ok());
  std::array<std::int64_t, 1> value{3};
  check_failure(plane.all_reduce(value, ballast_test::patience), errc::transport_failed,
                "rank 1 has given up and regroups", 1);
  check_failure(plane.trouble(), errc::transport_failed, "rank 1 has given up and regroups", 1);
  check_failure(plane.all_reduce(value, ballast_test::patience), errc::transport_failed, "rank 1", 1);  // asks nobody
  CHECK(plane.vote(true, ballast_test::patience).outcome == decision::drop);
  answers = {quitter};
  CHECK(plane.regroup(0).ok());
  CHECK(plane.trouble().ok());
}

TEST_CASE("a rank that has given up and recalls tells so too") {
  std::vector<answer> answers{frame{.what = frame::recalls, .call = 0, .has_given_up = true}};
  auto plane = scripted(answers);
  std::array<std::int64_t, 1> value{};
  check_failure(plane.all_reduce(value, ballast_test::patience), errc::transport_failed, "rank 1 has given up", 1);
}

TEST_CASE("the frames of recall and regroup tell that their sender has given up, those before do not") {
  std::vector<bool> told;
  ballast::engine_control plane{0,
                                2,
                                [&](words_view mine, words_out, nanoseconds_t) {
                                  told.push_back(mine[0] >> 63 != 0);
                                  return late();
                                },
                                {.frame_words = frame_words}};
  static_cast<void>(plane.vote(true, 0));
  static_cast<void>(plane.recall(0));
  plane.give_up({errc::busy, "no time"});
  static_cast<void>(plane.recall(0));
  CHECK(told == std::vector<bool>{false, false, true});
}

TEST_CASE("after give_up calls fail at once with the reason, the first one, and a regroup tells the others") {
  std::vector<answer> answers;
  auto plane = scripted(answers);
  plane.give_up({errc::out_of_memory, "no staging"});
  plane.give_up({errc::internal, "something else"});
  std::array<std::int64_t, 1> value{};
  check_failure(plane.all_reduce(value, ballast_test::patience), errc::out_of_memory, "no staging", 0);
  check_failure(plane.trouble(), errc::out_of_memory, "rank 0 has given up: no staging", 0);
  auto const vote = plane.vote(true, ballast_test::patience);
  CHECK(vote.outcome == decision::drop);
  answers = {frame{.what = frame::regroups}, frame{.what = frame::reduces, .generation = 1}};
  CHECK(plane.regroup(0).ok());
  CHECK(plane.all_reduce(value, 0).ok());
}

TEST_CASE("giving up for no reason is still giving up") {
  std::vector<answer> answers;
  auto plane = scripted(answers);
  plane.give_up({});
  CHECK_FALSE(plane.trouble().ok());
}

TEST_CASE("a rank can recall after it has given up, and regroup whatever it knows of a vote") {
  auto const other = frame{.what = frame::regroups, .last_vote = 1, .history = committed};
  std::vector<answer> answers{late(), other, other};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  plane.give_up({errc::undecided, "vote"});
  CHECK(plane.recall(0).outcome == decision::commit);
  CHECK(plane.regroup(0).ok());
}

TEST_CASE("a regroup settles an undecided vote too, and recall then tells it without asking") {
  for (bool const is_committed : {true, false}) {
    // The other has made more votes, so that the last number is none of this rank's.
    std::vector<answer> answers{
        late(), frame{.what = frame::regroups,
                      .last_vote = 4,
                      .history = history({is_committed ? committed : dropped, dropped, committed, dropped})}};
    auto plane = scripted(answers);
    CHECK(plane.vote(true, 0).outcome == decision::undecided);
    CHECK(plane.regroup(0).ok());
    auto const result = plane.recall(0);
    CHECK(result.outcome == (is_committed ? decision::commit : decision::drop));
    CHECK(result.reason.ok() == is_committed);
    CHECK(result.reason.rank() == (is_committed ? status::no_rank : 1));
  }
}

TEST_CASE("a regroup that the others forget the vote in leaves it undecided, also when it is forgotten here") {
  std::vector<answer> answers{late(), frame{.what = frame::regroups, .last_vote = 40}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  CHECK(plane.regroup(0).ok());
  CHECK(plane.recall(0).outcome == decision::undecided);
}

TEST_CASE("ranks that regroup take the largest proposal and the largest number of a vote") {
  auto const other = frame{.what = frame::regroups, .last_vote = 7, .history = dropped, .proposal = 3};
  std::vector<answer> answers{other, other, frame{.size = 8, .last_vote = 7, .generation = 3}};
  auto plane = scripted(answers);
  CHECK(plane.regroup(ballast_test::patience).ok());
  CHECK(plane.vote(true, 0).outcome == decision::commit);  // vote 8 of generation 3
  CHECK(answers.empty());
}

TEST_CASE("a rank whose all-gather failed when the others regrouped learns so from what they do next") {
  // Rank 1 has begun generation 1 with vote 5 as the last of old, and has voted twice since.
  std::vector<answer> answers{
      late(), frame{.what = frame::reduces, .size = 1, .call = 4, .last_vote = 7, .generation = 1, .first_vote = 5},
      frame{.size = 6, .call = 1, .last_vote = 5, .generation = 1, .first_vote = 5}};
  auto plane = scripted(answers);
  CHECK_FALSE(plane.regroup(0).ok());
  CHECK_FALSE(plane.trouble().ok());
  CHECK(plane.regroup(ballast_test::patience).ok());
  CHECK(plane.trouble().ok());
  CHECK(plane.vote(true, 0).outcome == decision::commit);  // vote 6
}

TEST_CASE("no number of a vote is used twice, whatever another rank tells of its last one") {
  std::vector<answer> answers{frame{}, late(), frame{.what = frame::reduces, .generation = 1},
                              frame{.size = 2, .last_vote = 1, .generation = 1}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::commit);
  CHECK_FALSE(plane.regroup(0).ok());
  CHECK(plane.regroup(0).ok());
  CHECK(plane.vote(true, 0).outcome == decision::commit);  // vote 2, not 1 again
}

TEST_CASE("a rank that missed a regroup goes along when the others regroup again") {
  auto const again = frame{.what = frame::regroups, .last_vote = 2, .generation = 1, .proposal = 2, .first_vote = 1};
  std::vector<answer> answers{late(), again, again, frame{.size = 3, .last_vote = 2, .generation = 2}};
  auto plane = scripted(answers);
  CHECK_FALSE(plane.regroup(0).ok());
  CHECK(plane.regroup(ballast_test::patience).ok());
  CHECK(plane.vote(true, 0).outcome == decision::commit);  // vote 3 of generation 2
}

TEST_CASE("a rank that is generations behind proposes one that is new to all") {
  std::vector<answer> answers{
      frame{.what = frame::reduces, .call = 8, .last_vote = 4, .generation = 5, .first_vote = 3},
      frame{.what = frame::regroups, .last_vote = 4, .generation = 5, .first_vote = 3},
      frame{.size = 5, .last_vote = 4, .generation = 6}};
  auto plane = scripted(answers);
  CHECK(plane.regroup(ballast_test::patience).ok());
  CHECK(plane.vote(true, 0).outcome == decision::commit);  // vote 5 of generation 6
}

TEST_CASE("frames tell which vote was the last before their generation, for ranks that missed its beginning") {
  std::vector<std::uint64_t> sent;
  int num_gathers = 0;
  ballast::engine_control plane{0,
                                2,
                                [&](words_view mine, words_out all, nanoseconds_t) {
                                  sent.assign(mine.begin(), mine.end());
                                  auto const what = ++num_gathers == 1 ? frame::regroups : frame::votes;
                                  auto const generation = num_gathers == 1 ? std::uint64_t{0} : std::uint64_t{1};
                                  auto const other = frame{.what = what,
                                                           .size = static_cast<std::uint64_t>(6 + num_gathers),
                                                           .call = static_cast<std::uint64_t>(num_gathers - 1),
                                                           .last_vote = static_cast<std::uint64_t>(5 + num_gathers),
                                                           .generation = generation};
                                  std::ranges::copy(mine, all.begin());
                                  std::ranges::copy(other.words(), all.begin() + frame_words);
                                  return status{};
                                },
                                {.frame_words = frame_words}};
  CHECK(plane.regroup(0).ok());  // after vote 6
  for (int vote = 0; vote < 3; ++vote) {
    static_cast<void>(plane.vote(true, 0));
    CHECK(sent[8] == 6);
  }
}

TEST_CASE("whoever has begun a generation waits for a rank that does not know it yet") {
  auto const proposing = frame{.what = frame::regroups};
  std::vector<answer> answers{proposing, proposing, frame{.generation = 1}};
  auto plane = scripted(answers);
  CHECK(plane.regroup(0).ok());
  CHECK(plane.vote(true, ballast_test::patience).outcome == decision::commit);
  CHECK(answers.empty());
}

TEST_CASE("a rank of another generation is told apart from one that is late") {
  std::vector<answer> answers{frame{.generation = 2}};
  auto plane = scripted(answers);
  auto const result = plane.vote(true, ballast_test::patience);
  CHECK(result.outcome == decision::drop);
  check_failure(result.reason, errc::transport_failed, "rank 1 has regrouped 2 times, rank 0 0 times", 1);
}

TEST_CASE("a rank that goes on in an older generation is not waited for") {
  std::vector<answer> answers{frame{.what = frame::regroups}, frame{.what = frame::reduces}};
  auto plane = scripted(answers);
  CHECK(plane.regroup(0).ok());
  std::array<std::int64_t, 1> value{};
  check_failure(plane.all_reduce(value, ballast_test::patience), errc::transport_failed,
                "rank 1 has regrouped 0 times, rank 0 1 times", 1);
  CHECK_FALSE(plane.trouble().ok());
}

TEST_CASE("a regroup that a rank does not come to says which") {
  std::vector<answer> answers{frame{.what = frame::reduces}};
  auto plane = scripted(answers);
  check_failure(plane.regroup(0), errc::deadline_exceeded, "regroup: rank 1 did not come in time", 1);
}

TEST_CASE("a frame of a rank that has given up says whom it blames, and what for") {
  auto const blaming = [](std::uint64_t culprit, std::uint64_t code) {
    frame other{.what = frame::regroups};
    other.sender = code << 56 | (culprit + 1) << 32 | 1;
    std::vector<answer> answers{other};
    auto plane = scripted(answers);
    std::array<std::int64_t, 1> value{};
    static_cast<void>(plane.all_reduce(value, 1));
    return plane.trouble();
  };
  auto const late_code = static_cast<std::uint64_t>(errc::deadline_exceeded);
  check_failure(blaming(0, late_code), errc::deadline_exceeded,
                "rank 1 has given up and regroups because of rank 0: deadline exceeded", 0);
  check_failure(blaming(1, late_code), errc::deadline_exceeded, "rank 1 has given up and regroups: deadline exceeded",
                1);
  check_failure(blaming(1, 0), errc::transport_failed, "rank 1 has given up and regroups", 1);
}

TEST_CASE("a dead rank is trouble until a call goes well without it") {
  std::vector<answer> answers{status{errc::peer_lost, "rank 1 is dead", 1}, frame{.what = frame::reduces, .call = 2}};
  auto plane = scripted(answers);
  std::array<std::int64_t, 1> value{};
  check_failure(plane.all_reduce(value, 0), errc::peer_lost, "rank 1 is dead", 1);
  check_failure(plane.trouble(), errc::peer_lost, "rank 1 is dead", 1);
  CHECK(plane.all_reduce(value, 0).ok());
  CHECK(plane.trouble().ok());
}

TEST_CASE("an expelled rank adds nothing, and others' words stand in for its own") {
  // Rank 0 of three, of which rank 1 is expelled.
  struct shrunk_gather {
    frame third;
    status operator()(words_view mine, words_out all, nanoseconds_t) const {
      std::ranges::copy(mine, all.begin());
      std::ranges::copy(mine, all.begin() + frame_words);
      std::ranges::copy(third.words(), all.begin() + 2 * frame_words);
      return {};
    }
  };
  struct membership {
    std::uint64_t operator()() const { return 2; }
  };
  auto const plane_with = [](frame third) {
    third.sender = 2;
    return ballast::engine_control<shrunk_gather, membership>{
        0, 3, shrunk_gather{third}, {.frame_words = frame_words}, membership{}};
  };
  auto plane = plane_with({.what = frame::reduces, .payload = 30});
  std::array<std::int64_t, 1> sum{5};
  CHECK_FALSE(plane.is_expelled(1));
  CHECK(plane.all_reduce(sum, 0).ok());
  CHECK(sum[0] == 35);
  CHECK(plane.is_expelled(1));
  CHECK_FALSE(plane.is_expelled(0));
  CHECK_FALSE(plane.is_expelled(2));

  auto gathering = plane_with({.what = frame::gathers, .payload = 30});
  std::array<std::uint64_t, 1> const mine{5};
  std::array<std::uint64_t, 3> all{};
  CHECK(gathering.all_gather(mine, all, 0).ok());
  CHECK(all == std::array<std::uint64_t, 3>{5, 5, 30});

  auto voting = plane_with({});
  CHECK(voting.vote(true, 0).outcome == decision::commit);
  auto refusing = plane_with({});
  CHECK(refusing.vote(false, 0).reason.message() == "rank 0 voted no");

  // Words of rank 0 in its place, but not those that rank 0 has sent.
  struct old_words : shrunk_gather {
    status operator()(words_view mine, words_out all, nanoseconds_t left) const {
      static_cast<void>(shrunk_gather::operator()(mine, all, left));
      all[frame_words + 4] = 0;
      return {};
    }
  };
  ballast::engine_control<old_words, membership> puzzled{
      0, 3, old_words{{frame{.sender = 2}}}, {.frame_words = frame_words}, membership{}};
  check_failure(puzzled.vote(true, 0).reason, errc::transport_failed, "as rank 1's words", 1);

  auto casting = plane_with({.what = frame::broadcasts, .root = 1, .size = 8});
  std::array<std::byte, 8> bytes{};
  check_failure(casting.broadcast(bytes, 1, 0), errc::peer_lost, "root rank 1 was expelled", 1);
}

TEST_CASE("what an all-gather throws is a failure that leaves a vote undecided") {
  std::vector<answer> answers;
  auto plane = scripted(answers);
  auto const result = plane.vote(true, ballast_test::patience);
  CHECK(result.outcome == decision::undecided);
  check_failure(result.reason, errc::transport_failed, "nothing more is scripted", 0);

  auto const throwing = [](words_view, words_out, nanoseconds_t) -> status { throw 3; };
  ballast::engine_control other{0, 2, throwing};
  CHECK(other.regroup(ballast_test::patience).code() == make_error_code(errc::transport_failed));
}

TEST_CASE("an all-gather that hands out wrong words commits nothing") {
  auto const try_vote = [](auto gather) {
    ballast::engine_control plane{1, 2, gather, {.frame_words = frame_words}};
    auto const result = plane.vote(true, ballast_test::patience);
    CHECK(result.outcome == decision::undecided);
    CHECK(result.reason.code() == make_error_code(errc::transport_failed));
  };
  try_vote([](words_view, words_out, nanoseconds_t) { return status{}; });  // nothing at all
  try_vote([](words_view mine, words_out all, nanoseconds_t) {              // one's own to everyone
    std::ranges::copy(mine, all.begin());
    std::ranges::copy(mine, all.begin() + frame_words);
    return status{};
  });
  try_vote([](words_view mine, words_out all, nanoseconds_t) {  // in another order
    std::ranges::copy(mine, all.begin());
    std::ranges::copy(frame{.sender = 0}.words(), all.begin() + frame_words);
    return status{};
  });
  try_vote([](words_view mine, words_out all, nanoseconds_t) {  // one's own of another call
    std::ranges::copy(frame{.sender = 0}.words(), all.begin());
    std::ranges::copy(mine, all.begin() + frame_words);
    all[frame_words + 4] = 0;
    return status{};
  });
  std::vector<answer> answers{std::vector<std::uint64_t>(frame_words, 0)};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
}

TEST_CASE("options and ranks that make no sense are refused, with the value") {
  std::vector<answer> answers;
  auto const make = [&](ballast::index_t rank, ballast::index_t num_ranks, std::size_t words) {
    try {
      ballast::engine_control<scripted_gather> const plane{
          rank, num_ranks, scripted_gather{&answers}, {.frame_words = words}};
    } catch (std::system_error const& error) {
      CHECK(error.code() == make_error_code(errc::invalid_option));
      return std::string{error.what()};
    }
    return std::string{"made"};
  };
  CHECK(make(0, 1, 11) == "made");
  CHECK(make(0, 1, 10).find("frame_words is 10") != std::string::npos);
  CHECK(make(0, 1, 0).find("frame_words is 0") != std::string::npos);
  CHECK(make(0, 2, std::numeric_limits<std::size_t>::max() / 8).find("too many") != std::string::npos);
  CHECK(make(2, 2, 64).find("rank 2 of 2 ranks") != std::string::npos);
  CHECK(make(-1, 2, 64).find("rank -1 of 2 ranks") != std::string::npos);
  CHECK(make(0, 0, 64).find("rank 0 of 0 ranks") != std::string::npos);
  CHECK(make(0, -3, 64).find("-3 ranks") != std::string::npos);
}

TEST_CASE("sizes and roots that make no sense are refused, and the next call is in step") {
  std::vector<answer> answers{frame{.what = frame::reduces, .call = 4}};
  auto plane = scripted(answers);
  std::array<std::uint64_t, 2> const mine{};
  std::array<std::uint64_t, 3> all{};
  check_failure(plane.all_gather(mine, all, 0), errc::invalid_option, "3 words", status::no_rank);
  std::array<std::byte, 1> byte{};
  check_failure(plane.broadcast(byte, 2, 0), errc::invalid_option, "root 2", status::no_rank);
  check_failure(plane.broadcast(byte, -1, 0), errc::invalid_option, "root -1", status::no_rank);
  std::array<std::int64_t, 1> value{};
  CHECK(plane.all_reduce(value, 0).ok());
}

TEST_CASE("the largest timeout is never over, and an all-gather may add the time to it") {
  constexpr auto forever = std::numeric_limits<nanoseconds_t>::max();
  nanoseconds_t least = forever, most = 0;
  int num_calls = 0;
  ballast::engine_control plane{0,
                                2,
                                [&](words_view mine, words_out all, nanoseconds_t timeout) {
                                  least = std::min(least, timeout);
                                  most = std::max(most, timeout);
                                  std::ranges::copy(mine, all.begin());
                                  auto const other = frame{.what = ++num_calls < 3 ? frame::recalls : frame::votes};
                                  std::ranges::copy(other.words(), all.begin() + frame_words);
                                  return status{};
                                },
                                {.frame_words = frame_words}};
  CHECK(plane.vote(true, forever).outcome == decision::commit);
  CHECK(num_calls == 3);
  CHECK(least > 1'000'000'000 * nanoseconds_t{3600} * 24 * 365);
  CHECK(most < forever - ballast::detail::now());
}

// ---- ranks that are stopped at any time, for any time ----

namespace {

using ballast_test::dice;
using ballast_test::paused_channel;
constexpr nanoseconds_t timeout = 1'000'000;  // in the channel's time

/// How the votes ended on each rank, by their number.
using outcomes = std::map<std::uint64_t, decision>;

/// A rank on a `paused_channel`. It notes every vote that it knows the outcome of.
class paused_rank {
public:
  paused_rank(paused_channel& channel, ballast::index_t rank)
      : channel_{&channel}, plane_{rank, channel.num_ranks(), gather{this, rank}, {.frame_words = 32}} {}
  paused_rank(paused_rank const&) = delete;
  paused_rank& operator=(paused_rank const&) = delete;
  ~paused_rank() = default;

  decision vote(bool yes, nanoseconds_t patience = timeout) {
    voted_on_ = 0;
    auto const outcome = called(patience).vote(yes, ballast_test::patience).outcome;
    is_new_ = is_new_ && (voted_on_ == 0 || seen_.empty() || voted_on_ > seen_.rbegin()->first);
    if (voted_on_ != 0) { seen_[voted_on_] = outcome; }  // else it has failed before a word was sent
    return outcome;
  }
  decision recall(nanoseconds_t patience = timeout) {
    auto const outcome = called(patience).recall(ballast_test::patience).outcome;
    for (auto& [number, how] : seen_) {
      if (how == decision::undecided) { how = outcome; }
    }
    return outcome;
  }
  bool reduce(nanoseconds_t patience = timeout) {
    std::array<std::int64_t, 1> one{1};
    return called(patience).all_reduce(one, ballast_test::patience).ok() && one[0] == channel_->num_ranks();
  }
  bool regroup(nanoseconds_t patience = timeout) {
    bool const done = called(patience).regroup(ballast_test::patience).ok();
    if (done && is_undecided()) { recall(0); }  // it asks nobody: the regroup has settled it
    return done;
  }
  void give_up() { plane_.give_up({errc::busy, "drawn"}); }
  [[nodiscard]] bool is_undecided() const {
    return std::ranges::any_of(seen_, [](auto const& vote) { return vote.second == decision::undecided; });
  }
  [[nodiscard]] bool in_trouble() const { return !plane_.trouble().ok(); }
  /// No vote has had a number that an earlier one had.
  [[nodiscard]] bool numbers_are_new() const { return is_new_; }
  [[nodiscard]] outcomes const& seen() const { return seen_; }
  void sleep(nanoseconds_t duration) { channel_->sleep(plane_.rank(), duration); }
  void meet() { channel_->meet(plane_.rank()); }

private:
  struct gather {
    paused_rank* self;
    ballast::index_t rank;
    status operator()(words_view mine, words_out all, nanoseconds_t) {
      if (mine[0] >> 32 == frame::votes) { self->voted_on_ = mine[1]; }
      return self->channel_->gather(rank, mine, all);
    }
  };
  ballast::engine_control<gather>& called(nanoseconds_t patience) {
    channel_->begin_call(plane_.rank(), patience);
    return plane_;
  }

  paused_channel* channel_;
  std::uint64_t voted_on_ = 0;
  bool is_new_ = true;
  outcomes seen_;
  ballast::engine_control<gather> plane_;
};

/// From a tenth of the timeout to three of them.
nanoseconds_t some_pause(dice& random) { return timeout / 10 + random.below(timeout * 29 / 10); }

// Votes and other calls until something goes wrong, and what an engine does then.
void live(paused_rank& self, dice& random) {
  auto const maybe_stop = [&] {
    if (random.below(12) == 0) { self.sleep(some_pause(random)); }
  };
  for (int round = 0; round < 5; ++round) {
    for (int step = 0; step < 6; ++step) {
      maybe_stop();
      if (random.below(3) == 0 && !self.reduce()) { break; }
      maybe_stop();
      auto outcome = self.vote(random.below(16) != 0);
      for (int attempt = 0; attempt < 2 && outcome == decision::undecided; ++attempt) {
        maybe_stop();
        outcome = self.recall(timeout / 4 + random.below(2 * timeout));
      }
      if (outcome != decision::commit) { break; }
    }
    if (random.below(4) == 0) { self.give_up(); }
    for (int attempt = 0; attempt < 3; ++attempt) {
      maybe_stop();
      if (self.is_undecided() && random.below(2) == 0) { self.recall(); }
      if (self.regroup(timeout / 4 + random.below(2 * timeout))) { break; }
    }
  }
}

// Nobody is stopped any more: one regroup, then everything works.
void heal(paused_rank& self, ballast_test::law_log& log) {
  constexpr auto patience = 100 * timeout;
  self.meet();
  log.expect(self.regroup(patience), "regroup failed");
  log.expect(!self.is_undecided(), "a vote is undecided when all ranks have regrouped");
  log.expect(!self.in_trouble(), "there is trouble after a regroup");
  for (int call = 0; call < 20; ++call) {
    bool const fine = call % 2 == 0 ? self.reduce(patience) : self.vote(true, patience) == decision::commit;
    if (!log.expect(fine, "call ", call, " after a regroup went wrong")) { return; }
  }
  log.expect(self.numbers_are_new(), "two votes had the same number");
}

void compare(std::vector<outcomes> const& seen, ballast_test::law_log& log) {
  outcomes known;
  for (auto const& mine : seen) {
    for (auto const& [number, outcome] : mine) {
      if (outcome == decision::undecided) { continue; }
      auto const& first = known.emplace(number, outcome).first->second;
      log.expect(first == outcome, "vote ", number, " committed on one rank and dropped on another");
    }
  }
}

struct tally {
  int commits = 0, drops = 0, undecided = 0;
};

template <class Body>
std::vector<std::string> on_paused_ranks(paused_channel& channel, tally& counts, Body body) {
  auto const size = static_cast<std::size_t>(channel.num_ranks());
  std::vector<outcomes> seen(size);
  std::vector<ballast_test::law_log> logs;
  for (ballast::index_t rank = 0; rank <= channel.num_ranks(); ++rank) { logs.emplace_back(rank); }
  channel.run([&](ballast::index_t rank) {
    auto const index = static_cast<std::size_t>(rank);
    paused_rank self{channel, rank};
    body(self, rank, logs[index]);
    seen[index] = self.seen();
  });
  compare(seen, logs.back());
  std::vector<std::string> complaints;
  for (auto const& log : logs) {
    complaints.insert(complaints.end(), log.complaints().begin(), log.complaints().end());
  }
  for (auto const& mine : seen) {
    for (auto const& [number, outcome] : mine) {
      counts.commits += outcome == decision::commit;
      counts.drops += outcome == decision::drop;
      counts.undecided += outcome == decision::undecided;
    }
  }
  return complaints;
}

}  // namespace

// Rank 2 is stopped in the last instant of a vote that the others commit; they go on to the next one, miss rank 2
// there, and recall. So does rank 2, which is one vote behind.
TEST_CASE("a rank that is stopped inside of a vote learns what the others committed, though they have voted since") {
  for (nanoseconds_t tenths = 11; tenths < 30; ++tenths) {
    CAPTURE(tenths);
    paused_channel channel{3};
    int num_gathers = 0;
    channel.stop_after_gathers([&](ballast::index_t rank) {
      return rank == 2 && ++num_gathers == 1 ? tenths * timeout / 10 : nanoseconds_t{0};
    });
    tally counts;
    ballast_test::check_complaints(
        on_paused_ranks(channel, counts, [](paused_rank& self, ballast::index_t rank, ballast_test::law_log& log) {
          auto outcome = self.vote(true);
          if (outcome == decision::undecided) { outcome = self.recall(10 * timeout); }
          log.expect(outcome == decision::commit, "vote 1 ended as ", static_cast<int>(outcome));
          if (rank == 2) { self.reduce(); }  // it knows of no vote 2
          if (rank == 2) { return; }
          outcome = self.vote(true, 3 * timeout / 2);
          if (outcome == decision::undecided) { outcome = self.recall(10 * timeout); }
          log.expect(outcome == decision::drop, "vote 2 ended as ", static_cast<int>(outcome));
        }));
  }
}

TEST_CASE("ranks that are stopped for any time never differ on a vote, and one regroup heals them") {
  tally counts;
  for (std::uint64_t seed = 1; seed <= 600; ++seed) {
    CAPTURE(seed);
    paused_channel channel{seed % 2 == 0 ? 3 : 4};
    dice inside{seed * 1000};
    std::vector<char> healing(static_cast<std::size_t>(channel.num_ranks()), 0);
    channel.stop_after_gathers([&](ballast::index_t rank) {
      bool const stops = inside.below(20) == 0 && healing[static_cast<std::size_t>(rank)] == 0;
      return stops ? some_pause(inside) : nanoseconds_t{0};
    });
    ballast_test::check_complaints(
        on_paused_ranks(channel, counts, [&](paused_rank& self, ballast::index_t rank, ballast_test::law_log& log) {
          dice random{seed * 1000 + 1 + static_cast<std::uint64_t>(rank)};
          live(self, random);
          healing[static_cast<std::size_t>(rank)] = 1;
          heal(self, log);
        }));
  }
  CHECK(counts.commits > 10'000);
  CHECK(counts.undecided == 0);
  CHECK(counts.drops > 1000);
}

// NOLINTBEGIN(bugprone-use-after-move,clang-analyzer-cplusplus.Move): what is left is what is tested
TEST_CASE("a control plane that was moved from says so in every call") {
  ballast::in_process_group group{1};
  control plane{0, 1, gather_on{&group.endpoint(0)}};
  control taken{std::move(plane)};
  auto const invalid = make_error_code(errc::invalid_option);
  CHECK(plane.num_ranks() == 0);
  CHECK_BREAKS_CONTRACT(plane.is_expelled(0));
  std::vector<std::int64_t> values{3};
  CHECK(plane.all_reduce(values, ballast_test::patience).message() == "engine_control: it was moved from");
  CHECK(plane.all_gather({}, {}, ballast_test::patience).code() == invalid);
  CHECK(plane.broadcast({}, 0, ballast_test::patience).code() == invalid);
  CHECK(plane.vote(true, ballast_test::patience).reason.code() == invalid);
  CHECK(plane.regroup(ballast_test::patience).code() == invalid);
  CHECK(taken.regroup(ballast_test::patience).ok());
  CHECK(taken.all_reduce(values, ballast_test::patience).ok());
  CHECK(values.front() == 3);
}
// NOLINTEND(bugprone-use-after-move,clang-analyzer-cplusplus.Move)
