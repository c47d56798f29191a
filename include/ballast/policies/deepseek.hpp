// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DEEPSEEK_HPP
#define BALLAST_POLICIES_DEEPSEEK_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/detail/deepseek/descending_order.hpp>
#include <ballast/policies/detail/deepseek/float32.hpp>
#include <ballast/policies/detail/deepseek/tournament.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

namespace detail {

/// Independent problems of one size, "lanes", that a core works on side by side: every step of a lane waits for the
/// step before it, so four lanes take little longer than one.
inline constexpr std::size_t lanes_abreast = 4;

/// Call `body(first, Lanes)` with a compile-time number of lanes until all are done.
template <class Body>
void for_lanes_abreast(std::size_t num_lanes, Body body) {
  std::size_t lane = 0;
  for (; lane + lanes_abreast <= num_lanes; lane += lanes_abreast) {
    body(lane, std::integral_constant<std::size_t, lanes_abreast>{});
  }
  for (; lane < num_lanes; ++lane) { body(lane, std::integral_constant<std::size_t, 1>{}); }
}

/// A tournament key that orders by `bits`, then by `id`.
[[nodiscard]] constexpr std::uint64_t tournament_key(float32_bits bits, std::size_t id) noexcept {
  return (std::uint64_t{static_cast<std::uint32_t>(bits)} << 32) | id;
}
[[nodiscard]] constexpr std::size_t id_of(std::uint64_t key) noexcept { return key & 0xffffffffu; }
[[nodiscard]] constexpr float32_bits bits_of(std::uint64_t key) noexcept {
  return static_cast<float32_bits>(key >> 32);
}

/// Deals items to packs as the reference's `balanced_packing`: heaviest first, each to the lightest pack with room.
/// Ties go to the lowest item and the lowest pack. One item a pack is not dealt: item i is pack i's.
template <class Float>
class deepseek_packer {
public:
  /// @pre `num_items` is a multiple of `num_packs`
  deepseek_packer(std::size_t num_items, std::size_t num_packs, std::size_t num_lanes)
      : num_items_{num_items},
        num_packs_{num_packs},
        load_stride_{descending_order::padded(num_items)},
        num_nodes_{tournament::num_nodes(num_packs)},
        loads_(load_stride_ * num_lanes),
        slots_(num_items * num_lanes),
        order_(num_items * lanes_abreast),
        filled_(num_packs * lanes_abreast),
        nodes_(num_nodes_ * lanes_abreast),
        sort_{num_items} {
    for (std::size_t lane = 0; lane < num_lanes; ++lane) {
      std::iota(row(slots_, lane, num_items_), row(slots_, lane + 1, num_items_), 0);
    }
  }

  /// `[items]` writable loads of one lane.
  [[nodiscard]] std::span<float32_bits> loads(std::size_t lane) {
    return {row(loads_, lane, load_stride_), num_items_};
  }
  /// `[items]` where each item of one lane went: pack * capacity + place in the pack.
  [[nodiscard]] std::span<index_t const> slots(std::size_t lane) { return {row(slots_, lane, num_items_), num_items_}; }

  /// Deal the first lanes' items. @complexity O(items log(packs)) a lane, plus the sort; no allocation.
  void run(std::size_t num_lanes) {
    if (num_items_ == num_packs_) { return; }
    for_lanes_abreast(num_lanes, [this](std::size_t first, auto lanes) { this->template deal<lanes()>(first); });
  }

private:
  struct dealing {
    float32_bits const* loads;
    index_t const* order;
    index_t* slots;
    index_t* filled;
    tournament packs;

    void deal(std::size_t turn, index_t capacity) const {
      auto const item = static_cast<std::size_t>(order[turn]);
      auto const lightest = packs.least();
      auto const pack = id_of(lightest);
      auto const place = filled[pack]++;
      slots[item] = static_cast<index_t>(pack) * capacity + place;
      auto const load = Float::sum(bits_of(lightest), loads[item]);
      packs.replace(pack, place + 1 == capacity ? tournament::none : tournament_key(load, pack));
    }
  };

  template <std::size_t Lanes>
  void deal(std::size_t first) {
    deal(first, std::make_index_sequence<Lanes>{});
  }

