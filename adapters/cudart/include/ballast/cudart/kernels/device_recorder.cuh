// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_DEVICE_RECORDER_CUH
#define BALLAST_CUDART_KERNELS_DEVICE_RECORDER_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/device_recorder.cuh launches kernels: include it from a .cu file"
#endif

#include <ballast/cudart/compute_streams.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/device_reader.hpp>
#include <ballast/cudart/detail/recorder_memory.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/kernels/fold.cuh>
#include <ballast/cudart/record_view.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/pass_timeline.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/load/window_cursor.hpp>
#include <ballast/parts.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// A `window_recorder` whose counts live in device memory and are made by kernels, inside captured graphs too.
///
/// Kernels count through `view()`; see `record`, `dispatch_and_record` and `record_arrivals`. A capture counts nothing,
/// each replay once. Counts that an engine has on the host (lists of an all-to-all library) are taken too: they go up
/// with the end of their pass. Where the stream is several passes behind, they go up with a later one that counts.
///
/// Passes may run on several streams at once, as two batches that overlap do: kernels on all of them count into the
/// same counters. The end of a pass, and a change of the gate, is then behind what all streams hold, and they go on
/// behind it.
///
/// The host never waits for the stream but in `history`, and there no longer than `timeout()`. `prepare_history`,
/// called a pass earlier, spares it that wait: the counts then come to the host while the next pass runs.
///
/// @threads  one thread at a time; the rank's device is current there.
/// @lifetime the compute streams and the map must outlive it. Its end waits for the streams to come to the end of what
///           uses its memory, no longer than `timeout()`; after that, the memory stays in place for the life of the
///           process.
class device_recorder : private pass_counter, public window_telling<device_recorder> {
public:
  static constexpr bool clears_on_dump = true;

  /// @param compute_stream  runs the forward passes.
  /// @param local_map       [L, S] device memory, as `device_tables::local_map()`; for `record_arrivals`. Null without.
  /// @param slots_per_rank  S; 0 without a map.
  /// @throws std::system_error (`errc::invalid_option`, `cudart::category()`, and `errc::deadline_exceeded` where the
  ///         device does not come to clear the counters, in ten seconds for each array)
  device_recorder(cudaStream_t compute_stream, index_t num_layers, index_t num_logical, window_options options = {},
                  index_t const* local_map = nullptr, index_t slots_per_rank = 0)
      : device_recorder{compute_streams{compute_stream}, num_layers, num_logical, options, local_map, slots_per_rank} {}
  /// The same for passes that run on several streams.
  ///
  /// @param streams  of the same device; with several, the recorder's kernels and the engine's may be enqueued on any.
  device_recorder(compute_streams streams, index_t num_layers, index_t num_logical, window_options options = {},
                  index_t const* local_map = nullptr, index_t slots_per_rank = 0)
      : pass_counter{num_layers, num_logical}, window_{options}, since_{options}, snapshot_{options} {
    validate(local_map, slots_per_rank).or_throw();
    cells_ = detail::padded_cells(num_layers, num_logical);
    waiting_.assign(pass().size(), 0);
    memory_ = std::make_unique<detail::recorder_memory>(std::move(streams), num_stripes * cells_, cells_,
                                                        static_cast<std::size_t>(num_buckets()));
    window_.counts = memory_->windows[0].data();
    since_.counts = memory_->windows[1].data();
    view_ = {memory_->pass.data(), memory_->gate.data(), local_map, num_layers,
             num_logical,          slots_per_rank,       cells_,    num_stripes};
    detail::capture_guard const guard;
    folder_ = detail::folder{view_};
    set_gate(true).or_throw();
  }

  /// Let the stream do nothing once in every way in which it will be used, so that no pass pays for a first time. Does
  /// not wait for the stream. @return `cudart::category()`
  [[nodiscard]] status warm_up() {
    detail::capture_guard const guard;
    return folder_.warm_up(memory_->stream);
  }

  /// What kernels count into; stays valid for the life of the recorder, in captured graphs too.
  [[nodiscard]] record_view const& view() const noexcept { return view_; }

