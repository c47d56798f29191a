// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_DEVICE_RECORDER_CUH
#define BALLAST_CUDART_KERNELS_DEVICE_RECORDER_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/device_recorder.cuh launches kernels: include it from a .cu file"
#endif

#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/fold.cuh>
#include <ballast/cudart/record_view.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/pass_timeline.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/load/window_cursor.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// A `window_recorder` whose counts live in device memory and are made by kernels, inside captured graphs too.
///
/// Kernels count through `view()`; see `record`, `dispatch_and_record` and `record_arrivals`. A capture counts nothing,
/// each replay once. Counts that an engine has on the host (lists of an all-to-all library) are taken too, by a copy
/// that waits for the stream.
///
/// @threads one thread at a time; the rank's device is current there. `compute_stream` must outlive it.
class device_recorder : private pass_counter {
public:
  static constexpr bool clears_on_dump = true;

  /// @param compute_stream  runs the forward passes.
  /// @param local_map       [L, S] device memory, as `device_tables::local_map()`; for `record_arrivals`. Null without.
  /// @param slots_per_rank  S; 0 without a map.
  /// @throws std::system_error (`errc::invalid_option`, `cudart::category()`)
  device_recorder(cudaStream_t compute_stream, index_t num_layers, index_t num_logical, window_options options = {},
                  index_t const* local_map = nullptr, index_t slots_per_rank = 0)
      : pass_counter{num_layers, num_logical}, stream_{compute_stream}, cursor_{options} {
    validate(local_map, slots_per_rank).or_throw();
    cells_ = detail::padded_cells(num_layers, num_logical);
    pass_ = device_memory<std::uint32_t>::create(num_stripes * cells_);
    gate_ = device_memory<std::uint32_t>::create(1);
    window_ = device_memory<load_t>::create(static_cast<std::size_t>(num_buckets()) * cells_);
    upload_ = device_memory<load_t>::create(static_cast<std::size_t>(num_logical));
    mirror_.allocate(window_.size() * sizeof(load_t)).or_throw();
    view_ = {pass_.data(), gate_.data(), local_map, num_layers, num_logical, slots_per_rank, cells_, num_stripes};
    folder_ = detail::folder{view_};
    set_gate(true).or_throw();
  }

  /// What kernels count into; stays valid for the life of the recorder, in captured graphs too.
  [[nodiscard]] record_view const& view() const noexcept { return view_; }

  /// Open or close the gate for what is enqueued from here on: kernels behind a closed gate count nothing.
  [[nodiscard]] status set_gate(bool open) {
    return to_status(cudaMemsetAsync(gate_.data(), open ? 1 : 0, sizeof(std::uint32_t), stream_), "cudaMemsetAsync");
  }

  // ---- counts that the host has ----

  template <class Ids>
  [[nodiscard]] status record_top_k(index_t layer, Ids const& logical_ids) {
    return upload_if(pass_counter::record_top_k(layer, logical_ids), layer);
  }
  template <class Counts>
  [[nodiscard]] status record_logical(index_t layer, Counts const& counts) {
    return upload_if(pass_counter::record_logical(layer, counts), layer);
  }
  template <class Counts>
  [[nodiscard]] status record_physical(index_t layer, Counts const& counts, std::span<index_t const> logical_of_slot,
                                       topology const& where) {
    return upload_if(pass_counter::record_physical(layer, counts, logical_of_slot, where), layer);
  }
  template <class Counts>
  [[nodiscard]] status record_local(index_t layer, Counts const& counts, index_t rank,
                                    std::span<index_t const> logical_of_slot, topology const& where) {
    return upload_if(pass_counter::record_local(layer, counts, rank, logical_of_slot, where), layer);
  }
  template <class Sums>
  [[nodiscard]] status record_local_prefix_sums(index_t layer, Sums const& sums, index_t rank,
                                                std::span<index_t const> logical_of_slot, topology const& where) {
    return upload_if(pass_counter::record_local_prefix_sums(layer, sums, rank, logical_of_slot, where), layer);
  }

  // ---- passes and window ----

  /// Close the pass on the stream: into the window when counted, forgotten otherwise.
  ///
  /// @complexity one launch, no allocation, no wait. Where the launch fails, counts are missing; the next `history`
  ///             says so.
  void end_pass(bool counted) {
    detail::fold_command to{nullptr, counted, false};
    if (counted) {
      auto const where = cursor_.count_pass();
      to.bucket = window_.data() + static_cast<std::size_t>(where.bucket) * cells_;
      to.fresh = where.fresh;
    } else {
      cursor_.skip_pass();
    }
    note(folder_.fold(stream_, to));
  }

  [[nodiscard]] index_t num_buckets() const noexcept { return cursor_.num_buckets(); }
  [[nodiscard]] index_t num_layers() const noexcept { return pass_counter::num_layers(); }
  [[nodiscard]] index_t num_logical() const noexcept { return pass_counter::num_logical(); }

