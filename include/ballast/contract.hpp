// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CONTRACT_HPP
#define BALLAST_CONTRACT_HPP

#include <ballast/config.hpp>

#include <cstdio>
#include <cstdlib>

BALLAST_BEGIN_NAMESPACE
namespace detail {
[[noreturn]] inline void contract_violation(char const* what, char const* file, int line) noexcept {
  std::fprintf(stderr, "%s:%d: ballast contract violated: %s\n", file, line, what);
  std::abort();
}
}  // namespace detail
BALLAST_END_NAMESPACE

// An engine may define this before its first include of ballast; it must not return.
#ifndef BALLAST_CONTRACT_HANDLER
  #define BALLAST_CONTRACT_HANDLER(what, file, line) ::ballast::detail::contract_violation(what, file, line)
#endif

/// The caller's promise. Conditions must be pure: at level 0 they are not evaluated.
#if BALLAST_CONTRACT_LEVEL >= 1
  #define BALLAST_EXPECTS(cond, why) ((cond) ? static_cast<void>(0) : BALLAST_CONTRACT_HANDLER(why, __FILE__, __LINE__))
#else
  #define BALLAST_EXPECTS(cond, why) static_cast<void>(sizeof((cond) ? 1 : 0))
#endif

/// Our own invariant, checked at level 2.
#if BALLAST_CONTRACT_LEVEL >= 2
  #define BALLAST_ASSERT(cond, why) ((cond) ? static_cast<void>(0) : BALLAST_CONTRACT_HANDLER(why, __FILE__, __LINE__))
#else
  #define BALLAST_ASSERT(cond, why) static_cast<void>(sizeof((cond) ? 1 : 0))
#endif

#endif
