// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_OUTCOME_CUH
#define BALLAST_CUDART_KERNELS_BATCH_OUTCOME_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/outcome.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/batch/block.cuh>
#include <ballast/cudart/kernels/batch/exchange.cuh>
#include <ballast/cudart/kernels/batch/sources.cuh>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// The stages beside and behind the solution: what the lookup reads, and what the host is told.
class plan_outcome : public plan_block {
public:
  using plan_block::plan_block;

  /// What needs no quotas, by the threads from `first` on: the recorder's counts, block counts summed up, and the
  /// movable experts' tokens by source rank.
  __device__ void prepare(index_t first, bool balances) const {
    if (v.has_room && balances) {
      auto const num_ranks = v.shape.num_ranks;
      for_threads(
          row.sizes().num_groups * num_ranks,
          [&](index_t i) {
            auto const expert = row.holders()[row.group_first()[i / num_ranks]].expert;
            memory.counts()[i] = counts_of(expert)(i % num_ranks);
          },
          first);
    }
    if (balances) {
      for_threads(v.shape.num_logical, [&](index_t expert) { sum_blocks_up(expert); }, first);
    }
    if (a.record.pass == nullptr || *a.record.gate == 0) { return; }
    auto* const pass = a.record.pass + static_cast<std::ptrdiff_t>(a.layer) * v.shape.num_logical;
    for_threads(
        v.shape.num_logical,
        [&](index_t expert) {
          auto const own = memory.own()[expert];
          if (own != 0) { atomicAdd(&pass[expert], static_cast<std::uint32_t>(own)); }
        },
        first);
  }

  /// One thread, where all counts have come: hear whether others had to give this batch up.
  __device__ void hear_verdict() const {
    bool const asks = exchanges() && state.judged != batch_verdict::exact;
    state.judged = asks ? judge(v, row, state.tag, batch_verdict::exact) : batch_verdict::exact;
  }

  /// By what the tokens go; everybody comes to the same.
  [[nodiscard]] __device__ batch_verdict verdict(bool complete, bool balances) const {
    return complete && balances && gains() && state.judged == batch_verdict::exact ? batch_verdict::exact
                                                                                   : batch_verdict::resident;
  }

  /// Tokens in place of tiles, and which of this rank's go to which replica. Everybody calls.
  __device__ void assign() const {
    if (v.options.tile != 1) {
      for_threads(row.sizes().num_groups, [&](index_t group) { to_tokens(group); });
      __syncthreads();
    }
    auto* const entries = v.row_writer(a.layer).entries();
    auto const* const physical = row.physical();
    for_lanes(row.sizes().num_groups, [&](index_t group) {
      auto const first = row.group_first()[group];
      auto const end = row.group_first()[group + 1];
      auto const expert = row.holders()[first].expert;
      auto const counts =
          v.has_room ? source_counts{memory.counts() + group * v.shape.num_ranks, 1} : counts_of(expert);
      lane_sources const sources{v.shape, row.holders() + first, memory.flow() + first, end - first, counts, v.rank};
      auto const first_end = sources.assign(v.ends + first);
      if (lane_sources::lane() != 0) { return; }
      bool const two = end - first == 2;
      entries[expert] = {two ? physical[first] : first, two ? physical[first + 1] : -1, first_end, end - first};
    });
    for_threads(row.sizes().num_replicas, [&](index_t i) {
      v.quotas[i] = i < row.sizes().num_movable ? memory.flow()[i] : memory.tokens()[row.holders()[i].expert];
    });
  }

  /// The quotas as the next batch may start from them, `quota_solver::parts`. Everybody calls, behind `assign`.
  __device__ void keep() const {
    auto* const parts = v.start_parts + static_cast<std::ptrdiff_t>(a.layer) * v.shape.max_movable();
    auto const* const began_with = starts_from_quotas() ? memory.start() : row.share();
    for_threads(row.sizes().num_movable, [&](index_t position) {
      auto const all = static_cast<std::uint64_t>(memory.tokens()[row.holders()[position].expert]);
      parts[position] = all == 0
                            ? began_with[position]
                            : static_cast<index_t>((static_cast<std::uint64_t>(memory.flow()[position]) << 30) / all);
    });
    if (threadIdx.x == 0) { v.starts[a.layer] = {state.tag, row.sizes().version}; }
  }