  /// Write the window, oldest bucket first, with layers that are too large brought down (`fit_layers`). Waits for the
  /// stream.
  ///
  /// @param out out: [H, L, E] tokens.
  /// @return a size that is not [H, L, E]; a failure of the device now, or earlier, when it lost counts of this window:
  ///         that is told once.
  [[nodiscard]] status history(std::span<load_t> out) const {
    if (auto result = check_output(out.size(), num_buckets()); !result.ok()) { return result; }
    if (!untold_.ok()) { return std::exchange(untold_, {}); }
    if (out.empty()) { return {}; }
    if (auto result = read_window(); !result.ok()) { return result; }
    auto const* const cells = reinterpret_cast<load_t const*>(mirror_.bytes().data());
    auto const bucket = out.size() / static_cast<std::size_t>(num_buckets());
    auto to = out.begin();
    for (index_t i = 0; i < num_buckets(); ++i) {
      auto const from = static_cast<std::size_t>((cursor_.bucket_of_oldest() + i) % num_buckets()) * cells_;
      to = std::copy_n(cells + from, bucket, to);
    }
    fit_layers(out, num_buckets(), num_layers(), num_logical());
    return {};
  }

  /// Forget the closed passes, also those whose counts were lost. The pass in progress stays.
  void clear() noexcept {
    untold_ = {};
    cursor_.clear();
    note(to_status(cudaMemsetAsync(window_.data(), 0, window_.size() * sizeof(load_t), stream_), "cudaMemsetAsync"));
  }

  // ---- what ranks tell each other; see `bucket_placing` ----

  [[nodiscard]] index_t num_spans() const noexcept { return cursor_.num_spans(); }
  void spans(std::span<pass_span> out) const { cursor_.spans(out); }
  [[nodiscard]] std::int64_t forgotten() const noexcept { return cursor_.forgotten(); }
  [[nodiscard]] index_t place(pass_timeline const& counted, std::span<index_t> places) const {
    return cursor_.place(counted, places);
  }

  [[nodiscard]] window_options const& options() const noexcept { return cursor_.options(); }
  /// As a `window_recorder`.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    cursor_.for_each_option(visit);
    visit_shape(visit);
  }
  void describe(digest& out) const { ballast::detail::describe_options(*this, out); }

  /// The first failure of the device since construction.
  [[nodiscard]] status const& failure() const noexcept { return failure_; }

private:
  static constexpr std::uint32_t num_stripes = 8;

  [[nodiscard]] static status validate(index_t const* local_map, index_t slots_per_rank) {
    if (slots_per_rank >= 0 && (local_map != nullptr) == (slots_per_rank > 0)) { return {}; }
    return {errc::invalid_option, ballast::detail::concat("device_recorder: ", slots_per_rank, " slots ",
                                                          local_map == nullptr ? "without" : "with", " a map")};
  }

  [[nodiscard]] status upload_if(status counted, index_t layer) {
    return counted.ok() ? upload(layer) : std::move(counted);
  }

  /// Add the host's counts of one layer to the device's, and clear them.
  [[nodiscard]] status upload(index_t layer) {
    auto const size = static_cast<std::size_t>(num_logical());
    auto const host = pass().subspan(static_cast<std::size_t>(layer) * size, size);
    auto result =
        to_status(cudaMemcpyAsync(upload_.data(), host.data(), size * sizeof(load_t), cudaMemcpyHostToDevice, stream_),
                  "cudaMemcpyAsync");
    if (result.ok()) {
      result = detail::add_counts(stream_, upload_.data(), view_.pass + static_cast<std::size_t>(layer) * size,
                                  num_logical());
    }
    if (result.ok()) { result = to_status(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
    start_pass();
    return result;
  }

  [[nodiscard]] status read_window() const {
    auto const bytes = mirror_.bytes();
    auto result =
        to_status(cudaMemcpyAsync(bytes.data(), window_.data(), bytes.size(), cudaMemcpyDeviceToHost, stream_),
                  "cudaMemcpyAsync");
    if (result.ok()) { result = to_status(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
    if (failure_.ok()) { failure_ = result; }
    return result;
  }

  /// Keep a failure that cost counts until it can be told.
  void note(status result) {
    if (failure_.ok()) { failure_ = result; }
    if (untold_.ok()) { untold_ = std::move(result); }
  }

  cudaStream_t stream_;
  window_cursor cursor_;
  std::size_t cells_ = 0;              // of a bucket, with padding
  device_memory<std::uint32_t> pass_;  // [stripes, L, E], each stripe padded
  device_memory<std::uint32_t> gate_;  // one word
  device_memory<load_t> window_;       // [H, L, E], each bucket padded
  device_memory<load_t> upload_;       // [E]
  pinned_buffer mirror_;
  record_view view_;
  detail::folder folder_;
  mutable status failure_;  // the first
  mutable status untold_;   // the first since counts were told last
};

static_assert(load_recorder<device_recorder> && bucket_placing<device_recorder>);
static_assert(ballast::detail::names_options<device_recorder>);

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
