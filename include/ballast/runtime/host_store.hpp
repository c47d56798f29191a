// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_HOST_STORE_HPP
#define BALLAST_RUNTIME_HOST_STORE_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/runtime/detail/tensor_registry.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Expert weights in host memory, and the tables that a router on the host reads: the store of tests, of the demo and
/// of engines that compute on CPUs.
///
/// @lifetime the registered memory belongs to the engine and must outlive the store.
/// @threads  one thread at a time.
class host_store {
public:
  /// No limit on staging.
  static constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();

  /// A store that has published nothing yet: a rebalancer publishes where it starts from, or the engine calls
  /// `publish`.
  ///
  /// @param where          ranks and slots.
  /// @param num_layers     L, >= 0.
  /// @param staging_limit  bytes of staging that this rank may use at once.
  /// @throws std::system_error (`errc::invalid_option`) for a negative number of layers
  host_store(topology const& where, index_t num_layers, std::size_t staging_limit = unlimited)
      : registry_{where.slots_per_rank(), num_layers},
        num_slots_{where.num_slots()},
        staging_limit_{staging_limit},
        epochs_(static_cast<std::size_t>(num_layers)) {}
  /// A store whose tables are in force at once, at epoch 0.
  ///
  /// @param initial  [L, P] the placement that the weights were loaded with.
  /// @throws std::system_error (`errc::invalid_placement`, `errc::missing_expert`) for one that is not valid on `where`
  host_store(topology const& where, placement const& initial, std::size_t staging_limit = unlimited)
      : host_store{where, initial.num_layers(), staging_limit} {
    validate_placement(initial, {initial.num_layers(), initial.num_logical(), num_slots_}).or_throw();
    for (index_t layer = 0; layer < initial.num_layers(); ++layer) { publish(layer, initial, 0).or_throw(); }
  }

  /// Register one tensor of one layer.
  ///
  /// @param layer   in [0, L).
  /// @param name    the engine's name for it, not empty, the same on every rank.
  /// @param base    the expert in slot 0 of this rank; slot s is at `base + s * stride`.
  /// @param bytes   of one expert, > 0.
  /// @param stride  bytes from one slot to the next, >= `bytes`; left out, slots follow each other closely.
  /// @return `errc::invalid_weights` naming layer and tensor when memory overlaps what is registered, sizes make no
  ///         sense or reach beyond the address space. Tensors may interleave as long as they share no byte. The very
  ///         same tensor under a second name of the same layer is an alias and moves once.
  /// @complexity O(tensors registered), and O(S) for each that lies among the same addresses
  [[nodiscard]] status add(index_t layer, std::string_view name, void* base, std::size_t bytes,
                           std::optional<std::ptrdiff_t> stride = {}) {
    return registry_.add(layer, name, static_cast<std::byte*>(base), bytes, stride);
  }

  [[nodiscard]] index_t num_layers() const noexcept { return registry_.num_layers(); }
  [[nodiscard]] index_t slots_per_rank() const noexcept { return registry_.slots_per_rank(); }
  [[nodiscard]] std::span<expert_tensor const> tensors(index_t layer) const { return registry_.tensors(layer); }
  [[nodiscard]] std::span<segment const> regions() const { return registry_.regions(); }
  void describe(digest& out) const { registry_.describe(out); }

  [[nodiscard]] std::size_t staging_limit() const noexcept { return staging_limit_; }
  /// Largest staging that was reserved so far, in bytes.
  [[nodiscard]] std::size_t staging_high_water() const noexcept { return staging_.size(); }
  [[nodiscard]] std::byte* staging() noexcept { return staging_.data(); }
  [[nodiscard]] status reserve_staging(std::size_t bytes) {
    if (bytes > staging_limit_) {
      return {errc::out_of_memory,
              detail::concat("host_store: ", bytes, " bytes of staging needed, the limit is ", staging_limit_)};
    }
    if (bytes <= staging_.size()) { return {}; }
    status no_memory{errc::out_of_memory, detail::concat("host_store: no memory for ", bytes, " bytes of staging")};
    if (bytes > staging_.max_size()) { return no_memory; }
#if defined(__cpp_exceptions)
    try {
      staging_.resize(bytes);
    } catch (std::bad_alloc const&) { return no_memory; }
#else
    staging_.resize(bytes);
#endif
    return {};
  }

