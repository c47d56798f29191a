// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_COUNT_CUH
#define BALLAST_CUDART_KERNELS_BATCH_COUNT_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/count.cuh holds kernels: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/launch.cuh>
#include <ballast/cudart/layout/batch_view.hpp>
#include <ballast/cudart/record_view.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// A rank's ids of a batch, cut into blocks of consecutive ones. Kernels are given what they read and no more: their
/// arguments have to be fetched too.
template <router_id Id>
struct batch_ids {
  Id const* ids = nullptr;                         ///< [T, k]
  std::int32_t const* num_valid_tokens = nullptr;  ///< null: all are
  std::uint32_t num_ids = 0;                       ///< T k
  std::uint32_t top_k = 1;
  std::uint32_t ids_per_block = 1;  ///< a multiple of the threads of a block
  index_t num_logical = 0;          ///< E
  std::uint16_t* ordinals = nullptr;

  /// Ids before the first padded row.
  [[nodiscard]] __device__ std::uint32_t num_valid() const {
    if (num_valid_tokens == nullptr) { return num_ids; }
    auto const valid = static_cast<std::uint64_t>(max(0, __ldcg(num_valid_tokens))) * top_k;
    return static_cast<std::uint32_t>(min(valid, static_cast<std::uint64_t>(num_ids)));
  }
};

/// Threads of a block of `count_kernel`, at most. With twice as many ids in a block the plan would have half as many to
/// add up; what that gains there it loses here.
inline constexpr unsigned most_count_threads = 512;

/// How many ids of each expert each warp has, two experts in a word; later: how many those before it have.
class warp_counts {
public:
  __device__ warp_counts(std::uint32_t* memory, index_t num_logical)
      : memory_{memory}, words_{static_cast<std::uint32_t>(num_logical + 1) / 2} {}
  [[nodiscard]] static std::size_t bytes(unsigned warps, index_t num_logical) noexcept {
    return sizeof(std::uint32_t) * (warps + 1) * (static_cast<std::size_t>(num_logical + 1) / 2);
  }

  [[nodiscard]] __device__ std::uint16_t& at(std::uint32_t warp, index_t expert) const {
    return reinterpret_cast<std::uint16_t*>(memory_ + warp * words_)[expert];
  }
  __device__ void clear(std::uint32_t first_warp, std::uint32_t end_warp) const {
    for (auto i = first_warp * words_ + threadIdx.x; i < end_warp * words_; i += blockDim.x) { memory_[i] = 0; }
  }
  /// Turn counts into sums over the warps before; row `warps` goes on from the last call. Many at a time: loads do not
  /// wait for the stores before them.
  ///
  /// @param all  out: the new row `warps` once more; may be null.
  __device__ void sum_up(std::uint32_t warps, std::uint32_t* all) const {
    constexpr std::uint32_t most_warps = most_count_threads / 32;
    for (auto i = threadIdx.x; i < words_; i += blockDim.x) {
      std::uint32_t counts[most_warps];
#pragma unroll
      for (std::uint32_t warp = 0; warp < most_warps; ++warp) {
        counts[warp] = warp < warps ? memory_[warp * words_ + i] : 0;
      }
      auto sum = memory_[warps * words_ + i];
#pragma unroll
      for (std::uint32_t warp = 0; warp < most_warps; ++warp) {
        if (warp < warps) { memory_[warp * words_ + i] = sum; }
        sum += counts[warp];
      }
      memory_[warps * words_ + i] = sum;
      if (all != nullptr) { all[i] = sum; }
    }
  }

private:
  std::uint32_t* memory_;
  std::uint32_t words_;
};

/// The lanes of a warp that count and have this lane's key, by a ballot for each bit of it: with `__match_any_sync`
/// counting and mapping took 2.6 microseconds in place of 2.4.
__device__ __forceinline__ std::uint32_t lanes_alike(std::uint32_t key, int key_bits, bool counts) {
  constexpr int most_bits = 16;
  auto alike = __ballot_sync(0xffffffffu, counts);
#pragma unroll
  for (int bit = 0; bit < most_bits; ++bit) {
    if (bit >= key_bits) { break; }
    bool const is_set = (key >> bit & 1u) != 0;
    auto const set = __ballot_sync(0xffffffffu, is_set);
    alike &= is_set ? set : ~set;
  }
  return alike;
}

/// Count each block's ids by expert, and number each id among those of its block and expert, in their order.
template <router_id Id>
__global__ void __launch_bounds__(most_count_threads)
    count_kernel(batch_ids<Id> const a, std::uint16_t* const block_counts) {
  extern __shared__ std::uint32_t shared_words[];
  auto const warps = blockDim.x / 32;
  auto const warp = threadIdx.x / 32;
  auto const lane = threadIdx.x & 31u;
  warp_counts const counts{shared_words, a.num_logical};
  counts.clear(0, warps + 1);
  auto const begin = blockIdx.x * a.ids_per_block;
  auto const key_bits = 32 - __clz(a.num_logical - 1);
  // Two experts in a word, as they are summed up.
  auto* const row = reinterpret_cast<std::uint32_t*>(block_counts) +
                    blockIdx.x * (static_cast<std::uint32_t>(count_stride(a.num_logical)) / 2);

  wait_for_predecessor();

#pragma unroll 1
  for (std::uint32_t done = 0; done < a.ids_per_block; done += blockDim.x) {
    auto const i = begin + done + threadIdx.x;
    auto const id = i < a.num_ids ? a.ids[i] : Id{-1};
    bool const counted = i < a.num_valid() && id >= 0 && id < a.num_logical;
    auto const expert = counted ? static_cast<index_t>(id) : 0;
    __syncthreads();  // the counts are clear

    // ---- each warp by itself: lanes of the same expert find each other ----
    auto const same = lanes_alike(static_cast<std::uint32_t>(expert), key_bits, counted);
    auto const before = static_cast<std::uint32_t>(__popc(same & ((1u << lane) - 1u)));
    if (counted && before == 0) { counts.at(warp, expert) = static_cast<std::uint16_t>(__popc(same)); }
    __syncthreads();

    // ---- the warps of the block one after the other ----
    bool const last = done + blockDim.x >= a.ids_per_block;
    counts.sum_up(warps, last ? row : nullptr);
    __syncthreads();
    if (counted) { a.ordinals[i] = static_cast<std::uint16_t>(counts.at(warp, expert) + before); }
    if (!last) {
      __syncthreads();
      counts.clear(0, warps);
    }
  }
}

/// This rank's counts, from those of the blocks: what an engine gathers.
template <class = void>
__global__ void __launch_bounds__(128) sum_kernel(batch_view const v, std::uint32_t num_blocks) {
  wait_for_predecessor();
  auto const expert = static_cast<index_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (expert >= v.shape.num_logical) { return; }
  std::uint32_t sum = 0;
#pragma unroll 8
  for (std::uint32_t block = 0; block < num_blocks; ++block) {
    sum += v.block_counts[block * static_cast<std::uint32_t>(count_stride(v.shape.num_logical)) +
                          static_cast<std::uint32_t>(expert)];
  }
  v.counts[expert] = static_cast<index_t>(sum);
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