  template <std::size_t... Lane>
  void deal(std::size_t first, std::index_sequence<Lane...>) {
    std::array const lanes{start_dealing(Lane, first + Lane)...};
    auto const capacity = static_cast<index_t>(num_items_ / num_packs_);
    for (std::size_t turn = 0; turn < num_items_; ++turn) { (lanes[Lane].deal(turn, capacity), ...); }
  }

  dealing start_dealing(std::size_t scratch, std::size_t lane) {
    dealing const result{row(loads_, lane, load_stride_), row(order_, scratch, num_items_),
                         row(slots_, lane, num_items_), row(filled_, scratch, num_packs_),
                         tournament{{row(nodes_, scratch, num_nodes_), num_nodes_}}};
    sort_(result.loads, {row(order_, scratch, num_items_), num_items_});
    std::fill_n(result.filled, num_packs_, 0);
    auto const leaves = result.packs.leaves();
    for (std::size_t pack = 0; pack < leaves.size(); ++pack) {
      leaves[pack] = pack < num_packs_ ? tournament_key(0, pack) : tournament::none;
    }
    result.packs.build();
    return result;
  }

  template <class T>
  [[nodiscard]] static T* row(std::vector<T>& elements, std::size_t index, std::size_t width) {
    return elements.data() + index * width;
  }

  std::size_t num_items_;
  std::size_t num_packs_;
  std::size_t load_stride_;
  std::size_t num_nodes_;
  std::vector<float32_bits> loads_;  // [lanes, padded items]
  std::vector<index_t> slots_;       // [lanes, items]
  std::vector<index_t> order_;       // [abreast, items]
  std::vector<index_t> filled_;      // [abreast, packs]
  std::vector<std::uint64_t> nodes_;
  descending_order sort_;
};

/// Hands replicas out as the reference's `replicate_experts`: one to each expert, then one at a time to the expert with
/// the largest load / count. Ties go to the first expert.
template <class Float>
class deepseek_replicator {
public:
  /// A replica beyond an expert's first.
  struct extra_replica {
    index_t expert;  ///< position in the node
    index_t rank;    ///< replicas that the expert had before
  };

  deepseek_replicator(std::size_t num_experts, std::size_t num_replicas, std::size_t num_lanes)
      : num_experts_{num_experts},
        num_extras_{num_replicas - num_experts},
        num_nodes_{tournament::num_nodes(num_experts)},
        loads_(num_experts * num_lanes),
        counts_(num_experts * num_lanes),
        extras_(num_extras_ * num_lanes),
        nodes_(num_nodes_ * num_lanes) {}

  /// `[experts]` writable loads of one lane.
  [[nodiscard]] std::span<float32_bits> loads(std::size_t lane) {
    return {loads_.data() + lane * num_experts_, num_experts_};
  }
  /// `[experts]` replicas of each expert of one lane.
  [[nodiscard]] std::span<index_t const> counts(std::size_t lane) const {
    return {counts_.data() + lane * num_experts_, num_experts_};
  }
  /// `[replicas - experts]` in the order in which they were handed out.
  [[nodiscard]] std::span<extra_replica const> extras(std::size_t lane) const {
    return {extras_.data() + lane * num_extras_, num_extras_};
  }
  /// Load of every replica of one lane at the final counts: the experts' first ones, then the extra ones.
  void replica_loads(std::size_t lane, std::span<float32_bits> out) {
    auto const quotients = quotients_of(lane).leaves();
    for (std::size_t e = 0; e < num_experts_; ++e) { out[e] = ~bits_of(quotients[e]); }
    auto const extra = extras(lane);
    for (std::size_t i = 0; i < num_extras_; ++i) {
      out[num_experts_ + i] = out[static_cast<std::size_t>(extra[i].expert)];
    }
  }

  /// Replicate the first lanes' experts. @complexity O(experts + extras log(experts)) a lane, no allocation.
  void run(std::size_t num_lanes) {
    std::fill_n(counts_.begin(), num_experts_ * num_lanes, 1);
    for (std::size_t lane = 0; lane < num_lanes; ++lane) { start(lane); }
    if (num_extras_ == 0) { return; }
    for_lanes_abreast(num_lanes, [this](std::size_t first, auto lanes) {
      for (std::size_t lane = first; lane < first + lanes(); ++lane) { quotients_of(lane).build(); }
      for (std::size_t i = 0; i < num_extras_; ++i) {
        for (std::size_t lane = first; lane < first + lanes(); ++lane) { add_replica(lane, i); }
      }
    });
  }

private:
  /// Load / count of each expert, complemented, so that the largest is the least key.
  [[nodiscard]] tournament quotients_of(std::size_t lane) {
    return tournament{{nodes_.data() + lane * num_nodes_, num_nodes_}};
  }

