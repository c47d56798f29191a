// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-replay: replays recorded loads over ranks that are threads of this process and hold real bytes, rebalances
// them while it goes, and shows what was gained. With --every-batch it moves nothing, and splits every batch by quotas.
#include <ballast/load/window_recorder.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/in_process.hpp>
#include <ballast/types.hpp>

#include "support/cli.hpp"
#include "support/every_batch.hpp"
#include "support/expert_weights.hpp"
#include "support/file.hpp"
#include "support/interruption.hpp"
#include "support/placement_json.hpp"
#include "support/policies.hpp"
#include "support/printable.hpp"
#include "support/progress_bar.hpp"
#include "support/trace.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {

using ballast::index_t;
using ballast::load_t;
using ballast::status;
using ballast::detail::concat;

// ---- what to replay ----

struct options {
  std::optional<std::string> trace;
  std::optional<std::string> events;
  std::optional<index_t> interval;
  std::optional<index_t> layers_per_chunk;
  std::optional<std::int64_t> bytes_per_expert;
  std::optional<double> threshold;
  std::optional<index_t> shares_every;
  ballast_tools::topology_options topology;
  ballast_tools::policy_options policy;
  ballast_tools::every_batch_options every_batch;

  [[nodiscard]] std::string trace_file() const { return trace.value_or(std::string{}); }

  void add_to(CLI::App& app) {
    using ballast_tools::add_integer;
    ballast_tools::add_text(app, "--trace", trace,
                            concat("required; every step is one forward pass; ", ballast_tools::trace_form), "FILE");
    topology.add_to(app);
    policy.add_to(app, "(required, but headroom with --every-batch)");
    add_integer(app, "--interval", interval,
                "N, forward passes between two plans (required, but one plan with --every-batch)");
    add_integer(app, "--layers-per-chunk", layers_per_chunk, "K, layers moved after one forward pass (all of them)");
    add_integer(app, "--bytes-per-expert", bytes_per_expert, "weights of one expert in one layer (4096)");
    ballast_tools::add_number(app, "--threshold", threshold,
                              "do not plan while balancedness is above this, from 0 to 1 (1: always plan)");
    add_integer(
        app, "--shares-every", shares_every,
        "M, forward passes between two refreshes of the shares alone (never; N for headroom and\nbalanced_shares, "
        "which leave room for them and balance badly with even ones)");
    ballast_tools::add_text(app, "--json", events,
                            "file to write the events to, or with --every-batch the batches, one JSON object a line\n"
                            "(none)",
                            "FILE");
    every_batch.add_to(app);
  }
  /// Name an option that is only for replays that move, if one is given; else null.
  [[nodiscard]] char const* first_of_moves() const {
    if (layers_per_chunk) { return "--layers-per-chunk"; }
    if (bytes_per_expert) { return "--bytes-per-expert"; }
    if (threshold) { return "--threshold"; }
    return shares_every ? "--shares-every" : nullptr;
  }
};

struct setup {
  ballast_tools::trace trace;
  ballast::topology where;
  ballast::any_policy policy;
  ballast::placement initial;
  index_t interval = 0;
  index_t layers_per_chunk = 0;
  std::size_t bytes_per_expert = 0;
  double threshold = 1.0;
  index_t shares_every = 0;
};

[[nodiscard]] status refuse(auto const&... parts) { return {ballast::errc::invalid_option, concat(parts...)}; }

