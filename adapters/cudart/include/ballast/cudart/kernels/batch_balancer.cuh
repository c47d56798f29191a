// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_BALANCER_CUH
#define BALLAST_CUDART_KERNELS_BATCH_BALANCER_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch_balancer.cuh launches kernels: include it from a .cu file"
#endif

#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/mirror_rows.hpp>
#include <ballast/cudart/detail/quiet_query.hpp>
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/batch_dispatch.cuh>
#include <ballast/cudart/layout/batch_view.hpp>
#include <ballast/cudart/layout/plan_memory.hpp>
#include <ballast/cudart/peer_directory.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/batch_counters.hpp>
#include <ballast/shares/quota_rows.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Options of a `batch_balancer`; the same on every rank but for `control`.
struct batch_options {
  index_t max_tokens = 0;  ///< of a batch on this rank
  index_t top_k = 1;
  quota_options quotas{};
  batch_control control{};
  index_t judge = 0;  ///< rank on whose board verdicts are, while it is live
  /// Start from the quotas of the last batch of the layer that went by quotas, where all ranks have those of the same
  /// one, else from the shares in force. Fewer steps where batches are alike; but what a batch is mapped to depends on
  /// the ones before it then. With counts that the engine gathers nothing tells whether ranks can start alike: there a
  /// rank that is made anew needs a `restart` on all, or ranks use different quotas and tokens are not balanced.
  bool warm_start = false;

  [[nodiscard]] status validate() const {
    auto const refuse = [](auto const&... parts) {
      return status{errc::invalid_option, ballast::detail::concat("batch_balancer: ", parts...)};
    };
    if (max_tokens < 1) { return refuse("max_tokens is ", max_tokens, ", must be at least 1"); }
    if (top_k < 1) { return refuse("top_k is ", top_k, ", must be at least 1"); }
    return quotas.validate();
  }
};

/// One rank's memory for balancing every batch: the rows of the placement in force, a board on which the peers write
/// their counts, and what the chain of a batch leaves from one launch to the next.
///
/// `balance_and_dispatch(stream, view(), ...)` uses it. Without `connect`, one rank, or counts that the engine gathers.
///
/// @threads  one thread at a time; the rank's device is current there.
/// @lifetime the stream, and the peers' boards, must outlive its use. Peers write to `board()`: it must live until
///           every peer's stream has come past its last batch.
class batch_balancer {
public:
  /// @param compute_stream  runs the forward passes and commits.
  /// @param where           R ranks, P slots, reserved slots.
  /// @param rank            this one.
  /// @param initial         [L, P] the placement in force.
  /// @throws std::system_error (`errc::invalid_option` naming what is out of range, `cudart::category()`)
  batch_balancer(cudaStream_t compute_stream, topology where, index_t rank, placement const& initial,
                 batch_options const& options)
      : stream_{compute_stream},
        where_{checked(std::move(where), rank, initial, options)},
        rows_{where_, initial.num_layers(), initial.num_logical()},
        mirror_{std::max(bytes_per_row(), sizeof(count_board::line*) * static_cast<std::size_t>(where_.num_ranks())),
                static_cast<std::size_t>(initial.num_layers())} {
    detail::capture_guard const guard;
    allocate(options);
    describe(rank, options);
    prepare_kernels().or_throw();
    set_control(options.control).or_throw();
    for (index_t layer = 0; layer < rows_.num_layers(); ++layer) { publish(where_, initial, layer).or_throw(); }
  }

  batch_balancer(batch_balancer const&) = delete;
  batch_balancer& operator=(batch_balancer const&) = delete;
  /// Waits until the stream has come to the end of what uses this memory, for ten seconds; where it has not, the memory
  /// stays in place for the life of the process.
  ~batch_balancer() {
    detail::capture_guard const guard;
    constexpr nanoseconds_t patience = 10'000'000'000;
    auto const has_ended = [this] { return detail::quiet_query::stream(stream_) != cudaErrorNotReady; };
    if (!ballast::detail::poll_until(ballast::detail::deadline_after(patience), has_ended)) { abandon(); }
  }

