// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_EXPERTS_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_EXPERTS_HPP

#include <ballast/cudart/handles.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>

#include "../model.hpp"
#include "pass_kernels.hpp"
#include "rows.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace engine {

/// The experts of one rank on its card: two tensors a layer, each with the slots that ballast fills and, behind them,
/// the reserved one that holds the shared expert.
class device_experts {
public:
  /// @param stream  weights are there in its order
  device_experts(model_shape const& shape, ballast::topology const& where, ballast::placement const& initial,
                 index_t rank, cudaStream_t stream)
      : shape_{shape}, slots_{where.slots_per_rank()} {
    auto const room = static_cast<std::size_t>(slots_ + 1);
    for (index_t layer = 0; layer < shape.num_layers; ++layer) {
      gate_up_.push_back(memory::create(room * gate_up_size()));
      down_.push_back(memory::create(room * down_size()));
      auto const held = initial.logical_of_slot(layer).subspan(static_cast<std::size_t>(where.first_slot(rank)));
      for (index_t slot = 0; slot < slots_; ++slot) { load(layer, slot, held[static_cast<std::size_t>(slot)], stream); }
      load(layer, slots_, shape.num_experts, stream);
    }
  }

  /// As from a checkpoint, in the stream's order. @param slot  of this rank
  void load(index_t layer, index_t slot, index_t expert, cudaStream_t stream) {
    auto const seed = [&layer, &expert](std::uint64_t tensor) {
      return ballast::digest{}.add(tensor).add(layer).add(expert).value();
    };
    auto const at = static_cast<std::size_t>(slot);
    fill_weights(stream, seed(200), shape_.hidden, 1, gate_up(layer) + at * gate_up_size(), gate_up_size());
    fill_weights(stream, seed(201), shape_.intermediate, 1, down(layer) + at * down_size(), down_size());
  }

  /// [S + 1, 2 I, D]
  [[nodiscard]] bf16* gate_up(index_t layer) const { return gate_up_[static_cast<std::size_t>(layer)].data(); }
  /// [S + 1, D, I]
  [[nodiscard]] bf16* down(index_t layer) const { return down_[static_cast<std::size_t>(layer)].data(); }

  /// @throws std::system_error
  template <class Store>
  void add_to(Store& store) const {
    for (index_t layer = 0; layer < shape_.num_layers; ++layer) {
      store.add(layer, "gate_up", gate_up(layer), gate_up_size() * sizeof(bf16)).or_throw();
      store.add(layer, "down", down(layer), down_size() * sizeof(bf16)).or_throw();
    }
  }

private:
  using memory = ballast::cudart::device_memory<bf16>;

  [[nodiscard]] std::size_t down_size() const {
    return static_cast<std::size_t>(shape_.hidden) * static_cast<std::size_t>(shape_.intermediate);
  }
  [[nodiscard]] std::size_t gate_up_size() const { return 2 * down_size(); }

  model_shape shape_;
  index_t slots_;
  std::vector<memory> gate_up_;  ///< [L]
  std::vector<memory> down_;     ///< [L]
};

}  // namespace engine

#endif
