// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CONTROL_ENGINE_CONTROL_HPP
#define BALLAST_CONTROL_ENGINE_CONTROL_HPP

#include <ballast/contract.hpp>
#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/reset_by_move.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

namespace detail {

/// How the last votes of a rank ended, two bits each in one word.
class vote_history {
public:
  enum class outcome : std::uint64_t {
    never,  ///< this rank has not made that vote
    undecided,
    commit,
    drop,
    forgotten,  ///< too long ago; never stored
  };
  static constexpr std::uint64_t kept = 31;

  vote_history() = default;
  vote_history(std::uint64_t last, std::uint64_t word) noexcept : last_{last}, word_{word} {}

  /// Number of the last vote that ended; the first is 1.
  [[nodiscard]] std::uint64_t last() const noexcept { return last_; }
  [[nodiscard]] std::uint64_t word() const noexcept { return word_; }

  /// How vote `number` ended here.
  [[nodiscard]] outcome of(std::uint64_t number) const noexcept {
    if (number > last_) { return outcome::never; }
    if (last_ - number >= kept) { return outcome::forgotten; }
    constexpr outcome stored[] = {outcome::never, outcome::undecided, outcome::commit, outcome::drop};
    return stored[word_ >> shift(number) & 3];
  }
  /// The last vote of all that are undecided, 0 if none is.
  [[nodiscard]] std::uint64_t last_undecided() const noexcept {
    for (std::uint64_t age = 0; age < kept && age < last_; ++age) {
      if (of(last_ - age) == outcome::undecided) { return last_ - age; }
    }
    return 0;
  }

  /// The next vote has ended.
  void add(outcome how) noexcept {
    skip_to(last_ + 1);
    set(last_, how);
  }
  /// An undecided vote is settled. @pre it is not forgotten
  void set(std::uint64_t number, outcome how) noexcept {
    word_ &= ~(std::uint64_t{3} << shift(number));
    word_ |= static_cast<std::uint64_t>(how) << shift(number);
  }
  /// Votes up to `number` are not made here.
  void skip_to(std::uint64_t number) noexcept {
    auto const skipped = number - last_;
    constexpr auto all = (std::uint64_t{1} << 2 * kept) - 1;
    word_ = skipped >= kept ? 0 : word_ << 2 * skipped & all;
    last_ = number;
  }

private:
  [[nodiscard]] std::uint64_t shift(std::uint64_t number) const noexcept { return 2 * (last_ - number); }

  std::uint64_t last_ = 0;
  std::uint64_t word_ = 0;  // the last vote in the lowest bits
};

}  // namespace detail

/// An engine's all-gather: writes rank r's words to `all[r * mine.size() ..]` on every rank, or fails after at most
/// `timeout` nanoseconds naming the rank that is missing.
///
/// @par Semantics
/// All ranks call it with the same number of words. A call may succeed on one rank and fail on another; whoever
/// succeeds sees the same words. A call that failed on a rank does not leave its words to be taken for those of a later
/// call of that rank. A call that fails because *others* have stopped waiting says `errc::deadline_exceeded` and may do
/// so before its own deadline. Words of a rank that the group has expelled are replaced by those of the lowest live
/// rank. What it throws becomes a failure of the call.
template <class F>
concept all_gather_function =
    requires(F& f, std::span<std::uint64_t const> mine, std::span<std::uint64_t> all, nanoseconds_t timeout) {
      { f(mine, all, timeout) } -> std::same_as<status>;
    };

/// What a control plane of an engine may use instead of its defaults.
struct engine_control_options {
  std::size_t frame_words = 1024;  ///< words of each all-gather, the same on all ranks; larger calls take several
};

/// The membership of groups that never expel a rank.
struct fixed_membership {
  [[nodiscard]] std::uint64_t operator()() const noexcept { return 1; }
};

