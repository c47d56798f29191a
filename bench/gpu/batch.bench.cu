// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Balancing every batch: its stages in a graph, and what comes out.
#include <ballast/cudart/device_tables.hpp>
#include <ballast/cudart/kernels/batch_balancer.cuh>
#include <ballast/dispatch/tables.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/topology.hpp>

#include "empty_race.cuh"
#include "support.hpp"

#include <benchmark/benchmark.h>
#include <support/splitmix.hpp>
#include <support/trace_files.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using ballast::index_t;
using ballast::load_t;
using ballast::cudart::device_memory;
using ballast_bench::check;
using ballast_bench::launch_graph;
using ballast_bench::to_device;

constexpr index_t num_layers = launch_graph::launches;

struct queue_for_each_stream {
  queue_for_each_stream() { ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); }
} const queues;

/// Call `work(i)` for i in [0, count).
template <class Work>
void on_all_cores(index_t count, Work work) {
  std::atomic<index_t> next{0};
  std::vector<std::jthread> threads;
  for (unsigned n = 0; n < std::thread::hardware_concurrency(); ++n) {
    threads.emplace_back([&] {
      for (auto i = next++; i < count; i = next++) { work(i); }
    });
  }
}

/// Router choices of a batch: with DeepSeek-R1's recordings at hand ids drawn from one for each layer, else those of
/// the token trace. `planned` are the loads to plan on: another recording, or other tokens.
class workload {
public:
  std::size_t top_k;

  workload(index_t num_logical, std::size_t choices_a_token, std::string const& plan_on, std::string const& run_on)
      : top_k{choices_a_token}, num_logical_{num_logical} {
    auto const before = ballast_test::find_trace("deepseek-r1/" + plan_on);
    auto const now = ballast_test::find_trace("deepseek-r1/" + run_on);
    if (num_logical == 256 && !before.empty() && !now.empty()) {
      recorded_ = ballast_test::read_trace(now);
      planned_ = ballast_test::read_trace(before).tokens;
      planned_.resize(static_cast<std::size_t>(num_layers) * 256);
      return;
    }
    for (index_t layer = 0; layer < num_layers; ++layer) {
      auto const loads = count(trace_.choices(8192, top_k, static_cast<std::size_t>(num_logical), offset(layer) + 1));
      planned_.insert(planned_.end(), loads.begin(), loads.end());
    }
  }

  [[nodiscard]] ballast::matrix_view<load_t const> planned() const {
    return {std::span<load_t const>{planned_}, num_layers, num_logical_};
  }
  [[nodiscard]] std::vector<std::int32_t> choices(index_t layer, index_t rank, std::size_t num_tokens) const {
    if (recorded_.tokens.empty()) {
      auto all = trace_.choices(num_tokens, top_k, static_cast<std::size_t>(num_logical_), offset(layer));
      std::rotate(all.begin(), all.begin() + rank % static_cast<index_t>(num_tokens) * static_cast<index_t>(top_k),
                  all.end());
      return all;
    }
    auto const loads = recorded_.step(0).row(layer);
    std::vector<load_t> sums(loads.size());
    std::partial_sum(loads.begin(), loads.end(), sums.begin());
    ballast_test::splitmix random{static_cast<std::uint64_t>(layer) * 1000 + static_cast<std::uint64_t>(rank)};
    std::vector<std::int32_t> ids(num_tokens * top_k);
    for (auto& id : ids) {
      auto const draw = static_cast<load_t>(random.next() % static_cast<std::uint64_t>(sums.back()));
      id = static_cast<std::int32_t>(std::upper_bound(sums.begin(), sums.end(), draw) - sums.begin());
    }
    return ids;
  }
  [[nodiscard]] std::vector<load_t> count(std::vector<std::int32_t> const& ids) const {
    std::vector<load_t> loads(static_cast<std::size_t>(num_logical_));
    for (auto const id : ids) { ++loads[static_cast<std::size_t>(id)]; }
    return loads;
  }
  [[nodiscard]] char const* name() const { return recorded_.tokens.empty() ? "token trace" : "DeepSeek-R1"; }

private:
  [[nodiscard]] static std::size_t offset(index_t layer) { return static_cast<std::size_t>(layer) % 8; }
  index_t num_logical_;
  ballast_bench::token_trace trace_;
  ballast_test::trace recorded_;
  std::vector<load_t> planned_;
};

