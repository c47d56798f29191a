// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_FRONT_DOOR_ENGINE_HPP
#define BALLAST_EXAMPLES_FRONT_DOOR_ENGINE_HPP

#include <ballast/fwd.hpp>

#include <memory>
#include <vector>

/// An engine's rank that keeps its experts balanced. Whoever includes this reads the names of ballast's types and
/// nothing more; planners, rebalancer and transport are compiled in engine.cpp alone.
class engine {
public:
  static constexpr int num_layers = 2, num_experts = 8, floats_per_expert = 1024;

  explicit engine(ballast::in_process_endpoint& ranks);
  engine(engine&&) noexcept;
  engine& operator=(engine&&) noexcept;
  engine(engine const&) = delete;
  engine& operator=(engine const&) = delete;
  ~engine();

  /// Choose how to plan, by name; before `serve`. @return false for a name that nobody has
  bool plan_with(char const* policy);
  void serve();
  /// One forward pass. @param picks  [num_layers, T] logical experts, the router's choice
  void pass(std::vector<std::vector<int>> const& picks);
  [[nodiscard]] ballast::placement const& placement_in_force() const;

private:
  using balancer = ballast::rebalancer<ballast::window_recorder, ballast::any_policy, ballast::layers_per_chunk<>,
                                       ballast::in_process_endpoint>;

  ballast::in_process_endpoint* ranks_;
  std::vector<std::vector<float>> weights_;
  std::unique_ptr<ballast::any_policy> policy_;
  std::unique_ptr<ballast::host_store> store_;
  std::unique_ptr<balancer> balancer_;
};

#endif
