// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/detail/options.hpp>
#include <ballast/parts.hpp>
#include <ballast/transport/by_link.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/check_complaints.hpp"
#include "support/control_laws.hpp"
#include "support/in_process_runner.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// What by_link makes of members that only some links have.

namespace {

using ballast::errc;
using ballast::nanoseconds_t;
using ballast::status;
using ballast::transfer_state;
using ballast_test::millisecond;

/// A link without bytes: a batch is done after so many polls. What it is told is written down.
class plain_link {
public:
  plain_link(ballast::index_t rank, ballast::index_t num_ranks) : rank_{rank}, num_ranks_{num_ranks} {}

  int polls_needed = 1;
  bool fails = false;
  int polls = 0;
  nanoseconds_t waited = -1;  ///< the longest timeout of a wait

  [[nodiscard]] ballast::index_t rank() const noexcept { return rank_; }
  [[nodiscard]] ballast::index_t num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] status start(std::span<ballast::outgoing_message const> sends,
                             std::span<ballast::incoming_message const> /*receives*/) {
    open_ = true;
    is_empty_ = sends.empty();
    polls = 0;
    return {};
  }
  [[nodiscard]] transfer_state poll() {
    if (!open_) { return transfer_state::idle; }
    if (is_empty_) { return transfer_state::done; }
    if (fails) { return transfer_state::failed; }
    polls += moves() ? 1 : 0;
    return polls < polls_needed ? transfer_state::pending : transfer_state::done;
  }
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    waited = std::max(waited, timeout);
    auto const state = poll();
    open_ = false;
    if (state == transfer_state::failed) { return {errc::transport_failed, "it failed"}; }
    if (state == transfer_state::pending) { return {errc::deadline_exceeded, "it was late"}; }
    return {};
  }
  [[nodiscard]] ballast::transfer_turns& turns() noexcept { return turns_; }

protected:
  plain_link(plain_link const&) = delete;
  virtual ~plain_link() = default;
  [[nodiscard]] virtual bool moves() const { return true; }

private:
  ballast::index_t rank_;
  ballast::index_t num_ranks_;
  bool open_ = false;
  bool is_empty_ = true;
  ballast::transfer_turns turns_;
};

/// Moves only while the host is inside a wait.
class waiting_link : public plain_link {
public:
  using plain_link::plain_link;
  int entered = 0;
  void enter_wait() { ++entered; }
  [[nodiscard]] bool moves_in_poll() const noexcept { return false; }

private:
  [[nodiscard]] bool moves() const override { return entered > 0; }
};

/// Has everything else that a link may have.
class rich_link : public plain_link {
public:
  using plain_link::plain_link;
  status warmth;
  int warmed = 0;
  bool broken = false;
  std::uint64_t option = 7;
  std::vector<std::uint64_t> members;  ///< of the group that it was repaired by

  [[nodiscard]] bool moves_in_poll() const noexcept { return true; }
  [[nodiscard]] status warm_up() {
    ++warmed;
    return warmth;
  }
  template <class Visit>
  void for_each_copy_stream(Visit visit) const {
    visit(this);
  }
  template <class Visit>
  void for_each_option(Visit visit) const {
    visit("size", option);
  }
  [[nodiscard]] bool needs_repair() const noexcept { return broken; }
  template <class Control>
  [[nodiscard]] status repair(Control& control, nanoseconds_t timeout) {
    members.resize(static_cast<std::size_t>(control.num_ranks()));
    std::uint64_t const mine[] = {100 + static_cast<std::uint64_t>(rank())};
    if (auto result = control.all_gather(mine, members, timeout); !result.ok()) { return result; }
    std::array<std::byte, 3> told{};
    if (control.rank() == 1) { told = {std::byte{1}, std::byte{2}, std::byte{3}}; }
    if (auto result = control.broadcast(told, 1, timeout); !result.ok()) { return result; }
    std::int64_t sum[] = {control.rank(), 1};
    if (auto result = control.all_reduce(sum, timeout); !result.ok()) { return result; }
    broken = told[2] != std::byte{3} || sum[1] != control.num_ranks() || sum[0] != sum[1] * (sum[1] - 1) / 2;
    return control.vote(!broken, timeout).reason;
  }
};

/// Rank 0 of two nodes of one rank each; what is sent goes to the other node.
template <class Node, class Remote>
struct two_nodes {
  Node node{0, 2};
  Remote remote{0, 2};
  ballast::by_link<ballast::self_copy, Node, Remote> links{ballast::topology{{2, 2, 1, 0}}, node, remote};

  [[nodiscard]] status start_remote_batch() {
    ballast::outgoing_message const send{1, 0, 1, {}};
    return links.start({&send, 1}, {});
  }
};

struct bare_link final : plain_link {
  using plain_link::plain_link;
};

using bare_links = decltype(two_nodes<bare_link, bare_link>::links);
using rich_links = decltype(two_nodes<bare_link, rich_link>::links);
template <class T>
concept has_enter_wait = requires(T& links) { links.enter_wait(); };
static_assert(!has_enter_wait<bare_links> && has_enter_wait<decltype(two_nodes<waiting_link, bare_link>::links)>);
static_assert(!ballast::warming_part<bare_links> && ballast::warming_part<rich_links>);
static_assert(!ballast::detail::tells_copy_streams<bare_links> && ballast::detail::tells_copy_streams<rich_links>);
static_assert(!ballast::detail::names_options<bare_links> && ballast::detail::names_options<rich_links>);

}  // namespace

