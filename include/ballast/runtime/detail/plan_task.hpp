// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_PLAN_TASK_HPP
#define BALLAST_RUNTIME_DETAIL_PLAN_TASK_HPP

#include <ballast/detail/text.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/runtime/plan_executor.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// What becomes of rows that a policy has planned.
struct row_options {
  relabel_options naming;    ///< what may change names in them
  bool splits_anew = false;  ///< shares are found afterwards
};

/// Check rows that a policy has planned into `next`, and name what is in them.
[[nodiscard]] inline status finish_rows(placement const& in_force, topology const& where,
                                        std::span<index_t const> layers, row_options const& options, placement& next) {
  if (options.splits_anew) { next.drop_shares(); }
  if (auto result = validate_layers(next, in_force.shape(), layers); !result.ok()) {
    return {errc::policy_failed, concat("plan: the policy broke its promise: ", result.message()), result.rank()};
  }
  relabel(in_force, where, next, layers, options.naming);
  return {};
}

/// Let a policy plan some layers into `next`, which has the rows in force there and no shares.
template <class Policy>
[[nodiscard]] status plan_rows(Policy const& policy, load_history_view history, placement const& in_force,
                               topology const& where, std::span<index_t const> layers, row_options const& options,
                               placement& next) {
  auto planned = guarded([&policy, &history, &in_force, &where, &layers, &next] {
    return policy.plan_layers(history, in_force, where, layers, next);
  });
  return planned.ok() ? finish_rows(in_force, where, layers, options, next) : planned;
}

/// Go on with a layer of a policy that divides them, or begin it; the same once it is finished.
/// @param work  in/out: left for this call
[[nodiscard]] inline status plan_part_of_row(layer_planner& planner, load_history_view history,
                                             placement const& in_force, topology const& where, index_t layer,
                                             row_options const& options, std::int64_t& work, placement& next) {
  auto planned = guarded([&planner, &history, &in_force, &layer, &work, &next] {
    if (planner.is_finished()) {
      if (auto begun = planner.begin(history, in_force, layer, next); !begun.ok()) { return begun; }
    }
    return planner.advance(work);
  });
  if (!planned.ok() || !planner.is_finished()) { return planned; }
  return finish_rows(in_force, where, {&layer, 1}, options, next);
}

/// A plan that is made on the engine's executor: what it is made of, and what comes of it. It may outlive the
/// rebalancer.
template <class Policy>
class plan_task {
public:
  /// @param layers  those to plan layer by layer; empty and `by_layer` false: all at once
  plan_task(Policy policy, load_history_view history, placement in_force, topology where,
            std::span<index_t const> layers, bool by_layer, row_options const& options)
      : policy_{std::move(policy)},
        tokens_(history.tokens().begin(), history.tokens().end()),
        history_{tokens_, history.num_buckets(), history.num_layers(), history.num_logical()},
        in_force_{std::move(in_force)},
        where_{std::move(where)},
        layers_(layers.begin(), layers.end()),
        by_layer_{by_layer},
        options_{options} {}
  plan_task(plan_task const&) = delete;
  plan_task& operator=(plan_task const&) = delete;
  ~plan_task() = default;

  /// Have it made.
  static void send(std::shared_ptr<plan_task> const& task, plan_executor const& where) {
    auto argument = std::make_unique<std::shared_ptr<plan_task>>(task);
    where.run(
        where.context,
        [](void* given) {
          std::unique_ptr<std::shared_ptr<plan_task>> const mine{static_cast<std::shared_ptr<plan_task>*>(given)};
          (*mine)->make();
        },
        argument.release());
  }
  [[nodiscard]] bool is_done() const noexcept { return done_.load(std::memory_order_acquire); }
  /// @pre is_done()
  [[nodiscard]] status const& planned() const noexcept { return planned_; }
  /// @pre is_done()
  [[nodiscard]] placement& next() noexcept { return next_; }

private:
  void make() noexcept {
    planned_ = guarded([this] { return plan(); });
    done_.store(true, std::memory_order_release);
  }
  [[nodiscard]] status plan() {
    if constexpr (layerwise_policy<Policy>) {
      if (by_layer_) {
        next_ = in_force_;
        next_.drop_shares();
        return plan_rows(policy_, history_, in_force_, where_, layers_, options_, next_);
      }
    }
    return ask_policy(policy_, history_, in_force_, where_, next_);
  }

  Policy policy_;
  std::vector<load_t> tokens_;
  load_history_view history_;
  placement in_force_;
  topology where_;
  std::vector<index_t> layers_;
  bool by_layer_;
  row_options options_;
  placement next_;
  status planned_;
  std::atomic<bool> done_{false};
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
