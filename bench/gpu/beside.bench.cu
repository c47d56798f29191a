// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What an engine's own small work takes while experts arrive: a kernel, rows for the next card, numbers for the host.
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/posix/process_group.hpp>

#include "expert_sizes.hpp"
#include "rank_processes.hpp"
#include "support.hpp"
#include "whole_layer.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

namespace {

using ballast::index_t;
using ballast::cudart::device_memory;
using ballast_bench::check;

constexpr ballast::nanoseconds_t timeout = 20'000'000'000;
constexpr int batches = 40;
constexpr std::size_t row_bytes = std::size_t{1} << 20;
constexpr std::size_t answer_bytes = 2048;
constexpr char const* works[] = {"kernel", "rows_to_peer", "answer_to_host"};

/// How experts move, in pieces of how many bytes at most.
struct way {
  char const* name;
  bool by_kernels;
  std::size_t piece;
};
constexpr std::size_t whole = std::size_t{1} << 40;
constexpr std::size_t mebibyte = std::size_t{1} << 20;
constexpr way ways[] = {{"copy_engines", false, whole},
                        {"copy_engines_4_mib", false, 4 * mebibyte},
                        {"copy_engines_1_mib", false, mebibyte},
                        {"kernels", true, whole}};

__global__ void compute(float* out, int rounds) {
  float value = static_cast<float>(threadIdx.x);
  for (int i = 0; i < rounds; ++i) { value = fmaf(value, 0.999f, 0.5f); }
  if (value < 0) { *out = value; }
}
__global__ void send_rows(uint4 const* from, uint4* to, std::size_t count) {
  for (auto i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    to[i] = from[i];
  }
}

/// The same bytes of an expert, cut into more tensors.
[[nodiscard]] ballast_bench::expert_sizes in_pieces(ballast_bench::expert_sizes const& sizes, std::size_t most) {
  auto cut = sizes;
  cut.tensors.clear();
  for (auto bytes : sizes.tensors) {
    for (; bytes > most; bytes -= most) { cut.tensors.push_back(most); }
    cut.tensors.push_back(bytes);
  }
  return cut;
}

/// An engine's stream, and what it does now and then. Each returns microseconds of the host, from the launch to the
/// end.
class small_work {
public:
  explicit small_work(std::byte* peer) : peer_{peer} {
    check(cudaMallocHost(&answer_, answer_bytes), "cudaMallocHost");
  }
  small_work(small_work const&) = delete;
  small_work& operator=(small_work const&) = delete;
  ~small_work() { static_cast<void>(cudaFreeHost(answer_)); }

