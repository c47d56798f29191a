// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_RANDOM_BATCH_HPP
#define BALLAST_TESTS_SUPPORT_RANDOM_BATCH_HPP

#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include "support/group_runner.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace ballast_test {

/// Part of a message: `size` bytes at `offset` of a region (the sender's) or of the receiver's target memory.
struct piece {
  std::uint32_t region = 0;
  std::size_t offset = 0;
  std::size_t size = 0;
};

struct batch_message {
  ballast::index_t from = 0;
  ballast::index_t to = 0;
  ballast::index_t round = 0;
  std::uint64_t tag = 0;
  std::vector<piece> source;
  std::vector<piece> target;
};

struct batch_limits {
  int max_messages = 12;
  std::size_t max_bytes = 20'000;
  std::size_t max_pieces = 6;
};

inline constexpr std::uint32_t num_source_regions = 2;

/// Byte `offset` of a region of a rank: every rank can tell what another one's memory holds.
[[nodiscard]] constexpr std::byte source_byte(ballast::index_t rank, std::uint32_t region, std::size_t offset) {
  auto x = (static_cast<std::uint64_t>(rank) << 40) ^ (static_cast<std::uint64_t>(region) << 32) ^ offset;
  x *= 0x9e3779b97f4a7c15u;
  return static_cast<std::byte>(x >> 56);
}

/// Cut `total` bytes into at most `max_pieces` runs, some of them empty.
[[nodiscard]] inline std::vector<std::size_t> cut(std::size_t total, std::size_t max_pieces, dice& random) {
  std::vector<std::size_t> marks{0, total};
  for (auto more = random.below(max_pieces); more > 0; --more) { marks.push_back(random.below(total + 1)); }
  std::sort(marks.begin(), marks.end());
  std::vector<std::size_t> sizes;
  for (std::size_t i = 1; i < marks.size(); ++i) { sizes.push_back(marks[i] - marks[i - 1]); }
  return sizes;
}

/// Messages between random ranks, in rounds in which each rank sends at most one and receives at most one. Sources lie
/// anywhere in regions of `region_bytes`; targets do not overlap and leave a gap of one byte.
[[nodiscard]] inline std::vector<batch_message> random_batch(ballast::index_t num_ranks, std::size_t region_bytes,
                                                             std::uint64_t first_tag, batch_limits limits,
                                                             dice& random) {
  std::vector<batch_message> batch;
  if (num_ranks < 2) { return batch; }
  auto const count = random.below(limits.max_messages + 1);
  auto const ranks = static_cast<std::size_t>(num_ranks);
  std::vector<std::vector<unsigned char>> busy;  // [round][sender or R + receiver]
  std::vector<std::size_t> target_end(ranks, 1);
  for (int m = 0; m < count; ++m) {
    batch_message message;
    message.from = random.below(num_ranks);
    message.to = (message.from + 1 + random.below(num_ranks - 1)) % num_ranks;
    message.tag = first_tag + static_cast<std::uint64_t>(m);
    std::size_t round = 0;
    for (;; ++round) {
      if (round == busy.size()) { busy.emplace_back(2 * ranks); }
      auto& sends = busy[round][static_cast<std::size_t>(message.from)];
      auto& receives = busy[round][ranks + static_cast<std::size_t>(message.to)];
      if (sends == 0 && receives == 0) {
        sends = receives = 1;
        break;
      }
    }
    message.round = static_cast<ballast::index_t>(round);
    auto const bytes = random.below(4) == 0 ? random.below(std::size_t{9}) : random.below(limits.max_bytes + 1);
    for (auto const size : cut(bytes, limits.max_pieces, random)) {
      message.source.push_back({random.below(num_source_regions), random.below(region_bytes - size + 1), size});
    }
    auto& end = target_end[static_cast<std::size_t>(message.to)];
    for (auto const size : cut(bytes, limits.max_pieces, random)) {
      message.target.push_back({0, end, size});
      end += size + 1;
    }
    batch.push_back(std::move(message));
  }
  std::sort(batch.begin(), batch.end(),
            [](auto const& a, auto const& b) { return a.round != b.round ? a.round < b.round : a.tag < b.tag; });
  return batch;
}

/// What one rank does in a batch, in the form a transport takes.
class batch_view {
public:
  /// @param regions  this rank's source regions, exposed from number `first_region` on; `target` is where it receives.
  batch_view(std::vector<batch_message> const& batch, ballast::index_t rank,
             std::vector<ballast::segment> const& regions, std::byte* target, std::uint32_t first_region = 0) {
    for (auto const& message : batch) {
      auto& lists = lists_.emplace_back();
      if (message.from == rank) {
        for (auto const& part : message.source) {
          lists.local.push_back({regions[part.region].data + part.offset, part.size});
        }
      } else if (message.to == rank) {
        for (auto const& part : message.target) { lists.local.push_back({target + part.offset, part.size}); }
        for (auto const& part : message.source) {
          lists.remote.push_back({first_region + part.region, part.offset, part.size});
        }
      }
    }
    for (std::size_t m = 0; m < batch.size(); ++m) {
      auto const& message = batch[m];
      if (message.from == rank) { sends.push_back({message.to, message.round, message.tag, lists_[m].local}); }
      if (message.to == rank) {
        receives.push_back({message.from, message.round, message.tag, lists_[m].local, lists_[m].remote});
      }
    }
  }
  batch_view(batch_view const&) = delete;
  batch_view& operator=(batch_view const&) = delete;

  std::vector<ballast::outgoing_message> sends;
  std::vector<ballast::incoming_message> receives;

private:
  struct segment_lists {
    std::vector<ballast::segment> local;
    std::vector<ballast::remote_segment> remote;
  };
  std::vector<segment_lists> lists_;
};

}  // namespace ballast_test

#endif
