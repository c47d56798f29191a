// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_ANY_POLICY_HPP
#define BALLAST_POLICIES_ANY_POLICY_HPP

#include <ballast/detail/options.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>

#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

BALLAST_BEGIN_NAMESPACE

/// Policy: another one, chosen while the program runs. Plans, options and digest are those of the policy inside, so a
/// rank that holds it directly agrees with one that holds it here.
///
/// Also a way to compile a planner once: make an `any_policy` in one source file, and only that one has to read the
/// planner.
///
/// Copies share the policy, which does not change. Without one, every plan is refused.
/// @complexity one virtual call more than the policy's own.
class any_policy {
public:
  any_policy() = default;
  template <class Policy>
    requires(!std::same_as<Policy, any_policy>) && placement_policy<Policy>
  explicit any_policy(Policy policy) : policy_{std::make_shared<model_of<Policy>>(std::move(policy))} {}

  /// Whether there is a policy inside.
  [[nodiscard]] bool has_value() const noexcept { return policy_ != nullptr; }
  /// @return what the policy says, or `errc::invalid_option` where there is none.
  [[nodiscard]] status validate() const { return policy_ == nullptr ? none() : policy_->validate(); }
  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    return policy_ == nullptr ? none() : policy_->plan(history, current, where, next);
  }
  /// Some layers alone, of a policy that `plans_by_layer`; another one refuses.
  [[nodiscard]] status plan_layers(load_history_view history, placement const& current, topology const& where,
                                   std::span<index_t const> layers, placement& next) const {
    return policy_ == nullptr ? none() : policy_->plan_layers(history, current, where, layers, next);
  }
  /// See `divisible_policy`; null where the policy inside is none.
  [[nodiscard]] std::unique_ptr<layer_planner> make_layer_planner(topology const& where, index_t num_logical) const {
    return policy_ == nullptr ? nullptr : policy_->make_layer_planner(where, num_logical);
  }  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks): the caller has it
  void choose_layers(load_history_view history, placement const& current, topology const& where,
                     placement& next) const {
    if (policy_ != nullptr) { policy_->choose_layers(history, current, where, next); }
  }
  /// Whether that may change anything under the policy inside.
  [[nodiscard]] bool may_choose_layers() const noexcept { return policy_ != nullptr && policy_->may_choose_layers(); }
  /// Whether the policy inside is a `layerwise_policy`.
  [[nodiscard]] bool plans_by_layer() const noexcept { return policy_ != nullptr && policy_->plans_by_layer(); }
  /// Whether layers without tokens are to stay as they are; see `ballast::follows_loads`.
  [[nodiscard]] bool follows_loads() const noexcept { return policy_ != nullptr && policy_->follows_loads(); }
  /// What may change names in the plans of the policy inside.
  [[nodiscard]] relabel_scope interchangeable() const noexcept {
    return policy_ != nullptr ? policy_->interchangeable() : relabel_scope::none;
  }
  void describe(digest& out) const {
    if (policy_ != nullptr) { policy_->describe(out); }
  }
  /// The options of the policy inside, where it names them.
  template <class Visit>
  void for_each_option(Visit visit) const {
    if (policy_ == nullptr) { return; }
    policy_->for_each_option(
        &visit, [](void* to, std::string_view name, std::uint64_t bits) { (*static_cast<Visit*>(to))(name, bits); });
  }

private:
  using visit_option = void (*)(void* to, std::string_view name, std::uint64_t bits);

  class model {
  public:
    model() = default;
    model(model const&) = delete;
    model& operator=(model const&) = delete;
    virtual ~model() = default;
    [[nodiscard]] virtual status validate() const = 0;
    [[nodiscard]] virtual status plan(load_history_view history, placement const& current, topology const& where,
                                      placement& next) const = 0;
    [[nodiscard]] virtual status plan_layers(load_history_view history, placement const& current, topology const& where,
                                             std::span<index_t const> layers, placement& next) const = 0;
    [[nodiscard]] virtual std::unique_ptr<layer_planner> make_layer_planner(topology const& where,
                                                                            index_t num_logical) const = 0;
    virtual void choose_layers(load_history_view history, placement const& current, topology const& where,
                               placement& next) const = 0;
    [[nodiscard]] virtual bool may_choose_layers() const noexcept = 0;
    [[nodiscard]] virtual bool plans_by_layer() const noexcept = 0;
    [[nodiscard]] virtual bool follows_loads() const noexcept = 0;
    [[nodiscard]] virtual relabel_scope interchangeable() const noexcept = 0;
    virtual void describe(digest& out) const = 0;
    virtual void for_each_option(void* to, visit_option visit) const = 0;
  };

  template <class Policy>
  class model_of final : public model {
  public:
    explicit model_of(Policy policy) : policy_{std::move(policy)} {}
    [[nodiscard]] status validate() const override { return validate_policy(policy_); }
    [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                              placement& next) const override {
      return policy_.plan(history, current, where, next);
    }
    [[nodiscard]] status plan_layers([[maybe_unused]] load_history_view history,
                                     [[maybe_unused]] placement const& current, [[maybe_unused]] topology const& where,
                                     [[maybe_unused]] std::span<index_t const> layers,
                                     [[maybe_unused]] placement& next) const override {
      if constexpr (layerwise_policy<Policy>) {
        return policy_.plan_layers(history, current, where, layers, next);
      } else {
        return {errc::invalid_option, "any_policy: the policy inside does not plan layer by layer"};
      }
    }
    [[nodiscard]] std::unique_ptr<layer_planner> make_layer_planner(topology const& where,
                                                                    index_t num_logical) const override {
      return detail::layer_planner_of(policy_, where, num_logical);
    }
    void choose_layers(load_history_view history, placement const& current, topology const& where,
                       placement& next) const override {
      detail::choose_layers_of(policy_, history, current, where, next);
    }
    [[nodiscard]] bool may_choose_layers() const noexcept override { return detail::may_choose_layers(policy_); }
    [[nodiscard]] bool plans_by_layer() const noexcept override { return detail::plans_by_layer(policy_); }
    [[nodiscard]] bool follows_loads() const noexcept override { return detail::plans_from_loads(policy_); }
    [[nodiscard]] relabel_scope interchangeable() const noexcept override { return ballast::interchangeable(policy_); }
    void describe(digest& out) const override { policy_.describe(out); }
    void for_each_option([[maybe_unused]] void* to, [[maybe_unused]] visit_option visit) const override {
      if constexpr (detail::names_options<Policy>) {
        policy_.for_each_option([&visit, &to](std::string_view name, std::uint64_t bits) { visit(to, name, bits); });
      }
    }

  private:
    Policy policy_;
  };

  [[nodiscard]] static status none() { return {errc::invalid_option, "any_policy: there is no policy inside"}; }

  std::shared_ptr<model const> policy_;
};

static_assert(placement_policy<any_policy>);

BALLAST_END_NAMESPACE

#endif
