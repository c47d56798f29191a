// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TRANSPORT_IN_PROCESS_HPP
#define BALLAST_TRANSPORT_IN_PROCESS_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/transport/segments.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

namespace detail {

/// What the ranks of an `in_process_group` share. One mutex guards everything; each rank sleeps on a condition of its
/// own.
struct in_process_state {
  /// One collective call: every rank's n-th call meets in the same object.
  struct collective {
    char const* kind = nullptr;
    std::vector<std::vector<std::byte>> contributions;
    std::vector<unsigned char> arrived;
    index_t num_arrived = 0;
    index_t num_left = 0;
    bool broken = false;
    status cause;
  };

  /// A send that waits in its receiver's mailbox.
  struct parcel {
    index_t from = 0;
    outgoing_message const* message = nullptr;
    enum { posted, copying, taken, refused } state = posted;
  };

  struct rank_state {
    std::condition_variable wake;
    std::uint64_t calls = 0;
    bool dead = false;
    bool expelled = false;
    std::vector<parcel*> mailbox;
  };

  explicit in_process_state(index_t num_ranks) : ranks(static_cast<std::size_t>(num_ranks)) {}

  [[nodiscard]] rank_state& at(index_t rank) { return ranks[static_cast<std::size_t>(rank)]; }
  void wake_all() {
    for (auto& rank : ranks) { rank.wake.notify_all(); }
  }

  std::mutex mutex;
  std::vector<rank_state> ranks;
  std::map<std::uint64_t, collective> collectives;
  std::uint64_t membership = 1;
};

}  // namespace detail

/// One rank's end of an `in_process_group`: a `message_transport` and a `control_plane` in one.
///
/// A receiver copies straight out of the sender's memory, so a byte is read once and written once. Votes are atomic:
/// the group holds one outcome for each, so none is ever `undecided`.
///
/// @threads one thread at a time.
/// @lifetime the group must outlive it.
class in_process_endpoint {
public:
  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return static_cast<index_t>(state_->ranks.size()); }

  // ---- data ----

  /// Open a batch; see `data_transport`.
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    std::lock_guard const lock{state_->mutex};
    if (open_) { return {errc::busy, "in_process: a batch is already open"}; }
    if (auto refusal = refuse_if_out(); !refusal.ok()) { return refusal; }
    for (auto const& send : sends) {
      if (send.peer < 0 || send.peer >= num_ranks() || send.peer == rank_) {
        return {errc::transport_failed, detail::concat("in_process: rank ", rank_, " cannot send to rank ", send.peer)};
      }
    }
    failure_ = {};
    receives_ = receives;
    received_.assign(receives.size(), 0);
    num_received_ = 0;
    parcels_.assign(sends.size(), {});
    for (std::size_t i = 0; i < sends.size(); ++i) {
      parcels_[i] = {rank_, &sends[i], detail::in_process_state::parcel::posted};
      auto& peer = state_->at(sends[i].peer);
      peer.mailbox.push_back(&parcels_[i]);
      peer.wake.notify_all();
    }
    open_ = true;
    return {};
  }

  /// Make progress; see `data_transport`.
  [[nodiscard]] transfer_state poll() {
    std::unique_lock lock{state_->mutex};
    return progress(lock);
  }

  /// Make progress until the batch ends; see `data_transport`.
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    std::unique_lock lock{state_->mutex};
    auto const deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds{timeout};
    for (;;) {
      auto const where = progress(lock);
      if (where == transfer_state::idle) { return {}; }
      if (where != transfer_state::pending) { break; }
      if (std::chrono::steady_clock::now() >= deadline) {
        failure_ = late();
        break;
      }
      state_->at(rank_).wake.wait_until(lock, deadline);
    }
    close(lock);
    return std::exchange(failure_, {});
  }

  // ---- control ----

  /// Number that grows with every expelled rank.
  [[nodiscard]] std::uint64_t membership() const {
    std::lock_guard const lock{state_->mutex};
    return state_->membership;
  }

  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    auto const mine = std::as_bytes(values);
    return meet("all_reduce", mine, timeout, [&](auto const& contributions) -> status {
      for (auto const& theirs : contributions) {
        if (theirs.size() != mine.size()) {
          return {errc::disagreement, detail::concat("all_reduce: rank ", rank_, " gave ", mine.size(),
                                                     " bytes, another rank ", theirs.size())};
        }
      }
      std::fill(values.begin(), values.end(), std::int64_t{0});
      for (auto const& theirs : contributions) {
        for (std::size_t i = 0; i < values.size(); ++i) {
          std::int64_t value = 0;
          std::memcpy(&value, theirs.data() + i * sizeof value, sizeof value);
          values[i] += value;
        }
      }
      return {};
    });
  }

  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    BALLAST_EXPECTS(all.size() == mine.size() * static_cast<std::size_t>(num_ranks()),
                    "all_gather: output is not R x words");
    return meet("all_gather", std::as_bytes(mine), timeout, [&](auto const& contributions) -> status {
      for (std::size_t r = 0; r < contributions.size(); ++r) {
        auto const& theirs = contributions[r];
        if (theirs.size() != mine.size_bytes()) {
          return {errc::disagreement, detail::concat("all_gather: rank ", rank_, " gave ", mine.size(), " words, rank ",
                                                     r, " gave ", theirs.size() / sizeof(std::uint64_t))};
        }
        if (!theirs.empty()) { std::memcpy(all.data() + r * mine.size(), theirs.data(), theirs.size()); }
      }
      return {};
    });
  }

  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    BALLAST_EXPECTS(root >= 0 && root < num_ranks(), "broadcast: root out of range");
    auto const mine = rank_ == root ? std::span<std::byte const>{bytes} : std::span<std::byte const>{};
    return meet("broadcast", mine, timeout, [&](auto const& contributions) -> status {
      auto const& theirs = contributions[static_cast<std::size_t>(root)];
      if (theirs.size() != bytes.size()) {
        return {errc::disagreement, detail::concat("broadcast: root ", root, " gave ", theirs.size(), " bytes, rank ",
                                                   rank_, " expects ", bytes.size())};
      }
      if (!bytes.empty()) { std::memcpy(bytes.data(), theirs.data(), bytes.size()); }
      return {};
    });
  }

  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    std::byte const mine{yes};
    auto result = meet("vote", {&mine, 1}, timeout, [](auto const& contributions) -> status {
      for (std::size_t r = 0; r < contributions.size(); ++r) {
        if (contributions[r][0] == std::byte{0}) {
          return {errc::transport_failed, detail::concat("rank ", r, " voted no")};
        }
      }
      return {};
    });
    if (result.ok()) { return {decision::commit, {}}; }
    return {decision::drop, std::move(result)};
  }

  /// Never needed here: the group holds one outcome for every vote.
  [[nodiscard]] vote_result recall(nanoseconds_t /*timeout*/) {
    return {decision::drop, {errc::internal, "in_process: no vote is undecided"}};
  }

