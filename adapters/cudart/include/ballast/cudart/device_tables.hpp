// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DEVICE_TABLES_HPP
#define BALLAST_CUDART_DEVICE_TABLES_HPP

#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/detail/device_reader.hpp>
#include <ballast/cudart/detail/mirror_rows.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/table_writer.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/parts.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// A copy of one rank's dispatch tables in device memory, and the map of its slots; and what an engine keeps in a form
/// of its own, written with them. Addresses never change.
///
/// @tparam Tables  `dispatch_tables` or `invariant_dispatch_tables`: the truth, of which this is a copy.
/// @tparam Copies  what copies rows from pinned host memory: `copy_batch` or `kernel_copies`.
/// @threads one thread at a time; the rank's device is current there.
template <class Tables = dispatch_tables, class Copies = copy_batch>
class device_tables {
public:
  /// @param tables  of this rank; rows are published here from now on.
  /// @param where   as the tables were made for.
  /// @param rank    whose slots `local_map()` describes.
  /// @param others  of the engine, in its own memory.
  /// @throws std::system_error as their `begin`, in `cudart::category()`, or with `errc::deadline_exceeded` where the
  ///         device does not come to clear the tables within ten seconds for each
  device_tables(Tables tables, topology const& where, index_t rank, std::vector<table_writer_ref> others = {})
      : host_{std::move(tables)},
        first_slot_{where.first_slot(rank)},
        slots_{where.slots_per_rank()},
        others_{begun(std::move(others), where, host_.shape())},
        mirror_{row_bytes(), 2 * static_cast<std::size_t>(host_.shape().num_layers)} {
    auto const layers = static_cast<std::size_t>(host_.shape().num_layers);
    mirror_.reserve().or_throw();
    ranges_ = device_memory<replica_range>::create(layers * row_ranges());
    entries_ = device_memory<dispatch_entry>::create(layers * row_entries());
    local_map_ = device_memory<index_t>::create(layers * row_map());
  }

  /// Rebuild one layer's tables and enqueue their copy; captured graphs that run behind it read the new rows.
  ///
  /// @param where  as at construction but for the live ranks.
  /// @param from   [L, P] placement in force.
  /// @param layer  in [0, L).
  /// @param on     the engine's compute stream, always the same.
  /// @return `errc::invalid_placement` for a layer or a placement that does not fit, nothing changes then; a failure of
  ///         the device.
  /// @complexity as `dispatch_tables::publish`, and one call or launch. Never waits, however far the stream is behind:
  ///             it allocates where it has not even reached the last 2 L publications.
  [[nodiscard]] status publish(topology const& where, placement const& from, index_t layer, cudaStream_t on) {
    if (auto result = collect(where, from, layer, batch_); !result.ok()) { return result; }
    if (auto result = batch_.submit(on); !result.ok()) { return result; }
    return mark_published(on);
  }

  /// The first half of `publish`: rebuild the tables and add their copies to a batch of the caller's, who submits it on
  /// the compute stream and then calls `mark_published`. `host()` tells of the new row from here on.
  ///
  /// @param into  the copies; they read pinned memory of this object.
  /// @return as `publish`.
  /// @complexity as `dispatch_tables::publish`
  [[nodiscard]] status collect(topology const& where, placement const& from, index_t layer, Copies& into) {
    if (auto result = check(where, from, layer); !result.ok()) { return result; }
    std::byte* mirror = nullptr;
    if (auto result = mirror_.take(mirror); !result.ok()) { return result; }
    auto* const row = mirror;
    host_.publish(where, from, layer);
    auto const at = static_cast<std::size_t>(layer);
    auto const ranges = host_.ranges().subspan(at * row_ranges(), row_ranges());
    auto const entries = host_.entries().subspan(at * row_entries(), row_entries());
    auto const map = from.logical_of_slot(layer).subspan(static_cast<std::size_t>(first_slot_), row_map());
    copy_row(ranges, ranges_.data() + at * row_ranges(), mirror, into);
    copy_row(entries, entries_.data() + at * row_entries(), mirror, into);
    copy_row(map, local_map_.data() + at * row_map(), mirror, into);
    if (!others_.empty()) {
      sink_.open({row + begin_of_others(), most_bytes(others_)});
      for (auto& other : others_) { other.write(where, from, layer, sink_); }
      sink_.collect(into);
    }
    return {};
  }
  /// The second half, behind the caller's batch or batches: what of an engine's own tables no batch can take, and the
  /// end of the publication.
  ///
  /// @param on  the engine's compute stream.
  /// @return `cudart::category()`
  /// @pre `collect` was called
  [[nodiscard]] status mark_published(cudaStream_t on) {
    auto result = sink_.submit(on);
    return result.ok() ? mirror_.mark(on) : std::move(result);
  }
  /// Recorded behind the last publication.
  [[nodiscard]] event const& published() const noexcept { return mirror_.marked(); }
  /// Rows of pinned memory, each with the tables of one publication on its way to the device.
  [[nodiscard]] std::size_t num_mirrors() const noexcept { return mirror_.num_rows(); }

