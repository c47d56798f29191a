// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Planning all layers of a model, tables included: time beside balance. Rows: plan/<policy>/<layers x
// experts>/<slots>/<ranks>, and incremental/curve/<ranks> (100 layers, 2 experts and 4 slots a rank, 10 % drift),
// beside balanced/curve. part/<start or drift>/...: what one rank of a group plans when they plan in parts; the counter
// longest_layer is the milliseconds of the layer that takes longest, which is the longest call with
// `layers_per_plan_call = 1`; longest_slice those of the longest call with `work_per_plan_call = 50000`,
// calls_in_slices how many there are then. cells/...: `incremental` under every budget, split and start of a list, one
// after the other; the slowest of these cells against their median.
#include <ballast/detail/clock.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/incremental.hpp>

#include "support/loads.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace ballast;

struct model {
  char const* name;  // layers x experts
  index_t num_layers;
  index_t num_logical;
  index_t num_slots;
  index_t num_ranks;
  index_t num_nodes;
  index_t num_groups;
};

constexpr model models[] = {
    {"58x256", 58, 256, 288, 32, 4, 8},        // DeepSeek-V3, prefill
    {"94x128", 94, 128, 144, 16, 2, 1},        // Qwen3-235B
    {"60x384", 60, 384, 416, 32, 4, 1},        // Kimi-K2
    {"61x512", 61, 512, 1024, 128, 8, 8},      // large
    {"100x2048", 100, 2048, 4096, 1024, 8, 8}  // future
};

std::string row_name(char const* policy, model const& shape) {
  return std::string{"plan/"} + policy + "/" + shape.name + "/" + std::to_string(shape.num_slots) + "/" +
         std::to_string(shape.num_ranks);
}

/// Plan from `current` on `loads`, again and again.
template <class Policy>
void measure(benchmark::State& state, Policy const& policy, model const& shape, std::vector<load_t> const& loads,
             placement const& current) {
  topology const where{{shape.num_ranks, shape.num_nodes, shape.num_slots / shape.num_ranks, 0}};
  matrix_view<load_t const> const view{loads, shape.num_layers, shape.num_logical};
  placement next;
  for (auto _ : state) {
    plan(policy, view, current, where, next).or_throw();
    benchmark::DoNotOptimize(next.logical_of_slot().elements().data());
    benchmark::ClobberMemory();
  }
  state.counters["balancedness"] = balancedness(where, next, view);
  double moves = 0;
  for (index_t layer = 0; layer < shape.num_layers; ++layer) { moves += count_moves(where, current, next, layer); }
  state.counters["moves_per_layer"] = moves / shape.num_layers;
  state.SetLabel(BALLAST_BENCH_INSTRUCTION_SET);
}

template <class Policy>
void from_scratch(benchmark::State& state, Policy const& policy, model const& shape) {
  measure(state, policy, shape, ballast_bench::log_normal_loads(shape.num_layers, shape.num_logical),
          trivial_placement({shape.num_layers, shape.num_logical, shape.num_slots}));
}

/// From the balanced placement of an earlier window.
void from_current(benchmark::State& state, incremental_placement const& policy, model const& shape) {
  topology const where{{shape.num_ranks, shape.num_nodes, shape.num_slots / shape.num_ranks, 0}};
  auto const before = ballast_bench::log_normal_loads(shape.num_layers, shape.num_logical);
  placement current;
  plan(balanced_placement{}, matrix_view<load_t const>{before, shape.num_layers, shape.num_logical},
       trivial_placement({shape.num_layers, shape.num_logical, shape.num_slots}), where, current)
      .or_throw();
  measure(state, policy, shape, ballast_bench::drifted(before, 0.1), current);
}

/// The layers of the first rank, which has most, with the default options.
void part_of_a_rank(benchmark::State& state, model const& shape, bool drift) {
  topology const where{{shape.num_ranks, shape.num_nodes, shape.num_slots / shape.num_ranks, 0}};
  auto const before = ballast_bench::log_normal_loads(shape.num_layers, shape.num_logical);
  auto const loads = drift ? ballast_bench::drifted(before, 0.1) : before;
  auto current = trivial_placement({shape.num_layers, shape.num_logical, shape.num_slots});
  if (drift) {
    placement planned;
    plan(incremental_placement{}, matrix_view<load_t const>{before, shape.num_layers, shape.num_logical}, current,
         where, planned)
        .or_throw();
    current = planned;
  }
  std::vector<index_t> layers;
  for (index_t layer = 0; layer < shape.num_layers; layer += shape.num_ranks) { layers.push_back(layer); }
  auto next = current;
  auto const plan_some = [&](std::span<index_t const> some) {
    incremental_placement{}
        .plan_layers(matrix_view<load_t const>{loads, shape.num_layers, shape.num_logical}, current, where, some, next)
        .or_throw();
    benchmark::DoNotOptimize(next.logical_of_slot().elements().data());
    benchmark::ClobberMemory();
  };
  auto const slices = [&] {
    std::vector<nanoseconds_t> times;
    auto const planner = incremental_placement{}.make_layer_planner(where, shape.num_logical);
    nanoseconds_t spent = 0;
    std::int64_t left = 50'000;
    for (auto const layer : layers) {
      auto start = detail::now();
      planner->begin(matrix_view<load_t const>{loads, shape.num_layers, shape.num_logical}, current, layer, next)
          .or_throw();
      while (!planner->is_finished()) {
        planner->advance(left).or_throw();
        auto const stop = detail::now();
        spent += stop - start;
        start = stop;
        if (left > 0) { continue; }
        times.push_back(std::exchange(spent, 0));
        left = 50'000;
      }
    }
    if (spent > 0) { times.push_back(spent); }
    return times;
  };
  for (auto _ : state) { plan_some(layers); }
  nanoseconds_t longest = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    auto least = std::numeric_limits<nanoseconds_t>::max();
    for (int repetition = 0; repetition < 5; ++repetition) {
      auto const start = detail::now();
      plan_some(std::span{layers}.subspan(i, 1));
      least = std::min(least, detail::now() - start);
    }
    longest = std::max(longest, least);
  }
  // The same slices each time: the least of five of each.
  auto least = slices();
  for (int repetition = 1; repetition < 5; ++repetition) {
    auto const again = slices();
    for (std::size_t i = 0; i < least.size(); ++i) { least[i] = std::min(least[i], again[i]); }
  }
  state.counters["longest_slice"] = static_cast<double>(*std::max_element(least.begin(), least.end())) / 1e6;
  state.counters["calls_in_slices"] = static_cast<double>(least.size());
  state.counters["layers"] = static_cast<double>(layers.size());
  state.counters["longest_layer"] = static_cast<double>(longest) / 1e6;
  state.SetLabel(BALLAST_BENCH_INSTRUCTION_SET);
}

