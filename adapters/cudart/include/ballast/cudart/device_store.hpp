// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DEVICE_STORE_HPP
#define BALLAST_CUDART_DEVICE_STORE_HPP

#include <ballast/cudart/compute_streams.hpp>
#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/device_reader.hpp>
#include <ballast/cudart/detail/staging_buffer.hpp>
#include <ballast/cudart/device_tables.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/memory.hpp>
#include <ballast/cudart/profiling.hpp>
#include <ballast/cudart/table_writer.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/parts.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/runtime/batch_counters.hpp>
#include <ballast/runtime/detail/expert_size.hpp>
#include <ballast/runtime/detail/tensor_registry.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Work that an engine does on a slot whose expert has just been replaced, such as deriving scales.
struct slot_hook {
  /// Enqueue on `compute_stream`, for one slot of this rank, in [0, S). Called on the thread that commits; it must not
  /// wait for the stream. A failure of it is one of the commit.
  status (*call)(void* context, index_t layer, index_t slot, cudaStream_t compute_stream) = nullptr;
  void* context = nullptr;  ///< handed to `call`
};

/// Who keeps tables of their own of what is in force, such as a `batch_balancer`.
struct table_follower {
  /// Enqueue a layer's tables on the compute stream, behind the store's own. Called for each layer at construction, and
  /// on the thread that commits; it must not wait for the stream. A failure of it is one of the commit.
  status (*call)(void* context, topology const& where, placement const& in_force, index_t layer) = nullptr;
  void* context = nullptr;  ///< handed to `call` and `batches`
  /// What balancing every batch came to, for `device_store::balanced_batches`. Null: there are none.
  batch_counters (*batches)(void* context) = nullptr;
};

/// Options of `device_store`.
struct device_store_options {
  cudaStream_t compute_stream = nullptr;  ///< runs the forward passes; commits are enqueued only there
  /// What transports enqueue on, or order themselves behind; only for transports that do not tell, see `connect`.
  std::vector<cudaStream_t> copy_streams = {};         // NOLINT(readability-redundant-member-init): may be left out
  std::size_t staging_limit = std::size_t{256} << 20;  ///< bytes of staging that this rank may use at once
  /// The engine's own memory on the rank's device to stage in, aligned to 256 bytes; `staging_limit` is at most its
  /// size then. Left out, staging is allocated once, by `start`, as large as the limit or the registered weights.
  segment staging = {};
  dispatch_mode dispatch = dispatch_mode::nearest;  ///< how tokens choose among replicas
  bool exported = false;         ///< other processes read the weights: refuse tensors whose memory they cannot open
  bool timed = false;            ///< measure commits on the device, see `commit_timer`: two event records for each
  slot_hook hook = {};           ///< runs after a commit's copies and before its tables
  table_follower follower = {};  ///< runs behind the tables
  /// What forward passes run on besides, such as the second of two batches that overlap: a commit starts behind what
  /// each of them holds, and what they are given later starts behind the commit. All of this rank's device.
  std::vector<cudaStream_t> more_compute_streams = {};  // NOLINT(readability-redundant-member-init): may be left out
  /// The engine's own tables, such as `replica_lists`: written with the store's at each commit, and at construction.
  std::vector<table_writer_ref> table_writers = {};  // NOLINT(readability-redundant-member-init): may be left out
};

/// Knows its rank, and the stream that runs the forward passes there.
template <class C>
concept tells_compute_stream = requires(C const& ranks) {
  { ranks.rank() } noexcept -> std::same_as<index_t>;
  { ranks.compute_stream() } noexcept -> std::same_as<cudaStream_t>;
};

/// Knows all streams of the forward passes there, where they are several.
template <class C>
concept tells_compute_streams = tells_compute_stream<C> && requires(C const& ranks) {
  { ranks.more_compute_streams() } noexcept -> std::same_as<std::span<cudaStream_t const>>;
};