  /// Open or close the gate for what is enqueued from here on: kernels behind a closed gate count nothing. Counts of
  /// the host are not held back.
  ///
  /// @return `cudart::category()`
  /// @complexity one call of the driver, no wait; with several streams as many more as `end_pass`.
  [[nodiscard]] status set_gate(bool open) {
    auto result = memory_->streams.gather();
    if (!result.ok()) { return result; }
    result = to_status(cudaMemsetAsync(memory_->gate.data(), open ? 1 : 0, sizeof(std::uint32_t), memory_->stream),
                       "cudaMemsetAsync");
    return result.ok() ? memory_->streams.release() : std::move(result);
  }

  // ---- counts that the host has: they wait there for the end of the pass ----

  /// As `pass_counter::record_top_k`, and so are the others below. None of them calls the driver.
  template <class Ids>
  [[nodiscard]] status record_top_k(index_t layer, Ids const& logical_ids) {
    return note_counts(pass_counter::record_top_k(layer, logical_ids));
  }
  template <class Counts>
  [[nodiscard]] status record_logical(index_t layer, Counts const& counts) {
    return note_counts(pass_counter::record_logical(layer, counts));
  }
  template <class Counts>
  [[nodiscard]] status record_physical(index_t layer, Counts const& counts, std::span<index_t const> logical_of_slot,
                                       topology const& where) {
    return note_counts(pass_counter::record_physical(layer, counts, logical_of_slot, where));
  }
  template <class Counts>
  [[nodiscard]] status record_local(index_t layer, Counts const& counts, index_t rank,
                                    std::span<index_t const> logical_of_slot, topology const& where) {
    return note_counts(pass_counter::record_local(layer, counts, rank, logical_of_slot, where));
  }
  template <class Sums>
  [[nodiscard]] status record_local_prefix_sums(index_t layer, Sums const& sums, index_t rank,
                                                std::span<index_t const> logical_of_slot, topology const& where) {
    return note_counts(pass_counter::record_local_prefix_sums(layer, sums, rank, logical_of_slot, where));
  }

  // ---- passes and window ----

  /// Close the pass on the stream, or on all of them: into the window when counted, forgotten otherwise.
  ///
  /// @complexity one launch, and O(L E) where the host had counts; no allocation, no wait. With several streams one
  ///             call of the driver more, and three for each besides the first. Where a call fails, counts are missing;
  ///             the `history` of these passes says so.
  void end_pass(bool counted) {
    detail::capture_guard const guard;
    if (snapshot_.state == snapshot_state::told) { drop_snapshot(); }
    bool const is_pending = snapshot_.state == snapshot_state::pending;
    detail::fold_command command;
    if (counted) {
      command.to = window_.count_pass(cells_);
      if (is_pending) { command.also_to = since_.count_pass(cells_); }
      command.host = send_host_counts();
    } else {
      window_.cursor.skip_pass();
      if (is_pending) { since_.cursor.skip_pass(); }
      forget_host_counts();
    }
    if (is_pending) { snapshot_.cursor.skip_pass(); }
    auto result = memory_->streams.gather();
    if (result.ok()) { result = folder_.fold(memory_->stream, command); }
    if (result.ok() && command.host != nullptr) { result = memory_->sent.send(memory_->stream); }
    if (result.ok()) { result = memory_->streams.release(); }
    note_loss(std::move(result));
  }

  [[nodiscard]] index_t num_layers() const noexcept { return pass_counter::num_layers(); }
  [[nodiscard]] index_t num_logical() const noexcept { return pass_counter::num_logical(); }

  /// Start to bring the counts of all passes closed so far to the host, behind the fold of the last one.
  ///
  /// From here on `history`, `num_spans`, `spans`, `forgotten` and `place` speak of just these passes, until `clear`
  /// forgets them, the next call of this function replaces them, or a pass is closed after `history` has told them.
  /// Passes closed meanwhile are kept: `clear` leaves them in the window.
  ///
  /// @complexity two or three calls of the driver, no allocation, no wait. Where one fails, it is as if this function
  ///             had not been called.
  void prepare_history() {
    detail::capture_guard const guard;
    drop_snapshot();
    auto result = empty_since();
    if (result.ok()) { result = copy_window(); }
    if (!result.ok()) {
      note_failure(result);
      return;
    }
    snapshot_.cursor = window_.cursor;
    since_.cursor.clear();
    snapshot_.lost = std::exchange(lost_, {});
    snapshot_.state = snapshot_state::pending;
  }

