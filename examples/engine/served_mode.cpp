// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "served_mode.hpp"

#include <ballast/detail/clock.hpp>

#include <algorithm>
#include <csignal>
#include <utility>

namespace engine {

served_mode::served_mode(settings const& how, std::span<request const> requests, std::size_t number, rank_links& links)
    : how_{how},
      of_{how.modes[number]},
      number_{number},
      ranks_{links.exchange()},
      where_{how.where},
      passes_{requests, how.schedule},
      before_{passes_},
      runner_{links.make_runner({how, number, requests, counter_, clock_})},
      balancer_{runner_->own_balancer()} {
  record_.name = of_.name;
  record_.is_nonsense = is_nonsense(of_.split);
}

status served_mode::start() {
  if (auto result = runner_->start(); !result.ok()) { return result; }
  if (of_.driver == driver_kind::scheduler) { central_.emplace(how_, of_, ranks_, *balancer_); }
  return {};
}

status served_mode::step() {
  auto const began = ballast::detail::now();
  before_ = passes_;
  clock_.reset();
  auto const plan = passes_.next();
  auto const& mine = plan.tokens[static_cast<std::size_t>(ranks_.rank())];
  step_record facts;
  facts.tokens = plan.num_tokens();
  facts.idle_ranks =
      static_cast<index_t>(std::ranges::count_if(plan.tokens, [](auto const& of) { return of.empty(); }));
  if (central_) {
    if (auto result = clock_.timed([&] { return central_->before_pass(plan); }); !result.ok()) { return result; }
  }
  auto result = runner_->launch(mine, facts.tokens, [this] { stop_if_ordered(stop_place::pass); });
  if (result.ok()) { result = end_step(plan, facts); }
  if (!result.ok()) { return result; }
  facts.duration = ballast::detail::now() - began;
  facts.in_ballast = clock_.spent();
  note_moves(facts);
  if (how_.keeps_routing && number_ == 0) { keep_routing(); }
  record_.steps.push_back(std::move(facts));
  return {};
}

status served_mode::end_step(pass_plan const& plan, step_record& facts) {
  stop_if_ordered(stop_place::balance);
  if (balancer_) {
    ballast::pass_info const pass{.phase = plan.phase(), .tokens = plan.num_tokens()};
    // A failure is in the words that the ranks exchange.
    static_cast<void>(clock_.timed([&] { return balancer_->end_pass(pass); }));
  }
  if (central_) {
    if (auto result = clock_.timed([&] { return central_->after_pass(where_); }); !result.ok()) { return result; }
  }
  // Where passes run on a device, ballast was called while this one did.
  if (auto result = runner_->finish(); !result.ok()) { return result; }
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
  auto const width = runner_->work().size() + 1;
  auto const ranks = static_cast<std::size_t>(where_.num_ranks());
  std::vector<std::uint64_t> mine{balancer_ ? balancer_->outgoing() : 0};
  mine.insert(mine.end(), runner_->work().begin(), runner_->work().end());
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
    static_cast<void>(clock_.timed([&] { return balancer_->incoming(words); }));
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
  facts.stages = counter_.take_stages();
  record_.rebalances = central_ ? central_->rebalances() : counter_.rebalances;
  record_.dropped = central_ ? central_->dropped() : 0;
}

void served_mode::keep_routing() {
  auto const chosen = runner_->routing();
  routing_.resize(record_.steps.size() * chosen.size());
  routing_.insert(routing_.end(), chosen.begin(), chosen.end());
}

void served_mode::undo_steps_after(std::size_t finished) {
  if (static_cast<std::size_t>(passes_.num_passes()) > finished) { passes_ = before_; }
  record_.steps.resize(finished);
}

status served_mode::go_on_without(index_t dead) {
  where_.set_live(dead, false);
  if (auto result = runner_->go_on_without(dead, where_); !result.ok()) { return result; }
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
    out[i] = passes_.rank_of(i) == ranks_.rank() ? static_cast<std::int64_t>(runner_->outcome_of(i)) : 0;
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
