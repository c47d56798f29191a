// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_POLICY_HPP
#define BALLAST_POLICIES_POLICY_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Decides which slot holds which expert.
///
/// @par Semantics
/// `p.plan(history, current, where, next)` fills `next` in, with the shape of `current`, or returns a failure that
/// names the offending value and leaves `next` unspecified. `plan(policy, ...)` below checks what it promises. The
/// result depends on the arguments and on the policy's own data members alone, bit for bit, on every machine: every
/// rank plans for itself. `next` never aliases `current`. A policy with `p.validate() -> status` refuses options that
/// make no sense there, naming the value; it is asked before the first plan. `p.describe(digest)` mixes in the policy's
/// name and every option that can change a plan. A rebalancer gives slots and ranks of the plan other names where that
/// saves bytes, as far as `interchangeable` allows.
template <class P>
concept placement_policy = std::copyable<P> && requires(P const& p, load_history_view history, placement const& current,
                                                        topology const& where, placement& next, digest& out) {
  { p.plan(history, current, where, next) } -> std::same_as<status>;
  { p.describe(out) } -> std::same_as<void>;
};

/// A policy that plans layer by layer, so that the ranks of a group can share the work: each plans some layers and gets
/// the rows of the others.
///
/// @par Semantics
/// `p.plan_layers(history, current, where, layers, next)` plans the layers named, ascending, and no others. `next`
/// comes in with the rows of `current` and without shares; the slots of dead ranks stay as they are. The plan of a
/// layer depends on that layer's loads and row alone: planning all of them gives what `plan` gives, but for the even
/// shares that `plan` writes where ranks are dead. Replicas are ranked by ascending slot.
template <class P>
concept layerwise_policy =
    placement_policy<P> && requires(P const& p, load_history_view history, placement const& current,
                                    topology const& where, std::span<index_t const> layers, placement& next) {
      { p.plan_layers(history, current, where, layers, next) } -> std::same_as<status>;
    };

/// Plans layers one after the other and may stop within one, to go on in a later call; a `divisible_policy` makes it.
class layer_planner {
public:
  layer_planner() = default;
  layer_planner(layer_planner const&) = delete;
  layer_planner& operator=(layer_planner const&) = delete;
  virtual ~layer_planner() = default;

  /// A plan begins on these loads, which stay as they are until the next call of this. For what is the same for all of
  /// its layers; who never calls it says the loads in `begin` alone.
  virtual void begin_plan(load_history_view /*history*/) {}
  /// Begin with a layer; one that is not finished is given up.
  ///
  /// @param history  [H, L, E] tokens; read now.
  /// @param current  [L, P] the placement in force; stays as it is until the layer is finished.
  /// @param next     in/out: [L, P], outlives the layer's planning; comes in with the layer's row of `current` and
  ///                 without shares, and has both so in every call of `advance`. Other rows may change in between.
  [[nodiscard]] virtual status begin(load_history_view history, placement const& current, index_t layer,
                                     placement& next) = 0;
  /// Go on until the layer is finished or no work is left.
  ///
  /// @param work  in/out: > 0, in the policy's unit, counted and not timed; what is done is taken off, at least 1, and
  ///              the last step may exceed it.
  /// @return why the layer has no plan; it is given up then.
  /// @post what the slices make together does not depend on where they end: it is what `plan_layers` makes.
  [[nodiscard]] virtual status advance(std::int64_t& work) = 0;
  /// Whether no layer is begun, or its plan is in `next`.
  [[nodiscard]] virtual bool is_finished() const noexcept = 0;
};

/// A layerwise policy that can stop while it plans a layer, and go on in a later call.
///
/// @par Semantics
/// `p.make_layer_planner(where, num_logical)` makes what plans layers of so many experts in slices, `p` and `where`
/// outlive it; null where this one, or the policy inside, cannot. A unit of its work should take some 20 ns: that is
/// what the default of `rebalancer_options::work_per_plan_call` is meant for.
template <class P>
concept divisible_policy = layerwise_policy<P> && requires(P const& p, topology const& where, index_t num_logical) {
  { p.make_layer_planner(where, num_logical) } -> std::same_as<std::unique_ptr<layer_planner>>;
};

