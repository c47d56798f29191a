// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MPI_CONTROL_HPP
#define BALLAST_MPI_CONTROL_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/mpi/detail/mailbox.hpp>
#include <ballast/mpi/detail/vote_record.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace mpi {

/// Options of `control`.
struct control_options {
  nanoseconds_t setup_timeout = 10'000'000'000;  ///< for the ranks to make a communicator together
};

/// A control plane on MPI, from point-to-point messages that never block, so that every wait ends at its deadline.
///
/// Every rank sends its part of a call to every other one and numbers its calls, so a late rank finds the parts that
/// the others sent while it was away, and its own late parts disturb nobody. Cost of a call: R - 1 messages a rank.
///
/// Votes are messages too, so a rank that said yes and does not hear from everyone in time is `undecided`: others may
/// have committed. `recall` asks every other rank, which answers inside any of its calls, `trouble` and `regroup` too.
/// To answer that it has not committed, a rank gives its word that it will not commit that vote by ballots any more;
/// who asks has given it. So when all have said so and none has committed, all drop. Votes keep their numbers for good:
/// a rank may be asked for one of before a regroup.
///
/// `regroup` counts generations. Every rank proposes a number above all that it knows and takes over a larger one of
/// another rank; it is done when every other rank has given the same number in answer to it. Calls are numbered within
/// their generation, so nothing of an older one is mistaken. A rank that regroups or gives up says up to where it has
/// voted and how its last votes ended: nobody waits for its ballots any more. A regroup that fails gives up.
///
/// Who needs a rank whose control plane is no more fails at once with `errc::peer_lost`. `trouble` does not speak of
/// it: that is how every run ends.
///
/// MPI of today ends the whole job when a process dies, unless told otherwise; where it goes on, a dead rank is one
/// that does not answer: `errc::deadline_exceeded`, or `errc::transport_failed` where MPI reports an error.
///
/// @lifetime the communicator is duplicated and may be freed. Destroy before `MPI_Finalize`. Its end waits for that of
///           the others, a fifth of a second at most; what MPI still holds by then is left to it.
/// @threads one thread at a time; MPI must be initialised for the threads in use.
class control {
public:
  /// Called by all ranks of `borrowed` together: each control plane and each transport has a communicator of its own,
  /// which the ranks make in the same order. After twice `options.setup_timeout` at the latest it is there, or
  /// `failure()` says why not, and every call fails so. All ranks may then try again; for anything else that ranks do
  /// together `borrowed` is lost, since some may have begun what others have not.
  ///
  /// @param borrowed  an intracommunicator.
  /// @throws std::bad_alloc
  explicit control(MPI_Comm borrowed, control_options const& options = {})
      : mailbox_{borrowed, options.setup_timeout}, inbox_(static_cast<std::size_t>(mailbox_.num_ranks())) {}

  [[nodiscard]] index_t rank() const noexcept { return mailbox_.rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return mailbox_.num_ranks(); }
  /// MPI groups never shrink.
  [[nodiscard]] std::uint64_t membership() const { return 1; }
  /// Why nothing works: it could not be set up (`errc::deadline_exceeded` when not all ranks came,
  /// `errc::invalid_option` for what is no intracommunicator, `errc::transport_failed`), or the first error that MPI
  /// reported (`errc::transport_failed`). It stays so for the life of this object.
  [[nodiscard]] status const& failure() const noexcept { return mailbox_.failure(); }

  /// Replace `values` by their sums over the ranks; see `control_plane`. A collective, like the calls below: all ranks
  /// make them, in the same order.
  ///
  /// @param values   [n] the same n on every rank; unchanged on failure.
  /// @param timeout  nanoseconds to wait for the others.
  /// @return `errc::deadline_exceeded` naming a rank that is missing, or at another call; `errc::disagreement` naming
  ///         one that makes another call, or this one with another size or root; `errc::peer_lost` naming one whose
  ///         control plane is no more; what a rank says that has given up, this one too; `errc::transport_failed`
  ///         naming one that regroups; `errc::invalid_option` for 2 GiB and more; `failure()`.
  /// @complexity R - 1 messages a rank, with n words each.
  /// @throws std::bad_alloc
  /// @determinism sums of integers: the same bits on every rank.
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

