// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MPI_CONTROL_HPP
#define BALLAST_MPI_CONTROL_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/mpi/detail/mailbox.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/types.hpp>

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace mpi {

/// A control plane on MPI, from point-to-point messages that never block, so that every wait ends at its deadline.
///
/// Every rank sends its part of a call to every other one and numbers its calls, so a late rank finds the parts that
/// the others sent while it was away, and its own late parts disturb nobody. Cost of a call: R - 1 messages a rank.
///
/// Votes are messages too, so a rank that said yes and does not hear from everyone in time is `undecided`: others may
/// have committed. `recall` asks every other rank, which answers inside any of its control calls. To answer that it has
/// not committed, a rank gives its word that it will not commit that vote by ballots any more. So when all have
/// answered and none has committed, all drop.
///
/// MPI of today ends the whole job when a process dies, unless told otherwise; where it goes on, a dead rank is one
/// that does not answer: `errc::deadline_exceeded`, or `errc::transport_failed` where MPI reports an error.
///
/// @lifetime the communicator is duplicated and may be freed. Destroy before `MPI_Finalize`.
/// @threads one thread at a time; MPI must be initialised for the threads in use.
class control {
public:
  /// Called by all ranks of `borrowed` together.
  explicit control(MPI_Comm borrowed) : mailbox_{borrowed}, inbox_(static_cast<std::size_t>(mailbox_.num_ranks())) {}

  [[nodiscard]] index_t rank() const noexcept { return mailbox_.rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return mailbox_.num_ranks(); }
  /// MPI groups never shrink.
  [[nodiscard]] std::uint64_t membership() const { return 1; }

  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    auto result = exchange({letter_kind::reduce, 0, values.size_bytes()}, std::as_bytes(values), timeout);
    if (!result.ok()) { return result; }
    std::vector<std::int64_t> theirs(values.size());
    for (auto const& part : parts_) {
      if (part.peer == rank()) { continue; }
      copy_bytes(part.payload(), std::as_writable_bytes(std::span{theirs}));
      for (std::size_t i = 0; i < values.size(); ++i) { values[i] += theirs[i]; }
    }
    return {};
  }

  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    BALLAST_EXPECTS(all.size() == mine.size() * static_cast<std::size_t>(num_ranks()),
                    "all_gather: output is not R x words");
    auto result = exchange({letter_kind::gather, 0, mine.size_bytes()}, std::as_bytes(mine), timeout);
    if (!result.ok()) { return result; }
    for (auto const& part : parts_) {
      auto const to = all.subspan(static_cast<std::size_t>(part.peer) * mine.size(), mine.size());
      copy_bytes(part.payload(), std::as_writable_bytes(to));
    }
    return {};
  }

  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    BALLAST_EXPECTS(root >= 0 && root < num_ranks(), "broadcast: root out of range");
    auto const mine = rank() == root ? std::span<std::byte const>{bytes} : std::span<std::byte const>{};
    auto result = exchange({letter_kind::broadcast, root, bytes.size()}, mine, timeout);
    if (result.ok()) { copy_bytes(parts_[static_cast<std::size_t>(root)].payload(), bytes); }
    return result;
  }

  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    ++votes_;
    yes = yes && promised_ < votes_;
    for_each_peer([&](index_t peer) { send(peer, {letter_kind::ballot, votes_, yes ? 1u : 0u, 0}); });
    outcomes_.push_back(yes ? decision::undecided : decision::drop);
    if (outcomes_.size() > outcomes_kept) { outcomes_.pop_front(); }
    for (auto& from : inbox_) {
      std::erase_if(from.ballots, [&](ballot const& old) { return old.vote < votes_; });
    }
    voting_ = yes;
    index_t against = yes ? -1 : rank();
    auto const settled = [&] {
      if (against < 0) { against = first_against(); }
      return against >= 0 || promised_ >= votes_ || missing_ballots().empty();
    };
    bool const in_time =
        mailbox_.collect_until([&](letter what) { take(std::move(what)); }, settled, deadline(timeout));
    voting_ = false;
    auto& outcome = outcomes_.back();
    if (against >= 0) {
      outcome = decision::drop;
      return {outcome, {errc::transport_failed, ballast::detail::concat("rank ", against, " voted no")}};
    }
    if (promised_ >= votes_) {
      return {outcome, {errc::undecided, ballast::detail::concat("vote ", votes_, " was recalled by another rank")}};
    }
    if (!in_time) { return {outcome, late("vote", missing_ballots())}; }
    outcome = decision::commit;
    return {outcome, {}};
  }

  /// Settle the last vote if it was undecided here; see `control_plane`.
  [[nodiscard]] vote_result recall(nanoseconds_t timeout) {
    BALLAST_EXPECTS(votes_ > 0, "recall: there was no vote");
    auto& outcome = outcomes_.back();
    if (outcome == decision::undecided) {
      promised_ = votes_;
      for (auto& from : inbox_) { from.answer = answer_kind::none_yet; }
      for_each_peer([&](index_t peer) { send(peer, {letter_kind::query, votes_, 0, 0}); });
      auto const settled = [&] { return settle(outcome); };
      if (!mailbox_.collect_until([&](letter what) { take(std::move(what)); }, settled, deadline(timeout))) {
        return {outcome, late("recall", missing([](box const& from) { return from.answer == answer_kind::none_yet; }))};
      }
    }
    if (outcome == decision::commit) { return {outcome, {}}; }
    return {outcome, {errc::deadline_exceeded, ballast::detail::concat("vote ", votes_, ": no rank has committed it")}};
  }

