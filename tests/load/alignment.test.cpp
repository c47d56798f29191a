// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/alignment.hpp>
#include <ballast/load/decay_recorder.hpp>
#include <ballast/load/pass_recorder.hpp>
#include <ballast/load/window_recorder.hpp>

#include "support/archetypes.hpp"
#include "support/histories.hpp"
#include "support/random.hpp"
#include "support/simulated_ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

namespace {

using namespace ballast;
using ballast_test::align_all;
using ballast_test::generator;
using ballast_test::history_of;
using loads = std::vector<load_t>;

constexpr index_t num_layers = 2;
constexpr index_t num_experts = 3;
constexpr std::size_t num_cells = 6;

/// What every rank does in one pass: whether it counts it. Ranks pause in stretches, now and then all of them.
class traffic {
public:
  traffic(index_t num_ranks, std::uint64_t seed) : random_{seed}, left_(static_cast<std::size_t>(num_ranks)) {
    for (index_t rank = 0; rank < num_ranks; ++rank) {
      longest_.push_back(std::array<index_t, 4>{1, 3, 10, 40}[static_cast<std::size_t>(random_.below(4))]);
      counts_.push_back(random_.below(2));
    }
  }
  [[nodiscard]] std::vector<bool> next_pass() {
    std::vector<bool> counted;
    bool const nobody = random_.below(10) == 0;
    for (std::size_t rank = 0; rank < left_.size(); ++rank) {
      if (left_[rank] == 0) {
        counts_[rank] = 1 - counts_[rank];
        left_[rank] = random_.between(1, longest_[rank]);
      }
      --left_[rank];
      counted.push_back(!nobody && counts_[rank] != 0);
    }
    return counted;
  }
  [[nodiscard]] loads counts() {
    loads result;
    for (std::size_t i = 0; i < num_cells; ++i) { result.push_back(random_.below(100)); }
    return result;
  }

private:
  generator random_;
  std::vector<index_t> left_;
  std::vector<index_t> longest_;
  std::vector<index_t> counts_;
};

/// Recorders of all ranks, and others that know in each pass whether any rank counts it.
template <class Recorder>
struct cohort {
  std::vector<Recorder> ranks;
  std::vector<Recorder> oracles;

  template <class Options>
  cohort(index_t num_ranks, Options options) {
    for (index_t rank = 0; rank < num_ranks; ++rank) {
      ranks.emplace_back(num_layers, num_experts, options);
      oracles.emplace_back(num_layers, num_experts, options);
    }
  }
  void run(std::vector<bool> const& counted, traffic& source) {
    bool const any = std::find(counted.begin(), counted.end(), true) != counted.end();
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      auto const counts = source.counts();
      record(ranks[rank], counts);
      ranks[rank].end_pass(counted[rank]);
      if (counted[rank]) { record(oracles[rank], counts); }
      oracles[rank].end_pass(any);
    }
  }
  void clear() {
    for (auto& one : ranks) { one.clear(); }
    for (auto& one : oracles) { one.clear(); }
  }

private:
  static void record(Recorder& recorder, loads const& counts) {
    for (index_t layer = 0; layer < num_layers; ++layer) {
      auto const row = std::span{counts}.subspan(static_cast<std::size_t>(layer * num_experts), num_experts);
      recorder.record_logical(layer, row).or_throw();
    }
  }
};

template <class Recorder>
void check_against_oracle(std::vector<ballast_test::aligned> const& found, cohort<Recorder> const& group,
                          load_t tolerance) {
  for (std::size_t rank = 0; rank < found.size(); ++rank) {
    CAPTURE(rank);
    REQUIRE(found[rank].result.message().empty());
    auto const expected = history_of(group.oracles[rank]);
    REQUIRE(found[rank].history.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      REQUIRE(std::abs(found[rank].history[i] - expected[i]) <= tolerance);
    }
  }
}

template <class Recorder, class Options>
void compare_with_oracle(Options options, index_t num_ranks, std::uint64_t seed, load_t tolerance) {
  cohort<Recorder> group{num_ranks, options};
  traffic source{num_ranks, seed};
  generator random{seed};
  for (int dump = 0; dump < 5; ++dump) {
    for (auto passes = random.below(60); passes > 0; --passes) { group.run(source.next_pass(), source); }
    check_against_oracle(align_all(group.ranks), group, tolerance);
    if (random.below(3) != 0 && Recorder::clears_on_dump) { group.clear(); }
  }
}

