// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_RANK_RUN_HPP
#define BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_RANK_RUN_HPP

#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/topology.hpp>

#include "schedules/set_up.hpp"
#include "schedules/watched_weights.hpp"
#include "support/gpu_member.hpp"
#include "support/simulated_device/simulated_device.hpp"
#include "support/simulated_group.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_test::schedules {

/// What the ranks of a run share. One host thread runs at a time, so nothing needs a lock.
struct shared_run {
  explicit shared_run(set_up const& with)
      : what{with},
        engine{with.num_ranks, with.seed + 1, 20'000},
        control{with.num_ranks, with.seed + 2, with.timeout / 40} {}

  set_up const& what;
  simulated_channel engine;   // the engine's own exchange
  simulated_channel control;  // under ballast's control plane
  std::vector<std::string> complaints;
  std::vector<std::string> story;
  nanoseconds_t excused_until = 0;  // failures are no surprise
  int armed = 0;                    // failures that are to come
  std::int64_t num_failures = 0;
  std::int64_t num_moves = 0;
  std::vector<std::shared_ptr<watched_weights>> kept;  // weights go when nobody can read them any more

  void complain(std::string text) {
    if (complaints.size() < 20) { complaints.push_back(std::move(text)); }
  }
  void excuse(nanoseconds_t duration) {
    excused_until = std::max(excused_until, simulated::now() + duration + 4 * what.timeout);
  }
  [[nodiscard]] bool excuses() const { return armed > 0 || simulated::now() < excused_until; }
};

/// Shuffles every layer, and moves something also where the shuffle would not.
struct restless_placement {
  [[nodiscard]] ballast::status plan(ballast::load_history_view history, ballast::placement const& current,
                                     ballast::topology const& where, ballast::placement& next) const {
    if (auto result = shuffle_placement{}.plan(history, current, where, next); !result.ok()) { return result; }
    for (index_t layer = 0; layer < current.num_layers(); ++layer) {
      if (!std::ranges::equal(current.logical_of_slot(layer), next.logical_of_slot(layer))) { continue; }
      auto const map = next.edit(layer).logical_of_slot;
      std::rotate(map.begin(), map.begin() + 1, map.end());
      next.index_replicas(layer);
    }
    return {};
  }
  [[nodiscard]] constexpr ballast::relabel_scope interchangeable() const noexcept {
    return ballast::relabel_scope::none;
  }
  void describe(ballast::digest& out) const { out.add(std::string_view{"restless_placement"}); }
};

/// The store. A commit that fails leaves a layer torn, and so only the failure that is meant for it hits one.
class tearing_store : public ballast::cudart::device_store<> {
public:
  using device_store::device_store;
  [[nodiscard]] ballast::status commit(index_t layer, std::span<ballast::byte_copy const> copies,
                                       ballast::placement const& tables, ballast::epoch_t epoch) {
    return tear_if_due([&] { return device_store::commit(layer, copies, tables, epoch); });
  }
  [[nodiscard]] ballast::status commit_tables(std::span<index_t const> layers, ballast::placement const& tables,
                                              std::span<ballast::epoch_t const> epochs) {
    return tear_if_due([&] { return device_store::commit_tables(layers, tables, epochs); });
  }
  /// Fail in one of the next commits. @param what  outlives them; null: in none
  void tear(mishap const* what) noexcept { due_ = what; }
  [[nodiscard]] bool is_torn() const noexcept { return is_torn_; }

private:
  template <class Commit>
  [[nodiscard]] ballast::status tear_if_due(Commit commit) {
    if (due_ == nullptr) {
      simulated::failures_suspended const calm;
      return commit();
    }
    simulated::only_failure const its_own{due_->call, static_cast<cudaError_t>(due_->error), due_->skip};
    auto result = commit();
    is_torn_ = !result.ok();
    if (is_torn_) { due_ = nullptr; }
    return result;
  }

  mishap const* due_ = nullptr;
  bool is_torn_ = false;
};

/// One rank: an engine that serves, rebalances and heals.
template <class Wires, class Control>
class rank_run {
public:
  rank_run(shared_run& all, index_t rank, Wires& wires, Control& control, cudaStream_t compute)
      : all_{all}, what_{all.what}, rank_{rank}, compute_{compute} {
    auto const nodes = what_.transport >= wires::by_link_local ? 2 : 1;
    ballast::topology const where{{what_.num_ranks, nodes, what_.slots_per_rank, 0}};
    for (index_t i = 0; i < what_.num_models; ++i) {
      models_.push_back(std::make_unique<model>(where, rank, what_, wires, control, compute, i));
      all.kept.push_back(models_.back()->weights);
    }
  }