  [[nodiscard]] status prepare() { return {}; }
  /// Copy, then publish; see `expert_store`.
  /// @return what `publish` says; nothing was copied then.
  [[nodiscard]] status commit(index_t layer, std::span<byte_copy const> copies, placement const& tables,
                              epoch_t epoch) {
    if (auto result = check_tables(layer, tables); !result.ok()) { return result; }
    for (auto const& copy : copies) {
      if (copy.bytes > 0) { std::memmove(copy.to, copy.from, copy.bytes); }
    }
    take_over(layer, tables, epoch);
    return {};
  }
  [[nodiscard]] status checksum(std::span<segment const> segments, std::uint64_t& out) {
    digest sum;
    for (auto const& part : segments) {
      if (part.data == nullptr && part.size > 0) {
        return {errc::invalid_weights, detail::concat("host_store: checksum of ", part.size, " bytes at address 0")};
      }
      sum.add_bytes({part.data, part.size});
    }
    out = sum.value();
    return {};
  }

  /// Put a layer's row of `tables` in force, without a copy.
  ///
  /// @return `errc::invalid_placement` for a layer that is not in [0, L), or tables that are not for this store's L
  ///         layers and P slots, or for another number of experts than those in force; nothing changes then.
  /// @complexity O(P + E); allocates with the first layer.
  [[nodiscard]] status publish(index_t layer, placement const& tables, epoch_t epoch) {
    if (auto result = check_tables(layer, tables); !result.ok()) { return result; }
    take_over(layer, tables, epoch);
    return {};
  }
  /// The tables in force, `[L, P]`: each layer's row as it was published last. Empty before the first; the row of a
  /// layer that is not published yet has no expert in any slot, only -1.
  /// @lifetime the store's; rows change in `commit` and `publish` only.
  [[nodiscard]] placement const& published() const noexcept { return published_; }
  [[nodiscard]] bool is_published(index_t layer) const {
    BALLAST_EXPECTS_BELOW(layer, num_layers(), "host_store: layer");
    return epochs_[static_cast<std::size_t>(layer)].has_value();
  }
  /// Epoch of a layer's row, 0 before it is published.
  [[nodiscard]] epoch_t epoch(index_t layer) const {
    BALLAST_EXPECTS_BELOW(layer, num_layers(), "host_store: layer");
    return epochs_[static_cast<std::size_t>(layer)].value_or(0);
  }

private:
  [[nodiscard]] status check_tables(index_t layer, placement const& tables) const {
    if (layer < 0 || layer >= num_layers()) {
      return {errc::invalid_placement,
              detail::concat("host_store: layer ", layer, ", there are ", num_layers(), " layers")};
    }
    placement_shape const expected{num_layers(), published_.empty() ? tables.num_logical() : published_.num_logical(),
                                   num_slots_};
    if (tables.shape() == expected) { return {}; }
    return {errc::invalid_placement, detail::concat("host_store: tables of ", detail::shape_text(tables.shape()),
                                                    ", the store is for ", detail::shape_text(expected))};
  }
  void take_over(index_t layer, placement const& tables, epoch_t epoch) {
    if (published_.empty()) { make_blank(tables.shape()); }
    published_.copy_layer(tables, layer);
    epochs_[static_cast<std::size_t>(layer)] = epoch;
  }
  void make_blank(placement_shape shape) {
    published_.resize(shape);
    for (index_t layer = 0; layer < shape.num_layers; ++layer) {
      auto const row = published_.edit(layer);
      std::fill(row.logical_of_slot.begin(), row.logical_of_slot.end(), -1);
      std::fill(row.replica_offsets.begin(), row.replica_offsets.end(), 0);
      std::fill(row.replica_slots.begin(), row.replica_slots.end(), -1);
    }
  }

  detail::tensor_registry registry_;
  index_t num_slots_;
  std::size_t staging_limit_;
  std::vector<std::byte> staging_;
  placement published_;
  std::vector<std::optional<epoch_t>> epochs_;  // [L]
};

static_assert(expert_store<host_store>);

BALLAST_END_NAMESPACE

#endif
