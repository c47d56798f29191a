// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_REGIME_HPP
#define BALLAST_POLICIES_REGIME_HPP

#include <ballast/config.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/regime.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Plans the layers of a policy that sees only the buckets since the traffic last changed.
class regime_layer_planner final : public layer_planner {
public:
  regime_layer_planner(std::unique_ptr<layer_planner> inner, index_t change_percent) noexcept
      : inner_{std::move(inner)}, change_percent_{change_percent} {}
  void begin_plan(load_history_view history) override {
    auto const recent = since_last_change(history, change_percent_);
    recent_buckets_ = recent.num_buckets();
    inner_->begin_plan(recent);
  }
  [[nodiscard]] status begin(load_history_view history, placement const& current, index_t layer,
                             placement& next) override {
    auto const recent =
        recent_buckets_ > 0 ? last_buckets(history, recent_buckets_) : since_last_change(history, change_percent_);
    return inner_->begin(recent, current, layer, next);
  }
  [[nodiscard]] status advance(std::int64_t& work) override { return inner_->advance(work); }
  [[nodiscard]] bool is_finished() const noexcept override { return inner_->is_finished(); }

private:
  std::unique_ptr<layer_planner> inner_;
  index_t change_percent_;
  index_t recent_buckets_ = 0;  // since the last change, of the plan that has begun; 0: none has
};

}  // namespace detail

/// Lets another policy see only the buckets since the traffic last changed.
///
/// Measured on traces with switches of task, next to a policy that sees the whole history or any fixed part of it: see
/// `docs/shares.md`.
template <placement_policy Policy>
struct regime_placement {
  [[no_unique_address]] Policy policy{};
  index_t change_percent = default_change_percent;  ///< as in `since_last_change`

  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    if (auto result = validate(); !result.ok()) { return result; }
    return policy.plan(since_last_change(history, change_percent), current, where, next);
  }
  /// Refuse options out of their range, those of the other policy too, naming the value.
  [[nodiscard]] status validate() const {
    // Far above any change that is seen; the product with a distance fits 64 bits.
    constexpr index_t most = 1'000'000;
    if (change_percent <= 100) {
      return {errc::invalid_option,
              detail::concat("regime: change_percent is ", change_percent, ", must be above 100")};
    }
    if (change_percent > most) {
      return {errc::invalid_option,
              detail::concat("regime: change_percent is ", change_percent, ", must be at most ", most)};
    }
    return validate_policy(policy);
  }
  [[nodiscard]] status plan_layers(load_history_view history, placement const& current, topology const& where,
                                   std::span<index_t const> layers, placement& next) const
    requires layerwise_policy<Policy>
  {
    if (auto result = validate(); !result.ok()) { return result; }
    return policy.plan_layers(since_last_change(history, change_percent), current, where, layers, next);
  }
  /// See `divisible_policy`.
  [[nodiscard]] std::unique_ptr<layer_planner> make_layer_planner(topology const& where, index_t num_logical) const
    requires layerwise_policy<Policy>
  {
    auto inner = detail::layer_planner_of(policy, where, num_logical);
    if (inner == nullptr) { return nullptr; }
    return std::make_unique<detail::regime_layer_planner>(std::move(inner), change_percent);
  }
  void choose_layers(load_history_view history, placement const& current, topology const& where,
                     placement& next) const {
    detail::choose_layers_of(policy, since_last_change(history, change_percent), current, where, next);
  }
  [[nodiscard]] bool plans_by_layer() const noexcept { return detail::plans_by_layer(policy); }
  [[nodiscard]] bool may_choose_layers() const noexcept { return detail::may_choose_layers(policy); }
  /// As the other policy says.
  [[nodiscard]] bool follows_loads() const noexcept { return detail::plans_from_loads(policy); }
  [[nodiscard]] constexpr relabel_scope interchangeable() const noexcept { return ballast::interchangeable(policy); }
  /// Mix name and options into what the ranks compare.
  void describe(digest& out) const {
    out.add(std::string_view{"regime"});
    detail::describe_options(*this, out);
  }
  /// See `detail::names_options`.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit("change_percent", detail::option_bits(change_percent));
    detail::for_each_option_of("policy", policy, visit);
  }
};

BALLAST_END_NAMESPACE

#endif
