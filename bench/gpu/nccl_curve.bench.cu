// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What NCCL's thread blocks buy and cost between two cards: whole layers by send and receive, over the number of blocks
// and over kinds of memory, alone and beside an engine; and what moves without blocks.
#include <nccl.h>

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)  // windows and policies of thread blocks are new

  #include <ballast/cudart/handles.hpp>
  #include <ballast/detail/clock.hpp>
  #include <ballast/detail/text.hpp>
  #include <ballast/nccl/error.hpp>
  #include <ballast/posix/process_group.hpp>
  #include <ballast/transport/in_process.hpp>

  #include "expert_sizes.hpp"
  #include "rank_processes.hpp"
  #include "support.hpp"

  #include <benchmark/benchmark.h>
  #include <nccl_device.h>

  #include <algorithm>
  #include <array>
  #include <cstddef>
  #include <cstdint>
  #include <map>
  #include <span>
  #include <stdexcept>
  #include <string>
  #include <utility>
  #include <vector>

namespace {

using ballast::index_t;
using ballast_bench::check;
using ballast_bench::expert_sizes;
using ballast_bench::median;
using ballast_bench::samples;
using ballast_bench::together;

constexpr std::size_t num_experts = 9;
constexpr ballast::nanoseconds_t timeout = 20'000'000'000;
constexpr int repetitions = 7;
constexpr int beside_repetitions = 5;
constexpr std::size_t experts_beside = 4;

void check_nccl(ncclResult_t result, char const* call) { ballast::nccl::to_status(result, call).or_throw(); }

/// Least and most thread blocks of a communicator; NCCL's own choice where both are 0.
struct block_range {
  char const* name;
  int least;
  int most;
};
constexpr block_range all_blocks[] = {{"1", 1, 1},    {"2", 2, 2},    {"4", 4, 4},    {"8", 8, 8},  {"16", 16, 16},
                                      {"24", 24, 24}, {"32", 32, 32}, {"64", 64, 64}, {"own", 0, 0}};

// ---- kernels ----------------------------------------------------------------------------------------------------

__device__ std::uint32_t pattern(std::size_t at, std::uint32_t seed) {
  return (static_cast<std::uint32_t>(at) + seed) * 2654435761u;
}
__global__ void fill(std::uint32_t* words, std::size_t count, std::uint32_t seed) {
  for (std::size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    words[i] = pattern(i, seed);
  }
}
__global__ void count_wrong(std::uint32_t const* words, std::size_t count, std::uint32_t seed, unsigned* wrong) {
  for (std::size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    if (words[i] != pattern(i, seed)) { atomicAdd(wrong, 1u); }
  }
}
/// A block of an engine's matrix product: alone on its multiprocessor, all arithmetic.
__global__ void __launch_bounds__(384, 1) multiply(float* out, int rounds) {
  float value = static_cast<float>(threadIdx.x);
  for (int i = 0; i < rounds; ++i) { value = fmaf(value, 0.999f, 0.5f); }
  if (value < 0) { *out = value; }
}
constexpr int bytes_of_a_block = 160 * 1024;
constexpr int rounds_of_a_block = 1500;
constexpr int blocks_per_multiprocessor = 32;

__global__ void find_peer(ncclWindow_t window, int peer, void** out) { *out = ncclGetLsaPointer(window, 0, peer); }

// ---- ranks ------------------------------------------------------------------------------------------------------

/// Until all ranks are here.
template <class Control>
void meet(Control& control) {
  control.vote(true, timeout).reason.or_throw();
}

/// Memory of NCCL's allocator or of CUDA's.
class buffer {
public:
  buffer(std::size_t bytes, bool by_nccl) : by_nccl_{by_nccl} {
    if (by_nccl) {
      check_nccl(ncclMemAlloc(&data_, bytes), "ncclMemAlloc");
    } else {
      check(cudaMalloc(&data_, bytes), "cudaMalloc");
    }
  }
  buffer(buffer const&) = delete;
  buffer& operator=(buffer const&) = delete;
  ~buffer() { by_nccl_ ? static_cast<void>(ncclMemFree(data_)) : static_cast<void>(cudaFree(data_)); }
  [[nodiscard]] std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  [[nodiscard]] std::uint32_t* words() const noexcept { return static_cast<std::uint32_t*>(data_); }

private:
  void* data_ = nullptr;
  bool by_nccl_;
};

/// An engine's kernels on a stream of its own.
class engine {
public:
  engine() {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    check(cudaFuncSetAttribute(multiply, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes_of_a_block),
          "cudaFuncSetAttribute");
    run(10);
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    kernel_time_ = time([] {}, 50) / 50;
  }
  /// Microseconds of `count` kernels, with `work` enqueued elsewhere when a quarter of them has been.
  template <class Work>
  [[nodiscard]] double time(Work work, int count) {
    watch_.start(stream_.get());
    run(count / 4);
    work();
    run(count - count / 4);
    return watch_.stop(stream_.get());
  }
  [[nodiscard]] double kernel_time() const noexcept { return kernel_time_; }

private:
  void run(int count) const {
    for (int i = 0; i < count; ++i) {
      multiply<<<multiprocessors_ * blocks_per_multiprocessor, 384, bytes_of_a_block, stream_.get()>>>(
          nothing_.data(), rounds_of_a_block);
    }
    check(cudaGetLastError(), "a kernel of the engine");
  }

