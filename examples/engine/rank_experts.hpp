// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_RANK_EXPERTS_HPP
#define BALLAST_EXAMPLES_ENGINE_RANK_EXPERTS_HPP

#include <ballast/placement/placement.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/topology.hpp>

#include "kernels.hpp"
#include "model.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

namespace engine {

/// The experts of one rank: three tensors a layer, each with the slots that ballast fills and, behind them, the
/// reserved one that holds the shared expert.
class rank_experts {
public:
  rank_experts(model const& of, ballast::topology const& where, ballast::placement const& initial, index_t rank)
      : model_{of},
        slots_{where.slots_per_rank()},
        matrix_{of.shape().expert_numbers() / num_tensors},
        layers_(static_cast<std::size_t>(of.shape().num_layers)) {
    for (auto& tensors : layers_) {
      for (auto& tensor : tensors) { tensor.resize(static_cast<std::size_t>(slots_ + 1) * matrix_); }
    }
    for (index_t layer = 0; layer < of.shape().num_layers; ++layer) {
      auto const held = initial.logical_of_slot(layer).subspan(static_cast<std::size_t>(where.first_slot(rank)));
      for (index_t slot = 0; slot < slots_; ++slot) { load(layer, slot, held[static_cast<std::size_t>(slot)]); }
      load(layer, slots_, of.shape().num_experts);
    }
  }

  /// As from a checkpoint. @param slot  of this rank
  void load(index_t layer, index_t slot, index_t expert) {
    auto const from = model_.weights(layer, expert);
    for (std::size_t number = 0; number < num_tensors; ++number) {
      std::ranges::copy(from.subspan(number * matrix_, matrix_), tensor(layer, number, slot).begin());
    }
  }
  [[nodiscard]] expert_view view(index_t layer, index_t slot) {
    return {tensor(layer, 0, slot), tensor(layer, 1, slot), tensor(layer, 2, slot)};
  }
  /// One of a slot's weights, to spoil it.
  [[nodiscard]] float& first_weight(index_t layer, index_t slot) { return tensor(layer, 0, slot).front(); }

  /// @throws std::system_error
  void add_to(ballast::host_store& store) {
    constexpr std::array names{"gate", "up", "down"};
    for (index_t layer = 0; layer < model_.shape().num_layers; ++layer) {
      for (std::size_t number = 0; number < num_tensors; ++number) {
        store.add(layer, names[number], tensor(layer, number, 0).data(), matrix_ * sizeof(float)).or_throw();
      }
    }
  }

private:
  static constexpr std::size_t num_tensors = 3;

  [[nodiscard]] std::span<float> tensor(index_t layer, std::size_t number, index_t slot) {
    return std::span{layers_[static_cast<std::size_t>(layer)][number]}.subspan(static_cast<std::size_t>(slot) * matrix_,
                                                                               matrix_);
  }

  model const& model_;
  index_t slots_;
  std::size_t matrix_;  ///< numbers of one
  std::vector<std::array<std::vector<float>, num_tensors>> layers_;
};

}  // namespace engine

#endif
