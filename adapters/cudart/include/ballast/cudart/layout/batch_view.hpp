// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_LAYOUT_BATCH_VIEW_HPP
#define BALLAST_CUDART_LAYOUT_BATCH_VIEW_HPP

#include <ballast/config.hpp>
#include <ballast/cudart/layout/count_board.hpp>
#include <ballast/cudart/layout/plan_memory.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// By what the tokens of a batch and layer are spread over replicas.
enum class batch_verdict : std::uint32_t {
  resident,  ///< the shares in force, as `dispatch` does
  exact,     ///< the batch's quotas
};

/// What decides in device memory whether batches are balanced; may change while graphs are replayed.
struct batch_control {
  std::uint32_t on = 1;
  std::uint32_t min_tokens = 0;              ///< below that many choices of all ranks, the shares in force stay
  std::uint32_t min_gain_ppm = 0;            ///< so do they where the busiest rank would gain less, in millionths
  std::uint32_t wait_nanoseconds = 1 << 20;  ///< for the counts of other ranks, 1 ms by default
};

/// What a layer's batches came to, kept by the device. Counters wrap around.
struct alignas(64) batch_statistics {
  std::uint32_t batches = 0;  ///< all of them
  std::uint32_t exact = 0;    ///< by quotas
  std::uint32_t below = 0;    ///< not worth it: too few tokens, or too little to gain
  std::uint32_t off = 0;      ///< a rank had it turned off
  std::uint32_t late = 0;     ///< a rank's counts did not come in time, to this rank or to another one
  std::uint32_t unlike = 0;   ///< ranks differed in options, or in the placement that they had in force
  std::uint32_t alone = 0;    ///< this rank fell back, though the verdict was exact: balance was lost, nothing else
  std::uint32_t wait_nanoseconds = 0;  ///< for the counts of other ranks, in the last batch
  std::uint32_t max = 0;               ///< tiles of the busiest rank, planned, in the last batch that was solved
  std::uint32_t bound = 0;             ///< what no quotas could bring it below
  std::uint32_t resident = 0;          ///< what it would have had by the shares in force
  std::uint32_t realised = 0;  ///< what it had: `max`, or `resident` where the batch went by those, up to chance
  std::uint32_t total = 0;     ///< of all ranks
  std::uint16_t sweeps = 0;
  std::uint16_t searches = 0;         ///< 65535: that many or more
  std::uint32_t late_ranks_low = 0;   ///< one bit for each rank that was missed in the last late batch, ranks 0 to 31
  std::uint32_t late_ranks_high = 0;  ///< ranks 32 to 63
};
static_assert(sizeof(batch_statistics) == 64, "a layer's counters reach the host in one write");

/// What the quotas of a layer's next batch may start from.
struct batch_start {
  std::uint32_t batch = 0;  ///< the one whose quotas they were; 0: none
  index_t version = 0;      ///< of the row that it was solved on
};

/// Blocks in which one rank's ids are counted: at most that many, of as many ids each.
inline constexpr index_t max_count_blocks = 128;

/// From the counts of a block of ids to the next one's: whole words of 16 bytes.
[[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t count_stride(index_t num_logical) noexcept {
  return (num_logical + 7) / 8 * 8;
}

/// One rank's memory for balancing every batch, as pointers and sizes that never change: captured graphs hold a copy.
struct batch_view {
  quota_shape shape;
  plan_layout layout;
  index_t rank = 0;
  index_t num_layers = 0;  ///< L
  index_t max_ids = 0;     ///< ids of a batch on this rank, at most
  quota_options options;
  std::uint32_t settings = 0;   ///< digest of shape and options, for `count_header`
  std::size_t shared_room = 0;  ///< bytes of shared memory that a block may have
  bool has_room = false;        ///< for a copy of all ranks' counts, in the block that plans

  std::byte* rows = nullptr;  ///< [L] rows of `layout.row.size` bytes; a batch fills entries in
  batch_control const* control = nullptr;
  std::uint32_t* tag = nullptr;                 ///< of the batch to come; the same on every rank
  batch_statistics* statistics = nullptr;       ///< [L]
  batch_statistics* host_statistics = nullptr;  ///< [L] pinned: a copy that the host may read
  batch_start* starts = nullptr;                ///< [L]; null: every batch starts from the shares in force
  index_t* start_parts = nullptr;               ///< [L, most movable] as `quota_solver::parts`

  // ---- of one batch: each chain writes them anew ----
  std::uint16_t* block_counts = nullptr;  ///< [blocks] rows of `count_stride`, of which E count
  std::uint32_t* block_first = nullptr;   ///< [blocks, E] what the blocks before have, for batches by quotas
  std::uint16_t* ordinals = nullptr;      ///< [ids] place among the ids of its block and expert
  index_t* counts = nullptr;              ///< [E] this rank's, by `count_batch`
  index_t* quotas = nullptr;              ///< [replicas] by position
  index_t* ends = nullptr;                ///< [movable] by position, as `quota_sources::ends`
  batch_verdict* verdict = nullptr;

  // ---- between ranks ----
  count_board::line* const* boards = nullptr;  ///< [R] each rank's, in device memory; null without an exchange
  index_t judge = 0;                           ///< the rank on whose board verdicts are, while it is live

  [[nodiscard]] BALLAST_HOST_DEVICE quota_row_writer row_writer(index_t layer) const noexcept {
    return {layout.row, rows + layout.row.size * static_cast<std::size_t>(layer)};
  }
  [[nodiscard]] BALLAST_HOST_DEVICE quota_row row(index_t layer) const noexcept { return row_writer(layer); }
  [[nodiscard]] BALLAST_HOST_DEVICE count_board board(index_t of_rank) const noexcept {
    return {shape, boards[of_rank]};
  }
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
