// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_SURVIVORS_HPP
#define BALLAST_PLACEMENT_SURVIVORS_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

// What is left when ranks die: pure functions of the placement in force and of which ranks live, so that all survivors
// come to the same answers without a word.

/// An expert of one layer.
struct layer_expert {
  index_t layer = 0;
  index_t expert = 0;

  bool operator==(layer_expert const&) const = default;
};

/// An expert that is lost with one rank.
struct sole_holder {
  index_t layer = 0;
  index_t expert = 0;
  index_t rank = 0;  ///< the only live one that holds it, in one slot or several

  bool operator==(sole_holder const&) const = default;
};

/// A slot whose weights have to come from where the model was loaded from.
struct slot_reload {
  index_t layer = 0;
  index_t slot = 0;  ///< in [0, P), on a live rank
  index_t expert = 0;

  bool operator==(slot_reload const&) const = default;
};

namespace detail {

[[nodiscard]] inline index_t count_live_replicas(topology const& where, placement const& in, index_t layer,
                                                 index_t expert) {
  auto const replicas = in.replicas_of(layer, expert);
  return static_cast<index_t>(std::count_if(
      replicas.begin(), replicas.end(), [&where](index_t slot) { return where.is_live(where.rank_of_slot(slot)); }));
}

/// Gives the lost experts of a placement live slots, layer by layer.
class lost_expert_replacer {
public:
  lost_expert_replacer(topology const& where, placement& in_out) : where_{where}, in_out_{in_out} {
    copies_.resize(static_cast<std::size_t>(in_out.num_logical()));
  }

  [[nodiscard]] status replace(index_t layer, std::vector<slot_reload>& reloads) {
    for (index_t expert = 0; expert < in_out_.num_logical(); ++expert) {
      copies(expert) = count_live_replicas(where_, in_out_, layer, expert);
    }
    auto const before = reloads.size();
    auto const map = in_out_.edit(layer).logical_of_slot;
    for (index_t expert = 0; expert < in_out_.num_logical(); ++expert) {
      if (copies(expert) > 0) { continue; }
      auto const slot = dispensable_slot(map);
      if (slot < 0) {
        return {errc::missing_expert,
                concat("survivors: layer ", layer, ": no live rank holds expert ", expert, ", and each of the ",
                       where_.num_live_ranks() * where_.slots_per_rank(), " live slots holds the last of its expert")};
      }
      auto& held = map[static_cast<std::size_t>(slot)];
      --copies(held);
      held = expert;
      ++copies(expert);
      reloads.push_back({layer, slot, expert});
    }
    // Layers that lose nothing keep their order of replicas.
    if (reloads.size() > before) { in_out_.index_replicas(layer); }
    return {};
  }

private:
  [[nodiscard]] index_t& copies(index_t expert) { return copies_[static_cast<std::size_t>(expert)]; }

  /// The first live slot of those whose expert has the most live replicas, two at least; -1 if there is none.
  [[nodiscard]] index_t dispensable_slot(std::span<index_t const> map) {
    index_t best = -1;
    index_t most = 1;
    for (index_t slot = 0; slot < where_.num_slots(); ++slot) {
      auto const count = copies(map[static_cast<std::size_t>(slot)]);
      if (count <= most || !where_.is_live(where_.rank_of_slot(slot))) { continue; }
      best = slot;
      most = count;
    }
    return best;
  }

  topology const& where_;
  placement& in_out_;
  std::vector<index_t> copies_;  // [E] live ones
};

}  // namespace detail

/// List the experts that no live rank holds any more, by layer, then by expert.
///
/// @param where  R ranks of S slots, and which are alive.
/// @param in     [L, P], valid.
/// @pre `in` has the topology's P slots
/// @complexity O(L P)
/// @throws std::bad_alloc
/// @determinism the result depends on the arguments alone.
[[nodiscard]] inline std::vector<layer_expert> lost_experts(topology const& where, placement const& in) {
  BALLAST_EXPECTS(in.num_slots() == where.num_slots(), "lost_experts: placement and topology differ in slots");
  std::vector<layer_expert> result;
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      if (detail::count_live_replicas(where, in, layer, expert) == 0) { result.push_back({layer, expert}); }
    }
  }
  return result;
}

/// List the experts that only one live rank holds, by layer, then by expert: what would be lost with which rank.
///
/// @param where  R ranks of S slots, and which are alive.
/// @param in     [L, P], valid.
/// @pre `in` has the topology's P slots
/// @complexity O(L P)
/// @throws std::bad_alloc
/// @determinism the result depends on the arguments alone.
[[nodiscard]] inline std::vector<sole_holder> sole_holders(topology const& where, placement const& in) {
  BALLAST_EXPECTS(in.num_slots() == where.num_slots(), "sole_holders: placement and topology differ in slots");
  std::vector<sole_holder> result;
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      index_t holder = -1;
      bool is_sole = true;
      for (auto const slot : in.replicas_of(layer, expert)) {
        auto const rank = where.rank_of_slot(slot);
        if (!where.is_live(rank) || rank == holder) { continue; }
        is_sole = holder < 0;
        holder = rank;
        if (!is_sole) { break; }
      }
      if (holder >= 0 && is_sole) { result.push_back({layer, expert, holder}); }
    }
  }
  return result;
}

/// Give every lost expert a live slot whose expert has another live replica: what survivors can serve on with.
///
/// The slot is taken from the expert of the layer with the most live replicas, the first one where several have as
/// many; lost experts are served in ascending order. Slots of dead ranks keep what they hold and get a share of 0. An
/// expert whose live replicas do not take all of its tokens is split evenly over them. Where all ranks live nothing
/// changes.
///
/// @param where    R ranks of S slots, and which are alive.
/// @param in       [L, P] what the slots hold, the same on every survivor: the placement in force, as long as nothing
///                 of `reloads` has been loaded.
/// @param out      out: [L, P] the placement once `reloads` are done; with dead ranks it has shares.
/// @param reloads  out: slots to load from disk, by layer; `where.rank_of_slot(slot)` has to do it, before the next
///                 pass, but not before `out` is in force (`rebalancer::set_topology`): when that fails, because
///                 another rank has died, slots must hold what `rebalancer::current()` still says.
/// @return `errc::missing_expert` naming layer and expert when every live slot holds the last live replica of its
///         expert; `errc::invalid_topology` or `errc::invalid_placement` for inputs that do not fit. Outputs do not
///         change then.
/// @complexity O(L (P + E)), and O(P) for each lost expert.
/// @throws std::bad_alloc
/// @determinism the result depends on the arguments alone.
[[nodiscard]] inline status replace_lost_experts(topology const& where, placement const& in, placement& out,
                                                 std::vector<slot_reload>& reloads) {
  if (auto result = validate_placement(in, in.shape()); !result.ok()) { return result; }
  if (in.num_slots() != where.num_slots()) {
    return {errc::invalid_topology, detail::concat("survivors: the placement has ", in.num_slots(),
                                                   " slots, the topology ", where.num_slots())};
  }
  auto next = in;
  std::vector<slot_reload> found;
  if (where.num_live_ranks() < where.num_ranks()) {
    detail::lost_expert_replacer replacer{where, next};
    for (index_t layer = 0; layer < next.num_layers(); ++layer) {
      if (auto result = replacer.replace(layer, found); !result.ok()) { return result; }
    }
    detail::split_among_live(where, next);
  }
  out = std::move(next);
  reloads = std::move(found);
  return {};
}

BALLAST_END_NAMESPACE

#endif
