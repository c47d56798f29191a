// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Optimal shares and plans made for them: time and balance of all layers of a DeepSeek-V3-like model.
#include <ballast/placement/balancedness.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/shares/replica_shares.hpp>

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

namespace {

using namespace ballast;

constexpr index_t num_layers = 58;
constexpr index_t num_logical = 256;

/// Loads of two windows, `[L, E]`: log-normal as measured on DeepSeek-R1, and the same after a drift.
struct two_windows {
  std::vector<load_t> first;
  std::vector<load_t> second;
};

two_windows make_windows() {
  std::mt19937_64 random{58};  // NOLINT(cert-msc51-cpp): the same numbers in every run
  std::normal_distribution<double> normal;
  two_windows made;
  for (index_t i = 0; i < num_layers * num_logical; ++i) {
    auto const level = 0.65 * normal(random);
    made.first.push_back(static_cast<load_t>(250'000 * std::exp(level)));
    made.second.push_back(static_cast<load_t>(250'000 * std::exp(level + 0.28 * normal(random))));
  }
  return made;
}

matrix_view<load_t const> view(std::vector<load_t> const& loads) { return {loads, num_layers, num_logical}; }

placement plan_on(std::vector<load_t> const& loads, topology const& where) {
  placement made;
  plan(headroom_placement{}, view(loads), trivial_placement({num_layers, num_logical, where.num_slots()}), where, made)
      .or_throw();
  return made;
}

void solve_shares(benchmark::State& state, share_precision precision) {
  auto const ranks = static_cast<index_t>(state.range(0));
  auto const slots = static_cast<index_t>(state.range(1));
  topology const where{{ranks, 1, slots / ranks, 0}};
  auto const windows = make_windows();
  auto made = plan_on(windows.first, where);
  share_solver solver;
  for (auto _ : state) {
    state.PauseTiming();
    made.make_shares_even();
    state.ResumeTiming();
    optimal_shares(where, made, view(windows.second), solver, precision).or_throw();
    benchmark::ClobberMemory();
  }
  state.counters["balancedness"] = balancedness(where, made, view(windows.second));
  made.drop_shares();
  state.counters["balancedness_even"] = balancedness(where, made, view(windows.second));
}
BENCHMARK_CAPTURE(solve_shares, exact, share_precision::exact)
    ->Args({32, 288})
    ->Args({32, 384})
    ->Args({72, 288})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(solve_shares, fast, share_precision::fast)
    ->Args({32, 288})
    ->Args({32, 384})
    ->Args({72, 288})
    ->Unit(benchmark::kMillisecond);

void plan_headroom(benchmark::State& state) {
  auto const ranks = static_cast<index_t>(state.range(0));
  auto const slots = static_cast<index_t>(state.range(1));
  topology const where{{ranks, 1, slots / ranks, 0}};
  auto const windows = make_windows();
  auto const current = trivial_placement({num_layers, num_logical, slots});
  placement made;
  for (auto _ : state) { plan(headroom_placement{}, view(windows.first), current, where, made).or_throw(); }
  state.counters["balancedness"] = balancedness(where, made, view(windows.first));
}
BENCHMARK(plan_headroom)->Args({32, 288})->Args({32, 384})->Args({72, 288})->Unit(benchmark::kMillisecond);

}  // namespace