namespace detail {

/// The class that a member is of: a base, where it is inherited; void of a static one.
template <class Member>
struct class_of_member {
  using type = void;
};
template <class Type, class Class>
struct class_of_member<Type Class::*> {
  using type = Class;
};
/// Whether a member is of a class derived from the other's.
template <class Member, class Other>
inline constexpr bool is_further_derived =
    !std::is_same_v<typename class_of_member<Member>::type, typename class_of_member<Other>::type> &&
    std::is_base_of_v<typename class_of_member<Other>::type, typename class_of_member<Member>::type>;

/// Whether a policy has a `plan` of its own and inherits `plan_layers`, which would be asked instead; and so with
/// `plan_layers` and `make_layer_planner`.
template <class P>
inline constexpr bool hides_plan_layers = false;
template <class P>
  requires requires {
    &P::plan;
    &P::plan_layers;
  }
inline constexpr bool hides_plan_layers<P> = is_further_derived<decltype(&P::plan), decltype(&P::plan_layers)>;
template <class P>
inline constexpr bool hides_layer_planner = false;
template <class P>
  requires requires {
    &P::plan_layers;
    &P::make_layer_planner;
  }
inline constexpr bool hides_layer_planner<P> =
    is_further_derived<decltype(&P::plan_layers), decltype(&P::make_layer_planner)>;

/// What plans the layers of a policy in slices; null where they are not divisible.
template <class Policy>
[[nodiscard]] std::unique_ptr<layer_planner> layer_planner_of([[maybe_unused]] Policy const& policy,
                                                              [[maybe_unused]] topology const& where,
                                                              [[maybe_unused]] index_t num_logical) {
  if constexpr (divisible_policy<Policy>) {
    return policy.make_layer_planner(where, num_logical);
  } else {
    return nullptr;
  }
}

/// Whether a policy plans layer by layer; one that holds another may know it only while the program runs.
template <class P>
[[nodiscard]] bool plans_by_layer([[maybe_unused]] P const& policy) noexcept {
  if constexpr (!layerwise_policy<P>) {
    return false;
  } else if constexpr (requires {
                         { policy.plans_by_layer() } -> std::same_as<bool>;
                       }) {
    return policy.plans_by_layer();
  } else {
    return true;
  }
}

template <class P>
concept chooses_layers =
    requires(P const& p, load_history_view history, placement const& current, topology const& where, placement& next) {
      { p.choose_layers(history, current, where, next) } -> std::same_as<void>;
    };

template <class P>
concept tells_whether_it_chooses_layers = requires(P const& policy) {
  { policy.may_choose_layers() } -> std::same_as<bool>;
};

/// Whether `choose_layers` may take changes of some layers back for the sake of others. A policy may know better, by
/// `bool may_choose_layers() const`, where that depends on its options.
template <class Policy>
[[nodiscard]] bool may_choose_layers([[maybe_unused]] Policy const& policy) noexcept {
  if constexpr (tells_whether_it_chooses_layers<Policy>) {
    return policy.may_choose_layers();
  } else {
    return chooses_layers<Policy>;
  }
}

/// What a layerwise policy makes of the plan of all layers.
template <class Policy>
void choose_layers_of([[maybe_unused]] Policy const& policy, [[maybe_unused]] load_history_view history,
                      [[maybe_unused]] placement const& current, [[maybe_unused]] topology const& where,
                      [[maybe_unused]] placement& next) {
  if constexpr (chooses_layers<Policy>) { policy.choose_layers(history, current, where, next); }
}

/// Plan all layers of a layerwise policy.
template <class Policy>
[[nodiscard]] status plan_every_layer(Policy const& policy, load_history_view history, placement const& current,
                                      topology const& where, placement& next) {
  auto const layers = detail::numbers_below(current.num_layers());
  next = current;
  next.drop_shares();
  if (auto result = policy.plan_layers(history, current, where, layers, next); !result.ok()) { return result; }
  if (!next.has_shares()) { finish_plan(current, where, next); }
  choose_layers_of(policy, history, current, where, next);
  return {};
}

template <class P>
concept validates_itself = requires(P const& policy) {
  { policy.validate() } -> std::same_as<status>;
};
template <class P>
concept tells_whether_it_follows_loads = requires(P const& policy) {
  { policy.follows_loads() } -> std::same_as<bool>;
};

/// Refuses a policy with a member that is named like an optional one and is none: it would be taken for a policy
/// without it. Members that are overloaded or templates are not seen.
template <class Policy>
struct optional_policy_members {
  static_assert(
      validates_itself<Policy> || !requires { &Policy::validate; },
      "Policy has a member validate, but not the one of a placement_policy: status validate() const");
  static_assert(
      requires { typename std::bool_constant<Policy::follows_loads>; } || tells_whether_it_follows_loads<Policy> ||
          !requires { &Policy::follows_loads; },
      "Policy has a member follows_loads, but not the one of a placement_policy: static constexpr bool "
      "follows_loads, or bool follows_loads() const");
  static_assert(
      names_what_is_interchangeable<Policy> || !requires { &Policy::interchangeable; },
      "Policy has a member interchangeable, but not the one of a placement_policy: relabel_scope interchangeable() "
      "const");
  static_assert(
      chooses_layers<Policy> || !requires { &Policy::choose_layers; },
      "Policy has a member choose_layers, but not the one of a layerwise_policy: void choose_layers(load_history_view, "
      "placement const&, topology const&, placement&) const");
  static_assert(
      tells_whether_it_chooses_layers<Policy> || !requires { &Policy::may_choose_layers; },
      "Policy has a member may_choose_layers, but not the one of a layerwise_policy: bool may_choose_layers() const");
  static_assert(
      layerwise_policy<Policy> || !requires { &Policy::plan_layers; },
      "Policy has a member plan_layers, but is no layerwise_policy: status plan_layers(load_history_view, placement "
      "const&, topology const&, std::span<index_t const>, placement&) const");
  static_assert(
      divisible_policy<Policy> || !requires { &Policy::make_layer_planner; },
      "Policy has a member make_layer_planner, but is no divisible_policy: std::unique_ptr<layer_planner> "
      "make_layer_planner(topology const&, index_t) const");
  static_assert(
      !hides_plan_layers<Policy>,
      "Policy has a plan of its own, but the plan_layers of a base, which would be asked in its place: give it "
      "that too, or make the base a member");
  static_assert(
      !hides_layer_planner<Policy>,
      "Policy has a plan_layers of its own, but the make_layer_planner of a base, which would be asked in its "
      "place: give it that too, or make the base a member");
  static_assert(!misnames_options<Policy>,
                "Policy has a member for_each_option, but does not names_options: void for_each_option(Visit) const");
  static constexpr bool fit = true;
};

}  // namespace detail

