// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_RANK_LIFE_HPP
#define BALLAST_TESTS_FAULTS_RANK_LIFE_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/placement/policy.hpp>
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/engine_control.hpp>

#include "faults/fault.hpp"
#include "support/faulty_transport.hpp"
#include "support/hooked.hpp"
#include "support/patterned_weights.hpp"
#include "support/processes.hpp"

#include <signal.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_test {

/// Sizes of the groups that faults strike.
struct fault_shape {
  static constexpr ballast::index_t num_layers = 2;
  static constexpr ballast::index_t slots_per_rank = 6;
  static constexpr int num_steps = 16;

  [[nodiscard]] static ballast::topology where(ballast::index_t num_ranks) {
    return ballast::topology{{num_ranks, 1, slots_per_rank, 0}};
  }
  [[nodiscard]] static ballast::placement_shape placement(ballast::index_t num_ranks) {
    return {num_layers, num_ranks * slots_per_rank / 2, num_ranks * slots_per_rank};
  }
};

/// Draws placements in which every expert has two replicas on different ranks, so that no single death loses one. The
/// draw depends on the placement in force, so all ranks draw alike.
struct random_pairs {
  bool const* deviate = nullptr;  ///< true: this rank plans something else

  [[nodiscard]] ballast::status plan(ballast::load_history_view, ballast::placement const& current,
                                     ballast::topology const& where, ballast::placement& next) const {
    ballast::digest seen;
    current.describe(seen);
    dice random{seen.value()};
    next.resize(current.shape());
    for (ballast::index_t layer = 0; layer < current.num_layers(); ++layer) { draw(layer, where, random, next); }
    if (deviate != nullptr && *deviate) {
      auto const map = next.edit(0).logical_of_slot;
      std::swap(map.front(), map[static_cast<std::size_t>(where.slots_per_rank()) - 1]);
      next.index_replicas(0);
    }
    return {};
  }
  void describe(ballast::digest& out) const { out.add(std::string_view{"random_pairs"}); }

private:
  template <class T>
  static void shuffle(std::vector<T>& items, dice& random) {
    for (std::size_t i = items.size(); i > 1; --i) { std::swap(items[i - 1], items[random.below(i)]); }
  }
  static std::vector<ballast::index_t> count_to(ballast::index_t end) {
    std::vector<ballast::index_t> ids;
    for (ballast::index_t id = 0; id < end; ++id) { ids.push_back(id); }
    return ids;
  }
  // Half of the ranks hold every expert once, the other half too.
  static void draw(ballast::index_t layer, ballast::topology const& where, dice& random, ballast::placement& next) {
    auto ranks = count_to(where.num_ranks());
    shuffle(ranks, random);
    auto const map = next.edit(layer).logical_of_slot;
    std::vector<ballast::index_t> experts;
    std::size_t at = 0;
    for (auto const rank : ranks) {
      for (ballast::index_t slot = 0; slot < where.slots_per_rank(); ++slot) {
        if (at % static_cast<std::size_t>(next.num_logical()) == 0) {
          experts = count_to(next.num_logical());
          shuffle(experts, random);
        }
        map[static_cast<std::size_t>(where.first_slot(rank) + slot)] =
            experts[at++ % static_cast<std::size_t>(next.num_logical())];
      }
    }
    next.index_replicas(layer);
  }
};

/// The channel of an engine: nothing but an all-gather.
struct gather_of_group {
  ballast::posix::process_group* group;
  ballast::status operator()(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                             ballast::nanoseconds_t timeout) {
    return group->all_gather(mine, all, timeout);
  }
};
struct membership_of_group {
  ballast::posix::process_group const* group;
  std::uint64_t operator()() const { return group->membership(); }
};

/// One rank of a group that a fault strikes: it runs a rebalancer until the steps are over or something fails, and
/// reports in lines of text.
class rank_life {
public:
  rank_life(fault const& what, ballast::index_t rank, std::string group_name, int report)
      : fault_{what}, rank_{rank}, name_{std::move(group_name)}, report_{report} {}

