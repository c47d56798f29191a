// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_SYSTEM_FAILURE_HPP
#define BALLAST_DETAIL_SYSTEM_FAILURE_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <sys/resource.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <system_error>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Descriptors that this process may have open, which is also how many this user may have on their way.
[[nodiscard]] inline std::size_t descriptor_limit() noexcept {
  ::rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? static_cast<std::size_t>(limit.rlim_cur) : 0;
}

/// What a failed call of the system means to its caller, with what the system says of it; of limits, which one and how
/// to raise it.
///
/// @param what    what could not be done.
/// @param number  as `errno` gave it.
[[nodiscard]] inline status system_failure(std::error_code code, std::string_view what, int number,
                                           index_t rank = status::no_rank) {
  auto message = concat(what, ": ", std::strerror(number));
  if (number == EMFILE) {
    message += concat("; RLIMIT_NOFILE lets this process have ", descriptor_limit(),
                      " open descriptors: raise it (ulimit -n)");
  } else if (number == ETOOMANYREFS) {
    message += concat("; RLIMIT_NOFILE lets the processes of this user have ", descriptor_limit(),
                      " descriptors on their way to others: raise it (ulimit -n)");
  }
  return {code, std::move(message), rank};
}
/// The same under the system's own code, of the call that has just left it in `errno`.
[[nodiscard]] inline status system_failure(std::string_view call, index_t rank = status::no_rank) {
  int const number = errno;
  return system_failure({number, std::generic_category()}, call, number, rank);
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
