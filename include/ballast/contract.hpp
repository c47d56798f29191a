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

/// "placement: layer 7 is not in [0, 3)"
struct range_text {
  range_text(char const* what, long long value, long long end) noexcept {
    static_cast<void>(std::snprintf(text, sizeof text, "%s %lld is not in [0, %lld)", what, value, end));
  }
  range_text(char const* what, long long value, long long first, long long last) noexcept {
    static_cast<void>(std::snprintf(text, sizeof text, "%s %lld is not in [%lld, %lld]", what, value, first, last));
  }
  char text[120];
};
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

/// The same of a signed number that must be in [0, end); the message has both. `what` names it: "placement: layer".
#if BALLAST_CONTRACT_LEVEL >= 1
  #define BALLAST_EXPECTS_BELOW(value, end, what) \
    ((value) >= 0 && (value) < (end)              \
         ? static_cast<void>(0)                   \
         : BALLAST_CONTRACT_HANDLER((::ballast::detail::range_text{what, value, end}.text), __FILE__, __LINE__))
#else
  #define BALLAST_EXPECTS_BELOW(value, end, what) static_cast<void>(sizeof((value) >= 0 && (value) < (end) ? 1 : 0))
#endif

/// The same of a number that must be in [first, last]: "quota_rows: number of layers -3 is not in [1, 65535]".
#if BALLAST_CONTRACT_LEVEL >= 1
  #define BALLAST_EXPECTS_WITHIN(value, first, last, what)                                                    \
    ((value) >= (first) && (value) <= (last)                                                                  \
         ? static_cast<void>(0)                                                                               \
         : BALLAST_CONTRACT_HANDLER((::ballast::detail::range_text{what, value, first, last}.text), __FILE__, \
                                    __LINE__))
#else
  #define BALLAST_EXPECTS_WITHIN(value, first, last, what) \
    static_cast<void>(sizeof((value) >= (first) && (value) <= (last) ? 1 : 0))
#endif

/// Our own invariant, checked at level 2.
#if BALLAST_CONTRACT_LEVEL >= 2
  #define BALLAST_ASSERT(cond, why) ((cond) ? static_cast<void>(0) : BALLAST_CONTRACT_HANDLER(why, __FILE__, __LINE__))
#else
  #define BALLAST_ASSERT(cond, why) static_cast<void>(sizeof((cond) ? 1 : 0))
#endif

#endif
