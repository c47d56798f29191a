// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_SOURCES_CUH
#define BALLAST_CUDART_KERNELS_BATCH_SOURCES_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/sources.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/shares/quota_row.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// The tokens of one expert by source rank, wherever they are.
struct source_counts {
  index_t const* first = nullptr;
  index_t stride = 1;  ///< from a rank to the next

  [[nodiscard]] __device__ __forceinline__ index_t operator()(index_t rank) const {
    return first[static_cast<std::ptrdiff_t>(rank) * stride];
  }
};

/// What `quota_sources` does for one group of replicas, by eight neighbouring lanes, number for number.
class lane_sources {
public:
  static constexpr index_t num_lanes = 8;
  [[nodiscard]] static __device__ index_t lane() { return static_cast<index_t>(threadIdx.x) % num_lanes; }

  /// @param holders, quotas  of the group's replicas.
  __device__ lane_sources(quota_shape const& shape, quota_holder const* holders, index_t const* quotas, index_t count,
                          source_counts counts, index_t rank)
      : holders_{holders},
        quotas_{quotas},
        count_{count},
        counts_{counts},
        num_nodes_{shape.num_nodes},
        per_node_{num_nodes_ == 1 ? shape.num_ranks : shape.ranks_per_node()},
        rank_{rank} {}

  /// @param ends  out: of this rank's ordinals. @return the first of them
  __device__ index_t assign(index_t* ends) const {
    // ---- where this rank's tokens stand among those that leave a rank of its node, and those that leave a node ----
    auto const node = num_nodes_ == 1 ? 0 : rank_ / per_node_;
    index_t far_begin = 0;
#pragma unroll 1
    for (index_t n = 0; n < node; ++n) { far_begin += max(0, waiting_on(n, per_node_) - room_on(n)); }
    auto const near_begin = waiting_on(node, rank_ - node * per_node_);
    auto const near_end = near_begin + leaving(rank_);
    index_t far_end = 0;
    if (num_nodes_ > 1) {
      auto const room = room_on(node);
      far_begin += max(0, near_begin - room);
      far_end = far_begin + (max(0, near_end - room) - max(0, near_begin - room));
    }

    // ---- what each replica takes of them: all lanes alike ----
    index_t sum = 0;
    index_t first_end = 0;
    index_t near_before = 0;
    index_t far_before = 0;
    index_t waiting = 0;
    index_t last_node = -1;
    keeper keeps;
#pragma unroll 1
    for (index_t i = 0; i < count_; ++i) {
      auto const here = static_cast<index_t>(holders_[i].node);
      auto const kept = keeps(*this, i);
      auto const room = quotas_[i] - kept;
      if (here != last_node) {
        near_before = 0;
        if (num_nodes_ > 1) { waiting = waiting_on(here, per_node_); }
      }
      last_node = here;
      if (holders_[i].rank == rank_) { sum += kept; }
      if (here == node) { sum += overlap(near_begin, near_end, near_before, room); }
      if (num_nodes_ > 1) {
        auto const left = room - max(0, min(waiting - near_before, room));
        sum += overlap(far_begin, far_end, far_before, left);
        far_before += left;
      }
      near_before += room;
      if (i == 0) { first_end = sum; }
      if (lane() == 0) { ends[i] = sum; }
    }
    return first_end;
  }

private:
  /// What the tokens of its own rank take of each replica's quota, one replica after the other.
  struct keeper {
    index_t last_rank = -1;
    index_t left = 0;

    __device__ __forceinline__ index_t operator()(lane_sources const& of, index_t i) {
      auto const rank = static_cast<index_t>(of.holders_[i].rank);
      if (rank != last_rank) { left = of.counts_(rank); }
      last_rank = rank;
      auto const kept = min(left, of.quotas_[i]);
      left -= kept;
      return kept;
    }
  };

  [[nodiscard]] static __device__ index_t overlap(index_t begin, index_t end, index_t from, index_t length) {
    return max(0, min(end, from + length) - max(begin, from));
  }
  /// Tokens of a rank that the quotas there have no room for.
  [[nodiscard]] __device__ __forceinline__ index_t leaving(index_t rank) const {
    auto left = counts_(rank);
#pragma unroll 1
    for (index_t i = 0; i < count_; ++i) {
      if (holders_[i].rank == rank) { left -= min(left, quotas_[i]); }
    }
    return left;
  }
  /// Tokens that leave the first `count` ranks of a node: each lane looks at some of them.
  [[nodiscard]] __device__ index_t waiting_on(index_t node, index_t count) const {
    index_t sum = 0;
#pragma unroll 1
    for (auto i = lane(); i < count; i += num_lanes) { sum += leaving(node * per_node_ + i); }
    auto const mask = 0xffu << (threadIdx.x & 24u);
#pragma unroll
    for (int offset = num_lanes / 2; offset > 0; offset /= 2) { sum += __shfl_xor_sync(mask, sum, offset); }
    return sum;
  }
  /// What the quotas on a node have left after their own ranks' tokens.
  [[nodiscard]] __device__ index_t room_on(index_t node) const {
    index_t room = 0;
    keeper keeps;
#pragma unroll 1
    for (index_t i = 0; i < count_; ++i) {
      auto const kept = keeps(*this, i);
      if (holders_[i].node == node) { room += quotas_[i] - kept; }
    }
    return room;
  }

  quota_holder const* holders_;
  index_t const* quotas_;
  index_t count_;
  source_counts counts_;
  index_t num_nodes_;
  index_t per_node_;
  index_t rank_;
};

/// Call `visit(group)` for each group, with `lane_sources::num_lanes` neighbouring threads of the block.
template <class Visit>
__device__ __forceinline__ void for_lanes(index_t groups, Visit visit) {
  auto const stride = static_cast<index_t>(blockDim.x) / lane_sources::num_lanes;
#pragma unroll 1
  for (auto group = static_cast<index_t>(threadIdx.x) / lane_sources::num_lanes; group < groups; group += stride) {
    visit(group);
  }
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
