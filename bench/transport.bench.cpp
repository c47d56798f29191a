// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The receive phase of a chunk, peer weights to staging, against plain memcpy of the same bytes by as many threads or
// processes; and the same with the commit copy, staging to slots, behind it.
#include <ballast/transport/in_process.hpp>
#include <ballast/transport/transport.hpp>

#if __has_include(<ballast/posix/peer_copy.hpp>)
  #include <ballast/posix/peer_copy.hpp>
  #include <ballast/posix/process_group.hpp>
  #include <ballast/posix/shared_buffer.hpp>

  #include <signal.h>
  #include <sys/wait.h>
  #include <unistd.h>
#endif

#include <benchmark/benchmark.h>

#include <atomic>
#include <barrier>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace ballast;

constexpr nanoseconds_t patience = 60'000'000'000;
constexpr index_t messages_per_rank = 8;

enum class phase { plain_copy, receive, receive_and_commit };

/// One rank's weights and staging, and what it sends and receives: eight experts from the other ranks in turn.
class rank_memory {
public:
  /// @param weights  room for eight experts.
  rank_memory(index_t rank, index_t num_ranks, std::span<std::byte> weights)
      : rank_{rank},
        num_ranks_{num_ranks},
        bytes_{weights.size() / messages_per_rank},
        weights_{weights},
        staging_(weights_.size(), std::byte{0xee}) {
    std::memset(weights_.data(), static_cast<int>(rank), weights_.size());
    for (index_t m = 0; m < messages_per_rank; ++m) {
      auto const at = static_cast<std::size_t>(m) * bytes_;
      from_.push_back({weights_.data() + at, bytes_});
      to_.push_back({staging_.data() + at, bytes_});
      remote_.push_back({0, at, bytes_});
    }
  }

  [[nodiscard]] segment region() { return {weights_.data(), weights_.size()}; }

  /// Do the phase once. @param number  makes the tags of this batch its own.
  template <class Transport>
  void run(phase what, Transport& transport, std::uint64_t number) {
    if (what == phase::plain_copy) { return copy(weights_, staging_); }
    std::vector<outgoing_message> sends;
    std::vector<incoming_message> receives;
    for (index_t m = 0; m < messages_per_rank; ++m) {
      auto const at = static_cast<std::size_t>(m);
      auto const shift = 1 + m % (num_ranks_ - 1);
      auto const tag = [&](index_t receiver) {
        return (number * static_cast<std::uint64_t>(num_ranks_) + static_cast<std::uint64_t>(receiver)) << 8 |
               static_cast<std::uint64_t>(m);
      };
      auto const receiver = (rank_ + num_ranks_ - shift) % num_ranks_;
      sends.push_back({receiver, m, tag(receiver), std::span{from_}.subspan(at, 1)});
      receives.push_back({(rank_ + shift) % num_ranks_, m, tag(rank_), std::span{to_}.subspan(at, 1),
                          std::span{remote_}.subspan(at, 1)});
    }
    transport.start(sends, receives).or_throw();
    transport.wait(patience).or_throw();
    if (what == phase::receive_and_commit) { copy(staging_, weights_); }
  }

private:
  void copy(std::span<std::byte const> from, std::span<std::byte> to) const {
    for (std::size_t at = 0; at < from.size(); at += bytes_) { std::memcpy(to.data() + at, from.data() + at, bytes_); }
    benchmark::ClobberMemory();
  }

  index_t rank_;
  index_t num_ranks_;
  std::size_t bytes_;
  std::span<std::byte> weights_;
  std::vector<std::byte> staging_;
  std::vector<segment> from_;
  std::vector<segment> to_;
  std::vector<remote_segment> remote_;
};

void set_bytes(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * state.range(0) * messages_per_rank *
                          state.range(1));
}

void on_threads(benchmark::State& state, phase what) {
  auto const num_ranks = static_cast<index_t>(state.range(0));
  in_process_group group{num_ranks};
  std::barrier gate{num_ranks + 1};
  std::atomic<bool> more{true};
  std::vector<std::thread> ranks;
  ranks.reserve(static_cast<std::size_t>(num_ranks));
  for (index_t rank = 0; rank < num_ranks; ++rank) {
    ranks.emplace_back([&, rank] {
      std::vector<std::byte> weights(messages_per_rank * static_cast<std::size_t>(state.range(1)));
      rank_memory memory{rank, num_ranks, weights};
      memory.run(what, group.endpoint(rank), 0);  // touches all pages
      gate.arrive_and_wait();
      for (std::uint64_t number = 1;; ++number) {
        gate.arrive_and_wait();
        if (!more) { return; }
        memory.run(what, group.endpoint(rank), number);
        gate.arrive_and_wait();
      }
    });
  }
  gate.arrive_and_wait();
  for (auto _ : state) {
    gate.arrive_and_wait();
    gate.arrive_and_wait();
  }
  more = false;
  gate.arrive_and_wait();
  for (auto& rank : ranks) { rank.join(); }
  set_bytes(state);
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"ranks", "bytes"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (std::int64_t const ranks : {2, 4, 8}) { bench->Args({ranks, std::int64_t{4} << 20}); }
}
BENCHMARK_CAPTURE(on_threads, plain_copy, phase::plain_copy)->Name("transport/threads/plain_copy")->Apply(shapes);
BENCHMARK_CAPTURE(on_threads, receive, phase::receive)->Name("transport/threads/receive")->Apply(shapes);
BENCHMARK_CAPTURE(on_threads, receive_and_commit, phase::receive_and_commit)
    ->Name("transport/threads/receive_and_commit")
    ->Apply(shapes);

