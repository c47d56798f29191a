// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_EXCHANGE_CUH
#define BALLAST_CUDART_KERNELS_BATCH_EXCHANGE_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/exchange.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/cudart/layout/batch_view.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/types.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Nanoseconds since some time, as the device knows them.
[[nodiscard]] __device__ __forceinline__ std::uint64_t device_clock() {
  std::uint64_t now = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

/// Two words and their tags in one access, which other devices see as two of eight bytes each.
__device__ __forceinline__ void store_line(count_board::line* to, std::uint64_t first, std::uint64_t second) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(first), "l"(second) : "memory");
}
[[nodiscard]] __device__ __forceinline__ count_board::line load_line(count_board::line const* from) {
  count_board::line line;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(line.first), "=l"(line.second)
               : "l"(from)
               : "memory");
  return line;
}

/// Write this rank's counts on the board of every live rank, its own too, and there that dead ones have no tokens. All
/// threads of a block.
///
/// @param counts  [E] and a zero.
__device__ inline void send_counts(batch_view const& v, quota_row row, std::uint32_t tag, count_header const& header,
                                   index_t const* counts) {
  auto const num_ranks = v.shape.num_ranks;
  auto const lines = v.board(v.rank).lines_of_counts();
  auto const pack = [tag](std::uint32_t word) { return count_board::pack(word, tag); };
  auto const place_of = [&v, &row, tag](index_t rank) {
    return row.is_live(rank) ? v.board(rank).source(tag, v.rank) : v.board(v.rank).source(tag, rank);
  };
#pragma unroll 1
  for (auto i = static_cast<index_t>(threadIdx.x); i < lines * num_ranks; i += static_cast<index_t>(blockDim.x)) {
    auto const line = i % lines;
    auto const to = (v.rank + i / lines) % num_ranks;  // not all to the same rank first
    auto const count = [&counts, lives = row.is_live(to)](index_t expert) {
      return static_cast<std::uint32_t>(lives ? counts[expert] : 0);
    };
    store_line(place_of(to) + count_header::lines + line, pack(count(2 * line)), pack(count(2 * line + 1)));
  }
#pragma unroll 1
  for (auto to = static_cast<index_t>(threadIdx.x); to < num_ranks; to += static_cast<index_t>(blockDim.x)) {
    auto* const line = place_of(to);
    store_line(line, pack(header.settings), pack(header.version));
    store_line(line + 1, pack(header.min_tokens), pack(header.min_gain_ppm));
    store_line(line + 2, pack(header.start), pack(0));
  }
}

/// Look at `Count` lines, `step` apart, until all of them are this batch's; those from `count` on are left out.
/// @return false at the deadline.
template <int Count>
[[nodiscard]] __device__ __forceinline__ bool await_lines(count_board::line const* first, std::ptrdiff_t step,
                                                          int count, std::uint32_t tag, std::uint64_t deadline,
                                                          count_board::line (&got)[Count], std::uint32_t& missed) {
  for (bool late = false;;) {
    missed = 0;
#pragma unroll
    for (int n = 0; n < Count; ++n) {
      if (n < count) { got[n] = load_line(first + n * step); }
    }
#pragma unroll
    for (int n = 0; n < Count; ++n) {
      bool const here = count_board::tag_of(got[n].first) == tag && count_board::tag_of(got[n].second) == tag;
      if (n < count && !here) { missed |= 1u << n; }
    }
    if (missed == 0 || late) { return missed == 0; }
    late = device_clock() > deadline;  // and look once more
  }
}

/// What is decided for all ranks: the first verdict on a batch stands. One thread. The verdicts are on the board of
/// `judge`, or of the first live rank when that one is dead.
///
/// @param mine  what this rank would have.
/// @return what stands; `resident` where others are several batches ahead.
__device__ inline batch_verdict judge(batch_view const& v, quota_row row, std::uint32_t tag, batch_verdict mine) {
  auto chosen = v.judge;
  for (index_t rank = 0; !row.is_live(chosen) && rank < v.shape.num_ranks; ++rank) { chosen = rank; }
  auto* const word = reinterpret_cast<unsigned long long*>(v.board(chosen).verdict(tag));
  auto const wanted = count_board::pack(static_cast<std::uint32_t>(mine), tag);
  // Two batches ago this half had another verdict, most likely the good one.
  auto expected = count_board::pack(static_cast<std::uint32_t>(batch_verdict::exact), tag - 2);
  for (;;) {
    auto const found = atomicCAS_system(word, expected, wanted);
    if (found == expected) { return mine; }
    auto const found_tag = count_board::tag_of(found);  // 0: nobody has written there
    auto const behind = found_tag == 0 ? 1 : static_cast<std::int32_t>(tag - found_tag);
    if (behind == 0) { return static_cast<batch_verdict>(count_board::word_of(found)); }
    if (behind < 0) { return batch_verdict::resident; }
    expected = found;
  }
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
