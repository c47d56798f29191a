// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Whole rebalances on a simulated machine, with everything drawn from a seed: set-up, delays, mishaps. See
// docs/simulation.md.
//
//   schedules --seeds FIRST LAST [--transports NAME...] [--verbose]
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>
#include <ballast/transport/by_link.hpp>

#include "schedules/rank_run.hpp"
#include "schedules/set_up.hpp"

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using namespace ballast;
using namespace ballast_test;
using namespace ballast_test::schedules;

namespace {

struct arguments {
  std::uint64_t first = 0;
  std::uint64_t last = 2'000;
  std::vector<wires> transports{wires::local_peers, wires::ipc_peers, wires::nccl, wires::by_link_local,
                                wires::by_link_ipc};
  bool verbose = false;
};

/// NCCL's calls that may block run on threads that the simulation knows.
void run_beside(void* /*context*/, void (*work)(void*), void* argument) {
  simulated::run_beside([work, argument] { work(argument); });
}

[[nodiscard]] nccl::communicator_options communicator_of(set_up const& what) {
  nccl::communicator_options options;
  options.timeout = 8 * what.timeout;
  options.calls.run = &run_beside;
  return options;
}

/// What the ranks of a run have in common besides the channels.
struct machine_room {
  explicit machine_room(set_up const& what) : run{what}, peers{what.num_ranks} {}
  shared_run run;
  cudart::local_peers peers;
};

[[nodiscard]] cudart::peer_copy_options copy_options_of(set_up const& what) {
  cudart::peer_copy_options options;
  options.num_streams = what.num_streams;
  options.bounce_bytes = 256;
  return options;
}

template <class Control, class Body>
void with_local_peers(machine_room& room, Control& control, Body body) {
  cudart::peer_copy<cudart::local_peers::member> near{room.peers.join(control.rank()), copy_options_of(room.run.what)};
  body(near);
}
template <class Control, class Body>
void with_ipc_peers(machine_room& room, Control& control, Body body) {
  using peers = cudart::ipc_peers<Control>;
  if constexpr (cudart::peer_directory<peers>) {
    cudart::peer_copy<peers> near{peers{control, 8 * room.run.what.timeout}, copy_options_of(room.run.what)};
    body(near);
  }
}
template <class Control, class Body>
void with_nccl(machine_room& room, Control& control, cudaStream_t compute, Body body) {
  auto const& what = room.run.what;
  nccl::communicator made;
  nccl::communicator::create(control, made, communicator_of(what)).or_throw();
  nccl::transport_options options;
  options.compute_stream = compute;
  options.allow_sm_overlap = what.allow_sm_overlap;
  options.communicator = communicator_of(what);
  nccl::transport far{std::move(made), options};
  body(far);
}

template <class Wires, class Control>
void run_on(machine_room& room, Wires& wires, Control& control, cudaStream_t compute) {
  rank_run<Wires, Control>{room.run, control.rank(), wires, control, compute}.run();
}

void run_rank(machine_room& room, index_t rank) {
  auto const& what = room.run.what;
  static_cast<void>(cudaSetDevice(rank % what.num_devices));
  auto control = room.run.control.control(rank);
  auto const compute = cudart::stream::create();
  auto const on = [&](auto& wires) { run_on(room, wires, control, compute.get()); };
  auto const by_links = [&](auto& near) {
    with_nccl(room, control, compute.get(), [&](auto& far) {
      topology const where{{what.num_ranks, 2, what.slots_per_rank, 0}};
      by_link both{where, near, far};
      on(both);
    });
  };
  switch (what.transport) {
    case wires::local_peers: return with_local_peers(room, control, on);
    case wires::ipc_peers: return with_ipc_peers(room, control, on);
    case wires::nccl: return with_nccl(room, control, compute.get(), on);
    case wires::by_link_local: return with_local_peers(room, control, by_links);
    case wires::by_link_ipc: return with_ipc_peers(room, control, by_links);
  }
}

struct totals {
  std::int64_t runs = 0;
  std::int64_t failures = 0;
  std::int64_t moves = 0;
  std::int64_t bad = 0;
};

/// @return whether nothing was wrong
bool run_seed(std::uint64_t seed, arguments const& with, totals& sums) {
  auto const what = draw_set_up(seed, with.transports);
  if (with.verbose) { std::printf("%s", to_text(what).c_str()); }
  simulated::machine_options options;
  options.num_devices = what.num_devices;
  options.seed = seed;
  options.virtual_time = true;
  options.peer_access = what.peer_access;
  options.pauses = what.pauses;
  options.bytes_per_nanosecond = 0.5;
  options.device_bytes = std::size_t{64} << 20;
  simulated::reset(options);
  ballast::nccl::detail::spare_packs::forget();
  auto room = std::make_unique<machine_room>(what);
  auto& run = room->run;
  try {
    simulated::run_ranks(what.num_ranks, [&](int rank) { run_rank(*room, rank); });
  } catch (std::exception const& failure) { run.complain(failure.what()); }
  room->run.armed = 0;
  auto broken = simulated::take_violations();
  constexpr std::size_t most = 20;
  if (broken.size() > most) { broken.resize(most); }
  for (auto const& each : broken) {
    run.complaints.push_back(detail::concat("rule: ", each.rule, " at ", each.time, " ns: ", each.text));
  }
  ++sums.runs;
  sums.failures += run.num_failures;
  sums.moves += run.num_moves;
  if (with.verbose) {
    for (auto const& line : run.story) { std::printf("    %s\n", line.c_str()); }
    std::printf("  trace %016llx, %lld ns\n", static_cast<unsigned long long>(simulated::trace_digest()),
                static_cast<long long>(simulated::now()));
  }
  if (run.complaints.empty()) { return true; }
  ++sums.bad;
  if (!with.verbose) { std::printf("%s", to_text(what).c_str()); }
  for (auto const& line : run.complaints) { std::printf("  %s\n", line.c_str()); }
  std::printf("  replay: schedules --seeds %llu %llu --verbose\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(seed + 1));
  std::fflush(stdout);
  return false;
}

[[nodiscard]] arguments parse(std::vector<std::string> const& words) {
  arguments result;
  for (std::size_t i = 1; i < words.size(); ++i) {
    if (words[i] == "--seeds" && i + 2 < words.size()) {
      result.first = std::strtoull(words[i + 1].c_str(), nullptr, 10);
      result.last = std::strtoull(words[i + 2].c_str(), nullptr, 10);
      i += 2;
    } else if (words[i] == "--transports") {
      result.transports.clear();
      while (i + 1 < words.size() && !words[i + 1].starts_with("--")) {
        auto const found = std::find(wire_names.begin(), wire_names.end(), words[++i]);
        if (found == wire_names.end()) {
          std::fprintf(stderr, "schedules: no transport '%s'\n", words[i].c_str());
          std::exit(2);
        }
        result.transports.push_back(static_cast<wires>(found - wire_names.begin()));
      }
    } else if (words[i] == "--verbose") {
      result.verbose = true;
    } else {
      std::fprintf(stderr, "schedules: unknown option '%s'\n", words[i].c_str());
      std::exit(2);
    }
  }
  return result;
}

/// One thread runs at a time: passing the baton between processors costs twice as much.
void stay_on_one_processor() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<std::size_t>(std::max(::sched_getcpu(), 0)), &one);
  static_cast<void>(::sched_setaffinity(0, sizeof one, &one));
}

}  // namespace

int main(int count, char** words) {
  stay_on_one_processor();
  auto const with = parse({words, words + count});
  totals sums;
  for (auto seed = with.first; seed < with.last; ++seed) { static_cast<void>(run_seed(seed, with, sums)); }
  std::printf("%lld schedules, %lld moves of first layers, %lld failures on the way, %lld schedules wrong\n",
              static_cast<long long>(sums.runs), static_cast<long long>(sums.moves),
              static_cast<long long>(sums.failures), static_cast<long long>(sums.bad));
  return sums.bad == 0 ? 0 : 1;
}
