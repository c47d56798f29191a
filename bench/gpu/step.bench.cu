// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/transport/in_process.hpp>

#include "expert_sizes.hpp"
#include "support.hpp"

#include <benchmark/benchmark.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What a call of on_forward_pass_end() costs the scheduler's thread.

namespace ballast_step_bench {

using namespace ballast;
using ballast_bench::check;

/// Time that a thread spent where it waits for other ranks.
struct waits {
  nanoseconds_t spent = 0;
  template <class Call>
  auto time(Call call) {
    auto const begin = ballast::detail::now();
    auto result = call();
    spent += ballast::detail::now() - begin;
    return result;
  }
};

using wires = cudart::peer_copy<cudart::local_peers::member>;

/// A transport whose waiting is not counted as work.
class timed_wires {
public:
  timed_wires(wires& inner, waits& waiting) : inner_{&inner}, waiting_{&waiting} {}
  [[nodiscard]] index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return inner_->num_ranks(); }
  [[nodiscard]] status expose(std::span<segment const> regions) { return inner_->expose(regions); }
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    auto const begin = ballast::detail::now();
    auto result = inner_->start(sends, receives);
    starting = ballast::detail::now() - begin;
    return result;
  }
  [[nodiscard]] transfer_state poll() { return inner_->poll(); }
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    return waiting_->time([&] { return inner_->wait(timeout); });
  }

  nanoseconds_t starting = 0;  ///< what the last `start` took

private:
  wires* inner_;
  waits* waiting_;
};

/// A store that knows what its last commit took.
template <class Copies>
class timed_store : public cudart::device_store<dispatch_tables, Copies> {
public:
  using cudart::device_store<dispatch_tables, Copies>::device_store;
  [[nodiscard]] status commit(index_t layer, std::span<byte_copy const> copies, placement const& tables,
                              epoch_t epoch) {
    auto const begin = ballast::detail::now();
    auto result = cudart::device_store<dispatch_tables, Copies>::commit(layer, copies, tables, epoch);
    committing = ballast::detail::now() - begin;
    return result;
  }
  nanoseconds_t committing = 0;
};

/// The same for a control plane.
class timed_control {
public:
  timed_control(in_process_endpoint& inner, waits& waiting) : inner_{&inner}, waiting_{&waiting} {}
  [[nodiscard]] index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return inner_->num_ranks(); }
  [[nodiscard]] std::uint64_t membership() const { return inner_->membership(); }
  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    return waiting_->time([&] { return inner_->all_reduce(values, timeout); });
  }
  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                  nanoseconds_t timeout) {
    return waiting_->time([&] { return inner_->all_gather(mine, all, timeout); });
  }
  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    return waiting_->time([&] { return inner_->broadcast(bytes, root, timeout); });
  }
  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) {
    return waiting_->time([&] { return inner_->vote(yes, timeout); });
  }
  [[nodiscard]] vote_result recall(nanoseconds_t timeout) {
    return waiting_->time([&] { return inner_->recall(timeout); });
  }

private:
  in_process_endpoint* inner_;
  waits* waiting_;
};

/// Trades the experts of some slots between neighbouring ranks, in every layer.
struct trade_with_neighbour {
  index_t slots_per_rank = 1;
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
  void describe(digest& out) const { out.add(std::string_view{"trade"}).add(slots_per_rank).add(experts); }
};

struct layer_by_layer {
  [[nodiscard]] status validate() const { return {}; }
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink sink) const {
    for (auto const& item : work) {
      if (item.changed) { sink(std::span{&item.layer, 1}); }
    }
  }
  void describe(digest& out) const { out.add(std::string_view{"layer_by_layer"}); }
};

template <class Copies>
struct rank_state {
  using store_type = timed_store<Copies>;
  rank_state(topology const& where, placement const& initial, std::vector<std::size_t> const& tensors,
             in_process_endpoint& endpoint, cudart::local_peers& peers, index_t experts,
             rebalancer_options const& options)
      : copies{peers.join(endpoint.rank())},
        transport{copies, waiting},
        control{endpoint, waiting},
        store{
            where, endpoint.rank(), initial, {.compute_stream = compute.get(), .copy_streams = {copies.copy_stream()}}},
        moved{where,
              initial,
              cudart::device_recorder{compute.get(), initial.num_layers(), initial.num_logical(), {1000, 8}},
              trade_with_neighbour{where.slots_per_rank(), experts},
              layer_by_layer{},
              transport,
              store,
              control,
              options} {
    for (index_t layer = 0; layer < initial.num_layers(); ++layer) {
      for (std::size_t t = 0; t < tensors.size(); ++t) {
        weights.push_back(
            cudart::device_memory<std::byte>::create(tensors[t] * static_cast<std::size_t>(where.slots_per_rank())));
        store.add(layer, std::to_string(t), weights.back().data(), tensors[t]).or_throw();
      }
    }
  }
  waits waiting;
  cudart::stream compute = cudart::stream::create();
  wires copies;
  timed_wires transport;
  timed_control control;
  std::vector<cudart::device_memory<std::byte>> weights;
  store_type store;
  rebalancer<cudart::device_recorder, trade_with_neighbour, layer_by_layer, timed_wires, store_type, timed_control>
      moved;
};