TEST_CASE("a link that moves bytes only inside of a wait is told of the wait") {
  two_nodes<bare_link, waiting_link> rank;
  rank.remote.polls_needed = 3;
  REQUIRE(rank.start_remote_batch().ok());
  CHECK(rank.links.poll() == transfer_state::pending);
  CHECK(rank.remote.polls == 0);
  auto const result = rank.links.wait(500 * millisecond);
  CHECK_MESSAGE(result.ok(), result.message());
  CHECK(rank.remote.entered == 1);
  CHECK(rank.remote.polls >= 3);
}

TEST_CASE("a batch that is only to be ended begins nothing") {
  two_nodes<bare_link, waiting_link> rank;
  REQUIRE(rank.start_remote_batch().ok());
  CHECK(rank.links.wait(0).code() == make_error_code(errc::deadline_exceeded));
  CHECK(rank.remote.entered == 0);
}

TEST_CASE("by_link is told of a wait itself") {
  two_nodes<waiting_link, waiting_link> rank;
  REQUIRE(rank.start_remote_batch().ok());
  rank.links.enter_wait();
  CHECK(rank.node.entered == 1);
  CHECK(rank.remote.entered == 1);
  CHECK(rank.links.poll() == transfer_state::done);
  CHECK(rank.links.wait(0).ok());
}

TEST_CASE("a batch without messages is done at once") {
  two_nodes<bare_link, waiting_link> rank;
  REQUIRE(rank.links.start({}, {}).ok());
  CHECK(rank.links.poll() == transfer_state::done);
  auto const begin = ballast::detail::now();
  CHECK(rank.links.wait(10'000 * millisecond).ok());
  CHECK(ballast::detail::now() - begin < 5'000 * millisecond);
}

TEST_CASE("links are polled often enough to not hold up a short move") {
  two_nodes<bare_link, bare_link> rank;
  rank.remote.polls_needed = 4'000;
  REQUIRE(rank.start_remote_batch().ok());
  auto const result = rank.links.wait(1'500 * millisecond);
  CHECK_MESSAGE(result.ok(), result.message());
}

TEST_CASE("a link that failed may use up the time that is left, the others are only told to stop") {
  two_nodes<bare_link, bare_link> rank;
  rank.remote.fails = true;
  REQUIRE(rank.start_remote_batch().ok());
  auto const result = rank.links.wait(400 * millisecond);
  CHECK(result.message() == "it failed");
  CHECK(rank.remote.waited > 0);
  CHECK(rank.remote.waited <= 400 * millisecond);
  CHECK(rank.node.waited == 0);
}

TEST_CASE("bytes move in poll if they do on all links") {
  CHECK(two_nodes<bare_link, bare_link>{}.links.moves_in_poll());
  CHECK(two_nodes<bare_link, rich_link>{}.links.moves_in_poll());
  CHECK_FALSE(two_nodes<bare_link, waiting_link>{}.links.moves_in_poll());
  CHECK_FALSE(two_nodes<waiting_link, rich_link>{}.links.moves_in_poll());
}

TEST_CASE("copy streams, options and warm-up of the links are those of by_link") {
  two_nodes<rich_link, rich_link> rank;
  std::vector<rich_link const*> streams;
  rank.links.for_each_copy_stream([&](rich_link const* stream) { streams.push_back(stream); });
  CHECK(streams == std::vector<rich_link const*>{&rank.node, &rank.remote});

  rank.remote.option = 9;
  std::vector<std::string> options;
  rank.links.for_each_option(
      [&](std::string_view name, std::uint64_t bits) { options.push_back(ballast::detail::concat(name, '=', bits)); });
  CHECK(options == std::vector<std::string>{"node: size=7", "remote: size=9"});

  CHECK(rank.links.warm_up().ok());
  rank.node.warmth = {errc::peer_lost, "too cold"};
  CHECK(rank.links.warm_up().message() == "too cold");
  CHECK(rank.remote.warmed == 2);
}

TEST_CASE("links are repaired by all ranks, a node's own by its node's ranks") {
  constexpr ballast::index_t num_ranks = 4;
  ballast::topology const where{{num_ranks, 2, 1, 0}};
  ballast_test::check_complaints(
      ballast_test::in_process_runner{}.run(num_ranks, [&](auto& self, ballast_test::law_log& log) {
        auto const rank = self.rank();
        rich_link node{rank % 2, 2};
        rich_link remote{rank, num_ranks};
        ballast::by_link<ballast::self_copy, rich_link, rich_link> links{where, node, remote};
        log.expect(!links.needs_repair(), "repair where nothing is broken");
        remote.broken = rank == 0;
        node.broken = rank == 3;
        log.expect(links.needs_repair() == (rank % 3 == 0), "rank ", rank, " is wrong about repair");
        log.expect_ok(links.repair(self.control, ballast_test::patience), "repair");
        log.expect(!links.needs_repair(), "still broken");
        log.expect(node.members == std::vector<std::uint64_t>{100, 101}, "another node's ranks");
        log.expect(remote.members == std::vector<std::uint64_t>{100, 101, 102, 103}, "not all ranks");
      }));
}
