// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/policies/detail/balanced/level_model.hpp>
#include <ballast/policies/detail/balanced/level_relaxation.hpp>
#include <ballast/policies/detail/balanced/replica_counts.hpp>
#include <ballast/policies/detail/balanced/two_slots.hpp>

#include "support/long_runs.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

using namespace ballast;

namespace {

using ballast_test::generator;

/// Skewed, mild, tied, or with one hot expert.
std::vector<load_t> random_loads(index_t num_experts, generator& random) {
  std::vector<load_t> loads(static_cast<std::size_t>(num_experts));
  auto const kind = random.below(4);
  for (auto& load : loads) {
    load = 1 + random.below(kind == 0 ? 6 : 1000);
    if (kind == 1) { load = load_t{1} << random.below(14); }
  }
  if (kind == 2) { loads[static_cast<std::size_t>(random.below(num_experts))] *= 20; }
  for (auto& load : loads) { load *= 1024; }
  return loads;
}

/// Least heaviest rank over all ways to hand the spares out.
load_t best_of_all_counts(detail::two_slot_counter& counter, std::vector<index_t>& counts, std::size_t expert,
                          index_t spares, index_t num_ranks) {
  if (expert + 1 == counts.size()) {
    if (spares >= num_ranks) { return std::numeric_limits<load_t>::max(); }
    counts[expert] = 1 + spares;
    return counter.max_of_pairs(counts);
  }
  auto best = std::numeric_limits<load_t>::max();
  for (index_t extra = 0; extra <= std::min(spares, num_ranks - 1); ++extra) {
    counts[expert] = 1 + extra;
    best = std::min(best, best_of_all_counts(counter, counts, expert + 1, spares - extra, num_ranks));
  }
  return best;
}

struct solved {
  detail::two_slot_counter::outcome outcome;
  load_t optimum;
  std::vector<index_t> counts;
};

solved solve(index_t num_experts, index_t num_ranks, generator& random, std::int64_t work) {
  auto const loads = random_loads(num_experts, random);
  solved result;
  result.counts.resize(loads.size());
  detail::replica_counter{}.run(loads, 2 * num_ranks, num_ranks, result.counts);
  detail::two_slot_counter counter;
  result.outcome = counter.run(loads, num_ranks, result.counts, 0, 0, work);
  CHECK(result.outcome.max == counter.max_of_pairs(result.counts));
  auto counts = result.counts;
  result.optimum = best_of_all_counts(counter, counts, 0, 2 * num_ranks - num_experts, num_ranks);
  return result;
}

}  // namespace

TEST_CASE("counts for two slots a rank are the best of all counts, and known to be") {
  generator random{17};
  for (int repeat = 0, count = ballast_test::cases(250); repeat < count; ++repeat) {
    auto const num_ranks = random.between(2, 9);
    auto const num_experts = random.between(std::max(3, 2 * num_ranks - 5), 2 * num_ranks);
    CAPTURE(repeat);
    auto const result = solve(num_experts, num_ranks, random, 50000000);
    CHECK(result.outcome.max == result.optimum);
    CHECK(result.outcome.bound == result.optimum);
    CHECK(std::accumulate(result.counts.begin(), result.counts.end(), 0) == 2 * num_ranks);
    CHECK(*std::min_element(result.counts.begin(), result.counts.end()) >= 1);
    CHECK(*std::max_element(result.counts.begin(), result.counts.end()) <= num_ranks);
  }
}

TEST_CASE("with many ranks and some spares the answer is still exact") {
  generator random{23};
  for (int repeat = 0; repeat < 6; ++repeat) {
    auto const num_ranks = random.between(12, 16);
    CAPTURE(repeat);
    auto const result = solve(2 * num_ranks - 4, num_ranks, random, 50000000);
    CHECK(result.outcome.max == result.optimum);
    CHECK(result.outcome.bound == result.optimum);
  }
}

TEST_CASE("larger layers reach optima that an integer programming solver confirmed") {
  // HiGHS: each of these can be reached, and nothing one unit lower.
  std::vector<load_t> const optima{21257216, 6031360, 6394368,  25489408, 5271552, 4747776,  17698133,
                                   4360192,  5206869, 13099349, 6492160,  3311104, 24349696, 7997440};
  generator random{37};
  for (std::size_t i = 0; i < optima.size(); ++i) {
    auto const num_ranks = random.between(24, 48);
    std::vector<load_t> loads(static_cast<std::size_t>(2 * num_ranks - random.between(8, 24)));
    for (auto& load : loads) {
      auto const a = load_t{random.below(1000)};
      auto const b = load_t{random.below(1000)};
      load = (50 + a * b * (1 + random.below(i % 3 == 0 ? 8 : 2)) / 100) * 1024;
    }
    std::vector<index_t> counts(loads.size());
    detail::replica_counter{}.run(loads, 2 * num_ranks, num_ranks, counts);
    std::int64_t work = 12000000;
    auto const outcome = detail::two_slot_counter{}.run(loads, num_ranks, counts, 0, 0, work);
    CAPTURE(i);
    CHECK(outcome.bound <= optima[i]);
    CHECK(outcome.max >= optima[i]);
    if (work > 0) { CHECK(outcome.max == outcome.bound); }
  }
}

TEST_CASE("without enough work the answer is worse and the bound lower, but both stay true") {
  generator random{29};
  for (std::int64_t const work : {std::int64_t{0}, std::int64_t{1}, std::int64_t{3000}, std::int64_t{30000}}) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      auto const num_ranks = random.between(3, 9);
      auto const result = solve(std::max(3, 2 * num_ranks - 5), num_ranks, random, work);
      CHECK(result.outcome.max >= result.optimum);
      CHECK(result.outcome.bound <= result.optimum);
    }
  }
}

TEST_CASE("the relaxation never asks for more spares than a solution takes") {
  generator random{31};
  detail::level_model model;
  detail::level_relaxation relaxation;
  detail::two_slot_counter counter;
  for (int repeat = 0, count = ballast_test::cases(200); repeat < count; ++repeat) {
    auto const num_ranks = random.between(3, 8);
    auto const num_experts = std::max(3, 2 * num_ranks - 4);
    auto const loads = random_loads(num_experts, random);
    std::vector<index_t> counts(loads.size());
    detail::replica_counter{}.run(loads, 2 * num_ranks, num_ranks, counts);
    std::int64_t none = 0;
    counter.run(loads, num_ranks, counts, 0, 0, none);
    auto scratch = counts;
    auto const optimum = best_of_all_counts(counter, scratch, 0, 2 * num_ranks - num_experts, num_ranks);
    model.open(loads, num_ranks);
    REQUIRE(model.set_limit(optimum));
    relaxation.forget_prices();
    relaxation.open(model);
    std::int64_t work = 10000000;
    CHECK(relaxation.bound_root(work) <= relaxation.budget());
  }
}