  void run() {
    ballast::posix::process_group group;
    if (auto result = group.join(name_, rank_, fault_.num_ranks, patience); !result.ok()) {
      return say("cannot join: ", result.message());
    }
    if (fault_.is(fault_kind::one_call_behind)) {
      if (auto result = engine_.join(name_ + "-engine", rank_, fault_.num_ranks, patience); !result.ok()) {
        return say("cannot join: ", result.message());
      }
    }
    ballast::posix::peer_copy wires{group};
    if (fault_.engine_control) {
      ballast::engine_control<gather_of_group, membership_of_group> control{
          rank_, fault_.num_ranks, gather_of_group{&group}, {.frame_words = 64}, membership_of_group{&group}};
      live(group, wires, control);
    } else {
      live(group, wires, group);
    }
  }

private:
  struct throwing_observer final : ballast::observer {
    int countdown = -1;
    std::function<void()> struck;
    void on_event(ballast::event const&) override {
      if (countdown < 0 || countdown-- > 0) { return; }
      struck();
      throw std::runtime_error{"an observer that throws"};
    }
  };

  template <class... Parts>
  void say(Parts const&... parts) const {
    write_line(report_, ballast::detail::concat(parts...));
  }
  [[nodiscard]] bool is_victim() const noexcept { return rank_ == fault_.victim; }
  void tell_strike() const { say("strike ", ballast::detail::now()); }

  template <class Control>
  void live(ballast::posix::process_group& group, ballast::posix::peer_copy& wires, Control& plane) {
    auto const where = fault_shape::where(fault_.num_ranks);
    auto const sizes = fault_shape::placement(fault_.num_ranks);
    ballast::placement initial = ballast::trivial_placement(sizes);
    static_cast<void>(random_pairs{}.plan({}, ballast::placement{initial}, where, initial));

    auto const hook = [this](char const* point) { reach(point); };
    patterned_weights weights{where, rank_, initial, {{4099, 4160}, {33, 40}}};
    poisoning_store<hooked_store> store{where, sizes.num_layers};
    weights.add_to(store);
    store.at = hook;
    store.out_of_memory = [&] { return strikes_now(fault_kind::staging_exhausted); };
    overwrite_source_ = [&] {
      for (ballast::index_t layer = 0; layer < sizes.num_layers; ++layer) {
        for (ballast::index_t slot = 0; slot < fault_shape::slots_per_rank; ++slot) {
          std::ranges::fill(weights.expert(layer, 0, slot), std::byte{0x11});
        }
      }
    };
    hooked_control control{plane, hook};
    faulty_transport transport{wires, hook};
    arm(transport);
    throwing_observer watcher;
    if (is_victim() && fault_.is(fault_kind::observer_throws)) {
      watcher.countdown = fault_.occurrence;
      watcher.struck = [this] { tell_strike(); };
    }
    ballast::rebalancer moved{where,
                              initial,
                              ballast::window_recorder{sizes.num_layers, sizes.num_logical},
                              random_pairs{is_victim() ? &deviate_ : nullptr},
                              ballast::layers_per_chunk{1},
                              transport,
                              store,
                              control,
                              {.interval = 1, .timeout = fault_.deadline, .verify = fault_.verify},
                              &watcher};
    armed_ = false;
    if (auto result = moved.start(); !result.ok()) { return say("cannot start: ", result.message()); }
    armed_ = true;
    say("started");
    auto const failure = step_until_failure(moved);
    if (!failure.ok()) {
      if (fault_.is(fault_kind::pause_and_expel) && !is_victim()) { static_cast<void>(group.expel(fault_.victim)); }
      for (int i = 0; i < 3; ++i) {
        if (moved.on_forward_pass_end().message() != failure.message()) { say("the failure changed"); }
      }
    }
    tell_end(moved, weights);
  }

