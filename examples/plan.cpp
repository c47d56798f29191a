// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-plan: plans a placement for recorded loads, or scores one on them, and writes the result as JSON.
#include <ballast/matrix_view.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "support/cli.hpp"
#include "support/file.hpp"
#include "support/model_layers.hpp"
#include "support/placement_json.hpp"
#include "support/policies.hpp"
#include "support/printable.hpp"
#include "support/trace.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using ballast::index_t;
using ballast::status;
using ballast::detail::concat;

[[nodiscard]] status refuse(auto const&... parts) { return {ballast::errc::invalid_option, concat(parts...)}; }

struct options {
  std::optional<std::string> loads;
  std::optional<std::string> steps;
  std::optional<std::string> current;
  std::optional<std::string> score;
  std::optional<std::string> shares;
  std::optional<std::string> moe_layers;
  std::optional<index_t> num_model_layers;
  std::optional<std::string> out;
  std::optional<std::string> report;
  ballast_tools::topology_options topology;
  ballast_tools::policy_options policy;

  void add_to(CLI::App& app) {
    using ballast_tools::add_text;
    add_text(app, "--loads", loads, ballast_tools::trace_form, "FILE")->required();
    add_text(app, "--steps", steps, "plan for the sum of the steps [A, B), written A:B (all steps)", "A:B");
    topology.add_to(app);
    policy.add_to(app, "(required, but not used with --score)");
    add_text(app, "--current", current,
             "placement to move from: ranks and slots of the plan take the names that move least, and\nlayers without "
             "tokens "
             "keep theirs; a file of this tool, or any JSON with its key\nphysical_to_logical_map (slot p holds expert "
             "p mod "
             "E, and the plan as it is)",
             "FILE");
    add_text(app, "--shares", shares,
             "how replicas share their expert's tokens: even, optimal, or, with --score, stored (even;\noptimal for "
             "headroom "
             "and balanced_shares, which leave room for them and balance badly with even ones)");
    add_text(
        app, "--score", score,
        "placement to score on the loads, instead of planning one; a file as for --current, with\nits shares where "
        "they are stored (a report)",
        "FILE");
    add_text(
        app, "--moe-layers", moe_layers,
        "which layers of the model the trace's layers are, the others being dense: a list of N, A:B\nor A:B:STEP, B "
        "not included. DeepSeek-V3: 3:61 (the model has no dense layers)",
        "LIST");
    ballast_tools::add_integer(app, "--model-layers", num_model_layers,
                               "M, layers of the model; with --moe-layers (the last one has experts)");
    add_text(app, "--out", out,
             "placement to write: JSON with a row for each layer of the model and no other key, as\nSGLang's "
             "--init-expert-location reads it (from a name that ends in .json); with --score, the\nscore "
             "(standard output)",
             "FILE");
    add_text(
        app, "--report", report,
        "JSON with the placement by layer of the trace, its replica counts, shares, balancedness and\nmoves (none)",
        "FILE");
  }

  [[nodiscard]] std::string loads_file() const { return loads.value_or(std::string{}); }
  [[nodiscard]] std::string out_or_default() const { return out.value_or(std::string{ballast_tools::standard_stream}); }
};

[[nodiscard]] status check_files(options const& options) {
  std::vector<ballast_tools::named_file> inputs{{"--loads", options.loads_file()}};
  if (options.current) { inputs.push_back({"--current", *options.current}); }
  if (options.score) { inputs.push_back({"--score", *options.score}); }
  std::vector<ballast_tools::named_file> outputs{{"--out", options.out_or_default()}};
  if (options.report) { outputs.push_back({"--report", *options.report}); }
  return ballast_tools::check_files(inputs, outputs);
}

// ---- what every use of the tool reads first ----

struct inputs {
  ballast::topology where;
  ballast::placement_shape shape;
  ballast_tools::model_layers layers;
  std::vector<ballast::load_t> loads;  ///< [L, E]

  [[nodiscard]] ballast::matrix_view<ballast::load_t const> loads_view() const {
    return {loads, shape.num_layers, shape.num_logical};
  }
};

[[nodiscard]] status read_layers(options const& options, index_t num_layers, ballast_tools::model_layers& out) {
  if (options.moe_layers) {
    return ballast_tools::parse_model_layers(*options.moe_layers, num_layers, options.num_model_layers, out);
  }
  if (options.num_model_layers) {
    return refuse("--model-layers is ", *options.num_model_layers, ", but not which of them the ", num_layers,
                  " layers of the trace are: --moe-layers says it");
  }
  out = ballast_tools::model_layers::all(num_layers);
  return {};
}

[[nodiscard]] status read_loads(options const& options, inputs& out) {
  ballast_tools::trace trace;
  if (auto result = read_trace(options.loads_file(), trace); !result.ok()) { return result; }
  ballast_tools::step_range steps;
  if (auto result = ballast_tools::parse_steps(options.steps, trace.num_steps, steps); !result.ok()) { return result; }
  out.loads = sum_steps(trace, steps);
  out.shape = {trace.num_layers, trace.num_logical, out.where.num_slots()};
  return ballast_tools::in_file(options.loads_file(), ballast::validate_loads(out.loads_view()));
}