  /// Write every rank's words to `all`; see `control_plane`. Complexity as of `all_reduce`.
  ///
  /// @param mine     [n] the same n on every rank.
  /// @param all      out: [R, n]; unchanged on failure.
  /// @param timeout  nanoseconds to wait for the others.
  /// @return as `all_reduce`; `errc::invalid_option` for an `all` of another size, told here only: the call is counted,
  ///         but the others wait for this rank in vain.
  /// @throws std::bad_alloc
  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    if (all.size() != mine.size() * static_cast<std::size_t>(num_ranks())) {
      return miss_call({errc::invalid_option, ballast::detail::concat("all_gather: no room for ", num_ranks(), " x ",
                                                                      mine.size(), " words in ", all.size())});
    }
    auto result = exchange({letter_kind::gather, 0, mine.size_bytes()}, std::as_bytes(mine), timeout);
    if (!result.ok()) { return result; }
    for (auto const& part : parts_) {
      auto const to = all.subspan(static_cast<std::size_t>(part.peer) * mine.size(), mine.size());
      copy_bytes(part.payload(), std::as_writable_bytes(to));
    }
    return {};
  }

  /// Copy the root's bytes to every rank; see `control_plane`.
  ///
  /// @param bytes    in/out: the same size on every rank; unchanged on failure.
  /// @param root     in [0, R), the same on every rank.
  /// @param timeout  nanoseconds. All ranks wait for each other, the root too.
  /// @return as `all_reduce`; `errc::invalid_option` for a root that there is not.
  /// @complexity R - 1 messages a rank; those of the root have the bytes.
  /// @throws std::bad_alloc
  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    if (root < 0 || root >= num_ranks()) {
      return miss_call(
          {errc::invalid_option, ballast::detail::concat("broadcast: root ", root, " of ", num_ranks(), " ranks")});
    }
    auto const mine = rank() == root ? std::span<std::byte const>{bytes} : std::span<std::byte const>{};
    auto result = exchange({letter_kind::broadcast, root, bytes.size()}, mine, timeout);
    if (result.ok()) { copy_bytes(parts_[static_cast<std::size_t>(root)].payload(), bytes); }
    return result;
  }

  /// Commit if every rank says yes in time; see `control_plane`, and the class for what votes guarantee. Who says no
  /// does not wait for the others, nor does anybody who hears a no.
  ///
  /// @param timeout  nanoseconds to wait for the others' ballots.
  /// @return with `drop`, `errc::transport_failed` naming a rank that voted no, this one too; `errc::peer_lost`, or
  ///         what a rank says that has given up; `errc::deadline_exceeded` when another rank has recalled this vote
  ///         before. With `undecided`, `errc::deadline_exceeded` naming a rank whose ballot is missing,
  ///         `errc::undecided` when a rank recalls it meanwhile: ask `recall`. `failure()` with either.
  /// @complexity R - 1 messages a rank
  /// @throws std::bad_alloc
  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) { return cast(yes, {}, timeout); }

  /// The same, of a rank that says no because of `why`, of which the code and the rank travel.
  [[nodiscard]] vote_result vote_no(status const& why, nanoseconds_t timeout) { return cast(false, why, timeout); }

  /// Settle the last vote that this rank made if it was undecided here; see `control_plane`. Also after a regroup, and
  /// after giving up; when it has failed, it may be tried again. Asks nobody when the outcome is known here.
  ///
  /// @param timeout  nanoseconds to wait for answers. The others give theirs inside of any call of theirs.
  /// @return with `undecided`, `errc::deadline_exceeded` or `errc::peer_lost` naming a rank that has not answered,
  ///         `failure()`; with `drop`, `errc::invalid_option` where this rank has never voted, otherwise why it was
  ///         dropped.
  /// @complexity R - 1 messages, and as many answers
  [[nodiscard]] vote_result recall(nanoseconds_t timeout) {
    if (record_.empty()) { return {decision::drop, {errc::invalid_option, "recall: there was no vote"}}; }
    auto const [number, outcome] = record_.last();
    if (outcome == decision::commit) { return {decision::commit, {}}; }
    if (outcome == decision::drop) { return {decision::drop, nobody_committed(number)}; }
    promised_ = std::max(promised_, number);
    for_each_peer([this, vote = number](index_t peer) { send(peer, {letter_kind::query, vote, 0, 0}); });
    vote_result result;
    auto const is_silent = [this, vote = number](index_t peer) {
      return knowledge_of(box_of(peer), vote) == detail::vote_knowledge::none;
    };
    auto const settled = [this, &result, &is_silent, vote = number] {
      result = settle(vote);
      bool const is_vain =
          !is_any_missing([this, &is_silent](index_t peer) { return is_silent(peer) && !mailbox_.has_gone(peer); });
      return result.outcome != decision::undecided || is_vain;
    };
    if (!wait(settled, timeout) || result.outcome == decision::undecided) {
      return {decision::undecided, late("recall", missing(is_silent))};
    }
    record_.settle_last(result.outcome);
    return result;
  }

  /// Meet all ranks in a new generation; see `control_plane`.
  ///
  /// @param timeout  nanoseconds to wait for the others.
  /// @return `errc::deadline_exceeded` naming a rank that does not regroup, `errc::peer_lost` naming one whose control
  ///         plane is no more: this rank has given up then, until it regroups again. `failure()`.
  /// @complexity 2 (R - 1) messages a rank, and R - 1 more for each number that it takes over.
  [[nodiscard]] status regroup(nanoseconds_t timeout) {
    if (!failure().ok()) { return failure(); }
    collect();
    ++attempt_;
    regrouping_ = true;
    propose(next_proposal());
    auto const is_vain = [this](index_t peer) { return !box_of(peer).confirmed && mailbox_.has_gone(peer); };
    static_cast<void>(wait([this, &is_vain] { return !regrouping_ || is_any_missing(is_vain); }, timeout));
    if (regrouping_) {
      regrouping_ = false;
      gave_up_ = late("regroup", missing_at_regroup());
      announce_departure();
      return gave_up_;
    }
    begin_generation();
    return {};
  }

  /// Make no call until `regroup`, and say so to the others; see `control_plane`. Waits for nobody. Idempotent.
  ///
  /// @param why  the others' calls that need this rank fail with its code, if that is an `errc`, and its message, of
  ///             which 512 bytes travel.
  /// @complexity R - 1 messages
  void give_up(status const& why) {
    if (!gave_up_.ok() || !failure().ok()) { return; }
    gave_up_ = why.ok() ? status{errc::transport_failed, "without a reason"} : why;
    announce_departure();
  }

  /// A rank that has given up, as far as its word has arrived; see `control_plane`. Looks into the mailbox, waits for
  /// nobody, and answers those who ask for a vote.
  ///
  /// @return the code of why that rank, or this one, gave up; `failure()`.
  [[nodiscard]] status trouble() {
    if (!failure().ok()) { return failure(); }
    collect();
    if (!failure().ok()) { return failure(); }
    if (!gave_up_.ok()) { return refuse("mpi"); }
    auto const quitter = first_quitter();
    return quitter < 0 ? status{} : departure("mpi", quitter);
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
    static constexpr std::uint64_t regroup = 7;
    static constexpr std::uint64_t give_up = 8;
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
    std::uint64_t reason = 0;  // of a no: code and rank to blame; 0 where it says nothing
  };
  // What a rank says when it looks for the others.
  struct proposal {
    std::uint64_t generation = 0;
    std::uint64_t attempt = 0;  // counts its calls of `regroup`
    std::uint64_t echo = 0;     // the attempt of the rank that reads this, as far as known
  };
  // What one rank has sent and this one has not used yet.
  struct box {
    std::deque<letter> parts;
    std::deque<ballot> ballots;
    std::uint64_t queried = 0;  // the last vote that it asked about, and so does not commit by ballots
    std::uint64_t answered = 0;
    detail::vote_knowledge answer = detail::vote_knowledge::none;
    detail::told_votes told;    // of its votes, when it was last heard to leave a generation
    std::uint64_t left = 0;     // it makes no call of generations before this one
    std::uint64_t gave_up = 0;  // the last generation it gave up, if it ever did,
    status why;                 // and the reason
    proposal last;              // the last one heard,
    proposal sent;              // and the last one sent to it
    bool confirmed = false;     // it has given the number that is now proposed, in answer to this rank's attempt,
    std::uint64_t attempt = 0;  // in this attempt of its own
    std::uint64_t votes = 0;    // how many votes it had then seen
    std::uint64_t met = 0;      // the last attempt of this rank in which it was heard
  };

  struct named_ranks {
    std::string names;
    index_t first = status::no_rank;
  };

  static constexpr int generation_shift = 40;
  static constexpr std::size_t longest_reason = 512;
  // The code of why a rank gave up, and whom it blames, in one word.
  static constexpr int culprit_shift = 32;
  static constexpr std::uint64_t code_mask = 0xffffffff;

  static void copy_bytes(std::span<std::byte const> from, std::span<std::byte> to) noexcept {
    if (!from.empty()) { std::memcpy(to.data(), from.data(), from.size()); }
  }
  [[nodiscard]] box& box_of(index_t peer) { return inbox_[static_cast<std::size_t>(peer)]; }
  [[nodiscard]] box const& box_of(index_t peer) const { return inbox_[static_cast<std::size_t>(peer)]; }
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
  void collect() {
    mailbox_.collect([this](letter what) { take(std::move(what)); });
  }
  template <class Settled>
  [[nodiscard]] bool wait(Settled settled, nanoseconds_t timeout) {
    auto const deadline = ballast::detail::deadline_after(timeout);
    return mailbox_.collect_until([this](letter what) { take(std::move(what)); }, settled, deadline);
  }

  void take(letter what) {
    auto const head = what.head();
    auto& from = box_of(what.peer);
    switch (head.kind) {
      case letter_kind::ballot:
        if (head.id >= votes_) { from.ballots.push_back({head.id, head.size != 0, head.at}); }
        break;
      case letter_kind::query: answer(what.peer, head.id); break;
      case letter_kind::answer:
        from.answered = head.id;
        from.answer = static_cast<detail::vote_knowledge>(head.size);
        break;
      case letter_kind::regroup: take_proposal(what); break;
      case letter_kind::give_up: take_departure(what); break;
      default:
        if (head.id >= calls_) { from.parts.push_back(std::move(what)); }
    }
  }

  // ---- collective calls ----

  // Leave every rank's bytes in `parts_`, by rank.
  [[nodiscard]] status exchange(call const& mine, std::span<std::byte const> bytes, nanoseconds_t timeout) {
    auto const* const name = name_of(mine.kind);
    if (bytes.size() > detail::largest_payload) {
      return miss_call({errc::invalid_option, ballast::detail::concat(name, ": ", bytes.size(), " bytes at once")});
    }
    if (auto refusal = refuse(name); !refusal.ok()) { return refusal; }
    ++calls_;
    letter::header const head{mine.kind, calls_, mine.bytes, static_cast<std::uint64_t>(mine.root)};
    for_each_peer([this, &head, &bytes](index_t peer) { send(peer, head, bytes); });
    forget_parts_before(calls_);
    auto const absent = [this](index_t peer) { return box_of(peer).parts.empty(); };
    status cause;
    auto const settled = [this, &cause, &name, &absent] {
      cause = find_in_vain(name);
      return !cause.ok() || !is_any_missing(absent);
    };
    if (!wait(settled, timeout)) { return late(name, missing(absent)); }
    if (!cause.ok()) { return cause; }
    take_parts(head, bytes);
    for (auto const& part : parts_) {
      if (auto result = compare(mine, part); !result.ok()) { return result; }
    }
    return {};
  }
  void take_parts(letter::header const& head, std::span<std::byte const> bytes) {
    parts_.clear();
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (peer == rank()) {
        parts_.push_back(detail::write_letter(peer, head, bytes.size()));
        copy_bytes(bytes, parts_.back().payload());
      } else {
        auto& parts = box_of(peer).parts;
        parts_.push_back(std::move(parts.front()));
        parts.pop_front();
      }
    }
  }
  void forget_parts_before(std::uint64_t id) {
    for (auto& from : inbox_) {
      std::erase_if(from.parts, [&id](letter const& part) { return part.head().id < id; });
    }
  }

  // Something that can only end this call in vain: its part will never come.
  [[nodiscard]] status find_in_vain(char const* name) const {
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      auto const& from = box_of(peer);
      bool const has_part = !from.parts.empty() && from.parts.front().head().id == calls_;
      if (peer == rank() || has_part) { continue; }
      if (has_left(box_of(peer)) || mailbox_.has_gone(peer)) { return departure(name, peer); }
      if (!from.parts.empty()) { return differs(name, peer, from.parts.front().head().id); }
    }
    return {};
  }
  [[nodiscard]] status differs(char const* name, index_t peer, std::uint64_t id) const {
    constexpr auto mask = (std::uint64_t{1} << generation_shift) - 1;
    return {errc::deadline_exceeded,
            ballast::detail::concat(name, ": rank ", peer, " is at call ", id & mask, ", rank ", rank(), " at ",
                                    calls_ & mask),
            peer};
  }
  [[nodiscard]] status compare(call const& mine, letter const& theirs) const {
    auto const head = theirs.head();
    if (head.kind != mine.kind || head.size != mine.bytes || head.at != static_cast<std::uint64_t>(mine.root)) {
      return {errc::disagreement,
              ballast::detail::concat("rank ", rank(), " calls ", describe(mine.kind, mine.bytes, mine.root), ", rank ",
                                      theirs.peer, " calls ",
                                      describe(head.kind, head.size, static_cast<index_t>(head.at))),
              theirs.peer};
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
  [[nodiscard]] static std::string describe(std::uint64_t kind, std::size_t bytes, index_t root) {
    auto text = ballast::detail::concat(name_of(kind), " with ", bytes, " bytes");
    if (kind == letter_kind::broadcast) { text += ballast::detail::concat(" from root ", root); }
    return text;
  }
  // A call that this rank does not take part in is counted all the same, so that the next ones are in step.
  [[nodiscard]] status miss_call(status why) {
    ++calls_;
    return why;
  }

  // ---- votes ----

  [[nodiscard]] vote_result cast(bool yes, status const& why, nanoseconds_t timeout) {
    if (auto refusal = refuse("vote"); !refusal.ok()) { return {decision::drop, std::move(refusal)}; }
    collect();
    auto const number = ++votes_;
    bool const recalled = promised_ >= number;
    yes = yes && !recalled;
    auto const reason = yes || why.ok() ? 0 : reason_word(why);
    for_each_peer([this, &number, &yes, &reason](index_t peer) {
      send(peer, {letter_kind::ballot, number, yes ? 1u : 0u, reason});
    });
    for (auto& from : inbox_) {
      std::erase_if(from.ballots, [&number](ballot const& old) { return old.vote < number; });
    }
    record_.add(number, yes ? decision::undecided : decision::drop);
    why_dropped_ = {};
    if (!yes) {
      why_dropped_ = recalled ? came_after_recall(number) : voted_no(rank(), reason);
      return {decision::drop, why_dropped_};
    }
    voting_ = true;
    vote_result result;
    auto const settled = [this, &result, &number] {
      result = judge(number);
      return result.outcome != decision::undecided || !result.reason.ok();
    };
    if (!wait(settled, timeout)) {
      result.reason =
          late("vote", missing([this, &number](index_t peer) { return ballot_of(box_of(peer), number) == nullptr; }));
    }
    voting_ = false;
    record_.settle_last(result.outcome);
    why_dropped_ = result.reason;
    return result;
  }

  [[nodiscard]] static ballot const* ballot_of(box const& from, std::uint64_t vote) {
    auto const found = std::ranges::find(from.ballots, vote, &ballot::vote);
    return found == from.ballots.end() ? nullptr : &*found;
  }

  // What the letters so far say about the vote that this rank is making.
  [[nodiscard]] vote_result judge(std::uint64_t vote) const {
    bool all_yes = true;
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (peer == rank()) { continue; }
      auto const* const theirs = ballot_of(box_of(peer), vote);
      if (theirs != nullptr && !theirs->yes) { return {decision::drop, voted_no(peer, theirs->reason)}; }
      bool const never_votes = has_left(box_of(peer)) || mailbox_.has_gone(peer);
      if (theirs == nullptr && never_votes) { return {decision::drop, departure("vote", peer)}; }
      all_yes = all_yes && theirs != nullptr;
    }
    if (all_yes && promised_ < vote) { return {decision::commit, {}}; }
    auto result = settle(vote);
    if (result.outcome == decision::undecided && promised_ >= vote) { result.reason = was_recalled(vote); }
    return result;
  }

  void answer(index_t peer, std::uint64_t vote) {
    box_of(peer).queried = vote;
    // A vote that this rank has not made yet is dropped: it will say no, or never make it.
    auto const known = record_.find(vote);
    if (promised_ < vote && (vote > votes_ || (vote == votes_ && voting_))) {
      promised_ = vote;
      recaller_ = peer;
    }
    send(peer, {letter_kind::answer, vote, static_cast<std::uint64_t>(known), 0});
  }

  [[nodiscard]] detail::vote_knowledge knowledge_of(box const& from, std::uint64_t vote) const {
    using detail::vote_knowledge;
    if (from.answered == vote && from.answer != vote_knowledge::none) { return from.answer; }
    auto const told = from.told.find(vote, has_left(from));
    if (told != vote_knowledge::none) { return told; }
    return from.queried == vote ? vote_knowledge::not_by_ballots : vote_knowledge::none;
  }

  // Does what the others have said settle the vote?
  [[nodiscard]] vote_result settle(std::uint64_t vote) const {
    using detail::vote_knowledge;
    bool nobody_can = promised_ >= vote;
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (peer == rank()) { continue; }
      switch (knowledge_of(box_of(peer), vote)) {
        case vote_knowledge::committed: return {decision::commit, {}};
        case vote_knowledge::dropped: return {decision::drop, dropped_by(peer, vote)};
        case vote_knowledge::none: nobody_can = false; break;
        case vote_knowledge::not_by_ballots: break;
      }
    }
    if (nobody_can) { return {decision::drop, nobody_committed(vote)}; }
    return {};
  }

  [[nodiscard]] static status voted_no(index_t who, std::uint64_t reason) {
    auto text = ballast::detail::concat("rank ", who, " voted no");
    if (reason == 0) { return {errc::transport_failed, std::move(text), who}; }
    auto const why = make_error_code(static_cast<errc>(reason & code_mask));
    auto const blamed = static_cast<index_t>(reason >> culprit_shift);
    if (blamed != who) { text += ballast::detail::concat(" because of rank ", blamed); }
    return {why, ballast::detail::concat(text, ": ", why.message()), blamed};
  }
  [[nodiscard]] status was_recalled(std::uint64_t vote) const {
    return {errc::undecided, ballast::detail::concat("vote ", vote, " was recalled by rank ", recaller_), recaller_};
  }
  [[nodiscard]] status came_after_recall(std::uint64_t vote) const {
    return {errc::deadline_exceeded,
            ballast::detail::concat("vote ", vote, ": rank ", recaller_, " recalled it before rank ", rank(), " voted"),
            rank()};
  }
  [[nodiscard]] status dropped_by(index_t peer, std::uint64_t vote) const {
    if (has_left(box_of(peer)) && ballot_of(box_of(peer), vote) == nullptr) { return departure("vote", peer); }
    return {errc::deadline_exceeded, ballast::detail::concat("vote ", vote, ": rank ", peer, " has dropped it"), peer};
  }
  [[nodiscard]] status nobody_committed(std::uint64_t vote) const {
    auto const& why = why_dropped_.ok() ? was_recalled(vote) : why_dropped_;
    return {errc::deadline_exceeded,
            ballast::detail::concat("vote ", vote, ": no rank has committed it; ", why.message()), why.rank()};
  }

  // ---- generations ----

  [[nodiscard]] std::uint64_t next_proposal() const {
    auto largest = std::max(generation_, proposal_) + 1;
    for_each_peer([this, &largest](index_t peer) {
      largest = std::max({largest, box_of(peer).last.generation, box_of(peer).left});
    });
    return largest;
  }
  // Propose a number to all, and see who has given it already.
  void propose(std::uint64_t generation) {
    proposal_ = generation;
    for_each_peer([this](index_t peer) {
      send_proposal(peer);
      box_of(peer).confirmed = false;
      confirm(box_of(peer));
    });
    end_when_confirmed();
  }
  void send_proposal(index_t peer) {
    auto& to = box_of(peer);
    to.sent = {proposal_, attempt_, to.last.attempt};
    auto const record = record_.write(votes_);
    send(peer, {letter_kind::regroup, to.sent.generation, to.sent.attempt, to.sent.echo},
         std::as_bytes(std::span{record}));
  }
  void confirm(box& from) const {
    if (from.last.generation != proposal_ || from.last.echo != attempt_ || from.left > proposal_) { return; }
    from.confirmed = true;
    from.attempt = from.last.attempt;
    from.votes = from.told.votes();
  }
  void end_when_confirmed() {
    if (!is_any_missing([this](index_t peer) { return !box_of(peer).confirmed; })) { regrouping_ = false; }
  }

  void take_proposal(letter const& what) {
    auto const head = what.head();
    auto& from = box_of(what.peer);
    from.last = {head.id, head.size, head.at};
    from.told.read(what.payload());
    from.left = std::max(from.left, head.id);
    if (!regrouping_) { return; }
    from.met = attempt_;
    if (head.id > proposal_) {
      // Who gave this rank's number and looks for another one in a later attempt has met all others under that number,
      // unless it gave it up: this rank will meet them, too.
      bool const has_met = from.confirmed && from.attempt != head.size && !withdrew(from);
      if (!has_met) { propose(head.id); }
      return;
    }
    confirm(from);
    if (from.sent.generation != proposal_ || from.sent.attempt != attempt_ || from.sent.echo != head.size) {
      send_proposal(what.peer);
    }
    end_when_confirmed();
  }
  // Those that have not been heard in this attempt, else those that have not stayed.
  [[nodiscard]] named_ranks missing_at_regroup() const {
    auto const found =
        missing([this](index_t peer) { return !box_of(peer).confirmed && box_of(peer).met != attempt_; });
    return found.names.empty() ? missing([this](index_t peer) { return !box_of(peer).confirmed; }) : found;
  }
  // It gave up what is proposed now.
  [[nodiscard]] bool withdrew(box const& from) const { return !from.why.ok() && from.gave_up >= proposal_; }

  // Say that this rank has given the last generation up that it knows or looked for.
  void announce_departure() {
    auto const text = std::string_view{gave_up_.message()}.substr(0, longest_reason);
    auto const record = record_.write(votes_);
    auto const record_bytes = std::as_bytes(std::span{record});
    for_each_peer([this, &record_bytes, &text](index_t peer) {
      letter::header const head{letter_kind::give_up, proposal_, reason_word(gave_up_), record_bytes.size()};
      auto what = detail::write_letter(peer, head, record_bytes.size() + text.size());
      copy_bytes(record_bytes, what.payload());
      copy_bytes(std::as_bytes(std::span{text}), what.payload().subspan(record_bytes.size()));
      mailbox_.send(std::move(what));
    });
  }
  void take_departure(letter const& what) {
    auto const head = what.head();
    auto& from = box_of(what.peer);
    auto const payload = what.payload();
    auto const text = payload.subspan(head.at);
    from.told.read(payload.first(head.at));
    from.gave_up = head.id;
    from.left = std::max(from.left, head.id + 1);
    std::string reason(text.size(), ' ');
    copy_bytes(text, std::as_writable_bytes(std::span{reason}));
    from.why = {static_cast<errc>(head.size & code_mask), std::move(reason),
                static_cast<index_t>(head.size >> culprit_shift)};
    if (withdrew(from)) { from.confirmed = false; }
  }

  // It makes no call of this generation any more. What it sent before has arrived before.
  [[nodiscard]] bool has_left(box const& from) const { return from.left > generation_; }
  [[nodiscard]] bool has_given_up(index_t peer) const {
    return !box_of(peer).why.ok() && box_of(peer).gave_up >= generation_;
  }
  // One that has given up and blames nobody else, or else the first that has given up, or -1.
  [[nodiscard]] index_t first_quitter() const {
    index_t found = -1;
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (peer == rank() || !has_given_up(peer)) { continue; }
      if (culprit(box_of(peer).why, peer) == peer) { return peer; }
      if (found < 0) { found = peer; }
    }
    return found;
  }
  // Why `peer` is of no more use in this generation.
  [[nodiscard]] status departure(std::string_view name, index_t peer) const {
    if (!mailbox_.has_gone(peer) && has_given_up(peer)) { peer = first_quitter(); }
    auto const& from = box_of(peer);
    if (mailbox_.has_gone(peer)) {
      return {errc::peer_lost, ballast::detail::concat(name, ": the control plane of rank ", peer, " is no more"),
              peer};
    }
    if (has_given_up(peer)) {
      return {from.why.code(), ballast::detail::concat(name, ": rank ", peer, " has given up: ", from.why.message()),
              culprit(from.why, peer)};
    }
    return {errc::transport_failed, ballast::detail::concat(name, ": rank ", peer, " regroups"), peer};
  }
  // Whose fault it is that `who` cannot go on, as far as it knows.
  [[nodiscard]] static index_t culprit(status const& why, index_t who) noexcept {
    return why.rank() == status::no_rank ? who : why.rank();
  }
  // Why this rank cannot go on, and whose fault it is.
  [[nodiscard]] std::uint64_t reason_word(status const& why) const {
    return code_of(why) | static_cast<std::uint64_t>(culprit(why, rank())) << culprit_shift;
  }
  // What other ranks can make of the code.
  [[nodiscard]] static std::uint64_t code_of(status const& why) {
    return static_cast<std::uint64_t>(ballast::detail::code_for_others(why));
  }

  void begin_generation() {
    generation_ = proposal_;
    calls_ = generation_ << generation_shift;
    gave_up_ = {};
    forget_parts_before(calls_);
    for_each_peer([this](index_t peer) { votes_ = std::max(votes_, box_of(peer).votes); });
  }
  [[nodiscard]] status refuse(char const* name) const {
    if (!failure().ok()) { return failure(); }
    if (gave_up_.ok()) { return {}; }
    return {gave_up_.code(), ballast::detail::concat(name, ": rank ", rank(), " has given up: ", gave_up_.message()),
            culprit(gave_up_, rank())};
  }

  // ---- words ----

  template <class Predicate>
  [[nodiscard]] bool is_any_missing(Predicate is_missing) const {
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (peer != rank() && is_missing(peer)) { return true; }
    }
    return false;
  }
  template <class Predicate>
  [[nodiscard]] named_ranks missing(Predicate is_missing) const {
    named_ranks found;
    for_each_peer([&is_missing, &found](index_t peer) {
      if (!is_missing(peer)) { return; }
      found.names += ballast::detail::concat(found.names.empty() ? "rank " : ", rank ", peer);
      if (found.first == status::no_rank) { found.first = peer; }
    });
    return found;
  }
  [[nodiscard]] status late(std::string_view what, named_ranks const& who) const {
    if (!failure().ok()) { return failure(); }
    if (who.first != status::no_rank && mailbox_.has_gone(who.first)) { return departure(what, who.first); }
    return {errc::deadline_exceeded, ballast::detail::concat(what, ": ", who.names, " did not come in time"),
            who.first};
  }

  detail::mailbox mailbox_;
  std::vector<box> inbox_;     // [R]
  std::vector<letter> parts_;  // [R] of the last call
  std::uint64_t calls_ = 0;    // the generation and the number within it
  status gave_up_;             // why this rank makes no call

  std::uint64_t votes_ = 0;     // number of the last vote, whether this rank made it or not
  std::uint64_t promised_ = 0;  // up to this vote, this rank has said that it will not commit by ballots
  index_t recaller_ = status::no_rank;
  bool voting_ = false;
  detail::vote_record record_;
  status why_dropped_;

  std::uint64_t generation_ = 0;
  std::uint64_t proposal_ = 0;  // the last one, which is the generation once all have met
  std::uint64_t attempt_ = 0;
  bool regrouping_ = false;  // not all have met yet
};

static_assert(control_plane<control>);

}  // namespace mpi
BALLAST_END_NAMESPACE

#endif
