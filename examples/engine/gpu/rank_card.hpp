// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_RANK_CARD_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_RANK_CARD_HPP

#include <ballast/cudart/handles.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include "../model.hpp"
#include "card_share.hpp"
#include "dense_product.hpp"
#include "pass_kernels.hpp"
#include "rows.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace engine {

/// What ranks of one process know of the model: its sizes, and how the gates favour experts for each kind of text.
struct device_model {
  model_shape shape;
  std::vector<float> bias;  ///< [L, kinds, E] added to random logits of variance 1
};
/// @param skews  one for each kind
[[nodiscard]] device_model make_device_model(model_shape const& shape, std::span<routing_skew const> skews);

/// One rank's part of a card, with what all modes share there: the dense weights, and the memory of a pass.
class rank_card {
public:
  /// @param where       slots of the ranks, the reserved one among their ids
  /// @param max_tokens  T
  /// @throws std::system_error
  rank_card(device_model const& of, card_share share, ballast::topology const& where, index_t rank, index_t max_tokens,
            ballast::nanoseconds_t timeout);
  rank_card(rank_card const&) = delete;
  rank_card& operator=(rank_card const&) = delete;

  /// Where peers write and read, in an allocation of its own.
  [[nodiscard]] ballast::segment own_mailbox() const noexcept { return mailbox_; }
  /// @param all  [R] as kernels of this rank can write to them
  void connect(std::span<ballast::segment const> all);
  /// Wait for a rank no more, and begin as if no pass had been. @pre no live rank has a pass under way
  void go_on_without(index_t dead);

  [[nodiscard]] device_model const& model() const noexcept { return model_; }
  [[nodiscard]] index_t rank() const noexcept { return view_.rank; }
  [[nodiscard]] int device() const noexcept { return share_.device(); }
  [[nodiscard]] bool is_shared() const noexcept { return share_.is_part(); }
  [[nodiscard]] cudaStream_t stream() const noexcept { return share_.stream(); }
  [[nodiscard]] pass_view const& view() const noexcept { return view_; }
  [[nodiscard]] pass_stream on(int padded_tokens) const noexcept {
    return {share_.stream(), share_.multiprocessors(), padded_tokens};
  }

  /// Attention of one layer, and the gate's choices.
  void enqueue_attention(pass_stream const& on, index_t layer, bf16* cache, int longest) const;
  /// @param v  of this rank, perhaps with counters of what is chosen
  void enqueue_gate(pass_stream const& on, pass_view const& v, index_t layer) const;

private:
  template <class T>
  [[nodiscard]] T* room_for(std::size_t count);
  void allocate(std::size_t ranks);
  /// @return the bytes of a mailbox. @param out  its parts if it begins there
  std::size_t lay_out(std::byte* begin, mailbox& out) const;
  template <class T>
  void write(std::vector<T> const& from, T* to) const;
  void clear(std::uint32_t* words, std::size_t count) const;
  void fill();

  device_model const& model_;
  card_share share_;
  pass_view view_{};
  ballast::segment mailbox_{};
  std::vector<ballast::cudart::device_memory<std::byte>> blocks_;
  bf16* projection_ = nullptr;  ///< [L, 3 A, D]
  bf16* output_ = nullptr;      ///< [L, D, A]
  bf16* gate_ = nullptr;        ///< [L, E, D]
  float* bias_ = nullptr;       ///< [L, kinds, E]
  dense_product projecting_;
  dense_product returning_;
  dense_product gating_;
};

}  // namespace engine

#endif
