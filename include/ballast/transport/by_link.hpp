// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TRANSPORT_BY_LINK_HPP
#define BALLAST_TRANSPORT_BY_LINK_HPP

#include <ballast/contract.hpp>
#include <ballast/control/control.hpp>
#include <ballast/control/detail/node_plane.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/parts.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/detail/optional_members.hpp>
#include <ballast/transport/detail/segments.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Messages of a rank to itself, in host memory.
class self_copy {
public:
  self_copy(index_t rank, index_t num_ranks) : rank_{rank}, num_ranks_{num_ranks} {}

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }

  /// Copy every message at once; see `data_transport`.
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    if (state_ != transfer_state::idle) { return {errc::busy, "self_copy: a batch is already open"}; }
    failure_ = {};
    if (sends.size() != receives.size()) { fail(sends.size(), receives.size(), "messages"); }
    for (auto const& receive : receives) {
      auto const send = std::ranges::find(sends, receive.tag, &outgoing_message::tag);
      if (send == sends.end()) {
        fail(0, 1, "message of one tag");
        continue;
      }
      auto const sent = detail::total_size(send->segments);
      auto const expected = detail::total_size(receive.segments);
      if (sent == expected) {
        detail::copy_segments(send->segments, receive.segments);
      } else {
        fail(sent, expected, "bytes");
      }
    }
    state_ = failure_.ok() ? transfer_state::done : transfer_state::failed;
    return {};
  }
  [[nodiscard]] transfer_state poll() { return state_; }
  [[nodiscard]] status wait(nanoseconds_t /*timeout*/) {
    state_ = transfer_state::idle;
    return std::exchange(failure_, {});
  }
  [[nodiscard]] transfer_turns& turns() noexcept { return turns_; }

private:
  void fail(std::size_t sent, std::size_t expected, char const* unit) {
    failure_ = {errc::transport_failed,
                detail::concat("self_copy: rank ", rank_, " sends itself ", sent, " and expects ", expected, " ", unit),
                rank_};
  }

  index_t rank_;
  index_t num_ranks_;
  transfer_state state_ = transfer_state::idle;
  status failure_;
  transfer_turns turns_;
};

static_assert(message_transport<self_copy>);

namespace detail {

struct copy_stream_visitor {
  template <class Stream>
  void operator()(Stream /*stream*/) const noexcept {}
};

/// Members that a link may have, told apart by concepts as `by_link` has them if one of its links does.
template <class T>
concept waits_inside = requires(T& link) { link.enter_wait(); };
template <class T>
concept tells_copy_streams = requires(T const& link) { link.for_each_copy_stream(copy_stream_visitor{}); };

}  // namespace detail

/// A transport per class of link behind one plan: to the rank itself, inside its node, to other nodes.
///
/// A transport for the node may span all ranks, or only those of one node, numbered from 0 in the order of the ranks.
/// It exposes memory if any of the three does. Several `by_link` may share their links, and take turns on the remote
/// one; whoever uses a link by itself at the same time is refused while a batch is open (`errc::busy`).
///
/// All links make progress together, whoever is slow. A batch that fails on one link is ended on all of them; a link
/// that cannot go on after that says so by `needs_repair`, and `repair`, called on all ranks, repairs every link. Where
/// a link says that it may still write, for a batch that was given up, where another one is to receive
/// (`may_write(receives)`), the batch begins on all of them when it has done so.
///
/// @lifetime the node's and the remote transport must outlive it.
/// @threads one thread at a time.
template <data_transport Same, data_transport Node, data_transport Remote>
class by_link {
  static_assert(detail::optional_transport_members<Same>::fit && detail::optional_transport_members<Node>::fit &&
                detail::optional_transport_members<Remote>::fit);

public:
  /// @pre `remote` spans all ranks of `where`; `node` spans all of them, or the node of this rank
  by_link(topology const& where, Same same, Node& node, Remote& remote)
      : where_{where}, same_{std::move(same)}, node_{&node}, remote_{&remote} {
    BALLAST_EXPECTS(remote.num_ranks() == where.num_ranks(), "by_link: the remote transport must span all ranks");
    bool const spans_all = node.num_ranks() == where.num_ranks();
    BALLAST_EXPECTS(spans_all || node.num_ranks() == where.ranks_per_node(),
                    "by_link: the node's transport must span the node or all ranks");
    if (!spans_all) { first_of_node_ = where.node_of_rank(remote.rank()) * where.ranks_per_node(); }
    BALLAST_EXPECTS(node.rank() + first_of_node_ == remote.rank(), "by_link: the transports disagree about the rank");
  }
  by_link(topology const& where, Node& node, Remote& remote)
    requires std::constructible_from<Same, index_t, index_t>
      : by_link{where, Same{remote.rank(), remote.num_ranks()}, node, remote} {}

