// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_RANK_LIFE_HPP
#define BALLAST_TESTS_FAULTS_RANK_LIFE_HPP

#include <ballast/control/engine_control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/runtime/rebalancer.hpp>

#include "faults/engine_channel.hpp"
#include "faults/fault.hpp"
#include "faults/fault_model.hpp"
#include "support/faulty_transport.hpp"
#include "support/hooked.hpp"
#include "support/processes.hpp"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_test {

/// The groups that a rank is a member of.
struct rank_groups {
  ballast::posix::process_group data;   ///< of the transport, and of votes by word
  ballast::posix::process_group plane;  ///< carries votes by message
  ballast::posix::process_group engine;

  [[nodiscard]] ballast::status join(std::string const& name, ballast::index_t rank, ballast::index_t num_ranks,
                                     bool needs_plane) {
    auto result = data.join(name, rank, num_ranks, engine_channel::patience);
    if (result.ok() && needs_plane) { result = plane.join(name + "-plane", rank, num_ranks, engine_channel::patience); }
    if (result.ok()) { result = engine.join(name + "-engine", rank, num_ranks, engine_channel::patience); }
    return result;
  }
  /// The engine's group last: who sees a rank gone there finds it gone everywhere.
  void expel(ballast::index_t rank) {
    static_cast<void>(data.expel(rank));
    if (plane.joined()) { static_cast<void>(plane.expel(rank)); }
    static_cast<void>(engine.expel(rank));
  }
  [[nodiscard]] std::uint64_t gone() const {
    std::uint64_t ranks = 0;
    for (ballast::index_t rank = 0; rank < engine.num_ranks(); ++rank) {
      if (engine.is_expelled(rank)) { ranks |= std::uint64_t{1} << rank; }
    }
    return ranks;
  }
};

/// One rank of a group that a fault strikes: it runs two models until the steps are over or something fails, then does
/// what an engine has to do to go on, and reports in lines of text.
template <class Control>
class rank_life {
public:
  static constexpr int num_steps = 24;
  static constexpr std::uint64_t clean_cycles = 20;
  static constexpr int max_hiccups = 3;

  rank_life(fault const& what, ballast::index_t rank, rank_groups& groups, Control& plane,
            ballast::posix::peer_copy& wires, int report)
      : fault_{what},
        rank_{rank},
        groups_{groups},
        channel_{groups.engine},
        report_{report},
        hook_{[this](char const* point) { reach(point); }},
        control_{plane, hook_},
        transport_{wires, hook_},
        models_{model{what, 0, rank, transport_, control_, hook_, &deviates_next_},
                model{what, 1, rank, transport_, control_, hook_, nullptr}} {
    for (auto& each : models_) {
      each.weights_store().out_of_memory = [this] { return strikes_now(fault_kind::staging_exhausted); };
      each.throws_now = [this] { return strikes_now(fault_kind::observer_throws); };
    }
    arm(transport_);
  }

  void run() {
    for (auto& each : models_) {
      if (auto result = each.moved().start(engine_channel::patience); !result.ok()) {
        return say("cannot start: ", result.message());
      }
    }
    armed_ = true;
    say("started");
    work();
    armed_ = false;
    if (come_back()) { say("back ", least_cycles(), " ", settled_, " ", resumes_, " ", hiccups_); }
    end();
  }

private:
  using hooked_plane = hooked_control<Control>;
  using hooked_wires = faulty_transport<ballast::posix::peer_copy>;
  using model = fault_model<hooked_wires, hooked_plane>;

  template <class... Parts>
  void say(Parts const&... parts) const {
    write_line(report_, ballast::detail::concat(parts...));
  }
  [[nodiscard]] bool is_victim() const noexcept { return rank_ == fault_.victim; }
  void tell_strike() const { say("strike ", ballast::detail::now()); }

  // ---- steps, until something fails ----

  void work() {
    for (int step = 0; fault_.exchanges ? exchange_words(step) : step < num_steps; ++step) {
      reach("between steps");
      if (fault_.is(fault_kind::one_call_behind) && step == fault_.occurrence + 1 && is_victim()) {
        tell_strike();
        continue;
      }
      if (fault_.is(fault_kind::other_plan) && step == 2 * fault_.occurrence && is_victim()) { deviates_next_ = true; }
      bool const deviates = deviates_next_;
      pass(step);
      if (deviates && !deviates_next_) { tell_strike(); }
      if (failed_ && !fault_.exchanges) { return; }
      reach("after a step");
    }
  }

