// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What a commit would cost an engine whose kernels find each slot's weights by an address: experts then land in spare
// slots, and a commit writes a row of addresses in place of copying from staging.
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/detail/clock.hpp>

#include "expert_sizes.hpp"
#include "support.hpp"
#include "whole_layer.hpp"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>
#include <vector>

namespace {

using ballast::index_t;
using ballast::cudart::device_memory;
using ballast_bench::check;

constexpr index_t slots = 36;
constexpr int repetitions = 200;

/// What gets experts from where they arrived to where kernels read them.
enum class commit_kind { copy_engines, kernels, flip };

template <class Copies>
void commit(benchmark::State& state, std::string const& model, commit_kind kind) {
  auto const sizes = ballast_bench::sizes_named(model);
  auto const arrivals = static_cast<std::size_t>(state.range(0));
  auto const layer = ballast_bench::whole_layer(2, slots);
  auto const stream = ballast::cudart::stream::create();
  ballast::cudart::device_store<ballast::dispatch_tables, Copies> store{
      layer.where, 0, layer.current, {.compute_stream = stream.get(), .staging_limit = std::size_t{1} << 30}};
  std::vector<device_memory<std::byte>> weights;
  std::vector<ballast::byte_copy> copies;
  for (auto const bytes : sizes.tensors) {
    weights.push_back(device_memory<std::byte>::create(bytes * slots));
    store.add(0, std::to_string(weights.size()), weights.back().data(), bytes).or_throw();
  }
  store.reserve_staging(arrivals * (sizes.total() + sizes.tensors.size() * 256)).or_throw();
  store.warm_up().or_throw();
  std::size_t staged = 0;
  for (std::size_t slot = 0; slot < arrivals && kind != commit_kind::flip; ++slot) {
    for (std::size_t t = 0; t < sizes.tensors.size(); ++t) {
      auto const bytes = sizes.tensors[t];
      copies.push_back({weights[t].data() + slot * bytes, store.staging() + staged, bytes, 0});
      staged += (bytes + 255) / 256 * 256;
    }
  }
  auto const row_bytes = slots * sizes.tensors.size() * sizeof(std::uint64_t);
  auto const row = device_memory<std::byte>::create(row_bytes);
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, row_bytes), "cudaMallocHost");

  ballast_bench::stopwatch watch;
  std::vector<double> host;
  std::vector<double> device;
  ballast::epoch_t epoch = 0;
  for (int i = 0; i < repetitions; ++i) {
    watch.start(stream.get());
    auto const begin = ballast::detail::now();
    if (kind == commit_kind::flip) {
      check(cudaMemcpyAsync(row.data(), pinned, row_bytes, cudaMemcpyHostToDevice, stream.get()), "cudaMemcpyAsync");
    }
    store.commit(0, copies, i % 2 == 0 ? layer.next : layer.current, ++epoch).or_throw();
    host.push_back(static_cast<double>(ballast::detail::now() - begin) * 1e-3);
    device.push_back(watch.stop(stream.get()));
  }
  check(cudaFreeHost(pinned), "cudaFreeHost");
  for (auto _ : state) { state.SetIterationTime(ballast_bench::median(device) * 1e-6); }
  state.counters["device_us"] = ballast_bench::median(device);
  state.counters["device_p99_us"] = ballast_bench::quantile(device, 0.99);
  state.counters["host_us"] = ballast_bench::median(host);
}

template <class Copies>
void add(char const* name, std::string const& model, commit_kind kind) {
  benchmark::RegisterBenchmark((std::string{"commit/"} + name + "/" + model).c_str(),
                               [model, kind](benchmark::State& state) { commit<Copies>(state, model, kind); })
      ->ArgName("experts")
      ->Arg(1)
      ->Arg(4)
      ->Arg(8)
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}

int const registered = [] {
  for (auto const* const model : {"deepseek_v3_fp8", "qwen3_30b_fp8"}) {
    add<ballast::cudart::copy_batch>("copy_engines", model, commit_kind::copy_engines);
    add<ballast::cudart::kernel_copies>("kernels", model, commit_kind::kernels);
    add<ballast::cudart::copy_batch>("flip", model, commit_kind::flip);
  }
  return 0;
}();

}  // namespace