private:
  friend class in_process_group;
  in_process_endpoint(detail::in_process_state& state, index_t rank) : state_{&state}, rank_{rank} {}

  [[nodiscard]] status refuse_if_out() const {
    auto const& self = state_->at(rank_);
    if (self.expelled) {
      return {errc::stale_membership,
              detail::concat("rank ", rank_, " was expelled; the group is at membership ", state_->membership)};
    }
    return {};
  }

  // Take what has arrived. Copies run without the lock: `copying` keeps the sender's memory alive meanwhile.
  [[nodiscard]] transfer_state progress(std::unique_lock<std::mutex>& lock) {
    using parcel = detail::in_process_state::parcel;
    if (!open_) { return transfer_state::idle; }
    auto& mailbox = state_->at(rank_).mailbox;
    while (failure_.ok() && num_received_ < receives_.size()) {
      auto const found = std::find_if(mailbox.begin(), mailbox.end(), [&](parcel* p) { return wanted(*p) != nullptr; });
      if (found == mailbox.end()) { break; }
      auto& arrival = **found;
      auto const& receive = *wanted(arrival);
      mailbox.erase(found);
      auto const sent = detail::total_size(arrival.message->segments);
      auto const expected = detail::total_size(receive.segments);
      if (sent != expected) {
        arrival.state = parcel::refused;
        failure_ = {errc::transport_failed, detail::concat("in_process: rank ", arrival.from, " sent ", sent,
                                                           " bytes, rank ", rank_, " expects ", expected)};
      } else {
        arrival.state = parcel::copying;
        lock.unlock();
        detail::copy_segments(arrival.message->segments, receive.segments);
        lock.lock();
        arrival.state = parcel::taken;
        received_[static_cast<std::size_t>(&receive - receives_.data())] = 1;
        ++num_received_;
      }
      state_->at(arrival.from).wake.notify_all();
    }
    return where();
  }

  [[nodiscard]] incoming_message const* wanted(detail::in_process_state::parcel const& arrival) const {
    for (std::size_t i = 0; i < receives_.size(); ++i) {
      auto const& receive = receives_[i];
      if (received_[i] == 0 && receive.peer == arrival.from && receive.tag == arrival.message->tag) { return &receive; }
    }
    return nullptr;
  }

  [[nodiscard]] transfer_state where() {
    using parcel = detail::in_process_state::parcel;
    bool all_taken = true;
    for (auto const& sent : parcels_) {
      if (sent.state == parcel::refused && failure_.ok()) {
        failure_ = {errc::transport_failed,
                    detail::concat("in_process: rank ", sent.message->peer, " refused a message of rank ", rank_)};
      }
      all_taken = all_taken && sent.state == parcel::taken;
      if (sent.state == parcel::posted && state_->at(sent.message->peer).dead && failure_.ok()) {
        failure_ = lost(sent.message->peer);
      }
    }
    for (std::size_t i = 0; i < receives_.size(); ++i) {
      if (received_[i] == 0 && state_->at(receives_[i].peer).dead && failure_.ok()) {
        failure_ = lost(receives_[i].peer);
      }
    }
    if (!failure_.ok()) { return transfer_state::failed; }
    return all_taken && num_received_ == receives_.size() ? transfer_state::done : transfer_state::pending;
  }

  // End the batch: take back what nobody took, and let a copy that is under way finish.
  void close(std::unique_lock<std::mutex>& lock) {
    using parcel = detail::in_process_state::parcel;
    for (auto& sent : parcels_) {
      if (sent.state == parcel::posted) { std::erase(state_->at(sent.message->peer).mailbox, &sent); }
    }
    state_->at(rank_).wake.wait(lock, [&] {
      return std::none_of(parcels_.begin(), parcels_.end(), [](parcel const& p) { return p.state == parcel::copying; });
    });
    parcels_.clear();
    receives_ = {};
    open_ = false;
  }

  [[nodiscard]] static status lost(index_t rank) {
    return {errc::peer_lost, detail::concat("in_process: rank ", rank, " is dead")};
  }

  [[nodiscard]] status late() const {
    for (std::size_t i = 0; i < receives_.size(); ++i) {
      if (received_[i] == 0) {
        return {errc::deadline_exceeded, detail::concat("in_process: rank ", rank_,
                                                        " waited in vain for a message of rank ", receives_[i].peer)};
      }
    }
    for (auto const& sent : parcels_) {
      if (sent.state != detail::in_process_state::parcel::taken) {
        return {errc::deadline_exceeded,
                detail::concat("in_process: rank ", sent.message->peer, " did not take a message of rank ", rank_)};
      }
    }
    return {errc::deadline_exceeded, "in_process: the batch did not finish in time"};
  }

  // Every collective call: hand `mine` in, wait for the others, then let `use` read all contributions.
  template <class Use>
  [[nodiscard]] status meet(char const* kind, std::span<std::byte const> mine, nanoseconds_t timeout, Use use) {
    std::unique_lock lock{state_->mutex};
    if (auto refusal = refuse_if_out(); !refusal.ok()) { return refusal; }
    auto const deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds{timeout};
    auto const call = ++state_->at(rank_).calls;
    auto& meeting = state_->collectives[call];
    join(meeting, kind, mine);
    auto const settled = [&] {
      if (!meeting.broken && meeting.num_arrived < num_ranks()) { break_if_dead(meeting); }
      return meeting.broken || meeting.num_arrived == num_ranks();
    };
    if (!state_->at(rank_).wake.wait_until(lock, deadline, settled)) {
      fail(meeting, {errc::deadline_exceeded, detail::concat(kind, ": ", missing(meeting), " did not come in time")});
    }
    auto result = meeting.broken ? meeting.cause : use(std::as_const(meeting.contributions));
    if (++meeting.num_left == num_ranks()) { state_->collectives.erase(call); }
    return result;
  }

  void join(detail::in_process_state::collective& meeting, char const* kind, std::span<std::byte const> mine) {
    if (meeting.kind == nullptr) {
      meeting.kind = kind;
      meeting.contributions.resize(state_->ranks.size());
      meeting.arrived.resize(state_->ranks.size());
    } else if (std::strcmp(meeting.kind, kind) != 0 && !meeting.broken) {
      fail(meeting,
           {errc::disagreement, detail::concat("rank ", rank_, " calls ", kind, " while others call ", meeting.kind)});
    }
    if (meeting.broken) { return; }
    meeting.contributions[static_cast<std::size_t>(rank_)].assign(mine.begin(), mine.end());
    meeting.arrived[static_cast<std::size_t>(rank_)] = 1;
    if (++meeting.num_arrived == num_ranks()) { state_->wake_all(); }
  }

  void fail(detail::in_process_state::collective& meeting, status cause) {
    meeting.broken = true;
    meeting.cause = std::move(cause);
    state_->wake_all();
  }

  void break_if_dead(detail::in_process_state::collective& meeting) {
    for (std::size_t r = 0; r < state_->ranks.size(); ++r) {
      if (meeting.arrived[r] == 0 && state_->ranks[r].dead) {
        fail(meeting, {errc::peer_lost, detail::concat(meeting.kind, ": rank ", r, " is dead")});
        return;
      }
    }
  }

  [[nodiscard]] std::string missing(detail::in_process_state::collective const& meeting) const {
    std::string names;
    for (std::size_t r = 0; r < meeting.arrived.size(); ++r) {
      if (meeting.arrived[r] == 0) { names += detail::concat(names.empty() ? "rank " : ", rank ", r); }
    }
    return names;
  }

  detail::in_process_state* state_;
  index_t rank_;
  bool open_ = false;
  status failure_;
  std::span<incoming_message const> receives_;
  std::vector<unsigned char> received_;
  std::size_t num_received_ = 0;
  std::vector<detail::in_process_state::parcel> parcels_;
};