__global__ void empty_kernel() {}

inline void recording(benchmark::State& state) {
  topology const where{{1, 1, 288, 0}};
  auto const initial = trivial_placement({58, 256, 288});
  in_process_group group{1};
  cudart::local_peers peers{1};
  rank_state<cudart::copy_batch> self{where, initial, {64}, group.endpoint(0), peers, 0, {.interval = 1'000'000}};
  self.moved.start().or_throw();
  std::vector<double> times;
  for (auto _ : state) {
    auto const begin = ballast::detail::now();
    self.moved.on_forward_pass_end().or_throw();
    times.push_back(static_cast<double>(ballast::detail::now() - begin) * 1e-3);
    state.SetIterationTime(times.back() * 1e-6);
    if (times.size() % 50 == 0) { check(cudaStreamSynchronize(self.compute.get()), "cudaStreamSynchronize"); }
  }
  std::vector<double> launches;
  for (int i = 0; i < 1000; ++i) {
    auto const begin = ballast::detail::now();
    empty_kernel<<<1, 32, 0, self.compute.get()>>>();
    launches.push_back(static_cast<double>(ballast::detail::now() - begin) * 1e-3);
    if (i % 50 == 0) { check(cudaStreamSynchronize(self.compute.get()), "cudaStreamSynchronize"); }
  }
  state.counters["median_us"] = ballast_bench::median(times);
  state.counters["empty_launch_us"] = ballast_bench::median(launches);
}

/// Two ranks; the second is always early, so that the first one waits for nobody but the copies and the votes.
template <class Copies>
void moving(benchmark::State& state) {
  constexpr index_t num_layers = 16;
  auto const experts = static_cast<index_t>(state.range(0));
  topology const where{{2, 1, 4, 0}};
  auto const initial = trivial_placement({num_layers, 8, 8});
  in_process_group group{2};
  cudart::local_peers peers{2};
  std::vector<double> times;
  std::vector<double> starts;
  std::vector<double> commits;
  group.run([&](in_process_endpoint& endpoint) {
    rank_state<Copies> self{where,   initial,        ballast_bench::qwen3_30b_fp8().tensors, endpoint, peers,
                            experts, {.interval = 1}};
    self.moved.start().or_throw();
    for (int step = 0; step < 200; ++step) {
      if (endpoint.rank() == 0) {
        // As busy as a scheduler between two steps: a thread that slept would measure cold caches and a slow clock.
        for (auto const until = ballast::detail::now() + 500'000; ballast::detail::now() < until;) {}
      }
      bool const moves = self.moved.state() == rebalancer_state::moving;
      self.waiting.spent = 0;
      auto const begin = ballast::detail::now();
      self.moved.on_forward_pass_end().or_throw();
      auto const spent = ballast::detail::now() - begin - self.waiting.spent;
      if (endpoint.rank() == 0 && moves && step > 40) {
        times.push_back(static_cast<double>(spent) * 1e-3);
        starts.push_back(static_cast<double>(self.transport.starting) * 1e-3);
        commits.push_back(static_cast<double>(self.store.committing) * 1e-3);
      }
    }
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    static_cast<void>(endpoint.vote(true, 10'000'000'000));
  });
  auto const typical = ballast_bench::median(times);
  for (auto _ : state) { state.SetIterationTime(typical * 1e-6); }
  state.counters["median_us"] = typical;
  state.counters["start_us"] = ballast_bench::median(starts);
  state.counters["commit_us"] = ballast_bench::median(commits);
}

static int const registered = [] {
  benchmark::RegisterBenchmark("step/recording", recording)
      ->UseManualTime()
      ->Iterations(2000)
      ->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("step/moving/copy_batch", moving<cudart::copy_batch>)
      ->ArgName("experts")
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond)
      ->Arg(1)
      ->Arg(2)
      ->Arg(4);
  benchmark::RegisterBenchmark("step/moving/kernel_copies", moving<cudart::kernel_copies>)
      ->ArgName("experts")
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond)
      ->Arg(1)
      ->Arg(2)
      ->Arg(4);
  return 0;
}();

}  // namespace ballast_step_bench
