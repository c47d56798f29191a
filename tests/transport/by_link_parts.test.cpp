// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/detail/options.hpp>
#include <ballast/parts.hpp>
#include <ballast/runtime/detail/transport_share.hpp>
#include <ballast/runtime/host_store.hpp>
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
#include <utility>
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
  int starts = 0;
  nanoseconds_t waited = -1;  ///< the longest timeout of a wait

  [[nodiscard]] ballast::index_t rank() const noexcept { return rank_; }
  [[nodiscard]] ballast::index_t num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] status start(std::span<ballast::outgoing_message const> sends,
                             std::span<ballast::incoming_message const> /*receives*/) {
    ++starts;
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
  plain_link(plain_link const&) = delete;

protected:
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

/// May still write somewhere, for a batch that was given up.
struct late_writes {
  std::byte const* writes = nullptr;

  [[nodiscard]] bool may_write(std::span<ballast::incoming_message const> receives) const {
    auto const holds_it = [this](ballast::segment each) {
      return writes >= each.data && writes < each.data + each.size;
    };
    return writes != nullptr && std::ranges::any_of(receives, [&](ballast::incoming_message const& receive) {
             return std::ranges::any_of(receive.segments, holds_it);
           });
  }
};
class late_link : public plain_link, public late_writes {
public:
  using plain_link::plain_link;
};
class late_self : public ballast::self_copy, public late_writes {
public:
  using self_copy::self_copy;
};

/// Moves only inside of a wait, and refuses a batch if told to.
class refusing_link : public waiting_link {
public:
  using waiting_link::waiting_link;
  bool refuses = false;
  [[nodiscard]] status start(std::span<ballast::outgoing_message const> sends,
                             std::span<ballast::incoming_message const> receives) {
    if (refuses) { return {errc::transport_failed, "not today"}; }
    return waiting_link::start(sends, receives);
  }
};

/// Exposes memory, unless it is told to fail.
class exposing_link : public plain_link {
public:
  using plain_link::plain_link;
  bool fails_to_expose = false;
  std::vector<std::uint32_t> sets;  ///< that are exposed
  [[nodiscard]] status expose(std::span<ballast::segment const> /*regions*/, std::uint32_t first) {
    if (fails_to_expose) { return {errc::invalid_weights, "not this memory"}; }
    sets.push_back(first);
    return {};
  }
  void retract(std::uint32_t first) noexcept { std::erase(sets, first); }
  [[nodiscard]] std::uint32_t next_region() const noexcept { return 4; }
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
static_assert(!ballast::late_writer<bare_links>);
static_assert(ballast::late_writer<decltype(two_nodes<late_link, bare_link>::links)>);

/// Rank 0 of two nodes, whose node's link may write late, and a batch that receives from the other node.
struct late_node : two_nodes<late_link, refusing_link> {
  std::array<std::byte, 8> memory{};
  ballast::segment where{memory.data(), memory.size()};

  [[nodiscard]] status start_batch() {
    ballast::outgoing_message const send{1, 0, 1, {}};
    ballast::incoming_message const receive{1, 0, 2, {&where, 1}, {}};
    return links.start({&send, 1}, {&receive, 1});
  }
};

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

TEST_CASE("memory that one link cannot show stays hidden on the others") {
  two_nodes<exposing_link, exposing_link> self;
  CHECK(self.links.expose({}, 4).ok());
  CHECK(self.node.sets == std::vector<std::uint32_t>{4});
  CHECK(self.remote.sets == std::vector<std::uint32_t>{4});
  self.remote.fails_to_expose = true;
  CHECK(self.links.expose({}, 9).code() == errc::invalid_weights);
  CHECK(self.node.sets == std::vector<std::uint32_t>{4});
  self.remote.fails_to_expose = false;
  self.node.fails_to_expose = true;
  CHECK(self.links.expose({}, 9).code() == errc::invalid_weights);
  CHECK(self.remote.sets == std::vector<std::uint32_t>{4});
}

TEST_CASE("tags are new on every link, whoever else has used one by itself") {
  two_nodes<bare_link, bare_link> self;
  ballast::in_process_group alone{1};
  ballast::topology const where{{2, 2, 1, 0}};
  ballast::host_store store{where, 0};
  ballast::detail::transport_share<bare_links, ballast::host_store> share{self.links, store};
  ballast::detail::transport_share<bare_link, ballast::host_store> of_node{self.node, store};
  auto const first_tag = [&](auto& of) {
    of.take(alone.endpoint(0), ballast_test::patience).or_throw();
    return of.first_tag();
  };
  using ballast::transfer_turns;
  CHECK(first_tag(share) == transfer_turns::first_tag(1));
  CHECK(first_tag(of_node) == transfer_turns::first_tag(2));
  CHECK(first_tag(share) == transfer_turns::first_tag(3));
  // A link that has served others for longer.
  self.remote.turns().take_session(8);
  CHECK(first_tag(share) == transfer_turns::first_tag(9));
  CHECK(first_tag(of_node) == transfer_turns::first_tag(10));
  // One transport as both links.
  bare_link both{0, 2};
  ballast::by_link<ballast::self_copy, bare_link, bare_link> twice{where, both, both};
  ballast::detail::transport_share<decltype(twice), ballast::host_store> of_twice{twice, store};
  CHECK(first_tag(of_twice) == transfer_turns::first_tag(1));
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
  status result{errc::deadline_exceeded, "not tried"};
  for (int attempt = 0; attempt < 5 && !result.ok(); ++attempt) {  // a machine may be busy with something else
    two_nodes<bare_link, bare_link> rank;
    rank.remote.polls_needed = 4'000;
    REQUIRE(rank.start_remote_batch().ok());
    result = rank.links.wait(1'500 * millisecond);
  }
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

TEST_CASE("a batch is held back while another link may still write where it receives") {
  late_node rank;
  rank.node.writes = rank.memory.data() + 7;
  REQUIRE(rank.start_batch().ok());
  CHECK(rank.links.poll() == transfer_state::pending);
  CHECK(rank.remote.starts == 0);
  CHECK(rank.links.start({}, {}).code() == make_error_code(errc::busy));

  rank.node.writes = nullptr;
  CHECK(rank.links.poll() == transfer_state::pending);
  CHECK(rank.remote.starts == 1);
  CHECK(rank.links.wait(500 * millisecond).ok());
}

TEST_CASE("a link that may still write elsewhere, or where it receives itself, holds nothing back") {
  std::byte const elsewhere{};
  late_node rank;
  rank.node.writes = &elsewhere;
  REQUIRE(rank.start_batch().ok());
  CHECK(rank.remote.starts == 1);
  CHECK(rank.links.wait(500 * millisecond).ok());

  two_nodes<bare_link, late_link> own;
  own.remote.writes = rank.memory.data();
  ballast::incoming_message const receive{1, 0, 2, {&rank.where, 1}, {}};
  REQUIRE(own.links.start({}, {&receive, 1}).ok());
  CHECK(own.links.poll() == transfer_state::done);
  CHECK(own.links.may_write({&receive, 1}));
  CHECK(own.links.wait(0).ok());
}

TEST_CASE("whichever link may still write, and whichever receives, the batch is held back") {
  std::array<std::byte, 8> memory{};
  std::array<std::byte, 8> source{};
  ballast::segment const where{memory.data(), memory.size()};
  ballast::segment const from{source.data(), source.size()};
  ballast::topology const two_nodes_of_two{{4, 2, 1, 0}};
  for (int writer = 0; writer < 3; ++writer) {          // the link to rank 0 itself, to its node, to the other
    for (int receiver = 0; receiver < 3; ++receiver) {  // from rank 0, 1 in its node, 2 in the other
      CAPTURE(writer);
      CAPTURE(receiver);
      late_self same{0, 4};
      late_link node{0, 4};
      late_link remote{0, 4};
      std::array<late_writes*, 3>{&same, &node, &remote}.at(static_cast<std::size_t>(writer))->writes = memory.data();
      ballast::by_link<late_self, late_link, late_link> links{two_nodes_of_two, std::move(same), node, remote};
      ballast::outgoing_message const send{receiver, 0, 2, {&from, 1}};
      ballast::incoming_message const receive{receiver, 0, 2, {&where, 1}, {}};
      REQUIRE(links.start({&send, 1}, {&receive, 1}).ok());
      CHECK(links.may_write({&receive, 1}));
      CHECK(links.wait(20 * millisecond).ok() == (writer == receiver));
    }
  }
}

TEST_CASE("a batch that is open is left alone by a second one, which is refused") {
  two_nodes<bare_link, bare_link> rank;
  rank.remote.polls_needed = 2;
  ballast::outgoing_message const send{1, 0, 1, {}};
  REQUIRE(rank.links.start({&send, 1}, {}).ok());
  CHECK(rank.links.start({}, {}).code() == make_error_code(errc::busy));
  CHECK(rank.remote.starts == 1);
  CHECK(rank.links.wait(500 * millisecond).ok());
  CHECK(rank.links.start({}, {}).ok());
}

TEST_CASE("what somebody else has open on a link is not ended by a by_link without a batch") {
  two_nodes<waiting_link, bare_link> rank;
  REQUIRE(rank.remote.start({}, {}).ok());
  CHECK(rank.links.poll() == transfer_state::idle);
  rank.links.enter_wait();
  CHECK(rank.links.wait(500 * millisecond).ok());
  CHECK(rank.node.entered == 0);
  CHECK(rank.remote.poll() == transfer_state::done);
}

TEST_CASE("a batch that is held back until its deadline never begins, and the next one may") {
  late_node rank;
  rank.node.writes = rank.memory.data();
  REQUIRE(rank.start_batch().ok());
  auto const late = rank.links.wait(20 * millisecond);
  CHECK(late.code() == make_error_code(errc::deadline_exceeded));
  CHECK(late.message().find("still writes, for a batch that was given up") != std::string::npos);
  CHECK(late.rank() == 0);
  CHECK(rank.remote.starts == 0);
  CHECK(rank.links.poll() == transfer_state::idle);

  rank.node.writes = nullptr;
  CHECK(rank.links.poll() == transfer_state::idle);
  CHECK(rank.remote.starts == 0);
  REQUIRE(rank.start_batch().ok());
  CHECK(rank.links.wait(500 * millisecond).ok());
}

TEST_CASE("a batch that was held back is told of the wait that it begins in") {
  late_node rank;
  rank.node.writes = rank.memory.data();
  REQUIRE(rank.start_batch().ok());
  rank.links.enter_wait();
  CHECK(rank.remote.entered == 0);
  rank.node.writes = nullptr;
  CHECK(rank.links.poll() == transfer_state::done);
  CHECK(rank.remote.entered == 1);
  CHECK(rank.links.wait(0).ok());
}

TEST_CASE("a link that refuses a batch that was held back fails it") {
  late_node rank;
  rank.node.writes = rank.memory.data();
  REQUIRE(rank.start_batch().ok());
  rank.node.writes = nullptr;
  rank.remote.refuses = true;
  CHECK(rank.links.poll() == transfer_state::failed);
  CHECK(rank.links.wait(500 * millisecond).message() == "not today");
  CHECK(rank.links.poll() == transfer_state::idle);

  rank.remote.refuses = false;
  REQUIRE(rank.start_batch().ok());
  CHECK(rank.links.wait(500 * millisecond).ok());
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