  [[nodiscard]] index_t rank() const noexcept { return remote_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return remote_->num_ranks(); }

  /// Make this rank's memory readable on every link that needs it; see `peer_copier`.
  [[nodiscard]] status expose(std::span<segment const> regions, std::uint32_t first)
    requires(peer_copier<Same> || peer_copier<Node> || peer_copier<Remote>)
  {
    status result;
    int exposed = 0;
    for_each_copier([this, &result, &exposed, &regions, &first](auto& link) {
      if (!result.ok()) { return; }
      result = this->told_by(link, link.expose(regions, first));
      exposed += result.ok() ? 1 : 0;
    });
    if (result.ok()) { return result; }
    for_each_copier([&exposed, &first](auto& link) {
      if (exposed-- > 0) { link.retract(first); }
    });
    return result;
  }
  void retract(std::uint32_t first) noexcept
    requires(peer_copier<Same> || peer_copier<Node> || peer_copier<Remote>)
  {
    for_each_copier([&first](auto& link) { link.retract(first); });
  }
  [[nodiscard]] std::uint32_t next_region() const noexcept
    requires(peer_copier<Same> || peer_copier<Node> || peer_copier<Remote>)
  {
    return std::max({next_region_of(same_), next_region_of(*node_), next_region_of(*remote_)});
  }
  [[nodiscard]] transfer_turns& turns() noexcept { return remote_->turns(); }
  /// Those of all links: others may use a link by itself, and no tag is used twice there either.
  template <class Visit>
  void for_each_turns(Visit visit) {
    for_each_link([&visit](auto& link) {
      if constexpr (shared_transport<std::remove_cvref_t<decltype(link)>>) { visit(link.turns()); }
    });
  }

  /// Options of the links that the ranks must share.
  template <class Visit>
  void for_each_option(Visit visit) const
    requires(detail::names_options<Same> || detail::names_options<Node> || detail::names_options<Remote>)
  {
    visit_options("same", same_, visit);
    visit_options("node", *node_, visit);
    visit_options("remote", *remote_, visit);
  }
  /// Every stream that a link copies on; a store orders its commits against them.
  template <class Visit>
  void for_each_copy_stream(Visit visit) const
    requires(detail::tells_copy_streams<Same> || detail::tells_copy_streams<Node> || detail::tells_copy_streams<Remote>)
  {
    for_each_link([&visit](auto const& link) {
      if constexpr (detail::tells_copy_streams<std::remove_cvref_t<decltype(link)>>) {
        link.for_each_copy_stream(visit);
      }
    });
  }
  /// Take the costs of first use on every link out of the first batch; called by all ranks together. A link that fails
  /// keeps no other from trying, because that one's peers may wait for it.
  [[nodiscard]] status warm_up()
    requires(warming_part<Same> || warming_part<Node> || warming_part<Remote>)
  {
    status result;
    for_each_link([this, &result](auto& link) { keep_first(result, this->told_by(link, detail::warm_up(link))); });
    return result;
  }
  /// Whether a link may still write, for a batch that was given up, where these are received.
  [[nodiscard]] bool may_write(std::span<incoming_message const> receives)
    requires(late_writer<Same> || late_writer<Node> || late_writer<Remote>)
  {
    bool any = false;
    for_each_link([&any, &receives](auto& link) { any = any || detail::may_write(link, receives); });
    return any;
  }
  /// Whether bytes move on all links while they are polled; a link that does not say moves them.
  [[nodiscard]] bool moves_in_poll() const noexcept {
    bool all = true;
    for_each_link([&all](auto const& link) { all = all && detail::moves_in_poll(link); });
    return all;
  }
  /// Whether a link cannot open a batch until `repair`.
  [[nodiscard]] bool needs_repair() const noexcept {
    bool any = false;
    for_each_link([&any](auto const& link) {
      if constexpr (requires { link.needs_repair(); }) { any = any || link.needs_repair(); }
    });
    return any;
  }
  /// Repair every link that can be repaired; called by all ranks together, with no batch open.
  ///
  /// @param control  of all ranks. A node's transport of its own is repaired by its node's ranks through it.
  /// @param timeout  nanoseconds, for all links together.
  template <control_plane Control>
  [[nodiscard]] status repair(Control& control, nanoseconds_t timeout) {
    auto const deadline = detail::deadline_after(timeout);
    status result;
    for_each_link([this, &result, &control, &deadline](auto& link) {
      if (!result.ok()) { return; }
      if (link.num_ranks() == num_ranks()) {
        keep_first(result, detail::repair(link, control, detail::time_until(deadline)));
      } else {
        detail::node_plane<Control> node{control, first_of_node_, link.num_ranks()};
        keep_first(result, this->told_by(link, detail::repair(link, node, detail::time_until(deadline))));
      }
    });
    return result;
  }

