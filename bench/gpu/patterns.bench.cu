// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Moves of many shapes between cards: by the transport, with copy engines and with kernels, and by hand.
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>

#include "expert_sizes.hpp"
#include "rank_processes.hpp"
#include "support.hpp"
#include "whole_layer.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

using ballast::index_t;
using ballast::cudart::device_memory;
using ballast_bench::changed_layer;
using ballast_bench::check;
using ballast_bench::together;

constexpr ballast::nanoseconds_t timeout = 20'000'000'000;
constexpr int repetitions = 25;

constexpr char const* patterns[] = {"one_to_one", "one_to_all", "scatter", "gather", "ring", "all_to_all"};
constexpr char const* movers[] = {"copy_engines", "kernels"};

/// What each rank gets: pairs of a rank that has an expert, and which of its experts.
using arrivals = std::vector<std::vector<std::pair<index_t, index_t>>>;

[[nodiscard]] arrivals arrivals_of(std::string const& pattern, index_t num_ranks) {
  constexpr index_t whole = 9;  // experts of a rank of DeepSeek-V3 on 32 ranks
  arrivals result(static_cast<std::size_t>(num_ranks));
  auto const give = [&result](index_t rank, index_t from, index_t which) {
    result[static_cast<std::size_t>(rank)].push_back({from, which});
  };
  if (pattern == "one_to_one") { give(1, 0, 0); }
  for (index_t rank = 1; rank < num_ranks; ++rank) {
    if (pattern == "one_to_all") { give(rank, 0, 0); }
    if (pattern == "scatter") { give(rank, 0, rank - 1); }
    if (pattern == "gather") { give(0, rank, 0); }
  }
  for (index_t rank = 0; rank < num_ranks; ++rank) {
    for (index_t i = 0; i < whole; ++i) {
      if (pattern == "ring") { give(rank, (rank + 1) % num_ranks, i); }
      if (pattern == "all_to_all") { give(rank, (rank + 1 + i % (num_ranks - 1)) % num_ranks, i); }
    }
  }
  return result;
}

/// Every rank has its experts in the first half of its slots, and something that others have too in the second.
[[nodiscard]] changed_layer layer_of(arrivals const& wanted) {
  auto const num_ranks = static_cast<index_t>(wanted.size());
  constexpr index_t own = 9;
  constexpr index_t slots = 2 * own;
  std::vector<index_t> before;
  for (index_t rank = 0; rank < num_ranks; ++rank) {
    for (index_t slot = 0; slot < slots; ++slot) { before.push_back(rank * own + slot % own); }
  }
  auto after = before;
  for (index_t rank = 0; rank < num_ranks; ++rank) {
    auto slot = rank * slots + own;
    for (auto const& [from, which] : wanted[static_cast<std::size_t>(rank)]) {
      after[static_cast<std::size_t>(slot++)] = from * own + which;
    }
  }
  return {num_ranks, slots, num_ranks * own, before, after};
}

/// The most experts that one rank sends or receives: what a link must carry at least.
[[nodiscard]] double busiest_of(arrivals const& wanted) {
  std::vector<int> sent(wanted.size());
  int most = 0;
  for (auto const& of_rank : wanted) {
    most = std::max(most, static_cast<int>(of_rank.size()));
    for (auto const& [from, which] : of_rank) { most = std::max(most, ++sent[static_cast<std::size_t>(from)]); }
  }
  return most;
}

/// What a rank sends, written into the peers' memory by hand.
/// @param scratch  region in which every rank lets others write, as large as its staging
template <class Directory>
[[nodiscard]] ballast_bench::copies_by_hand pushes_by_hand(Directory const& directory, changed_layer const& layer,
                                                           ballast_bench::layer_messages const& messages,
                                                           ballast_bench::expert_sizes const& sizes,
                                                           std::uint32_t scratch) {
  ballast_bench::copies_by_hand pushes;
  std::vector<std::size_t> used(static_cast<std::size_t>(directory.num_ranks()));
  std::size_t next = 0;
  for (auto const& move : layer.transfer.moves) {
    auto const to = layer.where.rank_of_slot(move.target_slot);
    auto& at = used[static_cast<std::size_t>(to)];
    bool const mine = layer.where.rank_of_slot(move.source_slot) == directory.rank();
    auto const* const send = mine ? &messages.sends()[next++] : nullptr;
    for (std::size_t i = 0; i < sizes.tensors.size(); ++i) {
      if (mine) { pushes.add(directory.region(to, scratch).data + at, send->segments[i].data, sizes.tensors[i]); }
      at += (sizes.tensors[i] + 255) / 256 * 256;
    }
  }
  return pushes;
}

