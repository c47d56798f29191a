// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_PROCESS_GROUP_HPP
#define BALLAST_POSIX_PROCESS_GROUP_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/detail/process_watch.hpp>
#include <ballast/posix/detail/segment.hpp>
#include <ballast/posix/detail/segment_layout.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/types.hpp>

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace posix {

/// The ranks of one host, each a process, and their control plane, in shared memory.
///
/// The processes find each other by a name. From then on no file is left: a crash leaves nothing to clean up. Every
/// wait ends at its deadline or within some milliseconds of the death of a rank that it waits for.
///
/// Votes are atomic: one word in shared memory holds the outcome of each, and the first rank that can decide writes it
/// by compare-and-swap. A rank that was stopped in a vote and resumes reads what the others read, so no vote is ever
/// `undecided` (unless the rank was expelled meanwhile, or resumes after thousands of further votes).
///
/// `expel` shrinks the group: calls that wait for that rank fail, later ones do without it, and its own all fail. It
/// adds nothing to `all_reduce`; in `all_gather` the words of the lowest live rank stand in for its own, so that
/// comparisons hold.
///
/// @threads one thread at a time per object.
class process_group {
public:
  process_group() = default;
  process_group(process_group const&) = delete;
  process_group& operator=(process_group const&) = delete;
  ~process_group() { leave(); }

  /// Meet the other ranks. A name may be used again as soon as everyone has joined.
  ///
  /// @param name       the same on every rank, without '/'.
  /// @param rank       this rank, in [0, num_ranks).
  /// @param num_ranks  R, in [1, 64].
  /// @param timeout    nanoseconds until everyone must have joined.
  /// @pre not joined
  /// @return `errc::invalid_option` for impossible arguments, `errc::deadline_exceeded` naming who is missing,
  ///         `errc::busy` when another living group holds the name, `errc::disagreement` when rank 0 expects another R.
  /// @complexity allocates shared memory of about 70 KiB a rank.
  /// @throws std::bad_alloc
  [[nodiscard]] status join(std::string_view name, index_t rank, index_t num_ranks, nanoseconds_t timeout) {
    BALLAST_EXPECTS(!joined(), "process_group: already joined");
    if (auto result = validate(name, rank, num_ranks); !result.ok()) { return result; }
    auto const deadline = deadline_after(timeout);
    auto const path = detail::segment::path_of(name);
    detail::segment found;
    auto result =
        rank == 0 ? publish(path, num_ranks, deadline, found) : attach(path, rank, num_ranks, deadline, found);
    if (!result.ok()) { return result; }
    segment_ = std::move(found);
    rank_ = rank;
    num_ranks_ = num_ranks;
    self().process = detail::this_process();
    self().joined.store(1);
    ring_all();
    result = meet(deadline);
    if (rank == 0) { segment_.unpublish(path); }
    if (!result.ok()) { leave(); }
    return result;
  }

  /// Tell the others that this rank goes. They get `errc::peer_lost` where they would wait for it. Idempotent.
  void leave() noexcept {
    if (!joined()) { return; }
    self().left.store(1);
    ring_all();
    segment_ = {};
    watches_.clear();
    num_ranks_ = 0;
  }

  [[nodiscard]] bool joined() const noexcept { return num_ranks_ != 0; }
  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }

  // ---- membership ----

  /// 1 plus the number of expelled ranks.
  [[nodiscard]] std::uint64_t membership() const {
    return 1 + static_cast<std::uint64_t>(std::popcount(segment_.header().expelled.load()));
  }
  /// Neither expelled, nor dead, nor gone.
  [[nodiscard]] bool is_live(index_t rank) { return !is_expelled(rank) && !is_lost(rank); }
  [[nodiscard]] bool is_expelled(index_t rank) const { return (segment_.header().expelled.load() >> rank & 1) != 0; }

  /// Shut a rank out for good. Any live rank may; of two that expel each other one succeeds.
  ///
  /// @param rank  another rank. Expelling it again changes nothing.
  /// @return `errc::stale_membership` when this rank was expelled itself.
  [[nodiscard]] status expel(index_t rank) {
    BALLAST_EXPECTS(rank >= 0 && rank < num_ranks_ && rank != rank_, "process_group: cannot expel that rank");
    auto& expelled = segment_.header().expelled;
    auto seen = expelled.load();
    do {
      if ((seen >> rank_ & 1) != 0) { return stale(); }
    } while (!expelled.compare_exchange_weak(seen, seen | std::uint64_t{1} << rank));
    ring_all();
    return {};
  }

  // ---- control ----

  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    std::vector<std::uint64_t> mine(values.size());
    std::transform(values.begin(), values.end(), mine.begin(), [](auto v) { return static_cast<std::uint64_t>(v); });
    std::vector<std::uint64_t> sums(values.size());
    auto const add = [&](index_t, std::size_t first, std::span<std::uint64_t const> words) {
      for (std::size_t i = 0; i < words.size(); ++i) { sums[first + i] += words[i]; }
    };
    auto result = exchange({"all_reduce", call_kind::reduce, values.size()}, mine, timeout, add, false);
    if (result.ok()) {
      std::transform(sums.begin(), sums.end(), values.begin(), [](auto v) { return static_cast<std::int64_t>(v); });
    }
    return result;
  }

  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    BALLAST_EXPECTS(all.size() == mine.size() * static_cast<std::size_t>(num_ranks_),
                    "all_gather: output is not R x words");
    auto const write = [&](index_t rank, std::size_t first, std::span<std::uint64_t const> words) {
      std::copy(words.begin(), words.end(),
                all.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(rank) * mine.size() + first));
    };
    return exchange({"all_gather", call_kind::gather, mine.size()}, mine, timeout, write, true);
  }

  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    BALLAST_EXPECTS(root >= 0 && root < num_ranks_, "broadcast: root out of range");
    if (is_expelled(root)) {
      return {errc::peer_lost, ballast::detail::concat("broadcast: root ", root, " was expelled")};
    }
    constexpr auto word = sizeof(std::uint64_t);
    std::vector<std::uint64_t> words((bytes.size() + word - 1) / word);
    std::vector<std::uint64_t> mine;
    if (rank_ == root) {
      if (!bytes.empty()) { std::memcpy(words.data(), bytes.data(), bytes.size()); }
      mine = words;
    }
    auto const take = [&](index_t rank, std::size_t first, std::span<std::uint64_t const> part) {
      if (rank == root) { std::copy(part.begin(), part.end(), words.begin() + static_cast<std::ptrdiff_t>(first)); }
    };
    // The root and the size in bytes are part of what has to be equal.
    auto const kind = call_kind::broadcast + (static_cast<std::uint64_t>(root) << 8) + (bytes.size() % word << 16);
    auto result = exchange({"broadcast", kind, words.size()}, mine, timeout, take, false);
    if (result.ok() && !bytes.empty()) { std::memcpy(bytes.data(), words.data(), bytes.size()); }
    return result;
  }

  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    auto const deadline = deadline_after(timeout);
    auto const expelled_before = segment_.header().expelled.load();
    if (is_expelled(rank_)) { return {decision::undecided, stale()}; }
    ++votes_;
    auto const blamed = yes ? suspicion{} : std::exchange(suspicion_, {});
    self().ballot.store(votes_ << ballot_shift | static_cast<std::uint64_t>(blamed.culprit) << 8 |
                        static_cast<std::uint64_t>(blamed.why) << 4 | (yes ? 1u : 0u));
    ring_all();
    bool const in_time = await([&] { return try_to_decide(expelled_before); }, deadline);
    if (!in_time) {
      decide({decision::drop, {cause::late, most_silent([&](index_t rank) { return !has_voted(rank); })}, {}});
    }
    ring_all();
    return read_decision();
  }

  /// Tell the last vote's outcome again; it is in shared memory.
  [[nodiscard]] vote_result recall(nanoseconds_t /*timeout*/) { return read_decision(); }

  // ---- for transports of this group ----

  [[nodiscard]] detail::segment const& shared() const noexcept { return segment_; }
  /// The failure of this rank's calls once it was expelled.
  [[nodiscard]] status stale() const {
    return {errc::stale_membership,
            ballast::detail::concat("rank ", rank_, " was expelled; the group is at membership ", membership())};
  }
  /// Dead, or gone of its own will.
  [[nodiscard]] bool is_lost(index_t rank) {
    return segment_.member_of(rank).left.load() != 0 || watches_[static_cast<std::size_t>(rank)].dead();
  }
  [[nodiscard]] status lost(std::string_view who, index_t rank) const {
    auto const& peer = segment_.member_of(rank);
    auto const* const how = is_expelled(rank)       ? "was expelled"
                            : peer.left.load() != 0 ? "has left the group"
                                                    : "is dead";
    return {errc::peer_lost, ballast::detail::concat(who, ": rank ", rank, " (process ", peer.process.pid, ") ", how)};
  }
  /// Whom to blame if this rank's next vote is a no: the others' reason then names that rank too.
  /// @param at_fault  it sent what it should not have; otherwise it is dead or late
  void suspect(index_t rank, bool at_fault = false) {
    suspicion_ = {at_fault ? cause::wrong : is_live(rank) ? cause::late : cause::lost, rank};
  }
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
  /// Nanoseconds since that rank gave a sign.
  [[nodiscard]] nanoseconds_t silence_of(index_t rank) const { return ballast::detail::now() - last_sign(rank); }
  /// Tell the others that this rank's batch has failed, and by whose fault if `suspect` was called: theirs, should they
  /// still be at work on it, is in vain.
  void give_up_batch() const noexcept {
    self().distress.store(pack(suspicion_));
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
      if (!by_ballot && other.distress_at.load() <= since) { continue; }
      auto const behind_it = unpack(by_ballot ? ballot >> 4 : other.distress.load());
      if (behind_it.why != cause::none && behind_it.culprit == rank_) { continue; }  // this rank knows better
      suspicion_ = behind_it.why != cause::none ? behind_it : suspicion{cause::voted_no, rank};
      return dropped_by(rank, by_ballot ? " voted no" : " gave up", behind_it);
    }
    return {};
  }
  /// Sleep until `done()` holds; it is asked again at every ring and every few milliseconds. @return false when late
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
  [[nodiscard]] static nanoseconds_t deadline_after(nanoseconds_t timeout) noexcept {
    auto const now = ballast::detail::now();
    return timeout > std::numeric_limits<nanoseconds_t>::max() - now ? std::numeric_limits<nanoseconds_t>::max()
                                                                     : now + timeout;
  }