  ballast::cudart::stream stream_ = ballast::cudart::stream::create();
  ballast::cudart::device_memory<float> nothing_ = ballast::cudart::device_memory<float>::create(1);
  ballast_bench::stopwatch watch_;
  int multiprocessors_ = 0;
  double kernel_time_ = 0;
};

/// A rank that sends nine experts to the next one and gets nine of the one before.
template <class Control>
class mover {
public:
  /// @param memory  plain, registered (NCCL's memory), registered_cuda, window
  mover(Control& control, std::string const& memory)
      : control_{control},
        memory_{memory},
        by_nccl_{memory == "registered" || memory == "window"},
        next_{(control.rank() + 1) % control.num_ranks()},
        previous_{(control.rank() + control.num_ranks() - 1) % control.num_ranks()},
        from_{span_, by_nccl_},
        to_{span_, by_nccl_} {
    fill<<<1024, 256>>>(from_.words(), span_ / 4, static_cast<std::uint32_t>(control.rank()));
    check(cudaDeviceSynchronize(), "fill");
  }
  mover(mover const&) = delete;
  mover& operator=(mover const&) = delete;
  ~mover() = default;

  void connect(block_range const& blocks, int policy) {
    ncclUniqueId id{};
    if (control_.rank() == 0) { check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId"); }
    control_.broadcast(std::as_writable_bytes(std::span{&id, 1}), 0, timeout).or_throw();
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    if (blocks.most > 0) {
      config.minCTAs = blocks.least;
      config.maxCTAs = blocks.most;
    }
    if (policy >= 0) { config.CTAPolicy = policy; }
    check_nccl(ncclCommInitRankConfig(&comm_, control_.num_ranks(), id, control_.rank(), &config), "init");
    if (memory_.starts_with("registered")) {
      check_nccl(ncclCommRegister(comm_, from_.data(), span_, &handles_[0]), "ncclCommRegister");
      check_nccl(ncclCommRegister(comm_, to_.data(), span_, &handles_[1]), "ncclCommRegister");
    }
    if (memory_ == "window") {
      auto const flags = NCCL_WIN_COLL_SYMMETRIC;
      check_nccl(ncclCommWindowRegister(comm_, from_.data(), span_, &windows_[0], flags), "ncclCommWindowRegister");
      check_nccl(ncclCommWindowRegister(comm_, to_.data(), span_, &windows_[1], flags), "ncclCommWindowRegister");
    }
  }
  void disconnect() {
    if (memory_.starts_with("registered")) {
      for (auto* const handle : handles_) { check_nccl(ncclCommDeregister(comm_, handle), "ncclCommDeregister"); }
    }
    if (memory_ == "window") {
      for (auto* const window : windows_) { check_nccl(ncclCommWindowDeregister(comm_, window), "deregister"); }
    }
    meet(control_);
    check_nccl(ncclCommDestroy(comm_), "ncclCommDestroy");
  }

  void send(expert_sizes const& sizes, std::size_t experts) const {
    check_nccl(ncclGroupStart(), "ncclGroupStart");
    std::size_t at = 0;
    for (std::size_t e = 0; e < experts; ++e) {
      for (auto const bytes : sizes.tensors) {
        check_nccl(ncclSend(from_.data() + at, bytes, ncclUint8, next_, comm_, stream_.get()), "ncclSend");
        check_nccl(ncclRecv(to_.data() + at, bytes, ncclUint8, previous_, comm_, stream_.get()), "ncclRecv");
        at += bytes;
      }
    }
    check_nccl(ncclGroupEnd(), "ncclGroupEnd");
  }
  /// Pull with the copy engines what the next rank's window shows.
  void find_next() {
    auto const out = ballast::cudart::device_memory<void*>::create(1);
    find_peer<<<1, 1>>>(windows_[0], next_, out.data());
    check(cudaMemcpy(&peer_, out.data(), sizeof peer_, cudaMemcpyDeviceToHost), "find_peer");
  }
  void pull(expert_sizes const& sizes, std::size_t experts) const {
    std::size_t at = 0;
    for (std::size_t e = 0; e < experts; ++e) {
      for (auto const bytes : sizes.tensors) {
        check(cudaMemcpyAsync(to_.data() + at, static_cast<std::byte*>(peer_) + at, bytes, cudaMemcpyDeviceToDevice,
                              stream_.get()),
              "cudaMemcpyAsync");
        at += bytes;
      }
    }
  }
  void all_to_all(expert_sizes const& sizes) const {
    auto const each = sizes.total() * num_experts / 16 * 16;
    check_nccl(ncclAlltoAll(from_.data(), to_.data(), each, ncclUint8, comm_, stream_.get()), "ncclAlltoAll");
  }

  /// Host and device microseconds of a whole layer, under `name`, several times.
  template <class Move>
  void measure(samples& out, std::string const& name, Move move) {
    for (int i = 0; i < repetitions + 2; ++i) {
      double device = 0;
      auto const host = together(control_, [&] {
        watch_.start(stream_.get());
        move();
        device = watch_.stop(stream_.get());
      });
      if (i < 2) { continue; }
      out[name + "/host"].push_back(host);
      out[name + "/device"].push_back(device);
    }
  }
  /// What `move` takes from an engine, and the engine from it: microseconds.
  template <class Move>
  void measure_beside(samples& out, std::string const& name, engine& kernels, Move move) {
    watch_.start(stream_.get());
    move();
    std::vector<std::uint64_t> alone(static_cast<std::size_t>(control_.num_ranks()));
    std::uint64_t const mine[1] = {static_cast<std::uint64_t>(watch_.stop(stream_.get()))};
    control_.all_gather(mine, alone, timeout).or_throw();
    auto const longest = static_cast<double>(*std::max_element(alone.begin(), alone.end()));
    auto const count = std::max(40, static_cast<int>(4 * longest / kernels.kernel_time()));
    for (int i = 0; i < beside_repetitions; ++i) {
      meet(control_);
      auto const without = kernels.time([] {}, count);
      meet(control_);
      double moved = 0;
      auto const with = kernels.time(
          [&] {
            watch_.start(stream_.get());
            move();
            watch_.mark(stream_.get());
          },
          count);
      moved = watch_.elapsed();
      out[name + "/lost"].push_back(with - without);
      out[name + "/beside"].push_back(moved);
    }
  }
  /// @throws std::runtime_error where bytes are wrong
  void check_bytes(std::size_t bytes, index_t sender) const {
    auto const wrong = ballast::cudart::device_memory<unsigned>::create(1);
    check(cudaMemset(wrong.data(), 0, sizeof(unsigned)), "cudaMemset");
    count_wrong<<<1024, 256>>>(to_.words(), bytes / 4, static_cast<std::uint32_t>(sender), wrong.data());
    unsigned count = 0;
    check(cudaMemcpy(&count, wrong.data(), sizeof count, cudaMemcpyDeviceToHost), "count_wrong");
    if (count > 0) { throw std::runtime_error{"wrong bytes"}; }
    check(cudaMemset(to_.data(), 0, bytes), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  [[nodiscard]] index_t next() const noexcept { return next_; }
  [[nodiscard]] index_t previous() const noexcept { return previous_; }

private:
  /// Two events of a stream that is not waited for in between.
  class marks : public ballast_bench::stopwatch {
  public:
    void start(cudaStream_t on) {
      ballast_bench::stopwatch::start(on);
      begin_.record(on).or_throw();
    }
    void mark(cudaStream_t on) { end_.record(on).or_throw(); }
    [[nodiscard]] double elapsed() {
      check(cudaEventSynchronize(end_.get()), "cudaEventSynchronize");
      return static_cast<double>(begin_.elapsed_until(end_)) * 1e-3;
    }

  private:
    ballast::cudart::event begin_ = ballast::cudart::event::create(cudaEventDefault);
    ballast::cudart::event end_ = ballast::cudart::event::create(cudaEventDefault);
  };

  static constexpr std::size_t span_ = std::size_t{800} << 20;  // of two whole layers, for an all-to-all

  Control& control_;
  std::string memory_;
  bool by_nccl_;
  index_t next_;
  index_t previous_;
  buffer from_;
  buffer to_;
  ballast::cudart::stream stream_ = ballast::cudart::stream::create();
  marks watch_;
  ncclComm_t comm_ = nullptr;
  std::array<void*, 2> handles_{};
  std::array<ncclWindow_t, 2> windows_{};
  void* peer_ = nullptr;
};

[[nodiscard]] double free_mebibytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<double>(free) / (1 << 20);
}

std::vector<std::string> const models = {"deepseek_v3_fp8", "gpt_oss_mxfp4", "qwen3_30b_fp8"};

/// Everything about one kind of memory on one rank.
template <class Control>
samples run_curve(Control& control, std::string const& memory) {
  ballast_bench::use_device_of(control.rank());
  samples result;
  engine kernels;
  if (memory == "one_sided") {
    mover<Control> ends{control, "window"};
    for (int const policy : {NCCL_CTA_POLICY_DEFAULT, NCCL_CTA_POLICY_ZERO}) {
      bool const zero = policy == NCCL_CTA_POLICY_ZERO;
      ends.connect(all_blocks[std::size(all_blocks) - 1], policy);
      for (auto const& model : models) {
        auto const sizes = ballast_bench::sizes_named(model);
        ends.measure(result, std::string{zero ? "all_to_all_zero/" : "all_to_all/"} + model,
                     [&] { ends.all_to_all(sizes); });
        if (zero) {
          ends.find_next();
          ends.measure(result, "pull/" + model, [&] { ends.pull(sizes, num_experts); });
          ends.check_bytes(sizes.total() * num_experts, ends.next());
        }
      }
      auto const sizes = ballast_bench::sizes_named(models[0]);
      ends.measure_beside(result, zero ? "all_to_all_zero" : "all_to_all", kernels, [&] { ends.all_to_all(sizes); });
      if (zero) {
        ends.measure_beside(result, "pull", kernels, [&] { ends.pull(sizes, experts_beside); });
      }
      ends.disconnect();
    }
    return result;
  }
  mover<Control> ends{control, memory};
  for (auto const& blocks : all_blocks) {
    auto const before = free_mebibytes();
    ends.connect(blocks, -1);
    for (auto const& model : models) {
      auto const sizes = ballast_bench::sizes_named(model);
      auto const name = std::string{blocks.name} + "/" + model;
      ends.measure(result, name, [&] { ends.send(sizes, num_experts); });
      ends.check_bytes(sizes.total() * num_experts, ends.previous());
    }
    result[std::string{blocks.name} + "/memory"].push_back(before - free_mebibytes());
    auto const sizes = ballast_bench::sizes_named(models[0]);
    ends.measure_beside(result, blocks.name, kernels, [&] { ends.send(sizes, experts_beside); });
    ends.disconnect();
  }
  return result;
}

/// The same on threads of this process.
[[nodiscard]] samples run_threads(index_t num_ranks, std::string const& memory) {
  ballast::in_process_group group{num_ranks};
  samples result;
  group.run([&](ballast::in_process_endpoint& control) {
    auto mine = run_curve(control, memory);
    if (control.rank() == 0) { result = std::move(mine); }
  });
  return result;
}

/// One run for all rows of a kind.
[[nodiscard]] samples const& results_of(std::string const& ranks, std::string const& memory) {
  static std::map<std::string, samples> all;
  auto const [at, fresh] = all.try_emplace(ranks + memory);
  if (fresh) {
    auto const num_ranks = ballast_bench::rank_count(2);
    at->second =
        ranks == "threads" ? run_threads(num_ranks, memory) : ballast_bench::run_ranks("nccl_curve", num_ranks, memory);
  }
  return at->second;
}

/// Whole layers of a model, the ranks all at once.
void report_layers(benchmark::State& state, samples const& result, std::string const& way, std::string const& model) {
  auto const& host = result.at(way + "/" + model + "/host");
  std::size_t i = 0;
  for (auto _ : state) { state.SetIterationTime(host[i++ % host.size()] * 1e-6); }
  auto const payload = static_cast<double>(ballast_bench::sizes_named(model).total()) * num_experts;
  state.counters["GBs"] = payload / median(host) * 1e-3;
  state.counters["device_GBs"] = payload / median(result.at(way + "/" + model + "/device")) * 1e-3;
}

/// Experts that move while an engine's kernels run: how fast, and how much longer those take.
void report_beside(benchmark::State& state, samples const& result, std::string const& way) {
  auto const& beside = result.at(way + "/beside");
  std::size_t i = 0;
  for (auto _ : state) { state.SetIterationTime(beside[i++ % beside.size()] * 1e-6); }
  auto const experts = way.starts_with("all_to_all") ? num_experts : experts_beside;
  auto const payload = static_cast<double>(ballast_bench::sizes_named(models[0]).total() * experts);
  state.counters["GBs"] = payload / median(beside) * 1e-3;
  state.counters["lost_us_per_GB"] = median(result.at(way + "/lost")) / (payload * 1e-9);
  if (auto const at = result.find(way + "/memory"); at != result.end()) {
    state.counters["memory_MiB"] = at->second.front();
  }
}

void add(std::string const& ranks, std::string const& memory, std::string const& way) {
  auto const head = "curve/" + ranks + "/" + memory + "/" + way + "/";
  auto const finish = [](benchmark::internal::Benchmark* row, int iterations) {
    row->UseManualTime()->Iterations(iterations)->Unit(benchmark::kMicrosecond);
  };
  for (auto const& model : models) {
    auto const report = [=](benchmark::State& state) { report_layers(state, results_of(ranks, memory), way, model); };
    finish(benchmark::RegisterBenchmark((head + model).c_str(), report), repetitions);
  }
  auto const report = [=](benchmark::State& state) { report_beside(state, results_of(ranks, memory), way); };
  finish(benchmark::RegisterBenchmark((head + "beside_engine").c_str(), report), beside_repetitions);
}

int const registered = [] {
  ballast_bench::register_rank_job("nccl_curve", [](ballast::posix::process_group& group, std::string const& memory) {
    return run_curve(group, memory);
  });
  // Ranks that share a card tell nothing of links.
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < ballast_bench::rank_count(2)) { return 0; }
  for (std::string const ranks : {"processes", "threads"}) {
    for (std::string const memory : {"plain", "registered", "registered_cuda", "window"}) {
      for (auto const& blocks : all_blocks) { add(ranks, memory, blocks.name); }
    }
    for (auto const* const way : {"all_to_all", "all_to_all_zero", "pull"}) { add(ranks, "one_sided", way); }
  }
  return 0;
}();

}  // namespace

#endif
