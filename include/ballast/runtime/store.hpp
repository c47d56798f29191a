// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_STORE_HPP
#define BALLAST_RUNTIME_STORE_HPP

#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

BALLAST_BEGIN_NAMESPACE

/// One registered tensor of one layer on this rank: the expert in slot s occupies `bytes` bytes at `base + s * stride`.
struct expert_tensor {
  std::byte* base = nullptr;
  std::size_t bytes = 0;     ///< of one expert
  std::size_t stride = 0;    ///< from one slot to the next, >= bytes
  std::uint32_t region = 0;  ///< index into the store's `regions()`
};

/// One copy of a commit. Copies of one phase are independent of each other; a phase starts when the one before is done.
struct byte_copy {
  std::byte* to = nullptr;
  std::byte const* from = nullptr;
  std::size_t bytes = 0;
  index_t phase = 0;

  bool operator==(byte_copy const&) const = default;
};

/// Owns what this rank moves: its registered weights, the staging that incoming experts wait in, and the tables that
/// the engine's router reads.
///
/// @par Semantics
/// - `num_layers()` and `slots_per_rank()` are what the store was made for: L and S.
/// - `tensors(layer)` are the layer's tensors in the order of registration, the same on every rank but for `base`.
/// - `regions()` has one entry per tensor of any layer, `{base, (S - 1) * stride + bytes}`, for one-sided transports.
/// - `reserve_staging(bytes)` makes at least that much staging usable at `staging()`, or fails with
///   `errc::out_of_memory`; contents are not kept. It never exceeds `staging_limit()`.
/// - `prepare()` orders what follows on the transport after all commits so far; called before each batch.
/// - `commit(layer, copies, tables, epoch)` performs the copies in phase order, then publishes the layer's row of
///   `tables`. No copy runs before the call and no reader sees the new row before the copies are done. With no copies
///   only tables change.
/// - `checksum(segments, out)` writes the digest of the bytes, as `digest::add_bytes` over each segment. A failure to
///   read them is a failure of the call, never a value.
template <class S>
concept expert_store = requires(S& s, S const& c, index_t layer, std::size_t bytes, std::span<byte_copy const> copies,
                                placement const& tables, epoch_t epoch, std::span<segment const> segments, digest& out,
                                std::uint64_t& sum) {
  { c.num_layers() } noexcept -> std::same_as<index_t>;
  { c.slots_per_rank() } noexcept -> std::same_as<index_t>;
  { c.tensors(layer) } -> std::same_as<std::span<expert_tensor const>>;
  { c.regions() } -> std::same_as<std::span<segment const>>;
  { c.staging_limit() } noexcept -> std::same_as<std::size_t>;
  { s.reserve_staging(bytes) } -> std::same_as<status>;
  { s.staging() } noexcept -> std::same_as<std::byte*>;
  { s.prepare() } -> std::same_as<status>;
  { s.commit(layer, copies, tables, epoch) } -> std::same_as<status>;
  { s.checksum(segments, sum) } -> std::same_as<status>;
  { c.describe(out) } -> std::same_as<void>;
};

/// Refuse a store that was made for other layers or slots than a placement on a topology has, naming both.
/// @complexity O(1)
/// @throws nothing
template <expert_store Store>
[[nodiscard]] status validate_store(Store const& store, topology const& where, index_t num_layers) {
  if (store.num_layers() == num_layers && store.slots_per_rank() == where.slots_per_rank()) { return {}; }
  return {errc::invalid_topology,
          detail::concat("store: made for ", store.num_layers(), " layers x ", store.slots_per_rank(),
                         " slots a rank, the placement has ", num_layers, " layers, the topology ",
                         where.slots_per_rank(), " slots a rank")};
}

/// A store that can tell what the device took to commit.
///
/// @par Semantics
/// `times_commits()` never changes. Where it holds, `take_commit_time()` gives the times of all commits that succeeded,
/// one a call, in their order: nanoseconds on the device, or `not_measured` while the device is not done with the
/// oldest commit that has not been taken. It never waits.
template <class S>
concept commit_timer = expert_store<S> && requires(S& s, S const& c) {
  { c.times_commits() } noexcept -> std::same_as<bool>;
  { s.take_commit_time() } -> std::same_as<nanoseconds_t>;
};

BALLAST_END_NAMESPACE

#endif
