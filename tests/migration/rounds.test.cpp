// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/migration/rounds.hpp>

#include "../support/long_runs.hpp"
#include "../support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <set>
#include <vector>

namespace {

using namespace ballast;

// Rounds are proper, and no more than the busiest endpoint has messages: the least that any schedule needs.
void check_rounds(index_t num_ranks, std::vector<message_ends> const& messages) {
  std::vector<index_t> sends(static_cast<std::size_t>(num_ranks));
  std::vector<index_t> receives(static_cast<std::size_t>(num_ranks));
  for (auto const& ends : messages) {
    ++sends[static_cast<std::size_t>(ends.sender)];
    ++receives[static_cast<std::size_t>(ends.receiver)];
  }
  round_coloring coloring;
  auto const rounds = coloring.assign(num_ranks, messages);
  CHECK(rounds == std::max(std::ranges::max(sends), std::ranges::max(receives)));
  std::set<std::pair<index_t, index_t>> senders;
  std::set<std::pair<index_t, index_t>> receivers;
  for (std::size_t m = 0; m < messages.size(); ++m) {
    auto const round = coloring.round_of(m);
    REQUIRE(round >= 0);
    REQUIRE(round < rounds);
    REQUIRE(senders.insert({messages[m].sender, round}).second);
    REQUIRE(receivers.insert({messages[m].receiver, round}).second);
  }
}

}  // namespace

TEST_CASE("no messages, no rounds") { CHECK(round_coloring{}.assign(4, {}) == 0); }

TEST_CASE("a rank may send and receive in one round") { check_rounds(3, {{0, 1}, {1, 2}, {2, 0}}); }

TEST_CASE("a path of alternating rounds is flipped where first fit would need a third round") {
  check_rounds(4, {{0, 1}, {2, 3}, {0, 3}, {2, 1}, {3, 0}, {1, 0}});
}

TEST_CASE("random multigraphs, complete exchanges and stars get the fewest rounds possible") {
  ballast_test::generator random{3};
  for (int trial = 0, count = ballast_test::cases(500); trial < count; ++trial) {
    auto const num_ranks = random.between(1, 40);
    std::vector<message_ends> messages;
    for (auto left = random.below(300); left > 0; --left) {
      messages.push_back({random.below(num_ranks), random.below(num_ranks)});
    }
    check_rounds(num_ranks, messages);
  }
  std::vector<message_ends> all_to_all;
  std::vector<message_ends> star;
  for (index_t a = 0; a < 24; ++a) {
    star.push_back({0, a});
    for (index_t b = 0; b < 24; ++b) { all_to_all.push_back({a, b}); }
  }
  check_rounds(24, all_to_all);
  check_rounds(24, star);
}
