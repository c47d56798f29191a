// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_HOST_STORE_HPP
#define BALLAST_RUNTIME_HOST_STORE_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/runtime/registry.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <new>
#include <span>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Expert weights in host memory: the store of tests, of the demo and of engines that compute on CPUs.
///
/// @lifetime the registered memory belongs to the engine and must outlive the store.
/// @threads  one thread at a time.
class host_store {
public:
  /// No limit on staging.
  static constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();

  /// @param where          slots of a rank.
  /// @param num_layers     L.
  /// @param staging_limit  bytes of staging that this rank may use at once.
  host_store(topology const& where, index_t num_layers, std::size_t staging_limit = unlimited)
      : registry_{where.slots_per_rank(), num_layers}, staging_limit_{staging_limit} {}

  /// Register one tensor of one layer.
  ///
  /// @param layer   in [0, L).
  /// @param name    the engine's name for it, the same on every rank.
  /// @param base    the expert in slot 0 of this rank; slot s is at `base + s * stride`.
  /// @param bytes   of one expert, > 0.
  /// @param stride  bytes from one slot to the next, >= `bytes`; 0 means `bytes`.
  /// @return `errc::invalid_weights` naming layer and tensor when memory overlaps what is registered, or sizes make no
  ///         sense. The very same tensor under a second name of the same layer is an alias and moves once.
  /// @complexity O(tensors registered)
  [[nodiscard]] status add(index_t layer, std::string_view name, void* base, std::size_t bytes,
                           std::size_t stride = 0) {
    return registry_.add(layer, name, static_cast<std::byte*>(base), bytes, stride);
  }

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
#if defined(__cpp_exceptions)
    try {
      staging_.resize(bytes);
    } catch (std::bad_alloc const&) {
      return {errc::out_of_memory, detail::concat("host_store: no memory for ", bytes, " bytes of staging")};
    }
#else
    staging_.resize(bytes);
#endif
    return {};
  }

  [[nodiscard]] status prepare() { return {}; }
  [[nodiscard]] status commit(index_t /*layer*/, std::span<byte_copy const> copies, placement const& /*tables*/,
                              epoch_t /*epoch*/) {
    for (auto const& copy : copies) { std::memcpy(copy.to, copy.from, copy.bytes); }
    return {};
  }
  [[nodiscard]] std::uint64_t checksum(std::span<segment const> segments) {
    digest sum;
    for (auto const& part : segments) { sum.add_bytes({part.data, part.size}); }
    return sum.value();
  }

private:
  detail::tensor_registry registry_;
  std::size_t staging_limit_;
  std::vector<std::byte> staging_;
};

static_assert(expert_store<host_store>);

BALLAST_END_NAMESPACE

#endif