[[nodiscard]] status check_numbers(options const& options) {
  constexpr index_t max_ranks = 1024;
  if (options.topology.ranks > max_ranks) {
    return refuse("--ranks is ", options.topology.ranks, ", each is a thread: must be at most ", max_ranks);
  }
  if (!options.trace) { return refuse("--trace is required"); }
  if (!options.interval) { return refuse("--interval is required"); }
  if (*options.interval < 1) { return refuse("--interval is ", *options.interval, ", must be at least 1"); }
  if (options.layers_per_chunk && *options.layers_per_chunk < 1) {
    return refuse("--layers-per-chunk is ", *options.layers_per_chunk, ", must be at least 1");
  }
  if (options.bytes_per_expert && *options.bytes_per_expert < 1) {
    return refuse("--bytes-per-expert is ", *options.bytes_per_expert, ", must be at least 1");
  }
  if (options.shares_every && *options.shares_every < 1) {
    return refuse("--shares-every is ", *options.shares_every, ", must be at least 1");
  }
  auto const threshold = options.threshold.value_or(1);
  bool const in_range = threshold >= 0 && threshold <= 1;  // a NaN is not
  if (!in_range) { return refuse("--threshold is ", threshold, ", must be from 0 to 1"); }
  return {};
}

[[nodiscard]] status check_memory(ballast::placement_shape shape, std::int64_t bytes_per_expert) {
  constexpr std::int64_t max_bytes = std::int64_t{1} << 35;
  auto const slots = std::max<std::int64_t>(static_cast<std::int64_t>(shape.num_layers) * shape.num_slots, 1);
  if (bytes_per_expert > max_bytes / slots) {
    return refuse("--bytes-per-expert is ", bytes_per_expert, ": ", slots, " slots of all layers and ranks may take ",
                  max_bytes, " bytes together");
  }
  return {};
}

[[nodiscard]] status check_files(options const& options) {
  std::vector<ballast_tools::named_file> outputs{{"the summary", std::string{ballast_tools::standard_stream}}};
  if (options.events) { outputs.push_back({"--json", *options.events}); }
  return ballast_tools::check_files({{"--trace", options.trace_file()}}, outputs);
}

/// Shares are refreshed with every plan where the policy plans for them.
[[nodiscard]] index_t shares_every(options const& options) {
  return options.shares_every.value_or(options.policy.wants_optimal_shares() ? options.interval.value_or(0) : 0);
}

[[nodiscard]] status prepare(options const& options, setup& out) {
  if (auto result = check_numbers(options); !result.ok()) { return result; }
  if (auto result = check_files(options); !result.ok()) { return result; }
  if (auto result = options.topology.make(out.where); !result.ok()) { return result; }
  out.shares_every = shares_every(options);
  auto const shares = out.shares_every > 0 ? ballast::share_mode::optimal : ballast::share_mode::even;
  if (auto result = options.policy.make(options.topology.nodes, shares, out.policy); !result.ok()) { return result; }
  if (auto result = ballast_tools::read_trace(options.trace_file(), out.trace); !result.ok()) { return result; }
  auto const loads = ballast_tools::check_windows(out.trace, options.interval.value_or(0));
  if (!loads.ok()) { return ballast_tools::in_file(options.trace_file(), loads); }
  if (auto result = options.policy.check_experts(out.trace.num_logical); !result.ok()) { return result; }
  ballast::placement_shape const shape{out.trace.num_layers, out.trace.num_logical, out.where.num_slots()};
  if (auto result = ballast_tools::check_size(shape.num_layers, shape.num_slots); !result.ok()) { return result; }
  if (auto result = ballast::placement::validate_shape(shape); !result.ok()) { return result; }
  constexpr std::int64_t bytes_by_default = 4096;
  auto const bytes_per_expert = options.bytes_per_expert.value_or(bytes_by_default);
  if (auto result = check_memory(shape, bytes_per_expert); !result.ok()) { return result; }
  out.initial = ballast::trivial_placement(shape);
  out.interval = options.interval.value_or(0);
  out.layers_per_chunk = options.layers_per_chunk.value_or(shape.num_layers);
  out.bytes_per_expert = static_cast<std::size_t>(bytes_per_expert);
  out.threshold = options.threshold.value_or(1);
  return {};
}

// ---- what is written down while it runs ----

/// Number and duration of one kind of event.
struct stage {
  std::int64_t count = 0;
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
  ballast::nanoseconds_t total = 0;
  ballast::nanoseconds_t longest = 0;
  double last_balancedness = 1;