  /// Open a batch on all links; see `data_transport`.
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    if (is_open_) { return {errc::busy, detail::concat("by_link: a batch of rank ", rank(), " is already open")}; }
    to_same_.clear();
    to_node_.clear();
    to_remote_.clear();
    status result;
    auto const route_all = [this, &result](auto const& messages, auto list) {
      for (auto const& message : messages) {
        if (message.peer < 0 || message.peer >= num_ranks()) {
          result = {errc::transport_failed, detail::concat("by_link: rank ", rank(), " has a message for rank ",
                                                           message.peer, " of ", num_ranks())};
          return;
        }
        (route(message.peer).*list).push_back(renumbered(message));
      }
    };
    route_all(sends, &batch::sends);
    route_all(receives, &batch::receives);
    is_waiting_ = false;
    failure_ = {};
    is_held_back_ = result.ok() && may_meet_late_writes();
    if (result.ok() && !is_held_back_) { result = begin_batch(); }
    is_open_ = result.ok();
    return result;
  }

  /// Make progress on all links; see `data_transport`.
  [[nodiscard]] transfer_state poll() {
    if (!is_open_) { return transfer_state::idle; }
    if (!start_once_clear()) { return failure_.ok() ? transfer_state::pending : transfer_state::failed; }
    bool failed = false;
    bool pending = false;
    bool done = false;
    for_each_link([&failed, &pending, &done](auto& link) {
      auto const state = link.poll();
      failed = failed || state == transfer_state::failed;
      pending = pending || state == transfer_state::pending;
      done = done || state == transfer_state::done;
    });
    if (failed) { return transfer_state::failed; }
    if (pending) { return transfer_state::pending; }
    return done ? transfer_state::done : transfer_state::idle;
  }

  /// Tell the links that the host is inside a wait for this batch from now on: some move bytes only then.
  void enter_wait()
    requires(detail::waits_inside<Same> || detail::waits_inside<Node> || detail::waits_inside<Remote>)
  {
    if (!is_open_) { return; }
    is_waiting_ = true;
    if (is_held_back_) { return; }
    for_each_link([](auto& link) {
      if constexpr (detail::waits_inside<std::remove_cvref_t<decltype(link)>>) { link.enter_wait(); }
    });
  }

  /// Make progress on all links until the batch ends; see `data_transport`.
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    if (!is_open_) { return {}; }
    auto const deadline = detail::deadline_after(timeout);
    // A batch that is only to be ended begins nothing any more.
    if constexpr (requires { enter_wait(); }) {
      if (timeout > 0) { enter_wait(); }
    }
    static_cast<void>(detail::poll_until(deadline, [this] { return poll() != transfer_state::pending; }));
    is_open_ = false;
    if (is_held_back_) {
      return {errc::deadline_exceeded,
              detail::concat("by_link: a link of rank ", rank(),
                             " still writes, for a batch that was given up, where this one receives"),
              rank()};
    }
    if (!failure_.ok()) { return std::exchange(failure_, {}); }
    status result;
    // A link that failed tells the cause; those that are still at work are only told to stop.
    for_each_link([this, &result, &deadline](auto& link) {
      if (link.poll() != transfer_state::failed) { return; }
      keep_first(result, this->told_by(link, link.wait(detail::time_until(deadline))));
    });
    close(result);
    return result;
  }

  /// The links work side by side: the longest of their times, of those that measure; see `receive_timer`.
  [[nodiscard]] nanoseconds_t receive_time() const noexcept
    requires(receive_timer<Same> || receive_timer<Node> || receive_timer<Remote>)
  {
    return std::max({receive_time_of(same_), receive_time_of(*node_), receive_time_of(*remote_)});
  }