/// One rank of a group, and the counts of all of them in device memory.
struct one_rank {
  one_rank(ballast::topology const& where, index_t rank, workload const& of, std::size_t num_tokens, bool warm = false)
      : held{ballast::trivial_placement({num_layers, of.planned().columns(), where.num_slots()})},
        top_k{static_cast<index_t>(of.top_k)} {
    ballast::placement start = held;
    ballast::plan(ballast::headroom_placement{}, of.planned(), start, where, held).or_throw();
    ballast::cudart::batch_options options;
    options.max_tokens = static_cast<index_t>(num_tokens);
    options.top_k = static_cast<index_t>(of.top_k);
    options.control.wait_nanoseconds = 1'000'000'000;
    options.warm_start = warm;
    balancer = std::make_unique<ballast::cudart::batch_balancer>(stream.get(), where, rank, held, options);
    tables = std::make_unique<ballast::cudart::device_tables<>>(
        ballast::dispatch_tables{where, held.shape(), ballast::rank_id{rank}, ballast::dispatch_mode::by_share}, where,
        rank);
    for (index_t layer = 0; layer < num_layers; ++layer) {
      tables->publish(where, held, layer, stream.get()).or_throw();
    }
    std::vector<std::vector<std::int32_t>> drawn(static_cast<std::size_t>(num_layers));
    on_all_cores(num_layers,
                 [&](index_t layer) { drawn[static_cast<std::size_t>(layer)] = of.choices(layer, rank, num_tokens); });
    for (auto const& of_layer : drawn) { ids.push_back(to_device(of_layer)); }
    physical = device_memory<std::int32_t>::create(num_tokens * of.top_k);
    check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  }
  [[nodiscard]] ballast::cudart::routing<std::int32_t> input(int layer) const {
    auto const& of_layer = ids[static_cast<std::size_t>(layer)];
    return {of_layer.data(), static_cast<index_t>(of_layer.size()) / top_k, top_k, nullptr};
  }

  ballast::cudart::stream stream = ballast::cudart::stream::create();
  ballast::placement held;
  index_t top_k;
  std::unique_ptr<ballast::cudart::batch_balancer> balancer;
  std::unique_ptr<ballast::cudart::device_tables<>> tables;
  std::vector<device_memory<std::int32_t>> ids;
  device_memory<std::int32_t> physical;
};

/// Sums over the layers, as the device tells them.
void report_balance(benchmark::State& state, ballast::cudart::batch_balancer const& balancer, index_t ranks,
                    index_t layers = num_layers) {
  double max = 0;
  double bound = 0;
  double mean = 0;
  double resident = 0;
  double sweeps = 0;
  double searches = 0;
  double most_searches = 0;
  double worst = 1;
  for (index_t layer = 0; layer < layers; ++layer) {
    auto const told = balancer.statistics(layer);
    max += told.max;
    bound += told.bound;
    resident += told.resident;
    mean += static_cast<double>(told.total) / ranks;
    sweeps += told.sweeps;
    searches += told.searches;
    most_searches = std::max<double>(most_searches, told.searches);
    worst = std::max(worst, told.bound == 0 ? 1 : static_cast<double>(told.max) / told.bound);
    if (told.exact != told.batches) { state.SkipWithError("a batch went by the shares in force"); }
  }
  state.counters["max_of_mean"] = max / mean;
  state.counters["resident_of_mean"] = resident / mean;
  state.counters["excess_ppm"] = 1e6 * (max / bound - 1);
  state.counters["worst_ppm"] = 1e6 * (worst - 1);
  state.counters["sweeps"] = sweeps / layers;
  state.counters["searches"] = searches / layers;
  state.counters["searches_most"] = most_searches;
}