/// A control plane on the channel that an engine already has: give it an all-gather, it derives everything else.
///
/// Every call is one or more all-gathers of frames. A frame starts with what its sender is doing, which call of which
/// generation, and how its last 31 votes ended. So a rank that is behind is told so instead of being misunderstood, and
/// whatever the others do next answers a rank that recalls a vote; they then repeat their frame, no longer than until
/// their own deadline.
///
/// @par Votes
/// A vote commits on a rank that sees a yes of everyone in one all-gather. A rank that said yes and then saw its
/// all-gather fail is `undecided`; nobody else is. Every all-gather that succeeds settles it: commit if any rank has
/// committed, else drop. That is safe. A rank has left a vote before it recalls it, makes a later call, or regroups,
/// and never says yes in it again. So once all frames are there, one of them from such a rank, nobody can commit any
/// more who has not by then, and whoever has says so in its frame.
///
/// @par Regrouping
/// Ranks propose a number for the next generation, at least one more than any they have seen, and take the largest
/// proposal. The generation begins for a rank that sees everyone propose the same; a rank whose all-gather failed just
/// then learns from the next frame of the others that it has begun. Votes go on from the largest number that any rank
/// had. A rank that regroups makes no other call until it has succeeded, so whoever meets it elsewhere fails at once.
/// Its all-gathers settle votes that are undecided, as those of `recall` do.
///
/// What was moved from is of no rank's group: its calls fail with `errc::invalid_option`.
///
/// @tparam AllGather   `all_gather_function`.
/// @tparam Membership  tells the group's membership epoch.
/// @threads that of the callables.
template <all_gather_function AllGather, class Membership = fixed_membership>
class engine_control {
public:
  /// @param rank        this rank, in [0, num_ranks).
  /// @param num_ranks   R, at least 1.
  /// @param all_gather  the channel.
  /// @throws std::bad_alloc, or std::system_error with `errc::invalid_option` that names the value
  engine_control(index_t rank, index_t num_ranks, AllGather all_gather, engine_control_options const& options = {},
                 Membership membership = {})
      : rank_{rank},
        num_ranks_{num_ranks},
        all_gather_{std::move(all_gather)},
        membership_{std::move(membership)},
        payload_words_{options.frame_words - num_header_words} {
    validate(rank, num_ranks, options).or_throw();
    frame_.resize(options.frame_words);
    frames_.resize(options.frame_words * static_cast<std::size_t>(num_ranks));
    expelled_.resize(static_cast<std::size_t>(num_ranks));
  }

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] std::uint64_t membership() const { return membership_(); }
  /// Whether the group has shut that rank out, as of the last all-gather that went well here: another rank's words
  /// stood in for its own. @param rank in [0, R)
  [[nodiscard]] bool is_expelled(index_t rank) const {
    BALLAST_EXPECTS_BELOW(rank, num_ranks(), "is_expelled: rank");
    return expelled_[static_cast<std::size_t>(rank)];
  }

  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    if (auto refusal = begin_call(); !refusal.ok()) { return refusal; }
    std::vector<std::uint64_t> mine(values.size());
    std::transform(values.begin(), values.end(), mine.begin(), [](auto v) { return static_cast<std::uint64_t>(v); });
    std::vector<std::uint64_t> sums(values.size());
    auto result = call({activity::reduces, 0, values.size()}, mine, timeout,
                       [this, &sums](index_t rank, std::size_t first, std::span<std::uint64_t const> words) {
                         if (!is_live(rank)) { return; }
                         for (std::size_t i = 0; i < words.size(); ++i) { sums[first + i] += words[i]; }
                       });
    if (result.ok()) {
      std::transform(sums.begin(), sums.end(), values.begin(), [](auto v) { return static_cast<std::int64_t>(v); });
    }
    return result;
  }

  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    if (auto refusal = begin_call(); !refusal.ok()) { return refusal; }
    if (all.size() != mine.size() * static_cast<std::size_t>(num_ranks())) {
      return {errc::invalid_option, detail::concat("all_gather: the output has ", all.size(), " words, not ",
                                                   mine.size(), " of each of ", num_ranks(), " ranks")};
    }
    return call({activity::gathers, 0, mine.size()}, mine, timeout,
                [&mine, &all](index_t rank, std::size_t first, std::span<std::uint64_t const> words) {
                  auto const at = static_cast<std::size_t>(rank) * mine.size() + first;
                  std::copy(words.begin(), words.end(), all.begin() + static_cast<std::ptrdiff_t>(at));
                });
  }

  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    if (auto refusal = begin_call(); !refusal.ok()) { return refusal; }
    if (root < 0 || root >= num_ranks_) {
      return {errc::invalid_option, detail::concat("broadcast: root ", root, " of ", num_ranks(), " ranks")};
    }
    std::vector<std::uint64_t> words((bytes.size() + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t));
    if (rank_ == root && !bytes.empty()) { std::memcpy(words.data(), bytes.data(), bytes.size()); }
    auto const mine = words;
    bool is_root_live = true;
    auto result = call(
        {activity::broadcasts, root, bytes.size()}, mine, timeout,
        [this, &root, &is_root_live, &words](index_t rank, std::size_t first, std::span<std::uint64_t const> part) {
          if (rank != root) { return; }
          is_root_live = is_live(root);
          std::copy(part.begin(), part.end(), words.begin() + static_cast<std::ptrdiff_t>(first));
        });
    if (result.ok() && !is_root_live) {
      return {errc::peer_lost, detail::concat("broadcast: root rank ", root, " was expelled"), root};
    }
    if (result.ok() && !bytes.empty()) { std::memcpy(bytes.data(), words.data(), bytes.size()); }
    return result;
  }

  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) { return cast(yes ? ballot_of_yes : 0, timeout); }
  /// The same, of a rank that says no because of `why`, of which the code and the rank travel.
  [[nodiscard]] vote_result vote_no(status const& why, nanoseconds_t timeout) {
    return cast(reason_bits(why.ok() ? status{} : with_culprit(why)), timeout);
  }

  /// Settle the last vote if it was undecided here; see `control_plane`. Works also after `give_up`.
  [[nodiscard]] vote_result recall(nanoseconds_t timeout) {
    auto const number = votes_.last_undecided();
    if (number == 0) { return told_again(last_made_); }
    if (auto refusal = refuse_moved_from(); !refusal.ok()) { return {decision::undecided, std::move(refusal)}; }
    fill_header({activity::recalls, 0, number}, 0);
    if (auto result = gather_again(detail::deadline_after(timeout)); !result.ok()) {
      return {decision::undecided, std::move(result)};
    }
    settle_votes();
    return told_again(number);
  }

  /// Meet all live ranks and number calls and votes anew; see `control_plane`.
  ///
  /// It also settles votes that are undecided here, as `recall` does, which then tells their outcome without asking.
  ///
  /// @return `errc::deadline_exceeded` naming a rank that does not regroup; or what the all-gather says.
  [[nodiscard]] status regroup(nanoseconds_t timeout) {
    if (auto refusal = refuse_moved_from(); !refusal.ok()) { return refusal; }
    if (given_up_.ok()) { given_up_ = {errc::transport_failed, "it has to regroup", trouble().rank()}; }
    auto const deadline = detail::deadline_after(timeout);
    for (;;) {
      fill_header({activity::regroups, 0, 0}, 0);
      if (auto result = gather_again(deadline); !result.ok()) { return result; }
      settle_votes();
      if (begins_generation()) { return {}; }
      if (detail::time_until(deadline) == 0) { return late_to_regroup(); }
    }
  }

  /// Make no call until `regroup`; see `control_plane`. The others hear of it when they meet the frames of `regroup` or
  /// `recall`.
  void give_up(status const& why) {
    if (!given_up_.ok()) { return; }
    given_up_ = with_culprit(why.ok() ? status{errc::transport_failed, "without a reason"} : why);
  }

  /// What the last call told; see `control_plane`.
  [[nodiscard]] status trouble() const {
    if (!given_up_.ok()) {
      auto const culprit = given_up_.rank() == status::no_rank ? rank_ : given_up_.rank();
      return {given_up_.code(), detail::concat("rank ", rank_, " has given up: ", given_up_.message()), culprit};
    }
    return out_of_step_.ok() ? lost_ : out_of_step_;
  }