  void add(ballast::event const& what) {
    ++count;
    moves += what.moves;
    bytes += what.bytes;
    total += what.duration;
    longest = std::max(longest, what.duration);
    last_balancedness = what.balancedness;
  }
};

/// Follows the rebalancer of one rank; the one on rank 0 also writes the events to a file.
class event_log final : public ballast::observer {
public:
  explicit event_log(ballast_tools::output_file* file) : file_{file} {}

  void on_event(ballast::event const& what) override {
    auto const kind = static_cast<std::size_t>(what.kind);
    if (kind < stages_.size()) { stages_[kind].add(what); }
    if (file_ != nullptr) { write(what); }
  }

  [[nodiscard]] stage const& of(ballast::event_kind kind) const { return stages_[static_cast<std::size_t>(kind)]; }

private:
  void write(ballast::event const& what) {
    ballast_tools::json line{{"call", what.step},     {"event", ballast::to_string(what.kind)},
                             {"layers", what.layers}, {"moves", what.moves},
                             {"bytes", what.bytes},   {"balancedness", what.balancedness}};
    if (what.failure != nullptr) { line["message"] = what.failure->message(); }
    file_->write(line.dump(-1, ' ', false, ballast_tools::json::error_handler_t::replace) + '\n');
  }

  ballast_tools::output_file* file_;
  std::array<stage, static_cast<std::size_t>(ballast::event_kind::failed) + 1> stages_{};
};

/// Balancedness over many passes: sum of means / sum of maxima over all their layers, and the worst pass.
struct score {
  ballast::layer_balance sum;
  double worst = 1;
  index_t worst_pass = 0;

  void add(index_t pass, ballast::layer_balance const& balance) {
    sum += balance;
    if (worst_pass == 0 || balance.balancedness() < worst) {
      worst = balance.balancedness();
      worst_pass = pass;
    }
  }
};

/// Sums of the layers' mean and maximum rank loads in one pass.
[[nodiscard]] ballast::layer_balance balance_of_pass(ballast::topology const& where, ballast::placement const& in,
                                                     ballast::matrix_view<load_t const> loads) {
  ballast::layer_balance sum;
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    sum += ballast::balance_of(where, in, layer, loads.row(layer));
  }
  return sum;
}

/// The same passes under the placement that the weights were loaded with, and under the one in force.
struct comparison {
  score without;
  score with;

  void add(index_t pass, ballast::layer_balance const& initial, ballast::layer_balance const& current) {
    without.add(pass, initial);
    with.add(pass, current);
  }
};

/// What one rank saw. Rank 0 also compares.
struct report {
  explicit report(ballast_tools::output_file* events) : log{events} {}

  void add_pass(index_t pass, setup const& setup, ballast::placement const& current) {
    auto const loads = setup.trace.history().bucket(pass - 1);
    auto const initial_balance = balance_of_pass(setup.where, setup.initial, loads);
    auto const current_balance = balance_of_pass(setup.where, current, loads);
    all.add(pass, initial_balance, current_balance);
    if (log.of(ballast::event_kind::commit).count > 0) { moved.add(pass, initial_balance, current_balance); }
  }

  /// A plan was made on the sum of the last N passes. @param planned  its balancedness on them
  void add_plan(index_t pass, setup const& setup, double planned) {
    auto const loads = sum_steps(setup.trace, {std::max(pass - setup.interval, 0), pass});
    auto const initial =
        balance_of_pass(setup.where, setup.initial, {loads, setup.trace.num_layers, setup.trace.num_logical});
    ++num_plans;
    sum_without_plan += initial.balancedness();
    sum_planned += planned;
  }

  event_log log;
  index_t num_plans = 0;
  double sum_without_plan = 0;
  double sum_planned = 0;
  comparison all;    ///< every pass
  comparison moved;  ///< the passes after the first commit
  std::int64_t slots_verified = 0;
};

// ---- one rank ----