void cells(benchmark::State& state, model const& shape) {
  topology const where{{shape.num_ranks, shape.num_nodes, shape.num_slots / shape.num_ranks, 0}};
  auto const before = ballast_bench::log_normal_loads(shape.num_layers, shape.num_logical);
  auto const loads = ballast_bench::drifted(before, 0.2);
  auto const start = trivial_placement({shape.num_layers, shape.num_logical, shape.num_slots});
  placement balanced;
  plan(balanced_placement{}, matrix_view<load_t const>{before, shape.num_layers, shape.num_logical}, start, where,
       balanced)
      .or_throw();
  placement next;
  double slowest = 0;
  for (auto _ : state) {
    std::vector<double> milliseconds;
    for (auto const shares : {share_mode::even, share_mode::optimal}) {
      for (index_t const moves : {-1, 8, 44, 400}) {
        for (placement const* current : {&std::as_const(start), &std::as_const(balanced)}) {
          incremental_placement const policy{.max_moves_per_layer = moves, .shares = shares};
          auto const begin = std::clock();
          plan(policy, matrix_view<load_t const>{loads, shape.num_layers, shape.num_logical}, *current, where, next)
              .or_throw();
          milliseconds.push_back(1000.0 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
        }
      }
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    slowest = std::max(slowest, milliseconds.back() / milliseconds[milliseconds.size() / 2]);
  }
  state.counters["slowest_over_median"] = slowest;
  state.SetLabel(BALLAST_BENCH_INSTRUCTION_SET);
}

constexpr model cell_models[] = {{"58x256", 58, 256, 288, 8, 1, 1},    {"58x256", 58, 256, 288, 16, 1, 1},
                                 {"58x256", 58, 256, 288, 32, 4, 1},   {"58x256", 58, 256, 320, 64, 8, 1},
                                 {"58x256", 58, 256, 288, 72, 9, 1},   {"58x256", 58, 256, 288, 144, 18, 1},
                                 {"2x1024", 2, 1024, 2048, 512, 8, 1}, {"1x2048", 1, 2048, 4096, 1024, 8, 1}};

constexpr model shared_models[] = {{"58x256", 58, 256, 288, 4, 1, 1},
                                   {"58x256", 58, 256, 288, 8, 1, 1},
                                   {"58x256", 58, 256, 288, 32, 4, 1},
                                   {"58x256", 58, 256, 288, 72, 9, 1},
                                   {"100x2048", 100, 2048, 4096, 1024, 8, 1}};

[[maybe_unused]] bool const registered = [] {
  auto const add = [](std::string const& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->Unit(benchmark::kMillisecond);
  };
  for (auto const& shape : models) {
    if (shape.num_groups > 1) {
      add(row_name("deepseek_hierarchical", shape),
          [&shape](auto& state) { from_scratch(state, deepseek_placement{.num_groups = shape.num_groups}, shape); });
    }
    add(row_name("deepseek_global", shape),
        [&shape](auto& state) { from_scratch(state, deepseek_placement{}, shape); });
    add(row_name("balanced", shape), [&shape](auto& state) { from_scratch(state, balanced_placement{}, shape); });
    add(row_name("incremental", shape), [&shape](auto& state) { from_current(state, incremental_placement{}, shape); });
  }
  for (auto const& shape : shared_models) {
    for (bool const drift : {false, true}) {
      auto const name = std::string{"part/"} + (drift ? "drift/" : "start/") + shape.name + "/" +
                        std::to_string(shape.num_slots) + "/" + std::to_string(shape.num_ranks);
      add(name, [&shape, drift](auto& state) { part_of_a_rank(state, shape, drift); });
    }
  }
  for (auto const& shape : cell_models) {
    add(row_name("cells", shape).substr(5), [&shape](auto& state) { cells(state, shape); });
  }
  for (index_t ranks = 32; ranks <= 1024; ranks *= 2) {
    model const shape{"curve", 100, 2 * ranks, 4 * ranks, ranks, 1, 1};
    add("incremental/curve/" + std::to_string(ranks),
        [shape](auto& state) { from_current(state, incremental_placement{}, shape); });
  }
  return true;
}();

}  // namespace
