// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/posix/process_group.hpp>

#include "expert_sizes.hpp"
#include "rank_processes.hpp"
#include "support.hpp"
#include "whole_layer.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace {

using ballast::index_t;
using ballast::cudart::device_memory;
using ballast_bench::check;
using ballast_bench::together;

constexpr index_t slots = 9;
constexpr ballast::nanoseconds_t timeout = 20'000'000'000;
constexpr int repetitions = 25;

ballast_bench::samples pull_a_layer(ballast::posix::process_group& group, std::string const& argument) {
  using peers = ballast::cudart::ipc_peers<ballast::posix::process_group>;
  ballast_bench::use_device_of(group.rank());
  auto const sizes = ballast_bench::sizes_named(argument);
  auto const layer = ballast_bench::whole_layer(group.num_ranks(), slots);
  auto const compute = ballast::cudart::stream::create();
  // Contexts that share a card take turns: what goes out late waits for the next one.
  ballast::nanoseconds_t const gathering = group.num_ranks() > ballast_bench::num_devices() ? 200'000 : 20'000;
  ballast::cudart::peer_copy<peers> wires{peers{group}, {.gathering = gathering}};
  ballast::cudart::device_store<> store{
      layer.where,
      group.rank(),
      layer.current,
      {.compute_stream = compute.get(), .copy_streams = {wires.copy_stream()}, .staging_limit = std::size_t{1} << 30}};
  std::vector<device_memory<std::byte>> weights;
  for (auto const bytes : sizes.tensors) {
    weights.push_back(device_memory<std::byte>::create(bytes * slots));
    store.add(0, std::to_string(weights.size()), weights.back().data(), bytes).or_throw();
  }
  wires.expose(store.regions(), 0).or_throw();
  ballast_bench::layer_messages messages{layer, group.rank(), store};
  auto const plain = ballast_bench::pulls_by_hand(wires.directory(), messages);

  ballast_bench::samples result;
  for (int i = 0; i < repetitions; ++i) {
    for (std::size_t const streams : {1u, 2u, 3u}) {
      result["plain" + std::to_string(streams)].push_back(together(group, [&] { plain.run(streams); }));
    }
    messages.renew_tags(layer.transfer.moves.size());
    result["receive"].push_back(together(group, [&] {
      store.prepare().or_throw();
      wires.start(messages.sends(), messages.receives()).or_throw();
      wires.wait(timeout).or_throw();
    }));
    result["commit"].push_back(together(group, [&] {
      store.commit(0, messages.commits(), layer.next, 1).or_throw();
      check(cudaStreamSynchronize(compute.get()), "cudaStreamSynchronize");
    }));
  }
  return result;
}

void eight_processes(benchmark::State& state, std::string const& model) {
  auto const num_ranks = std::max<index_t>(ballast_bench::rank_count(8), 2);
  auto const sizes = ballast_bench::sizes_named(model);
  auto const result = ballast_bench::run_ranks("pull_a_layer", num_ranks, model);
  auto const payload = static_cast<double>(sizes.total()) * num_ranks * slots;
  auto const gigabytes = [&](std::string const& name) {
    return payload / ballast_bench::median(result.at(name)) * 1e-3;
  };
  std::size_t i = 0;
  for (auto _ : state) { state.SetIterationTime(result.at("receive")[i++ % repetitions] * 1e-6); }
  auto const best = std::max({gigabytes("plain1"), gigabytes("plain2"), gigabytes("plain3")});
  for (auto const* const name : {"plain1", "plain2", "plain3", "receive"}) {
    state.counters[std::string{name} + "_GBs"] = gigabytes(name);
  }
  state.counters["of_plain"] = gigabytes("receive") / best;
  state.counters["commit_GBs_rw"] = 2 * gigabytes("commit");
  state.counters["whole_of_plain"] =
      payload / (ballast_bench::median(result.at("receive")) + ballast_bench::median(result.at("commit"))) * 1e-3 /
      best;
}

int const registered = [] {
  ballast_bench::register_rank_job("pull_a_layer", &pull_a_layer);
  for (std::string const model : {"deepseek_v3_fp8", "gpt_oss_mxfp4", "qwen3_30b_fp8"}) {
    benchmark::RegisterBenchmark(("peer_copy/eight_processes/" + model).c_str(),
                                 [model](benchmark::State& state) { eight_processes(state, model); })
        ->UseManualTime()
        ->Iterations(repetitions)
        ->Unit(benchmark::kMicrosecond);
  }
  return 0;
}();

}  // namespace
