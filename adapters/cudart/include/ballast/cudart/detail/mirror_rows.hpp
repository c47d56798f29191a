// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_MIRROR_ROWS_HPP
#define BALLAST_CUDART_DETAIL_MIRROR_ROWS_HPP

#include <ballast/contract.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/status.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Rows of pinned memory that one stream copies from, taken one after the other and free again once it has.
///
/// Nobody waits for the stream: where it is so far behind that all rows are in use, there will be more.
class mirror_rows {
public:
  /// @param row_bytes  of each.
  /// @param at_once    rows that are allocated together, at first and whenever they are too few.
  explicit mirror_rows(std::size_t row_bytes, std::size_t at_once)
      : row_bytes_{row_bytes}, at_once_{std::max<std::size_t>(at_once, 1)} {}

  /// Allocate the first rows, if there are none.
  [[nodiscard]] status reserve() { return rows_.empty() ? grow() : status{}; }
  [[nodiscard]] std::size_t num_rows() const noexcept { return rows_.size(); }

  /// Take a row; it stays in use until the stream has reached the next `mark`.
  ///
  /// @param out  out: its first byte.
  /// @complexity O(1); once in n calls, for n rows, O(log n) queries of the driver, and an allocation where all
  ///             rows are in use.
  [[nodiscard]] status take(std::byte*& out) {
    if (free_.empty()) { free_read_ones(); }
    if (free_.empty()) {
      if (auto result = grow(); !result.ok()) { return result; }
    }
    used_.push_back(free_.back());
    free_.pop_back();
    used_.back()->is_marked = false;
    out = used_.back()->bytes;
    return {};
  }
  /// Say that what is enqueued on the stream so far is all that reads the rows that were taken so far.
  /// @pre a row was taken
  [[nodiscard]] status mark(cudaStream_t on) {
    BALLAST_ASSERT(!used_.empty(), "mirror_rows: marked before a row was taken");
    auto& newest = *used_.back();
    auto result = newest.read.record(on);
    newest.is_marked = result.ok();
    if (result.ok()) { marked_ = &newest.read; }
    return result;
  }
  /// Never give the memory back: the device still reads it.
  void abandon() noexcept {
    for (auto& chunk : chunks_) { chunk.abandon(); }
  }
  /// Recorded by the last `mark`. @pre `reserve` succeeded
  [[nodiscard]] event const& marked() const noexcept { return marked_ == nullptr ? rows_.front().read : *marked_; }

private:
  struct row {
    std::byte* bytes = nullptr;
    event read;
    bool is_marked = false;
  };

  /// The stream has come past the first mark that follows the row.
  [[nodiscard]] bool is_read(row* const* used) const {
    auto const* const end = used_.data() + used_.size();
    auto const* const mark = std::find_if(used, end, [](row const* one) { return one->is_marked; });
    return mark != end && (*mark)->read.query() == cudaSuccess;
  }
  void free_read_ones() {
    capture_guard const guard;
    std::size_t first = 0;
    for (auto last = used_.size(); first < last;) {
      auto const middle = first + (last - first) / 2;
      if (is_read(used_.data() + middle)) {
        first = middle + 1;
      } else {
        last = middle;
      }
    }
    auto const end = used_.begin() + static_cast<std::ptrdiff_t>(first);
    free_.insert(free_.end(), used_.begin(), end);
    used_.erase(used_.begin(), end);
  }
  [[nodiscard]] status grow() {
    capture_guard const guard;
    auto const num_rows = rows_.size() + at_once_;
    free_.reserve(num_rows);
    used_.reserve(num_rows);
    chunks_.emplace_back();
    auto result = chunks_.back().allocate(at_once_ * row_bytes_);
    std::vector<event> events(at_once_);
    for (auto& each : events) {
      if (result.ok()) { result = event::create(each); }
    }
    if (!result.ok()) {
      chunks_.pop_back();
      return result;
    }
    for (std::size_t i = 0; i < at_once_; ++i) {
      rows_.push_back({chunks_.back().bytes().data() + i * row_bytes_, std::move(events[i])});
      free_.push_back(&rows_.back());
    }
    return {};
  }

  std::size_t row_bytes_;
  std::size_t at_once_;
  std::vector<pinned_buffer> chunks_;
  std::deque<row> rows_;    // which stay where they are
  std::vector<row*> free_;  // not in use
  std::vector<row*> used_;  // in the order in which they were taken
  event const* marked_ = nullptr;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
