// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_DEVICE_RECORDER_CUH
#define BALLAST_CUDART_KERNELS_DEVICE_RECORDER_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/device_recorder.cuh launches kernels: include it from a .cu file"
#endif

#include <ballast/contract.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/fold.cuh>
#include <ballast/cudart/record_view.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/load/window_recorder.hpp>
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
  /// @param local_map       [L, S] device memory, as `device_tables::local_map()`; for `record_arrivals`. May be null.
  /// @param slots_per_rank  S.
  /// @throws std::system_error (`errc::invalid_option`, `cudart::category()`)
  device_recorder(cudaStream_t compute_stream, index_t num_layers, index_t num_logical, window_options options = {},
                  index_t const* local_map = nullptr, index_t slots_per_rank = 0)
      : pass_counter{num_layers, num_logical}, stream_{compute_stream}, options_{options} {
    window_recorder::validate(options).or_throw();
    num_buckets_ = std::min(options.passes, options.buckets);
    cells_ = detail::padded_cells(num_layers, num_logical);
    pass_ = device_memory<std::uint32_t>::create(num_stripes * cells_);
    gate_ = device_memory<std::uint32_t>::create(1);
    window_ = device_memory<load_t>::create(static_cast<std::size_t>(num_buckets_) * cells_);
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
  void record_top_k(index_t layer, Ids const& logical_ids) {
    pass_counter::record_top_k(layer, logical_ids);
    upload(layer).or_throw();
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
  /// @complexity one launch, no allocation, no wait. A launch that fails is reported by `history`'s caller as missing
  ///             counts, and by `failure()`.
  void end_pass(bool counted) {
    detail::fold_command to{nullptr, counted, false};
    if (counted) {
      if (filled_ == length_of(newest_)) {
        newest_ = (newest_ + 1) % num_buckets_;
        filled_ = 0;
        to.fresh = true;
      }
      ++filled_;
      to.bucket = window_.data() + static_cast<std::size_t>(newest_) * cells_;
    }
    note(folder_.fold(stream_, to));
  }

  [[nodiscard]] index_t num_buckets() const noexcept { return num_buckets_; }
  [[nodiscard]] index_t num_layers() const noexcept { return pass_counter::num_layers(); }
  [[nodiscard]] index_t num_logical() const noexcept { return pass_counter::num_logical(); }

  /// Write the window, oldest bucket first. Waits for the stream.
  /// @param out out: [H, L, E] tokens.
  void history(std::span<load_t> out) const {
    auto const bucket = static_cast<std::size_t>(num_layers()) * static_cast<std::size_t>(num_logical());
    BALLAST_EXPECTS(out.size() == static_cast<std::size_t>(num_buckets_) * bucket,
                    "device_recorder: output is not [H, L, E]");
    auto const bytes = mirror_.bytes();
    note(to_status(cudaMemcpyAsync(bytes.data(), window_.data(), bytes.size(), cudaMemcpyDeviceToHost, stream_),
                   "cudaMemcpyAsync"));
    note(to_status(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"));
    auto const* const cells = reinterpret_cast<load_t const*>(bytes.data());
    auto to = out.begin();
    for (index_t i = 0; i < num_buckets_; ++i) {
      auto const from = static_cast<std::size_t>((newest_ + 1 + i) % num_buckets_) * cells_;
      to = std::copy_n(cells + from, bucket, to);
    }
  }

  /// Forget the closed passes. The pass in progress stays.
  void clear() noexcept {
    note(to_status(cudaMemsetAsync(window_.data(), 0, window_.size() * sizeof(load_t), stream_), "cudaMemsetAsync"));
    newest_ = 0;
    filled_ = 0;
  }

  void describe(digest& out) const noexcept {
    describe_shape(out.add("window_recorder"));
    out.add(options_.passes).add(num_buckets_);
  }

  /// The first failure of the device since construction.
  [[nodiscard]] status const& failure() const noexcept { return failure_; }

private:
  static constexpr std::uint32_t num_stripes = 8;

  [[nodiscard]] index_t length_of(index_t bucket) const noexcept {
    auto const end_of = [&](index_t b) {
      return static_cast<index_t>(static_cast<std::int64_t>(b) * options_.passes / num_buckets_);
    };
    return end_of(bucket + 1) - end_of(bucket);
  }

  [[nodiscard]] status upload_if(status counted, index_t layer) {
    return counted.ok() ? upload(layer) : std::move(counted);
  }

  /// Add the host's counts of one layer to the device's, and clear them.
  [[nodiscard]] status upload(index_t layer) {
    auto const size = static_cast<std::size_t>(num_logical());
    auto const host = pass().subspan(static_cast<std::size_t>(layer) * size, size);
    if (upload_.size() == 0) { upload_ = device_memory<load_t>::create(size); }
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

  void note(status result) const {
    if (failure_.ok()) { failure_ = std::move(result); }
  }

  cudaStream_t stream_;
  window_options options_;
  index_t num_buckets_ = 0;
  index_t newest_ = 0;
  index_t filled_ = 0;
  std::size_t cells_ = 0;              // of a bucket, with padding
  device_memory<std::uint32_t> pass_;  // [stripes, L, E], each stripe padded
  device_memory<std::uint32_t> gate_;  // one word
  device_memory<load_t> window_;       // [H, L, E], each bucket padded
  device_memory<load_t> upload_;       // [E]
  pinned_buffer mirror_;
  record_view view_;
  detail::folder folder_;
  mutable status failure_;
};

static_assert(load_recorder<device_recorder>);

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
