// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_tables.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/fold.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>

#include "empty_race.cuh"
#include "support.hpp"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>
#include <vector>

namespace {

using ballast::index_t;
using ballast::cudart::device_memory;
using ballast_bench::check;
using ballast_bench::launch_graph;
using ballast_bench::to_device;

enum class work { record, dispatch, fused, one_atomic_an_id };

template <class Id>
__global__ void one_atomic_an_id(Id const* ids, std::uint32_t num_ids, std::uint32_t* counts, index_t num_logical) {
  auto const i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < num_ids && ids[i] >= 0 && ids[i] < num_logical) { atomicAdd(&counts[ids[i]], 1u); }
}

/// Tables with an eighth more slots than experts: the first experts have two candidates, the others one.
struct tables {
  tables(index_t num_layers, index_t num_logical, ballast::dispatch_rule rule) {
    auto const extra = num_logical / 8;
    view.num_layers = num_layers;
    view.num_logical = num_logical;
    view.num_slots = num_logical + extra;
    view.salt = 1;
    view.rule = rule;
    std::vector<ballast::replica_range> host_ranges;
    std::vector<ballast::dispatch_entry> host_entries;
    for (index_t layer = 0; layer < num_layers; ++layer) {
      index_t next = 0;
      for (index_t e = 0; e < num_logical; ++e) {
        index_t const count = e < extra ? 2 : 1;
        host_ranges.push_back({next, count});
        for (index_t i = 0; i < count; ++i, ++next) {
          host_entries.push_back(ballast::make_dispatch_entry(next, next, 0));
        }
      }
    }
    ranges = to_device(host_ranges);
    entries = to_device(host_entries);
    view.ranges = ranges.data();
    view.entries = entries.data();
  }
  ballast::dispatch_view view;
  device_memory<ballast::replica_range> ranges;
  device_memory<ballast::dispatch_entry> entries;
};

/// Device-to-device copy rate of this card, bytes read plus bytes written per microsecond.
double copy_rate(cudaStream_t stream) {
  static double const rate = [stream] {
    constexpr std::size_t bytes = std::size_t{256} << 20;
    auto const from = device_memory<std::byte>::create(bytes);
    auto const to = device_memory<std::byte>::create(bytes);
    ballast_bench::stopwatch watch;
    std::vector<double> times;
    for (int i = 0; i < 20; ++i) {
      watch.start(stream);
      check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
      times.push_back(watch.stop(stream));
    }
    return 2.0 * static_cast<double>(bytes) / ballast_bench::median(times);
  }();
  return rate;
}

/// The race, and how long the bytes alone would take at the copy rate of the card.
void race_with_empty(benchmark::State& state, cudaStream_t stream, launch_graph const& graph, double bytes) {
  ballast_bench::race_with_empty(state, stream, graph);
  if (bytes > 0) { state.counters["bytes_us"] = bytes / copy_rate(stream); }
}

template <class Id>
void route(benchmark::State& state, work what, ballast::dispatch_rule rule, bool early) {
  auto const num_tokens = static_cast<std::size_t>(state.range(0));
  auto const num_logical = static_cast<std::size_t>(state.range(1));
  constexpr std::size_t top_k = 8;
  constexpr auto num_layers = launch_graph::launches;
  static ballast_bench::token_trace const trace;

  auto const stream = ballast::cudart::stream::create();
  std::vector<device_memory<Id>> ids;
  std::vector<device_memory<Id>> physical;
  // The router has just written the ids, into the same few buffers for every layer: they come from the L2 cache.
  constexpr std::size_t num_buffers = 8;
  for (std::size_t layer = 0; layer < num_buffers; ++layer) {
    auto const choices = trace.choices(num_tokens, top_k, num_logical, layer);
    ids.push_back(to_device(std::vector<Id>(choices.begin(), choices.end())));
    physical.push_back(device_memory<Id>::create(choices.size()));
  }
  auto const num_valid = to_device(std::vector<std::int32_t>{static_cast<std::int32_t>(num_tokens)});
  ballast::cudart::device_recorder const counts{stream.get(), num_layers, static_cast<index_t>(num_logical), {1, 1}};
  tables const map{num_layers, static_cast<index_t>(num_logical), rule};
  auto const num_ids = static_cast<std::uint32_t>(num_tokens * top_k);

  launch_graph const graph{
      stream.get(), [&](int i) {
        auto const at = static_cast<std::size_t>(i) % num_buffers;
        ballast::cudart::routing<Id> const input{ids[at].data(), static_cast<index_t>(num_tokens), top_k,
                                                 num_valid.data()};
        switch (what) {
          case work::record: ballast::cudart::record(stream.get(), counts.view(), i, input, early).or_throw(); break;
          case work::dispatch:
            ballast::cudart::dispatch(stream.get(), map.view, i, input, physical[at].data(), early).or_throw();
            break;
          case work::fused:
            ballast::cudart::dispatch_and_record(stream.get(), counts.view(), map.view, i, input, physical[at].data(),
                                                 early)
                .or_throw();
            break;
          case work::one_atomic_an_id:
            one_atomic_an_id<<<(num_ids + 255) / 256, 256, 0, stream.get()>>>(
                input.ids, num_ids, counts.view().pass + static_cast<std::size_t>(i) * num_logical,
                static_cast<index_t>(num_logical));
            break;
        }
      }};
  auto const passes = what == work::dispatch || what == work::fused ? 2.0 : 1.0;
  race_with_empty(state, stream.get(), graph, passes * static_cast<double>(num_ids * sizeof(Id)));
}

