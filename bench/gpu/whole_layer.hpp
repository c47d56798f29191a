// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_GPU_WHOLE_LAYER_HPP
#define BALLAST_BENCH_GPU_WHOLE_LAYER_HPP

#include <ballast/migration/transfer_plan.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>

#include "copies_by_hand.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ballast_bench {

using ballast::index_t;

/// One layer of R ranks x S slots, before and after a rebalance.
struct changed_layer {
  /// @param before, after  [R * S] experts in slots
  changed_layer(index_t num_ranks, index_t slots, index_t num_experts, std::vector<index_t> const& before,
                std::vector<index_t> const& after)
      : where{{num_ranks, 1, slots, 0}} {
    ballast::placement_shape const shape{1, num_experts, num_ranks * slots};
    current.assign(shape, before).or_throw();
    next.assign(shape, after).or_throw();
    ballast::detail::transfer_scratch scratch;
    ballast::plan_layer_transfer(where, current, next, 0, scratch, transfer).or_throw();
  }
  ballast::topology where;
  ballast::placement current;
  ballast::placement next;
  ballast::layer_transfer transfer;
};

/// A layer in which every slot changes: its expert comes from another rank, spread over all others (over the rank
/// itself where there is but one).
[[nodiscard]] inline changed_layer whole_layer(index_t num_ranks, index_t slots) {
  std::vector<index_t> before(static_cast<std::size_t>(num_ranks * slots));
  std::vector<index_t> after(before.size());
  for (index_t rank = 0; rank < num_ranks; ++rank) {
    for (index_t slot = 0; slot < slots; ++slot) {
      auto const from = num_ranks == 1 ? 0 : (rank + 1 + slot % (num_ranks - 1)) % num_ranks;
      before[static_cast<std::size_t>(rank * slots + slot)] = rank * slots + slot;
      after[static_cast<std::size_t>(rank * slots + slot)] = from * slots + slot;
    }
  }
  return {num_ranks, slots, num_ranks * slots, before, after};
}

/// One rank's messages of a layer that changes, and the copies of its commit.
class layer_messages {
public:
  template <class Store>
  layer_messages(changed_layer const& layer, index_t rank, Store& store) {
    auto const& where = layer.where;
    auto const tensors = store.tensors(0);
    auto const& moves = layer.transfer.moves;
    segments_.reserve(2 * moves.size() * tensors.size());
    sources_.reserve(moves.size() * tensors.size());
    std::size_t staged = 0;
    for (auto const& move : moves) {
      if (where.rank_of_slot(move.target_slot) != rank) { continue; }
      for (auto const& tensor : tensors) { staged += align(tensor.bytes); }
    }
    store.reserve_staging(staged).or_throw();

    staged = 0;
    for (std::uint64_t tag = 0; tag < moves.size(); ++tag) {
      auto const& move = moves[static_cast<std::size_t>(tag)];
      auto const from = where.rank_of_slot(move.source_slot);
      auto const to = where.rank_of_slot(move.target_slot);
      auto const slot = static_cast<std::size_t>(move.source_slot - where.first_slot(from));
      if (from == rank) {
        auto const first = segments_.size();
        for (auto const& tensor : tensors) { segments_.push_back({tensor.base + slot * tensor.stride, tensor.bytes}); }
        sends_.push_back({to, move.round, tag, std::span{segments_}.subspan(first)});
      }
      if (to == rank) {
        auto const first = segments_.size();
        auto const first_source = sources_.size();
        auto const target = static_cast<std::size_t>(move.target_slot - where.first_slot(to));
        for (auto const& tensor : tensors) {
          segments_.push_back({store.staging() + staged, tensor.bytes});
          sources_.push_back({tensor.region, slot * tensor.stride, tensor.bytes});
          commits_.push_back({tensor.base + target * tensor.stride, store.staging() + staged, tensor.bytes, 0});
          staged += align(tensor.bytes);
        }
        receives_.push_back(
            {from, move.round, tag, std::span{segments_}.subspan(first), std::span{sources_}.subspan(first_source)});
      }
    }
  }
  layer_messages(layer_messages const&) = delete;
  layer_messages& operator=(layer_messages const&) = delete;

  /// Give every message a tag that was never used before.
  void renew_tags(std::uint64_t by) {
    for (auto& message : sends_) { message.tag += by; }
    for (auto& message : receives_) { message.tag += by; }
  }
  [[nodiscard]] std::span<ballast::outgoing_message const> sends() const noexcept { return sends_; }
  [[nodiscard]] std::span<ballast::incoming_message const> receives() const noexcept { return receives_; }
  [[nodiscard]] std::span<ballast::byte_copy const> commits() const noexcept { return commits_; }

private:
  [[nodiscard]] static std::size_t align(std::size_t bytes) noexcept { return (bytes + 255) / 256 * 256; }

  std::vector<ballast::segment> segments_;
  std::vector<ballast::remote_segment> sources_;
  std::vector<ballast::outgoing_message> sends_;
  std::vector<ballast::incoming_message> receives_;
  std::vector<ballast::byte_copy> commits_;
};

/// What a rank receives, read out of its peers' memory by hand.
template <class Directory>
[[nodiscard]] copies_by_hand pulls_by_hand(Directory const& directory, layer_messages const& messages) {
  copies_by_hand pulls;
  for (auto const& receive : messages.receives()) {
    for (std::size_t i = 0; i < receive.segments.size(); ++i) {
      auto const& source = receive.source[i];
      pulls.add(receive.segments[i].data, directory.region(receive.peer, source.region).data + source.offset,
                source.size);
    }
  }
  return pulls;
}

}  // namespace ballast_bench

#endif
