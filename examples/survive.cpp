// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Four ranks, here processes; one is killed while weights move. The other three bring back the experts that it took
// along and go on.
#include <ballast/ballast.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/schedule/schedules.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <span>
#include <string>
#include <vector>

namespace {

using namespace ballast;

constexpr index_t num_ranks = 4, num_layers = 3, num_experts = 10, slots = 4, victim = 2;
constexpr nanoseconds_t second = 1'000'000'000;

/// One rank's weights: every float of an expert says which one it is.
class weights {
public:
  static constexpr std::size_t floats = 256;

  weights() : memory_(std::size_t{num_layers} * slots * floats) {}
  [[nodiscard]] std::span<float> expert(index_t layer, index_t slot) {
    return std::span{memory_}.subspan(
        (static_cast<std::size_t>(layer) * slots + static_cast<std::size_t>(slot)) * floats, floats);
  }
  void load_from_disk(index_t layer, index_t slot, index_t expert) {
    std::ranges::fill(this->expert(layer, slot), static_cast<float>(100 * layer + expert));
  }
  [[nodiscard]] bool fit(placement const& in, index_t layer, index_t first_slot) {
    for (index_t slot = 0; slot < slots; ++slot) {
      auto const held = in.logical_of_slot(layer)[static_cast<std::size_t>(first_slot + slot)];
      auto const want = static_cast<float>(100 * layer + held);
      if (!std::ranges::all_of(expert(layer, slot), [want](float value) { return value == want; })) { return false; }
    }
    return true;
  }

private:
  std::vector<float> memory_;
};

using balancer = rebalancer<window_recorder, balanced_placement, layers_per_chunk<>, posix::peer_copy, host_store,
                            posix::process_group>;

/// A forward pass: some tokens pick experts, and the traffic drifts.
status run_pass(balancer& moved, int pass) {
  for (index_t layer = 0; layer < num_layers; ++layer) {
    std::vector<index_t> picks;
    for (index_t token = 0; token < 64; ++token) {
      picks.push_back(token % 3 == 0 ? (pass / 8) % num_experts : token % num_experts);
    }
    moved.record_top_k(layer, picks);
  }
  return moved.on_forward_pass_end();
}

/// What the engine does when a rank has died: the same on every survivor, between the same two passes.
status go_on_without(index_t dead, balancer& moved, posix::process_group& group, topology& where, weights& own,
                     std::vector<slot_reload>& reloads) {
  if (auto result = group.expel(dead); !result.ok()) { return result; }
  if (auto result = moved.resume(); !result.ok()) { return result; }
  where.set_live(dead, false);
  placement in_force = moved.current();
  if (auto result = replace_lost_experts(where, moved.current(), in_force, reloads); !result.ok()) { return result; }
  if (auto result = moved.set_topology(where, in_force); !result.ok()) { return result; }
  // Not before: had another rank died meanwhile, the slots would have to hold what was in force.
  for (auto const& reload : reloads) {
    auto const slot = reload.slot - where.first_slot(group.rank());
    if (slot >= 0 && slot < slots) { own.load_from_disk(reload.layer, slot, reload.expert); }
  }
  return {};
}

int run_rank(index_t rank, std::string const& name) {
  posix::process_group group;
  group.join(name, rank, num_ranks, 30 * second).or_throw();
  posix::process_group engine;  // the engine's own channel, here only to agree that somebody has failed
  engine.join(name + "-engine", rank, num_ranks, 30 * second).or_throw();
  posix::peer_copy wires{group};

  topology where{{.num_ranks = num_ranks, .num_nodes = 1, .slots_per_rank = slots}};
  auto const initial = trivial_placement({num_layers, num_experts, where.num_slots()});
  weights own;
  host_store store{where, num_layers};
  for (index_t layer = 0; layer < num_layers; ++layer) {
    for (index_t slot = 0; slot < slots; ++slot) {
      own.load_from_disk(layer, slot,
                         initial.logical_of_slot(layer)[static_cast<std::size_t>(where.first_slot(rank) + slot)]);
    }
    store.add(layer, "weights", own.expert(layer, 0).data(), weights::floats * sizeof(float)).or_throw();
  }
  balancer moved{where,
                 initial,
                 {window_recorder{num_layers, num_experts, {.passes = 8}},
                  balanced_placement{},
                  layers_per_chunk{1},
                  {.interval = 8, .timeout = 2 * second}},
                 store,
                 wires,
                 group};
  moved.start().or_throw();

  status result;
  int pass = 1;
  for (; result.ok(); ++pass) {
    if (rank == victim && pass == 10) { std::raise(SIGKILL); }  // in mid-cycle: one layer of three has moved
    result = run_pass(moved, pass);
  }
  // All survivors must have stopped before they go on.
  engine.expel(victim).or_throw();
  engine.all_reduce({}, 30 * second).or_throw();
  std::vector<slot_reload> reloads;
  go_on_without(result.rank(), moved, group, where, own, reloads).or_throw();
  if (rank == 0) {
    std::printf("rank %d has died; %zu experts were lost with it and are loaded again\n", result.rank(),
                reloads.size());
  }

  auto const before = moved.epoch(0);
  for (int more = 0; more < 40; ++more) { run_pass(moved, ++pass).or_throw(); }
  bool right = true;
  for (index_t layer = 0; layer < num_layers; ++layer) {
    right = right && own.fit(moved.current(), layer, where.first_slot(rank));
  }
  engine.all_reduce({}, 30 * second).or_throw();
  if (rank == 0) {
    std::printf("three ranks went on: layer 0 has moved %s, weights are %s\n",
                moved.epoch(0) > before ? "again" : "never", right ? "right" : "WRONG");
  }
  return right ? 0 : 1;
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  auto const name = "survive-" + std::to_string(::getpid());
  std::vector<::pid_t> ranks;
  for (index_t rank = 0; rank < num_ranks; ++rank) {
    auto const child = ::fork();
    if (child != 0) {
      ranks.push_back(child);
      continue;
    }
    int code = 2;
    try {
      code = run_rank(rank, name);
    } catch (std::exception const& error) { std::fprintf(stderr, "rank %d: %s\n", rank, error.what()); }
    std::_Exit(code);
  }
  int failures = 0;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    int state = 0;
    ::waitpid(ranks[rank], &state, 0);
    if (rank != victim && state != 0) { ++failures; }
  }
  return failures;
}