/// Expert weights in the memory of one device, and the tables that its router reads.
///
/// @tparam Tables  `dispatch_tables`, or `invariant_dispatch_tables` for engines without an all-to-all.
/// @tparam Copies  what commits copy with: `copy_batch`, or `kernel_copies` in programs that nvcc compiles.
/// @lifetime streams and registered memory belong to the engine and must outlive the store. A rebalancer that uses the
///           store with a transport is destroyed before both. Where the device does not come to the end of the store's
///           work within the timeout, the destructor leaves its memory in place for the life of the process.
/// @threads  one thread at a time; the rank's device is current there.
template <class Tables = dispatch_tables, class Copies = copy_batch>
class device_store {
public:
  /// @param where    ranks and slots.
  /// @param rank     this one.
  /// @param initial  [L, P] the placement that the weights were loaded with; its tables are in force on return.
  /// @throws std::system_error (`errc::invalid_option`, `errc::invalid_topology`, `cudart::category()`, and
  ///         `errc::deadline_exceeded` where the compute stream stands for ten seconds)
  device_store(topology where, index_t rank, placement const& initial, device_store_options const& options)
      : registry_{where.slots_per_rank(), initial.num_layers()},
        options_{options},
        rank_{rank},
        compute_{checked(where, rank, initial, options)},
        tables_{make_tables(where, initial.shape(), rank, options), where, rank, options.table_writers},
        where_{std::move(where)},
        timer_{options.timed},
        staging_{options.staging, options.staging_limit},
        streams_{options.copy_streams} {
    detail::capture_guard const guard;
    rewritten_.resize(static_cast<std::size_t>(where_.slots_per_rank()));
    for (index_t layer = 0; layer < initial.num_layers(); ++layer) {
      tables_.publish(where_, initial, layer, options.compute_stream).or_throw();
      tell_follower(layer, initial).or_throw();
    }
    auto const in_force = tables_.await_published(ballast::detail::deadline_after(timeout_));
    if (!in_force.ok()) { tables_.abandon(); }
    in_force.or_throw();
  }
  /// The same; rank and compute streams come from who moves the bytes: `nccl::cohort`, or a transport that tells them.
  ///
  /// @throws also `errc::invalid_option` where `options` name other compute streams.
  template <class Cohort>
    requires tells_compute_stream<Cohort>
  device_store(topology where, placement const& initial, Cohort const& ranks, device_store_options const& options = {})
      : device_store{std::move(where), ranks.rank(), initial, with_stream_of(ranks, options)} {}
  device_store(device_store const&) = delete;
  device_store& operator=(device_store const&) = delete;
  ~device_store() {
    detail::capture_guard const guard;
    auto const deadline = ballast::detail::deadline_after(timeout_);
    if (tables_.await_published(deadline).ok() && reader_.await(deadline).ok()) { return; }
    staging_.abandon();
    tables_.abandon();
    reader_.abandon();
  }