  void run() {
    auto mode = cudaStreamCaptureModeRelaxed;  // the engine's own calls break no capture
    static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
    bool started = true;
    for (auto& each : models_) {
      started = expect(call("start", [&] { return each->moved.start(4 * what_.timeout); }), "start") && started;
    }
    if (std::ranges::count(tell_all(started ? 1 : 0), std::uint64_t{0}) > 0) { return; }
    for (index_t step = 0; step < what_.num_steps; ++step) { take_step(step); }
    for (int step = 0; step < 60 && std::ranges::count(tell_all(all_.excuses() ? 1 : 0), std::uint64_t{1}) > 0;
         ++step) {
      take_step(-1);
    }
    run_clean_cycles();
    finish();
  }

private:
  struct model {
    model(ballast::topology const& where, index_t rank, set_up const& what, Wires& wires, Control& control,
          cudaStream_t compute, index_t number)
        : initial{ballast_test::spread_placement(where, what.num_layers)},
          weights{std::make_shared<watched_weights>(where, rank, initial, static_cast<std::uint64_t>(number))},
          store{where, rank, initial, store_options(what, compute)},
          moved{where,
                initial,
                {ballast::window_recorder{initial.num_layers(), initial.num_logical(), {1, 1}},
                 restless_placement{},
                 ballast::layers_per_chunk{what.layers_per_chunk},
                 {.interval = 1,
                  .timeout = what.timeout,
                  .max_message_bytes = what.max_message_bytes,
                  .rounds_per_batch = what.rounds_per_batch,
                  .asynchronous = what.asynchronous,
                  .verify = what.verify}},
                store,
                wires,
                control} {
      weights->add_to(store);
    }
    [[nodiscard]] static ballast::cudart::device_store_options store_options(set_up const& what, cudaStream_t compute) {
      ballast::cudart::device_store_options options;
      options.compute_stream = compute;
      if (what.small_staging) { options.staging_limit = 2 * watched_weights::staged_bytes(); }
      return options;
    }

    ballast::placement initial;
    std::shared_ptr<watched_weights> weights;
    tearing_store store;
    ballast::rebalancer<ballast::window_recorder, restless_placement, ballast::layers_per_chunk<>, Wires, tearing_store,
                        Control>
        moved;
  };

  // ---- calls of the library ----

  /// Make a call as an engine that knows nothing of captures, with the failures that are due, and watch its duration.
  template <class Function>
  auto call(std::string_view name, Function function) {
    auto mode = cudaStreamCaptureModeGlobal;
    static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
    auto const before = simulated::num_planned_failures();
    auto const begin = simulated::now();
    auto result = [&] {
      if (calm_ > 0) {
        simulated::failures_suspended const calm;
        return function();
      }
      return function();
    }();
    auto const taken = simulated::now() - begin;
    static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
    if (simulated::num_planned_failures() < before) {
      --all_.armed;
      all_.excuse(0);
    }
    constexpr nanoseconds_t most_waits = 12;
    if (taken > most_waits * what_.timeout) { complain("a call of ", name, " took ", taken, " ns"); }
    return result;
  }
  template <class... Parts>
  void complain(Parts const&... parts) {
    all_.complain(ballast::detail::concat("rank ", rank_, " at ", simulated::now(), " ns: ", parts...));
  }
  template <class... Parts>
  void tell(Parts const&... parts) {
    all_.story.push_back(ballast::detail::concat("rank ", rank_, " at ", simulated::now(), " ns: ", parts...));
  }
  bool expect(ballast::status const& result, std::string_view what) {
    if (!result.ok()) { complain(what, ": ", result.message()); }
    return result.ok();
  }
  [[nodiscard]] std::vector<std::uint64_t> tell_all(std::uint64_t word) { return all_.engine.tell_all(rank_, word); }

  // ---- a step of the engine ----

  /// A step that failed may only have done so while something was wrong.
  bool judge(ballast::status const& result, bool was_excused, std::string_view what) {
    if (result.ok()) { return true; }
    ++all_.num_failures;
    tell(what, ": ", result.message());
    if (!was_excused && !all_.excuses()) { complain(what, " without a cause: ", result.message()); }
    return false;
  }

  void take_step(index_t step) {
    bool const excused = all_.excuses();
    meet_mishaps(step);
    std::vector<ballast::status> results(models_.size());
    for (std::size_t i = 0; i < models_.size(); ++i) {
      auto& moved = models_[i]->moved;
      auto const words = tell_all(moved.outgoing());
      results[i] = call("incoming", [&] { return moved.incoming(words); });
    }
    for (std::size_t i = 0; i < models_.size(); ++i) {
      auto& moved = models_[i]->moved;
      for (index_t layer = 0; layer < what_.num_layers; ++layer) {
        moved.record_top_k(layer, std::vector<index_t>{0, 0, rank_ % models_[i]->initial.num_logical()});
      }
      if (results[i].ok()) {
        results[i] = call("on_forward_pass_end", [&] { return moved.on_forward_pass_end(); });
      }
      // From here on nothing goes well any more, and the others hear of it when their group's time is up.
      if (is_torn()) { all_.excused_until = std::numeric_limits<nanoseconds_t>::max(); }
      judge(results[i], excused, "a step");
    }
    apply_twice(step, excused);
    launch_pass();
    check_passes();
    heal(excused);
  }

