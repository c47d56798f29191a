// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/peer_copy.hpp>

#include "expert_sizes.hpp"
#include "support.hpp"
#include "whole_layer.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using ballast::index_t;
using ballast::cudart::device_memory;
using ballast_bench::check;
using transport = ballast::cudart::peer_copy<ballast::cudart::local_peers::member>;

constexpr index_t slots = 9;
constexpr ballast::nanoseconds_t timeout = 10'000'000'000;

using ballast_bench::changed_layer;
using ballast_bench::layer_messages;

double microseconds_now() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// One rank of the process, with its weights.
struct rank_state {
  rank_state(changed_layer const& layer, ballast_bench::expert_sizes const& sizes, ballast::cudart::local_peers& peers,
             index_t rank, index_t num_streams)
      : wires{peers.join(rank), {.num_streams = num_streams}},
        store{layer.where,
              rank,
              layer.current,
              {.compute_stream = compute.get(),
               .copy_streams = {wires.copy_stream()},
               .staging_limit = std::size_t{1} << 30}} {
    for (auto const bytes : sizes.tensors) {
      weights.push_back(device_memory<std::byte>::create(bytes * slots));
      store.add(0, std::to_string(weights.size()), weights.back().data(), bytes).or_throw();
    }
    wires.expose(store.regions(), 0).or_throw();
    messages = std::make_unique<layer_messages>(layer, rank, store);
  }
  ballast::cudart::stream compute = ballast::cudart::stream::create();
  transport wires;
  ballast::cudart::device_store<ballast::dispatch_tables, ballast::cudart::kernel_copies> store;
  std::vector<device_memory<std::byte>> weights;
  std::unique_ptr<layer_messages> messages;
};

/// A thread for each rank, as engines with several ranks a process have.
class rank_team {
public:
  explicit rank_team(index_t size) : meet_{size + 1}, begin_(static_cast<std::size_t>(size)), end_(begin_.size()) {
    for (index_t rank = 0; rank < size; ++rank) {
      threads_.emplace_back([this, rank] {
        for (;;) {
          meet_.arrive_and_wait();
          if (!work_) { return; }
          ballast_bench::use_device_of(rank);
          begin_[static_cast<std::size_t>(rank)] = microseconds_now();
          work_(rank);
          end_[static_cast<std::size_t>(rank)] = microseconds_now();
          meet_.arrive_and_wait();
        }
      });
    }
  }
  ~rank_team() {
    work_ = nullptr;
    meet_.arrive_and_wait();
  }
  /// Microseconds from the first thread's start of `work(rank)` to the last one's end.
  double run(std::function<void(index_t)> work) {
    work_ = std::move(work);
    meet_.arrive_and_wait();
    meet_.arrive_and_wait();
    return *std::max_element(end_.begin(), end_.end()) - *std::min_element(begin_.begin(), begin_.end());
  }

private:
  std::barrier<> meet_;
  std::function<void(index_t)> work_;
  std::vector<double> begin_;
  std::vector<double> end_;
  std::vector<std::jthread> threads_;
};

/// The same bytes, copied as one would by hand.
class plain_copies {
public:
  plain_copies(std::vector<std::unique_ptr<rank_state>> const& ranks, changed_layer const& layer,
               ballast_bench::expert_sizes const& sizes) {
    std::size_t const per_rank = (sizes.total() + sizes.tensors.size() * 256) * slots;
    for (index_t rank = 0; rank < layer.where.num_ranks(); ++rank) {
      ballast_bench::use_device_of(rank);
      staging_.push_back(device_memory<std::byte>::create(per_rank));
      streams_.push_back(ballast::cudart::stream::create());
      of_rank_.emplace_back();
    }
    std::vector<std::size_t> used(staging_.size());
    for (auto const& move : layer.transfer.moves) {
      auto const from = static_cast<std::size_t>(layer.where.rank_of_slot(move.source_slot));
      auto const to = static_cast<std::size_t>(layer.where.rank_of_slot(move.target_slot));
      auto const slot = static_cast<std::size_t>(move.source_slot % slots);
      for (std::size_t t = 0; t < sizes.tensors.size(); ++t) {
        auto const bytes = sizes.tensors[t];
        copies_.push_back({staging_[to].data() + used[to], ranks[from]->weights[t].data() + slot * bytes, bytes, to});
        of_rank_[to].add(copies_.back().to, copies_.back().from, bytes);
        used[to] += (bytes + 255) / 256 * 256;
      }
    }
  }

  /// One rank's, by its own thread.
  void pull(std::size_t rank, std::size_t num_streams) const { of_rank_[rank].run(num_streams); }
  /// All ranks' by one thread. Microseconds from the first enqueue to the last byte.
  double run(std::size_t num_streams, bool by_rank) {
    auto const begin = microseconds_now();
    std::size_t next = 0;
    for (auto const& copy : copies_) {
      check(cudaMemcpyAsync(copy.to, copy.from, copy.bytes, cudaMemcpyDeviceToDevice,
                            streams_[(by_rank ? copy.rank : next++) % num_streams].get()),
            "cudaMemcpyAsync");
    }
    for (std::size_t i = 0; i < num_streams; ++i) {
      check(cudaStreamSynchronize(streams_[i].get()), "cudaStreamSynchronize");
    }
    return microseconds_now() - begin;
  }

private:
  struct by_hand {
    std::byte* to;
    std::byte const* from;
    std::size_t bytes;
    std::size_t rank;
  };
  std::vector<device_memory<std::byte>> staging_;
  std::vector<by_hand> copies_;
  std::vector<ballast::cudart::stream> streams_;
  std::vector<ballast_bench::copies_by_hand> of_rank_;
};

