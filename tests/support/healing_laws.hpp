// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_HEALING_LAWS_HPP
#define BALLAST_TESTS_SUPPORT_HEALING_LAWS_HPP

#include <ballast/detail/text.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/transport.hpp>

#include "support/check_complaints.hpp"
#include "support/control_laws.hpp"
#include "support/faulty_transport.hpp"
#include "support/group_runner.hpp"
#include "support/hooked.hpp"
#include "support/patterned_weights.hpp"
#include "support/policies.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

// What becomes of a rebalancer after one rank was late or went wrong once, on any transport and control plane: one
// `resume` on all ranks brings it back.
namespace ballast_test {

/// What goes wrong once, on one rank.
struct mishap {
  char const* name;
  char const* late_at = nullptr;  ///< hook point at which the rank is held up
  int tenths = 15;                ///< of the timeout, how long
  message_fault message = message_fault::none;
  bool no_staging = false;
  bool policy_throws = false;
  bool other_plan = false;
  bool misses_a_call = false;
  bool misses_words = false;  ///< asynchronous: the words of one exchange
  bool observer_throws = false;
  bool bytes_per_step = false;  ///< layers that arrive over several steps

  /// May end without any rank failing.
  [[nodiscard]] bool harmless() const { return observer_throws || misses_words || late_at != nullptr; }
};

/// Each kind once; how long a rank is held up, from a tenth of the timeout to three of them, is drawn from the seed.
inline std::vector<mishap> all_mishaps(std::uint64_t seed) {
  std::vector<mishap> list;
  dice random{seed};
  for (auto const* const point : {"before reduce", "before agree", "after agree", "before start", "before wait",
                                  "before vote", "after vote", "before commit", "in commit"}) {
    list.push_back({.name = point, .late_at = point, .tenths = 1 + random.below(30)});
  }
  list.push_back({.name = "a lost message", .message = message_fault::lose});
  list.push_back({.name = "a doubled message", .message = message_fault::duplicate});
  list.push_back({.name = "a truncated message", .message = message_fault::truncate});
  list.push_back({.name = "a flipped bit", .message = message_fault::flip_bit});
  list.push_back({.name = "no staging", .no_staging = true});
  list.push_back({.name = "no staging, layers over several steps", .no_staging = true, .bytes_per_step = true});
  list.push_back({.name = "a policy that throws", .policy_throws = true});
  list.push_back({.name = "another plan", .other_plan = true});
  list.push_back({.name = "a call that is missed", .misses_a_call = true});
  list.push_back({.name = "words that are missed", .misses_words = true});
  list.push_back({.name = "an observer that throws", .observer_throws = true});
  return list;
}

/// Rotates every layer's experts by one slot, and does something else once when it is told to.
struct wayward_placement {
  enum deed { rotate, throw_bad_alloc, plan_otherwise };
  deed* next_deed;

  [[nodiscard]] ballast::status plan(ballast::load_history_view history, ballast::placement const& current,
                                     ballast::topology const& where, ballast::placement& next) const {
    auto const now = next_deed == nullptr ? rotate : std::exchange(*next_deed, rotate);
    if (now == throw_bad_alloc) { throw std::bad_alloc{}; }
    if (now == plan_otherwise) { return keep_placement{}.plan(history, current, where, next); }
    return rotate_placement{}.plan(history, current, where, next);
  }
  [[nodiscard]] constexpr ballast::relabel_scope interchangeable() const noexcept {
    return ballast::relabel_scope::none;
  }
  void describe(ballast::digest& out) const { out.add(std::string_view{"wayward_placement"}); }
};

/// `layers_per_chunk<>`, or so many bytes a step.
struct layers_or_bytes : ballast::layers_per_chunk<> {
  std::int64_t bytes = 1 << 30;
  [[nodiscard]] std::int64_t step_bytes() const noexcept { return bytes; }
  void describe(ballast::digest& out) const {
    ballast::layers_per_chunk<>::describe(out);
    out.add(bytes);
  }
};

/// Believes what the events say, as an engine's router would, and throws when it is told to.
class believing_observer final : public ballast::observer {
public:
  bool throws = false;
  std::vector<std::uint64_t> commits;  // [L] events that named the layer
  bool told_failed_first = false;      // a layer was named after the failure that ended its cycle
  bool failed = false;

  explicit believing_observer(ballast::index_t num_layers) : commits(static_cast<std::size_t>(num_layers)) {}

  void on_event(ballast::event const& what) override {
    if (what.kind == ballast::event_kind::failed) { failed = true; }
    if (what.kind == ballast::event_kind::commit || what.kind == ballast::event_kind::shares) {
      told_failed_first = told_failed_first || failed;
      for (auto const layer : what.layers) { ++commits[static_cast<std::size_t>(layer)]; }
    }
    if (std::exchange(throws, false)) { throw 7; }
  }
};

/// One rank of a group that meets with a mishap.
template <class Endpoint>
class healing_rank {
public:
  static constexpr ballast::index_t num_layers = 4;
  static constexpr std::uint64_t clean_cycles = 20;

