// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/runtime/detail/words.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <vector>

using namespace ballast;
using detail::exchanged_words;
using detail::standing;
using detail::step_word;

namespace {

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
    CHECK(step_word::failed(committed).stands() == standing::failed);
    CHECK(step_word::failed(committed).committed() == committed);
  }
  CHECK(step_word{} == step_word::recording(0, 0));
}

TEST_CASE("words that differ in standing, groups or wait differ in bits") {
  std::vector<step_word> const all{step_word::recording(5, 3), step_word::recording(5, 4),  step_word::recording(6, 3),
                                   step_word::moving(5, true), step_word::moving(5, false), step_word::failed(5)};
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
                           step_word::recording(4, 1), step_word::recording(5, 1), step_word::failed(4)}) {
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
  auto const words = bits_of(
      {step_word::moving(2, true), step_word::failed(2), step_word::recording(3, 9), step_word::recording(2, 5)});
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
  } const cases[] = {{step_word::failed(2), true, true},
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