/// Solve and tables alone: the counts of all ranks are there.
///
/// @param warm  each batch starts from the quotas of the one before: two batches of half of the layers, in turn.
void plan(benchmark::State& state, std::string const& plan_on, std::string const& run_on, bool warm) {
  auto const ranks = static_cast<index_t>(state.range(0));
  auto const num_logical = static_cast<index_t>(state.range(2));
  auto const num_tokens = static_cast<std::size_t>(state.range(3));
  ballast::topology const where{{ranks, 1, static_cast<index_t>(state.range(1)), 0}};
  workload const of{num_logical, static_cast<std::size_t>(state.range(4)), plan_on, run_on};
  one_rank self{where, 0, of, num_tokens, warm};
  auto const layers = warm ? num_layers / 2 : num_layers;
  std::vector<std::vector<index_t>> drawn(static_cast<std::size_t>(num_layers));
  on_all_cores(num_layers, [&](index_t batch) {
    auto& all = drawn[static_cast<std::size_t>(batch)];
    for (index_t rank = 0; rank < ranks; ++rank) {
      auto const loads = of.count(of.choices(batch % layers, rank + batch / layers * ranks, num_tokens));
      all.insert(all.end(), loads.begin(), loads.end());
    }
  });
  std::vector<device_memory<index_t>> counts;
  for (auto const& all : drawn) { counts.push_back(to_device(all)); }
  auto const view = self.balancer->view();
  auto const ids = ballast::cudart::detail::cut(view, self.input(0));
  ballast::cudart::detail::launch_count(self.stream.get(), view, ids, false).or_throw();
  launch_graph const graph{self.stream.get(), [&](int i) {
                             ballast::cudart::detail::launch_plan(
                                 self.stream.get(),
                                 {view, {}, counts[static_cast<std::size_t>(i)].data(), i % layers, num_blocks(ids)},
                                 true)
                                 .or_throw();
                           }};
  ballast_bench::race_with_empty(state, self.stream.get(), graph);
  report_balance(state, *self.balancer, ranks, layers);
  state.SetLabel(of.name());
}

/// Count and map, without what stands between them.
void count_and_remap(benchmark::State& state) {
  auto const num_tokens = static_cast<std::size_t>(state.range(0));
  auto const num_logical = static_cast<index_t>(state.range(1));
  ballast::topology const where{{1, 1, num_logical + num_logical / 8, 0}};
  workload const of{num_logical, static_cast<std::size_t>(state.range(2)), "prefill_in1024", "prefill_in4096"};
  one_rank self{where, 0, of, num_tokens};
  auto const view = self.balancer->view();
  ballast::cudart::balance_and_dispatch(self.stream.get(), view, {}, self.tables->view(), 0, self.input(0),
                                        self.physical.data())
      .or_throw();
  launch_graph const graph{self.stream.get(), [&](int i) {
                             auto const ids = ballast::cudart::detail::cut(view, self.input(i % 8));
                             ballast::cudart::detail::launch_count(self.stream.get(), view, ids, true).or_throw();
                             ballast::cudart::detail::launch_remap(self.stream.get(), view, self.tables->view(), ids, 0,
                                                                   self.physical.data(), true)
                                 .or_throw();
                           }};
  ballast_bench::race_with_empty(state, self.stream.get(), graph);
}

/// Let kernels on each card write to the memory of the others.
void enable_peer_access() {
  for (int from = 0; from < ballast_bench::num_devices(); ++from) {
    check(cudaSetDevice(from), "cudaSetDevice");
    for (int to = 0; to < ballast_bench::num_devices(); ++to) {
      if (to == from) { continue; }
      auto const result = cudaDeviceEnablePeerAccess(to, 0);
      if (result == cudaErrorPeerAccessAlreadyEnabled) {
        static_cast<void>(cudaGetLastError());
      } else {
        check(result, "cudaDeviceEnablePeerAccess");
      }
    }
  }
}

