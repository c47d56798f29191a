// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/topology.hpp>

#include <doctest/doctest.h>
#include <support/throwing_contracts.hpp>

#include <ostream>  // doctest prints error codes
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

using namespace ballast;

namespace {

std::string refusal(topology_shape shape) {
  auto const result = topology::validate(shape);
  CHECK(result.code() == errc::invalid_topology);
  CHECK_THROWS_AS(topology{shape}, std::system_error);
  return result.message();
}

}  // namespace

TEST_CASE("sizes that do not fit together are refused by name and value") {
  CHECK(refusal({.num_ranks = 0}) == "topology: number of ranks is 0, must be at least 1");
  CHECK(refusal({.num_ranks = -8}) == "topology: number of ranks is -8, must be at least 1");
  CHECK(refusal({.num_ranks = 4, .num_nodes = 0}) == "topology: number of nodes is 0, must be at least 1");
  CHECK(refusal({.num_ranks = 4, .num_nodes = 3}) == "topology: 4 ranks cannot be divided over 3 nodes");
  CHECK(refusal({.num_ranks = 4, .num_nodes = 8}) == "topology: 4 ranks cannot be divided over 8 nodes");
  CHECK(refusal({.num_ranks = 4, .slots_per_rank = 0}) == "topology: slots per rank is 0, must be at least 1");
  CHECK(refusal({.num_ranks = 4, .slots_per_rank = 2, .reserved_slots = -1}) ==
        "topology: reserved slots is -1, must not be negative");
  CHECK(refusal({.num_ranks = 1 << 16, .slots_per_rank = 1 << 15}) ==
        "topology: 2147483648 physical experts do not fit an id");
  CHECK(topology::validate({.num_ranks = 1 << 15, .slots_per_rank = (1 << 16) - 1}).ok());
}

TEST_CASE("slots, ranks and nodes are counted in order") {
  topology const where{{.num_ranks = 6, .num_nodes = 2, .slots_per_rank = 3}};
  CHECK(where.num_slots() == 18);
  CHECK(where.ranks_per_node() == 3);
  for (index_t slot = 0; slot < 18; ++slot) {
    CHECK(where.rank_of_slot(slot) == slot / 3);
    CHECK(where.node_of_slot(slot) == slot / 9);
    CHECK(where.physical_id(slot) == slot);
  }
  CHECK(where.first_slot(4) == 12);
  CHECK(where.node_of_rank(2) == 0);
  CHECK(where.node_of_rank(3) == 1);
}

TEST_CASE("reserved slots shift the ids that an all-to-all sees, not the slots") {
  topology const where{{.num_ranks = 3, .slots_per_rank = 4, .reserved_slots = 2}};
  CHECK(where.num_slots() == 12);
  CHECK(where.num_physical_ids() == 18);
  for (index_t rank = 0; rank < 3; ++rank) {
    for (index_t i = 0; i < 4; ++i) { CHECK(where.physical_id(where.first_slot(rank) + i) == rank * 6 + i); }
  }
}

TEST_CASE("a default topology is one rank with one slot") {
  topology const where;
  CHECK(where == topology{topology_shape{}});
  CHECK(where.num_slots() == 1);
  CHECK(where.is_live(0));
}

TEST_CASE("ranks leave and come back") {
  topology where{{.num_ranks = 4}};
  auto const whole = where;
  CHECK(where.num_live_ranks() == 4);
  where.set_live(2, false);
  where.set_live(2, false);
  CHECK_FALSE(where.is_live(2));
  CHECK(where.is_live(3));
  CHECK(where.num_live_ranks() == 3);
  CHECK_FALSE(where == whole);
  where.set_live(2, true);
  CHECK(where == whole);
}

TEST_CASE("the digest tells shapes and live ranks apart") {
  auto const of = [](topology const& where) {
    digest result;
    where.describe(result);
    return result.value();
  };
  topology const whole{{.num_ranks = 4, .num_nodes = 2, .slots_per_rank = 3}};
  auto first_dead = whole;
  first_dead.set_live(0, false);
  auto last_dead = whole;
  last_dead.set_live(3, false);
  CHECK(of(whole) == of(topology{whole.shape()}));
  CHECK(of(whole) != of(first_dead));
  CHECK(of(first_dead) != of(last_dead));
  CHECK(of(whole) != of(topology{{.num_ranks = 4, .num_nodes = 1, .slots_per_rank = 3}}));
  CHECK(of(whole) != of(topology{{.num_ranks = 4, .num_nodes = 2, .slots_per_rank = 3, .reserved_slots = 1}}));
}

TEST_CASE("a rank that there is not breaks the contract") {
  topology where{{.num_ranks = 4}};
  CHECK_BREAKS_CONTRACT(where.is_live(4));
  CHECK_BREAKS_CONTRACT(where.set_live(-1, false));
#if BALLAST_CONTRACT_LEVEL >= 1
  CHECK_THROWS_WITH(static_cast<void>(where.is_live(4)), "topology: rank 4 is not in [0, 4)");
#endif
}

// NOLINTBEGIN(bugprone-use-after-move,clang-analyzer-cplusplus.Move): what is left is what is tested
TEST_CASE("what was moved from is a default topology") {
  topology where{{.num_ranks = 4, .num_nodes = 2, .slots_per_rank = 3, .reserved_slots = 1}};
  where.set_live(0, false);
  auto const before = where;
  topology const taken{std::move(where)};
  CHECK(taken == before);
  CHECK((where == topology{}));
  CHECK((where == topology{topology_shape{}}));
  CHECK(where.is_live(0));
  CHECK(where.num_live_ranks() == 1);
  CHECK_BREAKS_CONTRACT(where.is_live(1));
  digest of_default;
  topology{topology_shape{}}.describe(of_default);
  digest of_moved;
  where.describe(of_moved);
  CHECK(of_moved.value() == of_default.value());
  where.set_live(0, false);
  CHECK_FALSE(where.is_live(0));
  CHECK_FALSE((where == topology{}));
  where = before;
  topology assigned;
  assigned = std::move(where);
  CHECK(assigned == before);
  CHECK((where == topology{}));
  static_assert(std::is_nothrow_move_constructible_v<topology> && std::is_nothrow_move_assignable_v<topology>);
}
// NOLINTEND(bugprone-use-after-move,clang-analyzer-cplusplus.Move)