  /// One thread: what the batch went by, for the lookup and for the host.
  __device__ void tell(bool complete, bool balances) const {
    auto told = state.statistics;
    auto const& balance = state.balance;
    bool const judged = state.judged == batch_verdict::exact;
    ++told.batches;
    told.wait_nanoseconds = state.waited;
    if (!complete || !judged) {
      ++told.late;
      told.alone += judged ? 1 : 0;
      told.late_ranks_low = static_cast<std::uint32_t>(state.missing);
      told.late_ranks_high = static_cast<std::uint32_t>(state.missing >> 32);
    } else if (state.min_tokens == ~0u) {
      ++told.off;
    } else if (state.unlike != 0) {
      ++told.unlike;
    } else if (balances && gains()) {
      ++told.exact;
    } else {
      ++told.below;
    }
    if (balances) {
      told.max = static_cast<std::uint32_t>(balance.max);
      told.bound = static_cast<std::uint32_t>(balance.bound);
      told.resident = static_cast<std::uint32_t>(balance.resident);
      told.total = static_cast<std::uint32_t>(balance.total);
      told.realised = verdict(complete, balances) == batch_verdict::exact ? told.max : told.resident;
      told.sweeps = static_cast<std::uint16_t>(min(balance.sweeps, 0xffff));
      told.searches = static_cast<std::uint16_t>(min(balance.searches, 0xffff));
    }
    v.statistics[a.layer] = told;
    v.host_statistics[a.layer] = told;
    *v.verdict = verdict(complete, balances);
    auto const next = state.tag + 1;
    *v.tag = next == 0 ? 2 : next;  // 0 is the tag of a board that nobody has written to
  }

private:
  [[nodiscard]] __device__ bool gains() const {
    // Quotas that started from those of an earlier batch may be worse than the shares in force.
    return state.balance.resident >= state.balance.max &&
           static_cast<std::uint64_t>(state.balance.resident - state.balance.max) * 1'000'000u >=
               static_cast<std::uint64_t>(state.balance.max) * state.min_gain_ppm;
  }
  /// What the blocks before each block have of an expert. Many at a time: loads do not wait for the stores before them.
  __device__ void sum_blocks_up(index_t expert) const {
    constexpr std::uint32_t at_once = 16;
    auto const stride = static_cast<std::uint32_t>(count_stride(v.shape.num_logical));
    auto const* from = v.block_counts + expert;
    auto* to = v.block_first + expert;
    std::uint32_t sum = 0;
#pragma unroll 1
    for (std::uint32_t begin = 0; begin < a.num_blocks; begin += at_once) {
      std::uint16_t counts[at_once];
#pragma unroll
      for (std::uint32_t i = 0; i < at_once; ++i) {
        counts[i] = begin + i < a.num_blocks ? from[i * stride] : std::uint16_t{0};
      }
#pragma unroll
      for (std::uint32_t i = 0; i < at_once; ++i) {
        if (begin + i < a.num_blocks) { to[i * stride] = sum; }
        sum += counts[i];
      }
      from += at_once * stride;
      to += at_once * stride;
    }
  }
  __device__ void to_tokens(index_t group) const {
    if (v.options.tile == 1) { return; }
    auto const first = row.group_first()[group];
    auto rest = memory.tokens()[row.holders()[first].expert];
#pragma unroll 1
    for (auto position = first; position < row.group_first()[group + 1]; ++position) {
      auto const whole = static_cast<std::int64_t>(memory.flow()[position]) * v.options.tile;
      auto const quota = whole < rest ? static_cast<index_t>(whole) : rest;
      memory.flow()[position] = quota;
      rest -= quota;
    }
  }
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