/// Ask a policy whether its options make sense; one without `validate()` says nothing.
template <placement_policy Policy>
[[nodiscard]] status validate_policy(Policy const& policy) {
  static_assert(detail::optional_policy_members<Policy>::fit);
  if constexpr (detail::validates_itself<Policy>) {
    return policy.validate();
  } else {
    return {};
  }
}

/// Refuse inputs that no policy can plan on, naming the first value that is wrong.
///
/// @param history  [H, L, E] tokens.
/// @param current  [L, P] the placement in force.
/// @param where    ranks and slots, R * S = P.
/// @complexity O(H L E + L P)
/// @throws nothing
[[nodiscard]] inline status validate_plan_inputs(load_history_view history, placement const& current,
                                                 topology const& where) {
  if (current.num_layers() != history.num_layers() || current.num_logical() != history.num_logical()) {
    return {errc::invalid_load,
            detail::concat("plan: loads are for ", history.num_layers(), " layers x ", history.num_logical(),
                           " experts, the current placement for ", current.num_layers(), " x ", current.num_logical())};
  }
  if (current.num_slots() != where.num_slots()) {
    return {errc::invalid_topology,
            detail::concat("plan: the placement has ", current.num_slots(), " slots, the topology ", where.num_ranks(),
                           " ranks x ", where.slots_per_rank(), " slots")};
  }
  if (where.num_live_ranks() * where.slots_per_rank() < history.num_logical()) {
    return {errc::not_enough_slots,
            detail::concat("plan: ", where.num_live_ranks(), " live ranks x ", where.slots_per_rank(),
                           " slots cannot hold ", history.num_logical(), " experts")};
  }
  return validate_loads(history);
}

