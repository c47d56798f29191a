// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_PATTERNED_WEIGHTS_HPP
#define BALLAST_TESTS_SUPPORT_PATTERNED_WEIGHTS_HPP

#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "expert_layout.hpp"

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ballast_test {

/// One rank's expert weights in host memory; see `expert_layout`.
class patterned_weights {
public:
  patterned_weights(ballast::topology const& where, ballast::index_t rank, ballast::placement const& holds,
                    std::vector<tensor_shape> tensors)
      : layout_{where, rank, std::move(tensors), 64} {
    for (ballast::index_t layer = 0; layer < holds.num_layers(); ++layer) {
      for (std::size_t t = 0; t < layout_.num_tensors(); ++t) { memory_.push_back(layout_.expected(holds, layer, t)); }
    }
  }

  /// Register everything with a store that has `add(layer, name, base, bytes, stride)`.
  template <class Store>
  void add_to(Store& store) {
    for (std::size_t i = 0; i < memory_.size(); ++i) { layout_.add_to(store, i, memory_[i].data()); }
  }

  /// Empty when every slot holds what `tables` names and no guard byte has changed; otherwise the first place that is
  /// wrong.
  [[nodiscard]] std::string first_error(ballast::placement const& tables) const {
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      auto const layer = static_cast<ballast::index_t>(i / layout_.num_tensors());
      if (auto wrong = layout_.first_error(tables, layer, i % layout_.num_tensors(), memory_[i]); !wrong.empty()) {
        return wrong;
      }
    }
    return {};
  }

  /// The memory of one expert, for tests that damage it.
  [[nodiscard]] std::span<std::byte> expert(ballast::index_t layer, std::size_t tensor, ballast::index_t slot) {
    auto& block = memory_[static_cast<std::size_t>(layer) * layout_.num_tensors() + tensor];
    auto const& shape = layout_.shape(tensor);
    return std::span{block}.subspan(layout_.margin() + static_cast<std::size_t>(slot) * shape.stride, shape.bytes);
  }

private:
  expert_layout layout_;
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
