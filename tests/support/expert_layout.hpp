// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_EXPERT_LAYOUT_HPP
#define BALLAST_TESTS_SUPPORT_EXPERT_LAYOUT_HPP

#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ballast_test {

/// Bytes of one expert in one tensor, and how far apart two slots are.
struct tensor_shape {
  std::size_t bytes = 0;
  std::size_t stride = 0;
};

/// What a rank's expert weights must hold, a block of memory for each tensor of each layer: every byte of an expert
/// says to which (model, layer, tensor, expert) it belongs, and guard bytes fill the gaps between slots and around each
/// tensor.
class expert_layout {
public:
  expert_layout(ballast::topology const& where, ballast::index_t rank, std::vector<tensor_shape> tensors,
                std::size_t margin, std::uint64_t model = 0)
      : first_slot_{where.first_slot(rank)},
        slots_{where.slots_per_rank()},
        tensors_{std::move(tensors)},
        margin_{margin},
        model_{model} {}

  [[nodiscard]] std::size_t num_tensors() const noexcept { return tensors_.size(); }
  [[nodiscard]] tensor_shape const& shape(std::size_t tensor) const { return tensors_[tensor]; }
  /// Guard bytes before the first slot, and behind the last.
  [[nodiscard]] std::size_t margin() const noexcept { return margin_; }
  [[nodiscard]] std::uint64_t model() const noexcept { return model_; }

  /// Bytes of one tensor's block.
  [[nodiscard]] std::size_t num_bytes(std::size_t tensor) const {
    return 2 * margin_ + static_cast<std::size_t>(slots_) * tensors_[tensor].stride;
  }
  /// The block of one tensor of one layer under a placement.
  [[nodiscard]] std::vector<std::byte> expected(ballast::placement const& tables, ballast::index_t layer,
                                                std::size_t tensor) const {
    auto const& shape = tensors_[tensor];
    std::vector<std::byte> bytes(num_bytes(tensor), guard);
    for (ballast::index_t slot = 0; slot < slots_; ++slot) {
      auto const expert = tables.logical_of_slot(layer)[static_cast<std::size_t>(first_slot_ + slot)];
      auto* const at = bytes.data() + margin_ + static_cast<std::size_t>(slot) * shape.stride;
      fill({at, shape.bytes}, layer, tensor, expert, model_);
    }
    return bytes;
  }

  /// Compare a block with what it must hold. @return the first place that is wrong, empty if there is none
  [[nodiscard]] std::string first_error(ballast::placement const& tables, ballast::index_t layer, std::size_t tensor,
                                        std::span<std::byte const> block) const {
    auto const wanted = expected(tables, layer, tensor);
    auto const differs = std::mismatch(wanted.begin(), wanted.end(), block.begin(), block.end());
    if (differs.first == wanted.end() && differs.second == block.end()) { return {}; }
    return ballast::detail::concat("layer ", layer, ", tensor ", tensor, ", byte ", differs.first - wanted.begin(),
                                   ", slots from ", first_slot_);
  }

  /// Register a block with a store. @param block  layer * `num_tensors()` + tensor
  template <class Store>
  void add_to(Store& store, std::size_t block, std::byte* data) const {
    auto const& shape = tensors_[block % tensors_.size()];
    store
        .add(static_cast<ballast::index_t>(block / tensors_.size()),
             ballast::detail::concat("tensor", block % tensors_.size()), data + margin_, shape.bytes,
             static_cast<std::ptrdiff_t>(shape.stride))
        .or_throw();
  }

  /// The bytes of one expert in one tensor.
  static void fill(std::span<std::byte> bytes, ballast::index_t layer, std::size_t tensor, ballast::index_t expert,
                   std::uint64_t model = 0) {
    auto state = static_cast<std::uint64_t>(layer) * 0x9e3779b97f4a7c15u + tensor * 0xbf58476d1ce4e5b9u +
                 static_cast<std::uint64_t>(expert) * 0x94d049bb133111ebu + model * 0x2545f4914f6cdd1du;
    for (auto& byte : bytes) {
      state = state * 0x5851f42d4c957f2du + 0x14057b7ef767814fu;
      byte = static_cast<std::byte>(state >> 56);
    }
  }

private:
  static constexpr std::byte guard{0xa5};

  ballast::index_t first_slot_;
  ballast::index_t slots_;
  std::vector<tensor_shape> tensors_;
  std::size_t margin_;
  std::uint64_t model_;
};

}  // namespace ballast_test

#endif