private:
  using outcome = detail::vote_history::outcome;
  enum class activity : std::uint64_t { recalls = 1, reduces, gathers, broadcasts, votes, regroups, none };
  // What all ranks must be doing alike.
  struct call_identity {
    activity what;
    index_t root;
    std::uint64_t size;  // of votes and recalls: the vote's number

    bool operator==(call_identity const&) const = default;
  };
  struct frame_header {
    call_identity identity;
    bool has_given_up;
    index_t sender;
    index_t culprit;  // whom a sender that has given up blames, maybe itself; -1 when it says nothing of that
    errc why;
    std::uint64_t generation;
    std::uint64_t call;
    std::uint64_t piece;
    detail::vote_history votes;
    std::uint64_t first_vote;  // votes up to this one are of older generations
    std::uint64_t proposal;
  };
  static constexpr std::size_t num_header_words = 10;
  static constexpr std::uint64_t given_up_bit = std::uint64_t{1} << 63;

  [[nodiscard]] static status validate(index_t rank, index_t num_ranks, engine_control_options const& options) {
    if (num_ranks < 1 || rank < 0 || rank >= num_ranks) {
      return {errc::invalid_option, detail::concat("engine_control: rank ", rank, " of ", num_ranks, " ranks")};
    }
    if (options.frame_words <= num_header_words) {
      return {errc::invalid_option, detail::concat("engine_control: frame_words is ", options.frame_words,
                                                   ", a header alone takes ", num_header_words)};
    }
    constexpr auto most_words = std::numeric_limits<std::size_t>::max() / sizeof(std::uint64_t);
    if (options.frame_words > most_words / static_cast<std::size_t>(num_ranks)) {
      return {errc::invalid_option, detail::concat("engine_control: frame_words is ", options.frame_words,
                                                   ", too many for ", num_ranks, " ranks")};
    }
    return {};
  }

  // ---- calls ----

  // It has no frame left then.
  [[nodiscard]] status refuse_moved_from() const {
    return frame_.empty() ? status{errc::invalid_option, "engine_control: it was moved from"} : status{};
  }
  // Until it regroups, nothing that needs a rank that has given up can succeed. Calls are counted however they end.
  [[nodiscard]] status begin_call() {
    if (auto refusal = refuse_moved_from(); !refusal.ok()) { return refusal; }
    if (!given_up_.ok() || !out_of_step_.ok()) { return trouble(); }
    ++calls_;
    return {};
  }

  // Exchange this rank's words piece by piece; `use(rank, first word, words)` gets everyone's.
  template <class Use>
  [[nodiscard]] status call(call_identity const& identity, std::span<std::uint64_t const> mine, nanoseconds_t timeout,
                            Use use) {
    auto const deadline = detail::deadline_after(timeout);
    auto const pieces = std::max<std::size_t>(1, (mine.size() + payload_words_ - 1) / payload_words_);
    for (std::size_t piece = 0; piece < pieces; ++piece) {
      auto const first = piece * payload_words_;
      auto const size = std::min(payload_words_, mine.size() - first);
      auto result = exchange(identity, piece, mine.subspan(first, size), deadline);
      if (!result.ok()) { return result; }
      for (index_t rank = 0; rank < num_ranks_; ++rank) {
        use(rank, first, frame_of(rank).subspan(num_header_words, size));
      }
    }
    return {};
  }

  // One piece. Ranks that are ahead, or that meet a recall, repeat their frame.
  [[nodiscard]] status exchange(call_identity const& identity, std::size_t piece, std::span<std::uint64_t const> words,
                                nanoseconds_t deadline) {
    fill_header(identity, piece);
    std::copy(words.begin(), words.end(), frame_.begin() + num_header_words);
    for (;;) {
      if (auto result = gather(deadline); !result.ok()) { return result; }
      if (auto result = find_out_of_step(); !result.ok()) { return result; }
      bool together = false;
      if (auto result = compare(identity, piece, together); !result.ok() || together) { return result; }
      if (detail::time_until(deadline) == 0) { return late(piece); }
    }
  }

  // Is there a rank that this one cannot make any call with before it regroups? Of several the one that knows most of
  // why: one that has a reason of its own, then one that blames another rank.
  [[nodiscard]] status find_out_of_step() {
    int known = -1;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      auto const other = header_of(rank);
      if (!is_live(rank)) { continue; }
      if (other.has_given_up && other.proposal > generation_) {
        int const knows = knowledge_of(rank, other.culprit);
        if (knows > known) { out_of_step_ = gave_up(rank, other); }
        known = std::max(known, knows);
      } else if (known < 0 &&
                 (other.generation > generation_ || (other.generation < generation_ && !other.has_given_up))) {
        known = 0;
        out_of_step_ = {errc::transport_failed,
                        detail::concat("rank ", rank, " has regrouped ", other.generation, " times, rank ", rank_, " ",
                                       generation_, " times"),
                        rank};
      }
    }
    return out_of_step_;
  }
  // How much a rank knows of why it cannot go on, by whom it blames, -1: nobody.
  [[nodiscard]] static int knowledge_of(index_t rank, index_t culprit) noexcept {
    return culprit == rank ? 2 : culprit >= 0 ? 1 : 0;
  }
  [[nodiscard]] static status gave_up(index_t rank, frame_header const& other) {
    auto const* const what =
        other.identity.what == activity::recalls ? " has given up and recalls a vote" : " has given up and regroups";
    auto text = detail::concat("rank ", rank, what);
    if (other.culprit < 0) { return {errc::transport_failed, std::move(text), rank}; }
    if (other.culprit != rank) { text += detail::concat(" because of rank ", other.culprit); }
    auto const why = make_error_code(other.why);
    return {why, detail::concat(text, ": ", why.message()), other.culprit};
  }

  // Are all ranks at the same piece of the same call?
  [[nodiscard]] status compare(call_identity const& identity, std::size_t piece, bool& together) const {
    together = true;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      auto const other = header_of(rank);
      if (!is_live(rank)) { continue; }
      if (identity.what == activity::votes && other.votes.last() >= identity.size) {
        return {errc::deadline_exceeded,
                detail::concat("vote ", identity.size, ": rank ", rank, " has stopped waiting for the others"), rank};
      }
      if (is_behind(other, piece)) {
        together = false;
      } else if (other.call > calls_ || other.piece > piece) {
        return {errc::deadline_exceeded,
                detail::concat("rank ", rank_, " is late: rank ", rank, " is at call ", other.call,
                               ", this rank at call ", calls_),
                rank_};
      } else if (other.identity != identity) {
        return {errc::disagreement,
                detail::concat("rank ", rank_, " and rank ", rank,
                               " make different calls, or of different sizes, as call ", calls_),
                rank};
      }
    }
    return {};
  }
  [[nodiscard]] bool is_behind(frame_header const& other, std::size_t piece) const {
    return other.identity.what == activity::recalls || other.generation < generation_ || other.call < calls_ ||
           (other.call == calls_ && other.piece < piece);
  }
  [[nodiscard]] status late(std::size_t piece) const {
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      auto const other = header_of(rank);
      if (!is_live(rank) || !is_behind(other, piece)) { continue; }
      auto const* const what = other.identity.what == activity::recalls ? " recalled a vote until the deadline of call "
                               : other.generation < generation_         ? " did not regroup in time for call "
                                                                        : " did not come in time to call ";
      return {errc::deadline_exceeded, detail::concat("rank ", rank, what, calls_), rank};
    }
    return {errc::deadline_exceeded, detail::concat("the deadline of call ", calls_, " has passed")};
  }

  // ---- votes ----

  // A ballot is a yes, or why not: as in a frame's header, nothing where it says nothing.
  static constexpr std::uint64_t ballot_of_yes = 1;

  [[nodiscard]] vote_result cast(std::uint64_t ballot, nanoseconds_t timeout) {
    if (auto refusal = begin_call(); !refusal.ok()) { return {decision::drop, std::move(refusal)}; }
    bool const yes = ballot == ballot_of_yes;
    // It counts from here on, whatever happens; but this rank's frames tell of the votes that it has left.
    votes_left_ = votes_;
    votes_.add(outcome::undecided);
    auto const number = votes_.last();
    last_made_ = number;
    auto result = exchange({activity::votes, 0, number}, 0, {&ballot, 1}, detail::deadline_after(timeout));
    auto how = outcome::drop;  // nobody commits against this rank's no
    if (result.ok()) {
      result = votes_against();
      how = result.ok() ? outcome::commit : outcome::drop;
    } else if (yes) {
      how = heard_ ? outcome_among_frames(number) : outcome::undecided;
    }
    votes_.set(number, how);
    if (how == outcome::commit) { return {decision::commit, {}}; }
    last_failure_ = result;
    return {decision_of(how), std::move(result)};
  }

  // All that said no are named, and of their reasons the one is told that says most: a reason of its own, then one that
  // blames another rank.
  [[nodiscard]] status votes_against() const {
    std::string names;
    index_t told = status::no_rank;
    int known = -1;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      auto const ballot = frame_of(rank)[num_header_words];
      if (!is_live(rank) || ballot == ballot_of_yes) { continue; }
      names += detail::concat(names.empty() ? "rank " : ", rank ", rank);
      int const knows = knowledge_of(rank, culprit_in(ballot));
      if (knows > known) { told = rank; }
      known = std::max(known, knows);
    }
    if (names.empty()) { return {}; }
    names += " voted no";
    if (known == 0) { return {errc::transport_failed, std::move(names), told}; }
    auto const ballot = frame_of(told)[num_header_words];
    auto const culprit = culprit_in(ballot);
    auto const why = make_error_code(code_in(ballot));
    auto const because = culprit == told ? std::string{} : detail::concat(" because of rank ", culprit);
    return {why, detail::concat(names, "; rank ", told, because, ": ", why.message()), culprit};
  }

  // How a vote ended that this rank has left without knowing. All frames are there, so nobody can commit any more who
  // has not; see the class.
  [[nodiscard]] outcome outcome_among_frames(std::uint64_t number) const {
    auto how = outcome::drop;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      auto const theirs = header_of(rank).votes.of(number);
      if (theirs == outcome::commit) { return outcome::commit; }
      if (theirs == outcome::forgotten) { how = outcome::undecided; }
    }
    return how;
  }

  void settle_votes() {
    for (auto open = votes_.last_undecided(); open != 0; open = votes_.last_undecided()) {
      auto const how = outcome_among_frames(open);
      if (how == outcome::undecided) { return; }
      votes_.set(open, how);
    }
  }

  [[nodiscard]] static decision decision_of(outcome how) noexcept {
    if (how == outcome::commit) { return decision::commit; }
    return how == outcome::undecided || how == outcome::forgotten ? decision::undecided : decision::drop;
  }
  [[nodiscard]] vote_result told_again(std::uint64_t number) const {
    auto const how = votes_.of(number);
    if (how == outcome::commit) { return {decision::commit, {}}; }
    auto const* const what = how == outcome::drop    ? " was dropped: no rank has committed it"
                             : how == outcome::never ? " was not made"
                                                     : " is undecided: it was too long ago to be told";
    auto const code = last_failure_.ok() ? make_error_code(errc::deadline_exceeded) : last_failure_.code();
    auto const* const colon = last_failure_.ok() ? "" : "; ";
    return {decision_of(how),
            {code, detail::concat("vote ", number, what, colon, last_failure_.message()), last_failure_.rank()}};
  }

  // ---- regrouping ----

  // Has everyone proposed the same, or have others seen so? Otherwise take the largest proposal.
  [[nodiscard]] bool begins_generation() {
    bool unanimous = true;
    index_t member = -1;  // of the generation that this rank proposes
    std::uint64_t newest = 0, largest = 0, last_vote = 0;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      auto const other = header_of(rank);
      unanimous = unanimous && other.identity.what == activity::regroups && other.proposal == proposal_;
      if (other.generation == proposal_) { member = rank; }
      newest = std::max(newest, other.generation);
      if (other.has_given_up) { largest = std::max(largest, other.proposal); }
      last_vote = std::max(last_vote, other.votes.last());
    }
    if (unanimous) {
      begin_generation(last_vote);
    } else if (newest == proposal_ && largest == proposal_) {
      begin_generation(header_of(member).first_vote);
    } else {
      proposal_ = std::max({proposal_, largest, newest + 1});
      return false;
    }
    return true;
  }
  void begin_generation(std::uint64_t last_vote) {
    generation_ = proposal_++;
    calls_ = 0;
    votes_.skip_to(std::max(last_vote, votes_.last()));  // no number is ever used twice
    first_vote_ = last_vote;
    given_up_ = out_of_step_ = lost_ = {};
  }
  [[nodiscard]] status late_to_regroup() const {
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      auto const other = header_of(rank);
      if (other.identity.what != activity::regroups) {
        return {errc::deadline_exceeded, detail::concat("regroup: rank ", rank, " did not come in time"), rank};
      }
    }
    return {errc::deadline_exceeded, "regroup: the deadline passed before all ranks had proposed the same"};
  }

  // ---- frames ----

  // Others' deadlines may end an all-gather before this rank's own. What only asks may then ask again.
  [[nodiscard]] status gather_again(nanoseconds_t deadline) {
    constexpr nanoseconds_t pause = 1'000'000;
    for (;;) {
      auto result = gather(deadline);
      auto const left = detail::time_until(deadline);
      if (result.code() != make_error_code(errc::deadline_exceeded) || left == 0) { return result; }
      detail::sleep_for(std::min(pause, left));
    }
  }

  [[nodiscard]] status gather(nanoseconds_t deadline) {
    // Less than the largest timeout, so that an all-gather may add the time of day to it.
    constexpr auto longest = std::numeric_limits<nanoseconds_t>::max() / 2;
    auto result = ask(std::min(detail::time_until(deadline), longest));
    if (result.ok()) { result = check_frames(); }
    heard_ = result.ok();
    for (index_t rank = 0; heard_ && rank < num_ranks_; ++rank) {
      expelled_[static_cast<std::size_t>(rank)] = !is_live(rank);
    }
    bool const is_out =
        result.code() == make_error_code(errc::peer_lost) || result.code() == make_error_code(errc::stale_membership);
    if (is_out || heard_) { lost_ = result; }
    return result;
  }
  [[nodiscard]] status ask(nanoseconds_t timeout) {
    std::span<std::uint64_t const> const mine{frame_};
    std::span<std::uint64_t> const all{frames_};
#if defined(__cpp_exceptions)
    try {
      return all_gather_(mine, all, timeout);
    } catch (std::exception const& error) {
      return {errc::transport_failed, detail::concat("the all-gather of rank ", rank_, " threw: ", error.what()),
              rank_};
    } catch (...) {
      return {errc::transport_failed, detail::concat("the all-gather of rank ", rank_, " threw"), rank_};
    }
#else
    return all_gather_(mine, all, timeout);
#endif
  }

  // Every rank's frame is in its place; expelled ranks have that of the lowest live one.
  [[nodiscard]] status check_frames() const {
    index_t lowest = -1;
    for (index_t rank = 0; rank < num_ranks_ && lowest < 0; ++rank) {
      if (is_live(rank)) { lowest = rank; }
    }
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      bool const known =
          header_of(rank).identity.what >= activity::recalls && header_of(rank).identity.what < activity::none;
      if (known && (is_live(rank) || (rank != rank_ && stands_in(lowest, rank)))) { continue; }
      return {
          errc::transport_failed,
          detail::concat("the all-gather gave rank ", rank_, " as rank ", rank, "'s words what that rank did not send"),
          rank};
    }
    auto const own = frame_of(rank_);
    if (!std::ranges::equal(own.first(num_header_words), std::span{frame_}.first(num_header_words))) {
      return {errc::transport_failed, detail::concat("the all-gather gave rank ", rank_, " an old frame of its own"),
              rank_};
    }
    return {};
  }
  [[nodiscard]] bool stands_in(index_t lowest, index_t rank) const {
    constexpr bool may_expel = !std::is_same_v<Membership, fixed_membership>;
    return may_expel && lowest >= 0 && std::ranges::equal(frame_of(lowest), frame_of(rank));
  }
  // Expelled ranks have no frame of their own.
  [[nodiscard]] bool is_live(index_t rank) const noexcept { return header_of(rank).sender == rank; }

  void fill_header(call_identity const& identity, std::size_t piece) {
    std::fill(frame_.begin(), frame_.end(), std::uint64_t{0});
    frame_[0] = (given_up_.ok() ? 0 : given_up_bit) | static_cast<std::uint64_t>(identity.what) << 32 |
                static_cast<std::uint64_t>(identity.root);
    frame_[1] = identity.size;
    frame_[2] = reason_bits(given_up_) | static_cast<std::uint64_t>(rank_);
    frame_[3] = generation_;
    frame_[4] = calls_;
    frame_[5] = piece;
    auto const& votes = identity.what == activity::votes ? votes_left_ : votes_;
    frame_[6] = votes.last();
    frame_[7] = votes.word();
    frame_[8] = first_vote_;
    frame_[9] = proposal_;
  }
  // A failure that names nobody is this rank's own.
  [[nodiscard]] status with_culprit(status const& why) const {
    return why.rank() == status::no_rank ? status{why.code(), why.message(), rank_} : why;
  }
  // Whom this rank blames for a failure, plus one, and its code: as much of the reason as has room. Nothing where it
  // blames nobody.
  [[nodiscard]] static std::uint64_t reason_bits(status const& why) noexcept {
    if (why.rank() == status::no_rank) { return 0; }
    return static_cast<std::uint64_t>(detail::code_for_others(why)) << 56 | (static_cast<std::uint64_t>(why.rank()) + 1)
                                                                                << 32;
  }
  [[nodiscard]] static index_t culprit_in(std::uint64_t bits) noexcept {
    return static_cast<index_t>(bits >> 32 & 0xffffff) - 1;
  }
  [[nodiscard]] static errc code_in(std::uint64_t bits) noexcept {
    return bits >> 56 != 0 ? static_cast<errc>(bits >> 56) : errc::transport_failed;
  }
  [[nodiscard]] std::span<std::uint64_t const> frame_of(index_t rank) const noexcept {
    return std::span{frames_}.subspan(static_cast<std::size_t>(rank) * frame_.size(), frame_.size());
  }
  [[nodiscard]] frame_header header_of(index_t rank) const noexcept {
    auto const words = frame_of(rank);
    auto const what = static_cast<activity>((words[0] & ~given_up_bit) >> 32);
    return {{what, static_cast<index_t>(words[0] & 0xffffffff), words[1]},
            (words[0] & given_up_bit) != 0,
            static_cast<index_t>(words[2] & 0xffffffff),
            culprit_in(words[2]),
            code_in(words[2]),
            words[3],
            words[4],
            words[5],
            {words[6], words[7]},
            words[8],
            words[9]};
  }

  index_t rank_;
  detail::reset_by_move<index_t> num_ranks_;
  AllGather all_gather_;
  [[no_unique_address]] Membership membership_;
  std::size_t payload_words_;
  std::vector<std::uint64_t> frame_;
  std::vector<std::uint64_t> frames_;  // [R, frame]
  bool heard_ = false;                 // the last all-gather succeeded: all frames are there
  std::vector<bool> expelled_;         // [R] whose frame was another's in the last that did

  std::uint64_t generation_ = 0;
  std::uint64_t proposal_ = 1;  // for the next generation
  std::uint64_t calls_ = 0;     // of this generation. Recalls are not counted: the others do not make them
  detail::vote_history votes_;
  detail::vote_history votes_left_;  // before the vote that this rank is in
  std::uint64_t last_made_ = 0;      // by this rank
  std::uint64_t first_vote_ = 0;     // last vote before this generation

  status last_failure_;  // of a vote
  status given_up_;      // why, until the next regroup
  status out_of_step_;   // a peer that this rank has to regroup with
  status lost_;          // a peer that was dead, or this rank expelled, in the last all-gather
};

BALLAST_END_NAMESPACE

#endif