pass_timeline timeline_of(std::vector<pass_span> spans, std::int64_t forgotten = pass_timeline::none) {
  return pass_timeline{std::move(spans), forgotten};
}

}  // namespace

// ---- the timeline ----

TEST_CASE("of runs, the timeline is the union") {
  generator random{5};
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<bool> counted(40, false);
    std::vector<pass_span> spans;
    for (auto n = random.below(8); n > 0; --n) {
      auto const first = random.between(-39, 0);
      auto const last = std::min(0, first + random.below(12));
      spans.push_back({first, last, last - first + 1});
      for (auto pass = first; pass <= last; ++pass) { counted[static_cast<std::size_t>(pass + 39)] = true; }
    }
    auto const all = timeline_of(spans);
    for (auto const& span : spans) {
      auto const after = std::count(counted.begin() + 40 + span.last, counted.end(), true);
      REQUIRE(all.passes_after(span.last) == after);
    }
    for (index_t pass = -41; pass <= 1; ++pass) {
      auto const from = std::clamp<index_t>(pass + 40, 0, 40);
      REQUIRE(all.passes_after(pass) == std::count(counted.begin() + from, counted.end(), true));
    }
    REQUIRE(all.num_passes() == std::count(counted.begin(), counted.end(), true));
  }
}

TEST_CASE("of spans with gaps, the timeline never says too much, nor less than any one rank knows") {
  generator random{6};
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<bool> any(60, false);
    std::vector<pass_span> spans;
    std::vector<std::vector<pass_span>> of_ranks;
    for (int rank = 0; rank < 3; ++rank) {
      std::vector<pass_span> mine;
      std::int64_t const bucket = random.between(1, 5);
      for (index_t pass = -59; pass <= 0; ++pass) {
        if (random.below(3) == 0) { continue; }
        any[static_cast<std::size_t>(pass + 59)] = true;
        if (mine.empty() || mine.back().passes == bucket) { mine.push_back({pass, pass, 0}); }
        mine.back().last = pass;
        ++mine.back().passes;
      }
      spans.insert(spans.end(), mine.begin(), mine.end());
      of_ranks.push_back(mine);
    }
    auto const all = timeline_of(spans);
    for (index_t pass = -60; pass <= 0; ++pass) {
      REQUIRE(all.passes_after(pass) <= std::count(any.begin() + std::min(59, pass + 59) + 1, any.end(), true));
    }
    for (auto const& mine : of_ranks) {
      auto const known = std::accumulate(mine.begin(), mine.end(), std::int64_t{0},
                                         [](std::int64_t sum, pass_span const& span) { return sum + span.passes; });
      REQUIRE(all.num_passes() >= known);
    }
    std::reverse(spans.begin(), spans.end());
    auto const again = timeline_of(spans);
    REQUIRE(std::ranges::equal(again.stretches(), all.stretches()));
  }
}

TEST_CASE("runs and spans with gaps make up the most that is certain") {
  CHECK(timeline_of({{-19, -10, 10}, {-16, 0, 8}}).num_passes() == 11);  // the run up to -17, then the span
  CHECK(timeline_of({{-19, -10, 10}, {-16, 0, 7}}).num_passes() == 10);
  CHECK(timeline_of({{-19, -10, 10}, {-16, -12, 4}, {-9, -5, 2}}).num_passes() == 12);
}

TEST_CASE("a timeline of nothing") {
  auto const none = timeline_of({{}, {-3, -3, 0}});
  CHECK(none.num_passes() == 0);
  CHECK(none.passes_after(-5) == 0);
  CHECK(none.passes_after(pass_timeline::none) == 0);
  CHECK(none.passes_after(std::numeric_limits<std::int64_t>::max()) == 0);
}

// ---- exact: recorders that know each pass ----

TEST_CASE("windows of one-pass buckets are those of recorders that had known who counts") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    auto const window = static_cast<index_t>(1 + seed % 13);
    compare_with_oracle<window_recorder>(window_options{.passes = window, .buckets = window},
                                         static_cast<index_t>(1 + seed % 5), seed, 0);
  }
}

TEST_CASE("passes kept one by one are those that any rank counted, from the first on") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    compare_with_oracle<pass_recorder>(pass_options{.capacity = static_cast<index_t>(1 + seed * 3 % 100)},
                                       static_cast<index_t>(1 + seed % 5), seed, 0);
  }
}

