// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// How a host learns that a stream has come to a place: by an event that it asks the driver about, or by a word in its
// own memory that the stream writes.
#include <ballast/detail/clock.hpp>

#include "support.hpp"

#include <benchmark/benchmark.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace {

using ballast_bench::check;

constexpr int repetitions = 2000;

__global__ void spin_kernel(long long cycles) {
  for (auto const begin = clock64(); clock64() - begin < cycles;) {}
}

class event_mark {
public:
  void put(cudaStream_t on) { event_.record(on).or_throw(); }
  [[nodiscard]] bool is_reached() const { return event_.query() == cudaSuccess; }

private:
  ballast::cudart::event event_ = ballast::cudart::event::create();
};

class word_mark {
public:
  word_mark() {
    void* host = nullptr;
    check(cudaHostAlloc(&host, sizeof(std::uint64_t), cudaHostAllocMapped), "cudaHostAlloc");
    word_ = new (host) std::uint64_t{0};
    void* device = nullptr;
    check(cudaHostGetDevicePointer(&device, host, 0), "cudaHostGetDevicePointer");
    on_device_ = reinterpret_cast<CUdeviceptr>(device);
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuStreamWriteValue64", &function, 12000, cudaEnableDefault, &found),
          "cudaGetDriverEntryPointByVersion");
    if (found != cudaDriverEntryPointSuccess) { throw std::runtime_error{"no cuStreamWriteValue64"}; }
    write_ = reinterpret_cast<decltype(write_)>(function);
  }
  word_mark(word_mark const&) = delete;
  word_mark& operator=(word_mark const&) = delete;
  ~word_mark() { static_cast<void>(cudaFreeHost(word_)); }

  void put(cudaStream_t on) {
    if (write_(on, on_device_, ++turn_, CU_STREAM_WRITE_VALUE_DEFAULT) != CUDA_SUCCESS) {
      throw std::runtime_error{"cuStreamWriteValue64 failed"};
    }
  }
  [[nodiscard]] bool is_reached() const {
    return std::atomic_ref<std::uint64_t>{*word_}.load(std::memory_order_acquire) == turn_;
  }

private:
  std::uint64_t* word_ = nullptr;
  CUdeviceptr on_device_ = 0;
  std::uint64_t turn_ = 0;
  decltype(&cuStreamWriteValue64) write_ = nullptr;
};

/// Microseconds of a call.
template <class Call>
[[nodiscard]] double time_of(Call call) {
  auto const begin = ballast::detail::now();
  call();
  return static_cast<double>(ballast::detail::now() - begin) * 1e-3;
}

/// Behind a kernel that takes 20 us or so: putting a mark, asking while it is not reached, asking when it is; and from
/// the kernel's launch until the mark is seen.
template <class Mark>
void marks(benchmark::State& state) {
  constexpr long long cycles = 40'000;
  auto const stream = ballast::cudart::stream::create();
  Mark mark;
  std::vector<double> put;
  std::vector<double> early;
  std::vector<double> late;
  std::vector<double> seen;
  for (int i = 0; i < repetitions; ++i) {
    auto const begin = ballast::detail::now();
    spin_kernel<<<1, 32, 0, stream.get()>>>(cycles);
    put.push_back(time_of([&] { mark.put(stream.get()); }));
    bool reached = false;
    early.push_back(time_of([&] { reached = mark.is_reached(); }));
    if (reached) { early.pop_back(); }
    while (!mark.is_reached()) {}
    seen.push_back(static_cast<double>(ballast::detail::now() - begin) * 1e-3);
    late.push_back(time_of([&] { reached = mark.is_reached(); }));
    check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  }
  auto const whole = ballast_bench::median(put) + ballast_bench::median(late);
  for (auto _ : state) { state.SetIterationTime(whole * 1e-6); }
  state.counters["put_us"] = ballast_bench::median(put);
  state.counters["early_us"] = ballast_bench::median(early);
  state.counters["late_us"] = ballast_bench::median(late);
  state.counters["seen_after_us"] = ballast_bench::median(seen);
}

BENCHMARK(marks<event_mark>)->Name("flags/event")->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
BENCHMARK(marks<word_mark>)->Name("flags/word")->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);

}  // namespace
