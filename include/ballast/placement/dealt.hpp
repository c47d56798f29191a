// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_DEALT_HPP
#define BALLAST_PLACEMENT_DEALT_HPP

#include <ballast/detail/text.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Deals some experts to some ranks like cards.
class dealer {
public:
  /// @param map  out: [P] row; the slots of the ranks are filled in.
  dealer(topology const& where, std::span<index_t const> ranks, std::span<index_t> map)
      : where_{where}, ranks_{ranks}, map_{map}, filled_(ranks.size(), 0) {}

  void deal(index_t first_expert, index_t num_experts) {
    std::vector<index_t> copies(static_cast<std::size_t>(num_experts), 0);
    std::size_t table = 0;
    for (index_t e = 0; e < num_experts; ++e) { give(next_with_room(table), first_expert + e, copies, e); }
    auto const spare = static_cast<std::int64_t>(ranks_.size()) * where_.slots_per_rank() - num_experts;
    for (std::int64_t i = 0; i < spare; ++i) {
      auto const at = next_with_room(table);
      auto const e = rarest_that_is_new(at, first_expert, copies, static_cast<index_t>(i % num_experts));
      give(at, first_expert + e, copies, e);
    }
  }

private:
  /// Of the experts that a rank does not hold, one with the fewest copies, the next from `from` on; where it holds all
  /// of them, of all.
  [[nodiscard]] index_t rarest_that_is_new(std::size_t at, index_t first_expert, std::span<index_t const> copies,
                                           index_t from) const {
    auto const held = slots_of(at).first(static_cast<std::size_t>(filled_[at]));
    auto const size = static_cast<index_t>(copies.size());
    auto best = from % size;
    bool best_is_new = false;
    for (index_t i = 0; i < size; ++i) {
      auto const e = (from + i) % size;
      bool const is_new = std::find(held.begin(), held.end(), first_expert + e) == held.end();
      bool const is_rarer = copies[static_cast<std::size_t>(e)] < copies[static_cast<std::size_t>(best)];
      if (is_new != best_is_new ? is_new : is_rarer) {
        best = e;
        best_is_new = is_new;
      }
    }
    return best;
  }
  [[nodiscard]] std::size_t next_with_room(std::size_t& table) const {
    auto const take = [this, &table] { return table++ % ranks_.size(); };
    auto at = take();
    while (filled_[at] == where_.slots_per_rank()) { at = take(); }
    return at;
  }
  void give(std::size_t at, index_t expert, std::vector<index_t>& copies, index_t e) {
    slots_of(at)[static_cast<std::size_t>(filled_[at]++)] = expert;
    ++copies[static_cast<std::size_t>(e)];
  }
  [[nodiscard]] std::span<index_t> slots_of(std::size_t at) const {
    return map_.subspan(static_cast<std::size_t>(where_.first_slot(ranks_[at])),
                        static_cast<std::size_t>(where_.slots_per_rank()));
  }

  topology const& where_;
  std::span<index_t const> ranks_;
  std::span<index_t> map_;
  std::vector<index_t> filled_;
};

}  // namespace detail

/// A placement to start from where no loads are known: experts are dealt to the ranks like cards, expert e to rank
/// e mod R. Experts that are neighbours in id get hot together, so this is balanced better than blocks of neighbours
/// (docs/incremental.md), and costs an engine that loads its weights anyway nothing.
///
/// Spare slots go on with expert 0, on ranks that do not hold it yet; an expert is twice on a rank only where a rank
/// has more slots than there are experts.
///
/// @param shape       [L, E, P]; every layer is the same.
/// @param where       R ranks, N nodes, R * S = P. Experts are dealt to live ranks; slots of dead ones hold p mod E.
/// @param num_groups  routing groups of consecutive experts. Where the nodes divide them, node n gets the groups of
///                    [n G / N, (n + 1) G / N) and deals them among its own ranks.
/// @complexity O(P E)
/// @throws std::system_error for sizes that hold no placement, or more experts than the live ranks have slots
/// @determinism the result depends on the arguments alone
[[nodiscard]] inline placement dealt_placement(placement_shape shape, topology const& where, index_t num_groups = 1) {
  auto result = trivial_placement(shape);
  auto const refuse = [](auto const&... parts) {
    status{errc::invalid_topology, detail::concat("dealt_placement: ", parts...)}.or_throw();
  };
  if (shape.num_slots != where.num_slots()) {
    refuse("the shape has ", shape.num_slots, " slots, the topology ", where.num_slots());
  }
  if (num_groups < 1 || shape.num_logical % num_groups != 0) {
    refuse("num_groups is ", num_groups, ", must divide ", shape.num_logical, " experts");
  }
  if (shape.num_layers == 0) { return result; }
  auto const ranks = detail::live_ranks(where);
  bool const by_node = num_groups > 1 && num_groups % where.num_nodes() == 0;
  auto const tables = by_node ? where.num_nodes() : index_t{1};
  auto const experts = shape.num_logical / tables;
  std::vector<index_t> map(result.logical_of_slot(0).begin(), result.logical_of_slot(0).end());
  for (index_t table = 0; table < tables; ++table) {
    std::vector<index_t> at_table;
    for (auto const rank : ranks) {
      if (!by_node || where.node_of_rank(rank) == table) { at_table.push_back(rank); }
    }
    if (static_cast<std::int64_t>(at_table.size()) * where.slots_per_rank() < experts) {
      refuse(at_table.size(), " live ranks x ", where.slots_per_rank(), " slots cannot hold ", experts, " experts");
    }
    detail::dealer{where, at_table, map}.deal(table * experts, experts);
  }
  for (index_t layer = 0; layer < shape.num_layers; ++layer) {
    std::copy(map.begin(), map.end(), result.edit(layer).logical_of_slot.begin());
    result.index_replicas(layer);
  }
  return result;
}

BALLAST_END_NAMESPACE

#endif