  /// Write the window, oldest bucket first, with layers that are too large brought down (`fit_layers`): of the passes
  /// that `prepare_history` was called for; otherwise of all closed passes, for which the stream has to come to the end
  /// of the last one.
  ///
  /// @param out out: [H, L, E] tokens.
  /// @return `errc::invalid_load` for a size that is not [H, L, E]; `errc::deadline_exceeded` when the counts have not
  ///         come within `timeout()`: nothing is lost, a later call can succeed; a failure of the device now, or
  ///         earlier, when it lost counts of these passes: that is told once.
  /// @complexity O(H L E), no allocation on success.
  [[nodiscard]] status history(std::span<load_t> out) const {
    if (auto result = check_output(out.size(), num_buckets()); !result.ok()) { return result; }
    if (auto& lost = has_snapshot() ? snapshot_.lost : lost_; !lost.ok()) { return std::exchange(lost, {}); }
    if (!out.empty()) {
      if (auto result = read_counts(); !result.ok()) { return result; }
      write_oldest_first(out);
      fit_layers(out, num_buckets(), num_layers(), num_logical());
    }
    if (has_snapshot()) { snapshot_.state = snapshot_state::told; }
    return {};
  }

  /// Forget the passes that `history` speaks of, also those whose counts were lost. Passes closed after
  /// `prepare_history`, and the pass in progress, stay.
  /// @complexity at most one call of the driver, no wait.
  void clear() {
    if (has_snapshot()) {
      std::swap(window_, since_);
      since_.is_empty = false;
      snapshot_.lost = {};
      snapshot_.state = snapshot_state::none;
      return;
    }
    lost_ = {};
    std::fill(waiting_.begin(), waiting_.end(), load_t{0});
    has_waiting_ = false;
    window_.cursor.clear();
    note_loss(zero(window_));
  }

  /// How long `history` and the destructor may wait for the device, in nanoseconds; 5 seconds at first. A rebalancer
  /// sets it from its own.
  void set_timeout(nanoseconds_t timeout) noexcept { memory_->timeout = timeout; }
  [[nodiscard]] nanoseconds_t timeout() const noexcept { return memory_->timeout; }

  /// As a `window_recorder`.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    window_.cursor.for_each_option(visit);
    visit_shape(visit);
  }
  void describe(digest& out) const { ballast::detail::describe_options(*this, out); }

  /// The first failure of the device since construction.
  [[nodiscard]] status const& failure() const noexcept { return failure_; }

