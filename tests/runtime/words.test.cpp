// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/runtime/detail/words.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <vector>

using namespace ballast;
using detail::exchanged_words;
using detail::failure_cause;
using detail::standing;
using detail::step_word;

namespace {

constexpr failure_cause own_fault{errc::out_of_memory, 1};
constexpr std::uint64_t most_groups = (std::uint64_t{1} << 31) - 2;

[[nodiscard]] std::vector<std::uint64_t> bits_of(std::vector<step_word> const& words) {
  std::vector<std::uint64_t> bits;
  for (auto const& word : words) { bits.push_back(word.bits()); }
  return bits;
}

}  // namespace

TEST_CASE("a word says again what was put into it") {
  for (std::uint64_t const committed : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{77}, most_groups}) {
    for (index_t const waited : {0, 1, 1'000'000, 2'147'483'647}) {
      auto const word = step_word::recording(committed, waited);
      CHECK(word.stands() == standing::recording);
      CHECK(word.committed() == committed);
      CHECK(word.waited() == waited);
      CHECK_FALSE(word.moves());
    }
    CHECK(step_word::moving(committed, true).stands() == standing::ready);
    CHECK(step_word::moving(committed, false).stands() == standing::pending);
    CHECK(step_word::moving(committed, true).committed() == committed);
    CHECK(step_word::moving(committed, false).committed() == committed);
    CHECK(step_word::moving(committed, false).moves());
    for (index_t const culprit : {-1, 0, 7, (1 << 24) - 2}) {
      for (auto const why : {errc::invalid_topology, errc::deadline_exceeded, errc::internal}) {
        auto const word = step_word::failed(committed, {why, culprit});
        CHECK(word.stands() == standing::failed);
        CHECK(word.committed() == committed);
        CHECK(word.cause() == failure_cause{why, culprit});
      }
    }
  }
  CHECK(step_word{} == step_word::recording(0, 0));
}

TEST_CASE("words that differ in standing, groups or wait differ in bits") {
  std::vector<step_word> const all{step_word::recording(5, 3),
                                   step_word::recording(5, 4),
                                   step_word::recording(6, 3),
                                   step_word::moving(5, true),
                                   step_word::moving(5, false),
                                   step_word::failed(5, {errc::busy, 1}),
                                   step_word::failed(5, {errc::busy, 2}),
                                   step_word::failed(5, {errc::internal, 1})};
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) { CHECK(all[i].bits() != all[j].bits()); }
  }
}

TEST_CASE("a group is committed by words only where it is ready on every live rank") {
  topology where{{3, 1, 1, 0}};
  auto const ready = step_word::moving(4, true);
  auto const here = bits_of({ready, ready, ready});
  CHECK(exchanged_words{here, where, 0}.all_ready(4));
  CHECK_FALSE(exchanged_words{here, where, 0}.all_ready(3));
  for (auto const other : {step_word::moving(4, false), step_word::moving(3, true), step_word::moving(5, true),
                           step_word::recording(4, 1), step_word::recording(5, 1), step_word::failed(4, own_fault)}) {
    auto const words = bits_of({ready, ready, other});
    CHECK_FALSE(exchanged_words{words, where, 0}.all_ready(4));
    CHECK_FALSE(exchanged_words{words, where, 2}.all_ready(4));
    where.set_live(2, false);
    CHECK(exchanged_words{words, where, 0}.all_ready(4));
    where.set_live(2, true);
  }
}

TEST_CASE("ranks that are ahead, have failed or do not move are named, the dead never") {
  topology where{{4, 1, 1, 0}};
  auto const words = bits_of({step_word::moving(2, true), step_word::failed(2, own_fault), step_word::recording(3, 9),
                              step_word::recording(2, 5)});
  exchanged_words const seen{words, where, 0};
  CHECK(seen.rank_ahead(2) == 2);
  CHECK(seen.rank_ahead(3) == -1);
  CHECK(seen.of(2).waited() == 9);
  CHECK(seen.failed_rank() == 1);
  CHECK(seen.idle_rank(2) == 3);
  CHECK(seen.idle_rank(3) == 2);
  CHECK(seen.idle_rank(4) == -1);
  // Of oneself one hears nothing new.
  CHECK(exchanged_words{words, where, 1}.failed_rank() == -1);
  CHECK(exchanged_words{words, where, 3}.idle_rank(2) == -1);

  where.set_live(1, false);
  where.set_live(2, false);
  CHECK(exchanged_words{words, where, 0}.failed_rank() == -1);
  CHECK(exchanged_words{words, where, 0}.rank_ahead(2) == -1);
}

