// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_OPTIONAL_PARTS_HPP
#define BALLAST_RUNTIME_OPTIONAL_PARTS_HPP

#include <ballast/status.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <type_traits>

BALLAST_BEGIN_NAMESPACE

/// A store that orders its commits and a transport's copies against each other, and learns from the transport how.
///
/// @par Semantics
/// `connect(transport)` is called by `start`, and before each group of layers that moves: a repair may have changed how
/// the transport works. It refuses a transport
/// that it cannot be ordered against, with the remedy, and changes nothing then. `disconnect(transport)` is called
/// before the rebalancer goes, while the transport is still there.
template <class S, class Transport>
concept connecting_store = requires(S& s, Transport& transport, Transport const& same) {
  { s.connect(same) } -> std::same_as<status>;
  { s.disconnect(transport) } noexcept -> std::same_as<void>;
};

/// A store, transport or recorder with costs of first use.
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

/// A transport whose bytes may move only while a rank is inside `wait`. Without the member they move in `poll` too.
///
/// @par Semantics
/// `moves_in_poll()` never changes. Where it is false, asynchronous mode is refused: it only polls.
template <class T>
concept waiting_transport = requires(T const& t) {
  { t.moves_in_poll() } noexcept -> std::same_as<bool>;
};

/// A transport that a failed batch leaves unable to open another until the ranks meet.
///
/// @par Semantics
/// `needs_repair()` says that it does. `repair(control, timeout)` is a collective of all live ranks, called by `resume`
/// on all of them when any needs it, and makes the transport usable again on all or fails on all.
template <class T, class Control>
concept repairable_transport = requires(T& t, T const& c, Control& control, nanoseconds_t timeout) {
  { c.needs_repair() } noexcept -> std::same_as<bool>;
  { t.repair(control, timeout) } -> std::same_as<status>;
};

/// A recorder whose counts take a while to reach the host.
///
/// @par Semantics
/// `prepare_history()` is called at the end of the call before one that asks `history`. The recorder begins to bring
/// the counts of the passes closed so far. `history` and what belongs to it (`spans`, `place`, `forgotten`) then speak
/// of just these passes, and `clear` forgets just these.
template <class R>
concept preparing_recorder = requires(R& r) {
  { r.prepare_history() } -> std::same_as<void>;
};

namespace detail {

template <class Store, class Transport>
[[nodiscard]] status connect(Store& store, Transport const& transport) {
  if constexpr (connecting_store<Store, Transport>) {
    return store.connect(transport);
  } else {
    return {};
  }
}

template <class Store, class Transport>
void disconnect([[maybe_unused]] Store& store, [[maybe_unused]] Transport& transport) noexcept {
  if constexpr (connecting_store<Store, Transport>) { store.disconnect(transport); }
}

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

template <class Transport>
[[nodiscard]] bool moves_in_poll(Transport const& transport) noexcept {
  if constexpr (waiting_transport<Transport>) {
    return transport.moves_in_poll();
  } else {
    return true;
  }
}

template <class Control, class Transport>
[[nodiscard]] bool needs_repair(Transport const& transport) noexcept {
  if constexpr (repairable_transport<Transport, Control>) {
    return transport.needs_repair();
  } else {
    return false;
  }
}
template <class Transport, class Control>
[[nodiscard]] status repair(Transport& transport, Control& control, nanoseconds_t timeout) {
  if constexpr (repairable_transport<Transport, Control>) {
    return transport.repair(control, timeout);
  } else {
    return {};
  }
}

template <class Recorder>
void prepare_history(Recorder& recorder) {
  if constexpr (preparing_recorder<Recorder>) { recorder.prepare_history(); }
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
