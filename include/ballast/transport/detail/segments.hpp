// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TRANSPORT_DETAIL_SEGMENTS_HPP
#define BALLAST_TRANSPORT_DETAIL_SEGMENTS_HPP

#include <ballast/contract.hpp>
#include <ballast/transport/transport.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>

BALLAST_BEGIN_NAMESPACE
namespace detail {

template <class Segment>
[[nodiscard]] std::size_t total_size(std::span<Segment const> segments) noexcept {
  std::size_t total = 0;
  for (auto const& part : segments) { total += part.size; }
  return total;
}

/// A place in a list of segments, of this rank or of a peer, which moves on run by run. It knows no list: each call is
/// given the same one.
struct segment_cursor {
  std::size_t part = 0;  ///< index of the segment
  std::size_t at = 0;    ///< bytes from its start

  /// Bytes from here to the end of their segment; 0 at the end of the list. Steps over segments that are empty or done.
  template <class Segment>
  [[nodiscard]] std::size_t run(std::span<Segment const> segments) noexcept {
    for (; part < segments.size(); ++part, at = 0) {
      if (at < segments[part].size) { return segments[part].size - at; }
    }
    return 0;
  }
  /// Visit the next `bytes` bytes, or what is left of the list, as `use(part, at, run)` for each run.
  template <class Segment, class Use>
  void advance(std::span<Segment const> segments, std::size_t bytes, Use use) {
    while (auto const next = std::min(run(segments), bytes)) {
      use(segments[part], at, next);
      at += next;
      bytes -= next;
    }
  }
  template <class Segment>
  void skip(std::span<Segment const> segments, std::size_t bytes) noexcept {
    advance(segments, bytes, [](Segment const&, std::size_t, std::size_t) {});
  }
};

/// Walk two segment lists of equal total size in step and hand each common run to `copy(to, from, bytes)`.
template <class Copy>
void for_each_run(std::span<segment const> from, std::span<segment const> to, Copy copy) {
  BALLAST_EXPECTS(total_size(from) == total_size(to), "for_each_run: sizes differ");
  segment_cursor source;
  for (auto const& target : to) {
    auto* next = target.data;
    source.advance(from, target.size, [&copy, &next](segment const& part, std::size_t at, std::size_t run) {
      copy(next, part.data + at, run);
      next += run;
    });
  }
}

/// Copy host bytes from one segment list to another of equal total size.
inline void copy_segments(std::span<segment const> from, std::span<segment const> to) {
  for_each_run(from, to, [](std::byte* target, std::byte const* source, std::size_t bytes) {
    std::memcpy(target, source, bytes);
  });
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
