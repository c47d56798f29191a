// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_SUSPICION_HPP
#define BALLAST_POSIX_DETAIL_SUSPICION_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstdint>
#include <string_view>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

/// Why a rank could not go on, as far as it knows. Fits into some bits of a word in shared memory.
enum class cause : std::uint64_t { none, failed, lost, late, wrong, gave_up };

/// A rank to blame, and what for.
struct suspicion {
  cause why = cause::none;
  index_t culprit = 0;
};

inline constexpr int suspicion_bits = 12;

[[nodiscard]] constexpr std::uint64_t pack(suspicion const& what) noexcept {
  return (static_cast<std::uint64_t>(what.culprit) & 0xff) << 4 | static_cast<std::uint64_t>(what.why);
}
/// Take a suspicion out of the lowest bits of a word.
[[nodiscard]] constexpr suspicion unpack(std::uint64_t word) noexcept {
  return {static_cast<cause>(word & 0xf), static_cast<index_t>(word >> 4 & 0xff)};
}

/// What `rank` blames, of the failure that made it give up: nobody, unless it names another rank.
[[nodiscard]] inline suspicion suspicion_of(status const& why, index_t rank) noexcept {
  if (why.rank() < 0 || why.rank() == rank) { return {}; }
  if (why.code() == make_error_code(errc::peer_lost)) { return {cause::lost, why.rank()}; }
  if (why.code() == make_error_code(errc::deadline_exceeded)) { return {cause::late, why.rank()}; }
  return {cause::failed, why.rank()};
}

/// "rank 2 voted no because rank 1 was late", with the code and the rank of what is behind it.
[[nodiscard]] inline status blame(std::string_view what, index_t rank, std::string_view how,
                                  suspicion const& behind_it) {
  using ballast::detail::concat;
  auto const done = concat(what, "rank ", rank, how);
  auto const because = [&done, &behind_it](errc code, std::string_view before, std::string_view after) {
    return status{code, concat(done, " because ", before, "rank ", behind_it.culprit, after), behind_it.culprit};
  };
  switch (behind_it.why) {
    case cause::failed: return because(errc::transport_failed, "", " failed");
    case cause::lost: return because(errc::peer_lost, "", " is lost");
    case cause::late: return because(errc::deadline_exceeded, "", " was late");
    case cause::wrong: return because(errc::transport_failed, "of what ", " sent");
    case cause::gave_up: return because(errc::transport_failed, "", " has given up");
    case cause::none: break;
  }
  return {errc::transport_failed, done, rank};
}

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
