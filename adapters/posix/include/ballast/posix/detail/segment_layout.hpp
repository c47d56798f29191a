// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_SEGMENT_LAYOUT_HPP
#define BALLAST_POSIX_DETAIL_SEGMENT_LAYOUT_HPP

#include <ballast/detail/process_watch.hpp>
#include <ballast/posix/detail/doorbell.hpp>
#include <ballast/types.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

using ballast::detail::pid_namespace;
using ballast::detail::process_identity;
using ballast::detail::process_watch;

// Everything in this file lies in memory that several processes map. No lock guards it, so that a process may die or be
// stopped anywhere; each word has one writer, or is changed by compare-and-swap.

inline constexpr std::uint64_t segment_magic = 0x62616c6c61737432;  // "ballast2"; the last character tells the layout
inline constexpr index_t max_ranks = 64;                            // live ranks are bits of one word
inline constexpr std::size_t mail_words = 1024;
inline constexpr std::size_t mails_kept = 8;
inline constexpr std::size_t num_decisions = 4096;
inline constexpr std::size_t num_attempts = 256;
inline constexpr std::size_t offers_per_pair = 32;
inline constexpr std::size_t bounce_bytes = std::size_t{128} << 10;

/// What a rank gives to one collective call, or to a piece of it. The last few are kept: calls that fail at once,
/// because a rank is dead, let the others run ahead of one that has not read its mail yet.
struct mail {
  std::atomic<std::uint64_t> number;  ///< of the call; 0 while the mail is written
  std::atomic<std::uint64_t> kind;
  std::atomic<std::uint64_t> total_words;  ///< of the whole call
  std::atomic<std::uint64_t> num_words;    ///< in this mail
  std::atomic<std::uint64_t> words[mail_words];
};

/// One rank's part of the segment.
struct alignas(64) member {
  std::atomic<std::uint32_t> claimed;
  std::atomic<std::uint32_t> joined;
  std::atomic<std::uint32_t> left;
  process_identity process;  ///< valid once `joined`
  process_identity parent;
  alignas(64) doorbell bell;
  alignas(64) std::atomic<std::uint64_t> posted;  ///< last call whose mail is complete
  std::atomic<nanoseconds_t> last_sign;           ///< when the rank last was seen at work
  std::atomic<nanoseconds_t> distress_at;         ///< when this rank last gave up a batch
  std::atomic<std::uint64_t> distress;            ///< and why, in which generation
  std::atomic<std::uint64_t> given_up;            ///< in which generation this rank last gave up, and why
  std::atomic<std::uint64_t> arrived;             ///< last attempt to regroup that this rank came to
  std::atomic<std::uint64_t> ballot;              ///< number of the vote, and what this rank says
  alignas(64) mail mails[mails_kept];
};

/// What a segment is and who made it, in the first bytes of its file. They stay where they are when the layout changes,
/// so that what a dead run has left is recognised by every version; new ones are added at the end.
struct segment_facts {
  std::uint64_t magic = 0;
  std::uint64_t bytes = 0;
  index_t num_ranks = 0;
  process_identity creator;
  std::uint64_t pid_namespace = 0;
  std::uint64_t job = 0;
};
/// Some layout's magic.
[[nodiscard]] constexpr bool is_magic(std::uint64_t word) noexcept { return word >> 8 == segment_magic >> 8; }

/// The segment's first bytes.
struct alignas(64) segment_header {
  segment_facts facts;
  std::atomic<std::uint32_t> abandoned;
  alignas(64) std::atomic<std::uint64_t> expelled;    ///< bit r: rank r was expelled
  std::atomic<std::uint64_t> last_attempt;            ///< to regroup
  std::atomic<std::uint64_t> attempts[num_attempts];  ///< `regroup_word`s
  std::atomic<std::uint64_t> decisions[num_decisions];
};

/// Where an offered message stands. The sender writes `offered` and takes an entry back with `vacant`; everything else
/// is the receiver's. A state word also counts the entry's uses, so that a late compare-and-swap fails.
enum class offer_state : std::uint64_t {
  vacant,   ///< the sender may use the entry
  offered,  ///< the sender's bytes are ready
  reading,  ///< the receiver reads the sender's memory
  wanted,   ///< the receiver cannot read the sender's memory and asks for the bytes through the bounce buffers
  taken,    ///< the receiver has every byte
  refused,  ///< the receiver does not want it
};

/// One message that a sender offers to one receiver.
struct alignas(64) offer {
  std::atomic<std::uint64_t> state;  ///< 8 * use + offer_state
  std::atomic<std::uint64_t> tag;
  std::atomic<std::uint64_t> bytes;
};

/// One of the two buffers between a sender and a receiver for which the kernel allows no direct copy.
struct alignas(64) bounce_buffer {
  std::atomic<std::uint64_t> filled;  ///< stamp of the piece it holds
  std::atomic<std::uint64_t> emptied;
  alignas(64) std::byte data[bounce_bytes];
};

[[nodiscard]] constexpr std::size_t members_offset() noexcept { return sizeof(segment_header); }
[[nodiscard]] constexpr std::size_t offers_offset(std::size_t num_ranks) noexcept {
  return members_offset() + num_ranks * sizeof(member);
}
/// Bounce buffers follow; their memory is only obtained when they are needed.
[[nodiscard]] constexpr std::size_t bounce_offset(std::size_t num_ranks) noexcept {
  constexpr std::size_t page = 4096;
  auto const end = offers_offset(num_ranks) + num_ranks * num_ranks * offers_per_pair * sizeof(offer);
  return (end + page - 1) / page * page;
}
[[nodiscard]] constexpr std::size_t segment_bytes(std::size_t num_ranks) noexcept {
  return bounce_offset(num_ranks) + num_ranks * num_ranks * 2 * sizeof(bounce_buffer);
}

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
