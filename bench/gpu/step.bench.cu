// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/kernels/sized_copies.cuh>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "expert_sizes.hpp"
#include "rank_processes.hpp"
#include "support.hpp"

#include <benchmark/benchmark.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What a call of on_forward_pass_end() costs the scheduler's thread, waits for other ranks left out.

namespace ballast_step_bench {

using namespace ballast;
using ballast_bench::check;

/// Time that parts of a step took, summed up until taken.
struct part {
  nanoseconds_t spent = 0;
  template <class Call>
  auto time(Call call) {
    auto const begin = ballast::detail::now();
    auto result = call();
    spent += ballast::detail::now() - begin;
    return result;
  }
  [[nodiscard]] double take_microseconds() { return static_cast<double>(std::exchange(spent, 0)) * 1e-3; }
};

struct parts {
  part waiting;     ///< for other ranks and for copies
  part preparing;   ///< `prepare` of the store
  part starting;    ///< `start` of the transport
  part committing;  ///< `commit` of the store
};

/// A transport whose waiting is not counted as work.
template <class Wires>
class timed_wires {
public:
  timed_wires(Wires& inner, parts& times) : inner_{&inner}, times_{&times} {}
  [[nodiscard]] index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return inner_->num_ranks(); }
  [[nodiscard]] status expose(std::span<segment const> regions, std::uint32_t first) {
    return inner_->expose(regions, first);
  }
  void retract(std::uint32_t first) noexcept { inner_->retract(first); }
  [[nodiscard]] std::uint32_t next_region() const noexcept { return inner_->next_region(); }
  [[nodiscard]] transfer_turns& turns() noexcept { return inner_->turns(); }
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    return times_->starting.time([&] { return inner_->start(sends, receives); });
  }
  [[nodiscard]] transfer_state poll() { return inner_->poll(); }
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    return times_->waiting.time([&] { return inner_->wait(timeout); });
  }

private:
  Wires* inner_;
  parts* times_;
};

/// A store that knows what its calls took.
template <class Copies>
class timed_store : public cudart::device_store<dispatch_tables, Copies> {
public:
  using base = cudart::device_store<dispatch_tables, Copies>;
  timed_store(topology const& where, index_t rank, placement const& initial,
              cudart::device_store_options const& options, parts& times)
      : base{where, rank, initial, options}, times_{&times} {}
  [[nodiscard]] status prepare() {
    return times_->preparing.time([&] { return base::prepare(); });
  }
  [[nodiscard]] status commit(index_t layer, std::span<byte_copy const> copies, placement const& tables,
                              epoch_t epoch) {
    return times_->committing.time([&] { return base::commit(layer, copies, tables, epoch); });
  }
  [[nodiscard]] status commit_tables(std::span<index_t const> layers, placement const& tables,
                                     std::span<epoch_t const> epochs) {
    return times_->committing.time([&] { return base::commit_tables(layers, tables, epochs); });
  }

private:
  parts* times_;
};

/// The same for a control plane.
class timed_control {
public:
  timed_control(posix::process_group& inner, parts& times) : inner_{&inner}, times_{&times} {}
  [[nodiscard]] index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return inner_->num_ranks(); }
  [[nodiscard]] std::uint64_t membership() const { return inner_->membership(); }
  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    return times_->waiting.time([&] { return inner_->all_reduce(values, timeout); });
  }
  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    return times_->waiting.time([&] { return inner_->all_gather(mine, all, timeout); });
  }
  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    return times_->waiting.time([&] { return inner_->broadcast(bytes, root, timeout); });
  }
  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    return times_->waiting.time([&] { return inner_->vote(yes, timeout); });
  }
  [[nodiscard]] vote_result recall(nanoseconds_t timeout) {
    return times_->waiting.time([&] { return inner_->recall(timeout); });
  }
  [[nodiscard]] status regroup(nanoseconds_t timeout) {
    return times_->waiting.time([&] { return inner_->regroup(timeout); });
  }
  void give_up(status const& why) { inner_->give_up(why); }
  [[nodiscard]] status trouble() { return inner_->trouble(); }

