// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_CORE_HPP
#define BALLAST_RUNTIME_DETAIL_CORE_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/detail/agreement.hpp>
#include <ballast/runtime/detail/batch_report.hpp>
#include <ballast/runtime/detail/cycle_mover.hpp>
#include <ballast/runtime/detail/guard.hpp>
#include <ballast/runtime/detail/layer_planning.hpp>
#include <ballast/runtime/detail/ledger.hpp>
#include <ballast/runtime/detail/outcome.hpp>
#include <ballast/runtime/detail/plan_task.hpp>
#include <ballast/runtime/detail/set_up.hpp>
#include <ballast/runtime/detail/share_refresh.hpp>
#include <ballast/runtime/detail/store_claim.hpp>
#include <ballast/runtime/detail/teller.hpp>
#include <ballast/runtime/detail/transport_share.hpp>
#include <ballast/runtime/detail/words.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/rebalancer_options.hpp>
#include <ballast/runtime/rebalancer_state.hpp>
#include <ballast/runtime/rebalancing.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// All that a rebalancer consists of, and how it ends what it is at. What its calls do with that stands in the headers
/// beside this one: `start_up`, `planning`, `step`, `word_exchange`, `recovery`, `operator_calls`.
template <class Recorder, class Policy, class Schedule, class Transport, class Store, class Control>
struct rebalancer_core {
  using recorder_type = Recorder;
  using policy_type = Policy;
  using control_type = Control;

  struct told_word {
    bool open = false;  // no words have come in since
    step_word word;
  };

  struct task_elsewhere {
    std::shared_ptr<plan_task<Policy>> plan;
    nanoseconds_t since = 0;
  };
  struct live_placement {
    topology where;
    placement in_force;
  };

  rebalancer_core(topology where, placement initial, rebalancing<Recorder, Policy, Schedule> parts, Store& a_store,
                  Transport& a_transport, Control& control)
      : recorder{std::move(parts.recorder)},
        policy{std::move(parts.policy)},
        schedule{std::move(parts.schedule)},
        options{parts.options},
        store{&a_store},
        transport{&a_transport},
        claim{&a_store},
        share{a_transport, a_store},
        next{initial},
        books{std::move(where), std::move(initial), a_store, a_transport.rank()},
        ranks{control, options.timeout},
        events{parts.watcher},
        mover{books, next, schedule, a_transport, a_store, ranks, events, options},
        shares{a_store} {}
  rebalancer_core(rebalancer_core const&) = delete;
  rebalancer_core& operator=(rebalancer_core const&) = delete;
  ~rebalancer_core() {
    mover.abandon();
    share.give_back();
    if (started) { disconnect(*store, *transport); }
  }

  [[nodiscard]] index_t rank() const noexcept { return transport->rank(); }
  [[nodiscard]] bool is_moving() const noexcept { return state == rebalancer_state::moving; }
  [[nodiscard]] bool is_recording() const noexcept { return state == rebalancer_state::recording; }
  [[nodiscard]] bool is_planning() const noexcept { return state == rebalancer_state::planning; }

  [[nodiscard]] status refuse_unless_started(char const* name) const {
    if (started) { return {}; }
    return {errc::invalid_option, concat(name, ": start() was not called, or failed")};
  }
  [[nodiscard]] status refuse_unless_recording(char const* name) const {
    if (auto result = refuse_unless_started(name); !result.ok()) { return result; }
    if (is_planning() || is_moving()) { return {errc::busy, concat(name, ": a rebalancing cycle is running")}; }
    return failure;
  }
  /// Another rank's words stand in for one that the group has shut out, and a plan would move experts from and to it.
  [[nodiscard]] status refuse_expelled() {
    if constexpr (expelling_plane<Control>) {
      auto const& where = books.where();
      for (index_t other = 0; other < where.num_ranks(); ++other) {
        if (!where.is_live(other) || !ranks.control().is_expelled(other)) { continue; }
        return {errc::invalid_topology,
                concat("rebalancer: rank ", other, " was expelled and the topology still has it alive: ",
                       started ? "resume and set_topology are due" : "mark it as dead there, topology::set_live"),
                other};
      }
    }
    return {};
  }

  [[nodiscard]] std::uint64_t layout_of_weights() const {
    digest layout;
    store->describe(layout);
    return layout.value();
  }
  /// Numbers of what peers read were given out by `start`: those of what came later are another model's, or nobody's.
  [[nodiscard]] status refuse_other_weights() const {
    if (layout_of_weights() == started_layout) { return {}; }
    return {errc::invalid_weights,
            "rebalancer: tensors were added to the store after start: make a rebalancer anew, with all of them"};
  }