class replaying_rank {
public:
  replaying_rank(setup const& setup, ballast::in_process_endpoint& endpoint, report& report)
      : setup_{setup},
        rank_{endpoint.rank()},
        report_{report},
        weights_{setup.where, rank_, setup.initial, setup.bytes_per_expert},
        store_{setup.where, setup.trace.num_layers},
        rebalancer_{setup.where,
                    setup.initial,
                    {make_recorder(setup),
                     setup.policy,
                     ballast::layers_per_chunk<>{setup.layers_per_chunk},
                     {.interval = setup.interval,
                      .share_interval = setup.shares_every,
                      .utilization_threshold = setup.threshold,
                      .timeout = timeout,
                      // No pass is to be protected here, and the tables go by the pass of a plan.
                      .work_per_plan_call = 0},
                     &report.log},
                    store_,
                    endpoint},
        tokens_(static_cast<std::size_t>(setup.trace.num_logical)) {}

  /// @param show_progress  called with the number of passes done
  [[nodiscard]] status run(ballast_tools::step_gate& gate, auto show_progress) {
    if (auto result = weights_.register_in(store_); !result.ok()) { return result; }
    if (auto result = rebalancer_.start(); !result.ok()) { return result; }
    for (index_t step = 0; step < setup_.trace.num_steps; ++step) {
      if (ballast_tools::noted_signal() != 0) { gate.close(); }
      if (!gate.may_begin(step)) { break; }
      if (auto result = forward_pass(step); !result.ok()) {
        return {result.code(), concat("pass ", step + 1, ", rank ", rank_, ": ", result.message())};
      }
      show_progress(step + 1);
    }
    return {};
  }

private:
  static constexpr ballast::nanoseconds_t timeout = 120'000'000'000;

  /// A window of one period, one bucket a pass: plans are made for exactly the last N passes.
  [[nodiscard]] static ballast::window_recorder make_recorder(setup const& setup) {
    auto const passes = std::min(setup.interval, setup.trace.num_steps);
    return {setup.trace.num_layers, setup.trace.num_logical, {.passes = passes, .buckets = passes}};
  }

  [[nodiscard]] status forward_pass(index_t step) {
    auto const loads = setup_.trace.history().bucket(step);
    if (rank_ == 0) { report_.add_pass(step + 1, setup_, rebalancer_.current()); }
    std::int64_t tokens = 0;
    for (index_t layer = 0; layer < loads.rows(); ++layer) {
      tokens = deal(loads.row(layer));
      if (auto result = rebalancer_.record_logical(layer, tokens_); !result.ok()) { return result; }
    }
    auto const plans = report_.log.of(ballast::event_kind::plan).count;
    auto const commits = report_.log.of(ballast::event_kind::commit).count;
    if (auto result = rebalancer_.on_forward_pass_end({.tokens = tokens}); !result.ok()) { return result; }
    if (rank_ == 0 && report_.log.of(ballast::event_kind::plan).count != plans) {
      report_.add_plan(step + 1, setup_, report_.log.of(ballast::event_kind::plan).last_balancedness);
    }
    if (report_.log.of(ballast::event_kind::commit).count == commits) { return {}; }
    report_.slots_verified += weights_.num_slots();
    return weights_.verify(rebalancer_.current());
  }

  /// This rank's part of a layer's tokens, into `tokens_`: an even one, the lowest ranks take what is left over.
  std::int64_t deal(std::span<load_t const> loads) {
    load_t const ranks = setup_.where.num_ranks();
    std::int64_t sum = 0;
    for (std::size_t e = 0; e < loads.size(); ++e) {
      tokens_[e] = loads[e] / ranks + (rank_ < loads[e] % ranks ? 1 : 0);
      sum += tokens_[e];
    }
    return sum;
  }

  setup const& setup_;
  index_t rank_;
  report& report_;
  ballast_tools::expert_weights weights_;
  ballast::host_store store_;
  ballast::rebalancer<ballast::window_recorder, ballast::any_policy, ballast::layers_per_chunk<>,
                      ballast::in_process_endpoint>
      rebalancer_;
  std::vector<load_t> tokens_;  // [E]
};