  void pass(int step) {
    for (std::size_t i = 0; i < num_models; ++i) { note(i, models_[i].pass(step, false)); }
    if (!failed_) { return; }
    for (auto& each : models_) {
      if (!each.failed()) { continue; }
      auto const text = each.moved().failure().message();
      for (int i = 0; i < 3; ++i) {
        if (each.moved().on_forward_pass_end().message() != text) { say("the failure changed"); }
      }
    }
  }
  void note(std::size_t i, ballast::status const& result) {
    if (result.ok() || failed_) { return; }
    failed_ = true;
    say("error ", ballast::detail::now(), " ", result.code().value(), " ", model_names[i], ": ", result.message(),
        held_up_.empty() ? "" : "; the exchange: ", held_up_);
    if (fault_.is(fault_kind::pause_and_expel) && !is_victim()) { groups_.expel(fault_.victim); }
  }

  /// The words of both models, as an engine would send them along with its own. @return false: stop working
  [[nodiscard]] bool exchange_words(int step) {
    engine_word word{.in = engine_word::works, .flag = failed_ ? 1u : 0u, .values = {0, 0, has_done_enough(step)}};
    for (std::size_t i = 0; i < num_models; ++i) { word.values[i] = models_[i].moved().outgoing(); }
    auto const start = ballast::detail::now();
    word.values[3] = static_cast<std::uint64_t>(start);
    auto const timeout = fault_.impatient ? fault_.deadline * 3 / 2 : engine_channel::patience;
    if (auto result = channel_.tell(word, timeout, fault_.impatient); !result.ok()) {
      held_up_ = result.message();
      return !failed_ && result.code() == ballast::errc::deadline_exceeded;
    }
    if (!all_are_in(engine_word::works) || groups_.gone() != 0) { return false; }
    note_delay(ballast::detail::now() - start);
    bool const go_on =
        !channel_.any_flag(1) && channel_.any([&](auto rank) { return channel_.value_of(rank, 2) == 0; });
    for (std::size_t i = 0; i < num_models; ++i) { note(i, models_[i].moved().incoming(channel_.values(i))); }
    return go_on;
  }
  // While the engine waits for a rank nobody looks after the bytes that are on their way.
  void note_delay(ballast::nanoseconds_t taken) {
    if (taken < fault_.deadline / 2) { return; }
    auto const entered = channel_.values(3);
    held_up_ = ballast::detail::concat("rank ", std::ranges::max_element(entered) - entered.begin(), " came last");
  }
  // Bytes that were on their way after the usual number of steps have arrived, or will not.
  [[nodiscard]] std::uint64_t has_done_enough(int step) {
    if (step < num_steps) { return 0; }
    if (step == num_steps) {
      worked_until_ = ballast::detail::now() + 3 * fault_.deadline;
      first_cycles_ = {models_[0].cycles(), models_[1].cycles()};
    }
    sleep_for(millisecond / 2);
    return least_cycles() >= 2 || ballast::detail::now() > worked_until_ ? 1 : 0;
  }

  // ---- what an engine does then ----

  struct again {};    // all ranks meet once more
  struct stopped {};  // this rank does not come back, and has said why

  /// All ranks stop, settle what some do not know, resume, and run clean cycles.
  [[nodiscard]] bool come_back() {
    bool has_told = false;
    for (;;) {
      try {
        meet();
        if (!std::exchange(has_told, true)) { tell_stage("fault"); }
        if (fault_.is(fault_kind::source_overwritten)) { return false; }
        heal();
        serve();
        meet();
        tell_stage("end");
        return true;
      } catch (again const&) {
      } catch (stopped const&) { return false; }
    }
  }
  template <class... Parts>
  [[noreturn]] void stop(Parts const&... why) const {
    say("not back: ", why...);
    throw stopped{};
  }
  // Only a machine that is busy with other things makes a rank late once more.
  template <class... Parts>
  [[noreturn]] void try_again(bool is_late, Parts const&... why) {
    if (!is_late || ++hiccups_ > max_hiccups) { stop(why...); }
    throw again{};
  }