private:
  posix::process_group* inner_;
  parts* times_;
};

/// Trades the experts of some slots between neighbouring ranks, in every layer.
struct trade_with_neighbour {
  index_t experts = 1;
  [[nodiscard]] status plan(load_history_view, placement const& current, topology const& where, placement& next) const {
    next = current;
    for (index_t layer = 0; layer < current.num_layers(); ++layer) {
      auto const map = next.edit(layer).logical_of_slot;
      for (index_t rank = 0; rank + 1 < where.num_ranks(); rank += 2) {
        for (index_t i = 0; i < experts; ++i) {
          std::swap(map[static_cast<std::size_t>(where.first_slot(rank) + i)],
                    map[static_cast<std::size_t>(where.first_slot(rank + 1) + i)]);
        }
      }
      next.index_replicas(layer);
    }
    return {};
  }
  [[nodiscard]] static bool follows_loads() { return false; }
  [[nodiscard]] status validate() const { return {}; }
  void describe(digest& out) const { out.add(std::string_view{"trade"}).add(experts); }
};

__global__ void spin_kernel(long long cycles) {
  for (auto const begin = clock64(); clock64() - begin < cycles;) {}
}
__global__ void empty_kernel() {}

/// What an engine does around the call: launch a pass as a graph, and later wait for what it gave.
class forward_pass {
public:
  explicit forward_pass(cudaStream_t stream) : stream_{stream} {
    constexpr int launches = 60;
    constexpr long long cycles = 8'000;
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    for (int i = 0; i < launches; ++i) { spin_kernel<<<1, 32, 0, stream>>>(cycles); }
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&executable_, graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  forward_pass(forward_pass const&) = delete;
  forward_pass& operator=(forward_pass const&) = delete;
  ~forward_pass() { static_cast<void>(cudaGraphExecDestroy(executable_)); }

  /// What a scheduler does before it calls: nothing with the driver for half a millisecond, or launch a pass.
  void before_call(bool launches) {
    work_for(launches ? 100'000 : 500'000);
    if (!launches) { return; }
    check(cudaGraphLaunch(executable_, stream_), "cudaGraphLaunch");
    over_.record(stream_).or_throw();
  }
  void after_call(bool launches) const {
    if (launches) { check(cudaEventSynchronize(over_.get()), "cudaEventSynchronize"); }
  }

private:
  /// A thread that slept would measure a slow clock.
  static void work_for(nanoseconds_t time) {
    for (auto const until = ballast::detail::now() + time; ballast::detail::now() < until;) {}
  }
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
  cudart::event over_ = cudart::event::create();
};

/// A model of 256 experts on two ranks, each in a process of its own. `Pull` copies from the peer, `Copies` commits.
template <class Pull, class Copies>
struct rank_state {
  using wires = cudart::peer_copy<cudart::ipc_peers<posix::process_group>, Pull>;
  static constexpr index_t num_layers = 8;

  rank_state(posix::process_group& group, index_t experts, rebalancer_options const& options)
      : copies{cudart::ipc_peers<posix::process_group>{group}},
        transport{copies, times},
        control{group, times},
        store{where,
              group.rank(),
              initial,
              {.compute_stream = compute.get(), .copy_streams = {copies.copy_stream()}},
              times},
        moved{where,
              initial,
              {cudart::device_recorder{compute.get(), num_layers, initial.num_logical(), {1000, 8}},
               trade_with_neighbour{experts}, ballast::layers_per_chunk{1}, options},
              store,
              transport,
              control} {
    auto const tensors = ballast_bench::qwen3_30b_fp8().tensors;
    for (index_t layer = 0; layer < num_layers; ++layer) {
      for (std::size_t t = 0; t < tensors.size(); ++t) {
        weights.push_back(
            cudart::device_memory<std::byte>::create(tensors[t] * static_cast<std::size_t>(where.slots_per_rank())));
        store.add(layer, std::to_string(t), weights.back().data(), tensors[t]).or_throw();
      }
    }
  }
  topology where{{2, 1, 144, 0}};
  placement initial = trivial_placement({num_layers, 256, 288});
  parts times;
  cudart::stream compute = cudart::stream::create();
  wires copies;
  timed_wires<wires> transport;
  timed_control control;
  std::vector<cudart::device_memory<std::byte>> weights;
  timed_store<Copies> store;
  rebalancer<cudart::device_recorder, trade_with_neighbour, ballast::layers_per_chunk<>, timed_wires<wires>,
             timed_store<Copies>, timed_control>
      moved;
};

/// Keep a rank on a processor of its own, far from the other's, as engines keep their schedulers.
void stay_on_one_processor(index_t rank, index_t num_ranks) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<std::size_t>(rank * static_cast<index_t>(::sysconf(_SC_NPROCESSORS_ONLN)) / num_ranks), &one);
  static_cast<void>(::sched_setaffinity(0, sizeof one, &one));
}

