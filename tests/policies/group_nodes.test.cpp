// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Expert groups and the nodes that have them, on layers small enough to be worked out by hand.
#include <ballast/policies/detail/balanced/group_nodes.hpp>
#include <ballast/policies/detail/balanced/group_relaxer.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

using namespace ballast;

namespace {

using loads = std::vector<load_t>;
using indices = std::vector<index_t>;

struct assigned {
  bool fits;
  load_t heaviest;
  bool exact;
  indices node_of;
};
assigned assign(loads const& groups, indices const& ranks, indices const& places, std::int64_t work = 20000) {
  detail::group_assigner assigner;
  indices node_of(groups.size(), -1);
  bool const fits = assigner.run(groups, ranks, places, node_of, work);
  return {fits, assigner.heaviest(), assigner.is_exact(), node_of};
}

indices relax(loads const& of, indices const& slots, index_t fewest, index_t price, indices node_of) {
  detail::group_relaxer relaxer;
  indices const ranks(slots.size(), 1);
  relaxer.run(of, 2, ranks, slots, fewest, price, 4, node_of);
  return node_of;
}

}  // namespace

TEST_CASE("groups go to nodes so that the node with most load a rank has least") {
  auto const even = assign({8, 5, 4, 3}, {1, 1}, {2, 2});
  CHECK(even.fits);
  CHECK(even.exact);
  CHECK(even.heaviest == 11);
  CHECK(even.node_of[0] == even.node_of[3]);  // 8 + 3 and 5 + 4
  // Twice as many ranks take twice the load.
  auto const uneven = assign({8, 5, 4, 3}, {2, 1}, {3, 3});
  CHECK(uneven.heaviest == 7);
  // No place, no group: three groups on the second node.
  auto const tight = assign({8, 5, 4, 3}, {1, 1}, {1, 3});
  CHECK(tight.heaviest == 12);
  CHECK(tight.node_of == indices{0, 1, 1, 1});
}

TEST_CASE("a node without live ranks takes no group, and every other one takes one") {
  auto const dead = assign({8, 5}, {1, 0}, {2, 2});
  CHECK(dead.fits);
  CHECK(dead.node_of == indices{0, 0});
  CHECK_FALSE(assign({8, 5}, {1, 0}, {1, 2}).fits);
  // Largest first would put all three on the first node, which has ten times the ranks.
  auto const small = assign({1, 1, 1}, {10, 1}, {3, 3});
  CHECK(small.fits);
  CHECK(small.node_of != indices{0, 0, 0});
}

TEST_CASE("groups that do not all find a place are told so at once, however many there are") {
  // One place less than groups on twenty nodes: more orders of them than anybody lives to see.
  loads groups(40);
  for (std::size_t i = 0; i < groups.size(); ++i) { groups[i] = static_cast<load_t>(1000 + i * i); }
  indices const ranks(20, 2);
  indices places(20, 2);
  places[3] = 1;
  CHECK_FALSE(assign(groups, ranks, places).fits);
  places[3] = 2;
  CHECK(assign(groups, ranks, places).fits);
  // A node with ranks that no group fits would idle.
  CHECK_FALSE(assign({8, 5, 4}, {1, 1}, {3, 0}).fits);
  CHECK_FALSE(assign({8}, {1, 1}, {1, 1}).fits);
}

TEST_CASE("a search that ends before its end still has an answer, and says so") {
  auto const cut = assign({8, 7, 6, 5, 4, 3, 2, 1}, {1, 1}, {4, 4}, 1);
  CHECK(cut.fits);
  CHECK_FALSE(cut.exact);
}

TEST_CASE("the bound of groups that stay on one node") {
  topology where{{2, 2, 4, 0}};
  loads const of{4, 4, 3, 2, 2, 2, 1, 2};  // groups of 8, 5, 4 and 3
  CHECK(detail::bound_of_groups(where, of, 4, 20000) == 11);
  CHECK(detail::bound_of_groups(where, of, 1, 20000) == 0);  // one group is not for two nodes
  CHECK(detail::bound_of_groups(where, of, 6, 20000) == 0);  // eight experts are no six groups
  CHECK(detail::places_of_node(where, 4, 2, 4) == 2);
  where.set_live(1, false);
  CHECK(detail::places_of_node(where, 4, 1, 4) == 4);  // with dead ranks, as many as the slots hold
}

TEST_CASE("experts leave an overloaded node, the handy ones first, as long as it pays") {
  loads const of{10, 6, 2, 2};
  indices const home{0, 0, 1, 1};
  // 16 and 4, the mean is 10. Of group 0 expert 0 is too heavy to be handy (10 > 4 * (10 / 4)).
  CHECK(relax(of, {4, 4}, 1, 0, home) == indices{0, 1, 1, 1});
  CHECK(relax(of, {4, 4}, 1, 150, home) == indices{0, 1, 1, 1});
  CHECK(relax(of, {4, 4}, 1, 200, home) == home);  // one rank of two is lowered: it gains one and costs one
  CHECK(relax(of, {4, 4}, 2, 0, home) == home);    // every node keeps two
  CHECK(relax(of, {4, 2}, 1, 0, home) == home);    // no room
  // What would lift the other node above the level stays.
  CHECK(relax({10, 6, 5, 2}, {4, 4}, 1, 0, home) == home);
}