  void launch_pass() {
    simulated::failures_suspended const calm;
    simulated::hold_until(compute_, simulated::now() + what_.pass);
    for (auto& each : models_) {
      // A rank that has lost a layer does not serve.
      if (!each->store.is_torn()) { each->weights->look(each->moved.current(), compute_); }
    }
    simulated::sleep_for(what_.pass / 2);
  }
  void check_passes() {
    simulated::failures_suspended const calm;
    for (auto& each : models_) {
      if (auto const wrong = each->weights->check(); !wrong.empty()) { complain("WRONG BYTES: ", wrong); }
    }
  }

  // ---- mishaps ----

  void meet_mishaps(index_t step) {
    for (auto const& each : what_.mishaps) {
      if (each.kind == mishap_kind::switched_off) {
        if (each.step == step) {
          all_.excuse(0);  // what was under way is given up, at different times
          for (auto& which : models_) {
            call("disable", [&] {
              which->moved.disable();
              return 0;
            });
          }
        } else if (each.step + 2 == step) {
          for (auto& which : models_) { which->moved.enable(); }
        }
      } else if (each.step == step && each.rank == rank_) {
        meet(each);
      } else if (each.step + 2 == step && each.rank == rank_ && !each.call.empty()) {
        all_.armed -= simulated::forget_failures();
      }
    }
  }
  void meet(mishap const& what) {
    tell("meets ", mishap_names[static_cast<std::size_t>(what.kind)], " ", what.call);
    switch (what.kind) {
      case mishap_kind::late_rank:
        all_.excuse(what.duration);
        simulated::sleep_for(what.duration);
        return;
      case mishap_kind::held_stream:
        all_.excuse(what.duration);
        simulated::hold_until(compute_, simulated::now() + what.duration);
        return;
      case mishap_kind::failing_commit:
        for (auto& each : models_) { each->store.tear(&what); }
        return;
      case mishap_kind::failing_call:
      case mishap_kind::no_memory:
        ++all_.armed;
        simulated::fail_next(what.call, static_cast<cudaError_t>(what.error), what.skip);
        return;
      case mishap_kind::capture: return capture_beside(what.duration);
      case mishap_kind::async_error:
        all_.excuse(0);
        for (auto* const each : simulated::living_communicators(rank_)) {
          simulated::raise_async_error(each, ncclRemoteError);
        }
        return;
      case mishap_kind::switched_off:
      case mishap_kind::applied_twice: return;
    }
  }
  /// An engine that records its graphs while others serve.
  void capture_beside(nanoseconds_t duration) {
    simulated::run_beside([&all = all_, device = rank_ % what_.num_devices, duration] {
      static_cast<void>(cudaSetDevice(device));
      auto const stream = ballast::cudart::stream::create();
      auto mode = cudaStreamCaptureModeRelaxed;
      static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
      auto const begun = cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal);
      simulated::sleep_for(duration);
      cudaGraph_t graph = nullptr;
      auto const ended = cudaStreamEndCapture(stream.get(), &graph);
      if (begun != cudaSuccess || ended != cudaSuccess) {
        all.complain(ballast::detail::concat("a capture beside ended with ", cudaGetErrorName(ended)));
      }
      if (graph != nullptr) { static_cast<void>(cudaGraphDestroy(graph)); }
    });
  }
  void apply_twice(index_t step, bool excused) {
    for (auto const& each : what_.mishaps) {
      if (each.kind != mishap_kind::applied_twice || each.step != step) { continue; }
      for (auto& which : models_) {
        for (int time = 0; time < 2; ++time) {
          auto target = which->moved.current();
          static_cast<void>(restless_placement{}.plan({}, which->moved.current(), which->moved.where(), target));
          auto const result = call("apply", [&] { return which->moved.apply(target); });
          if (result.code() != ballast::errc::busy) { judge(result, excused, "apply"); }
        }
      }
    }
  }

  // ---- healing ----