  /// Learn a transport's copy streams: from now on they are ordered behind this store's commits. A rebalancer does it
  /// before each group, because a repair may give the transport other streams.
  ///
  /// @param transport  that the store is used with; only asked, and not kept.
  /// @return `errc::invalid_option` for a transport that does not tell them where the options name none; nothing
  ///         changes then.
  /// @complexity O(streams), no call of the driver; allocates when there are more than before.
  template <data_transport Transport>
  [[nodiscard]] status connect(Transport const& transport) {
    fresh_streams_.clear();
    for_each_stream(transport, [this](cudaStream_t copy_stream) {
      auto& known = fresh_streams_;
      if (std::find(known.begin(), known.end(), copy_stream) == known.end()) { known.push_back(copy_stream); }
    });
    if (fresh_streams_.empty() && transport.num_ranks() > 1) {
      return {
          errc::invalid_option,
          "device_store: the transport does not tell the streams that it copies on, and its copies could run before "
          "a commit: name them in copy_streams, or give the transport for_each_copy_stream"};
    }
    if (fresh_streams_ != streams_) {
      streams_.swap(fresh_streams_);
      ahead_ = tables_.published().get();
    }
    return {};
  }
  /// The transport is about to go. Waits, no longer than the timeout, until nothing of it can write to staging any
  /// more; otherwise staging is left in place for the life of the process.
  template <data_transport Transport>
  void disconnect(Transport& transport) noexcept {
    detail::capture_guard const guard;
    auto const deadline = ballast::detail::deadline_after(timeout_);
    if (!ballast::detail::poll_until(deadline, [this, &transport] { return !may_write(transport); })) {
      staging_.abandon();
    }
    streams_ = options_.copy_streams;
  }
  /// Bound the waits of `checksum` and of the destructor, in nanoseconds. A rebalancer sets its own timeout.
  void set_timeout(nanoseconds_t timeout) noexcept { timeout_ = timeout; }

  /// Allocate what commits and checks need, staging above all: as much as the limit allows and all registered weights
  /// could need. May wait for the device, as allocations do. @pre nothing uses staging
  ///
  /// @return `errc::out_of_memory` where the device has not so much; `cudart::category()`
  [[nodiscard]] status warm_up() {
    detail::capture_guard const guard;
    if (auto result = ballast::detail::warm_up(tables_, reader_, timer_, batch_); !result.ok()) { return result; }
    return staging_.reserve(std::min(staging_limit(), most_staging()));
  }

  /// Register one tensor of one layer; see `host_store::add`. With `exported`, its memory is checked too.
  ///
  /// @param base    in the memory of the rank's device.
  /// @param bytes   of one expert.
  /// @param stride  bytes from one slot to the next; left out, slots follow each other closely.
  /// @return as `host_store::add`; with `exported`, `errc::invalid_weights` with the remedy for memory that other
  ///         processes cannot open, and `cudart::category()`. Nothing is registered then.
  /// @complexity as `host_store::add`; with `exported`, a few calls of the driver for each physical piece, too.
  [[nodiscard]] status add(index_t layer, std::string_view name, void* base, std::size_t bytes,
                           std::optional<std::ptrdiff_t> stride = {}) {
    auto* const first = static_cast<std::byte*>(base);
    if (options_.exported) {
      if (auto result = check_exported(layer, name, first, bytes, stride); !result.ok()) { return result; }
    }
    return registry_.add(layer, name, first, bytes, stride);
  }

  [[nodiscard]] index_t num_layers() const noexcept { return registry_.num_layers(); }
  [[nodiscard]] index_t slots_per_rank() const noexcept { return registry_.slots_per_rank(); }
  [[nodiscard]] index_t rank() const noexcept { return rank_; }

  /// See `expert_store`. @lifetime until the next `add`
  [[nodiscard]] std::span<expert_tensor const> tensors(index_t layer) const { return registry_.tensors(layer); }
  /// See `expert_store`. @lifetime until the next `add`
  [[nodiscard]] std::span<segment const> regions() const { return registry_.regions(); }
  /// What the ranks must share of the registered tensors; without an all-to-all, the dispatch mode too.
  void describe(digest& out) const {
    registry_.describe(out);
    // Where no all-to-all follows, all ranks must pick the same replica.
    if constexpr (!dispatches_for_rank) { out.add(static_cast<int>(options_.dispatch)); }
  }