/// Tables of 288 slots for 256 experts on 32 ranks, most replicated experts with three uneven shares.
struct share_tables {
  static constexpr index_t num_layers = launch_graph::launches;
  static constexpr index_t num_logical = 256;
  explicit share_tables(cudaStream_t stream, ballast::dispatch_mode mode)
      : tables{ballast::dispatch_tables{where, {num_layers, num_logical, 288}, ballast::rank_id{1}, mode}, where, 1} {
    auto holds = ballast::trivial_placement({num_layers, num_logical, 288});
    holds.make_shares_even();
    for (index_t layer = 0; layer < num_layers; ++layer) {
      auto const shares = holds.edit_shares(layer);
      for (index_t expert = 0; expert < num_logical; ++expert) {
        auto const replicas = holds.replicas_of(layer, expert);
        if (replicas.size() < 2) { continue; }
        auto const moved = shares[static_cast<std::size_t>(replicas[0])] / 3;
        shares[static_cast<std::size_t>(replicas[0])] -= moved;
        shares[static_cast<std::size_t>(replicas[1])] += moved;
      }
      tables.publish(where, holds, layer, stream).or_throw();
    }
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }
  ballast::topology where{{32, 4, 9, 0}};
  ballast::cudart::device_tables<> tables;
};

/// Uneven shares in turn with even ones: the same choices, dispatched alone or counted too.
void by_share(benchmark::State& state, bool counted) {
  auto const num_tokens = static_cast<std::size_t>(state.range(0));
  constexpr std::size_t top_k = 8;
  static ballast_bench::token_trace const trace;
  auto const stream = ballast::cudart::stream::create();
  std::vector<device_memory<std::int32_t>> ids;
  std::vector<device_memory<std::int32_t>> physical;
  constexpr std::size_t num_buffers = 8;
  for (std::size_t layer = 0; layer < num_buffers; ++layer) {
    ids.push_back(to_device(trace.choices(num_tokens, top_k, share_tables::num_logical, layer)));
    physical.push_back(device_memory<std::int32_t>::create(num_tokens * top_k));
  }
  ballast::cudart::device_recorder const counts{
      stream.get(), share_tables::num_layers, share_tables::num_logical, {1, 1}};
  share_tables const shared{stream.get(), ballast::dispatch_mode::by_share};
  share_tables const even{stream.get(), ballast::dispatch_mode::even};
  auto const launch = [&](share_tables const& map, int i) {
    auto const at = static_cast<std::size_t>(i) % num_buffers;
    ballast::cudart::routing<std::int32_t> const input{ids[at].data(), static_cast<index_t>(num_tokens), top_k,
                                                       nullptr};
    if (counted) {
      ballast::cudart::dispatch_and_record(stream.get(), counts.view(), map.tables.view(), i, input,
                                           physical[at].data())
          .or_throw();
    } else {
      ballast::cudart::dispatch(stream.get(), map.tables.view(), i, input, physical[at].data()).or_throw();
    }
  };
  launch_graph const by_share_graph{stream.get(), [&](int i) { launch(shared, i); }};
  launch_graph const even_graph{stream.get(), [&](int i) { launch(even, i); }};
  ballast_bench::stopwatch watch;
  std::vector<double> times;
  std::vector<double> even_times;
  for (int i = 0; i < 5; ++i) {
    static_cast<void>(even_graph.time(stream.get(), watch));
    static_cast<void>(by_share_graph.time(stream.get(), watch));
  }
  for (auto _ : state) {
    even_times.push_back(even_graph.time(stream.get(), watch));
    times.push_back(by_share_graph.time(stream.get(), watch));
    state.SetIterationTime(times.back() * 1e-6);
  }
  state.counters["median_us"] = ballast_bench::median(times);
  state.counters["even_us"] = ballast_bench::median(even_times);
  state.counters["x_even"] = ballast_bench::median(times) / ballast_bench::median(even_times);
}

