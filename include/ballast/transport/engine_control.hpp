// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TRANSPORT_ENGINE_CONTROL_HPP
#define BALLAST_TRANSPORT_ENGINE_CONTROL_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// An engine's all-gather: writes rank r's words to `all[r * mine.size() ..]` on every rank, or fails after at most
/// `timeout` nanoseconds naming the rank that is missing. All ranks call it with the same number of words, and a call
/// that failed on one rank does not leave its words to be taken for those of a later call.
template <class F>
concept all_gather_function =
    requires(F& f, std::span<std::uint64_t const> mine, std::span<std::uint64_t> all, nanoseconds_t timeout) {
      { f(mine, all, timeout) } -> std::same_as<status>;
    };

/// What a control plane of an engine may use instead of its defaults.
struct engine_control_options {
  std::size_t frame_words = 1024;  ///< words of each all-gather; larger calls take several
};

/// The membership of groups that never expel a rank.
struct fixed_membership {
  [[nodiscard]] std::uint64_t operator()() const noexcept { return 1; }
};

/// A control plane on the channel that an engine already has: give it an all-gather, it derives everything else.
///
/// Every call is one or more all-gathers of frames. A frame starts with what its sender is doing: the number of its
/// call, and the outcome of its last vote. So a rank that is behind is told so instead of being misunderstood, and a
/// rank that recalls a vote is answered by the others' next calls, whatever these are; they then repeat their frame.
///
/// A vote commits on a rank that sees everyone's yes. A rank that said yes and then saw its all-gather fail is
/// `undecided`. `recall` settles it: if any rank has committed, commit, else drop.
///
/// @tparam AllGather   `all_gather_function`.
/// @tparam Membership  tells the group's membership epoch.
/// @threads that of the callables.
template <all_gather_function AllGather, class Membership = fixed_membership>
class engine_control {
public:
  engine_control(index_t rank, index_t num_ranks, AllGather all_gather, engine_control_options const& options = {},
                 Membership membership = {})
      : rank_{rank},
        num_ranks_{num_ranks},
        all_gather_{std::move(all_gather)},
        membership_{std::move(membership)},
        payload_words_{options.frame_words - header_words} {
    BALLAST_EXPECTS(rank >= 0 && rank < num_ranks, "engine_control: rank out of range");
    BALLAST_EXPECTS(options.frame_words > header_words, "engine_control: a frame must hold more than its header");
    frame_.resize(options.frame_words);
    frames_.resize(options.frame_words * static_cast<std::size_t>(num_ranks));
  }

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] std::uint64_t membership() const { return membership_(); }

  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    std::vector<std::uint64_t> mine(values.size());
    std::transform(values.begin(), values.end(), mine.begin(), [](auto v) { return static_cast<std::uint64_t>(v); });
    std::vector<std::uint64_t> sums(values.size());
    auto result = call({activity::reduces, 0, values.size()}, mine, timeout,
                       [&](std::size_t, std::size_t first, std::span<std::uint64_t const> words) {
                         for (std::size_t i = 0; i < words.size(); ++i) { sums[first + i] += words[i]; }
                       });
    if (result.ok()) {
      std::transform(sums.begin(), sums.end(), values.begin(), [](auto v) { return static_cast<std::int64_t>(v); });
    }
    return result;
  }

  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    BALLAST_EXPECTS(all.size() == mine.size() * static_cast<std::size_t>(num_ranks_),
                    "all_gather: output is not R x words");
    return call({activity::gathers, 0, mine.size()}, mine, timeout,
                [&](std::size_t rank, std::size_t first, std::span<std::uint64_t const> words) {
                  std::copy(words.begin(), words.end(),
                            all.begin() + static_cast<std::ptrdiff_t>(rank * mine.size() + first));
                });
  }

  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    BALLAST_EXPECTS(root >= 0 && root < num_ranks_, "broadcast: root out of range");
    std::vector<std::uint64_t> words((bytes.size() + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t));
    if (rank_ == root && !bytes.empty()) { std::memcpy(words.data(), bytes.data(), bytes.size()); }
    auto const mine = words;
    auto result = call({activity::broadcasts, root, bytes.size()}, mine, timeout,
                       [&](std::size_t rank, std::size_t first, std::span<std::uint64_t const> part) {
                         if (rank != static_cast<std::size_t>(root)) { return; }
                         std::copy(part.begin(), part.end(), words.begin() + static_cast<std::ptrdiff_t>(first));
                       });
    if (result.ok() && !bytes.empty()) { std::memcpy(bytes.data(), words.data(), bytes.size()); }
    return result;
  }

  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    std::string against;
    auto result = call({activity::votes, 0, 1}, std::vector<std::uint64_t>{yes}, timeout,
                       [&](std::size_t rank, std::size_t, std::span<std::uint64_t const> words) {
                         if (words[0] == 0) { against += detail::concat(against.empty() ? "rank " : ", rank ", rank); }
                       });
    ++votes_;
    if (!against.empty()) {
      result = {errc::transport_failed, against + " voted no"};
      outcome_ = decision::drop;
    } else if (result.ok()) {
      outcome_ = decision::commit;
    } else {
      outcome_ = yes ? decision::undecided : decision::drop;  // nobody commits against this rank's no
    }
    return {outcome_, std::move(result)};
  }

  /// Settle the last vote if it was undecided here; see `control_plane`.
  [[nodiscard]] vote_result recall(nanoseconds_t timeout) {
    if (outcome_ != decision::undecided) { return {outcome_, outcome_reason()}; }
    fill_header({activity::recalls, 0, 0}, 0);
    if (auto result = all_gather_(frame_, frames_, timeout); !result.ok()) {
      return {decision::undecided, std::move(result)};
    }
    outcome_ = decision::drop;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      auto const header = header_of(rank);
      if (header.votes == votes_ && header.outcome == decision::commit) { outcome_ = decision::commit; }
    }
    return {outcome_, outcome_reason()};
  }