  /// Bytes; of the engine's own staging no more than it has.
  [[nodiscard]] std::size_t staging_limit() const noexcept { return staging_.limit(); }
  /// Staging that is reserved, in bytes.
  [[nodiscard]] std::size_t staging_high_water() const noexcept { return staging_.size(); }
  /// In device memory; another address after a `reserve_staging` that had to allocate.
  [[nodiscard]] std::byte* staging() noexcept { return staging_.data(); }
  /// See `expert_store`. After `warm_up`, and in the engine's own memory, it only compares sizes. Otherwise it waits
  /// for the commits that read what is too small, no longer than the timeout, and allocates.
  ///
  /// @return `errc::out_of_memory` beyond the limit, or where the device has not so much; `errc::deadline_exceeded`
  ///         where staging that is too small is still in use; `cudart::category()`
  [[nodiscard]] status reserve_staging(std::size_t bytes) {
    if (bytes <= staging_.size()) { return {}; }
    detail::capture_guard const guard;
    if (staging_.size() > 0) {
      if (auto result = tables_.await_published(ballast::detail::deadline_after(timeout_)); !result.ok()) {
        return result;
      }
    }
    return staging_.reserve(bytes);
  }

  /// Hold the copy streams back until all commits so far are done. Where they are, the driver lets the streams be.
  ///
  /// Does not wait for commits. Only where a `checksum` failed before it waits, no longer than the timeout, until that
  /// reads no more.
  ///
  /// @return `errc::deadline_exceeded` where it still does; `cudart::category()`
  /// @complexity a call of the driver for each copy stream, none without a new commit.
  [[nodiscard]] status prepare() {
    detail::capture_guard const guard;
    // A check that failed may still read what the next bytes are to be written over.
    if (auto result = reader_.await(ballast::detail::deadline_after(timeout_)); !result.ok()) { return result; }
    if (ahead_ == nullptr) { return {}; }
    for (auto const waiter : streams_) {
      auto const result = cudaStreamWaitEvent(waiter, ahead_, 0);
      if (result != cudaSuccess) { return to_status(result, "cudaStreamWaitEvent"); }
    }
    ahead_ = nullptr;
    return {};
  }

  /// Enqueue the copies of a commit, the hook and the tables on the compute stream; see `expert_store`. Does not wait
  /// for the stream, however far it is behind.
  ///
  /// With several compute streams it starts behind what each of them holds, and they go on behind it.
  ///
  /// @param copies  in ascending order of phases.
  /// @return `errc::invalid_placement` for a layer that is not in [0, L), or tables of another shape; nothing is
  ///         enqueued then. What the hook returns; `cudart::category()`: part of the commit may be enqueued.
  /// @complexity O(copies), with a hook O(copies * tensors), and as `device_tables::publish`; a call of the driver or a
  ///             launch for each phase, and at most one more for the tables; three calls for each compute stream more.
  /// @throws std::bad_alloc
  [[nodiscard]] status commit(index_t layer, std::span<byte_copy const> copies, placement const& tables,
                              epoch_t /*epoch*/) {
    if (auto result = check_tables(layer, tables); !result.ok()) { return result; }
    detail::capture_guard const guard;
    profiler_range const range{"ballast commit"};
    batch_.clear();  // of a commit that failed
    if (auto result = compute_.gather(); !result.ok()) { return result; }
    if (auto result = timer_.start(options_.compute_stream); !result.ok()) { return result; }
    if (auto result = collect_copies(copies); !result.ok()) { return result; }
    if (auto result = run_hook(layer, copies); !result.ok()) { return result; }
    if constexpr (!Copies::mixes_host_and_device) {
      if (auto result = batch_.submit(options_.compute_stream); !result.ok()) { return result; }
    }
    if (auto result = tables_.collect(where_, tables, layer, batch_); !result.ok()) { return result; }
    if (auto result = batch_.submit(options_.compute_stream); !result.ok()) { return result; }
    return finish({&layer, 1}, tables);
  }

