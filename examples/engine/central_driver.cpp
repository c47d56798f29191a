// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "central_driver.hpp"

#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

namespace engine {

central_driver::central_driver(settings const& how, mode const& of, token_exchange& ranks, balancer& own)
    : how_{how}, of_{of}, ranks_{ranks}, own_{own} {
  own_.disable();
}

status central_driver::before_pass(pass_plan const& plan) {
  auto message = is_scheduler() ? decide(plan) : std::vector<index_t>(message_size());
  if (auto result = ranks_.broadcast(std::as_writable_bytes(std::span{message}), 0); !result.ok()) { return result; }
  if (message[0] == drop_layer) { own_.disable(); }
  if (message[0] != move_layer) { return {}; }
  return begin_move(message[1], std::span{message}.subspan(2));
}

status central_driver::begin_move(index_t layer, std::span<index_t const> rows) {
  auto const slots = static_cast<std::size_t>(how_.where.num_slots());
  auto target = own_.in_force();
  std::ranges::copy(rows.first(slots), target.edit(layer).logical_of_slot.begin());
  target.index_replicas(layer);
  auto const shares = rows.subspan(slots);
  if (shares.front() < 0) {
    target.drop_shares();
  } else {
    if (!target.has_shares()) { target.make_shares_even(); }
    std::ranges::copy(shares, target.edit_shares(layer).begin());
  }
  return own_.begin_move(target, layer);
}

std::vector<index_t> central_driver::decide(pass_plan const& plan) {
  std::vector<index_t> message(message_size());
  if (own_.state() == ballast::rebalancer_state::moving) {
    if (++passes_under_way_ < how_.patience) { return message; }
    message[0] = drop_layer;  // the next plan may name it again
    ++dropped_;
    return message;
  }
  if (waiting_.empty() || !may_move(plan)) { return message; }
  auto const layer = waiting_.front();
  waiting_.pop_front();
  passes_under_way_ = 0;
  message[0] = move_layer;
  message[1] = layer;
  auto const shares = message.begin() + 2 + how_.where.num_slots();
  std::ranges::copy(planned_.logical_of_slot(layer), message.begin() + 2);
  std::fill(shares, message.end(), -1);
  if (planned_.has_shares()) { std::ranges::copy(planned_.shares(layer), shares); }
  return message;
}

bool central_driver::may_move(pass_plan const& plan) const {
  auto const room = std::int64_t{how_.schedule.num_ranks} * how_.schedule.tokens_a_rank;
  return plan.num_tokens() * 4 <= room * 3;
}

status central_driver::after_pass(ballast::topology const& where) {
  if (++passes_ % how_.interval != 0) { return {}; }
  std::vector<ballast::load_t> loads(static_cast<std::size_t>(how_.shape.num_layers) *
                                     static_cast<std::size_t>(how_.shape.num_experts));
  if (auto result = own_.take_loads(loads); !result.ok()) { return result; }
  if (auto result = ranks_.all_reduce(loads); !result.ok()) { return result; }
  bool const is_idle = waiting_.empty() && own_.state() != ballast::rebalancer_state::moving;
  return is_scheduler() && is_idle ? plan_moves(where, loads) : status{};
}

status central_driver::plan_moves(ballast::topology const& where, std::vector<ballast::load_t> const& loads) {
  auto const& now = own_.in_force();
  ballast::load_history_view const history{loads, 1, how_.shape.num_layers, how_.shape.num_experts};
  ballast::placement next;
  if (auto result = ballast::plan(of_.policy, history, now, where, next); !result.ok()) { return result; }
  ballast::relabel(now, where, next, {.scope = ballast::interchangeable(of_.policy)});
  for (index_t layer = 0; layer < how_.shape.num_layers; ++layer) {
    if (!std::ranges::equal(next.logical_of_slot(layer), now.logical_of_slot(layer))) { waiting_.push_back(layer); }
  }
  if (!waiting_.empty()) { ++rebalances_; }
  planned_ = std::move(next);
  return {};
}

}  // namespace engine