  /// Everything that must be configured alike.
  [[nodiscard]] set_up configuration() const {
    set_up words;
    words.add(books.where());
    words.add("layers", option_bits(books.in_force().num_layers()));
    words.add("experts", option_bits(books.in_force().num_logical()));
    words.add_part("options", options);
    words.add_part("recorder", recorder);
    words.add_part("policy", policy);
    words.add_part("schedule", schedule);
    words.add_options("transport", *transport);
    words.add("staging limit", option_bits(store->staging_limit()));
    return words;
  }
  /// Compare where the ranks stand, and one thing more; agree on the next free tag.
  [[nodiscard]] status agree_on(std::string_view what, std::uint64_t value) {
    agreed_word const words[] = {{"step", books.step()},
                                 {"configuration", configuration().value(), true},
                                 {"epochs", books.digest_of_epochs(), true},
                                 {"membership", ranks.control().membership()},
                                 {"groups committed", books.committed()},
                                 {what, value, true}};
    return ranks.compare(words);
  }

  void notify(event what) {
    what.step = books.step();
    events.tell(what);
  }

  // ---- ends ----

  void end_cycle() noexcept {
    state = rebalancer_state::recording;
    forget_cycle();
  }
  void forget_cycle() noexcept {
    planning.reset();
    waves = {};
    elsewhere = {};
    mover.clear();
    shares.forget();
  }
  /// Drop what has not been committed, unless the others may be committing it: then the next words tell.
  void stop_moving() {
    if (mover.is_told()) {
      mover.end_after_group();
      return;
    }
    end_cycle();
  }
  /// What follows from how a part of a cycle ended.
  [[nodiscard]] status conclude(outcome const& ended) {
    switch (ended.how()) {
      case outcome::ending::well: break;
      case outcome::ending::failed: return fail(ended.why());
      case outcome::ending::undecided: return lose(ended.why(), mover.layers_of_group());
      case outcome::ending::torn: return lose(ended.why());
    }
    return {};
  }
  [[nodiscard]] status fail(status why) {
    if (books.is_committing()) { return lose(std::move(why)); }  // the store threw
    // A rank that is lost stays so until it is settled.
    if (state == rebalancer_state::cohort_lost) { return why; }
    // The others may have committed what this rank gives up.
    if (mover.is_told()) { return lose(std::move(why), mover.layers_of_group()); }
    forget_cycle();
    return stop(rebalancer_state::failed, std::move(why));
  }
  /// @param layers  those that the others may have committed. What this rank has received of them is kept for `settle`.
  [[nodiscard]] status lose(status why, std::span<index_t const> layers = {}) {
    books.abandon_commit();
    undecided.assign(layers.begin(), layers.end());
    waves = {};
    if (undecided.empty()) { forget_cycle(); }
    mover.note_answered();
    return stop(rebalancer_state::cohort_lost, std::move(why));
  }
  [[nodiscard]] status stop(rebalancer_state how, status why) {
    state = how;
    failure = std::move(why);
    if (started) { ranks.give_up(failure); }
    notify({.kind = event_kind::failed, .balancedness = books.balancedness(), .failure = &failure});
    return failure;
  }

  Recorder recorder;
  Policy policy;
  Schedule schedule;
  rebalancer_options options;
  Store* store;
  Transport* transport;
  store_claim claim;
  transport_share<Transport, Store> share;

  placement next;  // where the cycle leads
  ledger<Store> books;
  agreement<Control> ranks;
  teller events;
  batch_report batches;
  cycle_mover<Schedule, Transport, Store, Control> mover;
  share_refresh<Store> shares;
  std::unique_ptr<layer_plan> planning;  // what is made of `next` layer by layer; the books' topology outlives it
  std::unique_ptr<layer_planner> idle_planner;  // has planned such before, for this topology
  plan_waves waves;                             // what is planned once that has moved
  task_elsewhere elsewhere;                     // what the engine's executor makes of it

  rebalancer_state state = rebalancer_state::recording;
  status failure;
  status recording;  // what the recorder refused of this pass
  bool started = false;
  std::uint64_t started_layout = 0;  // of the weights, when it did
  bool enabled = true;
  deferred_switch deferred = deferred_switch::none;
  index_t waited = 0;        // calls since the last plan
  index_t share_waited = 0;  // calls since the last refresh of shares
  told_word told;
  bool some_moved = false;                        // in the last exchange of words
  std::vector<index_t> undecided;                 // layers that may be committed elsewhere
  std::unique_ptr<live_placement> next_topology;  // what they are committed with, where that is another topology
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
