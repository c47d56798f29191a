// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_TENSOR_REGISTRY_HPP
#define BALLAST_RUNTIME_DETAIL_TENSOR_REGISTRY_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Distance in bytes from one slot to the next as an engine gives it: left out where slots follow each other closely.
using slot_stride = std::optional<std::ptrdiff_t>;

/// The tensors that an engine registered with a store, checked for sense and overlap.
class tensor_registry {
public:
  /// @throws std::system_error (`errc::invalid_option`) for less than one slot or a negative number of layers
  tensor_registry(index_t slots_per_rank, index_t num_layers)
      : slots_{checked("slots a rank", slots_per_rank, 1)}, layers_(checked("layers", num_layers, 0)) {}

  /// Register one tensor; see `host_store::add`. Nothing changes on failure.
  [[nodiscard]] status add(index_t layer, std::string_view name, std::byte* base, std::size_t bytes,
                           slot_stride given_stride = {}) {
    auto const refuse = [&name, &layer](auto const&... parts) {
      return status{errc::invalid_weights, concat("tensor '", name, "' of layer ", layer, ": ", parts...)};
    };
    if (layer < 0 || layer >= num_layers()) { return refuse("there are ", layers_.size(), " layers"); }
    if (name.empty()) { return refuse("has no name"); }
    expert_tensor tensor;
    if (auto const wrong = describe_memory(base, bytes, given_stride, tensor); !wrong.empty()) { return refuse(wrong); }
    for (auto const& known : names_) {
      if (known.layer == layer && known.name == name) { return refuse("registered twice"); }
    }
    for (auto const& known : entries_) {
      if (known.layer == layer && is_alias(known.tensor, tensor)) {
        names_.push_back({layer, std::string{name}});
        return {};
      }
      if (overlap(known.tensor, tensor)) { return refuse("overlaps tensor '", known.name, "' of layer ", known.layer); }
    }
    tensor.region = static_cast<std::uint32_t>(entries_.size());
    layers_[static_cast<std::size_t>(layer)].push_back(tensor);
    regions_.push_back({base, extent(tensor)});
    names_.push_back({layer, std::string{name}});
    entries_.push_back({tensor, layer, std::string{name}});
    return {};
  }

  [[nodiscard]] index_t num_layers() const noexcept { return static_cast<index_t>(layers_.size()); }
  [[nodiscard]] index_t slots_per_rank() const noexcept { return static_cast<index_t>(slots_); }
  [[nodiscard]] std::span<expert_tensor const> tensors(index_t layer) const {
    BALLAST_EXPECTS_BELOW(layer, num_layers(), "store: layer");
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
  struct layer_name {
    index_t layer = 0;
    std::string name;
  };

  [[nodiscard]] static std::size_t checked(char const* what, index_t value, index_t least) {
    if (value < least) {
      status{errc::invalid_option, concat("store: ", value, " ", what, ", must be at least ", least)}.or_throw();
    }
    return static_cast<std::size_t>(value);
  }

  /// Put memory together as a tensor; says what is wrong with it, if anything is.
  [[nodiscard]] std::string describe_memory(std::byte* base, std::size_t bytes, slot_stride stride,
                                            expert_tensor& out) const {
    if (base == nullptr) { return "null pointer"; }
    if (bytes == 0) { return "an expert of 0 bytes"; }
    if (stride && *stride < 0) { return concat("stride ", *stride, " is negative"); }
    if (stride && *stride == 0) {
      return "stride 0: the slots share their bytes, this is not a tensor with memory for each expert";
    }
    out = {base, bytes, stride ? static_cast<std::size_t>(*stride) : bytes, 0};
    if (out.stride < bytes) { return concat("stride ", out.stride, " is below the expert's ", bytes, " bytes"); }
    // No object is larger than `largest`, and none reaches beyond the last address.
    constexpr auto largest = static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max());
    auto const reach = std::numeric_limits<std::uintptr_t>::max() - reinterpret_cast<std::uintptr_t>(base);
    if (bytes > largest || (slots_ > 1 && out.stride > (largest - bytes) / (slots_ - 1)) || extent(out) > reach) {
      return concat(slots_, " slots of ", bytes, " bytes, ", out.stride, " bytes apart, do not fit the address space");
    }
    return {};
  }

  [[nodiscard]] std::size_t extent(expert_tensor const& tensor) const noexcept {
    return (slots_ - 1) * tensor.stride + tensor.bytes;
  }
  [[nodiscard]] bool is_alias(expert_tensor const& a, expert_tensor const& b) const noexcept {
    return a.base == b.base && a.bytes == b.bytes && (a.stride == b.stride || slots_ == 1);
  }
  /// Whether any byte belongs to both: tensors may interleave, each slot of one between two of the other.
  [[nodiscard]] bool overlap(expert_tensor const& a, expert_tensor const& b) const noexcept {
    auto const from_a = reinterpret_cast<std::uintptr_t>(a.base);
    auto const from_b = reinterpret_cast<std::uintptr_t>(b.base);
    if (from_a + extent(a) <= from_b || from_b + extent(b) <= from_a) { return false; }
    for (std::size_t i = 0, j = 0; i < slots_ && j < slots_;) {
      auto const slot_a = from_a + i * a.stride;
      auto const slot_b = from_b + j * b.stride;
      if (slot_a + a.bytes <= slot_b) {
        ++i;
      } else if (slot_b + b.bytes <= slot_a) {
        ++j;
      } else {
        return true;
      }
    }
    return false;
  }

  std::size_t slots_;
  std::vector<std::vector<expert_tensor>> layers_;
  std::vector<segment> regions_;
  std::vector<entry> entries_;
  std::vector<layer_name> names_;  // of aliases too
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