namespace detail {

/// Policies of our own that plan so fast that checking each plan would show: 25 us of 300 for 58 layers x 256 experts.
/// Their plans are checked where invariants are, at contract level 2.
template <class Policy>
inline constexpr bool plans_are_proven = false;

/// What a policy says, or that it threw.
template <class Work>
[[nodiscard]] status guarded(Work work) {
#if defined(__cpp_exceptions)
  try {
    return work();
  } catch (std::exception const& error) {
    return {errc::policy_failed, concat("plan: the policy threw: ", error.what())};
  } catch (...) { return {errc::policy_failed, "plan: the policy threw something that is no std::exception"}; }
#else
  return work();
#endif
}

/// Slots of dead ranks keep what they hold: nobody could load another expert there.
[[nodiscard]] inline status validate_dead_slots(topology const& where, placement const& current,
                                                placement const& next) {
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    if (where.is_live(rank)) { continue; }
    for (index_t layer = 0; layer < next.num_layers(); ++layer) {
      for (index_t slot = where.first_slot(rank); slot < where.first_slot(rank) + where.slots_per_rank(); ++slot) {
        auto const held = current.logical_of_slot(layer)[static_cast<std::size_t>(slot)];
        auto const wanted = next.logical_of_slot(layer)[static_cast<std::size_t>(slot)];
        if (held == wanted) { continue; }
        return {errc::invalid_placement,
                concat("placement: layer ", layer, ", slot ", slot, " of dead rank ", rank, " holds expert ", held,
                       ", the plan puts expert ", wanted, " there"),
                rank};
      }
    }
  }
  return {};
}

}  // namespace detail

/// Check that a plan keeps what policies promise, naming the first thing that is wrong.
///
/// @param current  [L, P] the placement in force.
/// @param where    ranks and slots, R * S = P, and which ranks are alive.
/// @param next     whatever a policy left there.
/// @return `errc::policy_failed` if `next` is no valid placement with the shape of `current`, if an expert is on no
///         live rank, or if a slot of a dead rank changes.
/// @complexity O(L (P + E))
/// @throws std::bad_alloc
[[nodiscard]] inline status validate_plan(placement const& current, topology const& where, placement const& next) {
  auto result = validate_placement(next, current.shape());
  if (result.ok()) { result = validate_live(where, next); }
  if (result.ok()) { result = detail::validate_dead_slots(where, current, next); }
  if (result.ok()) { return {}; }
  return {errc::policy_failed, detail::concat("plan: the policy broke its promise: ", result.message()), result.rank()};
}

