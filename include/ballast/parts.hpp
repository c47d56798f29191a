// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PARTS_HPP
#define BALLAST_PARTS_HPP

#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <type_traits>

BALLAST_BEGIN_NAMESPACE

// What a part of any kind may have: a recorder, a store, a transport, or what one of these is made of.

/// A part with costs of first use.
///
/// @par Semantics
/// `warm_up()` is called once by `start`, on all ranks, after memory has been exposed. It takes out of the calls that
/// follow what only the first of them would pay for.
template <class P>
concept warming_part = requires(P& p) {
  { p.warm_up() } -> std::same_as<status>;
};

/// A part that waits for a device in calls without a timeout of their own.
///
/// @par Semantics
/// `set_timeout(timeout)`, called by `start`, bounds each such wait, in nanoseconds.
template <class P>
concept bounded_part = requires(P& p, nanoseconds_t timeout) {
  { p.set_timeout(timeout) } noexcept -> std::same_as<void>;
};

namespace detail {

/// Warm one part after the other up, until one fails.
template <class... Parts>
[[nodiscard]] status warm_up(Parts&... parts) {
  status result;
  auto const warm = [&result](auto& part) {
    if constexpr (warming_part<std::remove_reference_t<decltype(part)>>) {
      if (result.ok()) { result = part.warm_up(); }
    }
  };
  (warm(parts), ...);
  return result;
}

template <class... Parts>
void set_timeout(nanoseconds_t timeout, Parts&... parts) noexcept {
  auto const set = [timeout](auto& part) {
    if constexpr (bounded_part<std::remove_reference_t<decltype(part)>>) { part.set_timeout(timeout); }
  };
  (set(parts), ...);
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