  // Everybody is heard. Ranks that have died are shut out; then all meet again.
  void tell(engine_word const& word) {
    if (auto const result = channel_.tell(word); !result.ok()) {
      if (result.code() == ballast::errc::stale_membership) {
        say("expelled");
        throw stopped{};
      }
      if (result.code() != ballast::errc::peer_lost) { stop("the engine's exchange: ", result.message()); }
      groups_.expel(result.rank());
      throw again{};
    }
    if (word.in != engine_word::meets && !all_are_in(word.in)) { throw again{}; }
  }
  [[nodiscard]] bool all_are_in(engine_word::phase phase) const {
    return !channel_.any([&](std::size_t rank) { return channel_.phase_of(rank) != phase; });
  }
  // Exchanges that a rank has missed are made up for.
  void meet() {
    do {
      tell({.in = engine_word::meets, .flag = groups_.gone(), .values = {is_bad() ? 1u : 0u}});
    } while (!all_are_in(engine_word::meets) ||
             channel_.any([&](std::size_t rank) { return channel_.flag_of(rank) != channel_.flag_of(0); }));
    gone_ = channel_.flag_of(0);
    is_due_ = channel_.max_value(0) != 0 || gone_ != left_out_;
  }
  [[nodiscard]] bool is_bad() const { return models_[0].failed() || models_[1].failed(); }

  void heal() {
    if (!is_due_) { return; }
    settle();
    resume();
    if (gone_ == left_out_) { return; }
    ballast::status failure;
    for (auto& each : models_) {
      if (auto result = each.go_on_without(gone_); !result.ok()) { failure = result; }
    }
    judge(engine_word::judges, failure, "set_topology: ");
    left_out_ = gone_;
  }
  void tell_epochs() {
    engine_word word{.in = engine_word::settles};
    std::size_t at = 0;
    for (auto const& each : models_) {
      for (ballast::index_t layer = 0; layer < each.moved().current().num_layers(); ++layer) {
        word.values[at++] = each.moved().epoch(layer);
      }
    }
    tell(word);
  }
  // What another rank has committed was committed.
  void settle() {
    tell_epochs();
    std::size_t at = 0;
    for (auto& each : models_) {
      auto& moved = each.moved();
      auto const first_of_model = std::exchange(at, at + static_cast<std::size_t>(moved.current().num_layers()));
      if (!each.is_lost()) { continue; }
      if (moved.resume().ok()) { stop("a lost rank was resumed"); }
      if (moved.undecided_layers().empty()) { stop("lost without a way back: ", moved.failure().message()); }
      auto const layer = moved.undecided_layers().front();
      bool const committed = channel_.max_value(first_of_model + static_cast<std::size_t>(layer)) > moved.epoch(layer);
      auto const result = moved.settle(committed ? ballast::decision::commit : ballast::decision::drop);
      if (!result.ok()) { stop("settle: ", result.message()); }
      ++settled_;
    }
  }
  void resume() {
    ballast::status failure;
    for (auto& each : models_) {
      if (auto result = each.moved().resume(); !result.ok()) { failure = result; }
    }
    ++resumes_;
    judge(engine_word::resumes, failure, "resume: ");
  }
  // All ranks hear how it went for each of them.
  void judge(engine_word::phase phase, ballast::status const& result, char const* what) {
    enum : std::uint64_t { good, late, wrong, changed };
    auto const how = result.ok() ? good : is_late(result) ? late : wrong;
    tell({.in = phase, .flag = groups_.gone() != gone_ ? changed : how});
    if (channel_.any_flag(changed)) { throw again{}; }
    bool const any_late = channel_.any_flag(late);
    if (any_late || channel_.any_flag(wrong)) { try_again(any_late, what, result.message()); }
  }
  [[nodiscard]] static bool is_late(ballast::status const& result) {
    return result.code() == ballast::errc::deadline_exceeded;
  }

