// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "served_mode.hpp"

#include <ballast/detail/clock.hpp>

#include <algorithm>
#include <csignal>
#include <utility>

namespace engine {

namespace {

constexpr index_t spoiled_rank = 1;
constexpr float spoiling = 0.5F;

}  // namespace

served_mode::served_mode(settings const& how, model const& of, std::span<request const> requests, std::size_t number,
                         rank_links& links)
    : how_{how},
      of_{how.modes[number]},
      number_{number},
      ranks_{links.exchange()},
      where_{how.where},
      requests_{requests},
      passes_{requests, how.schedule},
      before_{passes_},
      experts_{of, how.where, how.initial, ranks_.rank()},
      store_{how.where, how.shape.num_layers},
      router_{how.where, how.initial, ranks_.rank(), of_.split},
      kept_{of, requests},
      forward_{of, where_, experts_, kept_, ranks_},
      routed_by_{how.initial},
      published_(static_cast<std::size_t>(how.shape.num_layers)) {
  record_.name = of_.name;
  if (of_.driver == driver_kind::nobody) { return; }
  experts_.add_to(store_);
  balancer_ = links.make_balancer(number, {how_, of_, store_, counter_});
}

status served_mode::start() {
  if (balancer_) {
    if (auto result = balancer_->start(); !result.ok()) { return result; }
    if (of_.driver == driver_kind::scheduler) { central_.emplace(how_, of_, ranks_, *balancer_); }
  }
  if (how_.damage == damage_kind::weight && ranks_.rank() == spoiled_rank) { experts_.first_weight(0, 0) += spoiling; }
  return {};
}

template <class Call>
auto served_mode::timed(Call call) {
  auto const began = ballast::detail::now();
  auto result = call();
  in_ballast_ += ballast::detail::now() - began;
  return result;
}

status served_mode::step() {
  auto const began = ballast::detail::now();
  before_ = passes_;
  in_ballast_ = 0;
  auto const plan = passes_.next();
  auto const& mine = plan.tokens[static_cast<std::size_t>(ranks_.rank())];
  step_record facts;
  facts.tokens = plan.num_tokens();
  facts.idle_ranks =
      static_cast<index_t>(std::ranges::count_if(plan.tokens, [](auto const& of) { return of.empty(); }));
  if (central_) {
    if (auto result = timed([&] { return central_->before_pass(plan); }); !result.ok()) { return result; }
  }
  if (balancer_) { publish_commits(); }
  auto result = forward_.run(mine, [this](index_t layer, std::span<index_t const> ids, std::span<index_t> physical) {
    if (layer == 1) { stop_if_ordered(stop_place::pass); }
    return route(layer, ids, physical);
  });
  if (result.ok()) { result = end_step(plan, facts); }
  if (!result.ok()) { return result; }
  facts.duration = ballast::detail::now() - began;
  facts.in_ballast = in_ballast_;
  note_moves(facts);
  record_.steps.push_back(std::move(facts));
  return {};
}

status served_mode::route(index_t layer, std::span<index_t const> ids, std::span<index_t> physical) {
  if (balancer_) {
    balancer_->record(layer, ids);
    if (ranks_.rank() != how_.slow_rank) {
      if (auto result = timed([&] { return balancer_->progress(); }); !result.ok()) { return result; }
    }
  }
  if (how_.keeps_routing && number_ == 0) { keep_routing(layer, ids); }
  auto const map = [&] { return router_.map(layer, how_.shape.top_k + 1, ids, physical, ranks_); };
  return of_.split == split_kind::quotas ? timed(map) : map();
}

void served_mode::publish_commits() {
  auto const began = ballast::detail::now();
  for (index_t layer = 0; layer < how_.shape.num_layers; ++layer) {
    auto& published = published_[static_cast<std::size_t>(layer)];
    if (balancer_->epoch(layer) == published) { continue; }
    published = balancer_->epoch(layer);
    spoil_move(layer);
    bool const stale = how_.damage == damage_kind::table && ranks_.rank() == spoiled_rank && layer == 0;
    if (!stale) { router_.publish(where_, balancer_->in_force(), layer); }
    auto const row = balancer_->in_force().logical_of_slot(layer);
    std::ranges::copy(row, routed_by_.edit(layer).logical_of_slot.begin());
  }
  in_ballast_ += ballast::detail::now() - began;
}

void served_mode::spoil_move(index_t layer) {
  if (how_.damage != damage_kind::move || ranks_.rank() != spoiled_rank || is_spoiled_) { return; }
  auto const first = where_.first_slot(spoiled_rank);
  for (auto slot = first; slot < first + where_.slots_per_rank(); ++slot) {
    auto const old = routed_by_.logical_of_slot(layer)[static_cast<std::size_t>(slot)];
    if (old == balancer_->in_force().logical_of_slot(layer)[static_cast<std::size_t>(slot)]) { continue; }
    experts_.load(layer, slot - first, old);
    is_spoiled_ = true;
    return;
  }
}

status served_mode::end_step(pass_plan const& plan, step_record& facts) {
  stop_if_ordered(stop_place::balance);
  if (balancer_) {
    ballast::pass_info const pass{.phase = plan.phase(), .tokens = plan.num_tokens()};
    // A failure is in the words that the ranks exchange.
    static_cast<void>(timed([&] { return balancer_->end_pass(pass); }));
  }
  if (central_) {
    if (auto result = timed([&] { return central_->after_pass(where_); }); !result.ok()) { return result; }
  }
  stop_if_ordered(stop_place::message);
  if (auto result = exchange_message(facts); !result.ok()) { return result; }
  if (!balancer_) { return {}; }
  bool const has_planned = counter_.plans > 0 && balancer_->state() == ballast::rebalancer_state::recording;
  if (of_.plans_once && has_planned) { balancer_->disable(); }
  if (balancer_->state() == ballast::rebalancer_state::cohort_lost) { return balancer_->failure(); }
  return balancer_->state() == ballast::rebalancer_state::failed ? heal() : status{};
}

/// The step's one message: the word for ballast, and what this rank has computed.
status served_mode::exchange_message(step_record& facts) {
  auto const width = forward_.work().size() + 1;
  auto const ranks = static_cast<std::size_t>(where_.num_ranks());
  std::vector<std::uint64_t> mine{balancer_ ? balancer_->outgoing() : 0};
  mine.insert(mine.end(), forward_.work().begin(), forward_.work().end());
  std::vector<std::uint64_t> all(width * ranks);
  if (auto result = ranks_.all_gather(mine, all); !result.ok()) { return result; }
  std::vector<std::uint64_t> words;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    auto const told = std::span{all}.subspan(rank * width, width);
    words.push_back(told.front());
    bool const lives = where_.is_live(static_cast<index_t>(rank));
    for (auto const rows : told.subspan(1)) { facts.work.push_back(lives ? rows : 0); }
  }
  if (balancer_) {
    static_cast<void>(timed([&] { return balancer_->incoming(words); }));
  }
  return {};
}