private:
  friend class window_telling<device_recorder>;

  static constexpr std::uint32_t num_stripes = 8;

  /// Counts of closed passes in device memory.
  struct window {
    explicit window(window_options options) : cursor{options} {}
    /// @param cells of a bucket
    [[nodiscard]] detail::fold_target count_pass(std::size_t cells) noexcept {
      is_empty = false;
      auto const to = cursor.count_pass();
      return {counts + static_cast<std::size_t>(to.bucket) * cells, to.fresh};
    }

    window_cursor cursor;
    load_t* counts = nullptr;  // [H, L, E], each bucket padded
    bool is_empty = true;      // all zero
  };

  enum class snapshot_state : unsigned char {
    none,
    pending,  // on its way to the host, or there
    told,     // by `history`
  };
  /// Closed passes whose counts come to the host.
  struct snapshot {
    explicit snapshot(window_options options) : cursor{options} {}

    snapshot_state state = snapshot_state::none;
    window_cursor cursor;
    status lost;  // the first failure that cost counts of these passes
  };

  [[nodiscard]] static status validate(index_t const* local_map, index_t slots_per_rank) {
    if (slots_per_rank >= 0 && (local_map != nullptr) == (slots_per_rank > 0)) { return {}; }
    return {errc::invalid_option, ballast::detail::concat("device_recorder: ", slots_per_rank, " slots ",
                                                          local_map == nullptr ? "without" : "with", " a map")};
  }

  [[nodiscard]] bool has_snapshot() const noexcept { return snapshot_.state != snapshot_state::none; }
  /// Of the passes that `history` speaks of.
  [[nodiscard]] window_cursor const& cursor() const noexcept {
    return has_snapshot() ? snapshot_.cursor : window_.cursor;
  }
  /// Speak of all closed passes again.
  void drop_snapshot() {
    if (!snapshot_.lost.ok()) { lost_ = std::exchange(snapshot_.lost, {}); }
    snapshot_.state = snapshot_state::none;
  }

  [[nodiscard]] status note_counts(status recorded) noexcept {
    has_counts_ = has_counts_ || recorded.ok();
    return recorded;
  }
  void forget_host_counts() noexcept {
    if (std::exchange(has_counts_, false)) { start_pass(); }
  }
  /// Put the host's counts of this pass, and those that had no room before, where the device reads them; null when
  /// there are none, or no room.
  [[nodiscard]] load_t const* send_host_counts() {
    if (!has_counts_ && !has_waiting_) { return nullptr; }
    auto const room = memory_->sent.room();
    if (room.empty()) {
      ballast::detail::add_saturated(pass(), waiting_);
      has_waiting_ = true;
      forget_host_counts();
      return nullptr;
    }
    std::copy(pass().begin(), pass().end(), room.begin());
    if (std::exchange(has_waiting_, false)) {
      ballast::detail::add_saturated(waiting_, room.first(waiting_.size()));
      std::fill(waiting_.begin(), waiting_.end(), load_t{0});
    }
    forget_host_counts();
    return room.data();
  }

  [[nodiscard]] status zero(window const& which) const {
    auto const bytes = memory_->mirror.bytes().size();
    return to_status(cudaMemsetAsync(which.counts, 0, bytes, memory_->stream), "cudaMemsetAsync");
  }
  [[nodiscard]] status empty_since() {
    if (since_.is_empty) { return {}; }
    auto result = zero(since_);
    since_.is_empty = result.ok();
    return result;
  }

  /// Enqueue the copy of the window to the host.
  [[nodiscard]] status copy_window() const {
    auto const to = memory_->mirror.bytes();
    auto result =
        to_status(cudaMemcpyAsync(to.data(), window_.counts, to.size(), cudaMemcpyDeviceToHost, memory_->stream),
                  "cudaMemcpyAsync");
    return result.ok() ? memory_->copied.record(memory_->stream) : std::move(result);
  }
  /// Wait for the counts in the mirror.
  [[nodiscard]] status read_counts() const {
    detail::capture_guard const guard;
    auto const deadline = ballast::detail::deadline_after(timeout());
    auto result = has_snapshot() ? status{} : copy_window();
    if (result.ok()) {
      result = detail::await_event(memory_->copied, deadline, "device_recorder: the last pass to read");
    }
    if (!result.ok() && result.code() != errc::deadline_exceeded) { note_failure(result); }
    return result;
  }
  void write_oldest_first(std::span<load_t> out) const {
    auto const* const cells = reinterpret_cast<load_t const*>(memory_->mirror.bytes().data());
    auto const bucket = out.size() / static_cast<std::size_t>(num_buckets());
    auto to = out.begin();
    for (index_t i = 0; i < num_buckets(); ++i) {
      auto const from = static_cast<std::size_t>((cursor().bucket_of_oldest() + i) % num_buckets()) * cells_;
      to = std::copy_n(cells + from, bucket, to);
    }
  }

  void note_failure(status const& result) const {
    if (failure_.ok()) { failure_ = result; }
  }
  /// Keep a failure that cost counts until it can be told.
  void note_loss(status result) {
    note_failure(result);
    if (lost_.ok()) { lost_ = std::move(result); }
  }

  std::unique_ptr<detail::recorder_memory> memory_;
  std::size_t cells_ = 0;        // of a bucket, with padding
  std::vector<load_t> waiting_;  // [L, E] counts of the host that had no room in the ring
  bool has_waiting_ = false;
  bool has_counts_ = false;  // of the pass in progress, on the host
  window window_;            // of all closed passes
  window since_;             // of those that were closed since the snapshot
  mutable snapshot snapshot_;
  record_view view_;
  detail::folder folder_;
  mutable status failure_;  // the first
  mutable status lost_;     // the first that cost counts of passes that are in no snapshot
};

static_assert(load_recorder<device_recorder> && bucket_placing<device_recorder>);
static_assert(preparing_recorder<device_recorder> && bounded_part<device_recorder> && warming_part<device_recorder>);
static_assert(ballast::detail::names_options<device_recorder>);

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