  [[nodiscard]] bool is_bad() const {
    return std::ranges::any_of(models_, [](auto const& each) {
      auto const state = each->moved.state();
      return state == ballast::rebalancer_state::failed || state == ballast::rebalancer_state::cohort_lost;
    });
  }
  void heal(bool excused) {
    if (std::ranges::count(tell_all(is_torn() ? 1 : 0), std::uint64_t{1}) > 0) { return part(); }
    constexpr int most_tries = 8;
    for (int attempt = 0; std::ranges::count(tell_all(is_bad() ? 1 : 0), std::uint64_t{1}) > 0; ++attempt) {
      if (attempt == most_tries) {
        if (!gave_up_) { complain("no resume has helped: ", first_failure()); }
        gave_up_ = true;
        return;
      }
      if (attempt > 0) { simulated::sleep_for(what_.timeout); }
      for (auto& each : models_) { settle(*each); }
      for (auto& each : models_) {
        auto const result = call("resume", [&] { return each->moved.resume(); });
        judge(result, excused, "resume");
      }
    }
  }
  [[nodiscard]] bool is_torn() const {
    return std::ranges::any_of(models_, [](auto const& each) { return each->store.is_torn(); });
  }
  /// A commit has failed on some rank: that rank is at its end, says so, and cannot be healed by accident. The others
  /// hear of it, in time, and serve on with what they have committed.
  void part() {
    if (std::exchange(gave_up_, true)) { return; }
    for (auto& each : models_) {
      bool const lost = each->store.is_torn();
      if (lost && each->moved.state() != ballast::rebalancer_state::cohort_lost) { complain("a torn layer is served"); }
      auto const healed = call("resume", [&] { return each->moved.resume(); });
      if (lost && healed.ok()) { complain("resumed with a torn layer"); }
      if (lost && each->moved.settle(ballast::decision::commit).ok()) { complain("settled with a torn layer"); }
      bool const all_whole = std::ranges::count(tell_all(lost ? 1 : 0), std::uint64_t{1}) == 0;
      if (!all_whole && !lost && healed.ok()) { complain("resumed without the rank that is torn"); }
    }
  }
  [[nodiscard]] std::string first_failure() const {
    for (auto const& each : models_) {
      if (!each->moved.failure().ok()) { return each->moved.failure().message(); }
    }
    return "of another rank";
  }
  /// A lost rank learns from the others what they have committed.
  void settle(model& which) {
    std::vector<std::uint64_t> newest;
    for (index_t layer = 0; layer < what_.num_layers; ++layer) {
      newest.push_back(std::ranges::max(tell_all(which.moved.epoch(layer))));
    }
    if (which.moved.state() != ballast::rebalancer_state::cohort_lost) { return; }
    auto const undecided = which.moved.undecided_layers();
    if (undecided.empty()) {
      if (!std::exchange(gave_up_, true)) { complain("lost without a way back: ", which.moved.failure().message()); }
      return;
    }
    auto const first = undecided.front();
    bool const committed = newest[static_cast<std::size_t>(first)] > which.moved.epoch(first);
    auto const result = call(
        "settle", [&] { return which.moved.settle(committed ? ballast::decision::commit : ballast::decision::drop); });
    expect(result, "settle");
  }

  // ---- the end ----

  void run_clean_cycles() {
    if (std::ranges::count(tell_all(gave_up_ ? 1 : 0), std::uint64_t{1}) > 0) { return; }
    ++calm_;
    for (auto& each : models_) { each->store.tear(nullptr); }
    constexpr int most_steps = 800;
    constexpr std::uint64_t cycles = 5;
    std::vector<std::uint64_t> before;
    for (auto const& each : models_) { before.push_back(each->moved.epoch(0)); }
    bool done = false;
    for (int step = 0; step < most_steps && !done; ++step) {
      take_step(-1);
      bool mine = true;
      for (std::size_t i = 0; i < models_.size(); ++i) {
        mine = mine && models_[i]->moved.epoch(0) >= before[i] + cycles;
      }
      done = std::ranges::count(tell_all(mine ? 1 : 0), std::uint64_t{0}) == 0;
    }
    if (!done) {
      complain("layers do not move any more: epoch ", models_.front()->moved.epoch(0), " from ", before[0]);
    }
  }
  void finish() {
    simulated::failures_suspended const calm;
    for (auto& each : models_) { all_.num_moves += static_cast<std::int64_t>(each->moved.epoch(0)); }
    for (auto& each : models_) {
      call("disable", [&] {
        each->moved.disable();
        return 0;
      });
    }
    static_cast<void>(tell_all(0));
    static_cast<void>(cudaStreamSynchronize(compute_));
    check_passes();
    for (auto const& each : models_) {
      if (!each->weights->has_checked_all()) { complain("passes have not ended"); }
    }
  }

  shared_run& all_;
  set_up const& what_;
  index_t rank_;
  cudaStream_t compute_;
  std::vector<std::unique_ptr<model>> models_;
  bool gave_up_ = false;
  int calm_ = 0;
};

}  // namespace ballast_test::schedules

#endif
