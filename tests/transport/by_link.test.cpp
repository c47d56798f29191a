// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/transport/by_link.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/in_process_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <deque>
#include <string>
#include <vector>

namespace {

using ballast::errc;
using ballast::in_process_endpoint;
using wires = ballast::by_link<ballast::self_copy, in_process_endpoint, in_process_endpoint>;
static_assert(ballast::message_transport<wires>);
static_assert(!ballast::receive_timer<wires>);

/// Two nodes: a group inside each, or one over all ranks, and another group for what crosses.
struct two_nodes_runner {
  static constexpr bool can_lose_ranks = false;
  bool group_per_node = true;

  [[nodiscard]] std::vector<ballast::index_t> sizes() const {
    return BALLAST_TESTS_QUICK ? std::vector<ballast::index_t>{4} : std::vector<ballast::index_t>{2, 4, 6};
  }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    ballast::topology const where{{num_ranks, 2, 1, 0}};
    std::deque<ballast::in_process_group> groups;
    groups.emplace_back(group_per_node ? where.ranks_per_node() : num_ranks);
    groups.emplace_back(where.ranks_per_node());
    return ballast_test::in_process_runner{}.run(num_ranks, [&](auto& inner, ballast_test::law_log& log) {
      auto const rank = inner.rank();
      auto& node =
          group_per_node
              ? groups[static_cast<std::size_t>(where.node_of_rank(rank))].endpoint(rank % where.ranks_per_node())
              : groups[0].endpoint(rank);
      wires transport{where, node, inner.transport};
      ballast_test::law_endpoint<in_process_endpoint, wires> self{inner.control, transport};
      body(self, log);
    });
  }
};

struct self_message {
  std::array<std::byte, 4> from{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  std::array<std::byte, 4> to{};
  std::array<ballast::segment, 1> source{{{from.data(), 4}}};
  std::array<ballast::segment, 2> target{{{to.data(), 1}, {to.data() + 1, 3}}};
  std::array<ballast::outgoing_message, 1> sends{{{0, 0, 7, source}}};
  std::array<ballast::incoming_message, 1> receives{{{0, 0, 7, target, {}}}};
};

}  // namespace

TEST_CASE("messages routed by link obey the laws of a transport") {
  SUBCASE("a group per node") { ballast_test::check_transport_laws(two_nodes_runner{true}, 20); }
  SUBCASE("a node's transport that spans all ranks") {
    ballast_test::check_transport_laws(two_nodes_runner{false}, 20);
  }
}

TEST_CASE("each message takes its own link, and a failure tells which") {
  ballast::topology const where{{4, 2, 1, 0}};
  ballast::in_process_group second_node{2};
  ballast::in_process_group remote{4};
  wires rank2{where, second_node.endpoint(0), remote.endpoint(2)};
  CHECK(rank2.rank() == 2);
  CHECK(rank2.num_ranks() == 4);
  self_message bytes;
  auto const waits_for = [&](ballast::index_t peer) {
    bytes.receives[0].peer = peer;
    REQUIRE(rank2.start({}, bytes.receives).ok());
    CHECK(rank2.poll() == ballast::transfer_state::pending);
    auto const result = rank2.wait(10 * ballast_test::millisecond);
    CHECK(result.code() == make_error_code(errc::deadline_exceeded));
    CHECK(rank2.poll() == ballast::transfer_state::idle);
    CHECK(result.rank() == peer);  // among all ranks, on every link
    return result.message();
  };
  // Also by a link that refuses a batch at once: rank 3 is the node's second.
  {
    ballast::in_process_group own_node{2};
    wires refused{where, own_node.endpoint(1), remote.endpoint(3)};
    own_node.expel(1);
    auto const result = refused.start({}, {});
    CHECK(result.code() == make_error_code(errc::stale_membership));
    CHECK(result.rank() == 3);
    CHECK(result.message().find("inside the node, ranks counted from 2: ") == 0);
  }
  CHECK(waits_for(3).find("ranks counted from 2: in_process: rank 0 waited in vain for a message of rank 1") !=
        std::string::npos);
  CHECK(waits_for(1).find("in_process: rank 2 waited in vain for a message of rank 1") == 0);
}

TEST_CASE("a rank's message to itself is a copy") {
  self_message bytes;
  ballast::self_copy copy{0, 1};
  REQUIRE(copy.start(bytes.sends, bytes.receives).ok());
  CHECK(copy.poll() == ballast::transfer_state::done);
  CHECK(copy.wait(0).ok());
  CHECK(copy.poll() == ballast::transfer_state::idle);
  CHECK(bytes.to == bytes.from);

  auto const fails = [&] {
    REQUIRE(copy.start(bytes.sends, bytes.receives).ok());
    CHECK(copy.poll() == ballast::transfer_state::failed);
    return copy.wait(0);
  };
  bytes.receives[0].tag = 8;
  CHECK(fails().message().find("sends itself 0 and expects 1") != std::string::npos);
  bytes.receives[0].tag = 7;
  bytes.target[1].size = 2;
  CHECK(fails().message().find("sends itself 4 and expects 3 bytes") != std::string::npos);
  REQUIRE(copy.start({}, bytes.receives).ok());
  CHECK_FALSE(copy.wait(0).ok());
}

TEST_CASE("links work side by side: the time of a batch is that of the slowest that measures") {
  struct timed_copy : ballast::self_copy {
    using self_copy::self_copy;
    ballast::nanoseconds_t time = ballast::not_measured;
    [[nodiscard]] ballast::nanoseconds_t receive_time() const noexcept { return time; }
  };
  timed_copy node{0, 2};
  timed_copy remote{0, 2};
  ballast::by_link<ballast::self_copy, timed_copy, timed_copy> const links{ballast::topology{{2, 1, 1, 0}}, node,
                                                                           remote};
  CHECK(links.receive_time() == ballast::not_measured);
  node.time = 5;
  CHECK(links.receive_time() == 5);
  remote.time = 9;
  CHECK(links.receive_time() == 9);
}

TEST_CASE("transports that do not fit the topology are refused") {
  ballast::in_process_group three{3};
  ballast::in_process_group four{4};
  ballast::topology const where{{4, 2, 1, 0}};
  CHECK_BREAKS_CONTRACT(wires(where, four.endpoint(0), three.endpoint(0)));
  CHECK_BREAKS_CONTRACT(wires(where, three.endpoint(0), four.endpoint(0)));
  CHECK_BREAKS_CONTRACT(wires(where, four.endpoint(1), four.endpoint(0)));
}

TEST_CASE("when a link refuses, the others do not go on, and what somebody else has open on it does") {
  ballast::topology const where{{2, 2, 1, 0}};
  ballast::in_process_group near{2};
  ballast::in_process_group far{2};
  auto& node = near.endpoint(0);
  auto& remote = far.endpoint(0);
  wires transport{where, node, remote};
  REQUIRE(remote.start({}, {}).ok());
  CHECK(transport.start({}, {}).code() == make_error_code(errc::busy));
  CHECK(remote.start({}, {}).code() == make_error_code(errc::busy));
  CHECK(node.start({}, {}).ok());
  CHECK(node.wait(0).ok());
  CHECK(remote.wait(0).ok());
  CHECK(transport.start({}, {}).ok());
  CHECK(transport.wait(0).ok());
}