TEST_CASE("a window of an idle rank holds nothing that has left the others'") {
  cohort<window_recorder> group{2, window_options{.passes = 4}};
  traffic source{2, 1};
  for (int pass = 0; pass < 4; ++pass) { group.run({true, true}, source); }
  for (int pass = 0; pass < 4; ++pass) { group.run({true, false}, source); }
  auto const found = align_all(group.ranks);
  CHECK(found[0].history == history_of(group.ranks[0]));
  CHECK(found[1].history == loads(4 * num_cells, 0));
}

TEST_CASE("one idle pass does not make a history of another size") {
  cohort<pass_recorder> group{2, pass_options{}};
  traffic source{2, 1};
  group.run({true, true}, source);
  group.run({true, false}, source);
  group.run({true, true}, source);
  auto const found = align_all(group.ranks);
  auto const kept = history_of(group.ranks[1]);
  CHECK(found[0].history == history_of(group.ranks[0]));
  REQUIRE(found[1].history.size() == 3 * num_cells);
  CHECK(std::equal(kept.begin(), kept.begin() + num_cells, found[1].history.begin()));
  CHECK(std::all_of(found[1].history.begin() + num_cells, found[1].history.begin() + 2 * num_cells,
                    [](load_t tokens) { return tokens == 0; }));
  CHECK(std::equal(kept.begin() + num_cells, kept.end(), found[1].history.begin() + 2 * num_cells));
}

// ---- windows of longer buckets ----

TEST_CASE("ranks that count the same passes keep their histories as they are") {
  generator random{9};
  for (int trial = 0; trial < 200; ++trial) {
    window_options const options{.passes = random.between(1, 40), .buckets = random.between(1, 9)};
    CAPTURE(options.passes);
    CAPTURE(options.buckets);
    cohort<window_recorder> group{3, options};
    traffic source{1, static_cast<std::uint64_t>(trial)};
    for (auto passes = random.below(100); passes > 0; --passes) {
      group.run(std::vector<bool>(3, source.next_pass()[0]), source);
    }
    auto const found = align_all(group.ranks);
    for (std::size_t rank = 0; rank < 3; ++rank) {
      REQUIRE(found[rank].result.ok());
      REQUIRE(found[rank].history == history_of(group.ranks[rank]));
    }
  }
}

TEST_CASE("aligned windows hold what is recent, once, and nothing that is too old") {
  generator random{10};
  for (int trial = 0; trial < 400; ++trial) {
    window_options const options{.passes = random.between(1, 30), .buckets = random.between(1, 6)};
    CAPTURE(trial);
    CAPTURE(options.passes);
    CAPTURE(options.buckets);
    auto const num_buckets = std::min(options.passes, options.buckets);
    auto const longest = (options.passes + num_buckets - 1) / num_buckets;
    index_t const num_ranks = random.between(1, 4);
    traffic source{num_ranks, static_cast<std::uint64_t>(trial)};
    std::vector<window_recorder> ranks;
    // Pass n puts 2^n tokens on the only expert: a sum tells which passes it is made of.
    for (index_t rank = 0; rank < num_ranks; ++rank) { ranks.emplace_back(1, 1, options); }
    auto const passes = random.below(40);
    std::vector<std::vector<bool>> counted;
    for (index_t pass = 0; pass < passes; ++pass) {
      counted.push_back(source.next_pass());
      for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
        REQUIRE(ranks[rank].record_logical(0, loads{load_t{1} << pass}).ok());
        ranks[rank].end_pass(counted.back()[rank]);
      }
    }
    auto const found = align_all(ranks);

    auto const known_after = [&](std::size_t rank, index_t pass) {
      index_t count = 0;
      for (auto later = pass + 1; later < passes; ++later) {
        count += counted[static_cast<std::size_t>(later)][rank] ? 1 : 0;
      }
      return count;
    };
    auto const any_after = [&](index_t pass) {
      index_t count = 0;
      for (auto later = pass + 1; later < passes; ++later) {
        auto const& who = counted[static_cast<std::size_t>(later)];
        count += std::find(who.begin(), who.end(), true) != who.end() ? 1 : 0;
      }
      return count;
    };
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      CAPTURE(rank);
      REQUIRE(found[rank].result.ok());
      auto const& history = found[rank].history;
      REQUIRE(history.size() == static_cast<std::size_t>(num_buckets));
      load_t seen = 0;
      load_t before = 0;
      for (auto const bucket : history) {
        REQUIRE((seen & bucket) == 0);  // each pass once
        if (bucket != 0) {
          REQUIRE((bucket & -bucket) > before);  // buckets in the order of passes
          before = bucket;
        }
        seen |= bucket;
      }
      for (index_t pass = 0; pass < passes; ++pass) {
        CAPTURE(pass);
        bool const mine = counted[static_cast<std::size_t>(pass)][rank];
        bool const held = (seen >> pass & 1) != 0;
        if (!mine) { REQUIRE_FALSE(held); }
        if (mine && any_after(pass) <= options.passes - longest) { REQUIRE(held); }
        for (std::size_t other = 0; other < ranks.size(); ++other) {
          // The last pass of its bucket is at most longest - 1 counted passes later.
          auto const last = [&] {
            auto at = pass;
            for (index_t more = longest - 1, next = pass + 1; more > 0 && next < passes; ++next) {
              if (counted[static_cast<std::size_t>(next)][rank]) {
                at = next;
                --more;
              }
            }
            return at;
          }();
          if (known_after(other, last) >= options.passes) { REQUIRE_FALSE(held); }
        }
      }
    }
  }
}