private:
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

  // Rank 0: put a segment under the name, clearing away what a dead run left there.
  [[nodiscard]] static status publish(std::string const& path, index_t num_ranks, nanoseconds_t deadline,
                                      detail::segment& out) {
    detail::segment made;
    if (auto result = made.create(num_ranks, detail::this_process()); !result.ok()) { return result; }
    made.member_of(0).claimed.store(1);
    while (!made.publish(path)) {
      if (errno != EEXIST) { return detail::system_failure("process_group: cannot publish the segment", errno); }
      detail::segment other;
      if (other.open(path)) {
        auto const creator = other.header().creator;
        if (detail::process_watch{creator}.dead() || other.header().abandoned.load() != 0) {
          other.unpublish(path);
          continue;
        }
        if (ballast::detail::now() >= deadline) {
          return {errc::busy, ballast::detail::concat("process_group: ", path, " belongs to process ", creator.pid)};
        }
      } else if (ballast::detail::now() >= deadline) {
        return {errc::busy, ballast::detail::concat("process_group: ", path, " is taken by something else")};
      }
      ::usleep(poll_microseconds);
    }
    out = std::move(made);
    return {};
  }

  // Other ranks: wait for a segment whose creator lives and where this rank's place is free.
  [[nodiscard]] static status attach(std::string const& path, index_t rank, index_t num_ranks, nanoseconds_t deadline,
                                     detail::segment& out) {
    using ballast::detail::concat;
    for (;;) {
      detail::segment found;
      if (found.open(path) && !detail::process_watch{found.header().creator}.dead() &&
          found.header().abandoned.load() == 0) {
        if (found.header().pid_namespace != detail::pid_namespace()) {
          return {errc::transport_failed, "process_group: rank 0 lives in another process namespace"};
        }
        if (found.header().num_ranks != num_ranks) {
          return {errc::disagreement, concat("process_group: rank 0 expects ", found.header().num_ranks,
                                             " ranks, rank ", rank, " expects ", num_ranks)};
        }
        std::uint32_t unclaimed = 0;
        if (found.member_of(rank).claimed.compare_exchange_strong(unclaimed, 1)) {
          out = std::move(found);
          return {};
        }
      }
      if (ballast::detail::now() >= deadline) {
        return {errc::deadline_exceeded, concat("process_group: rank ", rank, " waited in vain for rank 0 at ", path)};
      }
      ::usleep(poll_microseconds);
    }
  }

  // Wait until everyone has joined, and start to watch them.
  [[nodiscard]] status meet(nanoseconds_t deadline) {
    auto& header = segment_.header();
    detail::process_watch creator{header.creator};
    bool const met =
        await([&] { return missing_members().empty() || header.abandoned.load() != 0 || creator.dead(); }, deadline);
    auto const missing = missing_members();
    if (!missing.empty()) {
      if (rank_ == 0) { header.abandoned.store(1); }
      return {met ? errc::peer_lost : errc::deadline_exceeded,
              ballast::detail::concat("process_group: ", missing, " did not join", met ? "; rank 0 gave up" : "")};
    }
    for (index_t rank = 0; rank < num_ranks_; ++rank) { watches_.emplace_back(segment_.member_of(rank).process); }
    return {};
  }
  [[nodiscard]] std::string missing_members() const {
    return names_of([&](index_t rank) { return segment_.member_of(rank).joined.load() == 0; });
  }

  // ---- collective calls ----

  // Post this rank's words piece by piece and hand every live rank's piece to `use(rank, first word, words)`. Every
  // rank counts the same calls whether they succeed or not, so that the next ones match again.
  template <class Use>
  [[nodiscard]] status exchange(call const& what, std::span<std::uint64_t const> mine, nanoseconds_t timeout, Use use,
                                bool stand_in) {
    auto const deadline = deadline_after(timeout);
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
    auto const is_missing = [&](index_t rank) {
      return (expelled >> rank & 1) == 0 && segment_.member_of(rank).posted.load() < number;
    };
    index_t gone = -1;
    bool const in_time = await(
        [&] {
          bool complete = true;
          for (index_t rank = 0; rank < num_ranks_; ++rank) {
            if (!is_missing(rank)) { continue; }
            complete = false;
            if (!is_live(rank) && is_missing(rank)) { gone = rank; }
          }
          return complete || gone >= 0 || is_expelled(rank_);
        },
        deadline);
    if (is_expelled(rank_)) { return stale(); }
    if (gone >= 0) {
      suspect(gone);
      return lost(what.name, gone);
    }
    auto const missing = names_of(is_missing);
    if (in_time || missing.empty()) { return {}; }
    if (auto const silent = most_silent(is_missing); silent >= 0) { suspect(silent); }
    return late(what.name, missing);
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
                                   [&](detail::mail const& mail) { return mail.number.load() == number; });
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
                                      segment_.member_of(rank).posted.load() - number, " calls further")};
    }
    if (kind != what.kind || total_words != what.total_words) {
      return {errc::disagreement,
              ballast::detail::concat("rank ", rank_, " calls ", what.name, " with ", what.total_words, " words, rank ",
                                      rank, " calls ", name_of(kind), " with ", total_words)};
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

  enum class cause : std::uint64_t { none, voted_no, lost, late, wrong };
  struct suspicion {
    cause why = cause::none;
    index_t culprit = 0;
  };
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
  [[nodiscard]] static std::uint64_t pack(suspicion const& what) noexcept {
    return static_cast<std::uint64_t>(what.culprit) << 4 | static_cast<std::uint64_t>(what.why);
  }
  [[nodiscard]] static suspicion unpack(std::uint64_t word) noexcept {
    return {static_cast<cause>(word & 0xf), static_cast<index_t>(word >> 4 & 0xff)};
  }
  [[nodiscard]] std::uint64_t pack(verdict const& what) const noexcept {
    return votes_ << decision_shift | pack(what.behind_it) << 16 | pack(what.reason) << 4 |
           (what.outcome == decision::commit ? 1u : 2u);
  }
  [[nodiscard]] std::atomic<std::uint64_t>& decision_word() const noexcept {
    return segment_.header().decisions[votes_ % detail::num_decisions];
  }

  // The first verdict stands.
  void decide(verdict const& what) const noexcept {
    auto& word = decision_word();
    auto seen = word.load();
    while (seen >> decision_shift < votes_ && !word.compare_exchange_weak(seen, pack(what))) {}
  }

  // True once the vote has an outcome, here or elsewhere.
  [[nodiscard]] bool try_to_decide(std::uint64_t expelled_before) {
    if (decision_word().load() >> decision_shift >= votes_ || is_expelled(rank_)) { return true; }
    bool complete = true;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if ((expelled_before >> rank & 1) != 0) { continue; }
      auto const ballot = ballot_of(rank);
      if (ballot >> ballot_shift == votes_ && (ballot & 1) == 0) {
        decide({decision::drop, {cause::voted_no, rank}, unpack(ballot >> 4)});
        return true;
      }
      if (has_voted(rank)) { continue; }
      complete = false;
      if (!is_live(rank) && !has_voted(rank)) {
        decide({decision::drop, {cause::lost, rank}, {}});
        return true;
      }
    }
    if (complete) { decide({decision::commit, {}, {}}); }
    return complete;
  }

  [[nodiscard]] vote_result read_decision() const {
    using ballast::detail::concat;
    if (is_expelled(rank_)) { return {decision::undecided, stale()}; }
    auto const word = decision_word().load();
    if (word >> decision_shift != votes_) {
      return {
          decision::undecided,
          {errc::deadline_exceeded, concat("vote ", votes_, ": rank ", rank_, " is too late to learn the outcome")}};
    }
    if ((word & 0xf) == 1) { return {decision::commit, {}}; }
    auto const reason = unpack(word >> 4);
    switch (reason.why) {
      case cause::lost: return {decision::drop, lost("vote", reason.culprit)};
      case cause::voted_no: return {decision::drop, dropped_by(reason.culprit, " voted no", unpack(word >> 16))};
      default: return {decision::drop, late("vote", concat("rank ", reason.culprit))};
    }
  }
  [[nodiscard]] static status dropped_by(index_t rank, char const* how, suspicion const& behind_it) {
    using ballast::detail::concat;
    auto const what = concat("rank ", rank, how);
    switch (behind_it.why) {
      case cause::voted_no:
        return {errc::transport_failed, concat(what, " because rank ", behind_it.culprit, " failed")};
      case cause::lost: return {errc::peer_lost, concat(what, " because rank ", behind_it.culprit, " is lost")};
      case cause::late:
        return {errc::deadline_exceeded, concat(what, " because rank ", behind_it.culprit, " was late")};
      case cause::wrong:
        return {errc::transport_failed, concat(what, " because of what rank ", behind_it.culprit, " sent")};
      default: return {errc::transport_failed, what};
    }
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
  [[nodiscard]] static status late(std::string_view what, std::string_view who) {
    return {errc::deadline_exceeded, ballast::detail::concat(what, ": ", who, " did not come in time")};
  }

  static constexpr ::useconds_t poll_microseconds = 1000;

  detail::segment segment_;
  std::vector<detail::process_watch> watches_;  // [R]
  index_t rank_ = 0;
  index_t num_ranks_ = 0;
  std::uint64_t calls_ = 0;  // pieces of collective calls, counted alike on every rank
  std::uint64_t posts_ = 0;
  std::uint64_t votes_ = 0;
  suspicion suspicion_;  // what the next no will say
  std::vector<std::uint64_t> read_words_;
};

static_assert(control_plane<process_group>);

}  // namespace posix
BALLAST_END_NAMESPACE

#endif