  healing_rank(Endpoint& self, law_log& log, mishap const& what, bool asynchronous, ballast::nanoseconds_t timeout)
      : self_{self},
        log_{log},
        what_{what},
        asynchronous_{asynchronous},
        timeout_{timeout},
        where_{{self.num_ranks(), 1, 3, 0}},
        initial_{ballast::trivial_placement({num_layers, where_.num_slots() - 1, where_.num_slots()})},
        weights_{where_, self.rank(), initial_, {{41, 41}, {30, 32}}},
        store_{where_, num_layers, 1536},
        hook_{[this](char const* point) { reach(point); }},
        control_{self.control, hook_},
        transport_{self.transport, hook_},
        observer_{num_layers},
        moved_{where_,
               initial_,
               {ballast::window_recorder{num_layers, initial_.num_logical(), {1, 1}},
                wayward_placement{&deed_},
                layers_or_bytes{ballast::layers_per_chunk{2}, what.bytes_per_step ? 71 : 1 << 30},
                {.interval = 1,
                 .timeout = timeout,
                 .asynchronous = asynchronous,
                 .verify = what.message == message_fault::flip_bit},
                &observer_},
               store_,
               transport_,
               control_} {
    weights_.add_to(store_);
    store_.at = hook_;
    store_.out_of_memory = [this] { return what_.no_staging && strike(); };
  }

  void run() {
    if (!log_.expect_ok(moved_.start(), name("start"))) { return; }
    for (int step = 0; step < 7; ++step) { static_cast<void>(pass(false)); }
    armed_ = is_victim();
    if (armed_ && what_.message != message_fault::none) {
      transport_.arm(what_.message, 1, [this] { armed_ = false; });
    }
    if (armed_ && what_.policy_throws) { deed_ = wayward_placement::throw_bad_alloc; }
    if (armed_ && what_.other_plan) { deed_ = wayward_placement::plan_otherwise; }
    if (armed_ && what_.observer_throws) { observer_.throws = true; }
    // Where bytes travel beside the steps it takes some until the mishap strikes, and some until it is felt.
    int calm = 0;
    for (int step = 0; step < 400 && calm < 12; ++step) {
      if (asynchronous_) { sleep_for(millisecond / 5); }
      static_cast<void>(pass(true));
      bool const healed = heal();
      auto const armed = self_.tell_all(armed_ ? 1 : 0);
      calm = healed || std::ranges::count(armed, std::uint64_t{1}) > 0 ? 0 : calm + 1;
    }
    armed_ = false;
    transport_.arm(message_fault::none, 0, [] {});
    auto const before = moved_.epoch(0);
    // A machine that is busy with other things may hold a rank up once more.
    int hiccups = 0;
    for (int step = 0; step < 8000 && moved_.epoch(0) < before + clean_cycles; ++step) {
      if (asynchronous_) { sleep_for(millisecond / 5); }  // as long as a pass takes
      auto const result = pass(false);
      bool const hiccup = result.code() == ballast::errc::deadline_exceeded;
      auto const failures = self_.tell_all(hiccup ? 1 : result.ok() ? 0 : 2);
      if (std::ranges::count(failures, std::uint64_t{1}) > 0 && ++hiccups < 3) {
        static_cast<void>(heal());
      } else if (!log_.expect_ok(result, name("a step after it"))) {
        break;
      }
    }
    log_.expect(moved_.epoch(0) >= before + clean_cycles, name("layers moved only "), moved_.epoch(0) - before,
                " times afterwards");
    log_.expect(weights_.first_error(moved_.current()).empty(), name("wrong bytes at the end"));
  }

private:
  [[nodiscard]] bool is_victim() const { return self_.rank() == self_.num_ranks() - 1; }
  [[nodiscard]] std::string name(std::string_view what) const {
    return ballast::detail::concat(asynchronous_ ? "asynchronous, " : "synchronous, ", what_.name, ", ", what_.tenths,
                                   " tenths: ", what);
  }
  bool strike() { return std::exchange(armed_, false); }
  void reach(std::string_view point) {
    if (armed_ && what_.late_at != nullptr && point == what_.late_at && strike()) {
      sleep_for(timeout_ * what_.tenths / 10);
    }
  }