TEST_CASE("buckets that are not full yet stay together when ranks differ a little") {
  cohort<window_recorder> group{2, window_options{.passes = 1000, .buckets = 8}};
  traffic source{2, 1};
  for (int pass = 0; pass < 5; ++pass) { group.run({true, pass < 3}, source); }
  auto const found = align_all(group.ranks);
  CHECK(found[0].history == history_of(group.ranks[0]));
  CHECK(found[1].history == history_of(group.ranks[1]));
}

TEST_CASE("buckets that the ranks cut differently are cut anew, no longer than they may be") {
  for (int const passes : {4, 5, 8, 9, 30}) {
    CAPTURE(passes);
    cohort<window_recorder> group{2, window_options{.passes = 8, .buckets = 4}};
    traffic source{2, 1};
    for (int pass = 0; pass < passes; ++pass) { group.run({true, pass > 0}, source); }
    // Rank 0 counted all passes: as long as nothing is forgotten its buckets are those of the window.
    auto const found = align_all(group.ranks);
    if (passes <= 8) { CHECK(found[0].history == history_of(group.ranks[0])); }
    for (std::size_t bucket = 0; bucket < 4; ++bucket) {
      auto const cells = std::span{found[0].history}.subspan(bucket * num_cells, num_cells);
      if (passes >= 8) { CHECK(std::accumulate(cells.begin(), cells.end(), load_t{0}) > 0); }
    }
  }
}

TEST_CASE("what one rank had to let go is too old on every rank") {
  // Two passes a bucket: rank 0 counts five and forgets the first two, the only ones that rank 1 counts.
  cohort<window_recorder> group{2, window_options{.passes = 4, .buckets = 2}};
  traffic source{2, 1};
  for (int pass = 0; pass < 5; ++pass) { group.run({true, pass < 2}, source); }
  CHECK(group.ranks[0].forgotten() == -3);
  CHECK(group.ranks[1].forgotten() == pass_timeline::none);
  CHECK(align_all(group.ranks)[1].history == loads(2 * num_cells, 0));
  group.ranks[0].clear();
  CHECK(group.ranks[0].forgotten() == pass_timeline::none);
}

TEST_CASE("ranks that take turns fill the window as if one of them had counted") {
  // Window 8 in 4 buckets: passes 0 to 3 on one rank, 4 to 7 on the other.
  std::vector<window_recorder> ranks;
  for (int rank = 0; rank < 2; ++rank) { ranks.emplace_back(1, 1, window_options{.passes = 8, .buckets = 4}); }
  for (index_t pass = 0; pass < 8; ++pass) {
    for (std::size_t rank = 0; rank < 2; ++rank) {
      REQUIRE(ranks[rank].record_logical(0, loads{load_t{1} << pass}).ok());
      ranks[rank].end_pass((pass < 4) == (rank == 0));
    }
  }
  auto const found = align_all(ranks);
  CHECK(found[0].history == loads{1 + 2, 4 + 8, 0, 0});
  CHECK(found[1].history == loads{0, 0, 16 + 32, 64 + 128});
}

