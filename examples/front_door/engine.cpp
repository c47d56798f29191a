// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "engine.hpp"

#include <ballast/ballast.hpp>
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/transport/in_process.hpp>

#include <cstddef>
#include <string_view>

namespace {

ballast::topology const where{{.num_ranks = 4, .num_nodes = 2, .slots_per_rank = 3}};

}  // namespace

engine::engine(ballast::in_process_endpoint& ranks)
    : ranks_{&ranks},
      weights_(num_layers, std::vector<float>(std::size_t{3} * floats_per_expert)),
      policy_{std::make_unique<ballast::any_policy>(ballast::incremental_placement{})},
      store_{std::make_unique<ballast::host_store>(where, num_layers)} {
  for (int layer = 0; layer < num_layers; ++layer) {
    auto* const first_expert = weights_[static_cast<std::size_t>(layer)].data();
    store_->add(layer, "weights", first_expert, floats_per_expert * sizeof(float)).or_throw();
  }
}
engine::engine(engine&&) noexcept = default;
engine& engine::operator=(engine&&) noexcept = default;
engine::~engine() = default;

bool engine::plan_with(char const* policy) {
  std::string_view const name{policy};
  if (name == "incremental") {
    *policy_ = ballast::any_policy{ballast::incremental_placement{}};
  } else if (name == "deepseek") {
    *policy_ = ballast::any_policy{ballast::deepseek_placement{}};
  } else {
    return false;
  }
  return true;
}

void engine::serve() {
  auto const initial = ballast::trivial_placement({num_layers, num_experts, where.num_slots()});
  balancer_ =
      std::make_unique<balancer>(where, initial,
                                 ballast::rebalancing{ballast::window_recorder{num_layers, num_experts, {.passes = 10}},
                                                      *policy_,
                                                      ballast::layers_per_chunk{1},
                                                      {.interval = 10}},
                                 *store_, *ranks_);
  balancer_->start().or_throw();
}

void engine::pass(std::vector<std::vector<int>> const& picks) {
  for (int layer = 0; layer < num_layers; ++layer) {
    balancer_->record_top_k(layer, picks[static_cast<std::size_t>(layer)]);
  }
  balancer_->on_forward_pass_end().or_throw();
}

ballast::placement const& engine::placement_in_force() const { return balancer_->current(); }