  /// Change the tables of several layers, and no weights: see `joint_tables_store`. As so many calls of `commit`
  /// without copies, but enqueued together.
  ///
  /// @return as `commit`; nothing is enqueued where one of the layers is not in [0, L).
  /// @complexity as `device_tables::publish` for each layer; as many calls of the driver as a commit of one, or a
  ///             launch for each 42 layers. Followers and columns of an engine's own tables are enqueued layer by
  ///             layer.
  /// @throws std::bad_alloc
  [[nodiscard]] status commit_tables(std::span<index_t const> layers, placement const& tables,
                                     std::span<epoch_t const> /*epochs*/) {
    for (auto const layer : layers) {
      if (auto result = check_tables(layer, tables); !result.ok()) { return result; }
    }
    if (layers.empty()) { return {}; }
    detail::capture_guard const guard;
    profiler_range const range{"ballast tables"};
    batch_.clear();  // of a commit that failed
    if (auto result = compute_.gather(); !result.ok()) { return result; }
    if (auto result = timer_.start(options_.compute_stream); !result.ok()) { return result; }
    for (auto const layer : layers) {
      if (auto result = tables_.collect(where_, tables, layer, batch_); !result.ok()) { return result; }
    }
    if (auto result = batch_.submit(options_.compute_stream); !result.ok()) { return result; }
    return finish(layers, tables);
  }

  /// See `commit_timer`. With `timed`, a time waits for each commit until it is taken, as a rebalancer does.
  [[nodiscard]] bool times_commits() const noexcept { return timer_.is_on(); }
  /// See `commit_timer`. Nanoseconds from behind what the stream held at the commit to the end of its tables' copy.
  [[nodiscard]] nanoseconds_t take_commit_time() {
    detail::capture_guard const guard;
    return timer_.take();
  }

  /// See `batch_counting_store`. As the follower tells.
  [[nodiscard]] std::optional<batch_counters> balanced_batches() const {
    auto const& follower = options_.follower;
    if (follower.batches == nullptr) { return std::nullopt; }
    return follower.batches(follower.context);
  }

  /// The tables as kernels see them. @lifetime valid, unchanged, until the store is destroyed
  [[nodiscard]] dispatch_view view() const noexcept { return tables_.view(); }
  /// The tables on the host and on the device. @lifetime that of the store
  [[nodiscard]] device_tables<Tables, Copies> const& tables() const noexcept { return tables_; }
  /// Take another live mask over; in force for a layer from its next commit on.
  /// @return `errc::invalid_topology` for one of another shape; nothing changes then.
  [[nodiscard]] status set_topology(topology where) {
    if (where.shape() != where_.shape()) {
      return {errc::invalid_topology,
              ballast::detail::concat("device_store: a topology of ", where.num_ranks(), " ranks with ",
                                      where.slots_per_rank(), " and ", where.reserved_slots(),
                                      " slots, the store is for ", where_.num_ranks(), " with ",
                                      where_.slots_per_rank(), " and ", where_.reserved_slots())};
    }
    where_ = std::move(where);
    return {};
  }

  /// The digest of bytes in device memory, for verification mode. Waits, no longer than the timeout, for the commits so
  /// far, not for what the compute stream holds behind them.
  ///
  /// @param segments  in device memory.
  /// @param out       out: as `digest::add_bytes` over each segment; unchanged on failure.
  /// @return `errc::invalid_weights` for bytes at address 0; `errc::deadline_exceeded`: the next `prepare` waits for
  ///         what is still being read; `cudart::category()`
  /// @complexity O(bytes), which come to the host by pieces of 1 MiB; allocates as much as the largest segment.
  /// @throws std::bad_alloc
  [[nodiscard]] status checksum(std::span<segment const> segments, std::uint64_t& out) {
    detail::capture_guard const guard;
    return reader_.checksum(segments, tables_.published(), ballast::detail::deadline_after(timeout_), out);
  }

private:
  static constexpr bool dispatches_for_rank =
      std::constructible_from<Tables, topology const&, placement_shape, rank_id, dispatch_mode>;