// ---- fading sums ----

TEST_CASE("fading sums fade by the passes that any rank counted") {
  for (auto const keep : {0, 1, 32768, 64881, 65535, 65536}) {
    CAPTURE(keep);
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
      CAPTURE(seed);
      auto const num_ranks = static_cast<index_t>(1 + seed % 5);
      cohort<decay_recorder> group{num_ranks, decay_options{.keep = keep}};
      generator random{seed};
      traffic source{num_ranks, seed};
      for (int dump = 0; dump < 4; ++dump) {
        // Each rank pauses at most seven times between two dumps: at the edges of 15 stretches.
        constexpr int stretches = 15;
        for (int i = 0; i < stretches; ++i) {
          std::vector<bool> counted;
          for (index_t rank = 0; rank < num_ranks; ++rank) { counted.push_back(random.below(2) == 0); }
          for (auto passes = random.below(20); passes > 0; --passes) { group.run(counted, source); }
        }
        check_against_oracle(align_all(group.ranks), group, 2);
        check_against_oracle(align_all(group.ranks), group, 2);  // once more changes nothing
      }
    }
  }
}

TEST_CASE("ranks that pause together, however often, fade by what they counted") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    cohort<decay_recorder> group{2, decay_options{.keep = 60000}};
    traffic source{1, seed};
    for (int dump = 0; dump < 3; ++dump) {
      for (int pass = 0; pass < 100; ++pass) { group.run(std::vector<bool>(2, source.next_pass()[0]), source); }
      check_against_oracle(align_all(group.ranks), group, 2);
    }
  }
}

TEST_CASE("eight runs are kept apart; of more, those are joined that have least between them") {
  for (int const short_pauses : {0, 1, 3}) {
    for (int at = 0; at < 7; ++at) {
      CAPTURE(short_pauses);
      CAPTURE(at);
      cohort<decay_recorder> group{2, decay_options{.keep = 65000}};
      traffic source{2, 3};
      auto const run = [&](std::vector<bool> const& counted, int passes) {
        for (int pass = 0; pass < passes; ++pass) { group.run(counted, source); }
      };
      for (int pause = 0; pause < 7; ++pause) {
        run({true, true}, 3);
        // Short pauses are of both ranks: to join the runs around them changes nothing.
        for (int i = 0; pause == at && i < short_pauses; ++i) {
          run({false, false}, 1);
          run({true, true}, 2);
        }
        run({true, false}, 10);
      }
      run({true, true}, 3);
      check_against_oracle(align_all(group.ranks), group, 2);
    }
  }
}

TEST_CASE("a timeline that knows less than the rank itself does not keep its sums from fading") {
  decay_recorder recorder{1, 1, {.keep = 32768}};
  for (bool const counted : {true, false, true, true}) {
    REQUIRE(recorder.record_logical(0, loads{800}).ok());
    recorder.end_pass(counted);
  }
  recorder.fade(timeline_of({{-30, 0, 2}}));
  CHECK(history_of(recorder) == loads{800 + 400 + 200});
}

TEST_CASE("a rank that pauses all the time still fades, at the least by what it counted itself") {
  cohort<decay_recorder> group{2, decay_options{.keep = 60000}};
  traffic source{2, 3};
  for (int pass = 0; pass < 400; ++pass) { group.run({true, pass % 2 == 0}, source); }
  for (int pass = 0; pass < 400; ++pass) { group.run({true, false}, source); }
  auto const found = align_all(group.ranks);
  CHECK(found[1].history == loads(num_cells, 0));
  check_against_oracle({found[0]}, group, 2);
}

TEST_CASE("a pause of any length is faded at once") {
  std::vector<decay_recorder> ranks;
  ranks.emplace_back(1, 1, decay_options{.keep = 65536});
  ranks.emplace_back(1, 1, decay_options{.keep = 65536});
  for (auto& rank : ranks) {
    REQUIRE(rank.record_logical(0, loads{1000}).ok());
    rank.end_pass(true);
  }
  for (int pass = 0; pass < 100000; ++pass) {
    ranks[0].end_pass(true);
    ranks[1].end_pass(false);
  }
  CHECK(align_all(ranks)[1].history == loads{1000});
}

// ---- what one rank does wrong is known to all ----

