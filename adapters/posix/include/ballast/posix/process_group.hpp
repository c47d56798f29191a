// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_PROCESS_GROUP_HPP
#define BALLAST_POSIX_PROCESS_GROUP_HPP

#include <ballast/contract.hpp>
#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/process_watch.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/detail/job.hpp>
#include <ballast/posix/detail/regroup_word.hpp>
#include <ballast/posix/detail/rendezvous.hpp>
#include <ballast/posix/detail/segment.hpp>
#include <ballast/posix/detail/segment_layout.hpp>
#include <ballast/posix/detail/suspicion.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace posix {

/// Options of `process_group::join`.
struct process_group_options {
  /// Number of the job, the same on all of its ranks. Ranks of different jobs do not meet, even under one name, and do
  /// not disturb each other. 0: what BALLAST_JOB says, any text; else what a launcher has put into the environment
  /// (PMIx, Slurm, torchrun, Ray); else ranks belong together that are children of one process, or children of rank 0
  /// and rank 0 itself. Ranks started by hand from several shells, or by wrappers of their own, have to say.
  std::uint64_t job = 0;
};

/// The ranks of one host, each a process, and their control plane, in shared memory.
///
/// The processes of a job find each other by a name. From then on no file is left: a crash leaves nothing to clean up.
/// What a crash while they meet leaves is taken away by the next `join` of this user, under whatever name. Every wait
/// ends at its deadline or within some milliseconds of the death of a rank that it waits for, or of its `give_up`.
///
/// Calls are numbered since the last `regroup`, on every rank whether they succeed or not, so that the next ones match
/// again where all ranks make the same calls. Where they do not, `regroup` sets all numbers anew: one word in shared
/// memory holds the outcome of each attempt, so that those that came to it learn the same. On a rank that has missed it
/// further calls fail at once, and so do the others' that need that rank, until a `regroup` succeeds.
///
/// Votes are atomic: one word in shared memory holds the outcome of each, and the first rank that can decide writes it
/// by compare-and-swap. A rank that was stopped in a vote and resumes reads what the others read, so no vote is ever
/// `undecided` (unless the rank was expelled meanwhile, or resumes after thousands of further votes).
///
/// `expel` shrinks the group: calls that wait for that rank fail, later ones do without it, and its own all fail. It
/// adds nothing to `all_reduce`; in `all_gather` the words of the lowest live rank stand in for its own, so that
/// comparisons hold.
///
/// A child that a member forks is no member: its calls fail with `errc::stale_membership`, and nothing that it does
/// with its copy of this object, its end included, is seen by the group.
///
/// @threads one thread at a time per object.
class process_group {
public:
  /// Of no group yet: collective calls, `expel` and `trouble` fail until `join`.
  process_group() = default;
  process_group(process_group const&) = delete;
  process_group& operator=(process_group const&) = delete;
  ~process_group() { leave(); }

  /// Meet the other ranks; called by all of them together. A name may be used again as soon as everyone has joined.
  ///
  /// @param name       the same on every rank, without '/'.
  /// @param rank       this rank, in [0, num_ranks).
  /// @param num_ranks  R, in [1, 64].
  /// @param timeout    nanoseconds until everyone must have joined.
  /// @return `errc::invalid_option` for impossible arguments, `errc::deadline_exceeded` naming who is missing and
  ///         whether a group of this name exists for another job, `errc::peer_lost` when a rank dies or gives up
  ///         meanwhile, `errc::busy` when another living group holds the name, another process is this rank, or this
  ///         object has joined already, `errc::disagreement` when rank 0 expects another R, `errc::transport_failed`
  ///         when rank 0 lives in another process namespace or the host gives no shared memory. The object has joined
  ///         nothing then.
  /// @complexity allocates shared memory of about 70 KiB a rank.
  /// @throws std::bad_alloc
  [[nodiscard]] status join(std::string_view name, index_t rank, index_t num_ranks, nanoseconds_t timeout,
                            process_group_options const& options = {}) {
    if (joined()) { return {errc::busy, "process_group: already joined"}; }
    if (auto result = validate(name, rank, num_ranks); !result.ok()) { return result; }
    auto const deadline = ballast::detail::deadline_after(timeout);
    detail::rendezvous::clear_away_dead();
    detail::rendezvous const place{name, detail::this_job(options.job)};
    detail::segment found;
    auto result =
        rank == 0 ? place.publish(num_ranks, deadline, found) : place.attach(rank, num_ranks, deadline, found);
    if (!result.ok()) { return result; }
    enter(std::move(found), rank, num_ranks);
    result = meet(place, deadline);
    if (rank == 0) { place.unpublish(segment_); }
    if (!result.ok()) { leave(); }
    return result;
  }

  /// Tell the others that this rank goes. They get `errc::peer_lost` where they would wait for it. Waits for nobody.
  /// Afterwards this object may join another group. Idempotent.
  void leave() noexcept {
    if (is_member()) {
      self().left.store(1);
      ring_all();
    }
    segment_ = {};
    watches_.clear();
    watched_ = 0;
    num_ranks_ = 0;
  }