private:
  struct batch {
    std::vector<outgoing_message> sends;
    std::vector<incoming_message> receives;
    void clear() {
      sends.clear();
      receives.clear();
    }
  };

  /// Whether a link may still write where another one receives.
  [[nodiscard]] bool may_meet_late_writes() {
    auto const meets = [](auto& link, batch const& another, batch const& third) {
      return detail::may_write(link, another.receives) || detail::may_write(link, third.receives);
    };
    return meets(same_, to_node_, to_remote_) || meets(*node_, to_same_, to_remote_) ||
           meets(*remote_, to_same_, to_node_);
  }
  /// Begin the batch that was held back, if it can. @return whether it has begun, or none was held back
  [[nodiscard]] bool start_once_clear() {
    if (!is_held_back_) { return failure_.ok(); }
    if (may_meet_late_writes()) { return false; }
    is_held_back_ = false;
    failure_ = begin_batch();
    if constexpr (requires { enter_wait(); }) {
      if (failure_.ok() && is_waiting_) { enter_wait(); }
    }
    return failure_.ok();
  }
  /// Begin the batch on all links. What was begun when a link refuses must not go on; what somebody else has open there
  /// must.
  [[nodiscard]] status begin_batch() {
    status result;
    index_t begun = 0;
    auto const begin_on = [this, &result, &begun](auto& link, batch const& messages) {
      if (!result.ok()) { return; }
      result = this->told_by(link, link.start(messages.sends, messages.receives));
      begun += result.ok() ? 1 : 0;
    };
    begin_on(same_, to_same_);
    begin_on(*node_, to_node_);
    begin_on(*remote_, to_remote_);
    if (result.ok()) { return result; }
    for_each_link([&begun](auto& link) {
      if (begun-- > 0) { static_cast<void>(link.wait(0)); }
    });
    return result;
  }

  template <class Function>
  void for_each_link(Function function) {
    function(same_);
    function(*node_);
    function(*remote_);
  }
  template <class Function>
  void for_each_link(Function function) const {
    function(same_);
    function(std::as_const(*node_));
    function(std::as_const(*remote_));
  }

  template <class Function>
  void for_each_copier(Function function) {
    for_each_link([&function](auto& link) {
      if constexpr (peer_copier<std::remove_cvref_t<decltype(link)>>) { function(link); }
    });
  }
  template <class Link>
  [[nodiscard]] static std::uint32_t next_region_of([[maybe_unused]] Link const& link) noexcept {
    if constexpr (peer_copier<Link>) {
      return link.next_region();
    } else {
      return 0;
    }
  }

  [[nodiscard]] bool in_node(index_t peer) const noexcept {
    return where_.node_of_rank(peer) == where_.node_of_rank(rank());
  }
  [[nodiscard]] batch& route(index_t peer) noexcept {
    return peer == rank() ? to_same_ : in_node(peer) ? to_node_ : to_remote_;
  }
  template <class Message>
  [[nodiscard]] Message renumbered(Message message) const noexcept {
    if (message.peer != rank() && in_node(message.peer)) { message.peer -= first_of_node_; }
    return message;
  }

  template <class Link>
  [[nodiscard]] static nanoseconds_t receive_time_of([[maybe_unused]] Link const& link) noexcept {
    if constexpr (receive_timer<Link>) {
      return link.receive_time();
    } else {
      return not_measured;
    }
  }

  template <class Link, class Visit>
  static void visit_options([[maybe_unused]] char const* name, [[maybe_unused]] Link const& link,
                            [[maybe_unused]] Visit& visit) {
    if constexpr (detail::names_options<Link>) {
      link.for_each_option([&name, &visit](std::string_view option, std::uint64_t bits) {
        auto const full_name = detail::concat(name, ": ", option);
        visit(std::string_view{full_name}, bits);
      });
    }
  }
  /// What a link says, with the number that its rank has among all; its words count from the node's first.
  template <class Link>
  [[nodiscard]] status told_by(Link const& link, status result) const {
    if (result.ok() || static_cast<void const*>(&link) != node_ || first_of_node_ == 0) { return result; }
    auto const rank = result.rank() == status::no_rank ? status::no_rank : result.rank() + first_of_node_;
    return {result.code(),
            detail::concat("inside the node, ranks counted from ", first_of_node_, ": ", result.message()), rank};
  }
  static void keep_first(status& kept, status next) {
    if (kept.ok()) { kept = std::move(next); }
  }

  // End the batch on every link, so that nothing touches its memory.
  void close(status& result) {
    for_each_link([this, &result](auto& link) { keep_first(result, this->told_by(link, link.wait(0))); });
  }

  topology where_;
  Same same_;
  Node* node_;
  Remote* remote_;
  index_t first_of_node_ = 0;  // number to take off for the node's transport
  batch to_same_;
  batch to_node_;
  batch to_remote_;
  bool is_open_ = false;       // from a start that went well to the end of its wait
  bool is_held_back_ = false;  // the batch has not begun
  bool is_waiting_ = false;    // the host is inside a wait for it
  status failure_;             // to begin a batch that was held back
};

template <class Node, class Remote>
by_link(topology const&, Node&, Remote&) -> by_link<self_copy, Node, Remote>;

BALLAST_END_NAMESPACE

#endif