/// Rank 0 is measured; rank 1 comes early, so that rank 0 waits for nobody but the copies and the votes.
template <class Pull, class Copies>
ballast_bench::samples move_experts(posix::process_group& group, std::string const& argument) {
  ballast_bench::use_device_of(group.rank());
  std::istringstream words{argument};
  index_t experts = 0;
  bool launches = false;
  bool asynchronous = false;
  words >> experts >> launches >> asynchronous;
  // Plans are taken as they are: names that save bytes would leave nothing to trade.
  rank_state<Pull, Copies> self{
      group, experts, {.interval = 1, .relabel = ballast::relabel_scope::none, .asynchronous = asynchronous}};
  forward_pass pass{self.compute.get()};
  self.moved.start().or_throw();
  stay_on_one_processor(group.rank(), group.num_ranks());  // not before: the driver's threads would share it
  ballast_bench::samples result;
  std::vector<std::uint64_t> all(2);
  for (int step = 0; step < 300; ++step) {
    if (asynchronous) {
      std::uint64_t const mine[] = {self.moved.outgoing()};
      group.all_gather(mine, all, 10'000'000'000).or_throw();
      self.times = {};
      part taking;
      taking.time([&] { return self.moved.incoming(all); }).or_throw();
      taking.spent -= self.times.waiting.spent;
      if (step > 60 && self.times.committing.spent > 0) { result["incoming"].push_back(taking.take_microseconds()); }
    }
    if (group.rank() == 0) { pass.before_call(launches); }
    // Not before: the last commit may just have ended the cycle, and then this call plans.
    bool const moves = self.moved.state() == rebalancer_state::moving;
    self.times = {};
    part call;
    call.time([&] { return self.moved.on_forward_pass_end(); }).or_throw();
    call.spent -= self.times.waiting.spent;
    if (moves && step > 60) {
      result["call"].push_back(call.take_microseconds());
      result["prepare"].push_back(self.times.preparing.take_microseconds());
      result["start"].push_back(self.times.starting.take_microseconds());
      result["commit"].push_back(self.times.committing.take_microseconds());
    }
    if (group.rank() == 0) { pass.after_call(launches); }
  }
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  static_cast<void>(group.vote(true, 10'000'000'000));
  return result;
}

void moving(benchmark::State& state, std::string const& job, bool launches, bool asynchronous) {
  std::ostringstream argument;
  argument << state.range(0) << ' ' << launches << ' ' << asynchronous;
  // The same program is half as fast again in some processes: the middle one of three, beside the other two.
  auto const num_runs = ballast_bench::run_count(3);
  std::vector<ballast_bench::samples> runs;
  for (std::size_t i = 0; i < num_runs; ++i) { runs.push_back(ballast_bench::run_ranks(job, 2, argument.str())); }
  auto const typical = [](ballast_bench::samples const& run) { return ballast_bench::median(run.at("call")); };
  std::sort(runs.begin(), runs.end(), [&](auto const& a, auto const& b) { return typical(a) < typical(b); });
  auto const& middle = runs[num_runs / 2];
  for (auto _ : state) { state.SetIterationTime(typical(middle) * 1e-6); }
  for (auto const& [name, times] : middle) {
    if (auto const time = ballast_bench::median(times); time > 0) { state.counters[name + "_us"] = time; }
  }
  state.counters["call_p95_us"] = ballast_bench::quantile(middle.at("call"), 0.95);
  state.counters["fastest_us"] = typical(runs.front());
  state.counters["slowest_us"] = typical(runs.back());
}

/// 58 layers of 256 experts are counted.
void recording(benchmark::State& state, bool launches) {
  constexpr index_t num_layers = 58;
  topology const where{{1, 1, 288, 0}};
  auto const initial = trivial_placement({num_layers, 256, 288});
  auto const compute = cudart::stream::create();
  cudart::device_store<> store{where, 0, initial, {.compute_stream = compute.get()}};
  auto const weights = cudart::device_memory<std::byte>::create(std::size_t{64} * 288 * num_layers);
  for (index_t layer = 0; layer < num_layers; ++layer) {
    store.add(layer, "w", weights.data() + std::size_t{64} * 288 * static_cast<std::size_t>(layer), 64).or_throw();
  }
  in_process_group group{1};
  auto& alone = group.endpoint(0);
  rebalancer<cudart::device_recorder, trade_with_neighbour, ballast::layers_per_chunk<>, in_process_endpoint,
             cudart::device_store<>>
      moved{where,
            initial,
            {cudart::device_recorder{compute.get(), num_layers, 256, {1000, 8}}, {}, {}, {.interval = 1'000'000}},
            store,
            alone};
  moved.start().or_throw();
  forward_pass pass{compute.get()};
  std::vector<double> times;
  std::vector<double> empty_launches;
  for (auto _ : state) {
    pass.before_call(launches);
    part call;
    call.time([&] { return moved.on_forward_pass_end(); }).or_throw();
    times.push_back(call.take_microseconds());
    state.SetIterationTime(times.back() * 1e-6);
    check(cudaStreamSynchronize(compute.get()), "cudaStreamSynchronize");
    pass.before_call(launches);
    empty_launches.push_back([&] {
      part launch;
      launch.time([&] {
        empty_kernel<<<1, 32, 0, compute.get()>>>();
        return 0;
      });
      return launch.take_microseconds();
    }());
    check(cudaStreamSynchronize(compute.get()), "cudaStreamSynchronize");
  }
  state.counters["median_us"] = ballast_bench::median(times);
  state.counters["empty_launch_us"] = ballast_bench::median(empty_launches);
}

template <class Pull, class Copies>
void add_moving(std::string const& name) {
  auto const job = "step_" + name;
  ballast_bench::register_rank_job(job, &move_experts<Pull, Copies>);
  auto const add = [&](char const* when, bool launches, bool asynchronous) {
    benchmark::RegisterBenchmark(("step/" + std::string{when} + "/" + name).c_str(),
                                 [=](benchmark::State& state) { moving(state, job, launches, asynchronous); })
        ->ArgName("experts")
        ->UseManualTime()
        ->Iterations(1)
        ->Unit(benchmark::kMicrosecond)
        ->Arg(1)
        ->Arg(4);
  };
  add("moving_after_launch", true, false);
  add("moving_after_idle", false, false);
  add("asynchronous_after_launch", true, true);
}

static int const registered = [] {
  for (bool const launches : {true, false}) {
    benchmark::RegisterBenchmark(launches ? "step/recording_after_launch" : "step/recording_after_idle",
                                 [launches](benchmark::State& state) { recording(state, launches); })
        ->UseManualTime()
        ->Iterations(500)
        ->Unit(benchmark::kMicrosecond);
  }
  add_moving<cudart::copy_batch, cudart::copy_batch>("copy_engines");
  add_moving<cudart::copy_batch, cudart::kernel_copies>("kernel_commits");
  add_moving<cudart::sized_copies<>, cudart::kernel_copies>("sized_pulls_kernel_commits");
  add_moving<cudart::kernel_copies, cudart::kernel_copies>("kernel_pulls_and_commits");
  return 0;
}();

}  // namespace ballast_step_bench