void one_process(benchmark::State& state, ballast_bench::expert_sizes const& sizes) {
  auto const num_ranks = std::max<index_t>(ballast_bench::rank_count(8), 2);
  auto const layer = ballast_bench::whole_layer(num_ranks, slots);
  ballast::cudart::local_peers peers{num_ranks};
  std::vector<std::unique_ptr<rank_state>> ranks;
  for (index_t rank = 0; rank < num_ranks; ++rank) {
    ballast_bench::use_device_of(rank);
    ranks.push_back(std::make_unique<rank_state>(layer, sizes, peers, rank, static_cast<index_t>(state.range(0))));
  }
  plain_copies plain{ranks, layer, sizes};
  auto const payload = static_cast<double>(sizes.total()) * num_ranks * slots;

  std::vector<double> receive;
  std::vector<double> whole;
  std::vector<double> one_thread;
  std::vector<double> start;
  std::vector<double> commit;
  std::map<std::string, std::vector<double>> by_hand;
  rank_team team{num_ranks};
  for (auto _ : state) {
    for (std::size_t streams = 1; streams <= static_cast<std::size_t>(num_ranks); streams *= 2) {
      by_hand["by_rank_" + std::to_string(streams)].push_back(plain.run(streams, true));
      by_hand["in_turn_" + std::to_string(streams)].push_back(plain.run(streams, false));
    }
    for (std::size_t streams = 1; streams <= ballast_bench::copies_by_hand::most_streams; ++streams) {
      by_hand["by_threads_" + std::to_string(streams)].push_back(
          team.run([&](index_t rank) { plain.pull(static_cast<std::size_t>(rank), streams); }));
    }
    for (auto const& rank : ranks) { rank->messages->renew_tags(layer.transfer.moves.size()); }
    auto const receiving = team.run([&](index_t rank) {
      auto& self = *ranks[static_cast<std::size_t>(rank)];
      self.store.prepare().or_throw();
      self.wires.start(self.messages->sends(), self.messages->receives()).or_throw();
      self.wires.wait(timeout).or_throw();
    });
    auto const committing = team.run([&](index_t rank) {
      auto& self = *ranks[static_cast<std::size_t>(rank)];
      self.store.commit(0, self.messages->commits(), layer.next, 1).or_throw();
      check(cudaStreamSynchronize(self.compute.get()), "cudaStreamSynchronize");
    });
    // The same from one thread that drives all ranks.
    for (auto const& rank : ranks) { rank->messages->renew_tags(layer.transfer.moves.size()); }
    auto const begin = microseconds_now();
    for (auto const& rank : ranks) {
      ballast_bench::use_device_of(rank->wires.rank());
      rank->store.prepare().or_throw();
      rank->wires.start(rank->messages->sends(), rank->messages->receives()).or_throw();
    }
    auto const started = microseconds_now();
    for (bool pending = true; pending;) {
      pending = false;
      for (auto const& rank : ranks) {
        ballast_bench::use_device_of(rank->wires.rank());
        pending |= rank->wires.poll() == ballast::transfer_state::pending;
      }
    }
    auto const done = microseconds_now();
    for (auto const& rank : ranks) { rank->wires.wait(timeout).or_throw(); }
    start.push_back((started - begin) / num_ranks);
    one_thread.push_back(done - begin);
    receive.push_back(receiving);
    commit.push_back(committing);
    whole.push_back(receiving + committing);
    state.SetIterationTime(receiving * 1e-6);
  }
  auto const gigabytes = [&](double us) { return payload / us * 1e-3; };
  double best = 0;
  for (auto const& [how, times] : by_hand) { best = std::max(best, gigabytes(ballast_bench::median(times))); }
  state.counters["plain_GBs"] = best;
  state.counters["receive_GBs"] = gigabytes(ballast_bench::median(receive));
  state.counters["of_plain"] = gigabytes(ballast_bench::median(receive)) / best;
  state.counters["one_thread_GBs"] = gigabytes(ballast_bench::median(one_thread));
  state.counters["one_thread_of_plain"] = gigabytes(ballast_bench::median(one_thread)) / best;
  state.counters["start_us"] = ballast_bench::median(start);
  state.counters["whole_of_plain"] = gigabytes(ballast_bench::median(whole)) / best;
  state.counters["commit_GBs_rw"] = 2 * gigabytes(ballast_bench::median(commit));
}

int const registered = [] {
  for (auto const& sizes :
       {ballast_bench::deepseek_v3_fp8(), ballast_bench::gpt_oss_mxfp4(), ballast_bench::qwen3_30b_fp8()}) {
    benchmark::RegisterBenchmark(("peer_copy/one_process/" + std::string{sizes.name}).c_str(),
                                 [sizes](benchmark::State& state) { one_process(state, sizes); })
        ->ArgName("streams")
        ->UseManualTime()
        ->Iterations(40)
        ->Unit(benchmark::kMicrosecond)
        ->Arg(1)
        ->Arg(2)
        ->Arg(3);
  }
  return 0;
}();

}  // namespace
