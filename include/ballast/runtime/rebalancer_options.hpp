// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_REBALANCER_OPTIONS_HPP
#define BALLAST_RUNTIME_REBALANCER_OPTIONS_HPP

#include <ballast/config.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/gate.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/runtime/plan_executor.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstdint>
#include <string_view>

BALLAST_BEGIN_NAMESPACE

/// Options of a rebalancer; the same on every rank.
struct rebalancer_options {
  index_t interval = 1000;  ///< N, forward passes between plans, >= 1
  /// M, passes between refreshes of the shares alone; 0: shares change with plans only. One that falls due while a plan
  /// is being made, or in asynchronous mode while layers move, comes after that.
  index_t share_interval = 0;
  double utilization_threshold = 1.0;      ///< do not plan while balancedness is above this; in [0, 1], 1 always plans
  nanoseconds_t timeout = 10'000'000'000;  ///< ns, of each wait for the other ranks; ranks may differ
  pass_gate gate{};                        ///< which passes count
  /// Under a `layerwise_policy` each rank plans some of the layers and gets the rows of the others; false: every rank
  /// plans all of them, and the plans are compared.
  bool plan_in_parts = true;
  /// Layers of another rank that each rank plans as well when it plans in parts, to compare what comes out.
  index_t checked_layers = 0;
  /// Layers that a rank plans in one call at most, those that it checks included; a plan that has more takes several
  /// calls. 0: no limit of layers. Without effect on a policy that is no `layerwise_policy`. Under a `divisible_policy`
  /// `work_per_plan_call` holds as well: 0 there makes calls that know their number, and wait for nobody in between.
  index_t layers_per_plan_call = 0;
  /// Work that a rank puts into one call, after which even a layer is left half planned; 0: no limit. In the unit of a
  /// `divisible_policy` (`incremental_placement`: candidates, some 10 to 30 ns each, so about a millisecond by
  /// default), without effect on others. The plan takes as many calls as the rank with most work needs, all ranks
  /// exchange a word in each; one that fits a call takes one. Without effect where there is an `executor`.
  std::int64_t work_per_plan_call = 50'000;
  /// Where `layers_per_plan_call` makes several parts of a plan, the layers of each move before the next ones are
  /// planned: the first bytes travel after one part, which takes one call if its work fits one. Then the whole takes no
  /// more calls where a part's layers fill whole chunks. Rows that a rank checks come on top of those of a call. Not in
  /// asynchronous mode, with an `executor` or `adopt_first_plan`, nor under a policy that bounds what moves over all
  /// layers.
  bool moves_while_planning = false;
  /// Where plans are made; on all ranks or on none. With an executor the calls after the first of a plan ask whether it
  /// is made on every rank, and the one that hears yes takes it up.
  plan_executor executor{};
  /// What may change names in a plan to save bytes, where the policy allows it; `none` takes plans as they are.
  relabel_scope relabel = relabel_scope::all;
  bool relay = false;                  ///< see `transfer_options`
  std::int64_t max_message_bytes = 0;  ///< longer messages travel in pieces; 0: no limit
  index_t rounds_per_batch = 0;        ///< rounds that the transport is given at once; 0: all of a group
  bool asynchronous = false;  ///< bytes travel while passes run; commits follow the words of `outgoing` and `incoming`
  bool verify = false;        ///< compare checksums of every moved expert before it is committed
  bool adopt_first_plan = false;  ///< when plans differ, every rank takes rank 0's instead of failing
  bool check_replicas = true;     ///< at `start`, compare a sample of the bytes of all replicas of an expert
  /// Slots that each call while recording compares whole with the other replicas of their experts; 0: none. What they
  /// hold is compared at the next dump.
  index_t checked_slots = 0;

  /// What is below can only be another unit, as 10 for ten seconds.
  static constexpr nanoseconds_t shortest_timeout = 100'000;

  /// Refuse values that make no sense, naming them.
  [[nodiscard]] status validate() const {
    auto const refuse = [](auto const&... parts) {
      return status{errc::invalid_option, detail::concat("rebalancer: ", parts...)};
    };
    if (interval < 1) { return refuse("interval is ", interval, ", must be at least 1"); }
    if (share_interval < 0) { return refuse("share_interval is ", share_interval, ", must not be negative"); }
    if (max_message_bytes < 0) { return refuse("max_message_bytes is ", max_message_bytes, ", must not be negative"); }
    if (rounds_per_batch < 0) { return refuse("rounds_per_batch is ", rounds_per_batch, ", must not be negative"); }
    if (checked_slots < 0) { return refuse("checked_slots is ", checked_slots, ", must not be negative"); }
    bool const in_range = utilization_threshold >= 0 && utilization_threshold <= 1;  // a NaN is not
    if (!in_range) { return refuse("utilization_threshold is ", utilization_threshold, ", must be in [0, 1]"); }
    if (checked_layers < 0) { return refuse("checked_layers is ", checked_layers, ", must not be negative"); }
    if (layers_per_plan_call < 0) {
      return refuse("layers_per_plan_call is ", layers_per_plan_call, ", must not be negative");
    }
    if (work_per_plan_call < 0) {
      return refuse("work_per_plan_call is ", work_per_plan_call, ", must not be negative");
    }
    if (moves_while_planning && layers_per_plan_call == 0) {
      return refuse("moves_while_planning needs layers_per_plan_call, the layers that move together, which is 0");
    }
    if (moves_while_planning && (executor.run != nullptr || adopt_first_plan || asynchronous)) {
      return refuse(
          "moves_while_planning goes neither with an executor nor with adopt_first_plan, which need whole plans, nor "
          "with asynchronous mode, where a rank may miss that the layers before have arrived");
    }
    if (timeout < shortest_timeout) {
      return refuse("timeout is ", timeout, " ns, must be at least ", shortest_timeout,
                    " ns: its unit is the nanosecond, and no rank answers sooner");
    }
    if (relabel > relabel_scope::all) {
      return refuse("relabel is ", static_cast<int>(relabel), ", must be one of none, slots, ranks, nodes, all");
    }
    return gate.validate();
  }

  /// What every rank must have alike; see `detail::names_options`. Ranks may differ in how long they wait.
  template <class Visit>
  void for_each_option(Visit visit) const {
    using detail::option_bits;
    visit("interval", option_bits(interval));
    visit("share_interval", option_bits(share_interval));
    visit("utilization_threshold", option_bits(utilization_threshold));
    visit("gate.phases", option_bits(gate.phases));
    visit("gate.min_tokens", option_bits(gate.min_tokens));
    visit("plan_in_parts", option_bits(plan_in_parts));
    visit("checked_layers", option_bits(checked_layers));
    visit("layers_per_plan_call", option_bits(layers_per_plan_call));
    visit("work_per_plan_call", option_bits(work_per_plan_call));
    visit("moves_while_planning", option_bits(moves_while_planning));
    visit("executor", option_bits(static_cast<index_t>(executor.run != nullptr)));
    visit("relabel", option_bits(static_cast<index_t>(relabel)));
    visit("relay", option_bits(relay));
    visit("max_message_bytes", option_bits(max_message_bytes));
    visit("rounds_per_batch", option_bits(rounds_per_batch));
    visit("asynchronous", option_bits(asynchronous));
    visit("verify", option_bits(verify));
    visit("adopt_first_plan", option_bits(adopt_first_plan));
    visit("check_replicas", option_bits(check_replicas));
    visit("checked_slots", option_bits(checked_slots));
  }
  void describe(digest& out) const { detail::describe_options(*this, out); }
};

BALLAST_END_NAMESPACE

#endif