  /// `join` has succeeded, and `leave` was not called since.
  [[nodiscard]] bool joined() const noexcept { return num_ranks_ != 0; }
  /// Joined, by this process and not by the one that it is a fork of.
  [[nodiscard]] bool is_member() const noexcept { return joined() && ::getpid() == owner_; }
  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  /// R, of dead and expelled ranks too; 0 while this object has not joined.
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }

  // ---- membership ----

  /// 1 plus the number of expelled ranks; 0 before `join`.
  [[nodiscard]] std::uint64_t membership() const {
    if (!joined()) { return 0; }
    return 1 + static_cast<std::uint64_t>(std::popcount(segment_.header().expelled.load()));
  }
  /// Neither expelled, nor dead, nor gone.
  ///
  /// @param rank  in [0, R).
  /// @pre joined
  /// @complexity at most one system call, no wait.
  [[nodiscard]] bool is_live(index_t rank) { return !is_expelled(rank) && !is_lost(rank); }
  /// Whether `expel` has shut that rank out, this one or another. @pre joined
  ///
  /// @param rank  in [0, R).
  [[nodiscard]] bool is_expelled(index_t rank) const {
    expect_member(rank);
    return (segment_.header().expelled.load() >> rank & 1) != 0;
  }

  /// Shut a rank out for good. Any live rank may, without the others; of two that expel each other one succeeds. Waits
  /// for nobody: the others learn of it in their calls.
  ///
  /// @param rank  another rank. Expelling it again changes nothing.
  /// @return `errc::stale_membership` when this rank was expelled itself, `errc::invalid_option` for this rank and for
  ///         none of the group.
  /// @complexity O(R)
  [[nodiscard]] status expel(index_t rank) {
    if (auto refusal = refuse_outsiders(); !refusal.ok()) { return refusal; }
    if (rank < 0 || rank >= num_ranks_ || rank == rank_) {
      return {errc::invalid_option,
              ballast::detail::concat("process_group: rank ", rank_, " of ", num_ranks_, " cannot expel rank ", rank)};
    }
    auto& expelled = segment_.header().expelled;
    auto seen = expelled.load();
    do {
      if ((seen >> rank_ & 1) != 0) { return stale(); }
    } while (!expelled.compare_exchange_weak(seen, seen | std::uint64_t{1} << rank));
    ring_all();
    return {};
  }

  // ---- control ----

  /// Replace `values` by their sums over the live ranks, modulo 2^64; see `control_plane`. A collective, like the calls
  /// below: every live rank makes them, in the same order.
  ///
  /// @param values   [n] the same n on every rank; unchanged on failure.
  /// @param timeout  nanoseconds to wait for the others.
  /// @return `errc::deadline_exceeded` naming who is missing, or this rank where it is too late to read what the others
  ///         have said; `errc::peer_lost` naming a rank that is dead, gone or expelled; `errc::disagreement` naming one
  ///         that makes another call, or this one with another size; `errc::stale_membership` when this rank was
  ///         expelled, has not joined, or is a fork; where a rank has given up, what it says of why
  ///         (`errc::transport_failed` if nothing).
  /// @complexity O(R n), in pieces of 1024 words; every rank waits once for all others in each.
  /// @throws std::bad_alloc
  /// @determinism sums of integers: the same bits on every rank.
  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    std::vector<std::uint64_t> mine(values.size());
    std::transform(values.begin(), values.end(), mine.begin(), [](auto v) { return static_cast<std::uint64_t>(v); });
    std::vector<std::uint64_t> sums(values.size());
    auto const add = [&sums](index_t, std::size_t first, std::span<std::uint64_t const> words) {
      for (std::size_t i = 0; i < words.size(); ++i) { sums[first + i] += words[i]; }
    };
    auto result = exchange({"all_reduce", call_kind::reduce, values.size()}, mine, timeout, add, false);
    if (result.ok()) {
      std::transform(sums.begin(), sums.end(), values.begin(), [](auto v) { return static_cast<std::int64_t>(v); });
    }
    return result;
  }

  /// Write every rank's words to `all`; see `control_plane`. Complexity as of `all_reduce`.
  ///
  /// @param mine     [n] the same n on every rank.
  /// @param all      out: [R, n]; on failure, part of it may be written.
  /// @param timeout  nanoseconds to wait for the others.
  /// @return as `all_reduce`; `errc::invalid_option` for an `all` of another size, told here only: this rank has not
  ///         taken part then, and `regroup` is due.
  /// @throws std::bad_alloc
  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    if (all.size() != mine.size() * static_cast<std::size_t>(num_ranks_)) {
      return {errc::invalid_option, ballast::detail::concat("all_gather: ", num_ranks_, " ranks with ", mine.size(),
                                                            " words do not fill ", all.size(), " words")};
    }
    auto const write = [&all, &mine](index_t rank, std::size_t first, std::span<std::uint64_t const> words) {
      std::copy(words.begin(), words.end(),
                all.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(rank) * mine.size() + first));
    };
    return exchange({"all_gather", call_kind::gather, mine.size()}, mine, timeout, write, true);
  }

  /// Copy the root's bytes to every rank; see `control_plane`. Complexity as of `all_reduce`, but only the root's words
  /// are copied.
  ///
  /// @param bytes    in/out: the same size on every rank; unchanged on failure.
  /// @param root     a live rank, the same on every rank.
  /// @param timeout  nanoseconds. All ranks wait for each other, the root too.
  /// @return as `all_reduce`; `errc::invalid_option` for a root that there is not, `errc::peer_lost` for one that was
  ///         expelled: this rank has not taken part then.
  /// @throws std::bad_alloc
  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    if (auto refusal = refuse_outsiders(); !refusal.ok()) { return refusal; }
    if (root < 0 || root >= num_ranks_) {
      return {errc::invalid_option, ballast::detail::concat("broadcast: root rank ", root, " of ", num_ranks_)};
    }
    if (is_expelled(root)) {
      return {errc::peer_lost, ballast::detail::concat("broadcast: root rank ", root, " was expelled"), root};
    }
    constexpr auto word = sizeof(std::uint64_t);
    std::vector<std::uint64_t> words((bytes.size() + word - 1) / word);
    std::vector<std::uint64_t> mine;
    if (rank_ == root) {
      if (!bytes.empty()) { std::memcpy(words.data(), bytes.data(), bytes.size()); }
      mine = words;
    }
    auto const take = [&root, &words](index_t rank, std::size_t first, std::span<std::uint64_t const> part) {
      if (rank == root) { std::copy(part.begin(), part.end(), words.begin() + static_cast<std::ptrdiff_t>(first)); }
    };
    // The root and the size in bytes are part of what has to be equal.
    auto const kind = call_kind::broadcast + (static_cast<std::uint64_t>(root) << 8) + (bytes.size() % word << 16);
    auto result = exchange({"broadcast", kind, words.size()}, mine, timeout, take, false);
    if (result.ok() && !bytes.empty()) { std::memcpy(bytes.data(), words.data(), bytes.size()); }
    return result;
  }

  /// Commit if every live rank says yes in time; see `control_plane`, and the class for how votes are decided.
  ///
  /// It ends as soon as there is an outcome: at the first no, without waiting for the other ranks.
  ///
  /// @param timeout  nanoseconds. The first rank that is out of time drops the vote for all.
  /// @return with `drop`, the code and the rank that the first no blames, or a rank that has given up;
  ///         `errc::transport_failed` naming that rank itself where it blames nobody; `errc::peer_lost` or
  ///         `errc::deadline_exceeded` naming a rank that did not vote. With `undecided`, `errc::stale_membership` when
  ///         this rank may not vote, `errc::deadline_exceeded` when it comes thousands of votes too late to read the
  ///         outcome.
  /// @complexity O(R) words for each look
  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    auto const deadline = ballast::detail::deadline_after(timeout);
    if (auto refusal = refuse_outsiders(); !refusal.ok()) { return {decision::undecided, std::move(refusal)}; }
    // Without this rank's ballot nobody can commit.
    if (auto refusal = refuse_quitter("vote"); !refusal.ok()) { return {decision::drop, std::move(refusal)}; }
    auto const expelled_before = segment_.header().expelled.load();
    last_vote_ = ++votes_;
    auto const blamed = yes ? suspicion{} : std::exchange(suspicion_, {});
    self().ballot.store(votes_ << ballot_shift | detail::pack(blamed) << 4 | (yes ? 1u : 0u));
    ring_all();
    bool const in_time = await([this, &expelled_before] { return try_to_decide(expelled_before); }, deadline);
    if (!in_time) {
      auto const is_missing = [this, &expelled_before](index_t rank) {
        return (expelled_before >> rank & 1) == 0 && !has_voted(rank);
      };
      auto const culprit = late_rank(is_missing);
      if (culprit >= 0) {
        decide({decision::drop, {cause::late, culprit}, {}});
      } else {
        static_cast<void>(try_to_decide(expelled_before));  // the last ballot came just now
      }
    }
    ring_all();
    return read_decision(last_vote_);
  }

  /// The same, of a rank that says no because of `why`. Where `suspect` has told more of the rank that `why` names,
  /// that is told.
  [[nodiscard]] vote_result vote_no(status const& why, nanoseconds_t timeout) {
    if (suspicion_.why == cause::none || suspicion_.culprit != why.rank()) { suspect_of(why); }
    return vote(false, timeout);
  }

  /// Tell the last vote's outcome again. Waits for nobody: it is in shared memory until 4096 votes later.
  ///
  /// @return as `vote`; `undecided` also where this rank has never voted.
  [[nodiscard]] vote_result recall(nanoseconds_t /*timeout*/) {
    if (auto refusal = refuse_outsiders(); !refusal.ok()) { return {decision::undecided, std::move(refusal)}; }
    return read_decision(last_vote_);
  }

  /// Meet all live ranks and number calls and votes anew; see `control_plane`. It succeeds as soon as all are inside at
  /// one time, on each that is not stopped meanwhile until after its deadline.
  ///
  /// @param timeout  nanoseconds.
  /// @return `errc::deadline_exceeded` naming who is missing, `errc::peer_lost` naming a rank that is dead and not
  ///         expelled, at once; `errc::stale_membership` when this rank may not take part.
  [[nodiscard]] status regroup(nanoseconds_t timeout) {
    auto const deadline = ballast::detail::deadline_after(timeout);
    if (auto refusal = refuse_outsiders(); !refusal.ok()) { return refusal; }
    auto attempt = come_to_attempt();
    if (attempt > detail::regroup_word::max_attempt) {
      return {errc::internal, ballast::detail::concat("regroup: ", attempt, " attempts are too many")};
    }
    auto const first = attempt;
    static_cast<void>(
        await([this, &attempt, &deadline] { return settle(attempt, deadline) || is_expelled(rank_); }, deadline));
    return end_attempt(first, attempt);
  }

  /// Tell the others that this rank makes no further call until it regroups; see `control_plane`. Their calls that need
  /// it fail within milliseconds, and name the rank that `why` names, if it is another one. Waits for nobody.
  void give_up(status const& why) {
    if (!is_member() || has_given_up(rank_)) { return; }
    self().given_up.store(detail::pack_in(generation_, detail::suspicion_of(why, rank_)));
    ring_all();
  }

  /// A rank that is dead or has given up; see `control_plane`.
  ///
  /// @return `errc::peer_lost`; of a rank that has given up, the code of why (`errc::transport_failed` if it said
  ///         nothing); `errc::stale_membership` when this rank was expelled or is none.
  /// @complexity O(R) loads, and every few milliseconds O(R) system calls.
  [[nodiscard]] status trouble() {
    if (auto refusal = refuse_outsiders(); !refusal.ok()) { return refusal; }
    auto const quitter = first_quitter();
    auto const now = ballast::detail::now();
    bool const look = quitter >= 0 || now >= next_look_;
    if (look) { next_look_ = now + nap; }
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      // One that has left in order is missed when it is needed.
      if (is_expelled(rank) || segment_.member_of(rank).left.load() != 0) { continue; }
      if (look ? is_lost(rank) : is_known_lost(rank)) { return lost("process_group", rank); }
    }
    return quitter >= 0 ? gave_up("process_group", quitter) : status{};
  }

  // ---- for transports of this group; none of these waits but `await` ----

  /// What the ranks share. @pre joined
  [[nodiscard]] detail::segment const& shared() const noexcept { return segment_; }
  /// A failure when this process may not act for a rank: it has not joined, is a fork of a member, or was expelled.
  [[nodiscard]] status refuse_outsiders() const {
    if (!joined()) { return {errc::stale_membership, "process_group: this process has not joined a group"}; }
    if (auto const pid = ::getpid(); pid != owner_) {
      return {errc::stale_membership, ballast::detail::concat("process_group: process ", pid, " is a fork of rank ",
                                                              rank_, ", process ", owner_, ", and no member itself")};
    }
    return is_expelled(rank_) ? stale() : status{};
  }
  /// The failure of this rank's calls once it was expelled.
  [[nodiscard]] status stale() const {
    return {errc::stale_membership,
            ballast::detail::concat("rank ", rank_, " was expelled; the group is at membership ", membership()), rank_};
  }
  /// Dead, or gone of its own will. @complexity one system call while it lives
  [[nodiscard]] bool is_lost(index_t rank) {
    expect_member(rank);
    return segment_.member_of(rank).left.load() != 0 || watches_[static_cast<std::size_t>(rank)].dead();
  }
  /// `errc::peer_lost`, with the way in which that rank was lost. @param who begins the message
  [[nodiscard]] status lost(std::string_view who, index_t rank) const {
    auto const& peer = segment_.member_of(rank);
    auto const* const how = is_expelled(rank)       ? "was expelled"
                            : peer.left.load() != 0 ? "has left the group"
                                                    : "is dead";
    return {errc::peer_lost, ballast::detail::concat(who, ": rank ", rank, " (process ", peer.process.pid, ") ", how),
            rank};
  }
  /// It makes no further call before the group regroups: it has said so, or regroups already.
  [[nodiscard]] bool has_given_up(index_t rank) const {
    expect_member(rank);
    auto const& peer = segment_.member_of(rank);
    return detail::is_of(peer.given_up.load(), generation_) || peer.arrived.load() > generation_;
  }
  /// The failure of who needs a rank that has given up, with what it says of why. @param who begins the message
  [[nodiscard]] status gave_up(std::string_view who, index_t rank) const {
    auto const* const how = rank == rank_ ? " must regroup first"
                            : detail::is_of(segment_.member_of(rank).given_up.load(), generation_) ? " has given up"
                                                                                                   : " regroups";
    return detail::blame(ballast::detail::concat(who, ": "), rank, how, reason_of_giving_up(rank));
  }
  /// Of the ranks that have given up the one that knows most about why, or -1.
  [[nodiscard]] index_t first_quitter() const {
    index_t found = -1;
    int known = -1;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if (is_expelled(rank) || !has_given_up(rank)) { continue; }
      bool const has_said_so = detail::is_of(segment_.member_of(rank).given_up.load(), generation_);
      int const knows = (has_said_so ? 1 : 0) + (reason_of_giving_up(rank).why != cause::none ? 1 : 0);
      if (knows > known) {
        found = rank;
        known = knows;
      }
    }
    return found;
  }
  /// Whom to blame if this rank's next vote is a no: the others' reason then names that rank too.
  /// @param at_fault  it sent what it should not have; otherwise it is dead or late
  void suspect(index_t rank, bool at_fault = false) {
    suspicion_ = {at_fault ? cause::wrong : is_live(rank) ? cause::late : cause::lost, rank};
  }
  /// The same, of a failure that names the rank.
  void suspect_of(status const& why) { suspicion_ = detail::suspicion_of(why, rank_); }
  /// Wake one rank, or all of them.
  void ring(index_t rank) const noexcept { segment_.member_of(rank).bell.ring(); }
  void ring_all() const noexcept {
    for (index_t rank = 0; rank < num_ranks_; ++rank) { ring(rank); }
  }
  /// Let the others see that this rank is at work; see `most_silent`.
  void give_sign() const noexcept { self().last_sign.store(ballast::detail::now()); }
  /// The other live rank that has given no sign for longest, or -1. A rank in one of this group's waits gives one every
  /// few milliseconds, so this tells a rank that hangs elsewhere from those that wait for it.
  template <class Predicate>
  [[nodiscard]] index_t most_silent(Predicate considered) const {
    index_t found = -1;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if (rank == rank_ || is_expelled(rank) || !considered(rank)) { continue; }
      if (found < 0 || last_sign(rank) < last_sign(found)) { found = rank; }
    }
    return found;
  }
  /// Whom to blame for what has not come in time: the most silent of those considered, else one that others have
  /// expelled meanwhile for the same reason; -1 where nobody is missing any more.
  template <class Predicate>
  [[nodiscard]] index_t late_rank(Predicate considered) const {
    auto const silent = most_silent(considered);
    if (silent >= 0) { return silent; }
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if (rank != rank_ && considered(rank)) { return rank; }
    }
    return -1;
  }
  /// Nanoseconds since that rank gave a sign.
  [[nodiscard]] nanoseconds_t silence_of(index_t rank) const { return ballast::detail::now() - last_sign(rank); }
  /// Tell the others that this rank's batch has failed, and by whose fault if `suspect` was called: theirs, should they
  /// still be at work on it, is in vain.
  void give_up_batch() const noexcept {
    self().distress.store(detail::pack_in(generation_, suspicion_));
    self().distress_at.store(ballast::detail::now());
    ring_all();
  }
  /// A failure when another rank has given up a batch after `since`, or said no in the vote that comes next here.
  /// Should this rank's next vote be a no, it names the rank where the trouble began.
  [[nodiscard]] status doomed(nanoseconds_t since) {
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if (rank == rank_ || is_expelled(rank)) { continue; }
      auto const& other = segment_.member_of(rank);
      auto const ballot = ballot_of(rank);
      bool const by_ballot = ballot >> ballot_shift == votes_ + 1 && (ballot & 1) == 0;
      auto const distress_at = other.distress_at.load();
      auto const distress = other.distress.load();  // told before its time
      bool const by_distress = distress_at > since && detail::is_of(distress, generation_);
      if (!by_ballot && !by_distress) { continue; }
      auto const behind_it = detail::unpack(by_ballot ? ballot >> 4 : distress);
      if (behind_it.why != cause::none && behind_it.culprit == rank_) { continue; }  // this rank knows better
      suspicion_ = known_cause(behind_it, {cause::failed, rank});
      return detail::blame("", rank, by_ballot ? " voted no" : " gave up", behind_it);
    }
    return {};
  }
  /// The process that all ranks descend from in one step, or are: their parent, or rank 0; 0 when there is none.
  [[nodiscard]] std::int64_t common_ancestor() const {
    auto const& first = segment_.member_of(0);
    for (auto const& ancestor : {first.parent, first.process}) {
      bool common = ancestor.pid > 1;  // everybody descends from process 1
      for (index_t rank = 0; rank < num_ranks_ && common; ++rank) {
        auto const& other = segment_.member_of(rank);
        common = other.parent == ancestor || other.process == ancestor;
      }
      if (common) { return ancestor.pid; }
    }
    return 0;
  }
  /// Sleep until `done()` holds; it is asked again at every ring and every few milliseconds.
  ///
  /// @param deadline  on the monotonic clock of the host, nanoseconds.
  /// @return false when late; `done` is asked once even then.
  template <class Done>
  [[nodiscard]] bool await(Done done, nanoseconds_t deadline) {
    for (;;) {
      auto const heard = self().bell.listen();
      give_sign();
      if (done()) { return true; }
      auto const left = deadline - ballast::detail::now();
      if (left <= 0) { return false; }
      self().bell.sleep(heard, std::min(left, nap));
    }
  }

