// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// How the cost of balanced plans grows with the ranks, the cases that plan.bench.cpp leaves out, and relabelling. Rows:
// balanced/curve/<ranks> (100 layers, 2 experts and 4 slots a rank), balanced/<case>, relabel/<nodes>.
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/relabel.hpp>

#include "support/loads.hpp"

#include <benchmark/benchmark.h>

#include <string>
#include <vector>

namespace {

using namespace ballast;

struct problem {
  topology where;
  placement_shape shape;
  std::vector<load_t> loads;

  problem(topology_shape sizes, index_t num_layers, index_t num_logical)
      : where{sizes},
        shape{num_layers, num_logical, where.num_slots()},
        loads{ballast_bench::log_normal_loads(num_layers, num_logical)} {}
  [[nodiscard]] matrix_view<load_t const> view() const { return {loads, shape.num_layers, shape.num_logical}; }
};

/// Sum over layers of the best lower bound, for the share of it that a plan reaches.
double sum_of_bounds(problem const& in, index_t num_groups) {
  double sum = 0;
  for (index_t layer = 0; layer < in.shape.num_layers; ++layer) {
    sum += lower_bound(in.where, in.view().row(layer), num_groups).best();
  }
  return sum;
}

void plan_again_and_again(benchmark::State& state, problem const& in, balanced_placement const& policy) {
  auto const current = trivial_placement(in.shape);
  placement next;
  for (auto _ : state) {
    plan(policy, in.view(), current, in.where, next).or_throw();
    benchmark::DoNotOptimize(next.logical_of_slot().elements().data());
    benchmark::ClobberMemory();
  }
  double max = 0;
  for (index_t layer = 0; layer < in.shape.num_layers; ++layer) {
    max += balance_of(in.where, next, layer, in.view().row(layer)).max;
  }
  state.counters["balancedness"] = balancedness(in.where, next, in.view());
  bool const whole = policy.locality == group_locality::whole;
  state.counters["bound_ratio"] = max / sum_of_bounds(in, whole ? policy.num_groups : 1);
  state.SetLabel(BALLAST_BENCH_INSTRUCTION_SET);
}

void curve(benchmark::State& state) {
  auto const ranks = static_cast<index_t>(state.range(0));
  plan_again_and_again(state, {{ranks, 1, 4, 0}, 100, 2 * ranks}, {});
}
BENCHMARK(curve)->Name("balanced/curve")->RangeMultiplier(2)->Range(32, 1024)->Unit(benchmark::kMillisecond);

void two_slots(benchmark::State& state) { plan_again_and_again(state, {{144, 18, 2, 0}, 58, 256}, {}); }
BENCHMARK(two_slots)->Name("balanced/58x256/288/144")->Unit(benchmark::kMillisecond);

void four_slots(benchmark::State& state) { plan_again_and_again(state, {{72, 9, 4, 0}, 58, 256}, {}); }
BENCHMARK(four_slots)->Name("balanced/58x256/288/72")->Unit(benchmark::kMillisecond);

void whole_groups(benchmark::State& state) { plan_again_and_again(state, {{32, 4, 9, 0}, 58, 256}, {.num_groups = 8}); }
BENCHMARK(whole_groups)->Name("balanced/58x256/288/32/whole_groups")->Unit(benchmark::kMillisecond);

void relaxed_groups(benchmark::State& state) {
  plan_again_and_again(state, {{32, 4, 9, 0}, 58, 256}, {.num_groups = 8, .locality = group_locality::relaxed});
}
BENCHMARK(relaxed_groups)->Name("balanced/58x256/288/32/relaxed_groups")->Unit(benchmark::kMillisecond);

/// From a plan for other loads.
void relabel_again_and_again(benchmark::State& state) {
  problem const in{{32, static_cast<index_t>(state.range(0)), 9, 0}, 58, 256};
  auto const later = ballast_bench::drifted(in.loads, 0.5);
  placement current;
  placement wanted;
  auto const start = trivial_placement(in.shape);
  plan(balanced_placement{}, in.view(), start, in.where, current).or_throw();
  plan(balanced_placement{}, matrix_view<load_t const>{later, 58, 256}, start, in.where, wanted).or_throw();
  placement target;
  for (auto _ : state) {
    target = wanted;
    relabel(current, in.where, target);
    benchmark::DoNotOptimize(target.logical_of_slot().elements().data());
    benchmark::ClobberMemory();
  }
  auto const a_layer = [&](placement const& to) {
    return static_cast<double>(count_moves(in.where, current, to)) / 58;
  };
  state.counters["moves_before"] = a_layer(wanted);
  state.counters["moves_after"] = a_layer(target);
  state.SetLabel(BALLAST_BENCH_INSTRUCTION_SET);
}
BENCHMARK(relabel_again_and_again)->Name("relabel/58x256/288/32")->Arg(1)->Arg(4)->Unit(benchmark::kMillisecond);

}  // namespace