  [[nodiscard]] double run(std::size_t which) {
    auto const begin = ballast::detail::now();
    auto* const on = stream_.get();
    switch (which) {
      case 0: compute<<<132, 256, 0, on>>>(reinterpret_cast<float*>(rows_.data()), 2000); break;
      case 1:
        send_rows<<<64, 256, 0, on>>>(reinterpret_cast<uint4 const*>(rows_.data()), reinterpret_cast<uint4*>(peer_),
                                      row_bytes / sizeof(uint4));
        break;
      default:
        check(cudaMemcpyAsync(answer_, rows_.data(), answer_bytes, cudaMemcpyDeviceToHost, on), "cudaMemcpyAsync");
    }
    check(cudaStreamSynchronize(on), "cudaStreamSynchronize");
    return static_cast<double>(ballast::detail::now() - begin) * 1e-3;
  }

private:
  std::byte* peer_;
  void* answer_ = nullptr;
  ballast::cudart::stream stream_ = ballast::cudart::stream::create();
  device_memory<std::byte> rows_ = device_memory<std::byte>::create(row_bytes);
};

template <class Copies>
void measure(ballast::posix::process_group& group, way const& how, ballast_bench::samples& result) {
  using peers = ballast::cudart::ipc_peers<ballast::posix::process_group>;
  auto const sizes = in_pieces(ballast_bench::deepseek_v3_fp8(), how.piece);
  auto const layer = ballast_bench::whole_layer(group.num_ranks(), 9);
  ballast::cudart::peer_copy<peers, Copies> wires{peers{group}};
  auto const compute_stream = ballast::cudart::stream::create();
  ballast::cudart::device_store<> store{layer.where,
                                        group.rank(),
                                        layer.current,
                                        {.compute_stream = compute_stream.get(),
                                         .copy_streams = {wires.copy_stream()},
                                         .staging_limit = std::size_t{1} << 30}};
  std::vector<device_memory<std::byte>> weights;
  for (auto const bytes : sizes.tensors) {
    weights.push_back(device_memory<std::byte>::create(bytes * 9));
    store.add(0, std::to_string(weights.size()), weights.back().data(), bytes).or_throw();
  }
  auto const inbox = device_memory<std::byte>::create(row_bytes);
  wires.expose(store.regions(), 0).or_throw();
  auto const region = wires.next_region();
  ballast::segment const open{inbox.data(), row_bytes};
  wires.expose({&open, 1}, region).or_throw();
  auto const next = (group.rank() + 1) % group.num_ranks();
  small_work own{wires.directory().region(next, region).data};
  ballast_bench::layer_messages messages{layer, group.rank(), store};
  for (std::size_t which = 0; which < std::size(works); ++which) {
    std::string const work = works[which];
    for (int i = 0; i < 20; ++i) { static_cast<void>(own.run(which)); }
    group.vote(true, timeout).reason.or_throw();
    for (int i = 0; i < 400; ++i) { result[work + "/alone/" + how.name].push_back(own.run(which)); }
    for (int i = 0; i < batches; ++i) {
      messages.renew_tags(layer.transfer.moves.size());
      group.vote(true, timeout).reason.or_throw();
      store.prepare().or_throw();
      auto const begin = ballast::detail::now();
      wires.start(messages.sends(), messages.receives()).or_throw();
      while (wires.poll() == ballast::transfer_state::pending && ballast::detail::now() < begin + timeout) {
        result[work + "/beside/" + how.name].push_back(own.run(which));
      }
      wires.wait(timeout).or_throw();
      result[work + "/moved/" + how.name].push_back(static_cast<double>(ballast::detail::now() - begin) * 1e-3);
    }
  }
}

ballast_bench::samples work_beside(ballast::posix::process_group& group, std::string const&) {
  ballast_bench::use_device_of(group.rank());
  ballast_bench::samples result;
  for (auto const& how : ways) {
    if (how.by_kernels) {
      measure<ballast::cudart::kernel_copies>(group, how, result);
    } else {
      measure<ballast::cudart::copy_batch>(group, how, result);
    }
  }
  return result;
}

void report(benchmark::State& state, std::string const& work, std::string const& how) {
  static auto const result = ballast_bench::run_ranks("work_beside", ballast_bench::rank_count(2), "");
  auto const& alone = result.at(work + "/alone/" + how);
  auto const& beside = result.at(work + "/beside/" + how);
  for (auto _ : state) { state.SetIterationTime(ballast_bench::median(beside) * 1e-6); }
  state.counters["alone_us"] = ballast_bench::median(alone);
  state.counters["alone_p99_us"] = ballast_bench::quantile(alone, 0.99);
  state.counters["beside_us"] = ballast_bench::median(beside);
  state.counters["beside_p99_us"] = ballast_bench::quantile(beside, 0.99);
  auto const bytes = static_cast<double>(ballast_bench::deepseek_v3_fp8().total()) * 9;
  state.counters["moving_GBs"] = bytes / ballast_bench::median(result.at(work + "/moved/" + how)) * 1e-3;
}

void add(std::string const& work, std::string const& how) {
  benchmark::RegisterBenchmark(("beside/" + work + "/" + how).c_str(),
                               [work, how](benchmark::State& state) { report(state, work, how); })
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}

int const registered = [] {
  ballast_bench::register_rank_job("work_beside", &work_beside);
  // Ranks that share a card tell nothing of links.
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < ballast_bench::rank_count(2)) { return 0; }
  for (auto const* const work : works) {
    for (auto const& how : ways) { add(work, how.name); }
  }
  return 0;
}();

}  // namespace