  /// What peers write to, in device memory: give it to them, by pointer in one process, or as exported memory.
  [[nodiscard]] segment board() const noexcept {
    return {reinterpret_cast<std::byte*>(board_.data()), board_.size() * sizeof(count_board::line)};
  }
  /// Make the boards of all ranks known, in stream order. All ranks do so once, before the first batch.
  ///
  /// @param boards  [R] of each rank as this process and device can write to it; this rank's own among them. Those of
  ///                ranks that are dead in every layer's row may be null.
  /// @return `errc::invalid_option` for another number of ranks or a null pointer; `cudart::category()`
  /// @complexity a copy to the device. Waits for nothing.
  [[nodiscard]] status connect(std::span<segment const> boards) {
    if (boards.size() != static_cast<std::size_t>(rows_.shape().num_ranks)) {
      return {errc::invalid_option, ballast::detail::concat("batch_balancer: boards of ", boards.size(),
                                                            " ranks, there are ", rows_.shape().num_ranks)};
    }
    std::vector<index_t> without;
    for (std::size_t rank = 0; rank < boards.size(); ++rank) {
      if (boards[rank].data != nullptr && boards[rank].size >= board().size) { continue; }
      if (boards[rank].data == nullptr && is_dead(static_cast<index_t>(rank))) {
        without.push_back(static_cast<index_t>(rank));
        continue;
      }
      return {errc::invalid_option,
              ballast::detail::concat("batch_balancer: the board of rank ", rank, " has ", boards[rank].size,
                                      " bytes, must have ", board().size),
              static_cast<index_t>(rank)};
    }
    detail::capture_guard const guard;
    std::byte* mirror = nullptr;
    if (auto result = mirror_.take(mirror); !result.ok()) { return result; }
    auto* const pointers = reinterpret_cast<count_board::line**>(mirror);
    for (std::size_t rank = 0; rank < boards.size(); ++rank) {
      pointers[rank] = reinterpret_cast<count_board::line*>(boards[rank].data);
    }
    auto result = to_status(
        cudaMemcpyAsync(boards_.data(), pointers, boards.size() * sizeof(pointers[0]), cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync");
    if (!result.ok()) { return result; }
    view_.boards = boards_.data();
    without_board_ = std::move(without);
    return mirror_.mark(stream_);
  }

  /// The same by a peer directory, for ranks in processes of their own or on several devices. First each rank exposes
  /// its board, in the same order among the sets that it exposes there.
  ///
  /// @param peers  `ipc_peers`, whose call waits for the others, or a member of `local_peers`, whose does not.
  /// @return as `peers.expose`
  template <peer_directory Peers>
  [[nodiscard]] status expose_board(Peers& peers) {
    exposed_ = peers.next_region();
    auto const mine = board();
    return peers.expose({&mine, 1}, exposed_);
  }
  /// Then, when all ranks have, each makes the boards known.
  ///
  /// @param peers  whom `expose_board` was called with. Access to their devices is switched on, for which the driver
  ///               may wait for the device.
  /// @return `errc::invalid_option` naming a rank whose board is not there, or is on a device that this one's kernels
  ///         cannot write to, or not by atomic operations; `cudart::category()`
  template <peer_directory Peers>
  [[nodiscard]] status connect(Peers const& peers) {
    std::vector<segment> boards;
    for (index_t rank = 0; rank < rows_.shape().num_ranks; ++rank) {
      boards.push_back(rank == view_.rank ? board() : peers.region(rank, exposed_));
      if (rank == view_.rank || boards.back().data == nullptr) { continue; }
      if (auto result = reach(peers.device(rank), rank); !result.ok()) { return result; }
    }
    return connect(std::span<segment const>{boards});
  }

  /// Take a layer's placement over, in stream order: behind the commit that put it in force, on every rank between the
  /// same two batches. `device_store` does so by `follower()`.
  ///
  /// @param where  as at construction but for the live ranks.
  /// @param from   [L, P] placement in force.
  /// @param layer  in [0, L).
  /// @return `errc::invalid_placement` for one of other sizes, `errc::invalid_topology` naming a live rank whose board
  ///         is not known, nothing changes then; `cudart::category()`
  /// @complexity as `quota_rows::publish`, and one copy to the device. Waits for nothing.
  [[nodiscard]] status publish(topology const& where, placement const& from, index_t layer) {
    auto const& shape = rows_.shape();
    if (where.num_slots() != shape.num_slots || from.num_slots() != shape.num_slots ||
        from.num_logical() != shape.num_logical || from.num_layers() != rows_.num_layers() || layer < 0 ||
        layer >= rows_.num_layers()) {
      return {errc::invalid_placement,
              ballast::detail::concat("batch_balancer: layer ", layer, " of a placement of ",
                                      ballast::detail::shape_text(from.shape()), " on ", where.num_slots(),
                                      " slots, it is for ", rows_.num_layers(), " x ", shape.num_logical, " on ",
                                      shape.num_slots)};
    }
    for (auto const rank : without_board_) {
      if (!where.is_live(rank)) { continue; }
      return {
          errc::invalid_topology,
          ballast::detail::concat("batch_balancer: rank ", rank, " is live, and its board is not known: connect anew"),
          rank};
    }
    detail::capture_guard const guard;
    std::byte* mirror = nullptr;
    if (auto result = mirror_.take(mirror); !result.ok()) { return result; }
    rows_.publish(where, from, layer);
    auto const bytes = rows_.bytes(layer);
    std::copy(bytes.begin(), bytes.end(), mirror);
    auto* const to = device_rows_.data() + bytes_per_row() * static_cast<std::size_t>(layer);
    auto const result = cudaMemcpyAsync(to, mirror, bytes.size(), cudaMemcpyHostToDevice, stream_);
    if (result != cudaSuccess) { return to_status(result, "cudaMemcpyAsync"); }
    return mirror_.mark(stream_);
  }
  /// For the options of a `device_store`: it then publishes here whatever it commits.
  /// @lifetime this object must outlive the store, and stay where it is
  [[nodiscard]] table_follower follower() noexcept {
    return {[](void* self, topology const& where, placement const& from, index_t layer) {
              return static_cast<batch_balancer*>(self)->publish(where, from, layer);
            },
            this, [](void* self) { return static_cast<batch_balancer const*>(self)->counters(); }};
  }

  /// Change what decides on the device, in stream order, also for graphs that were captured before. Ranks that differ
  /// agree on the strictest: one that is off turns the batch off, the highest thresholds count. Where the engine
  /// gathers the counts, ranks must not differ.
  ///
  /// @return `cudart::category()`
  [[nodiscard]] status set_control(batch_control const& control) {
    detail::capture_guard const guard;
    control_host_ = control;
    // From pageable memory: copied before the call returns.
    return to_status(
        cudaMemcpyAsync(control_.data(), &control_host_, sizeof control_host_, cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync");
  }
  /// Number the batches anew, in stream order: after a failure, when the ranks of the group agree on where they are.
  /// The next ones start from the shares in force.
  ///
  /// @param next  of the batch to come, the same on every rank; above all that were used.
  /// @return `errc::invalid_option` for 0; `cudart::category()`
  [[nodiscard]] status restart(std::uint32_t next) {
    if (next == 0) { return {errc::invalid_option, "batch_balancer: batch 0: they are numbered from 1"}; }
    detail::capture_guard const guard;
    auto result =
        to_status(cudaMemcpyAsync(tag_.data(), &next, sizeof next, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    if (!result.ok() || starts_.data() == nullptr) { return result; }
    return to_status(cudaMemsetAsync(starts_.data(), 0, starts_.size() * sizeof(batch_start), stream_),
                     "cudaMemsetAsync");
  }

  /// What a layer's batches came to, as far as the device has told. Waits for nothing. @pre `layer` in [0, L)
  [[nodiscard]] batch_statistics statistics(index_t layer) const {
    BALLAST_EXPECTS_BELOW(layer, rows_.num_layers(), "batch_balancer: layer");
    batch_statistics copy;
    std::memcpy(&copy, host_statistics_.bytes().data() + sizeof copy * static_cast<std::size_t>(layer), sizeof copy);
    return copy;
  }
  /// The same over all layers. Waits for nothing.
  [[nodiscard]] batch_counters counters() const {
    batch_counters sum;
    for (index_t layer = 0; layer < rows_.num_layers(); ++layer) {
      auto const told = statistics(layer);
      sum.batches += told.batches;
      sum.exact += told.exact;
      sum.below += told.below;
      sum.off += told.off;
      sum.late += told.late;
      sum.unlike += told.unlike;
      sum.alone += told.alone;
      sum.mean += static_cast<double>(told.total) / rows_.row(layer).sizes().num_live_ranks;
      sum.planned += told.max;
      sum.realised += told.realised;
      sum.resident += told.resident;
      sum.bound += told.bound;
      sum.longest_wait = std::max<nanoseconds_t>(sum.longest_wait, told.wait_nanoseconds);
      sum.late_ranks |= std::uint64_t{told.late_ranks_high} << 32 | told.late_ranks_low;
    }
    return sum;
  }
  /// What kernels work with; stays valid for the life of this object, in captured graphs too.
  [[nodiscard]] batch_view view() const noexcept { return view_; }
  /// The rows on the host, as published last.
  [[nodiscard]] quota_rows const& rows() const noexcept { return rows_; }

private:
  /// Have the kernels of this rank write to another one's device.
  [[nodiscard]] static status reach(int device, index_t rank) {
    detail::capture_guard const guard;
    int own = 0;
    if (auto result = to_status(cudaGetDevice(&own), "cudaGetDevice"); !result.ok()) { return result; }
    if (device == own) { return {}; }
    int atomics = 0;
    bool const is_reached = enable_peer_access(device, own);
    if (is_reached) {
      auto result = to_status(cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, own, device),
                              "cudaDeviceGetP2PAttribute");
      if (!result.ok()) { return result; }
    }
    if (atomics != 0) { return {}; }
    return {errc::invalid_option,
            ballast::detail::concat("batch_balancer: kernels of device ", own, " cannot ",
                                    is_reached ? "make atomic operations on" : "write to", " device ", device,
                                    ", where the board of rank ", rank,
                                    " is: every batch is balanced between devices joined by NVLink"),
            rank};
  }

  void abandon() noexcept {
    mirror_.abandon();
    host_statistics_.abandon();
    device_rows_.abandon();
    control_.abandon();
    tag_.abandon();
    verdict_.abandon();
    statistics_.abandon();
    starts_.abandon();
    start_parts_.abandon();
    block_counts_.abandon();
    block_first_.abandon();
    ordinals_.abandon();
    counts_.abandon();
    quotas_.abandon();
    ends_.abandon();
    board_.abandon();
    boards_.abandon();
  }
  [[nodiscard]] std::size_t bytes_per_row() const noexcept { return rows_.layout().size; }

  /// In every layer.
  [[nodiscard]] bool is_dead(index_t rank) const {
    for (index_t layer = 0; layer < rows_.num_layers(); ++layer) {
      if (rows_.row(layer).is_live(rank)) { return false; }
    }
    return true;
  }
  [[nodiscard]] static topology checked(topology where, index_t rank, placement const& initial,
                                        batch_options const& options) {
    check(where, rank, initial, options).or_throw();
    return where;
  }
  [[nodiscard]] static status check(topology const& where, index_t rank, placement const& initial,
                                    batch_options const& options) {
    auto const refuse = [](auto const&... parts) {
      return status{errc::invalid_option, ballast::detail::concat("batch_balancer: ", parts...)};
    };
    if (auto result = options.validate(); !result.ok()) { return result; }
    auto const ranks = where.num_ranks();
    if (rank < 0 || rank >= ranks) { return refuse("there is no rank ", rank, " among ", ranks); }
    if (options.judge < 0 || options.judge >= ranks) {
      return refuse("judge is ", options.judge, ", must be a rank, there are ", ranks);
    }
    if (where.num_slots() >= quota_shape::most_slots || where.num_slots() != initial.num_slots()) {
      return refuse("a placement of ", initial.num_slots(), " slots, the topology has ", where.num_slots(),
                    ", which must be alike and below ", quota_shape::most_slots);
    }
    auto const ids = static_cast<load_t>(options.max_tokens) * options.top_k;
    constexpr load_t most_ids = load_t{max_count_blocks} * (std::numeric_limits<std::uint16_t>::max() / 1024 * 1024);
    if (ids > most_ids || ids * ranks > max_batch_tokens) {
      return refuse(options.max_tokens, " tokens x ", options.top_k, " choices on ", ranks, " ranks, at most ",
                    std::min(most_ids, max_batch_tokens / ranks), " choices on each");
    }
    return {};
  }
  void allocate(batch_options const& options) {
    auto const& shape = rows_.shape();
    auto const experts = static_cast<std::size_t>(shape.num_logical);
    auto const layers = static_cast<std::size_t>(rows_.num_layers());
    mirror_.reserve().or_throw();
    device_rows_ = device_memory<std::byte>::create(bytes_per_row() * layers);
    control_ = device_memory<batch_control>::create(1);
    tag_ = device_memory<std::uint32_t>::create(1);
    verdict_ = device_memory<batch_verdict>::create(1);
    if (options.warm_start) {
      starts_ = device_memory<batch_start>::create(layers);
      start_parts_ = device_memory<index_t>::create(layers * static_cast<std::size_t>(shape.max_movable()));
    }
    statistics_ = device_memory<batch_statistics>::create(layers);
    host_statistics_.allocate(sizeof(batch_statistics) * layers).or_throw();
    std::fill(host_statistics_.bytes().begin(), host_statistics_.bytes().end(), std::byte{0});
    auto const counters = static_cast<std::size_t>(count_stride(shape.num_logical)) * max_count_blocks;
    block_counts_ = device_memory<std::uint16_t>::create(counters);
    block_first_ = device_memory<std::uint32_t>::create(counters);
    ordinals_ = device_memory<std::uint16_t>::create(static_cast<std::size_t>(options.max_tokens) *
                                                     static_cast<std::size_t>(options.top_k));
    counts_ = device_memory<index_t>::create(experts);
    quotas_ = device_memory<index_t>::create(static_cast<std::size_t>(shape.num_slots));
    ends_ = device_memory<index_t>::create(static_cast<std::size_t>(shape.max_movable()));
    board_ = device_memory<count_board::line>::create(count_board::size_of(shape));
    boards_ = device_memory<count_board::line*>::create(static_cast<std::size_t>(shape.num_ranks));
    restart(1).or_throw();
  }
  void describe(index_t rank, batch_options const& options) {
    auto const& shape = rows_.shape();
    digest settings;
    settings.add(shape.num_ranks).add(shape.num_nodes).add(shape.num_logical).add(shape.num_slots).add(options.judge);
    settings.add(options.warm_start ? 1 : 0);
    options.quotas.describe(settings);
    view_.shape = shape;
    view_.layout = plan_layout{shape, options.warm_start};
    view_.rank = rank;
    view_.num_layers = rows_.num_layers();
    view_.max_ids = options.max_tokens * options.top_k;
    view_.options = options.quotas;
    view_.settings = static_cast<std::uint32_t>(settings.value());
    view_.judge = options.judge;
    view_.rows = device_rows_.data();
    view_.control = control_.data();
    view_.tag = tag_.data();
    view_.statistics = statistics_.data();
    view_.host_statistics = reinterpret_cast<batch_statistics*>(host_statistics_.bytes().data());
    view_.starts = starts_.data();
    view_.start_parts = start_parts_.data();
    view_.block_counts = block_counts_.data();
    view_.block_first = block_first_.data();
    view_.ordinals = ordinals_.data();
    view_.counts = counts_.data();
    view_.quotas = quotas_.data();
    view_.ends = ends_.data();
    view_.verdict = verdict_.data();
  }
  /// Shared memory for the block that plans, as much as it can use.
  [[nodiscard]] status prepare_kernels() {
    int device = 0;
    int most = 0;
    if (auto result = to_status(cudaGetDevice(&device), "cudaGetDevice"); !result.ok()) { return result; }
    if (auto result = to_status(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                                "cudaDeviceGetAttribute");
        !result.ok()) {
      return result;
    }
    constexpr std::size_t static_bytes = 1024;
    auto const room = static_cast<std::size_t>(most) - static_bytes;
    auto const least = view_.layout.size_without_counts();
    if (least > room) {
      return {errc::invalid_option,
              ballast::detail::concat("batch_balancer: ", view_.shape.num_slots, " slots on ", view_.shape.num_ranks,
                                      " ranks need ", least, " bytes of shared memory, a block has ", room)};
    }
    view_.shared_room = room;
    view_.has_room = view_.layout.size <= room;
    auto const give = [room](auto const kernel) {
      return to_status(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(room)),
          "cudaFuncSetAttribute");
    };
    auto result = give(detail::plan_kernel<detail::warp_search_64>);
    if (result.ok()) { result = give(detail::plan_kernel<detail::warp_search_any>); }
    if (result.ok()) { result = give(detail::count_kernel<std::int32_t>); }
    if (result.ok()) { result = give(detail::count_kernel<std::int64_t>); }
    // A kernel that is loaded by its first launch would have the other ranks wait for it.
    auto const load = [](auto const kernel) {
      cudaFuncAttributes attributes{};
      return to_status(cudaFuncGetAttributes(&attributes, reinterpret_cast<void const*>(kernel)),
                       "cudaFuncGetAttributes");
    };
    auto const load_remap = [&]<class Id, class Physical>(Id /*of the router*/, Physical /*of the next kernel*/) {
      if (result.ok()) { result = load(detail::remap_kernel<true, Id, Physical>); }
      if (result.ok()) { result = load(detail::remap_kernel<false, Id, Physical>); }
    };
    load_remap(std::int32_t{}, std::int32_t{});
    load_remap(std::int32_t{}, std::int64_t{});
    load_remap(std::int64_t{}, std::int32_t{});
    load_remap(std::int64_t{}, std::int64_t{});
    if (result.ok()) { result = load(detail::sum_kernel<>); }
    return result;
  }

  cudaStream_t stream_;
  topology where_;
  std::vector<index_t> without_board_;  ///< dead ranks
  quota_rows rows_;
  // Pinned memory outlives the device's, which is not given back before the stream is done with both.
  detail::mirror_rows mirror_;
  pinned_buffer host_statistics_;
  batch_control control_host_;
  std::uint32_t exposed_ = 0;
  device_memory<std::byte> device_rows_;
  device_memory<batch_control> control_;
  device_memory<std::uint32_t> tag_;
  device_memory<batch_verdict> verdict_;
  device_memory<batch_statistics> statistics_;
  device_memory<batch_start> starts_;
  device_memory<index_t> start_parts_;
  device_memory<std::uint16_t> block_counts_;
  device_memory<std::uint32_t> block_first_;
  device_memory<std::uint16_t> ordinals_;
  device_memory<index_t> counts_;
  device_memory<index_t> quotas_;
  device_memory<index_t> ends_;
  device_memory<count_board::line> board_;
  device_memory<count_board::line*> boards_;
  batch_view view_;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
