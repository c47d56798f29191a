// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_REGISTRY_HPP
#define BALLAST_RUNTIME_REGISTRY_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The tensors that an engine registered with a store, checked for sense and overlap.
class tensor_registry {
public:
  tensor_registry(index_t slots_per_rank, index_t num_layers)
      : slots_{static_cast<std::size_t>(slots_per_rank)}, layers_(static_cast<std::size_t>(num_layers)) {}

  /// Register one tensor; see `host_store::add`. Nothing changes on failure.
  [[nodiscard]] status add(index_t layer, std::string_view name, std::byte* base, std::size_t bytes,
                           std::size_t stride) {
    auto const refuse = [&](auto const&... parts) {
      return status{errc::invalid_weights, concat("tensor '", name, "' of layer ", layer, ": ", parts...)};
    };
    if (layer < 0 || static_cast<std::size_t>(layer) >= layers_.size()) {
      return refuse("there are ", layers_.size(), " layers");
    }
    if (stride == 0) { stride = bytes; }
    if (base == nullptr) { return refuse("null pointer"); }
    if (bytes == 0) { return refuse("an expert of 0 bytes"); }
    if (stride < bytes) { return refuse("stride ", stride, " is below the expert's ", bytes, " bytes"); }

    entry const added{{base, bytes, stride, static_cast<std::uint32_t>(entries_.size())}, layer, std::string{name}};
    for (auto const& known : entries_) {
      if (known.layer == layer && known.name == name) { return refuse("registered twice"); }
      if (same_memory(known.tensor, added.tensor) && known.layer == layer) { return {}; }
      if (overlap(known.tensor, added.tensor)) {
        return refuse("overlaps tensor '", known.name, "' of layer ", known.layer);
      }
    }
    layers_[static_cast<std::size_t>(layer)].push_back(added.tensor);
    regions_.push_back({base, extent(added.tensor)});
    entries_.push_back(added);
    return {};
  }

  [[nodiscard]] index_t num_layers() const noexcept { return static_cast<index_t>(layers_.size()); }
  [[nodiscard]] std::span<expert_tensor const> tensors(index_t layer) const {
    BALLAST_EXPECTS(layer >= 0 && layer < num_layers(), "store: layer out of range");
    return layers_[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] std::span<segment const> regions() const noexcept { return regions_; }

  /// Mix names and sizes in, not addresses: what every rank must have registered alike.
  void describe(digest& out) const {
    out.add(slots_).add(entries_.size());
    for (auto const& known : entries_) {
      out.add(known.layer).add(std::string_view{known.name}).add(known.tensor.bytes).add(known.tensor.stride);
    }
  }

private:
  struct entry {
    expert_tensor tensor;
    index_t layer = 0;
    std::string name;
  };

  [[nodiscard]] std::size_t extent(expert_tensor const& tensor) const noexcept {
    return (slots_ - 1) * tensor.stride + tensor.bytes;
  }
  [[nodiscard]] static bool same_memory(expert_tensor const& a, expert_tensor const& b) noexcept {
    return a.base == b.base && a.bytes == b.bytes && a.stride == b.stride;
  }
  // Tensors of one stride may interleave: each slot holds one, then the other.
  [[nodiscard]] bool overlap(expert_tensor const& a, expert_tensor const& b) const noexcept {
    auto const from_a = reinterpret_cast<std::uintptr_t>(a.base);
    auto const from_b = reinterpret_cast<std::uintptr_t>(b.base);
    if (from_a + extent(a) <= from_b || from_b + extent(b) <= from_a) { return false; }
    if (a.stride != b.stride) { return true; }
    auto const& low = from_a <= from_b ? a : b;
    auto const& high = from_a <= from_b ? b : a;
    auto const shift = (from_a <= from_b ? from_b - from_a : from_a - from_b) % low.stride;
    return shift < low.bytes || shift + high.bytes > low.stride;
  }

  std::size_t slots_;
  std::vector<std::vector<expert_tensor>> layers_;
  std::vector<segment> regions_;
  std::vector<entry> entries_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