#if __has_include(<ballast/posix/peer_copy.hpp>)

/// Where a process's weights lie, and so how its peers reach them.
enum class weights_in {
  shared_memory,   ///< mapped by the peers
  private_memory,  ///< read through the kernel
  nobody_reach     ///< copied through bounce buffers
};

struct process_task {
  index_t num_ranks;
  std::size_t expert_bytes;
  phase what;
  weights_in place;
  std::string group;
};

/// A forked rank that does the phase once for every byte it is sent, and answers with a byte.
class rank_process {
public:
  rank_process(index_t rank, process_task const& task) {
    int down[2];
    int up[2];
    if (::pipe(down) != 0 || ::pipe(up) != 0) { std::abort(); }
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(down[1]);
      live(rank, task, down[0], up[1]);
      ::_exit(0);
    }
    ::close(down[0]);
    ::close(up[1]);
    down_ = down[1];
    up_ = up[0];
  }
  rank_process(rank_process&& other) noexcept
      : pid_{std::exchange(other.pid_, -1)}, down_{other.down_}, up_{other.up_} {}
  rank_process& operator=(rank_process&&) = delete;
  ~rank_process() {
    if (pid_ < 0) { return; }
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::close(down_);
    ::close(up_);
  }

  void go() const { say(down_); }
  void await() const { hear(up_); }

private:
  static void say(int file) {
    char const byte = 1;
    if (::write(file, &byte, 1) != 1) { std::abort(); }
  }
  static bool hear(int file) {
    char byte = 0;
    return ::read(file, &byte, 1) == 1;
  }
  static ::ssize_t refuse(::pid_t, ::iovec const*, unsigned long, ::iovec const*, unsigned long) {
    errno = EPERM;
    return -1;
  }
  static void live(index_t rank, process_task const& task, int down, int up) {
    posix::process_group group;
    group.join(task.group, rank, task.num_ranks, patience).or_throw();
    posix::peer_copy_options options;
    if (task.place == weights_in::nobody_reach) { options.read_peer = refuse; }
    posix::peer_copy wires{group, options};
    auto const bytes = messages_per_rank * task.expert_bytes;
    posix::shared_buffer shared;
    std::vector<std::byte> own;
    if (task.place == weights_in::shared_memory) {
      shared.allocate(bytes).or_throw();
    } else {
      own.resize(bytes);
    }
    rank_memory memory{rank, task.num_ranks, own.empty() ? std::span{shared.data(), bytes} : std::span{own}};
    segment const regions[] = {memory.region()};
    wires.expose(regions, wires.next_region()).or_throw();
    memory.run(task.what, wires, 0);  // touches all pages
    say(up);
    for (std::uint64_t number = 1; hear(down); ++number) {
      memory.run(task.what, wires, number);
      say(up);
    }
  }

  ::pid_t pid_;
  int down_ = -1;
  int up_ = -1;
};

void on_processes(benchmark::State& state, phase what, weights_in place) {
  static int groups = 0;
  process_task const task{static_cast<index_t>(state.range(0)), static_cast<std::size_t>(state.range(1)), what, place,
                          "bench-" + std::to_string(::getpid()) + "-" + std::to_string(++groups)};
  std::vector<rank_process> ranks;
  ranks.reserve(static_cast<std::size_t>(task.num_ranks));
  for (index_t rank = 0; rank < task.num_ranks; ++rank) { ranks.emplace_back(rank, task); }
  for (auto const& rank : ranks) { rank.await(); }
  for (auto _ : state) {
    for (auto const& rank : ranks) { rank.go(); }
    for (auto const& rank : ranks) { rank.await(); }
  }
  set_bytes(state);
}

void add_processes(char const* name, phase what, weights_in place) {
  benchmark::RegisterBenchmark(name, on_processes, what, place)->Apply(shapes);
}
[[maybe_unused]] bool const registered = [] {
  add_processes("transport/processes/shared/plain_copy", phase::plain_copy, weights_in::shared_memory);
  add_processes("transport/processes/shared/receive", phase::receive, weights_in::shared_memory);
  add_processes("transport/processes/shared/receive_and_commit", phase::receive_and_commit, weights_in::shared_memory);
  add_processes("transport/processes/private/plain_copy", phase::plain_copy, weights_in::private_memory);
  add_processes("transport/processes/private/receive", phase::receive, weights_in::private_memory);
  add_processes("transport/processes/private/receive_and_commit", phase::receive_and_commit,
                weights_in::private_memory);
  add_processes("transport/processes/bounced/receive", phase::receive, weights_in::nobody_reach);
  return true;
}();

#endif

}  // namespace