  template <class Cohort>
  [[nodiscard]] static device_store_options with_stream_of(Cohort const& ranks, device_store_options options) {
    auto const theirs = ranks.compute_stream();
    bool differs = options.compute_stream != nullptr && options.compute_stream != theirs;
    options.compute_stream = theirs;
    if constexpr (tells_compute_streams<Cohort>) {
      auto const more = ranks.more_compute_streams();
      auto& named = options.more_compute_streams;
      differs = differs || (!named.empty() && !std::ranges::equal(named, more));
      named.assign(more.begin(), more.end());
    }
    if (differs) {
      status{errc::invalid_option, "device_store: the options name other compute streams than the cohort"}.or_throw();
    }
    return options;
  }
  /// Before anything is made on the device.
  [[nodiscard]] static status validate(topology const& where, index_t rank, placement const& initial,
                                       device_store_options const& options) {
    if (compute_streams::is_default(options.compute_stream)) {
      return {errc::invalid_option, "device_store: commits need a created stream, not a default stream"};
    }
    if (auto result = compute_streams::validate(options.compute_stream, options.more_compute_streams); !result.ok()) {
      return result;
    }
    if (auto result = detail::staging_buffer::validate(options.staging, options.staging_limit); !result.ok()) {
      return result;
    }
    if (rank < 0 || rank >= where.num_ranks()) {
      return {errc::invalid_option,
              ballast::detail::concat("device_store: there is no rank ", rank, " among ", where.num_ranks())};
    }
    return validate_placement(initial, {initial.num_layers(), initial.num_logical(), where.num_slots()});
  }
  [[nodiscard]] static compute_streams checked(topology const& where, index_t rank, placement const& initial,
                                               device_store_options const& options) {
    validate(where, rank, initial, options).or_throw();
    return compute_streams{options.compute_stream, options.more_compute_streams};
  }
  [[nodiscard]] static Tables make_tables(topology const& where, placement_shape shape, index_t rank,
                                          device_store_options const& options) {
    if constexpr (dispatches_for_rank) {
      return Tables{where, shape, rank_id{rank}, options.dispatch};
    } else {
      return Tables{where, shape, options.dispatch};
    }
  }

  /// Visit what a transport tells, and what the options name.
  template <class Transport, class Visit>
  void for_each_stream(Transport const& transport, Visit visit) const {
    for (auto const named : options_.copy_streams) { visit(named); }
    if constexpr (requires { transport.for_each_copy_stream(visit); }) {
      transport.for_each_copy_stream(visit);
    } else if constexpr (requires {
                           { transport.copy_stream() } -> std::convertible_to<cudaStream_t>;
                         }) {
      visit(transport.copy_stream());
    }
  }
  /// Whether copies or kernels of a transport may still write to staging.
  template <class Transport>
  [[nodiscard]] bool may_write(Transport& transport) const {
    bool is_busy = false;
    for_each_stream(transport, [&is_busy](cudaStream_t copy_stream) {
      is_busy = is_busy || detail::quiet_query::stream(copy_stream) == cudaErrorNotReady;
    });
    return is_busy || ballast::detail::may_write_to(transport, {staging_.data(), staging_.size()});
  }
  /// Bytes of staging that the largest move of all registered layers takes.
  [[nodiscard]] std::size_t most_staging() const {
    std::size_t bytes = 0;
    for (index_t layer = 0; layer < num_layers(); ++layer) {
      bytes += ballast::detail::size_of_expert(tensors(layer)).staged * static_cast<std::size_t>(slots_per_rank());
    }
    return bytes;
  }
  [[nodiscard]] status check_exported(index_t layer, std::string_view name, std::byte* base, std::size_t bytes,
                                      std::optional<std::ptrdiff_t> stride) const {
    ballast::detail::tensor_registry alone{slots_per_rank(), num_layers()};
    if (auto result = alone.add(layer, name, base, bytes, stride); !result.ok()) { return result; }
    std::vector<memory_piece> pieces;
    auto result = find_exportable_pieces(alone.regions().front(), pieces);
    if (result.ok()) { return result; }
    return {errc::invalid_weights,
            ballast::detail::concat("tensor '", name, "' of layer ", layer, ": ", result.message())};
  }