namespace {

/// A recorder that does not tell its passes, with a number of buckets of its own, or that cannot be read.
class strange_recorder : public ballast_test::recorder_archetype {
public:
  explicit strange_recorder(index_t num_buckets, bool broken = false) : num_buckets_{num_buckets}, broken_{broken} {}
  [[nodiscard]] index_t num_buckets() const { return num_buckets_; }
  [[nodiscard]] status history(std::span<load_t> out) const {
    if (broken_) { return {errc::transport_failed, "the device is gone"}; }
    std::fill(out.begin(), out.end(), load_t{7});
    return {};
  }

private:
  index_t num_buckets_;
  bool broken_;
};
static_assert(load_recorder<strange_recorder> && !pass_telling<strange_recorder>);

}  // namespace

TEST_CASE("recorders that do not tell their passes must have as many buckets") {
  std::vector<strange_recorder> ranks;
  for (index_t const buckets : {2, 2, 2}) { ranks.emplace_back(buckets); }
  for (auto const& one : align_all(ranks)) {
    CHECK(one.result.ok());
    CHECK(one.history == loads(12, 7));
  }
  ranks[2] = strange_recorder{3};
  for (auto const& one : align_all(ranks)) {
    CHECK(one.result.code() == errc::disagreement);
    CHECK(one.result.rank() == 2);
    CHECK(one.result.message() ==
          "aligned_history: rank 2 has 3 buckets, rank 0 has 2, and the recorder does not tell "
          "which passes they hold");
  }
}

TEST_CASE("a recorder that cannot be read is named on every rank, and says why on its own") {
  std::vector<strange_recorder> ranks;
  for (int rank = 0; rank < 3; ++rank) { ranks.emplace_back(2, rank == 1); }
  auto const found = align_all(ranks, [](std::size_t, std::span<std::uint64_t>) {});
  CHECK(found[1].result.message() == "the device is gone");
  for (std::size_t const rank : {0u, 2u}) {
    CHECK(found[rank].result.rank() == 1);
    CHECK(found[rank].result.message() == "aligned_history: the recorder of rank 1 cannot hand its counts out");
  }
}

TEST_CASE("a dead rank is not named for what another's words say that stand in for its own") {
  // Ranks 0 and 3 of four are dead; words of rank 1 stand in for theirs.
  auto const align_one = [](auto recorder, auto spoil) {
    std::size_t round = 0;
    auto const gather = [&](std::span<std::uint64_t const> mine, std::vector<std::uint64_t>& all) -> status {
      all.clear();
      for (index_t const rank : {1, 1, 2, 1}) {
        std::vector<std::uint64_t> words(mine.begin(), mine.end());
        spoil(round, rank, std::span{words});
        all.insert(all.end(), words.begin(), words.end());
      }
      ++round;
      return {};
    };
    loads out;
    return aligned_history(recorder, gather, out, [](index_t rank) { return rank == 1 || rank == 2; });
  };
  auto const unreadable = align_one(strange_recorder{2}, [](std::size_t, index_t rank, std::span<std::uint64_t> words) {
    if (rank == 1) { words[0] = 0; }
  });
  CHECK(unreadable.message() == "aligned_history: the recorder of rank 1 cannot hand its counts out");
  CHECK(unreadable.rank() == 1);
  auto const larger = align_one(strange_recorder{2}, [](std::size_t, index_t rank, std::span<std::uint64_t> words) {
    if (rank == 2) { words[1] = 3; }
  });
  CHECK(larger.message().starts_with("aligned_history: rank 2 has 3 buckets, rank 1 has 2, and"));
  CHECK(larger.rank() == 2);
  window_recorder recorder{1, 1, {.passes = 2, .buckets = 2}};
  recorder.end_pass(true);
  auto const spans = align_one(recorder, [](std::size_t round, index_t rank, std::span<std::uint64_t> words) {
    if (round == 1 && rank == 1) { words[5] = 9; }  // more passes than its newest span is long
  });
  CHECK(spans.code() == errc::disagreement);
  CHECK(spans.rank() == 1);
}

TEST_CASE("a gather that fails is handed on, and the recorder stays as it was") {
  decay_recorder recorder{1, 1, {.keep = 32768}};
  REQUIRE(recorder.record_logical(0, loads{100}).ok());
  recorder.end_pass(true);
  for (int failing = 0; failing < 2; ++failing) {
    int call = 0;
    auto const gather = [&](std::span<std::uint64_t const> mine, std::vector<std::uint64_t>& all) -> status {
      if (call++ == failing) { return {errc::deadline_exceeded, "rank 5 did not come", 5}; }
      all.assign(mine.begin(), mine.end());
      return {};
    };
    loads out;
    auto const result = aligned_history(recorder, gather, out);
    CHECK(result.code() == errc::deadline_exceeded);
    CHECK(result.rank() == 5);
    CHECK(history_of(recorder) == loads{100});
  }
}