  template <class Rebalancer>
  [[nodiscard]] ballast::status step_until_failure(Rebalancer& moved) {
    for (int step = 0; step < fault_shape::num_steps; ++step) {
      // Where it matters: a forward pass needs every rank, so that a rank which misses a step cannot catch up.
      if (engine_.joined() && !engine_.all_reduce({}, 10 * fault_.deadline).ok()) { return {}; }
      reach("between steps");
      if (fault_.is(fault_kind::one_call_behind) && step == fault_.occurrence + 1 && is_victim()) {
        tell_strike();
        continue;
      }
      if (fault_.is(fault_kind::other_plan) && step == 3 * fault_.occurrence && is_victim()) {
        tell_strike();
        deviate_ = true;
      }
      auto result = moved.on_forward_pass_end();
      if (!result.ok()) {
        say("error ", ballast::detail::now(), " ", result.code().value(), " ", result.message());
        return result;
      }
      reach("after a step");
    }
    return {};
  }

  template <class Rebalancer>
  [[noreturn]] void tell_end(Rebalancer const& moved, patterned_weights const& weights) const {
    say("state ", static_cast<int>(moved.state()));
    if (moved.observer_exceptions() != 0) { say("exceptions ", moved.observer_exceptions()); }
    auto const wrong = weights.first_error(moved.current());
    say("bytes ", wrong.empty() ? "right" : wrong);
    for (ballast::index_t layer = 0; layer < fault_shape::num_layers; ++layer) {
      auto line = ballast::detail::concat("layer ", layer, " epoch ", moved.epoch(layer));
      for (auto const expert : moved.current().logical_of_slot(layer)) { line += ballast::detail::concat(" ", expert); }
      say(line);
    }
    say("ends");
    for (;;) { ::pause(); }  // nobody leaves before the others have found out what is wrong
  }

  template <class Transport>
  void arm(Transport& transport) {
    if (!is_victim()) { return; }
    auto const arm_with = [&](message_fault what) {
      transport.arm(what, fault_.occurrence, [this] { tell_strike(); });
    };
    switch (fault_.kind) {
      case fault_kind::message_lost: return arm_with(message_fault::lose);
      case fault_kind::message_doubled: return arm_with(message_fault::duplicate);
      case fault_kind::message_truncated: return arm_with(message_fault::truncate);
      case fault_kind::bit_flipped: return arm_with(message_fault::flip_bit);
      default: return;
    }
  }

  // A step of the protocol: strike if this is the one.
  void reach(std::string_view point) {
    if (!is_victim() || !armed_) { return; }
    if (fault_.is(fault_kind::pause_in_vote) && point == "before vote" && fault_.occurrence == seen_++) {
      return say("votes");  // and the parent strikes
    }
    if (fault_.is(fault_kind::source_overwritten) && point == "after start" && fault_.occurrence == seen_++) {
      tell_strike();
      return overwrite_source_();
    }
    bool const at_point = fault_.is(fault_kind::kill_at_point) || fault_.is(fault_kind::pause_at_point) ||
                          fault_.is(fault_kind::pause_and_expel);
    if (!at_point || point != fault_.point || seen_++ != fault_.occurrence) { return; }
    tell_strike();
    if (fault_.kills()) { ::raise(SIGKILL); }
    say("stops");
    ::raise(SIGSTOP);
  }
  [[nodiscard]] bool strikes_now(fault_kind kind) {
    if (!is_victim() || !fault_.is(kind) || seen_++ != fault_.occurrence) { return false; }
    tell_strike();
    return true;
  }

  fault fault_;
  ballast::posix::process_group engine_;
  ballast::index_t rank_;
  std::string name_;
  int report_;
  int seen_ = 0;
  bool armed_ = true;
  bool deviate_ = false;
  std::function<void()> overwrite_source_;
};

}  // namespace ballast_test

#endif
