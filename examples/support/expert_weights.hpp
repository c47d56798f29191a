// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_EXPERT_WEIGHTS_HPP
#define BALLAST_EXAMPLES_SUPPORT_EXPERT_WEIGHTS_HPP

#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace ballast_tools {

/// Stand-ins for the weights of one rank: bytes that only the right expert of the right layer has.
class expert_weights {
public:
  expert_weights(ballast::topology const& where, ballast::index_t rank, ballast::placement const& placement,
                 std::size_t bytes_per_expert)
      : bytes_{bytes_per_expert},
        slots_{where.slots_per_rank()},
        first_slot_{where.first_slot(rank)},
        layers_(static_cast<std::size_t>(placement.num_layers()),
                std::vector<std::byte>(static_cast<std::size_t>(slots_) * bytes_per_expert)) {
    for (ballast::index_t layer = 0; layer < placement.num_layers(); ++layer) {
      for (ballast::index_t slot = 0; slot < slots_; ++slot) {
        write_pattern(layer, expert_in(placement, layer, slot), weights(layer, slot));
      }
    }
  }

  /// Slots of all layers.
  [[nodiscard]] std::int64_t num_slots() const noexcept { return static_cast<std::int64_t>(layers_.size()) * slots_; }

  /// Tell a store where the weights are.
  [[nodiscard]] ballast::status register_in(ballast::host_store& store) {
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      auto result = store.add(static_cast<ballast::index_t>(layer), "weights", layers_[layer].data(), bytes_);
      if (!result.ok()) { return result; }
    }
    return {};
  }

  /// Compare every byte of every slot with the expert that the placement says is there.
  [[nodiscard]] ballast::status verify(ballast::placement const& placement) const {
    std::vector<std::byte> expected(bytes_);
    for (ballast::index_t layer = 0; layer < placement.num_layers(); ++layer) {
      for (ballast::index_t slot = 0; slot < slots_; ++slot) {
        auto const expert = expert_in(placement, layer, slot);
        write_pattern(layer, expert, expected);
        auto const found = weights(layer, slot);
        if (!std::equal(found.begin(), found.end(), expected.begin())) {
          return {ballast::errc::corrupted, ballast::detail::concat("layer ", layer, ", slot ", first_slot_ + slot,
                                                                    ": the bytes are not those of expert ", expert)};
        }
      }
    }
    return {};
  }

private:
  [[nodiscard]] ballast::index_t expert_in(ballast::placement const& placement, ballast::index_t layer,
                                           ballast::index_t slot) const {
    return placement.logical_of_slot()(layer, first_slot_ + slot);
  }
  [[nodiscard]] std::span<std::byte const> weights(ballast::index_t layer, ballast::index_t slot) const {
    return std::span{layers_[static_cast<std::size_t>(layer)]}.subspan(static_cast<std::size_t>(slot) * bytes_, bytes_);
  }
  [[nodiscard]] std::span<std::byte> weights(ballast::index_t layer, ballast::index_t slot) {
    return std::span{layers_[static_cast<std::size_t>(layer)]}.subspan(static_cast<std::size_t>(slot) * bytes_, bytes_);
  }

  static void write_pattern(ballast::index_t layer, ballast::index_t expert, std::span<std::byte> out) {
    auto word = ballast::digest{}.add(layer).add(expert).value();
    for (std::size_t at = 0; at < out.size(); at += sizeof word) {
      std::memcpy(out.data() + at, &word, std::min(sizeof word, out.size() - at));
      word += 0x9e3779b97f4a7c15u;
    }
  }

  std::size_t bytes_;
  ballast::index_t slots_;
  ballast::index_t first_slot_;
  std::vector<std::vector<std::byte>> layers_;  // [L], each [S * bytes]
};

}  // namespace ballast_tools

#endif
