// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_SYSTEM_FAILURE_HPP
#define BALLAST_CUDART_DETAIL_SYSTEM_FAILURE_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <sys/resource.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Descriptors that this process may have open, which is also how many this user may have on their way.
[[nodiscard]] inline std::size_t descriptor_limit() noexcept {
  ::rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? static_cast<std::size_t>(limit.rlim_cur) : 0;
}

/// What a failed call of the system left in `errno`; of limits, which one and how to raise it.
[[nodiscard]] inline status system_failure(char const* call, index_t rank = status::no_rank) {
  auto const number = errno;
  auto message = ballast::detail::concat(call, ": ", std::strerror(number));
  if (number == EMFILE) {
    message += ballast::detail::concat("; RLIMIT_NOFILE lets this process have ", descriptor_limit(),
                                       " open descriptors: raise it (ulimit -n)");
  } else if (number == ETOOMANYREFS) {
    message += ballast::detail::concat("; RLIMIT_NOFILE lets the processes of this user have ", descriptor_limit(),
                                       " descriptors on their way to others: raise it (ulimit -n)");
  }
  return {std::error_code{number, std::generic_category()}, std::move(message), rank};
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
