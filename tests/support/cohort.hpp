// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_COHORT_HPP
#define BALLAST_TESTS_SUPPORT_COHORT_HPP

#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/transport/in_process.hpp>

#include "patterned_weights.hpp"

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace ballast_test {

/// An event as it can be kept: what `observer::on_event` was given, by value.
struct logged_event {
  std::uint64_t step = 0;
  std::string kind;
  std::vector<ballast::index_t> layers;
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
  double balancedness = 0;
  std::string failure;
  ballast::nanoseconds_t device_receive = ballast::not_measured;
  ballast::nanoseconds_t device_commit = ballast::not_measured;
  ballast::batch_counters batches;
};

/// Keeps every event.
class event_log final : public ballast::observer {
public:
  void on_event(ballast::event const& what) override {
    events.push_back({what.step,
                      ballast::to_string(what.kind),
                      {what.layers.begin(), what.layers.end()},
                      what.moves,
                      what.bytes,
                      what.balancedness,
                      what.failure == nullptr ? "" : what.failure->message(),
                      what.device_receive,
                      what.device_commit,
                      what.batches == nullptr ? ballast::batch_counters{} : *what.batches});
  }
  /// Steps at which this kind of event came.
  [[nodiscard]] std::vector<std::uint64_t> steps_of(std::string const& kind) const {
    std::vector<std::uint64_t> steps;
    for (auto const& what : events) {
      if (what.kind == kind) { steps.push_back(what.step); }
    }
    return steps;
  }
  [[nodiscard]] std::vector<std::vector<ballast::index_t>> layers_of(std::string const& kind) const {
    std::vector<std::vector<ballast::index_t>> layers;
    for (auto const& what : events) {
      if (what.kind == kind) { layers.push_back(what.layers); }
    }
    return layers;
  }
  std::vector<logged_event> events;
};

/// A rebalancer of one rank with everything it needs, on in-process ranks, patterned weights and a window recorder.
template <class Policy, class Schedule, class Store = ballast::host_store,
          class Transport = ballast::in_process_endpoint, class Control = ballast::in_process_endpoint>
struct member {
  using rebalancer_type = ballast::rebalancer<ballast::window_recorder, Policy, Schedule, Transport, Store, Control>;

  member(ballast::topology const& where, ballast::placement const& initial, Policy policy, Schedule schedule,
         Control& control, Transport& transport, ballast::rebalancer_options options)
      : weights{where, control.rank(), initial, {{48, 48}, {5, 8}}},
        store{where, initial.num_layers()},
        moved{where,
              initial,
              {ballast::window_recorder{
                   initial.num_layers(), initial.num_logical(), {options.interval, options.interval}},
               std::move(policy), schedule, options, &log},
              store,
              transport,
              control} {
    weights.add_to(store);
  }
  member(ballast::topology const& where, ballast::placement const& initial, Policy policy, Schedule schedule,
         ballast::in_process_endpoint& wire, ballast::rebalancer_options options)
      : member{where, initial, std::move(policy), schedule, wire, wire, options} {}

  /// Where weights and tables differ; empty when nowhere.
  [[nodiscard]] std::string first_error() const { return weights.first_error(moved.current()); }

  event_log log;
  patterned_weights weights;
  Store store;
  rebalancer_type moved;
};

inline constexpr ballast::nanoseconds_t milliseconds = 1'000'000;
/// Long enough for a loaded machine; no test waits for it unless it fails.
inline constexpr ballast::nanoseconds_t patience = 30'000 * milliseconds;

}  // namespace ballast_test

#endif
