// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_REGROUP_WORD_HPP
#define BALLAST_POSIX_DETAIL_REGROUP_WORD_HPP

#include <ballast/config.hpp>
#include <ballast/posix/detail/suspicion.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

/// How an attempt to regroup ended. One word in shared memory, written once by compare-and-swap, so that every rank
/// that came to the attempt learns the same of it.
struct regroup_word {
  enum class state : std::uint64_t { complete, failed };

  std::uint64_t attempt = 0;  ///< counts from 1; a complete one is the generation of the calls that follow
  state where = state::complete;
  std::uint64_t last_vote = 0;  ///< of a complete attempt: the number that votes go on from
  suspicion reason;             ///< of a failed one

  static constexpr int state_bits = 2;
  static constexpr int vote_bits = 36;
  static constexpr std::uint64_t max_attempt = (std::uint64_t{1} << 24) - 1;

  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    auto const value = where == state::failed ? detail::pack(reason) : last_vote;
    return attempt << (vote_bits + state_bits) | value << state_bits | static_cast<std::uint64_t>(where);
  }
  [[nodiscard]] static constexpr regroup_word unpack(std::uint64_t word) noexcept {
    regroup_word out;
    out.attempt = word >> (vote_bits + state_bits);
    out.where = static_cast<state>(word & 3);
    auto const value = word >> state_bits & ((std::uint64_t{1} << vote_bits) - 1);
    if (out.where == state::failed) {
      out.reason = detail::unpack(value);
    } else {
      out.last_vote = value;
    }
    return out;
  }
};

/// A suspicion together with the generation that it belongs to; 0 belongs to none.
[[nodiscard]] constexpr std::uint64_t pack_in(std::uint64_t generation, suspicion const& what) noexcept {
  return (generation + 1) << suspicion_bits | pack(what);
}
[[nodiscard]] constexpr bool is_of(std::uint64_t word, std::uint64_t generation) noexcept {
  return word >> suspicion_bits == generation + 1;
}

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