TEST_CASE("spans that no recorder has are refused with the rank that told them") {
  std::vector<window_recorder> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.emplace_back(1, 1, window_options{.passes = 2, .buckets = 2});
    ranks.back().end_pass(true);
  }
  auto const word = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
  // Words 3 to 5 of rank 1 are its newest span: {0, 0, 1}.
  auto const with = [&](std::int64_t first, std::int64_t last, std::int64_t passes) {
    auto const found = align_all(ranks, [&](std::size_t round, std::span<std::uint64_t> words) {
      if (round != 1) { return; }
      auto const of_rank = words.subspan(6 + 3, 3);
      of_rank[0] = word(first);
      of_rank[1] = word(last);
      of_rank[2] = word(passes);
    });
    return found[0].result;
  };
  CHECK(with(0, 0, 1).ok());
  CHECK(with(-5, 0, 2).ok());
  for (auto const& wrong : {with(0, 1, 1), with(1, 0, 1), with(0, 0, 2), with(0, 0, -1),
                            with(std::numeric_limits<std::int64_t>::min(), 0, 1), with(-3, 0, 5)}) {
    CHECK(wrong.code() == errc::disagreement);
    CHECK(wrong.rank() == 1);
  }
}

TEST_CASE("nothing recorded, no layers, one rank") {
  std::vector<window_recorder> windows;
  windows.emplace_back(0, 4);
  CHECK(align_all(windows)[0].result.ok());
  std::vector<pass_recorder> passes;
  passes.emplace_back(1, 4);
  passes.emplace_back(1, 4);
  for (auto const& one : align_all(passes)) {
    CHECK(one.result.ok());
    CHECK(one.history.empty());
  }
}

// ---- what is handed out can be planned on ----

namespace {

/// Garbage as a faulty kernel leaves it.
loads garbage(generator& random) {
  loads counts;
  for (index_t i = 0; i < num_experts; ++i) {
    auto const bits = random.below(63);
    counts.push_back(static_cast<load_t>(random.next() >> 1 >> bits));
  }
  return counts;
}

template <class Recorder, class Options>
void check_garbage(Options options, std::uint64_t seed) {
  generator random{seed};
  std::vector<Recorder> ranks;
  for (auto count = random.between(1, 5); count > 0; --count) { ranks.emplace_back(num_layers, num_experts, options); }
  for (int pass = 0; pass < 30; ++pass) {
    for (auto& rank : ranks) {
      if (random.below(4) == 0) { REQUIRE(rank.record_logical(random.below(num_layers), garbage(random)).ok()); }
      REQUIRE(rank.record_logical(0, loads{1, 2, 3}).ok());
      rank.end_pass(random.below(5) != 0);
      auto const own = history_of(rank);
      REQUIRE(validate_loads({own, rank.num_buckets(), num_layers, num_experts}).message().empty());
    }
    if (pass % 7 != 6) { continue; }
    loads sum;
    for (auto const& one : align_all(ranks)) {
      REQUIRE(one.result.ok());
      sum.resize(one.history.size());
      for (std::size_t i = 0; i < sum.size(); ++i) { sum[i] += one.history[i]; }
    }
    auto const num_buckets = static_cast<index_t>(sum.size() / num_cells);
    fit_layers(sum, num_buckets, num_layers, num_experts);
    REQUIRE(validate_loads({sum, num_buckets, num_layers, num_experts}).message().empty());
  }
}

}  // namespace

TEST_CASE("whatever is counted, every recorder and the sum of all ranks can be planned on") {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    check_garbage<window_recorder>(window_options{.passes = 5}, seed);
    check_garbage<window_recorder>(window_options{.passes = 12, .buckets = 3}, seed);
    check_garbage<window_recorder>(window_options{}, seed);
    check_garbage<pass_recorder>(pass_options{.capacity = 20}, seed);
    for (auto const keep : {0, 32768, 64881, 65536}) { check_garbage<decay_recorder>(decay_options{keep}, seed); }
  }
}