/// The whole chain of all ranks, each on a stream of its own: on a card of its own while there are enough.
void chain(benchmark::State& state) {
  auto const ranks = static_cast<index_t>(state.range(0));
  auto const num_tokens = static_cast<std::size_t>(state.range(3));
  ballast::topology const where{{ranks, 1, static_cast<index_t>(state.range(1)), 0}};
  workload const of{static_cast<index_t>(state.range(2)), static_cast<std::size_t>(state.range(4)), "prefill_in1024",
                    "prefill_in4096"};
  std::vector<std::unique_ptr<one_rank>> group;
  std::vector<ballast::segment> boards;
  enable_peer_access();
  for (index_t rank = 0; rank < ranks; ++rank) {
    ballast_bench::use_device_of(rank);
    group.push_back(std::make_unique<one_rank>(where, rank, of, num_tokens));
    boards.push_back(group.back()->balancer->board());
  }
  std::vector<cudaGraphExec_t> graphs;
  std::vector<ballast::cudart::event> ended;
  for (index_t rank = 0; rank < ranks; ++rank) {
    ballast_bench::use_device_of(rank);
    ended.push_back(ballast::cudart::event::create());
    auto const& self = group[static_cast<std::size_t>(rank)];
    self->balancer->connect(boards).or_throw();
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(self->stream.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    for (int layer = 0; layer < num_layers; ++layer) {
      ballast::cudart::balance_and_dispatch(self->stream.get(), self->balancer->view(), {}, self->tables->view(), layer,
                                            self->input(layer), self->physical.data())
          .or_throw();
    }
    check(cudaStreamEndCapture(self->stream.get(), &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&graphs.emplace_back(), graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  ballast_bench::use_device_of(0);
  auto const& first = group.front()->stream;
  auto const begun = ballast::cudart::event::create();
  ballast_bench::stopwatch watch;
  std::vector<double> times;
  auto const run = [&] {
    watch.start(first.get());
    begun.record(first.get()).or_throw();
    for (std::size_t r = 0; r < group.size(); ++r) {
      ballast_bench::use_device_of(static_cast<index_t>(r));
      auto const on = group[r]->stream.get();
      if (r > 0) { check(cudaStreamWaitEvent(on, begun.get(), 0), "cudaStreamWaitEvent"); }
      check(cudaGraphLaunch(graphs[r], on), "cudaGraphLaunch");
      ended[r].record(on).or_throw();
    }
    ballast_bench::use_device_of(0);
    for (auto const& each : ended) { check(cudaStreamWaitEvent(first.get(), each.get(), 0), "cudaStreamWaitEvent"); }
    return watch.stop(first.get()) / num_layers;
  };
  for (int i = 0; i < 3; ++i) { static_cast<void>(run()); }
  for (auto _ : state) {
    times.push_back(run());
    state.SetIterationTime(times.back() * 1e-6);
  }
  state.counters["median_us"] = ballast_bench::median(times);
  state.counters["p90_us"] = ballast_bench::quantile(times, 0.9);
  state.counters["cards"] = std::min<int>(ballast_bench::num_devices(), ranks);
  report_balance(state, *group.front()->balancer, ranks);
  for (auto const graph : graphs) { check(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy"); }
}

[[maybe_unused]] bool const registered = [] {
  auto const add = [](char const* name, auto run) {
    return benchmark::RegisterBenchmark(name, run)->UseManualTime()->Unit(benchmark::kMicrosecond);
  };
  auto const plan_of = [](bool warm) {
    return [warm](benchmark::State& state) { plan(state, "prefill_in1024", "prefill_in4096", warm); };
  };
  auto* const warm_rows = add("batch/plan_warm", plan_of(true))
                              ->ArgNames({"ranks", "slots", "experts", "tokens", "top_k"})
                              ->Iterations(100);
  auto* const rows =
      add("batch/plan", plan_of(false))->ArgNames({"ranks", "slots", "experts", "tokens", "top_k"})->Iterations(100);
  for (auto const& [ranks, slots] : {std::pair{8, 36}, {32, 12}, {64, 6}, {32, 9}}) {
    rows->Args({ranks, slots, 256, 4096, 8});
    warm_rows->Args({ranks, slots, 256, 4096, 8});
  }
  for (auto const tokens : {64, 16384}) { rows->Args({64, 6, 256, tokens, 8}); }
  rows->Args({64, 7, 384, 4096, 8})
      ->Args({64, 9, 512, 4096, 10})
      ->Args({64, 15, 896, 4096, 16})
      ->Args({64, 6, 256, 4096, 4});
  auto* const ends =
      add("batch/count_and_remap", count_and_remap)->ArgNames({"tokens", "experts", "top_k"})->Iterations(200);
  for (auto const tokens : {64, 4096, 16384}) { ends->Args({tokens, 256, 8}); }
  for (auto const experts : {64, 512, 1024, 4096}) { ends->Args({4096, experts, 8}); }
  for (auto const top_k : {4, 10, 16}) { ends->Args({4096, 256, top_k}); }
  auto* const chains =
      add("batch/chain", chain)->ArgNames({"ranks", "slots", "experts", "tokens", "top_k"})->Iterations(40);
  chains->Args({1, 288, 256, 4096, 8})->Args({2, 144, 256, 4096, 8})->Args({8, 36, 256, 4096, 8});
  chains->Args({8, 36, 256, 64, 8})->Args({8, 36, 256, 16384, 8});
  return true;
}();

}  // namespace
