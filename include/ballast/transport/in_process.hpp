// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TRANSPORT_IN_PROCESS_HPP
#define BALLAST_TRANSPORT_IN_PROCESS_HPP

#include <ballast/contract.hpp>
#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/detail/segments.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

namespace detail {

/// What the ranks of an `in_process_group` share. One mutex guards everything; each rank sleeps on a condition of its
/// own.
struct in_process_state {
  /// One collective call: every rank's n-th call since they last regrouped meets in the same object.
  struct collective {
    char const* kind = nullptr;
    std::vector<std::vector<std::byte>> contributions;
    std::vector<status> doubts;           // why a rank voted no, if it knew
    std::vector<unsigned char> expected;  // not the ranks that were expelled before
    std::vector<unsigned char> arrived;
    index_t num_missing = 0;
    index_t num_inside = 0;
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
    std::uint64_t no_in = 0;  // the last call in which it voted no
    status doubt;             // why it did, if it knew
    std::uint64_t died = 0;   // it was the n-th to die; 0 while it lives
    bool expelled = false;
    bool regroups = false;           // waits for the others to do so too
    std::uint64_t left_regroup = 0;  // when it last gave that up, in steps of `regroup_clock`
    status given_up;                 // why it makes no call until then
    std::vector<parcel*> mailbox;

    [[nodiscard]] bool dead() const noexcept { return died != 0; }
  };

  explicit in_process_state(index_t num_ranks) : ranks(size_for(num_ranks)) {}
  /// Before there is room for them.
  [[nodiscard]] static std::size_t size_for(index_t num_ranks) {
    BALLAST_EXPECTS_WITHIN(num_ranks, 1, std::numeric_limits<index_t>::max(), "in_process_group: number of ranks");
    return static_cast<std::size_t>(num_ranks);
  }

  [[nodiscard]] rank_state& at(index_t rank) { return ranks[static_cast<std::size_t>(rank)]; }
  void wake_all() {
    for (auto& rank : ranks) { rank.wake.notify_all(); }
  }
  void bury(index_t rank) {
    if (!at(rank).dead()) { at(rank).died = ++deaths; }
    wake_all();
  }
  void expel(index_t rank) {
    if (at(rank).expelled) { return; }
    at(rank).expelled = true;
    ++membership;
    bury(rank);
    complete_regroup();
  }
  /// Set everybody's numbers, if all that are not shut out have come: the last of them calls this, or whoever shuts out
  /// the last that is missing.
  void complete_regroup() {
    bool any = false;
    for (auto const& rank : ranks) {
      if (!rank.expelled && (rank.dead() || !rank.regroups)) { return; }
      any = any || !rank.expelled;
    }
    if (!any) { return; }
    ++generation;
    collectives.clear();
    for (auto& rank : ranks) {
      rank.regroups = false;
      rank.left_regroup = regroup_clock;
      rank.given_up = {};
      rank.calls = generation << generation_shift;
    }
    wake_all();
  }
  static constexpr int generation_shift = 40;

  std::mutex mutex;
  std::vector<rank_state> ranks;
  // Whoever is inside a call holds on to it: a regroup forgets them all.
  std::map<std::uint64_t, std::shared_ptr<collective>> collectives;
  std::uint64_t membership = 1;
  std::uint64_t deaths = 0;
  std::uint64_t generation = 0;     // times that the ranks have regrouped
  std::uint64_t regroup_clock = 1;  // grows when a rank comes to a regroup, or gives one up
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
      if (auto result = check_peer(send.peer); !result.ok()) { return result; }
    }
    for (auto const& receive : receives) {
      if (auto result = check_peer(receive.peer); !result.ok()) { return result; }
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
    auto const deadline = deadline_after(timeout);
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
    doubt_ = failure_;
    return std::exchange(failure_, {});
  }

  [[nodiscard]] transfer_turns& turns() noexcept { return turns_; }

  // ---- control ----