private:
  enum class activity : std::uint64_t { recalls, reduces, gathers, broadcasts, votes };
  // What all ranks must be doing alike.
  struct call_identity {
    activity what;
    index_t root;
    std::size_t size;

    bool operator==(call_identity const&) const = default;
  };
  struct frame_header {
    call_identity identity;
    std::uint64_t call;
    std::uint64_t piece;
    std::uint64_t votes;
    decision outcome;
  };
  static constexpr std::size_t header_words = 6;

  // Exchange this rank's words piece by piece; `use(rank, first word, words)` gets everyone's.
  template <class Use>
  [[nodiscard]] status call(call_identity const& identity, std::vector<std::uint64_t> const& mine,
                            nanoseconds_t timeout, Use use) {
    return call(identity, std::span{mine}, timeout, use);
  }
  template <class Use>
  [[nodiscard]] status call(call_identity const& identity, std::span<std::uint64_t const> mine, nanoseconds_t timeout,
                            Use use) {
    auto const begin = detail::now();
    ++calls_;
    auto const pieces = std::max<std::size_t>(1, (mine.size() + payload_words_ - 1) / payload_words_);
    for (std::size_t piece = 0; piece < pieces; ++piece) {
      auto const first = piece * payload_words_;
      auto const size = std::min(payload_words_, mine.size() - first);
      auto const words = mine.subspan(first, size);
      fill_header(identity, piece);
      std::copy(words.begin(), words.end(), frame_.begin() + header_words);
      for (bool together = false; !together;) {
        auto const left = timeout - (detail::now() - begin);
        if (auto result = all_gather_(frame_, frames_, std::max<nanoseconds_t>(left, 0)); !result.ok()) {
          return result;
        }
        if (auto result = compare(identity, piece, together); !result.ok()) { return result; }
        if (!together && left <= 0) { return late(); }
      }
      for (index_t rank = 0; rank < num_ranks_; ++rank) {
        use(static_cast<std::size_t>(rank), first, frame_of(rank).subspan(header_words, size));
      }
    }
    return {};
  }

  // Are all ranks at the same piece of the same call? Those that are ahead, or met by a recall, repeat their frame.
  [[nodiscard]] status compare(call_identity const& identity, std::size_t piece, bool& together) const {
    together = true;
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      auto const other = header_of(rank);
      if (other.identity.what == activity::recalls || other.call < calls_ ||
          (other.call == calls_ && other.piece < piece)) {
        together = false;
      } else if (other.call > calls_ || other.piece > piece) {
        return {errc::deadline_exceeded, detail::concat("rank ", rank_, " is late: rank ", rank, " is at call ",
                                                        other.call, ", this rank at call ", calls_)};
      } else if (other.identity != identity) {
        return {errc::disagreement, detail::concat("rank ", rank_, " and rank ", rank,
                                                   " make different calls, or of different sizes, as call ", calls_)};
      }
    }
    return {};
  }
  [[nodiscard]] status late() const {
    for (index_t rank = 0; rank < num_ranks_; ++rank) {
      if (header_of(rank).call < calls_) {
        return {errc::deadline_exceeded, detail::concat("rank ", rank, " did not come to call ", calls_, " in time")};
      }
    }
    return {errc::deadline_exceeded,
            detail::concat("call ", calls_, " was interrupted by a recall until its deadline")};
  }
  [[nodiscard]] status outcome_reason() const {
    if (outcome_ == decision::commit) { return {}; }
    return {errc::deadline_exceeded, detail::concat("vote ", votes_, " was dropped: no rank has committed it")};
  }

  void fill_header(call_identity const& identity, std::size_t piece) {
    std::fill(frame_.begin(), frame_.end(), std::uint64_t{0});
    frame_[0] = static_cast<std::uint64_t>(identity.what) << 32 | static_cast<std::uint64_t>(identity.root);
    frame_[1] = identity.size;
    frame_[2] = calls_;
    frame_[3] = piece;
    frame_[4] = votes_;
    frame_[5] = static_cast<std::uint64_t>(outcome_);
  }
  [[nodiscard]] std::span<std::uint64_t const> frame_of(index_t rank) const noexcept {
    return std::span{frames_}.subspan(static_cast<std::size_t>(rank) * frame_.size(), frame_.size());
  }
  [[nodiscard]] frame_header header_of(index_t rank) const noexcept {
    auto const words = frame_of(rank);
    return {{static_cast<activity>(words[0] >> 32), static_cast<index_t>(words[0] & 0xffffffff),
             static_cast<std::size_t>(words[1])},
            words[2],
            words[3],
            words[4],
            static_cast<decision>(words[5])};
  }

  index_t rank_;
  index_t num_ranks_;
  AllGather all_gather_;
  [[no_unique_address]] Membership membership_;
  std::size_t payload_words_;
  std::vector<std::uint64_t> frame_;
  std::vector<std::uint64_t> frames_;  // [R, frame]
  std::uint64_t calls_ = 0;            // recalls are not counted: the others do not make them
  std::uint64_t votes_ = 0;            // last vote that ended here
  decision outcome_ = decision::drop;  // of that vote
};

BALLAST_END_NAMESPACE

#endif
