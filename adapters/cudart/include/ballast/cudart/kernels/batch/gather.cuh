// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_GATHER_CUH
#define BALLAST_CUDART_KERNELS_BATCH_GATHER_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/gather.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/batch/block.cuh>
#include <ballast/cudart/kernels/batch/exchange.cuh>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// The stages that come to the counts of all ranks.
class plan_gather : public plan_block {
public:
  using plan_block::plan_block;

  /// This rank's counts, from those of the blocks of ids. Everybody calls, and meets afterwards.
  __device__ void add_blocks_up() const {
    constexpr index_t at_once = 8;  // experts, in 16 bytes
    auto const chunks = count_stride(v.shape.num_logical) / at_once;
    auto const parts = max(1, static_cast<index_t>(blockDim.x) / chunks);
    auto const* const from = reinterpret_cast<uint4 const*>(v.block_counts);
    for_threads(chunks * parts, [&](index_t i) {
      auto const chunk = i % chunks;
      std::uint32_t sums[at_once] = {};
#pragma unroll 4
      for (auto block = i / chunks; block < static_cast<index_t>(a.num_blocks); block += parts) {
        auto const counts = from[block * chunks + chunk];
        std::uint32_t const words[] = {counts.x, counts.y, counts.z, counts.w};
#pragma unroll
        for (int n = 0; n < at_once; ++n) { sums[n] += words[n / 2] >> (n % 2 * 16) & 0xffffu; }
      }
#pragma unroll
      for (int n = 0; n < at_once; ++n) {
        if (sums[n] != 0) { atomicAdd(&memory.own()[chunk * at_once + n], static_cast<index_t>(sums[n])); }
      }
    });
  }

  /// The counts of all ranks, and what they ask for. Everybody calls, and knows the same afterwards.
  ///
  /// @return whether they are complete.
  [[nodiscard]] __device__ bool gather() const {
    if (!exchanges()) {
      take_gathered();
      __syncthreads();
      return true;
    }
    auto const began = device_clock();
    send_counts(v, row, state.tag, header(), memory.own());
    bool complete = receive(began);
    if (!complete) {
      if (threadIdx.x == 0) { state.judged = judge(v, row, state.tag, batch_verdict::resident); }
      __syncthreads();
      // Somebody has had all counts, so all were sent, and the others go by them.
      if (state.judged == batch_verdict::exact) { complete = receive(device_clock()); }
    }
    if (threadIdx.x == 0) { state.waited = static_cast<std::uint32_t>(device_clock() - began); }
    return complete;
  }

private:
  [[nodiscard]] __device__ count_header header() const {
    return {v.settings, static_cast<std::uint32_t>(row.sizes().version),
            state.control.on != 0 ? state.control.min_tokens : ~0u, state.control.min_gain_ppm, state.start};
  }

  __device__ void take_gathered() const {
    auto const num_logical = v.shape.num_logical;
    auto const parts = max(1, static_cast<index_t>(blockDim.x) / num_logical);
    auto const ranks = a.gathered != nullptr ? v.shape.num_ranks : 1;
    auto const* const from = a.gathered != nullptr ? a.gathered : memory.own();
    for_threads(num_logical * parts, [&](index_t i) {
      auto const expert = i % num_logical;
      index_t sum = 0;
#pragma unroll 8
      for (auto rank = i / num_logical; rank < ranks; rank += parts) { sum += from[rank * num_logical + expert]; }
      if (sum != 0) { atomicAdd(&memory.tokens()[expert], sum); }
    });
    if (threadIdx.x == 0) {
      state.min_tokens = header().min_tokens;
      state.min_gain_ppm = header().min_gain_ppm;
    }
  }
  [[nodiscard]] __device__ bool receive(std::uint64_t began) const {
    for_threads(v.shape.num_logical, [&](index_t expert) { memory.tokens()[expert] = 0; });
    __syncthreads();
    auto const deadline = began + state.control.wait_nanoseconds;
    bool const here = receive_counts(deadline) && receive_headers(deadline);
    return __syncthreads_and(here) != 0;
  }
  /// A few threads for each line, several sources at once.
  [[nodiscard]] __device__ bool receive_counts(std::uint64_t deadline) const {
    constexpr int at_once = 4;
    auto const board = v.board(v.rank);
    auto const lines = board.lines_of_counts();
    auto const parts = max(1, static_cast<index_t>(blockDim.x) / lines);
    bool here = true;
    for_threads(lines * parts, [&](index_t i) {
      auto const line = i % lines;
      index_t first = 0;
      index_t second = 0;
#pragma unroll 1
      for (auto source = i / lines; here && source < v.shape.num_ranks; source += at_once * parts) {
        count_board::line got[at_once];
        std::uint32_t missed = 0;
        auto const left = (v.shape.num_ranks - source + parts - 1) / parts;
        auto const step = static_cast<std::ptrdiff_t>(parts) * board.lines_per_source();
        here = await_lines(board.source(state.tag, source) + count_header::lines + line, step, left, state.tag,
                           deadline, got, missed);
        for (; missed != 0; missed &= missed - 1) { miss(source + (__ffs(static_cast<int>(missed)) - 1) * parts); }
#pragma unroll
        for (int n = 0; n < at_once; ++n) {
          if (n >= left) { continue; }
          first += static_cast<index_t>(count_board::word_of(got[n].first));
          second += static_cast<index_t>(count_board::word_of(got[n].second));
        }
      }
      if (!here) { return; }
      if (first != 0) { atomicAdd(&memory.tokens()[2 * line], first); }
      if (second != 0) { atomicAdd(&memory.tokens()[2 * line + 1], second); }
    });
    return here;
  }
  [[nodiscard]] __device__ bool receive_headers(std::uint64_t deadline) const {
    bool here = true;
    for_threads(v.shape.num_ranks, [&](index_t source) {
      count_board::line got[count_header::lines];
      std::uint32_t missed = 0;
      bool const came = await_lines(v.board(v.rank).source(state.tag, source), 1, count_header::lines, state.tag,
                                    deadline, got, missed);
      here = here && came;
      if (!came) { return miss(source); }
      auto const ours = header();
      bool const alike =
          count_board::word_of(got[0].first) == ours.settings && count_board::word_of(got[0].second) == ours.version;
      if (!alike) { atomicOr(&state.unlike, 1u); }
      atomicMax(&state.min_tokens, count_board::word_of(got[1].first));
      atomicMax(&state.min_gain_ppm, count_board::word_of(got[1].second));
      if (count_board::word_of(got[2].first) != ours.start) { atomicOr(&state.starts_apart, 1u); }
    });
    return here;
  }
  __device__ void miss(index_t source) const {
    if (source < 64) { atomicOr(&state.missing, 1ull << source); }
  }
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