[[nodiscard]] status run_rank(setup const& setup, ballast::in_process_endpoint& endpoint, report& report,
                              ballast_tools::step_gate& gate, ballast_tools::progress_bar& bar) {
  try {
    replaying_rank rank{setup, endpoint, report};
    return rank.run(gate, [&](index_t passes) {
      if (endpoint.rank() == 0) { bar.show(passes); }
    });
  } catch (std::bad_alloc const&) {
    return {ballast::errc::out_of_memory, concat("rank ", endpoint.rank(), ": not enough memory")};
  } catch (std::exception const& error) {
    return {ballast::errc::internal, concat("rank ", endpoint.rank(), ": ", error.what())};
  }
}

/// Replay on all ranks at once. @return what the first rank that failed says
[[nodiscard]] status replay(setup const& setup, std::vector<report>& reports, ballast_tools::step_gate& gate) {
  ballast::in_process_group group{setup.where.num_ranks()};
  ballast_tools::progress_bar bar{setup.trace.num_steps};
  std::mutex mutex;
  status first_failure;
  group.run([&](ballast::in_process_endpoint& endpoint) {
    auto const rank = endpoint.rank();
    auto result = run_rank(setup, endpoint, reports[static_cast<std::size_t>(rank)], gate, bar);
    if (result.ok()) { return; }
    {
      std::lock_guard const lock{mutex};
      if (first_failure.ok()) { first_failure = std::move(result); }
    }
    group.kill(rank);  // the others need not wait for it
  });
  return first_failure;
}

// ---- what is shown ----

