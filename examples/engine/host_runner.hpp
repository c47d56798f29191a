// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_HOST_RUNNER_HPP
#define BALLAST_EXAMPLES_ENGINE_HOST_RUNNER_HPP

#include <ballast/placement/placement.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/topology.hpp>

#include "forward_pass.hpp"
#include "model.hpp"
#include "model_runner.hpp"
#include "rank_experts.hpp"
#include "router.hpp"
#include "sequences.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace engine {

/// Makes the balancer that moves what is in a store.
using balancer_maker = std::function<std::unique_ptr<balancer>(ballast::host_store&)>;

/// The model in host memory, computed by the rank's thread.
class host_runner final : public model_runner {
public:
  /// @param make_balancer  called in modes in which something moves
  /// @throws std::system_error for parts that do not fit together
  host_runner(runner_parts const& parts, model const& of, token_exchange& ranks, balancer_maker const& make_balancer);

  [[nodiscard]] status start() override;
  [[nodiscard]] balancer* own_balancer() override { return balancer_.get(); }
  [[nodiscard]] status launch(std::span<token const> tokens, std::int64_t in_batch,
                              std::function<void()> const& halfway) override;
  [[nodiscard]] status finish() override { return {}; }
  [[nodiscard]] std::span<std::uint64_t const> work() const override { return forward_.work(); }
  [[nodiscard]] std::span<std::int64_t const> routing() const override { return routing_; }
  [[nodiscard]] std::uint64_t outcome_of(std::size_t request) const override { return kept_.outcome_of(request); }
  [[nodiscard]] status go_on_without(index_t dead, ballast::topology const& where) override;

private:
  /// Route by what has been committed since the last pass.
  void publish_commits();
  [[nodiscard]] status route(index_t layer, std::span<index_t const> ids, std::span<index_t> physical);
  void keep_routing(index_t layer, std::span<index_t const> ids);
  /// Spoil what was asked for. @param layer  that is published
  void spoil_move(index_t layer);

  runner_parts parts_;
  token_exchange& ranks_;
  ballast::topology where_;
  rank_experts experts_;
  ballast::host_store store_;
  router router_;
  sequences kept_;
  forward_pass forward_;
  std::unique_ptr<balancer> balancer_;

  ballast::placement routed_by_;             ///< [L, P] what the tables are of
  std::vector<ballast::epoch_t> published_;  ///< [L]
  bool is_spoiled_ = false;
  std::vector<std::int64_t> routing_;  ///< [L, E]
};

}  // namespace engine

#endif
