// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "host_runner.hpp"

#include <algorithm>

namespace engine {

namespace {

constexpr index_t spoiled_rank = 1;
constexpr float spoiling = 0.5F;

}  // namespace

host_runner::host_runner(runner_parts const& parts, model const& of, token_exchange& ranks,
                         balancer_maker const& make_balancer)
    : parts_{parts},
      ranks_{ranks},
      where_{parts.how.where},
      experts_{of, parts.how.where, parts.how.initial, ranks.rank()},
      store_{parts.how.where, parts.how.shape.num_layers},
      router_{parts.how.where, parts.how.initial, ranks.rank(), parts.of().split},
      kept_{of, parts.requests},
      forward_{of, where_, experts_, kept_, ranks_},
      routed_by_{parts.how.initial},
      published_(static_cast<std::size_t>(parts.how.shape.num_layers)) {
  if (parts.of().driver == driver_kind::nobody) { return; }
  experts_.add_to(store_);
  balancer_ = make_balancer(store_);
}

status host_runner::start() {
  if (balancer_) {
    if (auto result = balancer_->start(); !result.ok()) { return result; }
  }
  if (parts_.how.damage == damage_kind::weight && ranks_.rank() == spoiled_rank) {
    experts_.first_weight(0, 0) += spoiling;
  }
  return {};
}

status host_runner::launch(std::span<token const> tokens, std::int64_t /*in_batch*/,
                           std::function<void()> const& halfway) {
  routing_.clear();
  if (balancer_) { publish_commits(); }
  return forward_.run(tokens, [&](index_t layer, std::span<index_t const> ids, std::span<index_t> physical) {
    if (layer == 1) { halfway(); }
    return route(layer, ids, physical);
  });
}

status host_runner::route(index_t layer, std::span<index_t const> ids, std::span<index_t> physical) {
  if (balancer_) {
    balancer_->record(layer, ids);
    if (ranks_.rank() != parts_.how.slow_rank) {
      if (auto result = parts_.clock.timed([&] { return balancer_->progress(); }); !result.ok()) { return result; }
    }
  }
  if (parts_.how.keeps_routing) { keep_routing(layer, ids); }
  auto const map = [&] { return router_.map(layer, parts_.how.shape.top_k + 1, ids, physical, ranks_); };
  return parts_.of().split == split_kind::quotas ? parts_.clock.timed(map) : map();
}

void host_runner::keep_routing(index_t layer, std::span<index_t const> ids) {
  auto const experts = static_cast<std::size_t>(parts_.how.shape.num_experts);
  routing_.resize(static_cast<std::size_t>(parts_.how.shape.num_layers) * experts);
  for (auto const id : ids) {
    if (id < parts_.how.shape.num_experts) {
      ++routing_[static_cast<std::size_t>(layer) * experts + static_cast<std::size_t>(id)];
    }
  }
}

void host_runner::publish_commits() {
  static_cast<void>(parts_.clock.timed([&] {
    for (index_t layer = 0; layer < parts_.how.shape.num_layers; ++layer) {
      auto& published = published_[static_cast<std::size_t>(layer)];
      if (balancer_->epoch(layer) == published) { continue; }
      published = balancer_->epoch(layer);
      spoil_move(layer);
      bool const stale = parts_.how.damage == damage_kind::table && ranks_.rank() == spoiled_rank && layer == 0;
      if (!stale) { router_.publish(where_, balancer_->in_force(), layer); }
      auto const row = balancer_->in_force().logical_of_slot(layer);
      std::ranges::copy(row, routed_by_.edit(layer).logical_of_slot.begin());
    }
    return true;
  }));
}

void host_runner::spoil_move(index_t layer) {
  if (parts_.how.damage != damage_kind::move || ranks_.rank() != spoiled_rank || is_spoiled_) { return; }
  auto const first = where_.first_slot(spoiled_rank);
  for (auto slot = first; slot < first + where_.slots_per_rank(); ++slot) {
    auto const old = routed_by_.logical_of_slot(layer)[static_cast<std::size_t>(slot)];
    if (old == balancer_->in_force().logical_of_slot(layer)[static_cast<std::size_t>(slot)]) { continue; }
    experts_.load(layer, slot - first, old);
    is_spoiled_ = true;
    return;
  }
}

status host_runner::go_on_without(index_t dead, ballast::topology const& where) {
  where_ = where;
  if (!balancer_) { return {}; }
  auto const reload = [this](ballast::slot_reload const& one) {
    if (where_.rank_of_slot(one.slot) != ranks_.rank()) { return; }
    experts_.load(one.layer, one.slot - where_.first_slot(ranks_.rank()), one.expert);
  };
  return balancer_->go_on_without(dead, where_, reload);
}

}  // namespace engine
