// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Planning transfers between two published-algorithm placements, and a whole chunk over in-process ranks.
#include <ballast/load/window_recorder.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/migration/waypoints.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include <benchmark/benchmark.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace {

using namespace ballast;

struct pair_of_plans {
  topology where;
  placement before;
  placement after;
};

/// Two plans from scratch on log-normal loads of which the second has drifted: what an engine that ignores the
/// placement in force has to move.
pair_of_plans make_pair(index_t num_layers, index_t num_logical, index_t num_slots, index_t num_ranks) {
  std::mt19937_64 random{58};  // NOLINT(cert-msc51-cpp): the same numbers in every run
  std::normal_distribution<double> normal;
  std::vector<load_t> first;
  std::vector<load_t> second;
  for (index_t i = 0; i < num_layers * num_logical; ++i) {
    auto const level = normal(random);
    first.push_back(static_cast<load_t>(4096 * std::exp(level)));
    second.push_back(static_cast<load_t>(4096 * std::exp(level + 0.1 * normal(random))));
  }
  pair_of_plans made{topology{{num_ranks, num_ranks >= 8 ? num_ranks / 8 : 1, num_slots / num_ranks, 0}}, {}, {}};
  auto const start = trivial_placement({num_layers, num_logical, num_slots});
  auto const view = [&](std::vector<load_t> const& loads) {
    return matrix_view<load_t const>{loads, num_layers, num_logical};
  };
  plan(deepseek_placement{}, view(first), start, made.where, made.before).or_throw();
  plan(deepseek_placement{}, view(second), start, made.where, made.after).or_throw();
  return made;
}

std::vector<index_t> all_layer_ids(placement const& of) {
  std::vector<index_t> layers(static_cast<std::size_t>(of.num_layers()));
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

void plan_transfers(benchmark::State& state, index_t num_layers, index_t num_logical, index_t num_slots,
                    index_t num_ranks) {
  auto const pair = make_pair(num_layers, num_logical, num_slots, num_ranks);
  auto const layers = all_layer_ids(pair.before);
  transfer_plan made;
  for (auto _ : state) {
    made.assign(pair.where, pair.before, pair.after, layers).or_throw();
    benchmark::DoNotOptimize(made.num_moves());
  }
  state.counters["moves"] = static_cast<double>(made.num_moves());
}
BENCHMARK_CAPTURE(plan_transfers, 58x256 / 288 / 32, 58, 256, 288, 32)
    ->Name("transfer_plan/58x256/288/32")
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan_transfers, 94x128 / 144 / 16, 94, 128, 144, 16)
    ->Name("transfer_plan/94x128/144/16")
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan_transfers, 61x512 / 1024 / 128, 61, 512, 1024, 128)
    ->Name("transfer_plan/61x512/1024/128")
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan_transfers, 100x2048 / 4096 / 1024, 100, 2048, 4096, 1024)
    ->Name("transfer_plan/100x2048/4096/1024")
    ->Unit(benchmark::kMillisecond);

/// Waypoints of every layer with room for one expert a rank.
void plan_waypoints(benchmark::State& state) {
  auto const pair = make_pair(58, 256, 288, 32);
  waypoint_planner planner;
  std::vector<index_t> rows;
  std::size_t steps = 0;
  for (auto _ : state) {
    steps = 0;
    for (index_t layer = 0; layer < 58; ++layer) {
      planner.split(pair.where, pair.before.logical_of_slot(layer), pair.after.logical_of_slot(layer), 256, 1, rows);
      steps += rows.size() / 288;
    }
  }
  state.counters["waypoints"] = static_cast<double>(steps);
}
BENCHMARK(plan_waypoints)->Name("waypoints/58x256/288/32")->Unit(benchmark::kMillisecond);

/// Changes nothing: placements come from outside.
struct keep_placement {
  [[nodiscard]] status plan(load_history_view, placement const& current, topology const&, placement& next) const {
    next = current;
    return {};
  }
  [[nodiscard]] status validate() const { return {}; }
  void describe(digest& out) const { out.add(std::string_view{"keep_placement"}); }
};

/// One rank that puts one placement after the other in force.
class moving_rank {
public:
  moving_rank(pair_of_plans const& pair, in_process_endpoint& wire, std::size_t expert_bytes)
      : pair_{&pair},
        wire_{&wire},
        weights_(static_cast<std::size_t>(pair.where.slots_per_rank()) * expert_bytes, std::byte{1}),
        store_{pair.where, 1},
        moved_{pair.where,
               pair.before,
               {window_recorder{1, pair.before.num_logical()}, keep_placement{}, all_layers{}},
               store_,
               wire} {
    store_.add(0, "weights", weights_.data(), expert_bytes).or_throw();
    moved_.start().or_throw();
  }
  void move(bool there) { moved_.apply(there ? pair_->after : pair_->before).or_throw(); }
  /// Follow rank 0 until it says stop.
  void follow() {
    for (bool there = true;; there = !there) {
      std::array<std::byte, 1> go{};
      wire_->broadcast(go, 0, moved_.options().timeout).or_throw();
      if (go[0] == std::byte{0}) { return; }
      move(there);
    }
  }
  void say(bool go) {
    std::array<std::byte, 1> word{std::byte{go}};
    wire_->broadcast(word, 0, moved_.options().timeout).or_throw();
  }

private:
  pair_of_plans const* pair_;
  in_process_endpoint* wire_;
  std::vector<std::byte> weights_;
  host_store store_;
  rebalancer<window_recorder, keep_placement, all_layers<>, in_process_endpoint> moved_;
};

/// A whole chunk: one layer, agreed, moved and committed by eight threads.
void move_chunk(benchmark::State& state) {
  auto const expert_bytes = static_cast<std::size_t>(state.range(0));
  auto const pair = make_pair(1, 64, 72, 8);
  in_process_group group{8};
  std::vector<std::thread> others;
  for (index_t rank = 1; rank < 8; ++rank) {
    others.emplace_back([&, rank] { moving_rank{pair, group.endpoint(rank), expert_bytes}.follow(); });
  }
  moving_rank first{pair, group.endpoint(0), expert_bytes};
  bool there = false;
  for (auto _ : state) {
    first.say(true);
    first.move(there = !there);
  }
  first.say(false);
  for (auto& other : others) { other.join(); }
  transfer_plan made;
  made.assign(pair.where, pair.before, pair.after, all_layer_ids(pair.before)).or_throw();
  state.counters["moves"] = static_cast<double>(made.num_moves());
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * made.num_moves() * state.range(0));
}
BENCHMARK(move_chunk)
    ->Name("chunk/in_process/64/72/8")
    ->Arg(4096)
    ->Arg(1 << 20)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