  /// Number that grows with every expelled rank.
  [[nodiscard]] std::uint64_t membership() const {
    std::lock_guard const lock{state_->mutex};
    return state_->membership;
  }

  /// Whether `expel` has shut that rank out. @param rank in [0, R)
  [[nodiscard]] bool is_expelled(index_t rank) const {
    BALLAST_EXPECTS_BELOW(rank, num_ranks(), "is_expelled: rank");
    std::lock_guard const lock{state_->mutex};
    return state_->at(rank).expelled;
  }
  /// Shut a rank out, as `in_process_group::expel`: any rank may, also several the same one.
  ///
  /// @param rank  another rank. Expelling it again changes nothing.
  /// @return `errc::stale_membership` when this rank was expelled itself, `errc::invalid_option` for this rank and for
  ///         none of the group.
  [[nodiscard]] status expel(index_t rank) {
    std::lock_guard const lock{state_->mutex};
    if (auto refusal = refuse_if_out(); !refusal.ok()) { return refusal; }
    if (rank < 0 || rank >= num_ranks() || rank == rank_) {
      return {errc::invalid_option,
              detail::concat("in_process: rank ", rank_, " of ", num_ranks(), " cannot expel rank ", rank)};
    }
    state_->expel(rank);
    return {};
  }

  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    auto const mine = std::as_bytes(values);
    return meet("all_reduce", mine, timeout, [this, &mine, &values](collective const& meeting) -> status {
      if (auto result = compare_sizes(meeting, mine.size()); !result.ok()) { return result; }
      std::fill(values.begin(), values.end(), std::int64_t{0});
      for (auto const& theirs : meeting.contributions) {
        for (std::size_t i = 0; i < values.size() && !theirs.empty(); ++i) {
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
    return meet("all_gather", std::as_bytes(mine), timeout, [this, &mine, &all](collective const& meeting) -> status {
      if (auto result = compare_sizes(meeting, mine.size_bytes()); !result.ok()) { return result; }
      auto const first_live = static_cast<std::size_t>(std::find(meeting.expected.begin(), meeting.expected.end(), 1) -
                                                       meeting.expected.begin());
      for (std::size_t r = 0; r < meeting.contributions.size() && !mine.empty(); ++r) {
        auto const& theirs = meeting.contributions[meeting.expected[r] != 0 ? r : first_live];
        std::memcpy(all.data() + r * mine.size(), theirs.data(), theirs.size());
      }
      return {};
    });
  }

  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    BALLAST_EXPECTS_BELOW(root, num_ranks(), "broadcast: root");
    auto const mine = rank_ == root ? std::span<std::byte const>{bytes} : std::span<std::byte const>{};
    return meet("broadcast", mine, timeout, [this, &root, &bytes](collective const& meeting) -> status {
      if (meeting.expected[static_cast<std::size_t>(root)] == 0) {
        return {errc::peer_lost, detail::concat("broadcast: root rank ", root, " was expelled"), root};
      }
      auto const& theirs = meeting.contributions[static_cast<std::size_t>(root)];
      if (theirs.size() != bytes.size()) {
        return {errc::disagreement,
                detail::concat("broadcast: root rank ", root, " gave ", theirs.size(), " bytes, rank ", rank_,
                               " expects ", bytes.size()),
                root};
      }
      if (!bytes.empty()) { std::memcpy(bytes.data(), theirs.data(), bytes.size()); }
      return {};
    });
  }

  /// Commit if every live rank says yes in time; see `control_plane`.
  ///
  /// @return with `drop`, the code and the rank of what failed the batch before the vote of a rank that said no;
  ///         `errc::transport_failed` naming that rank itself where no batch of its own had failed.
  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    std::byte const mine{yes};
    auto const doubt = std::exchange(doubt_, {});
    if (!yes) { tell_no(doubt); }
    auto result = meet("vote", {&mine, 1}, timeout, [](collective const& meeting) -> status {
      index_t found = -1;
      for (std::size_t r = 0; r < meeting.contributions.size(); ++r) {
        if (meeting.expected[r] == 0 || meeting.contributions[r][0] != std::byte{0}) { continue; }
        // A rank that blames nobody else is where it began.
        auto const rank = static_cast<index_t>(r);
        if (found < 0 || culprit(meeting.doubts[r], rank) == rank) { found = rank; }
        if (culprit(meeting.doubts[r], rank) == rank) { break; }
      }
      return found < 0 ? status{} : voted_no("", found, meeting.doubts[static_cast<std::size_t>(found)]);
    });
    if (result.ok()) { return {decision::commit, {}}; }
    return {decision::drop, std::move(result)};
  }

  /// The same, of a rank that says no, and why, whatever has become of its last batch.
  [[nodiscard]] vote_result vote_no(status const& why, nanoseconds_t timeout) {
    doubt_ = why;
    return vote(false, timeout);
  }

  /// Never needed here: the group holds one outcome for every vote.
  [[nodiscard]] vote_result recall(nanoseconds_t /*timeout*/) {
    return {decision::drop, {errc::internal, "in_process: no vote is undecided"}};
  }

  /// Meet all live ranks and number calls anew; see `control_plane`. The last to come completes it for all.
  [[nodiscard]] status regroup(nanoseconds_t timeout) {
    std::unique_lock lock{state_->mutex};
    if (auto refusal = refuse_if_out(); !refusal.ok()) { return refusal; }
    auto const deadline = deadline_after(timeout);
    auto& self = state_->at(rank_);
    auto const before = state_->generation;
    auto const since = ++state_->regroup_clock;
    self.regroups = true;
    state_->complete_regroup();
    auto const settled = [this, &before, &self] {
      return state_->generation != before || self.expelled || lost_rank() >= 0;
    };
    bool const in_time = self.wake.wait_until(lock, deadline, settled);
    if (auto refusal = refuse_if_out(); !refusal.ok()) { return refusal; }
    if (state_->generation != before) { return {}; }
    auto result = in_time ? lost("regroup", lost_rank()) : late_to_regroup(since);
    self.regroups = false;
    self.left_regroup = ++state_->regroup_clock;
    return result;
  }
  /// Tell the others that this rank makes no call until it regroups; see `control_plane`.
  void give_up(status const& why) {
    std::lock_guard const lock{state_->mutex};
    auto& given_up = state_->at(rank_).given_up;
    if (!given_up.ok()) { return; }
    given_up = why.ok() ? status{errc::transport_failed, "without a reason"} : why;
    state_->wake_all();
  }
  /// A rank that is dead, or else one that has given up; see `control_plane`.
  [[nodiscard]] status trouble() const {
    std::lock_guard const lock{state_->mutex};
    if (auto refusal = refuse_if_out(); !refusal.ok()) { return refusal; }
    return find_trouble("in_process");
  }

private:
  friend class in_process_group;
  using collective = detail::in_process_state::collective;
  using rank_state = detail::in_process_state::rank_state;

  in_process_endpoint(detail::in_process_state& state, index_t rank) : state_{&state}, rank_{rank} {}

  [[nodiscard]] static std::chrono::steady_clock::time_point deadline_after(nanoseconds_t timeout) {
    // The steady clock is the monotonic one.
    return std::chrono::steady_clock::time_point{std::chrono::nanoseconds{detail::deadline_after(timeout)}};
  }

  [[nodiscard]] status refuse_if_out() const {
    auto const& self = state_->at(rank_);
    if (self.expelled) {
      return {errc::stale_membership,
              detail::concat("rank ", rank_, " was expelled; the group is at membership ", state_->membership), rank_};
    }
    return {};
  }
  [[nodiscard]] status check_peer(index_t peer) const {
    if (peer >= 0 && peer < num_ranks() && peer != rank_) { return {}; }
    return {errc::transport_failed,
            detail::concat("in_process: rank ", rank_, " cannot exchange messages with rank ", peer)};
  }

  // ---- regrouping ----

  // Those that have not been here since this rank came, else those that came at another time. Of several, the one that
  // has been away for longest is to blame.
  [[nodiscard]] status late_to_regroup(std::uint64_t since) const {
    auto const is_away = [](rank_state const& rank) { return !rank.expelled && !rank.regroups; };
    auto missing = missing_ranks(
        [&is_away, &since](rank_state const& rank) { return is_away(rank) && rank.left_regroup < since; });
    if (missing.names.empty()) { missing = missing_ranks(is_away); }
    auto culprit = missing.first;
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      auto const& other = state_->at(rank);
      if (is_away(other) && other.left_regroup < state_->at(culprit).left_regroup) { culprit = rank; }
    }
    return {errc::deadline_exceeded, detail::concat("regroup: ", missing.names, " did not come in time"), culprit};
  }
  // Of the ranks that are dead and not expelled the first that died, or -1: the others may have gone because of it.
  [[nodiscard]] index_t lost_rank() const {
    index_t found = -1;
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      auto const& other = state_->at(rank);
      if (!other.dead() || other.expelled) { continue; }
      if (found < 0 || other.died < state_->at(found).died) { found = rank; }
    }
    return found;
  }

  // Whom to blame for the loss of `rank`.
  [[nodiscard]] index_t first_lost(index_t rank) const { return state_->at(rank).expelled ? rank : lost_rank(); }

  // Take what has arrived. Copies run without the lock: `copying` keeps the sender's memory alive meanwhile.
  [[nodiscard]] transfer_state progress(std::unique_lock<std::mutex>& lock) {
    using parcel = detail::in_process_state::parcel;
    if (!open_) { return transfer_state::idle; }
    auto& mailbox = state_->at(rank_).mailbox;
    while (failure_.ok() && num_received_ < receives_.size()) {
      auto const found =
          std::find_if(mailbox.begin(), mailbox.end(), [this](parcel* p) { return wanted(*p) != nullptr; });
      if (found == mailbox.end()) { break; }
      auto& arrival = **found;
      auto const& receive = *wanted(arrival);
      mailbox.erase(found);
      auto const sent = detail::total_size(arrival.message->segments);
      auto const expected = detail::total_size(receive.segments);
      if (sent != expected) {
        arrival.state = parcel::refused;
        failure_ = {errc::transport_failed,
                    detail::concat("in_process: rank ", arrival.from, " sent ", sent, " bytes, rank ", rank_,
                                   " expects ", expected),
                    arrival.from};
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
                    detail::concat("in_process: rank ", sent.message->peer, " refused a message of rank ", rank_),
                    sent.message->peer};
      }
      all_taken = all_taken && sent.state == parcel::taken;
      if (sent.state == parcel::posted) { fail_if_gone(sent.message->peer); }
    }
    for (std::size_t i = 0; i < receives_.size(); ++i) {
      if (received_[i] == 0) { fail_if_gone(receives_[i].peer); }
    }
    bool const complete = all_taken && num_received_ == receives_.size();
    if (!complete) { fail_if_outvoted(); }
    if (!failure_.ok()) { return transfer_state::failed; }
    return complete ? transfer_state::done : transfer_state::pending;
  }

  // End the batch: take back what nobody took, and let a copy that is under way finish.
  void close(std::unique_lock<std::mutex>& lock) {
    using parcel = detail::in_process_state::parcel;
    for (auto& sent : parcels_) {
      if (sent.state == parcel::posted) { std::erase(state_->at(sent.message->peer).mailbox, &sent); }
    }
    state_->at(rank_).wake.wait(lock, [this] {
      return std::none_of(parcels_.begin(), parcels_.end(), [](parcel const& p) { return p.state == parcel::copying; });
    });
    parcels_.clear();
    receives_ = {};
    open_ = false;
  }

  // Whoever still waits for bytes, and has this vote before it, waits in vain.
  void tell_no(status const& doubt) {
    std::lock_guard const lock{state_->mutex};
    auto& self = state_->at(rank_);
    if (self.given_up.ok()) {
      self.no_in = self.calls + 1;
      self.doubt = doubt;
    }
    state_->wake_all();
  }
  void fail_if_outvoted() {
    auto const next = state_->at(rank_).calls + 1;
    for (index_t rank = 0; rank < num_ranks() && failure_.ok(); ++rank) {
      if (rank == rank_ || state_->at(rank).no_in != next) { continue; }
      failure_ = voted_no("in_process: ", rank, state_->at(rank).doubt);
    }
  }
  // Nothing more comes from a rank that is dead or has given up.
  void fail_if_gone(index_t peer) {
    if (!failure_.ok()) { return; }
    if (state_->at(peer).dead()) {
      failure_ = lost("in_process", first_lost(peer));
    } else if (!state_->at(peer).given_up.ok()) {
      failure_ = find_trouble("in_process");
    }
  }
  // Where it began: a rank that is dead, then one that has given up and blames nobody else, then one that does.
  [[nodiscard]] status find_trouble(char const* who) const {
    if (auto const dead = lost_rank(); dead >= 0) { return lost(who, dead); }
    index_t found = -1;
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      auto const& other = state_->at(rank);
      if (other.expelled || other.given_up.ok()) { continue; }
      if (culprit(other.given_up, rank) == rank) { return gave_up(who, rank); }
      if (found < 0) { found = rank; }
    }
    return found < 0 ? status{} : gave_up(who, found);
  }
  // Whose fault it is that `rank` cannot go on, as far as it knows.
  [[nodiscard]] static index_t culprit(status const& why, index_t rank) noexcept {
    return why.rank() == status::no_rank ? rank : why.rank();
  }
  [[nodiscard]] static status voted_no(std::string_view who, index_t rank, status const& doubt) {
    auto text = detail::concat(who, "rank ", rank, " voted no");
    if (doubt.ok()) { return {errc::transport_failed, std::move(text), rank}; }
    return {doubt.code(), detail::concat(text, ": ", doubt.message()), culprit(doubt, rank)};
  }
  [[nodiscard]] static status lost(char const* who, index_t rank) {
    return {errc::peer_lost, detail::concat(who, ": rank ", rank, " is dead"), rank};
  }
  [[nodiscard]] status gave_up(char const* who, index_t rank) const {
    auto const& why = state_->at(rank).given_up;
    return {why.code(), detail::concat(who, ": rank ", rank, " has given up: ", why.message()), culprit(why, rank)};
  }

  [[nodiscard]] status late() const {
    for (std::size_t i = 0; i < receives_.size(); ++i) {
      if (received_[i] == 0) {
        return {errc::deadline_exceeded,
                detail::concat("in_process: rank ", rank_, " waited in vain for a message of rank ", receives_[i].peer),
                receives_[i].peer};
      }
    }
    for (auto const& sent : parcels_) {
      if (sent.state != detail::in_process_state::parcel::taken) {
        return {errc::deadline_exceeded,
                detail::concat("in_process: rank ", sent.message->peer, " did not take a message of rank ", rank_),
                sent.message->peer};
      }
    }
    return {errc::deadline_exceeded, "in_process: the batch did not finish in time"};
  }

  // Every collective call: hand `mine` in, wait for the others, then let `use` read all contributions.
  template <class Use>
  [[nodiscard]] status meet(char const* kind, std::span<std::byte const> mine, nanoseconds_t timeout, Use use) {
    std::unique_lock lock{state_->mutex};
    if (auto refusal = refuse_if_out(); !refusal.ok()) { return refusal; }
    if (!state_->at(rank_).given_up.ok()) { return gave_up(kind, rank_); }
    auto const deadline = deadline_after(timeout);
    auto const call = ++state_->at(rank_).calls;
    auto const shared = join(call, kind, mine);
    auto& meeting = *shared;
    auto const settled = [this, &meeting] {
      if (!meeting.broken && meeting.num_missing > 0) { break_if_in_vain(meeting); }
      return meeting.broken || meeting.num_missing == 0;
    };
    if (!state_->at(rank_).wake.wait_until(lock, deadline, settled)) {
      auto const missing =
          missing_ranks([this, &meeting](rank_state const& rank) { return is_missing(meeting, rank); });
      fail(meeting, {errc::deadline_exceeded, detail::concat(kind, ": ", missing.names, " did not come in time"),
                     missing.first});
    }
    auto result = meeting.broken ? meeting.cause : use(std::as_const(meeting));
    if (--meeting.num_inside == 0 && meeting.num_missing == 0) { state_->collectives.erase(call); }
    return state_->at(rank_).expelled ? refuse_if_out() : result;
  }

  [[nodiscard]] std::shared_ptr<collective> join(std::uint64_t call, char const* kind,
                                                 std::span<std::byte const> mine) {
    auto& meeting = state_->collectives[call];
    if (meeting == nullptr) { meeting = open_meeting(kind); }
    if (std::strcmp(meeting->kind, kind) != 0 && !meeting->broken) {
      fail(*meeting,
           {errc::disagreement, detail::concat("rank ", rank_, " calls ", kind, " while others call ", meeting->kind)});
    }
    ++meeting->num_inside;
    meeting->arrived[static_cast<std::size_t>(rank_)] = 1;
    meeting->contributions[static_cast<std::size_t>(rank_)].assign(mine.begin(), mine.end());
    if (auto const& self = state_->at(rank_); self.no_in == call) {
      meeting->doubts[static_cast<std::size_t>(rank_)] = self.doubt;
    }
    if (--meeting->num_missing == 0) { state_->wake_all(); }
    return meeting;
  }
  [[nodiscard]] std::shared_ptr<collective> open_meeting(char const* kind) const {
    auto meeting = std::make_shared<collective>();
    meeting->kind = kind;
    meeting->contributions.resize(state_->ranks.size());
    meeting->doubts.resize(state_->ranks.size());
    meeting->arrived.resize(state_->ranks.size());
    for (auto const& rank : state_->ranks) {
      meeting->expected.push_back(rank.expelled ? 0 : 1);
      meeting->num_missing += rank.expelled ? 0 : 1;
    }
    return meeting;
  }

  void fail(collective& meeting, status cause) {
    meeting.broken = true;
    meeting.cause = std::move(cause);
    state_->wake_all();
  }

  [[nodiscard]] bool is_missing(collective const& meeting, rank_state const& rank) const {
    auto const index = static_cast<std::size_t>(&rank - state_->ranks.data());
    return meeting.expected[index] != 0 && meeting.arrived[index] == 0;
  }
  // A rank that is missing and will not come.
  void break_if_in_vain(collective& meeting) {
    for (auto const& rank : state_->ranks) {
      if (!is_missing(meeting, rank)) { continue; }
      auto const index = static_cast<index_t>(&rank - state_->ranks.data());
      if (rank.dead()) { return fail(meeting, lost(meeting.kind, first_lost(index))); }
      if (!rank.given_up.ok()) { return fail(meeting, find_trouble(meeting.kind)); }
    }
  }
  [[nodiscard]] status compare_sizes(collective const& meeting, std::size_t bytes) const {
    for (std::size_t r = 0; r < meeting.contributions.size(); ++r) {
      auto const theirs = meeting.contributions[r].size();
      if (meeting.expected[r] != 0 && theirs != bytes) {
        return {errc::disagreement,
                detail::concat(meeting.kind, ": rank ", rank_, " gave ", bytes, " bytes, rank ", r, " gave ", theirs),
                static_cast<index_t>(r)};
      }
    }
    return {};
  }

  struct named_ranks {
    std::string names;
    index_t first = status::no_rank;
  };
  template <class Predicate>
  [[nodiscard]] named_ranks missing_ranks(Predicate is_missing) const {
    named_ranks missing;
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      if (!is_missing(state_->at(rank))) { continue; }
      missing.names += detail::concat(missing.names.empty() ? "rank " : ", rank ", rank);
      if (missing.first == status::no_rank) { missing.first = rank; }
    }
    return missing;
  }

  detail::in_process_state* state_;
  index_t rank_;
  bool open_ = false;
  status failure_;
  status doubt_;  // how the last batch failed, until the next vote
  std::span<incoming_message const> receives_;
  std::vector<unsigned char> received_;
  std::size_t num_received_ = 0;
  std::vector<detail::in_process_state::parcel> parcels_;
  transfer_turns turns_;
};