template <class Copies>
void measure(ballast::posix::process_group& group, ballast_bench::expert_sizes const& sizes, std::string const& mover,
             ballast_bench::samples& result) {
  using peers = ballast::cudart::ipc_peers<ballast::posix::process_group>;
  ballast::cudart::peer_copy<peers, Copies> wires{peers{group}};
  auto const compute = ballast::cudart::stream::create();
  auto const first = layer_of(arrivals_of("all_to_all", group.num_ranks()));
  ballast::cudart::device_store<> store{
      first.where,
      group.rank(),
      first.current,
      {.compute_stream = compute.get(), .copy_streams = {wires.copy_stream()}, .staging_limit = std::size_t{1} << 30}};
  std::vector<device_memory<std::byte>> weights;
  for (auto const bytes : sizes.tensors) {
    weights.push_back(device_memory<std::byte>::create(bytes * static_cast<std::size_t>(first.where.slots_per_rank())));
    store.add(0, std::to_string(weights.size()), weights.back().data(), bytes).or_throw();
  }
  ballast_bench::layer_messages const most{first, group.rank(), store};
  auto const scratch = device_memory<std::byte>::create(std::size_t{1} << 29);
  wires.expose(store.regions(), 0).or_throw();
  auto const region = wires.next_region();
  ballast::segment const open{scratch.data(), std::size_t{1} << 29};
  wires.expose({&open, 1}, region).or_throw();
  for (std::string const pattern : patterns) {
    auto const layer = layer_of(arrivals_of(pattern, group.num_ranks()));
    ballast_bench::layer_messages messages{layer, group.rank(), store};
    auto const pulls = ballast_bench::pulls_by_hand(wires.directory(), messages);
    auto const pushes = pushes_by_hand(wires.directory(), layer, messages, sizes, region);
    for (int i = 0; i < repetitions; ++i) {
      for (std::size_t streams = 1; streams <= 3; ++streams) {
        if (mover != movers[0]) { break; }
        auto const name = std::to_string(streams);
        result[pattern + ".pull_" + name].push_back(together(group, [&] { pulls.run(streams); }));
        result[pattern + ".push_" + name].push_back(together(group, [&] { pushes.run(streams); }));
      }
      messages.renew_tags(layer.transfer.moves.size());
      result[pattern + "." + mover].push_back(together(group, [&] {
        store.prepare().or_throw();
        wires.start(messages.sends(), messages.receives()).or_throw();
        wires.wait(timeout).or_throw();
      }));
    }
  }
}

ballast_bench::samples move_patterns(ballast::posix::process_group& group, std::string const& model) {
  ballast_bench::use_device_of(group.rank());
  ballast_bench::samples result;
  auto const sizes = ballast_bench::sizes_named(model);
  measure<ballast::cudart::copy_batch>(group, sizes, movers[0], result);
  measure<ballast::cudart::kernel_copies>(group, sizes, movers[1], result);
  return result;
}

/// All patterns with one size of experts, measured once.
[[nodiscard]] ballast_bench::samples const& results_of(index_t num_ranks, std::string const& model) {
  static std::map<std::string, ballast_bench::samples> known;
  auto const found = known.find(model);
  if (found != known.end()) { return found->second; }
  return known[model] = ballast_bench::run_ranks("move_patterns", num_ranks, model);
}

void report(benchmark::State& state, std::string const& pattern, std::string const& model) {
  auto const num_ranks = std::max<index_t>(ballast_bench::rank_count(8), 2);
  auto const& result = results_of(num_ranks, model);
  auto const bytes =
      busiest_of(arrivals_of(pattern, num_ranks)) * static_cast<double>(ballast_bench::sizes_named(model).total());
  auto const rate = [&](std::string const& how) {
    return bytes / ballast_bench::median(result.at(pattern + "." + how)) * 1e-3;
  };
  std::size_t i = 0;
  for (auto _ : state) { state.SetIterationTime(result.at(pattern + "." + movers[0])[i++ % repetitions] * 1e-6); }
  double pull = 0;
  double push = 0;
  for (std::string const streams : {"1", "2", "3"}) {
    pull = std::max(pull, rate("pull_" + streams));
    push = std::max(push, rate("push_" + streams));
  }
  state.counters["pull_GBs"] = pull;
  state.counters["push_GBs"] = push;
  for (std::string const mover : movers) {
    state.counters[mover + "_GBs"] = rate(mover);
    state.counters[mover + "_of_plain"] = rate(mover) / std::max(pull, push);
  }
  state.counters["median_us"] = ballast_bench::median(result.at(pattern + "." + movers[0]));
}

void add(std::string const& pattern, std::string const& model) {
  benchmark::RegisterBenchmark(("peer_copy/pattern/" + pattern + "/" + model).c_str(),
                               [pattern, model](benchmark::State& state) { report(state, pattern, model); })
      ->UseManualTime()
      ->Iterations(repetitions)
      ->Unit(benchmark::kMicrosecond);
}

int const registered = [] {
  ballast_bench::register_rank_job("move_patterns", &move_patterns);
  for (auto const* const model : {"deepseek_v3_fp8", "gpt_oss_mxfp4", "qwen3_30b_fp8"}) {
    for (auto const* const pattern : patterns) { add(pattern, model); }
  }
  return 0;
}();

}  // namespace