  void serve() {
    auto const deadline = ballast::detail::now() + engine_channel::patience / 2;
    first_cycles_ = {models_[0].cycles(), models_[1].cycles()};
    for (int step = 0; least_cycles() < clean_cycles; ++step) {
      if (ballast::detail::now() > deadline) { stop("only ", least_cycles(), " cycles in ", step, " steps"); }
      engine_word word{.in = engine_word::serves};
      for (std::size_t i = 0; i < num_models; ++i) { word.values[i] = models_[i].moved().outgoing(); }
      tell(word);
      std::array const words{channel_.values(0), channel_.values(1)};
      ballast::status failure;
      for (std::size_t i = 0; i < num_models; ++i) {
        auto result = models_[i].moved().incoming(words[i]);
        if (result.ok()) { result = models_[i].pass(step, true); }
        if (!result.ok() && failure.ok()) { failure = result; }
      }
      judge(engine_word::judges, failure, "a clean step: ");
    }
  }
  [[nodiscard]] std::uint64_t least_cycles() const {
    return std::min(models_[0].cycles() - first_cycles_[0], models_[1].cycles() - first_cycles_[1]);
  }

  // ---- reports ----

  void tell_stage(char const* name) const {
    say("stage ", name);
    for (std::size_t i = 0; i < num_models; ++i) {
      auto const& moved = models_[i].moved();
      say("state ", i, " ", static_cast<int>(moved.state()));
      if (models_[i].failed()) { say("why ", model_names[i], ": ", moved.failure().message()); }
      auto const wrong = models_[i].first_error();
      say("bytes ", i, " ", wrong.empty() ? "right" : wrong);
      for (ballast::index_t layer = 0; layer < moved.current().num_layers(); ++layer) {
        auto line = ballast::detail::concat("layer ", i, " ", layer, " ", moved.epoch(layer));
        for (auto const expert : moved.current().logical_of_slot(layer)) {
          line += ballast::detail::concat(" ", expert);
        }
        say(line);
      }
    }
  }
  [[noreturn]] void end() const {
    say("ends");
    for (;;) { ::pause(); }  // nobody leaves before the others have found out what is wrong
  }

  // ---- strikes ----

  void arm(hooked_wires& transport) {
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
      for (auto& each : models_) { each.overwrite_sources(); }
      return;
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
    if (!is_victim() || !armed_ || !fault_.is(kind) || seen_++ != fault_.occurrence) { return false; }
    tell_strike();
    return true;
  }

  fault fault_;
  ballast::index_t rank_;
  rank_groups& groups_;
  engine_channel channel_;
  int report_;
  int seen_ = 0;
  bool armed_ = false;
  bool deviates_next_ = false;
  bool failed_ = false;
  ballast::nanoseconds_t worked_until_ = 0;
  std::string held_up_;         // what the engine's exchange tells of a rank that it has waited for
  std::uint64_t gone_ = 0;      // ranks that are no members any more, as all ranks know
  std::uint64_t left_out_ = 0;  // those of them that the topology knows
  bool is_due_ = false;         // a resume
  std::uint64_t settled_ = 0;   // models that were lost
  std::uint64_t resumes_ = 0;
  std::uint64_t hiccups_ = 0;
  std::array<std::uint64_t, num_models> first_cycles_{};  // before the clean ones

  hook_function hook_;
  hooked_plane control_;
  hooked_wires transport_;
  std::array<model, num_models> models_;
};

/// Bring rank `rank` of the group `name` to life.
inline void live(fault const& what, ballast::index_t rank, std::string const& name, int report) {
  rank_groups groups;
  bool const by_word = what.votes == votes_by::word;
  if (auto result = groups.join(name, rank, what.num_ranks, !by_word); !result.ok()) {
    return write_line(report, "cannot join: " + result.message());
  }
  ballast::posix::peer_copy wires{groups.data};
  if (by_word) { return rank_life{what, rank, groups, groups.data, wires, report}.run(); }
  ballast::engine_control<gather_of_group, membership_of_group> plane{
      rank,
      what.num_ranks,
      gather_of_group{&groups.plane, what.votes == votes_by::strict_messages && rank == what.victim},
      {.frame_words = 64},
      membership_of_group{&groups.plane}};
  rank_life{what, rank, groups, plane, wires, report}.run();
}

}  // namespace ballast_test

#endif
