// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_LAYOUT_COUNT_BOARD_HPP
#define BALLAST_CUDART_LAYOUT_COUNT_BOARD_HPP

#include <ballast/config.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// What a rank says besides its counts. A batch is balanced where all ranks say the same.
struct count_header {
  static constexpr index_t lines = 3;  ///< that it takes on a board
  std::uint32_t settings = 0;          ///< digest of what must be alike: shape and options
  std::uint32_t version = 0;           ///< of the layer's row
  std::uint32_t min_tokens = 0;        ///< all ones: this rank does not balance
  std::uint32_t min_gain_ppm = 0;      ///< of the busiest rank's load
  std::uint32_t start = 0;             ///< the batch whose quotas this rank would start from; 0: the shares in force
};

/// Memory of one rank in which its peers write their counts of a batch and layer, without a call of a library.
///
/// A word travels with the number of its batch, the *tag*, in the same eight bytes: who reads the tag has the word. So
/// there is no flag to wait for besides, and what an earlier or later batch wrote is never taken for this one's. There
/// are two halves, used in turn: a peer may be one batch ahead.
class count_board {
public:
  /// Two words with their tags: what one thread stores or loads at once.
  struct alignas(16) line {
    std::uint64_t first;
    std::uint64_t second;
  };

  count_board() = default;
  BALLAST_HOST_DEVICE constexpr count_board(quota_shape const& shape, line* memory) noexcept
      : num_ranks_{shape.num_ranks}, num_logical_{shape.num_logical}, memory_{memory} {}

  /// Lines of a whole board; all zero at first, when no tag is.
  [[nodiscard]] BALLAST_HOST_DEVICE static constexpr std::size_t size_of(quota_shape const& shape) noexcept {
    count_board const any{shape, nullptr};
    return 2 * static_cast<std::size_t>(shape.num_ranks) * static_cast<std::size_t>(any.lines_per_source()) + 1;
  }
  /// An odd number of experts is filled up.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t lines_of_counts() const noexcept {
    return (num_logical_ + 1) / 2;
  }
  /// Of one source: the header, then the counts.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t lines_per_source() const noexcept {
    return count_header::lines + lines_of_counts();
  }
  /// `[lines_per_source()]` of a source rank, for a batch.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr line* source(std::uint32_t tag, index_t rank) const noexcept {
    auto const half = static_cast<std::size_t>(tag & 1u) * static_cast<std::size_t>(num_ranks_);
    return memory_ + (half + static_cast<std::size_t>(rank)) * static_cast<std::size_t>(lines_per_source());
  }
  /// The verdict on a batch: its tag in the high half, a `batch_verdict` in the low one. Used on one rank's board only.
  [[nodiscard]] BALLAST_HOST_DEVICE std::uint64_t* verdict(std::uint32_t tag) const noexcept {
    auto* const last =
        memory_ + 2 * static_cast<std::size_t>(num_ranks_) * static_cast<std::size_t>(lines_per_source());
    return (tag & 1u) != 0 ? &last->second : &last->first;
  }

  [[nodiscard]] BALLAST_HOST_DEVICE static constexpr std::uint64_t pack(std::uint32_t word,
                                                                        std::uint32_t tag) noexcept {
    return static_cast<std::uint64_t>(tag) << 32 | word;
  }
  [[nodiscard]] BALLAST_HOST_DEVICE static constexpr std::uint32_t word_of(std::uint64_t packed) noexcept {
    return static_cast<std::uint32_t>(packed);
  }
  [[nodiscard]] BALLAST_HOST_DEVICE static constexpr std::uint32_t tag_of(std::uint64_t packed) noexcept {
    return static_cast<std::uint32_t>(packed >> 32);
  }

private:
  index_t num_ranks_ = 0;
  index_t num_logical_ = 0;
  line* memory_ = nullptr;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
