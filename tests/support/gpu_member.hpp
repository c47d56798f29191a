// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_GPU_MEMBER_HPP
#define BALLAST_TESTS_SUPPORT_GPU_MEMBER_HPP

#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/schedule/schedules.hpp>

#include "support/gpu.hpp"
#include "support/law_log.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_test {

/// A permutation of each layer's experts over all ranks, another one for each placement it starts from.
struct shuffle_placement {
  [[nodiscard]] ballast::status plan(ballast::load_history_view, ballast::placement const& current,
                                     ballast::topology const&, ballast::placement& next) const {
    next = current;
    for (ballast::index_t layer = 0; layer < current.num_layers(); ++layer) {
      ballast::digest seed;
      current.describe(layer, seed);
      auto state = seed.value();
      auto const map = next.edit(layer).logical_of_slot;
      for (std::size_t i = map.size() - 1; i > 0; --i) {
        state = state * 0x5851f42d4c957f2du + 0x14057b7ef767814fu;
        std::swap(map[i], map[static_cast<std::size_t>((state >> 33) % (i + 1))]);
      }
      next.index_replicas(layer);
    }
    return {};
  }
  [[nodiscard]] ballast::status validate() const { return {}; }
  [[nodiscard]] constexpr ballast::relabel_scope interchangeable() const noexcept {
    return ballast::relabel_scope::none;
  }
  void describe(ballast::digest& out) const { out.add(std::string_view{"shuffle_placement"}); }
};

/// Experts of three tensors with odd sizes and gaps.
[[nodiscard]] inline std::vector<tensor_shape> odd_tensors() { return {{100'000, 100'352}, {77, 77}, {4096, 5000}}; }

/// Where E experts of each layer are at first: every one on a slot, the slots left over filled from the first on.
[[nodiscard]] inline ballast::placement spread_placement(ballast::topology const& where, ballast::index_t num_layers) {
  auto const slots = where.num_slots();
  return ballast::trivial_placement({num_layers, slots - slots / 4, slots});
}

/// A rank with everything it needs, weights on the device.
template <class Transport, class Control>
struct gpu_member {
  gpu_member(ballast::topology const& where, ballast::placement const& initial, Transport& transport, Control& control,
             std::vector<cudaStream_t> const& copy_streams, ballast::rebalancer_options const& options,
             ballast::observer* watcher = nullptr, std::vector<tensor_shape> tensors = odd_tensors(),
             ballast::layers_per_chunk<> schedule = {}, bool timed = false)
      : weights{where, control.rank(), initial, std::move(tensors)},
        store{where,
              control.rank(),
              initial,
              {.compute_stream = compute.get(), .copy_streams = copy_streams, .timed = timed}},
        moved{where,
              initial,
              {ballast::window_recorder{initial.num_layers(), initial.num_logical(), {4, 4}}, shuffle_placement{},
               schedule, options, watcher},
              store,
              transport,
              control} {
    weights.add_to(store);
  }

  /// Run steps; after each, every slot must hold the expert that the placement in force names.
  void run(int num_steps, law_log& log) {
    if (!log.expect_ok(moved.start(), "start")) { return; }
    for (int step = 0; step < num_steps; ++step) {
      if (!run_step(step, log)) { return; }
    }
    expect_moves(log);
  }

  /// One step; other models may have theirs between two of them.
  bool run_step(int step, law_log& log) {
    for (ballast::index_t layer = 0; layer < moved.current().num_layers(); ++layer) {
      ballast::index_t const ids[] = {0, 1, 1, 2};
      moved.record_top_k(layer, ids);
    }
    if (!log.expect_ok(moved.on_forward_pass_end(), "on_forward_pass_end")) { return false; }
    auto const error = weights.first_error(moved.current());
    return log.expect(error.empty(), "after step ", step, " wrong at ", error);
  }
  void expect_moves(law_log& log) const {
    log.expect(moved.epoch(0) >= 2, "only ", moved.epoch(0), " moves of layer 0");
  }

  ballast::cudart::stream compute = ballast::cudart::stream::create();
  gpu_weights weights;
  ballast::cudart::device_store<> store;
  ballast::rebalancer<ballast::window_recorder, shuffle_placement, ballast::layers_per_chunk<>, Transport,
                      ballast::cudart::device_store<>, Control>
      moved;
};

}  // namespace ballast_test

#endif