  // One step of an engine: its exchange, a pass, the call. Every rank takes part, whatever has failed.
  ballast::status pass(bool mishaps) {
    auto const words = self_.tell_all(moved_.outgoing());
    bool const misses_words = mishaps && what_.misses_words && all_ready(words) && armed_ && strike();
    auto result = misses_words ? ballast::status{} : moved_.incoming(words);
    if (mishaps && what_.misses_a_call && armed_ && strike()) { return result; }
    for (ballast::index_t layer = 0; layer < num_layers; ++layer) {
      moved_.record_top_k(layer, std::vector<ballast::index_t>{0, 1, 2, self_.rank()});
    }
    if (result.ok()) { result = moved_.on_forward_pass_end(); }
    check();
    return result;
  }
  [[nodiscard]] static bool all_ready(std::vector<std::uint64_t> const& words) {
    return std::ranges::all_of(words, [](std::uint64_t word) { return (word & 3) == 2; });
  }

  // What holds after every call: bytes as the tables say, tables as the events said.
  void check() {
    auto const wrong = weights_.first_error(moved_.current());
    log_.expect(wrong.empty(), name("wrong bytes: "), wrong);
    for (ballast::index_t layer = 0; layer < num_layers; ++layer) {
      log_.expect(observer_.commits[static_cast<std::size_t>(layer)] == moved_.epoch(layer), name("layer "), layer,
                  " is at epoch ", moved_.epoch(layer), ", the events told ",
                  observer_.commits[static_cast<std::size_t>(layer)]);
    }
    log_.expect(!observer_.told_failed_first, name("a commit was told after the failure"));
  }

  // The engine's part: when any rank has failed, all settle and resume.
  /// @return whether anything was wrong
  bool heal() {
    using ballast::rebalancer_state;
    auto const state = moved_.state();
    bool const bad = state == rebalancer_state::failed || state == rebalancer_state::cohort_lost;
    auto const states = self_.tell_all(bad ? 1 : 0);
    if (std::ranges::count(states, std::uint64_t{1}) == 0) { return false; }
    settle();
    if (!log_.expect_ok(moved_.resume(), name("resume"))) {
      log_.expect(false, name("state was "), static_cast<int>(state));
    }
    observer_.failed = false;
    for (ballast::index_t layer = 0; layer < num_layers; ++layer) {
      auto const epochs = self_.tell_all(moved_.epoch(layer));
      log_.expect(std::ranges::count(epochs, moved_.epoch(layer)) == self_.num_ranks(), name("split epochs of layer "),
                  layer);
    }
    return true;
  }
  // A lost rank learns from the others what they have committed.
  void settle() {
    std::vector<std::uint64_t> newest;
    for (ballast::index_t layer = 0; layer < num_layers; ++layer) {
      auto const epochs = self_.tell_all(moved_.epoch(layer));
      newest.push_back(*std::ranges::max_element(epochs));
    }
    if (moved_.state() != ballast::rebalancer_state::cohort_lost) { return; }
    log_.expect(!moved_.resume().ok(), name("a lost rank was resumed"));
    auto const undecided = moved_.undecided_layers();
    if (!log_.expect(!undecided.empty(), name("lost without a way back: "), moved_.failure().message())) { return; }
    observer_.failed = false;  // what is settled is told late
    auto const first = undecided.front();
    bool const committed = newest[static_cast<std::size_t>(first)] > moved_.epoch(first);
    log_.expect_ok(moved_.settle(committed ? ballast::decision::commit : ballast::decision::drop), name("settle"));
    check();
  }

  using transport = std::remove_cvref_t<decltype(std::declval<Endpoint&>().transport)>;
  using control = std::remove_cvref_t<decltype(std::declval<Endpoint&>().control)>;

  Endpoint& self_;
  law_log& log_;
  mishap what_;
  bool asynchronous_;
  ballast::nanoseconds_t timeout_;
  bool armed_ = false;
  wayward_placement::deed deed_ = wayward_placement::rotate;
  ballast::topology where_;
  ballast::placement initial_;
  patterned_weights weights_;
  hooked_store store_;
  hook_function hook_;
  hooked_control<control> control_;
  faulty_transport<transport> transport_;
  believing_observer observer_;
  ballast::rebalancer<ballast::window_recorder, wayward_placement, layers_or_bytes, faulty_transport<transport>,
                      hooked_store, hooked_control<control>>
      moved_;
};

/// Every mishap, in both modes. Call it in a test case. @param timeout long enough for a batch on a busy machine
template <class Runner>
void check_healing(Runner const& runner, ballast::nanoseconds_t timeout = 200 * millisecond,
                   ballast::index_t num_ranks = 3, std::uint64_t seed = 1) {
  CAPTURE(seed);
  for (bool const asynchronous : {false, true}) {
    for (auto const& what : all_mishaps(seed)) {
      CAPTURE(std::string{what.name});
      CAPTURE(what.tenths);
      CAPTURE(asynchronous);
      check_complaints(runner.run(num_ranks, [&](auto& self, law_log& log) {
        healing_rank{self, log, what, asynchronous, timeout}.run();
        static_cast<void>(self.tell_all(0));  // nobody's weights go before its peers are done with them
      }));
    }
  }
}

}  // namespace ballast_test

#endif
