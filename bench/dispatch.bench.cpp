// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Lookups of a batch on the host, mode by mode, and rebuilding a layer's table.
#include <ballast/dispatch/tables.hpp>
#include <ballast/placement/placement.hpp>

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace {

using namespace ballast;

constexpr index_t num_logical = 256;
constexpr index_t num_slots = 288;
constexpr index_t top_k = 8;

placement with_uneven_shares() {
  auto made = trivial_placement({1, num_logical, num_slots});
  made.make_shares_even();
  auto const shares = made.edit_shares(0);
  for (index_t expert = 0; expert < num_logical; ++expert) {
    auto const replicas = made.replicas_of(0, expert);
    if (replicas.size() < 2) { continue; }
    auto const moved = shares[static_cast<std::size_t>(replicas[0])] / 3;
    shares[static_cast<std::size_t>(replicas[0])] -= moved;
    shares[static_cast<std::size_t>(replicas[1])] += moved;
  }
  return made;
}

void look_up(benchmark::State& state, dispatch_mode mode) {
  topology const where{{32, 4, num_slots / 32, 0}};
  auto const made = with_uneven_shares();
  dispatch_tables tables{where, made.shape(), rank_id{5}, mode};
  tables.publish(where, made);
  std::mt19937 random{5};  // NOLINT(cert-msc51-cpp): the same numbers in every run
  std::vector<std::int32_t> logical(static_cast<std::size_t>(state.range(0) * top_k));
  for (auto& id : logical) { id = static_cast<std::int32_t>(random() % num_logical); }
  std::vector<std::int32_t> physical(logical.size());
  for (auto _ : state) {
    dispatch_ids<std::int32_t>(tables.view(), 0, top_k, logical, physical);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(logical.size()));
}
BENCHMARK_CAPTURE(look_up, even, dispatch_mode::even)->Arg(4096);
BENCHMARK_CAPTURE(look_up, by_share, dispatch_mode::by_share)->Arg(4096);
BENCHMARK_CAPTURE(look_up, nearest, dispatch_mode::nearest)->Arg(4096);
BENCHMARK_CAPTURE(look_up, round_robin, dispatch_mode::round_robin)->Arg(4096);

void publish_layer(benchmark::State& state, dispatch_mode mode) {
  topology const where{{32, 4, num_slots / 32, 0}};
  auto const made = with_uneven_shares();
  dispatch_tables tables{where, made.shape(), rank_id{5}, mode};
  for (auto _ : state) {
    tables.publish(where, made, 0);
    benchmark::ClobberMemory();
  }
}
BENCHMARK_CAPTURE(publish_layer, nearest, dispatch_mode::nearest);
BENCHMARK_CAPTURE(publish_layer, by_share, dispatch_mode::by_share);

}  // namespace
