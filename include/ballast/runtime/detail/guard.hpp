// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_GUARD_HPP
#define BALLAST_RUNTIME_DETAIL_GUARD_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include <exception>
#include <new>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A switch of planning that the observer asked for: it waits until the running call ends.
enum class deferred_switch { none, enable, disable };

/// Plan again; the count of passes restarts.
template <class Core>
void enable(Core& core) noexcept {
  if (core.events.is_inside()) {
    core.deferred = deferred_switch::enable;
    return;
  }
  core.enabled = true;
  core.waited = 0;
  core.share_waited = 0;
}
template <class Core>
void disable(Core& core) {
  if (core.events.is_inside()) {
    core.deferred = deferred_switch::disable;
    return;
  }
  core.enabled = false;
  if (core.is_planning()) { core.end_cycle(); }
  if (core.is_moving()) { core.stop_moving(); }
}

/// Every public call that does something: never from inside the observer, and never out by an exception.
template <class Core, class Call>
[[nodiscard]] status from_outside(Core& core, char const* name, Call call) {
  if (core.events.is_inside()) { return {errc::busy, concat(name, ": called from inside the observer")}; }
#if defined(__cpp_exceptions)
  status result;
  try {
    result = call();
  } catch (std::bad_alloc const&) {
    result = core.fail({errc::out_of_memory, concat("rebalancer: no memory in ", name)});
  } catch (std::exception const& error) {
    result = core.fail({errc::internal, concat("rebalancer: ", name, ": ", error.what())});
  }
#else
  auto result = call();
#endif
  switch (std::exchange(core.deferred, deferred_switch::none)) {
    case deferred_switch::none: break;
    case deferred_switch::enable: detail::enable(core); break;
    case deferred_switch::disable: detail::disable(core); break;
  }
  return result;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
