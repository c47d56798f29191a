// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/control/detail/node_plane.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/group_runner.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using namespace ballast;
using ballast_test::patience;

namespace {

using plane = detail::node_plane<in_process_endpoint>;
static_assert(expelling_plane<plane>);

/// Run `body(node, rank)` on the live ranks of two nodes of two ranks.
template <class Body>
void on_nodes(index_t expelled, Body body) {
  in_process_group group{4};
  if (expelled >= 0) { group.expel(expelled); }
  group.run([&](in_process_endpoint& all) {
    auto const rank = all.rank();
    if (rank == expelled) { return; }
    plane node{all, rank / 2 * 2, 2};
    body(node, rank);
  });
}

}  // namespace

TEST_CASE("a node's ranks reduce, gather and broadcast among themselves") {
  on_nodes(-1, [](plane& node, index_t rank) {
    bool const first = rank < 2;
    std::array<std::int64_t, 2> values{10 + rank, -1};
    CHECK(node.all_reduce(values, patience).ok());
    CHECK(values == std::array<std::int64_t, 2>{first ? 21 : 25, -2});
    CHECK(node.all_reduce({}, patience).ok());
    std::array<std::uint64_t, 2> const mine{static_cast<std::uint64_t>(rank), 7};
    std::array<std::uint64_t, 4> all{};
    CHECK(node.all_gather(mine, all, patience).ok());
    CHECK(all == (first ? std::array<std::uint64_t, 4>{0, 7, 1, 7} : std::array<std::uint64_t, 4>{2, 7, 3, 7}));
    for (std::size_t const size : {0u, 3u, 8u, 17u}) {
      std::vector<std::byte> bytes(size, static_cast<std::byte>(rank));
      CHECK(node.broadcast(bytes, 1, patience).ok());
      CHECK(bytes == std::vector<std::byte>(size, static_cast<std::byte>(first ? 1 : 3)));
    }
  });
}

TEST_CASE("an expelled rank of a node adds nothing and broadcasts nothing") {
  for (index_t const expelled : {0, 1, 2, 3}) {
    CAPTURE(expelled);
    on_nodes(expelled, [&](plane& node, index_t rank) {
      bool const is_of_node = rank / 2 == expelled / 2;
      index_t const other = rank / 2 * 2 + 1 - rank % 2;
      CHECK(node.is_expelled(other % 2) == is_of_node);
      CHECK_FALSE(node.is_expelled(rank % 2));
      std::array<std::int64_t, 1> value{10 + rank};
      CHECK(node.all_reduce(value, patience).ok());
      CHECK(value[0] == 10 + rank + (is_of_node ? 0 : 10 + other));
      std::array<std::uint64_t, 1> const mine{static_cast<std::uint64_t>(rank)};
      std::array<std::uint64_t, 2> gathered{};
      CHECK(node.all_gather(mine, gathered, patience).ok());
      CHECK(gathered[static_cast<std::size_t>(rank % 2)] == mine[0]);
      CHECK(gathered[static_cast<std::size_t>(other % 2)] == static_cast<std::uint64_t>(is_of_node ? rank : other));
      std::array<std::byte, 3> bytes{std::byte{1}};
      auto const result = node.broadcast(bytes, expelled % 2, patience);
      CHECK(result.ok() == !is_of_node);
      if (!is_of_node) { return; }
      CHECK(result.code() == errc::peer_lost);
      CHECK(result.rank() == expelled % 2);
      CHECK(bytes == std::array<std::byte, 3>{std::byte{1}});
    });
  }
}

TEST_CASE("a rank that is missing is named as the node counts, and one of another node in words only") {
  on_nodes(-1, [](plane& node, index_t rank) {
    constexpr index_t missing = 3;
    if (rank == missing) { return; }
    std::array<std::uint64_t, 1> const mine{7};
    std::array<std::uint64_t, 2> gathered{};
    auto const result = node.all_gather(mine, gathered, 50 * ballast_test::millisecond);
    CHECK(result.code() == errc::deadline_exceeded);
    CHECK(result.rank() == (rank == 2 ? missing - 2 : status::no_rank));
    CHECK(result.message().find("rank 3") != std::string::npos);
  });
}
