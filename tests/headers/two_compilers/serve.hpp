// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SERVE_HPP
#define BALLAST_TESTS_SERVE_HPP

#include <ballast/load/window_recorder.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/in_process.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>
#include <vector>

namespace ballast_test {

inline constexpr ballast::index_t num_ranks = 2, num_experts = 4, slots = 3;
inline constexpr ballast::nanoseconds_t timeout = 2'000'000'000;

inline void expect(bool holds, char const* what) {
  if (!holds) { throw std::system_error{std::make_error_code(std::errc::protocol_error), what}; }
}

/// What a rank of an engine does, once in each translation unit: a template on something that only that unit has, so
/// that neither is the other's, while what it calls of ballast is one function for both.
/// @return the placement that it ends with
template <class Unit>
ballast::placement serve(ballast::in_process_endpoint& endpoint) {
  auto const rank = endpoint.rank();

  std::vector<std::uint64_t> const mine{7, static_cast<std::uint64_t>(rank)};
  std::vector<std::uint64_t> all(mine.size() * num_ranks);
  endpoint.all_gather(mine, all, timeout).or_throw();
  expect(all == std::vector<std::uint64_t>{7, 0, 7, 1}, "all_gather");
  std::vector<std::int64_t> sums{rank, 5};
  endpoint.all_reduce(sums, timeout).or_throw();
  expect(sums == std::vector<std::int64_t>{1, 10}, "all_reduce");
  std::vector<int> sent{rank + 3};
  endpoint.broadcast(std::as_writable_bytes(std::span{sent}), 1, timeout).or_throw();
  expect(sent.front() == 4, "broadcast");

  ballast::topology const where{{.num_ranks = num_ranks, .num_nodes = 1, .slots_per_rank = slots}};
  auto const initial = ballast::trivial_placement({1, num_experts, where.num_slots()});
  ballast::any_policy const policy{ballast::incremental_placement{}};
  ballast::placement planned;
  std::vector<ballast::load_t> const loads{0, 0, 90, 10};
  ballast::plan(policy, {loads, 1, 1, num_experts}, initial, where, planned).or_throw();
  ballast::validate_placement(planned, {1, num_experts, where.num_slots()}).or_throw();
  expect(planned.replica_count(0, 2) > initial.replica_count(0, 2), "plan");

  std::vector<std::int64_t> weights;
  for (ballast::index_t slot = 0; slot < slots; ++slot) {
    weights.push_back(initial.logical_of_slot()(0, rank * slots + slot));
  }
  ballast::host_store store{where, 1};
  store.add(0, "weights", weights.data(), sizeof weights[0]).or_throw();
  ballast::rebalancer rebalancer{where, initial,
                                 ballast::rebalancing{ballast::window_recorder{1, num_experts, {.passes = 2}},
                                                      policy,
                                                      ballast::layers_per_chunk{1},
                                                      {.interval = 2, .timeout = timeout}},
                                 store, endpoint};
  rebalancer.start().or_throw();
  for (int pass = 0; pass < 4; ++pass) {
    ballast::index_t const picks[] = {2, 2, 2, 3};
    rebalancer.record_top_k(0, picks);
    rebalancer.on_forward_pass_end().or_throw();
  }
  auto const now = rebalancer.current();
  expect(now.replica_count(0, 2) > initial.replica_count(0, 2), "a cycle");
  for (ballast::index_t slot = 0; slot < slots; ++slot) {
    expect(weights[static_cast<std::size_t>(slot)] == now.logical_of_slot()(0, rank * slots + slot), "weights");
  }
  return now;
}

ballast::placement serve_in_cu(ballast::in_process_endpoint& endpoint);

}  // namespace ballast_test

#endif
