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

/// Walk two segment lists of equal total size in step and hand each common run to `copy(to, from, bytes)`.
template <class Copy>
void for_each_run(std::span<segment const> from, std::span<segment const> to, Copy copy) {
  BALLAST_EXPECTS(total_size(from) == total_size(to), "for_each_run: sizes differ");
  std::size_t source = 0;
  std::size_t source_at = 0;
  for (auto const& target : to) {
    std::size_t target_at = 0;
    while (target_at < target.size) {
      auto const run = std::min(target.size - target_at, from[source].size - source_at);
      if (run > 0) { copy(target.data + target_at, from[source].data + source_at, run); }
      target_at += run;
      source_at += run;
      if (source_at == from[source].size) {
        ++source;
        source_at = 0;
      }
    }
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