  [[nodiscard]] status check_tables(index_t layer, placement const& tables) const {
    auto const expected = tables_.host().shape();
    if (layer < 0 || layer >= expected.num_layers) {
      return {errc::invalid_placement,
              ballast::detail::concat("device_store: layer ", layer, ", there are ", expected.num_layers, " layers")};
    }
    if (tables.shape() == expected) { return {}; }
    return {errc::invalid_placement,
            ballast::detail::concat("device_store: tables of ", ballast::detail::shape_text(tables.shape()),
                                    ", the store is for ", ballast::detail::shape_text(expected))};
  }

  /// Enqueue all phases but the last, which the tables can join.
  [[nodiscard]] status collect_copies(std::span<byte_copy const> copies) {
    index_t phase = 0;
    for (auto const& copy : copies) {
      if (copy.phase != phase) {
        if (auto result = batch_.submit(options_.compute_stream); !result.ok()) { return result; }
        phase = copy.phase;
      }
      batch_.add(copy.to, copy.from, copy.bytes);
    }
    return {};
  }

  /// The end of a commit, behind its copies.
  [[nodiscard]] status finish(std::span<index_t const> layers, placement const& tables) {
    auto const on = options_.compute_stream;
    for (auto const layer : layers) {
      if (auto result = tell_follower(layer, tables); !result.ok()) { return result; }
    }
    if (auto result = tables_.mark_published(on); !result.ok()) { return result; }
    if (auto result = timer_.stop(on); !result.ok()) { return result; }
    ahead_ = tables_.published().get();
    return compute_.release(tables_.published());
  }
  [[nodiscard]] status tell_follower(index_t layer, placement const& in_force) {
    auto const& follower = options_.follower;
    return follower.call == nullptr ? status{} : follower.call(follower.context, where_, in_force, layer);
  }
  [[nodiscard]] status run_hook(index_t layer, std::span<byte_copy const> copies) {
    if (options_.hook.call == nullptr) { return {}; }
    if (auto result = batch_.submit(options_.compute_stream); !result.ok()) { return result; }
    rewritten_.assign(rewritten_.size(), 0);
    for (auto const& copy : copies) {
      for (auto const& tensor : tensors(layer)) {
        if (copy.to < tensor.base) { continue; }
        auto const distance = static_cast<std::size_t>(copy.to - tensor.base);
        if (distance / tensor.stride < rewritten_.size() && distance % tensor.stride == 0) {
          rewritten_[distance / tensor.stride] = 1;
        }
      }
    }
    for (std::size_t slot = 0; slot < rewritten_.size(); ++slot) {
      if (rewritten_[slot] == 0) { continue; }
      auto result =
          options_.hook.call(options_.hook.context, layer, static_cast<index_t>(slot), options_.compute_stream);
      if (!result.ok()) { return result; }
    }
    return {};
  }

  ballast::detail::tensor_registry registry_;
  device_store_options options_;
  index_t rank_;
  compute_streams compute_;
  device_tables<Tables, Copies> tables_;
  topology where_;
  stage_timer timer_;
  nanoseconds_t timeout_ = 10'000'000'000;
  detail::staging_buffer staging_;
  detail::device_reader reader_;
  std::vector<cudaStream_t> streams_;  // copies run there
  std::vector<cudaStream_t> fresh_streams_;
  cudaEvent_t ahead_ = nullptr;  // they have not been ordered behind it yet
  Copies batch_;
  std::vector<unsigned char> rewritten_;
};

static_assert(expert_store<device_store<>>);
static_assert(expert_store<device_store<invariant_dispatch_tables>>);
static_assert(commit_timer<device_store<>> && joint_tables_store<device_store<>>);

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