/// Moves have failed on all ranks: the placement in force stays, and the next plan comes in time.
status served_mode::heal() {
  ++record_.failures;
  return balancer_->resume();
}

void served_mode::note_moves(step_record& facts) {
  facts.moves = counter_.moves - std::exchange(noted_moves_, counter_.moves);
  facts.bytes = counter_.bytes - std::exchange(noted_bytes_, counter_.bytes);
  record_.rebalances = central_ ? central_->rebalances() : counter_.rebalances;
  record_.dropped = central_ ? central_->dropped() : 0;
}

void served_mode::keep_routing(index_t layer, std::span<index_t const> ids) {
  auto const experts = static_cast<std::size_t>(how_.shape.num_experts);
  auto const row =
      record_.steps.size() * static_cast<std::size_t>(how_.shape.num_layers) + static_cast<std::size_t>(layer);
  routing_.resize(row * experts);
  routing_.resize((row + 1) * experts);
  for (auto const id : ids) {
    if (id < how_.shape.num_experts) { ++routing_[row * experts + static_cast<std::size_t>(id)]; }
  }
}

void served_mode::undo_steps_after(std::size_t finished) {
  if (static_cast<std::size_t>(passes_.num_passes()) > finished) { passes_ = before_; }
  record_.steps.resize(finished);
}

status served_mode::go_on_without(index_t dead) {
  where_.set_live(dead, false);
  if (balancer_) {
    auto const reload = [this](ballast::slot_reload const& one) {
      if (where_.rank_of_slot(one.slot) != ranks_.rank()) { return; }
      experts_.load(one.layer, one.slot - where_.first_slot(ranks_.rank()), one.expert);
    };
    if (auto result = balancer_->go_on_without(dead, where_, reload); !result.ok()) { return result; }
  }
  if (central_) { central_->forget_plan(); }
  std::vector<index_t> live;
  for (index_t rank = 0; rank < where_.num_ranks(); ++rank) {
    if (where_.is_live(rank)) { live.push_back(rank); }
  }
  passes_.move_requests(dead, live);
  return {};
}

void served_mode::write_outcomes(std::span<std::int64_t> out) const {
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = passes_.rank_of(i) == ranks_.rank() ? static_cast<std::int64_t>(kept_.outcome_of(i)) : 0;
  }
}

void served_mode::check_replicas() {
  if (!balancer_) { return; }
  balancer_->disable();
  if (auto const result = balancer_->check_replicas(); !result.ok()) { record_.replicas = result.message(); }
}

void served_mode::stop_if_ordered(stop_place place) const {
  auto const& order = how_.stop;
  if (number_ != 0 || ranks_.rank() != order.rank || place != order.place) { return; }
  if (passes_.num_passes() == order.pass + 1) { std::raise(SIGSTOP); }
}

}  // namespace engine