private:
  using cause = detail::cause;
  using suspicion = detail::suspicion;

  void expect_member(index_t rank) const {
    BALLAST_EXPECTS(joined(), "process_group: it has not joined a group");
    BALLAST_EXPECTS_BELOW(rank, num_ranks_, "process_group: rank");
  }

  // Nobody rings when a process dies, so sleepers look around this often.
  static constexpr nanoseconds_t nap = 3'000'000;

  struct call_kind {
    static constexpr std::uint64_t reduce = 1;
    static constexpr std::uint64_t gather = 2;
    static constexpr std::uint64_t broadcast = 3;
  };
  struct call {
    char const* name;
    std::uint64_t kind;
    std::size_t total_words;
  };

  [[nodiscard]] nanoseconds_t last_sign(index_t rank) const { return segment_.member_of(rank).last_sign.load(); }
  [[nodiscard]] detail::member& self() const noexcept { return segment_.member_of(rank_); }

  // ---- meeting ----

  [[nodiscard]] static status validate(std::string_view name, index_t rank, index_t num_ranks) {
    using ballast::detail::concat;
    if (num_ranks < 1 || num_ranks > detail::max_ranks) {
      return {errc::invalid_option,
              concat("process_group: ", num_ranks, " ranks, must be in [1, ", detail::max_ranks, "]")};
    }
    if (rank < 0 || rank >= num_ranks) {
      return {errc::invalid_option, concat("process_group: rank ", rank, ", must be in [0, ", num_ranks, ")")};
    }
    if (name.empty() || name.size() > 200 || name.find('/') != std::string_view::npos) {
      return {errc::invalid_option, concat("process_group: '", name, "' is not a name (1 to 200 characters, no '/')")};
    }
    return {};
  }

  void enter(detail::segment&& found, index_t rank, index_t num_ranks) {
    segment_ = std::move(found);
    rank_ = rank;
    num_ranks_ = num_ranks;
    owner_ = ::getpid();
    generation_ = calls_ = posts_ = votes_ = last_vote_ = watched_ = 0;
    next_look_ = 0;
    suspicion_ = {};
    watches_.resize(static_cast<std::size_t>(num_ranks));
    self().process = detail::this_process();
    self().parent = detail::parent_of_this_process();
    self().joined.store(1);
    ring_all();
  }

  // Wait until everyone has joined. Those who have are watched from then on.
  [[nodiscard]] status meet(detail::rendezvous const& place, nanoseconds_t deadline) {
    auto& header = segment_.header();
    detail::process_watch creator{header.facts.creator};
    index_t gone = -1;
    bool const over = await(
        [this, &gone, &header, &creator] {
          watch_members();
          if (missing_members().empty()) { return true; }
          gone = lost_member();
          return gone >= 0 || header.abandoned.load() != 0 || creator.dead();
        },
        deadline);
    auto const missing = missing_members();
    if (missing.empty()) {
      watch_members();
      return {};
    }
    if (rank_ == 0) { header.abandoned.store(1); }
    auto const what = ballast::detail::concat("process_group: ", missing, " did not join");
    if (!over) { return {errc::deadline_exceeded, what + place.hint(), first_missing()}; }
    if (gone < 0) { return {errc::peer_lost, what + "; rank 0 gave up", 0}; }
    return {errc::peer_lost, ballast::detail::concat(what, "; ", lost("meanwhile", gone).message()), gone};
  }
  [[nodiscard]] bool has_joined(index_t rank) const { return segment_.member_of(rank).joined.load() != 0; }
  [[nodiscard]] std::string missing_members() const {
    return names_of([this](index_t rank) { return !has_joined(rank); });
  }
  [[nodiscard]] index_t first_missing() const {
    index_t rank = 0;
    while (rank < num_ranks_ && has_joined(rank)) { ++rank; }
    return rank;
  }
  void watch_members() {
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if ((watched_ >> rank & 1) != 0 || !has_joined(rank)) { continue; }
      watches_[static_cast<std::size_t>(rank)] = detail::process_watch{segment_.member_of(rank).process};
      watched_ |= std::uint64_t{1} << rank;
    }
  }
  // A rank that has joined and is dead or gone, or -1.
  [[nodiscard]] index_t lost_member() {
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if ((watched_ >> rank & 1) != 0 && is_lost(rank)) { return rank; }
    }
    return -1;
  }

  // ---- regrouping ----

  [[nodiscard]] std::atomic<std::uint64_t>& attempt_word(std::uint64_t attempt) const {
    return segment_.header().attempts[attempt % detail::num_attempts];
  }
  [[nodiscard]] detail::regroup_word outcome_of(std::uint64_t attempt) const {
    return detail::regroup_word::unpack(attempt_word(attempt).load());
  }

  // Come to the attempt that is open, or open a new one.
  [[nodiscard]] std::uint64_t come_to_attempt() {
    auto& last = segment_.header().last_attempt;
    auto attempt = last.load();
    while (outcome_of(attempt).attempt >= attempt) {
      if (last.compare_exchange_strong(attempt, attempt + 1)) { ++attempt; }
    }
    self().arrived.store(attempt);
    ring_all();
    return attempt;
  }

  // Settle the attempt if that can be done. True once it is settled, or too late. When another rank has ended it, the
  // newest attempt is the one to come to, as long as there is time.
  [[nodiscard]] bool settle(std::uint64_t& attempt, nanoseconds_t deadline) {
    using detail::regroup_word;
    if (auto const outcome = outcome_of(attempt); outcome.attempt >= attempt) {
      bool const is_for_all = outcome.attempt == attempt &&
                              (outcome.where == regroup_word::state::complete || outcome.reason.why == cause::lost);
      if (is_for_all || ballast::detail::now() >= deadline) { return true; }
      attempt = come_to_attempt();
      return false;
    }
    bool complete = true;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if (is_expelled(rank)) { continue; }
      if (is_lost(rank)) {
        conclude({attempt, regroup_word::state::failed, 0, {cause::lost, rank}});
        return true;
      }
      complete = complete && has_come(rank, attempt);
    }
    if (complete) { conclude({attempt, regroup_word::state::complete, next_vote(), {}}); }
    return complete;
  }
  [[nodiscard]] bool has_come(index_t rank, std::uint64_t attempt) const {
    return segment_.member_of(rank).arrived.load() >= attempt;
  }
  // The first verdict stands.
  void conclude(detail::regroup_word const& outcome) const {
    auto& word = attempt_word(outcome.attempt);
    auto seen = word.load();
    while (detail::regroup_word::unpack(seen).attempt < outcome.attempt &&
           !word.compare_exchange_weak(seen, outcome.pack())) {}
    ring_all();
  }
  // Nobody has used a vote with this number or a later one, nor will a rank that was expelled in mid-vote.
  [[nodiscard]] std::uint64_t next_vote() const {
    std::uint64_t last = 0;
    for (index_t rank = 0; rank < num_ranks_; ++rank) { last = std::max(last, ballot_of(rank) >> ballot_shift); }
    return last + 1;
  }

  // This rank waits no longer. It may have come to several attempts, of which `attempt` is the last.
  [[nodiscard]] status end_attempt(std::uint64_t first, std::uint64_t attempt) {
    using detail::regroup_word;
    if (is_expelled(rank_)) { return stale(); }
    bool all_here = true;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      all_here = all_here && (is_expelled(rank) || has_come(rank, attempt));
    }
    if (all_here) {
      static_cast<void>(settle(attempt, 0));
    } else {
      conclude({attempt, regroup_word::state::failed, 0, {cause::late, rank_}});
    }
    auto const outcome = outcome_of(attempt);
    if (outcome.attempt == attempt && outcome.where == regroup_word::state::complete) {
      begin_generation(outcome);
      return {};
    }
    if (outcome.attempt == attempt && outcome.reason.why == cause::lost) {
      return lost("regroup", outcome.reason.culprit);
    }
    return missed(first, attempt);
  }
  // Those that did not come to any of the attempts are to blame, else those that came at another time.
  [[nodiscard]] status missed(std::uint64_t first, std::uint64_t attempt) const {
    for (auto const since : {first, attempt}) {
      auto const is_missing = [this, &since](index_t rank) { return !is_expelled(rank) && !has_come(rank, since); };
      auto const culprit = most_silent(is_missing);
      if (culprit < 0) { continue; }
      return late("regroup",
                  names_of([&culprit, &is_missing](index_t rank) { return rank == culprit || is_missing(rank); }),
                  culprit);
    }
    return late("regroup", ballast::detail::concat("rank ", rank_), rank_);
  }
  void begin_generation(detail::regroup_word const& outcome) {
    generation_ = outcome.attempt;
    calls_ = generation_ << generation_shift;
    votes_ = outcome.last_vote;
    suspicion_ = {};
  }

  [[nodiscard]] suspicion reason_of_giving_up(index_t rank) const {
    auto const word = segment_.member_of(rank).given_up.load();
    return detail::is_of(word, generation_) ? detail::unpack(word) : suspicion{};
  }
  [[nodiscard]] status refuse_quitter(std::string_view what) const {
    return has_given_up(rank_) ? gave_up(what, rank_) : status{};
  }
  // As far as can be told without asking the kernel.
  [[nodiscard]] bool is_known_lost(index_t rank) const {
    return segment_.member_of(rank).left.load() != 0 || watches_[static_cast<std::size_t>(rank)].known_dead();
  }

  // ---- collective calls ----

  // Post this rank's words piece by piece and hand every live rank's piece to `use(rank, first word, words)`. Every
  // rank counts the same calls whether they succeed or not, so that the next ones match again.
  template <class Use>
  [[nodiscard]] status exchange(call const& what, std::span<std::uint64_t const> mine, nanoseconds_t timeout, Use use,
                                bool stand_in) {
    auto const deadline = ballast::detail::deadline_after(timeout);
    if (auto refusal = refuse_outsiders(); !refusal.ok()) { return refusal; }
    if (auto refusal = refuse_quitter(what.name); !refusal.ok()) { return refusal; }
    auto const expelled = segment_.header().expelled.load();
    auto const pieces = std::max<std::size_t>(1, (what.total_words + detail::mail_words - 1) / detail::mail_words);
    auto const first_call = calls_ + 1;
    calls_ += pieces;
    status result;
    for (std::size_t piece = 0; piece < pieces && result.ok(); ++piece) {
      auto const first = piece * detail::mail_words;
      auto const size = first < mine.size() ? std::min(detail::mail_words, mine.size() - first) : 0;
      auto const number = first_call + piece;
      post(what, number, size == 0 ? mine.first(0) : mine.subspan(first, size));
      result = await_posts(what, number, expelled, deadline);
      if (result.ok()) { result = read_posts(what, number, expelled, first, use, stand_in); }
    }
    return is_expelled(rank_) ? stale() : result;
  }

  void post(call const& what, std::uint64_t number, std::span<std::uint64_t const> words) {
    auto& out = self().mails[posts_++ % detail::mails_kept];
    out.number.store(0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    out.kind.store(what.kind, std::memory_order_relaxed);
    out.total_words.store(what.total_words, std::memory_order_relaxed);
    out.num_words.store(words.size(), std::memory_order_relaxed);
    for (std::size_t i = 0; i < words.size(); ++i) { out.words[i].store(words[i], std::memory_order_relaxed); }
    out.number.store(number, std::memory_order_release);
    self().posted.store(number);
    ring_all();
  }

  // Ranks that were out when the call began are not waited for; one that is expelled meanwhile fails it.
  [[nodiscard]] status await_posts(call const& what, std::uint64_t number, std::uint64_t expelled,
                                   nanoseconds_t deadline) {
    auto const is_missing = [this, &expelled, &number](index_t rank) {
      return (expelled >> rank & 1) == 0 && segment_.member_of(rank).posted.load() < number;
    };
    index_t gone = -1;
    index_t quitter = -1;
    bool const in_time = await(
        [this, &is_missing, &gone, &quitter] {
          bool complete = true;
          for (index_t rank = 0; rank < num_ranks_; ++rank) {
            if (!is_missing(rank)) { continue; }
            complete = false;
            if (!is_live(rank) && is_missing(rank)) { gone = rank; }
            if (has_given_up(rank) && is_missing(rank)) { quitter = first_quitter(); }
          }
          return complete || gone >= 0 || quitter >= 0 || is_expelled(rank_);
        },
        deadline);
    if (is_expelled(rank_)) { return stale(); }
    if (gone >= 0) {
      suspect(gone);
      return lost(what.name, gone);
    }
    if (quitter >= 0) {
      suspicion_ = known_cause(reason_of_giving_up(quitter), {cause::gave_up, quitter});
      return gave_up(what.name, quitter);
    }
    auto const missing = names_of(is_missing);
    auto const culprit = late_rank(is_missing);
    if (in_time || missing.empty() || culprit < 0) { return {}; }
    suspect(culprit);
    return late(what.name, missing, culprit);
  }

  template <class Use>
  [[nodiscard]] status read_posts(call const& what, std::uint64_t number, std::uint64_t expelled, std::size_t first,
                                  Use use, bool stand_in) {
    auto const lowest_live = static_cast<index_t>(std::countr_one(expelled));
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      bool const absent = (expelled >> rank & 1) != 0;
      if (absent && !stand_in) { continue; }
      if (auto result = read_post(what, number, absent ? lowest_live : rank); !result.ok()) { return result; }
      use(rank, first, std::span<std::uint64_t const>{read_words_});
    }
    return {};
  }

  // Copy one rank's mail, then make sure that it was not overwritten meanwhile by a rank that has gone on without us.
  [[nodiscard]] status read_post(call const& what, std::uint64_t number, index_t rank) {
    auto const& mails = segment_.member_of(rank).mails;
    auto const& in = *std::find_if(std::begin(mails), std::end(mails) - 1,
                                   [&number](detail::mail const& mail) { return mail.number.load() == number; });
    auto const kind = in.kind.load(std::memory_order_relaxed);
    auto const total_words = in.total_words.load(std::memory_order_relaxed);
    read_words_.resize(std::min<std::size_t>(in.num_words.load(std::memory_order_relaxed), detail::mail_words));
    for (std::size_t i = 0; i < read_words_.size(); ++i) {
      read_words_[i] = in.words[i].load(std::memory_order_relaxed);
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    if (in.number.load(std::memory_order_relaxed) != number) {
      return {errc::deadline_exceeded,
              ballast::detail::concat(what.name, ": rank ", rank_, " is late: rank ", rank, " is ",
                                      segment_.member_of(rank).posted.load() - number, " calls further"),
              rank_};
    }
    if (kind != what.kind || total_words != what.total_words) {
      return {errc::disagreement,
              ballast::detail::concat("rank ", rank_, " calls ", what.name, " with ", what.total_words, " words, rank ",
                                      rank, " calls ", name_of(kind), " with ", total_words),
              rank};
    }
    return {};
  }

  [[nodiscard]] static char const* name_of(std::uint64_t kind) noexcept {
    switch (kind & 0xff) {
      case call_kind::reduce: return "all_reduce";
      case call_kind::gather: return "all_gather";
      default: return "broadcast";
    }
  }

  // ---- votes ----

  struct verdict {
    decision outcome;
    suspicion reason;
    suspicion behind_it;  // why the rank that voted no did so, if it knew
  };

  // A ballot: vote number, whom this rank blames for a no, why, and yes.
  static constexpr int ballot_shift = 16;
  [[nodiscard]] std::uint64_t ballot_of(index_t rank) const noexcept { return segment_.member_of(rank).ballot.load(); }
  [[nodiscard]] bool has_voted(index_t rank) const noexcept { return ballot_of(rank) >> ballot_shift >= votes_; }

  // A decision: vote number, the reason behind the reason, the reason, and 1 for commit or 2 for drop.
  static constexpr int decision_shift = 28;
  [[nodiscard]] std::uint64_t pack(verdict const& what) const noexcept {
    return votes_ << decision_shift | detail::pack(what.behind_it) << 16 | detail::pack(what.reason) << 4 |
           (what.outcome == decision::commit ? 1u : 2u);
  }
  [[nodiscard]] std::atomic<std::uint64_t>& decision_word(std::uint64_t vote) const noexcept {
    return segment_.header().decisions[vote % detail::num_decisions];
  }

  // The first verdict stands.
  void decide(verdict const& what) const noexcept {
    auto& word = decision_word(votes_);
    auto seen = word.load();
    while (seen >> decision_shift < votes_ && !word.compare_exchange_weak(seen, pack(what))) {}
  }

  // True once the vote has an outcome, here or elsewhere.
  [[nodiscard]] bool try_to_decide(std::uint64_t expelled_before) {
    if (decision_word(votes_).load() >> decision_shift >= votes_ || is_expelled(rank_)) { return true; }
    bool complete = true;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if ((expelled_before >> rank & 1) != 0) { continue; }
      // One look at the ballot must say both that it is there and what it says: a no may come between two looks.
      auto const ballot = ballot_of(rank);
      if (ballot >> ballot_shift == votes_ && (ballot & 1) == 0) {
        decide({decision::drop, {cause::failed, rank}, detail::unpack(ballot >> 4)});
        return true;
      }
      if (ballot >> ballot_shift >= votes_) { continue; }
      complete = false;
      if (!is_live(rank) && !has_voted(rank)) {
        decide({decision::drop, {cause::lost, rank}, {}});
        return true;
      }
      if (has_given_up(rank) && !has_voted(rank)) {
        auto const quitter = first_quitter();
        decide({decision::drop, {cause::gave_up, quitter}, reason_of_giving_up(quitter)});
        return true;
      }
    }
    if (complete) { decide({decision::commit, {}, {}}); }
    return complete;
  }

  [[nodiscard]] vote_result read_decision(std::uint64_t vote) const {
    using ballast::detail::concat;
    if (is_expelled(rank_)) { return {decision::undecided, stale()}; }
    auto const word = decision_word(vote).load();
    if (vote == 0 || word >> decision_shift != vote) {
      return {decision::undecided,
              {errc::deadline_exceeded, concat("vote ", vote, ": rank ", rank_, " is too late to learn the outcome"),
               rank_}};
    }
    if ((word & 0xf) == 1) { return {decision::commit, {}}; }
    auto const reason = detail::unpack(word >> 4);
    auto const behind_it = detail::unpack(word >> 16);
    switch (reason.why) {
      case cause::lost: return {decision::drop, lost("vote", reason.culprit)};
      case cause::failed: return {decision::drop, detail::blame("", reason.culprit, " voted no", behind_it)};
      case cause::gave_up: return {decision::drop, detail::blame("vote: ", reason.culprit, " has given up", behind_it)};
      default: return {decision::drop, late("vote", concat("rank ", reason.culprit), reason.culprit)};
    }
  }
  [[nodiscard]] static suspicion known_cause(suspicion const& behind_it, suspicion const& otherwise) noexcept {
    return behind_it.why != cause::none ? behind_it : otherwise;
  }

  // ---- words ----

  template <class Predicate>
  [[nodiscard]] std::string names_of(Predicate holds) const {
    std::string names;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if (holds(rank)) { names += ballast::detail::concat(names.empty() ? "rank " : ", rank ", rank); }
    }
    return names;
  }
  [[nodiscard]] static status late(std::string_view what, std::string_view who, index_t culprit) {
    return {errc::deadline_exceeded, ballast::detail::concat(what, ": ", who, " did not come in time"), culprit};
  }

  static constexpr int generation_shift = 40;  // more calls than a process makes between two regroups

  detail::segment segment_;
  std::vector<detail::process_watch> watches_;  // [R]
  index_t rank_ = 0;
  index_t num_ranks_ = 0;
  ::pid_t owner_ = 0;             // the process that has joined
  std::uint64_t watched_ = 0;     // bit r: watches_[r] watches
  nanoseconds_t next_look_ = 0;   // when `trouble` may ask the kernel again
  std::uint64_t generation_ = 0;  // the attempt to regroup that calls and votes are numbered since
  std::uint64_t calls_ = 0;       // pieces of collective calls, counted alike on every rank
  std::uint64_t posts_ = 0;
  std::uint64_t votes_ = 0;
  std::uint64_t last_vote_ = 0;  // that this rank took part in
  suspicion suspicion_;          // what the next no will say
  std::vector<std::uint64_t> read_words_;
};

static_assert(regrouping_plane<process_group> && explaining_plane<process_group> && expelling_plane<process_group>);

}  // namespace posix
BALLAST_END_NAMESPACE

#endif