  void start(std::size_t lane) {
    auto const leaves = quotients_of(lane).leaves();
    auto const load = loads(lane);
    for (std::size_t e = 0; e < num_experts_; ++e) { leaves[e] = tournament_key(~load[e], e); }
    std::fill(leaves.begin() + static_cast<std::ptrdiff_t>(num_experts_), leaves.end(), tournament::none);
  }

  void add_replica(std::size_t lane, std::size_t extra) {
    auto const quotients = quotients_of(lane);
    auto const expert = id_of(quotients.least());
    auto& count = counts_[lane * num_experts_ + expert];
    extras_[lane * num_extras_ + extra] = {static_cast<index_t>(expert), count++};
    quotients.replace(expert, tournament_key(~Float::quotient(loads(lane)[expert], count), expert));
  }

  std::size_t num_experts_;
  std::size_t num_extras_;
  std::size_t num_nodes_;
  std::vector<float32_bits> loads_;    // [lanes, experts]
  std::vector<index_t> counts_;        // [lanes, experts]
  std::vector<extra_replica> extras_;  // [lanes, extras]
  std::vector<std::uint64_t> nodes_;   // [lanes, nodes]
};

/// Sizes of the reference's problem. Without groups to keep together there is one group and one node.
struct deepseek_sizes {
  std::size_t experts;  ///< E
  std::size_t slots;    ///< P
  std::size_t groups;   ///< a multiple of `nodes` that divides `experts`
  std::size_t nodes;
  std::size_t ranks;  ///< R
};

/// Plans layers one batch at a time; all memory is obtained at construction.
template <class Float>
class deepseek_planner {
public:
  explicit deepseek_planner(deepseek_sizes sizes)
      : sizes_{sizes},
        layers_abreast_{lanes_abreast / std::gcd(lanes_abreast, sizes.nodes)},
        tokens_(sizes.experts),
        experts_(sizes.experts * layers_abreast_),
        loads_(sizes.experts * layers_abreast_),
        groups_to_nodes_{sizes.groups, sizes.nodes, layers_abreast_},
        replicas_{sizes.experts / sizes.nodes, sizes.slots / sizes.nodes, sizes.nodes * layers_abreast_},
        slots_to_ranks_{sizes.slots / sizes.nodes, sizes.ranks / sizes.nodes, sizes.nodes * layers_abreast_} {}

  /// @param history  [H, L, E] tokens.
  /// @param next     out: [L, P], of the right shape.
  void plan(load_history_view history, placement& next) {
    auto const num_layers = static_cast<std::size_t>(history.num_layers());
    for (std::size_t first = 0; first < num_layers; first += layers_abreast_) {
      plan_batch(history, first, std::min(layers_abreast_, num_layers - first), next);
    }
  }

private:
  void plan_batch(load_history_view history, std::size_t first, std::size_t num_layers, placement& next) {
    for (std::size_t i = 0; i < num_layers; ++i) { read_layer(history, first + i, i); }
    groups_to_nodes_.run(num_layers);
    for (std::size_t i = 0; i < num_layers; ++i) { order_experts(i); }
    auto const num_lanes = num_layers * sizes_.nodes;
    replicas_.run(num_lanes);
    for (std::size_t lane = 0; lane < num_lanes; ++lane) { replicas_.replica_loads(lane, slots_to_ranks_.loads(lane)); }
    slots_to_ranks_.run(num_lanes);
    for (std::size_t i = 0; i < num_layers; ++i) { write_layer(i, next.edit(static_cast<index_t>(first + i))); }
  }

  /// Expert loads, and group loads: exact sums, rounded once.
  void read_layer(load_history_view history, std::size_t layer, std::size_t row) {
    sum_buckets(history, static_cast<index_t>(layer), tokens_);
    auto const loads = expert_row(loads_, row);
    for (std::size_t e = 0; e < sizes_.experts; ++e) { loads[e] = Float::from_integer(tokens_[e]); }
    auto const group_loads = groups_to_nodes_.loads(row);
    auto const size = sizes_.experts / sizes_.groups;
    for (std::size_t g = 0; g < sizes_.groups; ++g) {
      auto const group = std::span{tokens_}.subspan(g * size, size);
      group_loads[g] = Float::from_integer(std::accumulate(group.begin(), group.end(), load_t{0}));
    }
  }

