// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_GPU_SUPPORT_HPP
#define BALLAST_BENCH_GPU_SUPPORT_HPP

#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ballast_bench {

inline void check(cudaError_t result, char const* call) { ballast::cudart::to_status(result, call).or_throw(); }

/// Ranks of a benchmark: those that `./dev gpu --ranks` asks for, or else the usual number.
[[nodiscard]] inline ballast::index_t rank_count(ballast::index_t usual) {
  auto const* const wanted = std::getenv("BALLAST_GPU_RANKS");
  return wanted == nullptr ? usual : static_cast<ballast::index_t>(std::atoi(wanted));
}
/// Runs of what differs from process to process: one where the whole program is run several times.
[[nodiscard]] inline std::size_t run_count(std::size_t usual) {
  return std::getenv("BALLAST_GPU_RANKS") == nullptr ? usual : 1;
}
[[nodiscard]] inline int num_devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}
/// Make a rank's device current for this thread: one of its own where there are enough, otherwise ranks share.
inline void use_device_of(ballast::index_t rank) { check(cudaSetDevice(rank % num_devices()), "cudaSetDevice"); }

/// The value that `share` of the values are below.
[[nodiscard]] inline double quantile(std::vector<double> values, double share) {
  if (values.empty()) { return 0; }
  auto const at = values.begin() + static_cast<std::ptrdiff_t>(static_cast<double>(values.size()) * share);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}
[[nodiscard]] inline double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

/// An array in device memory with the contents of one in host memory.
template <class T>
[[nodiscard]] ballast::cudart::device_memory<T> to_device(std::vector<T> const& host) {
  auto result = ballast::cudart::device_memory<T>::create(host.size());
  check(cudaMemcpy(result.data(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return result;
}

/// Time between two points of a stream, in microseconds.
class stopwatch {
public:
  void start(cudaStream_t on) { begin_.record(on).or_throw(); }
  [[nodiscard]] double stop(cudaStream_t on) {
    end_.record(on).or_throw();
    check(cudaEventSynchronize(end_.get()), "cudaEventSynchronize");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "cudaEventElapsedTime");
    return 1e3 * static_cast<double>(milliseconds);
  }

private:
  ballast::cudart::event begin_ = ballast::cudart::event::create(cudaEventDefault);
  ballast::cudart::event end_ = ballast::cudart::event::create(cudaEventDefault);
};

/// A graph of many launches of one kind, one after the other, as a decode step replays them.
class launch_graph {
public:
  static constexpr int launches = 50;

  template <class Launch>
  launch_graph(cudaStream_t stream, Launch launch) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    for (int i = 0; i < launches; ++i) { launch(i); }
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&executable_, graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  launch_graph(launch_graph const&) = delete;
  launch_graph& operator=(launch_graph const&) = delete;
  ~launch_graph() { static_cast<void>(cudaGraphExecDestroy(executable_)); }

  /// Microseconds of one launch, from one replay.
  [[nodiscard]] double time(cudaStream_t stream, stopwatch& watch) const {
    watch.start(stream);
    check(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
    return watch.stop(stream) / launches;
  }

private:
  cudaGraphExec_t executable_ = nullptr;
};

/// Router choices of DeepSeek-V2-Lite (64 experts, top-6) for consecutive tokens, some of its layers.
class token_trace {
public:
  token_trace() {
    std::ifstream file{std::string{BALLAST_SOURCE_DIR} + "/bench/gpu/data/deepseek_v2_lite_tokens.csv"};
    char comma = 0;
    file >> num_tokens_ >> comma >> num_layers_ >> comma >> top_k_;
    ids_.resize(num_tokens_ * num_layers_ * top_k_);
    for (auto& id : ids_) {
      int value = 0;
      file >> value;
      file.get(comma);
      id = static_cast<std::int16_t>(value);
    }
    if (!file || ids_.empty()) { throw std::runtime_error{"cannot read the token trace"}; }
  }

  /// Choices `[T, top_k]` of a router with `num_logical` experts (a multiple of 64), made of real ones.
  ///
  /// The experts are taken as `num_logical / 64` blocks. Choice k of a token falls into the k-th part of the blocks
  /// and keeps the number in the block that a trace layer gave it; where a part has several blocks, a second layer's
  /// choice picks the block. Tokens beyond the trace use it again with other layers. The skew and the runs of similar
  /// tokens of the real model stay.
  [[nodiscard]] std::vector<std::int32_t> choices(std::size_t num_tokens, std::size_t top_k, std::size_t num_logical,
                                                  std::size_t layer) const {
    std::vector<std::int32_t> result(num_tokens * top_k);
    auto const blocks = num_logical / 64;
    for (std::size_t t = 0; t < num_tokens; ++t) {
      auto const again = t / num_tokens_;
      for (std::size_t k = 0; k < top_k; ++k) {
        auto const first_block = k * blocks / top_k;
        auto const part = std::max<std::size_t>((k + 1) * blocks / top_k - first_block, 1);
        auto const from = layer + again + k;
        auto const in_block = at(t % num_tokens_, from % num_layers_, k % top_k_);
        auto const block = first_block + at(t % num_tokens_, (from + 3) % num_layers_, (k + 1) % top_k_) % part;
        result[t * top_k + k] = static_cast<std::int32_t>(block * 64 + in_block);
      }
    }
    return result;
  }

private:
  [[nodiscard]] std::size_t at(std::size_t token, std::size_t layer, std::size_t k) const {
    return static_cast<std::size_t>(ids_[(token * num_layers_ + layer) * top_k_ + k]);
  }

  std::size_t num_tokens_ = 0;
  std::size_t num_layers_ = 0;
  std::size_t top_k_ = 0;
  std::vector<std::int16_t> ids_;
};

}  // namespace ballast_bench

#endif
