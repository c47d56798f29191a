// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/transport/engine_control.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/control_laws.hpp"
#include "support/in_process_runner.hpp"
#include "support/law_log.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <span>
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
static_assert(ballast::control_plane<control>);

struct engine_runner {
  static constexpr bool can_lose_ranks = true;
  [[nodiscard]] std::vector<ballast::index_t> sizes() const { return {1, 2, 5}; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    return ballast_test::in_process_runner{}.run(num_ranks, [&](auto& inner, ballast_test::law_log& log) {
      control plane{inner.rank(), inner.num_ranks(), gather_on{&inner.control}};
      ballast_test::law_endpoint<control, ballast::in_process_endpoint> self{plane, inner.transport, inner.die};
      body(self, log);
    });
  }
};

/// An all-gather in which the test decides what comes back: the other rank's frame, or a failure.
struct scripted_gather {
  std::vector<std::vector<std::uint64_t>>* answers;  // rank 1's frames, in order; an empty one is a failure
  status operator()(words_view mine, words_out all, nanoseconds_t) {
    auto const answer = answers->front();
    answers->erase(answers->begin());
    if (answer.empty()) { return {errc::deadline_exceeded, "rank 1 did not come in time"}; }
    std::ranges::copy(mine, all.begin());
    std::ranges::copy(answer, all.begin() + static_cast<std::ptrdiff_t>(mine.size()));
    return {};
  }
};

constexpr std::uint64_t recalls = 0;
constexpr std::uint64_t votes = std::uint64_t{4} << 32;
// What rank 1 does, at which call, and how its last vote ended.
std::vector<std::uint64_t> frame(std::uint64_t what, std::uint64_t call, std::uint64_t num_votes, decision outcome,
                                 std::uint64_t payload = 1) {
  return {what, 1, call, 0, num_votes, static_cast<std::uint64_t>(outcome), payload, 0};
}

ballast::engine_control<scripted_gather> scripted(std::vector<std::vector<std::uint64_t>>& answers) {
  return {0, 2, scripted_gather{&answers}, {.frame_words = 8}};
}

}  // namespace

TEST_CASE("a control plane derived from an all-gather obeys the laws") {
  ballast_test::check_control_laws(engine_runner{});
}

TEST_CASE("an undecided vote commits when another rank has committed it") {
  std::vector<std::vector<std::uint64_t>> answers{{}, frame(votes, 2, 1, decision::commit)};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  auto const result = plane.recall(0);
  CHECK(result.outcome == decision::commit);
  CHECK(result.reason.ok());
}

TEST_CASE("an undecided vote drops when no other rank has committed it") {
  std::vector<std::vector<std::uint64_t>> answers{{}, frame(recalls, 1, 1, decision::undecided)};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  auto const result = plane.recall(0);
  CHECK(result.outcome == decision::drop);
  CHECK_FALSE(result.reason.ok());
  CHECK(plane.recall(0).outcome == decision::drop);  // settled: nobody is asked again
}

TEST_CASE("an outcome of another vote settles nothing") {
  std::vector<std::vector<std::uint64_t>> answers{{}, frame(votes, 1, 0, decision::commit)};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  CHECK(plane.recall(0).outcome == decision::drop);
}

TEST_CASE("a rank that said no needs nobody to know that the vote dropped") {
  std::vector<std::vector<std::uint64_t>> answers{{}};
  auto plane = scripted(answers);
  CHECK(plane.vote(false, 0).outcome == decision::drop);
}

TEST_CASE("a recall that fails leaves the vote undecided") {
  std::vector<std::vector<std::uint64_t>> answers{{}, {}};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, 0).outcome == decision::undecided);
  auto const result = plane.recall(0);
  CHECK(result.outcome == decision::undecided);
  CHECK(result.reason.code() == make_error_code(errc::deadline_exceeded));
}

TEST_CASE("a call that meets a recall is repeated") {
  std::vector<std::vector<std::uint64_t>> answers{frame(recalls, 0, 0, decision::undecided),
                                                  frame(votes, 1, 0, decision::drop)};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, ballast_test::patience).outcome == decision::commit);
  CHECK(answers.empty());
}

TEST_CASE("a call that meets an earlier one is repeated, and one that meets a later one is late") {
  std::vector<std::vector<std::uint64_t>> answers{
      frame(votes, 0, 0, decision::drop), frame(votes, 1, 0, decision::drop), frame(votes, 3, 0, decision::drop)};
  auto plane = scripted(answers);
  CHECK(plane.vote(true, ballast_test::patience).outcome == decision::commit);
  auto const result = plane.vote(true, ballast_test::patience);
  CHECK(result.outcome == decision::undecided);
  CHECK(result.reason.message().find("rank 0 is late: rank 1 is at call 3") != std::string::npos);
}

TEST_CASE("different calls are told apart") {
  std::vector<std::vector<std::uint64_t>> answers{frame(votes, 1, 0, decision::drop)};
  auto plane = scripted(answers);
  std::array<std::int64_t, 1> value{};
  CHECK(plane.all_reduce(value, 0).code() == make_error_code(errc::disagreement));
}

TEST_CASE("every rank that said no is named") {
  ballast_test::check_complaints(engine_runner{}.run(3, [](auto& self, ballast_test::law_log& log) {
    auto const result = self.control.vote(self.rank() == 0, ballast_test::patience);
    log.expect_failure(result.reason, {errc::transport_failed}, "rank 1, rank 2 voted no", "vote");
    ballast_test::meet(self, log);
  }));
}
