// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_PATTERNED_WEIGHTS_HPP
#define BALLAST_TESTS_SUPPORT_PATTERNED_WEIGHTS_HPP

#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

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

/// One rank's expert weights whose every byte says to which (layer, tensor, expert) it belongs, with guard bytes in the
/// gaps between slots and around each tensor.
class patterned_weights {
public:
  static constexpr std::size_t margin = 64;
  static constexpr std::byte guard{0xa5};

  patterned_weights(ballast::topology const& where, ballast::index_t rank, ballast::placement const& holds,
                    std::vector<tensor_shape> tensors)
      : first_slot_{where.first_slot(rank)}, slots_{where.slots_per_rank()}, tensors_{std::move(tensors)} {
    for (ballast::index_t layer = 0; layer < holds.num_layers(); ++layer) {
      for (std::size_t t = 0; t < tensors_.size(); ++t) {
        memory_.emplace_back(2 * margin + static_cast<std::size_t>(slots_) * tensors_[t].stride, guard);
        for (ballast::index_t slot = 0; slot < slots_; ++slot) { fill(layer, t, slot, expert_in(holds, layer, slot)); }
      }
    }
  }

  /// Register everything with a store that has `add(layer, name, base, bytes, stride)`.
  template <class Store>
  void add_to(Store& store) {
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      auto const& shape = tensors_[i % tensors_.size()];
      store
          .add(static_cast<ballast::index_t>(i / tensors_.size()),
               ballast::detail::concat("tensor", i % tensors_.size()), memory_[i].data() + margin, shape.bytes,
               shape.stride)
          .or_throw();
    }
  }

  /// Empty when every slot holds what `tables` names and no guard byte has changed; otherwise the first place that is
  /// wrong.
  [[nodiscard]] std::string first_error(ballast::placement const& tables) const {
    for (ballast::index_t layer = 0; layer < tables.num_layers(); ++layer) {
      for (std::size_t t = 0; t < tensors_.size(); ++t) {
        auto const& bytes = memory(layer, t);
        for (std::size_t i = 0; i < bytes.size(); ++i) {
          if (bytes[i] != expected(tables, layer, t, i)) {
            return ballast::detail::concat("layer ", layer, ", tensor ", t, ", byte ", i, ", slots from ", first_slot_);
          }
        }
      }
    }
    return {};
  }

  /// The memory of one expert, for tests that damage it.
  [[nodiscard]] std::span<std::byte> expert(ballast::index_t layer, std::size_t tensor, ballast::index_t slot) {
    return std::span{memory(layer, tensor)}.subspan(margin + static_cast<std::size_t>(slot) * tensors_[tensor].stride,
                                                    tensors_[tensor].bytes);
  }

private:
  [[nodiscard]] static std::byte pattern(ballast::index_t layer, std::size_t tensor, ballast::index_t expert,
                                         std::size_t i) {
    auto x = static_cast<std::uint64_t>(layer) * 0x9e3779b97f4a7c15u + tensor * 0xbf58476d1ce4e5b9u +
             static_cast<std::uint64_t>(expert) * 0x94d049bb133111ebu + i * 0xd6e8feb86659fd93u;
    x ^= x >> 31;
    return static_cast<std::byte>((x * 0x2545f4914f6cdd1du) >> 56);
  }
  [[nodiscard]] ballast::index_t expert_in(ballast::placement const& tables, ballast::index_t layer,
                                           ballast::index_t slot) const {
    return tables.logical_of_slot(layer)[static_cast<std::size_t>(first_slot_ + slot)];
  }
  [[nodiscard]] std::vector<std::byte>& memory(ballast::index_t layer, std::size_t tensor) {
    return memory_[static_cast<std::size_t>(layer) * tensors_.size() + tensor];
  }
  [[nodiscard]] std::vector<std::byte> const& memory(ballast::index_t layer, std::size_t tensor) const {
    return memory_[static_cast<std::size_t>(layer) * tensors_.size() + tensor];
  }
  void fill(ballast::index_t layer, std::size_t tensor, ballast::index_t slot, ballast::index_t held) {
    auto const bytes = expert(layer, tensor, slot);
    for (std::size_t i = 0; i < bytes.size(); ++i) { bytes[i] = pattern(layer, tensor, held, i); }
  }
  [[nodiscard]] std::byte expected(ballast::placement const& tables, ballast::index_t layer, std::size_t tensor,
                                   std::size_t at) const {
    auto const& shape = tensors_[tensor];
    if (at < margin || at >= margin + static_cast<std::size_t>(slots_) * shape.stride) { return guard; }
    auto const slot = (at - margin) / shape.stride;
    auto const i = (at - margin) % shape.stride;
    return i < shape.bytes ? pattern(layer, tensor, expert_in(tables, layer, static_cast<ballast::index_t>(slot)), i)
                           : guard;
  }

  ballast::index_t first_slot_;
  ballast::index_t slots_;
  std::vector<tensor_shape> tensors_;
  std::vector<std::vector<std::byte>> memory_;  // [L * tensors]
};

/// A store that fills staging with poison before every batch, so that bytes which never arrived show.
template <class Store>
class poisoning_store : public Store {
public:
  using Store::Store;
  [[nodiscard]] ballast::status prepare() {
    for (std::size_t i = 0; i < this->staging_high_water(); ++i) { this->staging()[i] = std::byte{0xdd}; }
    return Store::prepare();
  }
};

}  // namespace ballast_test

#endif
