// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A packing, and the searches that improve one, on layers small enough to be worked out by hand.
#include <ballast/placement/rank_cost.hpp>
#include <ballast/policies/detail/balanced/exhaustive.hpp>
#include <ballast/policies/detail/balanced/packing.hpp>
#include <ballast/policies/detail/balanced/rematch.hpp>
#include <ballast/policies/detail/balanced/swap_search.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

using namespace ballast;
using detail::packing;

namespace {

using loads = std::vector<load_t>;
using counts = std::vector<index_t>;

/// Two ranks of two slots; copies in the order of their loads go to these ranks.
packing pack(loads const& of, counts const& copies, std::vector<index_t> const& ranks) {
  packing result;
  result.open(of, copies, 2, 2);
  for (std::size_t copy = 0; copy < ranks.size(); ++copy) { result.place(static_cast<index_t>(copy), ranks[copy]); }
  return result;
}
loads rank_loads(packing const& in) { return {in.rank_loads().begin(), in.rank_loads().end()}; }
load_t heaviest(packing const& in) { return std::ranges::max(rank_loads(in)); }

/// Rank 0 is half as fast.
struct slow_first {
  [[nodiscard]] load_t operator()(index_t rank, load_t load) const noexcept { return rank == 0 ? 2 * load : load; }
  void describe(digest& out) const noexcept { out.add(0); }
};

}  // namespace

TEST_CASE("copies are numbered by load, and keep their number when they change places") {
  auto in = pack({12, 5, 3}, {2, 1, 1}, {0, 1, 0, 1});
  CHECK(loads(in.loads().begin(), in.loads().end()) == loads{6, 6, 5, 3});
  CHECK(in.expert(1) == 0);
  CHECK(in.expert(2) == 1);
  CHECK(rank_loads(in) == loads{11, 9});
  CHECK(in.would_double(0, 1));
  CHECK_FALSE(in.would_double(2, 1));
  CHECK(in.first_at_most(5, 0) == 2);
  CHECK(in.first_at_most(6, 1) == 1);
  CHECK(in.first_at_most(2, 0) == 4);
  auto const place = in.place_of(2);
  in.swap(2, 3);
  CHECK(rank_loads(in) == loads{9, 11});
  CHECK(in.rank(2) == 1);
  CHECK(in.copy_at(0, place) == 3);
  CHECK(in.holds(1, 1));
  CHECK_FALSE(in.holds(0, 1));
}

TEST_CASE("two copies of an expert on one rank part for the copy nearest in load") {
  auto in = pack({12, 5, 3}, {2, 1, 1}, {0, 0, 1, 1});
  CHECK(in.copies_of_on(0, 0) == 2);
  separate_doubled(in, 1);
  CHECK(in.copies_of_on(0, 0) == 1);
  CHECK(in.rank(2) == 0);  // 5 for 6, not 3
  auto const before = rank_loads(in);
  separate_doubled(in, 1);  // they are apart
  CHECK(rank_loads(in) == before);
}

TEST_CASE("largest first: each copy to the rank that is cheapest with it and lacks its expert") {
  packing in;
  in.open(loads{12, 5, 3}, counts{2, 1, 1}, 2, 2);
  detail::largest_first{}.run(in, token_cost{});
  CHECK(rank_loads(in) == loads{11, 9});
  in.open(loads{12, 5, 3}, counts{2, 1, 1}, 2, 2);
  detail::largest_first{}.run(in, slow_first{});
  CHECK(rank_loads(in) == loads{9, 11});  // 5 costs 22 on rank 0, 11 on rank 1
}

TEST_CASE("the dearest rank's copies are exchanged until it is good enough") {
  detail::swap_search search;
  auto const start = pack({10, 8, 2, 0}, {1, 1, 1, 1}, {0, 0, 1, 1});
  SUBCASE("down to what can be reached") {
    auto in = start;
    detail::swap_search::limits limits{.work = 1000};
    CHECK(search.run(in, token_cost{}, limits) == 10);
    CHECK(rank_loads(in) == loads{10, 10});
    CHECK(limits.work < 1000);
  }
  SUBCASE("not when it is good enough") {
    auto in = start;
    detail::swap_search::limits limits{.good = 18, .best = 18, .work = 1000};
    CHECK(search.run(in, token_cost{}, limits) == 18);
  }
  SUBCASE("not without work") {
    auto in = start;
    detail::swap_search::limits limits{};
    CHECK(search.run(in, token_cost{}, limits) == 18);
  }
  SUBCASE("by cost") {
    auto in = pack({6, 4, 2, 0}, {1, 1, 1, 1}, {0, 1, 0, 1});
    detail::swap_search::limits limits{.work = 1000};
    // 8 tokens cost 16 on rank 0. Of all ways to pack, 4 + 0 on rank 0 and 6 + 2 on rank 1 is best.
    CHECK(search.run(in, slow_first{}, limits) == 8);
    CHECK(rank_loads(in) == loads{4, 8});
  }
  SUBCASE("never two copies of an expert on one rank") {
    // Of the two ways to pack, the other one has both copies of expert 0 together.
    auto in = pack({12, 8, 1}, {2, 1, 1}, {0, 0, 1, 1});
    CHECK(rank_loads(in) == loads{14, 7});
    detail::swap_search::limits limits{.work = 1000};
    CHECK(search.run(in, token_cost{}, limits) == 14);
  }
}

TEST_CASE("the copies in one place are dealt out again, the heaviest to the rank that is lightest without it") {
  auto in = pack({10, 8, 2, 0}, {1, 1, 1, 1}, {0, 1, 0, 1});
  CHECK(heaviest(in) == 12);
  std::int64_t work = 100;
  detail::rematcher{}.run(in, 10, work);
  CHECK(rank_loads(in) == loads{10, 10});
  CHECK(in.rank(0) == 1);
  CHECK(work == 98);  // one place of two copies
  auto other = pack({10, 8, 2, 0}, {1, 1, 1, 1}, {0, 1, 0, 1});
  work = 0;
  detail::rematcher{}.run(other, 10, work);
  CHECK(heaviest(other) == 12);
}

TEST_CASE("a small layer is searched to its end") {
  detail::exhaustive_search search;
  packing found;
  SUBCASE("one copy each") {
    loads const of{3, 6, 4, 5};
    load_t best = 100;
    std::int64_t nodes = 1000;
    REQUIRE(search.run(of, 2, 2, best, nodes));
    CHECK(best == 9);
    CHECK(nodes > 0);
    search.rebuild(found, 2);
    CHECK(rank_loads(found) == loads{9, 9});
    CHECK(found.holds(found.rank(0), 0));  // 6 and 3
  }
  SUBCASE("counts are part of the search") {
    loads const of{4, 12, 4};
    load_t best = 100;
    std::int64_t nodes = 1000;
    REQUIRE(search.run(of, 2, 2, best, nodes));
    CHECK(best == 10);
    search.rebuild(found, 2);
    CHECK(found.count(1) == 2);
    CHECK(rank_loads(found) == loads{10, 10});
  }
  SUBCASE("nothing is better than the best") {
    loads const of{3, 6, 4, 5};
    load_t best = 9;
    std::int64_t nodes = 1000;
    CHECK_FALSE(search.run(of, 2, 2, best, nodes));
    CHECK(best == 9);
    CHECK(nodes > 0);
  }
  SUBCASE("an end before all was seen is told") {
    loads const of{3, 6, 4, 5};
    load_t best = 100;
    std::int64_t nodes = 3;
    CHECK_FALSE(search.run(of, 2, 2, best, nodes));
    CHECK(nodes <= 0);
  }
}