[[nodiscard]] status read_inputs(options const& options, inputs& out) {
  if (auto result = options.topology.make(out.where); !result.ok()) { return result; }
  if (auto result = read_loads(options, out); !result.ok()) { return result; }
  if (auto result = read_layers(options, out.shape.num_layers, out.layers); !result.ok()) { return result; }
  if (auto result = ballast_tools::check_size(out.layers.num_rows, out.shape.num_slots); !result.ok()) {
    return result;
  }
  return ballast::placement::validate_shape(out.shape);
}

[[nodiscard]] status read_current(options const& options, inputs const& in, ballast::placement& out) {
  if (options.current) { return ballast_tools::read_placement(*options.current, in.shape, in.layers, out); }
  out = ballast::trivial_placement(in.shape);
  return {};
}

// ---- what is written ----

/// Write the files, and give them their names once both are whole.
[[nodiscard]] status write_results(options const& options, ballast_tools::json const& out,
                                   std::optional<ballast_tools::json> const& report) {
  ballast_tools::output_file report_file;
  ballast_tools::output_file out_file;
  if (report) {
    if (auto result = report_file.open(options.report.value_or(std::string{})); !result.ok()) { return result; }
    report_file.write(ballast_tools::format_json(*report));
    if (auto result = report_file.finish(); !result.ok()) { return result; }
  }
  if (auto result = out_file.open(options.out_or_default()); !result.ok()) { return result; }
  out_file.write(ballast_tools::format_json(out));
  if (auto result = out_file.finish(); !result.ok()) { return result; }
  if (auto result = report_file.publish(); !result.ok()) { return result; }
  return out_file.publish();
}

/// Sentences for whoever sits in front of it: standard output may be a file.
void say(auto const&... parts) { std::fprintf(stderr, "%s\n", ballast_tools::printable(concat(parts...)).c_str()); }

[[nodiscard]] status refuse_shares(std::string const& shares, char const* allowed) {
  return refuse("--shares is '", shares, "', must be ", allowed);
}

// ---- planning ----

struct planned {
  ballast::placement current;
  ballast::placement next;
  bool optimal = false;
};

[[nodiscard]] status make_plan(options const& options, inputs& in, planned& out) {
  auto const shares = options.shares.value_or(options.policy.wants_optimal_shares() ? "optimal" : "even");
  out.optimal = shares == "optimal";
  if (!out.optimal && shares != "even") { return refuse_shares(shares, "even or optimal"); }
  ballast::any_policy policy;
  auto const mode = out.optimal ? ballast::share_mode::optimal : ballast::share_mode::even;
  if (auto result = options.topology.make(in.where); !result.ok()) { return result; }
  if (auto result = options.policy.make(options.topology.nodes, mode, policy); !result.ok()) { return result; }
  if (auto result = read_inputs(options, in); !result.ok()) { return result; }
  if (auto result = options.policy.check_experts(in.shape.num_logical); !result.ok()) { return result; }
  if (auto result = read_current(options, in, out.current); !result.ok()) { return result; }

  if (auto result = ballast::plan(policy, in.loads_view(), out.current, in.where, out.next); !result.ok()) {
    return result;
  }
  if (options.current) {
    ballast::keep_idle_layers(in.loads_view(), out.current, out.next);
    ballast::relabel(out.current, in.where, out.next, {.scope = ballast::interchangeable(policy)});
  }
  if (!out.optimal) {
    out.next.drop_shares();
    return {};
  }
  ballast::share_solver solver;
  return optimal_shares(in.where, out.next, in.loads_view(), solver);
}

[[nodiscard]] ballast_tools::json report_of(options const& options, inputs const& in, planned const& plan) {
  ballast_tools::json object;
  if (options.moe_layers) { object["model_layers"] = in.layers.of_layer; }
  ballast_tools::add_map(object, plan.next);
  if (plan.optimal) { ballast_tools::add_shares(object, plan.next); }
  ballast_tools::add_balance(object, in.where, plan.next, in.loads_view());
  object["balancedness_of_current"] = ballast::balancedness(in.where, plan.current, in.loads_view());
  ballast_tools::add_moves(object, in.where, plan.current, plan.next);
  return object;
}