private:
  using letter = detail::letter;

  struct letter_kind {
    static constexpr std::uint64_t reduce = 1;
    static constexpr std::uint64_t gather = 2;
    static constexpr std::uint64_t broadcast = 3;
    static constexpr std::uint64_t ballot = 4;
    static constexpr std::uint64_t query = 5;
    static constexpr std::uint64_t answer = 6;
  };
  enum class answer_kind : std::uint64_t {
    none_yet,
    committed,
    dropped,       ///< it knows that nobody can commit
    not_committed  ///< and will not, by ballots
  };
  // What all ranks must be doing alike.
  struct call {
    std::uint64_t kind;
    index_t root;
    std::size_t bytes;
  };
  struct ballot {
    std::uint64_t vote = 0;
    bool yes = false;
  };
  // What one rank has sent and this one has not used yet.
  struct box {
    std::deque<letter> parts;
    std::deque<ballot> ballots;
    answer_kind answer = answer_kind::none_yet;
  };

  static constexpr std::size_t outcomes_kept = 4096;

  [[nodiscard]] static nanoseconds_t deadline(nanoseconds_t timeout) noexcept {
    auto const now = ballast::detail::now();
    return timeout > std::numeric_limits<nanoseconds_t>::max() - now ? std::numeric_limits<nanoseconds_t>::max()
                                                                     : now + timeout;
  }
  static void copy_bytes(std::span<std::byte const> from, std::span<std::byte> to) noexcept {
    if (!to.empty()) { std::memcpy(to.data(), from.data(), to.size()); }
  }
  template <class Use>
  void for_each_peer(Use use) const {
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (peer != rank()) { use(peer); }
    }
  }
  void send(index_t peer, letter::header const& head, std::span<std::byte const> payload = {}) {
    auto what = detail::write_letter(peer, head, payload.size());
    copy_bytes(payload, what.payload());
    mailbox_.send(std::move(what));
  }

  void take(letter what) {
    auto const head = what.head();
    auto& from = inbox_[static_cast<std::size_t>(what.peer)];
    switch (head.kind) {
      case letter_kind::ballot:
        if (head.id >= votes_) { from.ballots.push_back({head.id, head.size != 0}); }
        break;
      case letter_kind::query: answer(what.peer, head.id); break;
      case letter_kind::answer:
        if (head.id == votes_) { from.answer = static_cast<answer_kind>(head.size); }
        break;
      default:
        if (head.id >= calls_) { from.parts.push_back(std::move(what)); }
    }
  }

  // ---- collective calls ----

  // Leave every rank's bytes in `parts_`, by rank.
  [[nodiscard]] status exchange(call const& mine, std::span<std::byte const> bytes, nanoseconds_t timeout) {
    ++calls_;
    letter::header const head{mine.kind, calls_, mine.bytes, static_cast<std::uint64_t>(mine.root)};
    for_each_peer([&](index_t peer) { send(peer, head, bytes); });
    for (auto& from : inbox_) {
      std::erase_if(from.parts, [&](letter const& part) { return part.head().id < calls_; });
    }
    auto const absent = [](box const& from) { return from.parts.empty(); };
    bool const in_time = mailbox_.collect_until([&](letter what) { take(std::move(what)); },
                                                [&] { return missing(absent).empty(); }, deadline(timeout));
    if (!in_time) { return late(name_of(mine.kind), missing(absent)); }
    parts_.clear();
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (peer == rank()) {
        parts_.push_back(detail::write_letter(peer, head, bytes.size()));
        copy_bytes(bytes, parts_.back().payload());
      } else {
        auto& parts = inbox_[static_cast<std::size_t>(peer)].parts;
        parts_.push_back(std::move(parts.front()));
        parts.pop_front();
      }
      if (auto result = compare(mine, parts_.back()); !result.ok()) { return result; }
    }
    return {};
  }

  [[nodiscard]] status compare(call const& mine, letter const& theirs) const {
    auto const head = theirs.head();
    if (head.id != calls_) {
      return {errc::deadline_exceeded, ballast::detail::concat("rank ", rank(), " is late: rank ", theirs.peer,
                                                               " is at call ", head.id, ", this rank at ", calls_)};
    }
    if (head.kind != mine.kind || head.size != mine.bytes || head.at != static_cast<std::uint64_t>(mine.root)) {
      return {errc::disagreement, ballast::detail::concat("rank ", rank(), " calls ", name_of(mine.kind), " with ",
                                                          mine.bytes, " bytes, rank ", theirs.peer, " calls ",
                                                          name_of(head.kind), " with ", head.size)};
    }
    return {};
  }
  [[nodiscard]] static char const* name_of(std::uint64_t kind) noexcept {
    switch (kind) {
      case letter_kind::reduce: return "all_reduce";
      case letter_kind::gather: return "all_gather";
      default: return "broadcast";
    }
  }

  // ---- votes ----

  [[nodiscard]] ballot const* ballot_of(box const& from) const {
    auto const found = std::ranges::find(from.ballots, votes_, &ballot::vote);
    return found == from.ballots.end() ? nullptr : &*found;
  }
  [[nodiscard]] index_t first_against() const {
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      auto const* const theirs = ballot_of(inbox_[static_cast<std::size_t>(peer)]);
      if (theirs != nullptr && !theirs->yes) { return peer; }
    }
    return -1;
  }
  [[nodiscard]] std::string missing_ballots() const {
    return missing([&](box const& from) { return ballot_of(from) == nullptr; });
  }

  void answer(index_t peer, std::uint64_t vote) {
    auto known = answer_kind::not_committed;
    if (vote > votes_ || (vote == votes_ && voting_)) {
      promised_ = std::max(promised_, vote);
    } else if (votes_ - vote < outcomes_.size()) {
      switch (outcomes_[outcomes_.size() - 1 - static_cast<std::size_t>(votes_ - vote)]) {
        case decision::commit: known = answer_kind::committed; break;
        case decision::drop: known = answer_kind::dropped; break;
        case decision::undecided: break;
      }
    }
    send(peer, {letter_kind::answer, vote, static_cast<std::uint64_t>(known), 0});
  }

  // Do the answers so far settle the vote?
  [[nodiscard]] bool settle(decision& outcome) const {
    bool complete = true;
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (peer == rank()) { continue; }
      switch (inbox_[static_cast<std::size_t>(peer)].answer) {
        case answer_kind::committed: outcome = decision::commit; return true;
        case answer_kind::dropped: outcome = decision::drop; return true;
        case answer_kind::none_yet: complete = false; break;
        case answer_kind::not_committed: break;
      }
    }
    if (complete) { outcome = decision::drop; }
    return complete;
  }

  // ---- words ----

  template <class Predicate>
  [[nodiscard]] std::string missing(Predicate is_missing) const {
    std::string names;
    for_each_peer([&](index_t peer) {
      if (is_missing(inbox_[static_cast<std::size_t>(peer)])) {
        names += ballast::detail::concat(names.empty() ? "rank " : ", rank ", peer);
      }
    });
    return names;
  }
  [[nodiscard]] status late(std::string_view what, std::string const& who) const {
    if (!mailbox_.failure().ok()) { return mailbox_.failure(); }
    return {errc::deadline_exceeded, ballast::detail::concat(what, ": ", who, " did not come in time")};
  }

  detail::mailbox mailbox_;
  std::vector<box> inbox_;     // [R]
  std::vector<letter> parts_;  // [R] of the last call
  std::uint64_t calls_ = 0;
  std::uint64_t votes_ = 0;
  std::uint64_t promised_ = 0;  // up to this vote, this rank has said that it will not commit by ballots
  bool voting_ = false;
  std::deque<decision> outcomes_;  // of the last votes
};

static_assert(control_plane<control>);

}  // namespace mpi
BALLAST_END_NAMESPACE

#endif