namespace detail {

/// What is wrong with a policy's options, or with what it would plan on.
template <placement_policy Policy>
[[nodiscard]] status validate_question(Policy const& policy, load_history_view history, placement const& current,
                                       topology const& where) {
  if (auto result = guarded([&policy] { return validate_policy(policy); }); !result.ok()) { return result; }
  return validate_plan_inputs(history, current, where);
}

/// Let a policy plan, without a look at what it leaves in `next`; see `plan`.
template <placement_policy Policy>
[[nodiscard]] status ask_policy(Policy const& policy, load_history_view history, placement const& current,
                                topology const& where, placement& next) {
  if (auto result = validate_question(policy, history, current, where); !result.ok()) { return result; }
  return guarded([&policy, &history, &current, &where, &next] { return policy.plan(history, current, where, next); });
}

}  // namespace detail

/// Plan a new placement for all layers.
///
/// @param policy   any `placement_policy`.
/// @param history  [H, L, E] tokens, >= 0.
/// @param current  [L, P] the placement in force; policies that start from scratch ignore it.
/// @param where    ranks, nodes, slots and which ranks are alive.
/// @param next     out: [L, P]; its storage is reused. After a failure it may hold anything. @pre it is not `current`
/// @return what is wrong with the inputs or the policy's options, or what the policy refuses; `errc::policy_failed` for
///         a policy that throws or whose plan `validate_plan` refuses.
/// @complexity as the policy, and O(L (P + E)).
/// @throws std::bad_alloc; where exceptions are off, what the policy does instead
/// @determinism the result depends on the arguments alone.
template <placement_policy Policy>
[[nodiscard]] status plan(Policy const& policy, load_history_view history, placement const& current,
                          topology const& where, placement& next) {
  BALLAST_EXPECTS(&current != &next, "plan: next must not be the current placement");
  if (auto planned = detail::ask_policy(policy, history, current, where, next); !planned.ok()) { return planned; }
  if constexpr (detail::plans_are_proven<Policy> && BALLAST_CONTRACT_LEVEL < 2) { return {}; }
  return validate_plan(current, where, next);
}

/// Let every layer without tokens keep its row: a plan for loads that nobody saw moves experts for nothing, and often
/// away from where the layer's next tokens need them. To be called on what a policy planned.
///
/// @param history  [H, L, E] tokens, what was planned for.
/// @param current  [L, P] the placement in force.
/// @param next     in/out: [L, P] the plan; idle layers take map and shares of `current`.
/// @pre `history`, `current` and `next` have as many layers, `current` and `next` the same shape.
/// @complexity O(H L E + L P); allocates when `current` has shares and `next` has none.
/// @throws std::bad_alloc
/// @determinism the result depends on the arguments alone.
inline void keep_idle_layers(load_history_view history, placement const& current, placement& next) {
  BALLAST_EXPECTS(history.num_layers() == current.num_layers(), "keep_idle_layers: loads of another number of layers");
  BALLAST_EXPECTS(current.shape() == next.shape(), "keep_idle_layers: placements of different shapes");
  auto const is_idle = [history](index_t layer) {
    for (index_t bucket = 0; bucket < history.num_buckets(); ++bucket) {
      auto const row = history.layer(bucket, layer);
      if (std::any_of(row.begin(), row.end(), [](load_t tokens) { return tokens != 0; })) { return false; }
    }
    return true;
  };
  for (index_t layer = 0; layer < history.num_layers(); ++layer) {
    if (is_idle(layer)) { next.copy_layer(current, layer); }
  }
}

/// A policy whose plan says nothing where there are no tokens, because it is worked out from the loads: all of
/// ballast's. It says so by `static constexpr bool follows_loads = true`. A rebalancer leaves layers without tokens as
/// they are under such a policy, and plans nothing when no layer has any.
template <class P>
inline constexpr bool follows_loads = requires { requires P::follows_loads; };

namespace detail {

/// The same of a policy that may know it only while the program runs.
template <class Policy>
[[nodiscard]] bool plans_from_loads([[maybe_unused]] Policy const& policy) noexcept {
  if constexpr (tells_whether_it_follows_loads<Policy>) {
    return policy.follows_loads();
  } else {
    return follows_loads<Policy>;
  }
}

}  // namespace detail

BALLAST_END_NAMESPACE

#endif