[[nodiscard]] std::string in_units(std::int64_t bytes) {
  constexpr std::array units{"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 10'000 && unit + 1 < units.size(); ++unit) { value /= 1000; }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

void print_setup(options const& options, setup const& setup) {
  auto const& trace = setup.trace;
  auto const& where = setup.where;
  std::printf("%s\n", ballast_tools::printable(ballast_tools::input_name(options.trace_file())).c_str());
  std::printf("  %d forward passes of a model with %d MoE layers of %d experts\n", trace.num_steps, trace.num_layers,
              trace.num_logical);
  std::printf("  %d ranks (threads here, GPUs in an engine) on %d node(s), %d expert slots each: %d spare in a layer\n",
              where.num_ranks(), where.num_nodes(), where.slots_per_rank(), where.num_slots() - trace.num_logical);
  std::printf("  policy %s: a plan every %d passes, then %s layer(s) moved after each pass\n\n",
              options.policy.name.value_or("").c_str(), setup.interval,
              options.layers_per_chunk ? concat(setup.layers_per_chunk).c_str() : "all");
}

void print_comparison(report const& report) {
  constexpr auto format = "%-30s %15s %15s\n";
  auto const number = [](double value) {
    char text[16];
    std::snprintf(text, sizeof text, "%.4f", value);
    return std::string{text};
  };
  auto const row = [&](char const* name, double without, double with) {
    std::printf(format, name, number(without).c_str(), number(with).c_str());
  };
  auto const passes = [&](char const* name, comparison const& of) {
    row(name, of.without.sum.balancedness(), of.with.sum.balancedness());
  };
  std::printf(
      "balancedness = load of the average rank / load of the busiest rank (1 is perfect; all wait for the busiest)\n");
  std::printf(format, "", "without", "with ballast");
  passes("all passes", report.all);
  if (report.moved.with.worst_pass == 0) {
    std::printf("no expert was moved: the replay ended before a plan was in force, or no plan changed a slot\n");
    return;
  }
  passes("passes after the first move", report.moved);
  if (report.num_plans > 0) {
    row("passes that plans looked at", report.sum_without_plan / report.num_plans,
        report.sum_planned / report.num_plans);
  }
  auto const worst = [&](score const& of) { return concat(number(of.worst), " (", of.worst_pass, ")"); };
  std::printf(format, "worst pass (its number)", worst(report.moved.without).c_str(), worst(report.moved.with).c_str());
}

void print_stages(report const& report) {
  using ballast::event_kind;
  std::printf("\n%-30s %8s %10s %12s %12s %12s\n", "stage", "times", "moves", "bytes", "mean ms", "longest ms");
  auto const row = [&](char const* name, event_kind kind) {
    auto const& stage = report.log.of(kind);
    if (stage.count == 0) { return; }
    auto const ms = [](double nanoseconds) { return nanoseconds / 1e6; };
    bool const moves = kind == event_kind::commit;
    std::printf("%-30s %8lld %10s %12s %12.3f %12.3f\n", name, static_cast<long long>(stage.count),
                moves ? concat(stage.moves).c_str() : "", moves ? in_units(stage.bytes).c_str() : "",
                ms(static_cast<double>(stage.total) / static_cast<double>(stage.count)),
                ms(static_cast<double>(stage.longest)));
  };
  row("dump: add loads up", event_kind::dump);
  row("skip: balanced enough", event_kind::skip);
  row("plan and agree", event_kind::plan);
  row("move and commit a chunk", event_kind::commit);
  row("change shares alone", event_kind::shares);
}

void print_report(options const& options, setup const& setup, std::vector<report> const& reports, index_t num_passes) {
  print_setup(options, setup);
  if (ballast_tools::noted_signal() != 0) {
    std::printf("interrupted after %d of %d forward passes\n\n", num_passes, setup.trace.num_steps);
  }
  print_comparison(reports.front());
  print_stages(reports.front());
  std::int64_t slots = 0;
  for (auto const& report : reports) { slots += report.slots_verified; }
  if (slots == 0) {
    std::printf("\nnothing was committed, so there was nothing to verify\n");
  } else {
    std::printf("\nverified after every commit: %lld slots, each with all bytes of the expert that the tables name\n",
                static_cast<long long>(slots));
  }
}

[[nodiscard]] status close_events(ballast_tools::output_file& events) {
  if (!events.is_open()) { return {}; }
  if (auto result = events.finish(); !result.ok()) { return result; }
  return events.publish();
}

[[nodiscard]] status run_every_batch(options const& options) {
  if (auto const* given = options.first_of_moves()) { return refuse(given, " is not for --every-batch"); }
  auto wanted = options.every_batch;
  wanted.trace = options.trace;
  wanted.json = options.events;
  wanted.interval = options.interval;
  wanted.topology = options.topology;
  wanted.policy = options.policy;
  return ballast_tools::replay_every_batch(std::move(wanted));
}

[[nodiscard]] status run(options const& options) {
  if (options.every_batch.wanted) { return run_every_batch(options); }
  if (auto const* given = options.every_batch.first_given()) { return refuse(given, " is for --every-batch"); }
  setup setup;
  if (auto result = prepare(options, setup); !result.ok()) { return result; }
  ballast_tools::output_file events;
  if (options.events) {
    if (auto result = events.open(*options.events); !result.ok()) { return result; }
  }
  std::vector<report> reports;
  reports.reserve(static_cast<std::size_t>(setup.where.num_ranks()));
  for (index_t rank = 0; rank < setup.where.num_ranks(); ++rank) {
    reports.emplace_back(rank == 0 && events.is_open() ? &events : nullptr);
  }
  ballast_tools::note_signals();
  ballast_tools::step_gate gate;
  auto replayed = replay(setup, reports, gate);
  // What led to a failure is among the events.
  auto written = close_events(events);
  if (!replayed.ok()) { return replayed; }
  if (!written.ok()) { return written; }
  print_report(options, setup, reports, gate.num_begun());
  return ballast_tools::flush_standard_output();
}

}  // namespace

int main(int argc, char** argv) {
  return ballast_tools::run_tool<options>(
      "ballast-replay",
      "Replay recorded expert loads over ranks that hold real bytes, and rebalance them while it goes.", argc, argv,
      run);
}