static_assert(message_transport<in_process_endpoint>);
static_assert(regrouping_plane<in_process_endpoint> && explaining_plane<in_process_endpoint> &&
              expelling_plane<in_process_endpoint>);

/// R ranks as threads of one process: the embedded default of demo and tests.
class in_process_group {
public:
  /// @pre `num_ranks >= 1`
  explicit in_process_group(index_t num_ranks) : state_{num_ranks} {
    endpoints_.reserve(static_cast<std::size_t>(num_ranks));
    for (index_t rank = 0; rank < num_ranks; ++rank) { endpoints_.push_back(in_process_endpoint{state_, rank}); }
  }
  in_process_group(in_process_group const&) = delete;
  in_process_group& operator=(in_process_group const&) = delete;
  ~in_process_group() = default;

  [[nodiscard]] index_t num_ranks() const noexcept { return static_cast<index_t>(endpoints_.size()); }
  /// @pre `0 <= rank < num_ranks()`
  [[nodiscard]] in_process_endpoint& endpoint(index_t rank) {
    BALLAST_EXPECTS_BELOW(rank, num_ranks(), "in_process_group: rank");
    return endpoints_[static_cast<std::size_t>(rank)];
  }

  /// Run `body(endpoint)` once per rank, each on a thread of its own, and wait for all. A rank whose body throws is
  /// dead from then on, so that those who wait for it go on at once.
  /// @throws the first exception that left a body
  template <class Body>
  void run(Body body) {
    [[maybe_unused]] std::exception_ptr first_error;
    std::vector<std::thread> threads;
    threads.reserve(endpoints_.size());
    for (std::size_t r = 0; r < endpoints_.size(); ++r) {
      threads.emplace_back([this, &body, &first_error, r] {
#if defined(__cpp_exceptions)
        try {
          body(endpoints_[r]);
        } catch (...) {
          std::lock_guard const lock{state_.mutex};
          if (first_error == nullptr) { first_error = std::current_exception(); }
          state_.bury(static_cast<index_t>(r));
        }
#else
        static_cast<void>(first_error);  // captured either way: a closure has one layout, whatever the flags
        body(endpoints_[r]);
#endif
      });
    }
    for (auto& thread : threads) { thread.join(); }
#if defined(__cpp_exceptions)
    if (first_error != nullptr) { std::rethrow_exception(first_error); }
#endif
  }

  /// Declare a rank dead: whoever waits for it learns so at once.
  void kill(index_t rank) {
    std::lock_guard const lock{state_.mutex};
    state_.bury(rank);
  }
  /// Shut a rank out: its own calls fail from now on, the others' go on without it, and the membership grows. A call
  /// that waits for it fails.
  void expel(index_t rank) {
    std::lock_guard const lock{state_.mutex};
    state_.expel(rank);
  }

private:
  detail::in_process_state state_;
  std::vector<in_process_endpoint> endpoints_;
};

BALLAST_END_NAMESPACE

#endif