  /// Line a layer's experts up node by node: a node's groups in the order in which they were dealt to it.
  void order_experts(std::size_t row) {
    auto const size = sizes_.experts / sizes_.groups;
    auto const places = groups_to_nodes_.slots(row);
    auto const experts = expert_row(experts_, row);
    auto const from = expert_row(loads_, row);
    auto const to = std::span{replicas_.loads(row * sizes_.nodes).data(), sizes_.experts};
    for (std::size_t g = 0; g < sizes_.groups; ++g) {
      auto const place = static_cast<std::size_t>(places[g]) * size;
      for (std::size_t i = 0; i < size; ++i) {
        experts[place + i] = static_cast<index_t>(g * size + i);
        to[place + i] = from[g * size + i];
      }
    }
  }

  void write_layer(std::size_t row, placement::layer_writer out) {
    auto const experts = expert_row(experts_, row);
    write_offsets(row, experts, out.replica_offsets);
    auto const experts_per_node = sizes_.experts / sizes_.nodes;
    auto const slots_per_node = sizes_.slots / sizes_.nodes;
    for (std::size_t node = 0; node < sizes_.nodes; ++node) {
      write_node(row * sizes_.nodes + node, static_cast<index_t>(node * slots_per_node),
                 experts.subspan(node * experts_per_node, experts_per_node), out);
    }
  }

  void write_offsets(std::size_t row, std::span<index_t const> experts, std::span<index_t> offsets) {
    auto const* counts = replicas_.counts(row * sizes_.nodes).data();
    offsets[0] = 0;
    for (std::size_t i = 0; i < experts.size(); ++i) { offsets[static_cast<std::size_t>(experts[i]) + 1] = counts[i]; }
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  }

  void write_node(std::size_t lane, index_t first_slot, std::span<index_t const> experts, placement::layer_writer out) {
    auto const slots = slots_to_ranks_.slots(lane);
    auto const write = [&out, &first_slot](index_t expert, index_t rank, index_t slot) {
      out.logical_of_slot[static_cast<std::size_t>(first_slot + slot)] = expert;
      out.replica_slots[static_cast<std::size_t>(out.replica_offsets[static_cast<std::size_t>(expert)] + rank)] =
          first_slot + slot;
    };
    for (std::size_t e = 0; e < experts.size(); ++e) { write(experts[e], 0, slots[e]); }
    auto const extras = replicas_.extras(lane);
    for (std::size_t i = 0; i < extras.size(); ++i) {
      write(experts[static_cast<std::size_t>(extras[i].expert)], extras[i].rank, slots[experts.size() + i]);
    }
  }

  template <class T>
  [[nodiscard]] std::span<T> expert_row(std::vector<T>& elements, std::size_t row) const {
    return std::span{elements}.subspan(row * sizes_.experts, sizes_.experts);
  }

  deepseek_sizes sizes_;
  std::size_t layers_abreast_;
  std::vector<load_t> tokens_;       // [E]
  std::vector<index_t> experts_;     // [layers abreast, E] in the order of the nodes
  std::vector<float32_bits> loads_;  // [layers abreast, E]
  deepseek_packer<Float> groups_to_nodes_;
  deepseek_replicator<Float> replicas_;
  deepseek_packer<Float> slots_to_ranks_;
};

}  // namespace detail

/// The published DeepSeek load balancer, bit for bit: replicate the heaviest, deal the replicas longest-first.
///
/// Plans on the sum of the history's buckets and from scratch. With `num_groups` a multiple of the number of nodes, an
/// expert group stays on one node (hierarchical); otherwise groups are ignored (global), which is no error. All loads
/// zero, one expert and one rank are valid.
///
/// The reference has no notion of a dead rank. Where one is dead, the plan is the reference's global one for the live
/// ranks alone; slots of dead ranks keep their expert at a share of 0, and replicas are ranked by slot.
///
/// @determinism the reference's float32 arithmetic at the default rounding mode, or integer arithmetic with the same
///   results where the compiler may bend floats, as under -ffast-math. Equal loads keep ascending order, as in the
///   reference with a stable sort; the published one sorts unstably, so its replica order, and rarely more, depends on
///   its build. Group loads are exact sums, rounded once.
/// @source DeepSeek EPLB `rebalance_experts`
struct deepseek_placement {
  static constexpr bool follows_loads = true;

