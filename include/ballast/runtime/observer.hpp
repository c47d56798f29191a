// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_OBSERVER_HPP
#define BALLAST_RUNTIME_OBSERVER_HPP

#include <ballast/config.hpp>
#include <ballast/runtime/batch_counters.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstdint>
#include <span>

BALLAST_BEGIN_NAMESPACE

/// What a rebalancer just did.
enum class event_kind {
  dump,          ///< loads were reduced over the ranks; no plan need follow: `disable` and `resume` may drop it
  skip,          ///< balance is above the threshold; nothing is planned
  plan,          ///< a plan was made and every rank agreed on it, some calls after its dump where it took several
  commit,        ///< a chunk of layers is in force
  shares,        ///< the split over replicas changed, no bytes moved
  batches,       ///< what balancing every batch came to since the last of these; only where the store counts them
  device_times,  ///< the device is done with an earlier `commit` or `shares`; only where transport or store measure
  failed,        ///< the cycle ended; every layer is at its last agreed epoch
};

[[nodiscard]] constexpr char const* to_string(event_kind kind) noexcept {
  switch (kind) {
    case event_kind::dump: return "dump";
    case event_kind::skip: return "skip";
    case event_kind::plan: return "plan";
    case event_kind::commit: return "commit";
    case event_kind::shares: return "shares";
    case event_kind::batches: return "batches";
    case event_kind::device_times: return "device_times";
    case event_kind::failed: return "failed";
  }
  return "unknown";
}

/// One event with its numbers. Spans and pointers are valid during the call only.
///
/// `device_times` repeats the step, layers, moves, bytes and balancedness of the event whose times it brings.
struct event {
  event_kind kind = event_kind::dump;
  std::uint64_t step = 0;             ///< number of the `on_forward_pass_end` call, from 1
  std::span<index_t const> layers{};  ///< layers concerned, ascending
  std::int64_t moves = 0;             ///< receives over all ranks
  std::int64_t bytes = 0;             ///< bytes received over all ranks
  double balancedness = 1;     ///< of the placement in force (plan: of the planned one) under the window's loads;
                               ///< batches: average over busiest rank, as realised in the last batches that were
                               ///< solved; 0 where none was
  nanoseconds_t duration = 0;  ///< host time of the stage on this rank; of a plan in all of its calls together
  /// `device_times` only: this rank's copies into staging, from the first to the last of each batch; see
  /// `receive_timer`.
  nanoseconds_t device_receive = not_measured;
  /// `device_times` only: this rank's commits on the device, tables included; see `commit_timer`.
  nanoseconds_t device_commit = not_measured;
  status const* failure = nullptr;          ///< `failed` only
  batch_counters const* batches = nullptr;  ///< `batches` only: since the last of these
};

/// Receives a rebalancer's events, on the thread that drives it.
///
/// An exception that leaves `on_event` is caught and counted; it cannot disturb the protocol.
class observer {
public:
  virtual void on_event(event const& what) = 0;

protected:
  observer() = default;
  observer(observer const&) = default;
  observer& operator=(observer const&) = default;
  ~observer() = default;
};

BALLAST_END_NAMESPACE

#endif
