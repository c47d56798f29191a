// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TOPOLOGY_HPP
#define BALLAST_TOPOLOGY_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/reset_by_move.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Sizes of an expert-parallel group.
struct topology_shape {
  index_t num_ranks = 1;       ///< R, GPUs of the group
  index_t num_nodes = 1;       ///< N, fast-interconnect domains; consecutive ranks share one
  index_t slots_per_rank = 1;  ///< S, slots of each rank that ballast may fill
  index_t reserved_slots = 0;  ///< F, trailing slots of each rank that never move (a fused shared expert)

  bool operator==(topology_shape const&) const = default;
};

/// Where the slots are: which rank and node each belongs to, and which ranks are alive.
///
/// A slot index p in [0, P) counts the movable slots, rank by rank. `physical_id(p)` is the number that an all-to-all
/// library sees; the two differ only when there are reserved slots.
class topology {
public:
  /// One rank, one node, one slot. So is what was moved from.
  topology() = default;

  /// @throws std::system_error (`errc::invalid_topology`) for a shape that `validate` refuses
  explicit topology(topology_shape shape) : shape_{shape} {
    validate(shape).or_throw();
    live_.assign(static_cast<std::size_t>(shape.num_ranks), true);
  }

  /// Say whether the sizes fit together, naming the first one that does not.
  [[nodiscard]] static status validate(topology_shape const& shape) {
    auto const refuse = [](auto const&... parts) {
      return status{errc::invalid_topology, detail::concat("topology: ", parts...)};
    };
    if (shape.num_ranks < 1) { return refuse("number of ranks is ", shape.num_ranks, ", must be at least 1"); }
    if (shape.num_nodes < 1) { return refuse("number of nodes is ", shape.num_nodes, ", must be at least 1"); }
    if (shape.slots_per_rank < 1) { return refuse("slots per rank is ", shape.slots_per_rank, ", must be at least 1"); }
    if (shape.reserved_slots < 0) {
      return refuse("reserved slots is ", shape.reserved_slots, ", must not be negative");
    }
    if (shape.num_ranks % shape.num_nodes != 0) {
      return refuse(shape.num_ranks, " ranks cannot be divided over ", shape.num_nodes, " nodes");
    }
    auto const physical = static_cast<std::int64_t>(shape.num_ranks) *
                          (static_cast<std::int64_t>(shape.slots_per_rank) + shape.reserved_slots);
    if (physical > std::numeric_limits<index_t>::max()) {
      return refuse(physical, " physical experts do not fit an id");
    }
    return {};
  }

  [[nodiscard]] topology_shape const& shape() const noexcept { return *shape_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return shape_->num_ranks; }
  [[nodiscard]] index_t num_nodes() const noexcept { return shape_->num_nodes; }
  [[nodiscard]] index_t ranks_per_node() const noexcept { return shape_->num_ranks / shape_->num_nodes; }
  [[nodiscard]] index_t slots_per_rank() const noexcept { return shape_->slots_per_rank; }
  [[nodiscard]] index_t reserved_slots() const noexcept { return shape_->reserved_slots; }
  /// P, movable slots of the whole group.
  [[nodiscard]] index_t num_slots() const noexcept { return shape_->num_ranks * shape_->slots_per_rank; }
  /// Ids an all-to-all library uses: R * (S + F).
  [[nodiscard]] index_t num_physical_ids() const noexcept {
    return shape_->num_ranks * (shape_->slots_per_rank + shape_->reserved_slots);
  }

  [[nodiscard]] index_t rank_of_slot(index_t slot) const noexcept { return slot / shape_->slots_per_rank; }
  [[nodiscard]] index_t node_of_rank(index_t rank) const noexcept { return rank / ranks_per_node(); }
  [[nodiscard]] index_t node_of_slot(index_t slot) const noexcept { return node_of_rank(rank_of_slot(slot)); }
  /// First slot index of a rank; its slots are the S from there on.
  [[nodiscard]] index_t first_slot(index_t rank) const noexcept { return rank * shape_->slots_per_rank; }
  /// Number of slot `slot` in the all-to-all's numbering, rank * (S + F) + slot in the rank.
  [[nodiscard]] index_t physical_id(index_t slot) const noexcept {
    return slot + rank_of_slot(slot) * shape_->reserved_slots;
  }

  [[nodiscard]] bool is_live(index_t rank) const {
    BALLAST_EXPECTS_BELOW(rank, num_ranks(), "topology: rank");
    return live()[static_cast<std::size_t>(rank)] != 0;
  }
  /// Take a rank out of service, or back in. Plans never use a dead rank.
  /// @throws std::bad_alloc for a default topology only
  void set_live(index_t rank, bool live) {
    BALLAST_EXPECTS_BELOW(rank, num_ranks(), "topology: rank");
    if (live_.empty()) { live_.assign(1, 1); }
    live_[static_cast<std::size_t>(rank)] = live ? 1 : 0;
  }
  [[nodiscard]] index_t num_live_ranks() const noexcept {
    auto const ranks = live();
    return static_cast<index_t>(
        std::count_if(ranks.begin(), ranks.end(), [](unsigned char alive) { return alive != 0; }));
  }

  /// Mix shape and live mask into what the ranks compare.
  void describe(digest& out) const noexcept {
    out.add(shape_->num_ranks).add(shape_->num_nodes).add(shape_->slots_per_rank).add(shape_->reserved_slots);
    out.add(live());
  }

  [[nodiscard]] bool operator==(topology const& other) const noexcept {
    return shape() == other.shape() && std::ranges::equal(live(), other.live());
  }

private:
  static constexpr unsigned char one_live_rank[] = {1};

  /// [R] not 0 where the rank is alive.
  [[nodiscard]] std::span<unsigned char const> live() const noexcept {
    return live_.empty() ? std::span<unsigned char const>{one_live_rank} : std::span<unsigned char const>{live_};
  }

  detail::reset_by_move<topology_shape> shape_;
  std::vector<unsigned char> live_;  // [R], or empty: the only rank is alive
};

BALLAST_END_NAMESPACE

#endif