  index_t num_groups = 1;  ///< G, routing groups of consecutive experts

  /// Say whether every expert group is kept on one node.
  [[nodiscard]] bool is_hierarchical(topology const& where) const noexcept {
    return num_groups > 0 && num_groups % where.num_nodes() == 0 && where.num_live_ranks() == where.num_ranks();
  }

  /// Plan all layers.
  ///
  /// @param history  [H, L, E] tokens, >= 0.
  /// @param current  [L, P] gives the shape, and the experts on dead ranks.
  /// @param where    ranks, nodes, slots and which ranks are alive.
  /// @param next     out: [L, P], replicas of an expert in the reference's order; its storage is reused.
  /// @pre `validate_plan_inputs(history, current, where).ok()`
  /// @complexity O(L (E + (P - E) log(E / N) + P log(R / N))), a fixed number of allocations.
  /// @throws std::bad_alloc
  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    if (auto result = validate(history.num_logical(), where); !result.ok()) { return result; }
    next.resize(current.shape());
    if (where.num_live_ranks() == where.num_ranks()) {
      bool const grouped = is_hierarchical(where);
      plan_ranks(history, where.num_ranks(), grouped ? num_groups : 1, grouped ? where.num_nodes() : 1, next);
    } else {
      plan_live_ranks(history, current, where, next);
    }
    return {};
  }

  /// Refuse options out of their range, naming the value.
  [[nodiscard]] status validate() const {
    if (num_groups >= 1) { return {}; }
    return {errc::invalid_option, detail::concat("deepseek: number of groups is ", num_groups, ", must be at least 1")};
  }
  /// Refuse a number of groups that the reference cannot plan for, naming the values.
  [[nodiscard]] status validate(index_t num_logical, topology const& where) const {
    if (auto result = validate(); !result.ok()) { return result; }
    if (is_hierarchical(where) && num_logical % num_groups != 0) {
      return {errc::invalid_option,
              detail::concat("deepseek: ", num_logical, " experts cannot be divided into ", num_groups, " groups")};
    }
    return {};
  }

  /// See `ballast::interchangeable`.
  [[nodiscard]] constexpr relabel_scope interchangeable() const noexcept {
    return num_groups > 1 ? relabel_scope::nodes : relabel_scope::all;
  }
  /// Mix name and options into what the ranks compare.
  void describe(digest& out) const {
    out.add(std::string_view{"deepseek_placement"});
    detail::describe_options(*this, out);
  }
  /// See `detail::names_options`.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit("num_groups", detail::option_bits(num_groups));
  }

  bool operator==(deepseek_placement const&) const = default;

private:
  static void plan_ranks(load_history_view history, index_t num_ranks, index_t groups, index_t nodes, placement& next) {
    detail::deepseek_planner<detail::float32> planner{{
        .experts = static_cast<std::size_t>(next.num_logical()),
        .slots = static_cast<std::size_t>(next.num_slots()),
        .groups = static_cast<std::size_t>(groups),
        .nodes = static_cast<std::size_t>(nodes),
        .ranks = static_cast<std::size_t>(num_ranks),
    }};
    planner.plan(history, next);
  }

  static void plan_live_ranks(load_history_view history, placement const& current, topology const& where,
                              placement& next) {
    auto const width = static_cast<std::size_t>(where.slots_per_rank());
    placement live;
    live.resize({current.num_layers(), current.num_logical(), where.num_live_ranks() * where.slots_per_rank()});
    plan_ranks(history, where.num_live_ranks(), 1, 1, live);
    for (index_t layer = 0; layer < next.num_layers(); ++layer) {
      auto from = live.logical_of_slot(layer).begin();
      for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
        if (!where.is_live(rank)) { continue; }
        auto const to =
            next.edit(layer).logical_of_slot.subspan(static_cast<std::size_t>(where.first_slot(rank)), width);
        std::copy_n(from, width, to.begin());
        from += where.slots_per_rank();
      }
    }
    detail::finish_plan(current, where, next);
  }
};

static_assert(placement_policy<deepseek_placement>);
namespace detail {
/// Every plan of the reference deals all experts of a layer, and fills the inverse in with the map.
template <>
inline constexpr bool plans_are_proven<deepseek_placement> = true;
}  // namespace detail

BALLAST_END_NAMESPACE

#endif