TEST_CASE("everybody stands who does not move; in synchronous mode one that records may still vote") {
  topology const where{{2, 1, 1, 0}};
  struct {
    step_word other;
    bool stands_asynchronous;
    bool stands_synchronous;
  } const cases[] = {{step_word::failed(2, own_fault), true, true},
                     {step_word::recording(2, 0), true, false},
                     {step_word::moving(2, true), false, false},
                     {step_word::moving(2, false), false, false}};
  for (auto const& each : cases) {
    auto const words = bits_of({step_word::moving(2, true), each.other});
    exchanged_words const seen{words, where, 0};
    CHECK(seen.everybody_stands(true) == each.stands_asynchronous);
    CHECK(seen.everybody_stands(false) == each.stands_synchronous);
  }
}

TEST_CASE("a failure is its rank's own unless it names another, or was waited for in vain") {
  CHECK(failure_cause::of({errc::out_of_memory, "no staging"}, 3) == failure_cause{errc::out_of_memory, 3});
  CHECK(failure_cause::of({errc::peer_lost, "gone", 2}, 3) == failure_cause{errc::peer_lost, 2});
  CHECK(failure_cause::of({errc::deadline_exceeded, "no words"}, 3) == failure_cause{errc::deadline_exceeded, -1});
  CHECK(failure_cause::of({errc::deadline_exceeded, "late", 3}, 3) == failure_cause{errc::deadline_exceeded, 3});
  CHECK(failure_cause::of({std::make_error_code(std::errc::io_error), "a driver"}, 3) ==
        failure_cause{errc::transport_failed, 3});
}

TEST_CASE("of several ranks that gave up, the one is heard that is nearest to where the trouble began") {
  topology where{{5, 1, 1, 0}};
  auto const blames = [](index_t culprit) { return step_word::failed(2, {errc::deadline_exceeded, culprit}); };
  auto const ready = step_word::moving(2, true);
  struct {
    std::vector<step_word> words;
    index_t heard;   // by rank 0
    index_t origin;  // of what it is told
  } const cases[] = {
      {{ready, blames(3), ready, ready, ready}, 1, 3},
      {{ready, blames(-1), blames(3), ready, ready}, 2, 3},     // one that knows nothing is heard last
      {{ready, blames(2), blames(3), ready, ready}, 2, 3},      // rank 2 failed because of rank 3, rank 1 only of that
      {{ready, blames(2), blames(3), blames(3), ready}, 3, 3},  // a reason of its own
      {{ready, blames(2), blames(-1), ready, ready}, 1, 2},     // rank 2 does not know whom it waited for
      {{ready, blames(2), blames(0), ready, ready}, 2, 0},      // this rank
      {{ready, ready, blames(-1), ready, ready}, 2, 2},         // nobody knows more
      {{ready, blames(9), ready, ready, ready}, 1, 9},          // of no rank of this group: told as it is
  };
  for (auto const& each : cases) {
    auto const words = bits_of(each.words);
    exchanged_words const seen{words, where, 0};
    CHECK(seen.failed_rank() == each.heard);
    CHECK(seen.origin(each.heard) == each.origin);
  }
  // Two that blame each other: one of them, and no search without an end.
  auto const circle = bits_of({ready, blames(2), blames(1), ready, ready});
  exchanged_words const seen{circle, where, 0};
  CHECK(seen.failed_rank() == 1);
  auto const origin = seen.origin(1);
  CHECK((origin == 1 || origin == 2));
  // What a dead rank told last is not asked for.
  auto const words = bits_of({ready, blames(2), blames(3), ready, ready});
  where.set_live(2, false);
  CHECK(exchanged_words{words, where, 0}.failed_rank() == 1);
  CHECK(exchanged_words{words, where, 0}.origin(1) == 2);
}