/// Is it worth it, and where is it worst?
void say_plan(options const& options, inputs const& in, planned const& plan) {
  auto const& shape = in.shape;
  auto const loads = in.loads_view();
  std::int64_t moves = 0;
  index_t most_moves = 0;
  double worst = 1;
  index_t worst_layer = 0;
  for (index_t layer = 0; layer < shape.num_layers; ++layer) {
    auto const of_layer = ballast::count_moves(in.where, plan.current, plan.next, layer);
    moves += of_layer;
    most_moves = std::max(most_moves, of_layer);
    auto const balance = ballast::balance_of(in.where, plan.next, layer, loads.row(layer)).balancedness();
    if (balance < worst) {
      worst = balance;
      worst_layer = layer;
    }
  }
  say("planned ", shape.num_layers, " layers of ", shape.num_logical, " experts on ", in.where.num_ranks(), " ranks x ",
      in.where.slots_per_rank(), " slots: policy ", options.policy.name.value_or(""), ", ",
      plan.optimal ? "optimal" : "even", " shares");
  say("balancedness: ", ballast::balancedness(in.where, plan.current, loads), " with the ",
      options.current ? "current placement" : "start placement", ", ",
      ballast::balancedness(in.where, plan.next, loads), " planned, ", worst, " in the worst layer (", worst_layer,
      ")");
  say("moves: ", moves, " experts, at most ", most_moves, " in a layer");
  say("rows: ", in.layers.num_rows, ", for ",
      options.moe_layers ? "the layers of a model with dense ones" : "a model whose layers are those of the trace");
  if (options.policy.wants_optimal_shares() && !plan.optimal) {
    say("note: ", options.policy.name.value_or(""),
        " leaves room for optimal shares and balances badly with even ones; use --shares optimal");
  }
}

[[nodiscard]] status plan(options const& options) {
  inputs in;
  planned plan;
  if (auto result = make_plan(options, in, plan); !result.ok()) { return result; }
  std::optional<ballast_tools::json> report;
  if (options.report) { report = report_of(options, in, plan); }
  auto const location = ballast_tools::expert_location(plan.next, in.layers);
  if (auto result = write_results(options, location, report); !result.ok()) { return result; }
  say_plan(options, in, plan);
  return {};
}

// ---- scoring ----

/// The balancedness that no split of these replicas exceeds on these loads.
[[nodiscard]] status best_balancedness(inputs const& in, ballast::placement const& of, double& out) {
  ballast::share_solver solver;
  ballast::layer_balance sum;
  for (index_t layer = 0; layer < of.num_layers(); ++layer) {
    auto const loads = in.loads_view().row(layer);
    if (auto result = solver.open(in.where, of.logical_of_slot(layer), loads); !result.ok()) { return result; }
    sum.mean += ballast::balance_of(in.where, of, layer, loads).mean;
    sum.max += static_cast<double>(solver.solve()) / static_cast<double>(ballast::detail::load_unit);
  }
  out = sum.balancedness();
  return {};
}

[[nodiscard]] status refuse_planning(options const& options) {
  auto const refuse_use = [](char const* option, auto const& value) {
    return refuse(option, " is '", value, "', but nothing is planned with --score");
  };
  if (options.policy.name) { return refuse_use("--policy", *options.policy.name); }
  if (options.policy.groups) { return refuse_use("--groups", *options.policy.groups); }
  if (options.policy.max_moves) { return refuse_use("--max-moves", *options.policy.max_moves); }
  if (options.current) { return refuse_use("--current", *options.current); }
  if (options.report) { return refuse_use("--report", *options.report); }
  return {};
}

[[nodiscard]] status read_scored(options const& options, inputs const& in, bool stored, ballast::placement& out) {
  auto const name = options.score.value_or(std::string{});
  ballast_tools::json_input file;
  if (auto result = ballast_tools::read_json(name, file); !result.ok()) { return result; }
  auto read = ballast_tools::placement_from_json(file, in.shape, in.layers, out);
  if (read.ok() && stored) { read = ballast_tools::shares_from_json(file, out); }
  return ballast_tools::in_file(name, read);
}

[[nodiscard]] status score(options const& options) {
  if (auto result = refuse_planning(options); !result.ok()) { return result; }
  auto const shares = options.shares.value_or("even");
  if (shares != "stored" && shares != "optimal" && shares != "even") {
    return refuse_shares(shares, "even, stored or optimal");
  }
  inputs in;
  if (auto result = read_inputs(options, in); !result.ok()) { return result; }
  ballast::placement scored;
  if (auto result = read_scored(options, in, shares == "stored", scored); !result.ok()) { return result; }
  double bound = 1;
  if (auto result = best_balancedness(in, scored, bound); !result.ok()) { return result; }
  if (shares == "optimal") {
    ballast::share_solver solver;
    if (auto result = optimal_shares(in.where, scored, in.loads_view(), solver); !result.ok()) { return result; }
  }

  ballast_tools::json object;
  if (options.moe_layers) { object["model_layers"] = in.layers.of_layer; }
  ballast_tools::add_balance(object, in.where, scored, in.loads_view());
  object["bound"] = bound;
  if (auto result = write_results(options, object, {}); !result.ok()) { return result; }
  say("balancedness: ", ballast::balancedness(in.where, scored, in.loads_view()), " with ", shares, " shares, at most ",
      bound, " with any");
  return {};
}

[[nodiscard]] status run(options const& options) {
  if (auto result = check_files(options); !result.ok()) { return result; }
  return options.score ? score(options) : plan(options);
}

}  // namespace

int main(int argc, char** argv) {
  return ballast_tools::run_tool<options>("ballast-plan", "Plan which rank holds which expert, from recorded loads.",
                                          argc, argv, run);
}