void fold(benchmark::State& state) {
  auto const num_layers = static_cast<index_t>(state.range(0));
  auto const num_logical = static_cast<index_t>(state.range(1));
  auto const stream = ballast::cudart::stream::create();
  ballast::cudart::device_recorder const counts{stream.get(), num_layers, num_logical, {1, 1}};
  auto const cells = ballast::cudart::detail::padded_cells(num_layers, num_logical);
  auto const bucket = device_memory<ballast::load_t>::create(cells);
  launch_graph const graph{
      stream.get(), [&](int) {
        ballast::cudart::detail::fold(stream.get(), counts.view(), {.to = {bucket.data(), false}}).or_throw();
      }};
  race_with_empty(state, stream.get(), graph,
                  static_cast<double>(cells) * (2 * sizeof(std::uint32_t) + 2 * sizeof(ballast::load_t)));
}

template <class Id>
void add_route(std::string const& name, work what, ballast::dispatch_rule rule = ballast::dispatch_rule::hashed,
               bool early = true) {
  auto* const benchmark = benchmark::RegisterBenchmark(
      (name + "/" + (sizeof(Id) == 4 ? "int32" : "int64")).c_str(),
      [what, rule, early](benchmark::State& state) { route<Id>(state, what, rule, early); });
  benchmark->ArgNames({"tokens", "experts"})->UseManualTime()->Iterations(200)->Unit(benchmark::kMicrosecond);
  for (auto const experts : {64, 256, 512, 1024, 4096}) {
    if (experts != 256) {
      benchmark->Args({4096, experts});
      continue;
    }
    for (auto const tokens : {64, 1024, 4096, 16384}) { benchmark->Args({tokens, experts}); }
  }
}

int const registered = [] {
  add_route<std::int32_t>("record", work::record);
  add_route<std::int64_t>("record", work::record);
  add_route<std::int32_t>("dispatch_hashed", work::dispatch);
  add_route<std::int64_t>("dispatch_hashed", work::dispatch);
  add_route<std::int32_t>("dispatch_rotated", work::dispatch, ballast::dispatch_rule::rotated);
  add_route<std::int64_t>("dispatch_rotated", work::dispatch, ballast::dispatch_rule::rotated);
  add_route<std::int32_t>("fused_hashed", work::fused);
  add_route<std::int64_t>("fused_hashed", work::fused);
  add_route<std::int32_t>("fused_rotated", work::fused, ballast::dispatch_rule::rotated);
  add_route<std::int64_t>("fused_rotated", work::fused, ballast::dispatch_rule::rotated);
  auto const hashed = ballast::dispatch_rule::hashed;
  add_route<std::int32_t>("record_plain_launch", work::record, hashed, false);
  add_route<std::int32_t>("fused_plain_launch", work::fused, hashed, false);
  add_route<std::int32_t>("one_atomic_an_id", work::one_atomic_an_id);
  add_route<std::int64_t>("one_atomic_an_id", work::one_atomic_an_id);
  for (bool const counted : {false, true}) {
    auto* const benchmark =
        benchmark::RegisterBenchmark(counted ? "fused_by_share" : "dispatch_by_share",
                                     [counted](benchmark::State& state) { by_share(state, counted); });
    benchmark->ArgName("tokens")->UseManualTime()->Iterations(200)->Unit(benchmark::kMicrosecond);
    for (auto const tokens : {64, 1024, 4096, 16384}) { benchmark->Arg(tokens); }
  }
  benchmark::RegisterBenchmark("fold", fold)
      ->ArgNames({"layers", "experts"})
      ->UseManualTime()
      ->Iterations(200)
      ->Unit(benchmark::kMicrosecond)
      ->Args({58, 256})
      ->Args({92, 896});
  return 0;
}();

}  // namespace