  /// Take costs of first use out of the first publication. @return `cudart::category()`
  [[nodiscard]] status warm_up() { return ballast::detail::warm_up(batch_); }
  /// Wait until everything that was published is in force, until a deadline.
  ///
  /// @param deadline  on the monotonic clock of the host, nanoseconds.
  /// @return `errc::deadline_exceeded`, `cudart::category()`
  [[nodiscard]] status await_published(nanoseconds_t deadline) const {
    return detail::await_event(published(), deadline, "device_tables: publish");
  }
  /// Leave the tables in place for the life of the process: a device that does not answer still reads them.
  void abandon() noexcept {
    ranges_.abandon();
    entries_.abandon();
    local_map_.abandon();
    mirror_.abandon();
  }

  /// The tables on the host: rows as they were published last, in force on the device or on their way there.
  [[nodiscard]] Tables const& host() const noexcept { return host_; }
  /// What kernels read; stays valid for the life of the tables, in captured graphs too.
  [[nodiscard]] dispatch_view view() const noexcept {
    auto result = host_.view();
    result.ranges = ranges_.data();
    result.entries = entries_.data();
    return result;
  }
  /// [L, S] logical expert in each slot of this rank, in device memory.
  [[nodiscard]] index_t const* local_map() const noexcept { return local_map_.data(); }

private:
  [[nodiscard]] std::size_t row_ranges() const noexcept { return static_cast<std::size_t>(host_.shape().num_logical); }
  [[nodiscard]] std::size_t row_entries() const noexcept { return static_cast<std::size_t>(host_.shape().num_slots); }
  [[nodiscard]] std::size_t row_map() const noexcept { return static_cast<std::size_t>(slots_); }
  [[nodiscard]] std::size_t own_row_bytes() const noexcept {
    return row_ranges() * sizeof(replica_range) + row_entries() * sizeof(dispatch_entry) + row_map() * sizeof(index_t);
  }
  /// Where the others' part of a row of pinned memory begins.
  [[nodiscard]] std::size_t begin_of_others() const noexcept {
    constexpr auto alignment = table_sink::alignment;
    return (own_row_bytes() + alignment - 1) / alignment * alignment;
  }
  [[nodiscard]] std::size_t row_bytes() const noexcept { return begin_of_others() + most_bytes(others_); }
  [[nodiscard]] static std::size_t most_bytes(std::vector<table_writer_ref> const& others) noexcept {
    std::size_t sum = 0;
    for (auto const& other : others) { sum += other.most_bytes(); }
    return sum;
  }
  [[nodiscard]] static std::vector<table_writer_ref> begun(std::vector<table_writer_ref> others, topology const& where,
                                                           placement_shape shape) {
    for (auto& other : others) { other.begin(where, shape).or_throw(); }
    return others;
  }

  [[nodiscard]] status check(topology const& where, placement const& from, index_t layer) const {
    auto const shape = host_.shape();
    if (layer < 0 || layer >= shape.num_layers) {
      return {errc::invalid_placement,
              ballast::detail::concat("device_tables: layer ", layer, " is not in [0, ", shape.num_layers, ")")};
    }
    if (from.shape() == shape && where.num_slots() == shape.num_slots) { return {}; }
    return {
        errc::invalid_placement,
        ballast::detail::concat("device_tables: a placement of ", ballast::detail::shape_text(from.shape()), " on ",
                                where.num_slots(), " slots, the tables are for ", ballast::detail::shape_text(shape))};
  }

  template <class T>
  static void copy_row(std::span<T const> from, T* to, std::byte*& mirror, Copies& into) {
    auto const bytes = std::as_bytes(from);
    std::copy(bytes.begin(), bytes.end(), mirror);
    into.add(reinterpret_cast<std::byte*>(to), mirror, bytes.size());
    mirror += bytes.size();
  }

  Tables host_;
  index_t first_slot_;
  index_t slots_;
  std::vector<table_writer_ref> others_;
  table_sink sink_;
  // The pinned memory outlives the device's, which is not given back before the stream is done with both.
  detail::mirror_rows mirror_;  // a row has one layer's part of all three
  device_memory<replica_range> ranges_;
  device_memory<dispatch_entry> entries_;
  device_memory<index_t> local_map_;
  Copies batch_;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
