// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_BALANCER_OVER_HPP
#define BALLAST_EXAMPLES_ENGINE_BALANCER_OVER_HPP

#include <ballast/ballast.hpp>
#include <ballast/policies/any_policy.hpp>

#include "balancer.hpp"
#include "expel.hpp"

#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace engine {

[[nodiscard]] inline ballast::rebalancer_options options_of(balanced_parts const& parts) {
  ballast::rebalancer_options options;
  // What is planned once is planned on more.
  options.interval = parts.of.plans_once ? 4 * parts.how.interval : parts.how.interval;
  options.work_per_plan_call = parts.how.work_per_plan_call;
  options.share_interval = parts.of.refreshes_shares ? 1 : 0;
  options.timeout = parts.how.timeout;
  options.asynchronous = parts.of.asynchronous;
  options.verify = parts.how.verifies;
  return options;
}

/// How long the recorder of a mode remembers.
[[nodiscard]] inline ballast::window_options window_of(balanced_parts const& parts) {
  return {.passes = options_of(parts).interval, .buckets = parts.of.plans_once ? 8 : 1};
}

/// The rebalancer of one rank: a recorder and a store over a transport and a control plane.
template <class Recorder, class Store, class Transport, class Control>
class balancer_over final : public balancer {
public:
  /// @throws std::system_error for options that make no sense
  balancer_over(balanced_parts const& parts, Recorder recorder, Store& store, Transport& wires, Control& control)
      : control_{control},
        rebalancer_{parts.how.where,
                    parts.how.initial,
                    {std::move(recorder), parts.of.policy,
                     ballast::layers_per_chunk<>{parts.of.all_at_once ? parts.how.shape.num_layers
                                                                      : parts.how.layers_per_chunk},
                     options_of(parts), &parts.watcher},
                    store,
                    wires,
                    control} {}

  [[nodiscard]] Recorder const& recorder() const { return rebalancer_.recorder(); }

  [[nodiscard]] status start() override { return rebalancer_.start(); }
  void record(index_t layer, std::span<index_t const> ids) override { rebalancer_.record_top_k(layer, ids); }
  [[nodiscard]] status progress() override { return rebalancer_.progress(); }
  [[nodiscard]] status end_pass(ballast::pass_info const& pass) override {
    return rebalancer_.on_forward_pass_end(pass);
  }
  [[nodiscard]] std::uint64_t outgoing() override { return rebalancer_.outgoing(); }
  [[nodiscard]] status incoming(std::span<std::uint64_t const> words) override { return rebalancer_.incoming(words); }

  [[nodiscard]] ballast::placement const& in_force() const override { return rebalancer_.current(); }
  [[nodiscard]] ballast::epoch_t epoch(index_t layer) const override { return rebalancer_.epoch(layer); }
  [[nodiscard]] ballast::rebalancer_state state() const override { return rebalancer_.state(); }

  [[nodiscard]] status const& failure() const override { return rebalancer_.failure(); }

  void disable() override { rebalancer_.disable(); }
  [[nodiscard]] status begin_move(ballast::placement const& target, index_t layer) override {
    return rebalancer_.begin_apply(target, {&layer, 1});
  }
  [[nodiscard]] status take_loads(std::span<ballast::load_t> tokens) override {
    auto result = rebalancer_.recorder().history(tokens);
    rebalancer_.recorder().clear();
    return result;
  }

  [[nodiscard]] status resume() override { return rebalancer_.resume(); }
  [[nodiscard]] status check_replicas() override { return rebalancer_.check_replicas(); }
  [[nodiscard]] status go_on_without(index_t dead, ballast::topology const& where,
                                     std::function<void(ballast::slot_reload const&)> const& reload) override {
    if (auto result = expel(control_, dead); !result.ok()) { return result; }
    if (auto result = rebalancer_.resume(); !result.ok()) { return result; }
    auto next = rebalancer_.current();
    std::vector<ballast::slot_reload> lost;
    auto result = ballast::replace_lost_experts(where, rebalancer_.current(), next, lost);
    if (!result.ok()) { return result; }
    result = rebalancer_.set_topology(where, next);
    if (!result.ok()) { return result; }
    for (auto const& one : lost) { reload(one); }
    return {};
  }

private:
  Control& control_;
  ballast::rebalancer<Recorder, ballast::any_policy, ballast::layers_per_chunk<>, Transport, Store, Control>
      rebalancer_;
};

/// The same for weights and loads in host memory.
template <class Transport, class Control>
[[nodiscard]] std::unique_ptr<balancer> make_host_balancer(balanced_parts const& parts, ballast::host_store& store,
                                                           Transport& wires, Control& control) {
  ballast::window_recorder recorder{parts.how.shape.num_layers, parts.how.shape.num_experts, window_of(parts)};
  return std::make_unique<balancer_over<ballast::window_recorder, ballast::host_store, Transport, Control>>(
      parts, std::move(recorder), store, wires, control);
}

}  // namespace engine

#endif
