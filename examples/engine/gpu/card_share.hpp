// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_CARD_SHARE_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_CARD_SHARE_HPP

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

namespace engine {

/// A rank's part of a card: a stream whose kernels run on multiprocessors of its own.
///
/// Ranks that share all multiprocessors of a card are as fast together as the card, however uneven their work is; with
/// a green context for each, an uneven rank is late as it would be on a card of its own.
class card_share {
public:
  /// Cut a card in equal parts. One part is all of it.
  /// @throws std::system_error for a driver or a card that cannot
  [[nodiscard]] static std::vector<card_share> cut(int device, int parts);

  card_share(card_share&&) noexcept;
  card_share& operator=(card_share&&) noexcept;
  ~card_share();

  [[nodiscard]] int device() const noexcept { return device_; }
  [[nodiscard]] cudaStream_t stream() const noexcept { return stream_; }
  /// Whether others have the rest of the card.
  [[nodiscard]] bool is_part() const noexcept { return context_ != nullptr; }
  [[nodiscard]] int multiprocessors() const noexcept { return multiprocessors_; }

private:
  card_share() = default;

  struct green_context;
  int device_ = 0;
  int multiprocessors_ = 0;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<green_context> context_;  ///< null for a whole card
};

}  // namespace engine

#endif