static_assert(message_transport<in_process_endpoint>);
static_assert(control_plane<in_process_endpoint>);

/// R ranks as threads of one process: the embedded default of demo and tests.
class in_process_group {
public:
  /// @pre `num_ranks >= 1`
  explicit in_process_group(index_t num_ranks) : state_{num_ranks} {
    BALLAST_EXPECTS(num_ranks >= 1, "in_process_group: needs at least one rank");
    endpoints_.reserve(static_cast<std::size_t>(num_ranks));
    for (index_t rank = 0; rank < num_ranks; ++rank) { endpoints_.push_back(in_process_endpoint{state_, rank}); }
  }
  in_process_group(in_process_group const&) = delete;
  in_process_group& operator=(in_process_group const&) = delete;
  ~in_process_group() = default;

  [[nodiscard]] index_t num_ranks() const noexcept { return static_cast<index_t>(endpoints_.size()); }
  /// @pre `0 <= rank < num_ranks()`
  [[nodiscard]] in_process_endpoint& endpoint(index_t rank) {
    BALLAST_EXPECTS(rank >= 0 && rank < num_ranks(), "in_process_group: rank out of range");
    return endpoints_[static_cast<std::size_t>(rank)];
  }

  /// Run `body(endpoint)` once per rank, each on a thread of its own, and wait for all.
  /// @throws the exception of the lowest rank whose body threw
  template <class Body>
  void run(Body body) {
    std::vector<std::exception_ptr> errors(endpoints_.size());
    std::vector<std::thread> threads;
    threads.reserve(endpoints_.size());
    for (std::size_t r = 0; r < endpoints_.size(); ++r) {
      threads.emplace_back([&, r] {
#if defined(__cpp_exceptions)
        try {
          body(endpoints_[r]);
        } catch (...) { errors[r] = std::current_exception(); }
#else
        body(endpoints_[r]);
#endif
      });
    }
    for (auto& thread : threads) { thread.join(); }
    for (auto const& error : errors) {
      if (error) { std::rethrow_exception(error); }
    }
  }

  /// Declare a rank dead: whoever waits for it learns so at once.
  void kill(index_t rank) {
    std::lock_guard const lock{state_.mutex};
    state_.at(rank).dead = true;
    state_.wake_all();
  }
  /// Shut a rank out: its own calls fail from now on, and the membership grows.
  void expel(index_t rank) {
    std::lock_guard const lock{state_.mutex};
    state_.at(rank).dead = true;
    state_.at(rank).expelled = true;
    ++state_.membership;
    state_.wake_all();
  }

private:
  detail::in_process_state state_;
  std::vector<in_process_endpoint> endpoints_;
};

BALLAST_END_NAMESPACE

#endif
