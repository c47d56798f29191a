// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_TABLE_WRITER_HPP
#define BALLAST_CUDART_TABLE_WRITER_HPP

#include <ballast/contract.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Element types of an engine's own tables.
template <class Id>
concept table_id = std::same_as<Id, std::int32_t> || std::same_as<Id, std::int64_t>;

/// Where a `table_writer` puts one layer's tables: pinned memory, from which they go to the device in stream order.
///
/// Elements are written while `write` runs, through the spans that the calls below return; all of them, because what
/// was there before is another layer's.
class table_sink {
public:
  /// Elements that follow each other.
  ///
  /// @param to     device memory of `count` elements.
  /// @return [count] what is to be written there
  /// @pre the room that `most_bytes` asked for suffices
  template <table_id Id>
  [[nodiscard]] std::span<Id> add(Id* to, std::size_t count) {
    auto const from = take<Id>(count);
    if (count > 0) { runs_.push_back({reinterpret_cast<std::byte*>(to), as_bytes_of(from), count * sizeof(Id)}); }
    return from;
  }
  /// The first elements of each row of a matrix.
  ///
  /// @param to     device memory, [rows, pitch].
  /// @param width  elements of each row, at most `pitch`.
  /// @return [rows, width] what is to be written there
  /// @pre as for `add`
  template <table_id Id>
  [[nodiscard]] std::span<Id> add_columns(Id* to, std::size_t rows, std::size_t pitch, std::size_t width) {
    BALLAST_EXPECTS(width <= pitch, "table_sink: columns beyond the end of a row");
    auto const from = take<Id>(rows * width);
    if (!from.empty()) { columns_.push_back({to, from.data(), rows, pitch * sizeof(Id), width * sizeof(Id)}); }
    return from;
  }
  /// Elements that are -1 from now on, unless columns of this layer say otherwise.
  template <table_id Id>
  void clear(Id* to, std::size_t count) {
    if (count > 0) { clears_.push_back({to, count * sizeof(Id)}); }
  }

  /// Bytes that a number of elements takes of the room. @complexity O(1)
  template <table_id Id>
  [[nodiscard]] static constexpr std::size_t bytes_for(std::size_t count) noexcept {
    return (count * sizeof(Id) + alignment - 1) / alignment * alignment;
  }

  // ---- for whoever owns the pinned memory ----

  /// Begin a layer. @param room  aligned to `alignment`
  void open(std::span<std::byte> room) {
    room_ = room;
    runs_.clear();
  }
  /// Hand the runs of this layer on. @param batch  takes copies by `add(to, from, bytes)`
  template <class Batch>
  void collect(Batch& batch) const {
    for (auto const& each : runs_) { batch.add(each.to, each.from, each.bytes); }
  }
  /// Enqueue the rest of all layers since the last call, and forget it.
  ///
  /// @return `cudart::category()`; some of it may be enqueued then
  /// @complexity a call of the driver for each `clear` and `add_columns`
  [[nodiscard]] status submit(cudaStream_t on) {
    status result;
    for (auto const& each : clears_) {
      if (result.ok()) { result = to_status(cudaMemsetAsync(each.to, 0xff, each.bytes, on), "cudaMemsetAsync"); }
    }
    for (auto const& each : columns_) {
      if (!result.ok()) { break; }
      result = to_status(cudaMemcpy2DAsync(each.to, each.pitch, each.from, each.width, each.width, each.rows,
                                           cudaMemcpyHostToDevice, on),
                         "cudaMemcpy2DAsync");
    }
    clears_.clear();
    columns_.clear();
    return result;
  }

  static constexpr std::size_t alignment = 16;  ///< bytes

private:
  struct run {
    std::byte* to;
    std::byte const* from;
    std::size_t bytes;
  };
  struct columns {
    void* to;
    void const* from;
    std::size_t rows;
    std::size_t pitch;  // bytes
    std::size_t width;  // bytes
  };
  struct cleared {
    void* to;
    std::size_t bytes;
  };

  template <class Id>
  [[nodiscard]] std::span<Id> take(std::size_t count) {
    auto const bytes = bytes_for<Id>(count);
    BALLAST_EXPECTS(bytes <= room_.size(), "table_sink: more than most_bytes asked for");
    std::span<Id> const taken{reinterpret_cast<Id*>(room_.data()), count};
    room_ = room_.subspan(bytes);
    return taken;
  }
  template <class Id>
  [[nodiscard]] static std::byte const* as_bytes_of(std::span<Id> elements) noexcept {
    return reinterpret_cast<std::byte const*>(elements.data());
  }

  std::span<std::byte> room_;
  std::vector<run> runs_;         // of this layer
  std::vector<columns> columns_;  // of layers that have not been submitted
  std::vector<cleared> clears_;   // the same
};

/// Writes what an engine keeps in device memory of its own about the placement in force, in its own form.
///
/// @par Semantics
/// - `begin(where, shape)` comes first, once for each store: it refuses arrays that cannot hold every placement of that
///   shape, because a commit cannot be refused any more.
/// - `most_bytes()` is what the `table_sink::bytes_for` of one layer's elements can come to, from then on.
/// - `write(where, in_force, layer, to)` gives a layer's tables, at construction of the store and at each commit of it.
///   `where` differs from the first one in live ranks alone. It waits for nothing.
template <class W>
concept table_writer = requires(W& writer, W const& same, topology const& where, placement_shape shape,
                                placement const& in_force, index_t layer, table_sink& to) {
  { writer.begin(where, shape) } -> std::same_as<status>;
  { same.most_bytes() } noexcept -> std::same_as<std::size_t>;
  { writer.write(where, in_force, layer, to) } -> std::same_as<void>;
};

/// Any `table_writer`, by reference.
/// @lifetime the writer must outlive it, and stay where it is
class table_writer_ref {
public:
  template <table_writer Writer>
  table_writer_ref(Writer& writer) noexcept  // NOLINT(google-explicit-constructor): options list writers as they are
      : writer_{std::addressof(writer)},
        begin_{[](void* self, topology const& where, placement_shape shape) {
          return static_cast<Writer*>(self)->begin(where, shape);
        }},
        most_bytes_{[](void const* self) { return static_cast<Writer const*>(self)->most_bytes(); }},
        write_{[](void* self, topology const& where, placement const& in_force, index_t layer, table_sink& to) {
          static_cast<Writer*>(self)->write(where, in_force, layer, to);
        }} {}

  [[nodiscard]] status begin(topology const& where, placement_shape shape) { return begin_(writer_, where, shape); }
  [[nodiscard]] std::size_t most_bytes() const noexcept { return most_bytes_(writer_); }
  void write(topology const& where, placement const& in_force, index_t layer, table_sink& to) {
    write_(writer_, where, in_force, layer, to);
  }

private:
  void* writer_;
  status (*begin_)(void*, topology const&, placement_shape);
  std::size_t (*most_bytes_)(void const*);
  void (*write_)(void*, topology const&, placement const&, index_t, table_sink&);
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
