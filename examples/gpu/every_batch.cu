// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Balances every batch of a recorded trace on one card: several ranks, a stream each, whose experts never move. It
// prints how even the ranks' work is by even shares, and by the quotas of each batch, counted from the physical ids
// that came out. It ends with 1 where a batch is not balanced.
#include <ballast/cudart/device_tables.hpp>
#include <ballast/cudart/kernels/batch_balancer.cuh>
#include <ballast/dispatch/tables.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/topology.hpp>

#include "choices.hpp"
#include "support/trace.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <span>
#include <vector>

namespace {

using namespace ballast;

/// What the trace was recorded with, and how it is served.
constexpr index_t num_tokens = 512, top_k = 6, num_ranks = 8, slots_per_rank = 10, planned_on = 8;
constexpr index_t tokens_of_rank = num_tokens / num_ranks;

void check(cudaError_t result, char const* call) { cudart::to_status(result, call).or_throw(); }

/// A rank: a stream, tables for the shares in force, and what balances its batches.
struct rank {
  rank(topology const& where, index_t number, placement const& held)
      : tables{dispatch_tables{where, held.shape(), rank_id{number}, dispatch_mode::even}, where, number},
        balancer{stream.get(), where, number, held, {.max_tokens = tokens_of_rank, .top_k = top_k}} {
    for (index_t layer = 0; layer < held.num_layers(); ++layer) {
      tables.publish(where, held, layer, stream.get()).or_throw();
    }
  }
  cudart::stream stream = cudart::stream::create();
  cudart::device_tables<> tables;
  cudart::batch_balancer balancer;
  cudart::device_memory<std::int32_t> ids = cudart::device_memory<std::int32_t>::create(tokens_of_rank * top_k);
};

/// One layer of one batch, on all ranks: each has its own part of the tokens. @return tokens that each rank is sent
std::vector<load_t> balance(std::vector<std::unique_ptr<rank>> const& ranks, topology const& where, index_t layer,
                            std::span<std::int32_t const> choices) {
  auto const part = static_cast<std::size_t>(tokens_of_rank * top_k);
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    auto& self = *ranks[r];
    auto* const ids = self.ids.data();
    check(cudaMemcpyAsync(ids, choices.data() + r * part, part * sizeof(std::int32_t), cudaMemcpyHostToDevice,
                          self.stream.get()),
          "cudaMemcpyAsync");
    cudart::routing<std::int32_t> const input{ids, tokens_of_rank, top_k};
    cudart::balance_and_dispatch(self.stream.get(), self.balancer.view(), {}, self.tables.view(), layer, input, ids)
        .or_throw();
  }
  std::vector<load_t> tokens(ranks.size());
  std::vector<std::int32_t> physical(part);
  for (auto const& self : ranks) {
    check(cudaStreamSynchronize(self->stream.get()), "cudaStreamSynchronize");
    check(cudaMemcpy(physical.data(), self->ids.data(), part * sizeof(std::int32_t), cudaMemcpyDeviceToHost),
          "cudaMemcpy");
    for (auto const id : physical) { ++tokens[static_cast<std::size_t>(id / where.slots_per_rank())]; }
  }
  return tokens;
}

int serve() {
  ballast_tools::trace trace;
  ballast_tools::read_trace(EXAMPLE_TRACE, trace).or_throw();
  topology const where{{num_ranks, 1, slots_per_rank, 0}};
  auto const start = trivial_placement({trace.num_layers, trace.num_logical, where.num_slots()});
  placement held;
  auto const loads_before = std::span<load_t const>{trace.tokens}.first(
      static_cast<std::size_t>(planned_on) * static_cast<std::size_t>(trace.num_layers * trace.num_logical));
  plan(headroom_placement{}, {loads_before, planned_on, trace.num_layers, trace.num_logical}, start, where, held)
      .or_throw();
  held.make_shares_even();

  std::vector<std::unique_ptr<rank>> ranks;
  std::vector<segment> boards;
  for (index_t r = 0; r < num_ranks; ++r) {
    ranks.push_back(std::make_unique<rank>(where, r, held));
    boards.push_back(ranks.back()->balancer.board());
  }
  for (auto const& self : ranks) { self->balancer.connect(std::span<segment const>{boards}).or_throw(); }

  std::printf("%d ranks of %d slots, %d experts, top-%d, %d tokens a batch; planned on batches 1 to %d\n\n", num_ranks,
              slots_per_rank, trace.num_logical, top_k, num_tokens, planned_on);
  std::puts("busiest rank's tokens over the mean, all layers\nbatch    even shares    quotas");
  double worst = 1;
  for (index_t batch = planned_on; batch < 2 * planned_on; ++batch) {
    auto const loads = trace.history().bucket(batch);
    auto const choices = gpu_example::choices_of(loads, trace.num_layers, num_tokens, top_k);
    auto const of_layer = static_cast<std::size_t>(num_tokens * top_k);
    double even = 0;
    double exact = 0;
    double mean = 0;
    for (index_t layer = 0; layer < trace.num_layers; ++layer) {
      auto const tokens = balance(ranks, where, layer,
                                  std::span{choices}.subspan(static_cast<std::size_t>(layer) * of_layer, of_layer));
      exact += static_cast<double>(*std::max_element(tokens.begin(), tokens.end()));
      even += balance_of(where, held, layer, loads.row(layer)).max;
      mean += balance_of(where, held, layer, loads.row(layer)).mean;
    }
    std::printf("%5d    %11.4f    %.4f\n", batch + 1, even / mean, exact / mean);
    worst = std::max(worst, exact / mean);
  }
  return worst < 1.001 ? 0 : 1;
}

}  // namespace

int main() {
  try {
    return serve();
  } catch (std::exception const& error) {
    std::fprintf(stderr, "gpu-every-batch: %s\n", error.what());
    return 2;
  }
}
