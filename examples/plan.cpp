// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-plan: plans a placement for recorded loads, or scores one on them, and writes the result as JSON.
#include <ballast/matrix_view.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/policy.hpp>
#include <ballast/placement/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "support/cli.hpp"
#include "support/file.hpp"
#include "support/placement_json.hpp"
#include "support/policies.hpp"
#include "support/trace.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <string>
#include <vector>

namespace {

using ballast::status;

struct options {
  std::string loads;
  std::string steps;
  std::string current;
  std::string score;
  std::string shares = "even";
  std::string out;
  ballast_tools::topology_options topology;
  ballast_tools::policy_options policy;

  void add_to(CLI::App& app) {
    app.add_option("--loads", loads, "trace of expert loads (CSV)")->required();
    app.add_option("--steps", steps, "plan for the sum of the steps [A, B), written A:B (all steps)");
    topology.add_to(app);
    policy.add_to(app);
    app.add_option("--current", current,
                   "JSON file with the placement to count moves from (slot p holds expert p mod E)");
    app.add_option("--shares", shares,
                   "how replicas share their expert's tokens: even, optimal, or, with --score, stored (even)");
    app.add_option("--score", score, "JSON file with a placement to score on the loads, instead of planning one");
    app.add_option("--out", out, "JSON file to write (standard output)");
  }
};

/// What every use of the tool reads first.
struct inputs {
  ballast::topology where;
  ballast::placement_shape shape;
  std::vector<ballast::load_t> loads;  ///< [L, E]

  [[nodiscard]] ballast::matrix_view<ballast::load_t const> loads_view() const {
    return {loads, shape.num_layers, shape.num_logical};
  }
};

[[nodiscard]] status read_inputs(options const& options, inputs& out) {
  if (auto result = options.topology.make(out.where); !result.ok()) { return result; }
  ballast_tools::trace trace;
  if (auto result = read_trace(options.loads, trace); !result.ok()) { return result; }
  ballast_tools::step_range steps;
  if (auto result = ballast_tools::parse_steps(options.steps, trace.num_steps, steps); !result.ok()) { return result; }
  out.loads = sum_steps(trace, steps);
  out.shape = {trace.num_layers, trace.num_logical, out.where.num_slots()};
  if (auto result = ballast_tools::check_size(out.shape.num_layers, out.shape.num_slots); !result.ok()) {
    return result;
  }
  return ballast::placement::validate_shape(out.shape);
}

[[nodiscard]] status read_current(options const& options, ballast::placement_shape shape, ballast::placement& out) {
  if (!options.current.empty()) { return ballast_tools::read_placement(options.current, shape, out); }
  out = ballast::trivial_placement(shape);
  return {};
}

[[nodiscard]] status write_result(options const& options, ballast_tools::json const& object) {
  auto const text = ballast_tools::format_json(object);
  if (!options.out.empty()) { return ballast_tools::write_file(options.out, text); }
  std::fputs(text.c_str(), stdout);
  return {};
}

[[nodiscard]] status refuse_shares(options const& options, char const* allowed) {
  return {ballast::errc::invalid_option,
          ballast::detail::concat("--shares is '", options.shares, "', must be ", allowed)};
}

[[nodiscard]] status plan(options const& options) {
  bool const optimal = options.shares == "optimal";
  if (!optimal && options.shares != "even") { return refuse_shares(options, "even or optimal"); }
  ballast_tools::any_policy policy;
  auto const mode = optimal ? ballast::share_mode::optimal : ballast::share_mode::even;
  if (auto result = options.policy.make(options.topology.nodes, mode, policy); !result.ok()) { return result; }
  inputs in;
  if (auto result = read_inputs(options, in); !result.ok()) { return result; }
  ballast::placement current;
  if (auto result = read_current(options, in.shape, current); !result.ok()) { return result; }

  ballast::placement next;
  if (auto result = ballast::plan(policy, in.loads_view(), current, in.where, next); !result.ok()) { return result; }
  if (optimal) {
    ballast::share_solver solver;
    if (auto result = optimal_shares(in.where, next, in.loads_view(), solver); !result.ok()) { return result; }
  } else {
    next.drop_shares();
  }

  ballast_tools::json object;
  ballast_tools::add_map(object, next);
  if (optimal) { ballast_tools::add_shares(object, next); }
  ballast_tools::add_balance(object, in.where, next, in.loads_view());
  ballast_tools::add_moves(object, in.where, current, next);
  return write_result(options, object);
}

/// The balancedness that no split of these replicas exceeds on these loads.
[[nodiscard]] status best_balancedness(inputs const& in, ballast::placement const& of, double& out) {
  ballast::share_solver solver;
  ballast::layer_balance sum;
  for (ballast::index_t layer = 0; layer < of.num_layers(); ++layer) {
    auto const loads = in.loads_view().row(layer);
    if (auto result = solver.open(in.where, of.logical_of_slot(layer), loads); !result.ok()) { return result; }
    sum.mean += ballast::balance_of(in.where, of, layer, loads).mean;
    sum.max += static_cast<double>(solver.solve()) / static_cast<double>(ballast::detail::load_unit);
  }
  out = sum.balancedness();
  return {};
}

[[nodiscard]] status score(options const& options) {
  bool const stored = options.shares == "stored";
  bool const optimal = options.shares == "optimal";
  if (!stored && !optimal && options.shares != "even") { return refuse_shares(options, "even, stored or optimal"); }
  inputs in;
  if (auto result = read_inputs(options, in); !result.ok()) { return result; }
  ballast_tools::json file;
  if (auto result = ballast_tools::read_json(options.score, file); !result.ok()) { return result; }
  ballast::placement scored;
  auto read = ballast_tools::placement_from_json(file, in.shape, scored);
  if (read.ok() && stored) { read = ballast_tools::shares_from_json(file, scored); }
  if (!read.ok()) { return ballast_tools::in_file(options.score, read); }
  double bound = 1;
  if (auto result = best_balancedness(in, scored, bound); !result.ok()) { return result; }
  if (optimal) {
    ballast::share_solver solver;
    if (auto result = optimal_shares(in.where, scored, in.loads_view(), solver); !result.ok()) { return result; }
  }

  ballast_tools::json object;
  ballast_tools::add_balance(object, in.where, scored, in.loads_view());
  object["bound"] = bound;
  return write_result(options, object);
}

[[nodiscard]] status run(options const& options) { return options.score.empty() ? plan(options) : score(options); }

}  // namespace

int main(int argc, char** argv) {
  return ballast_tools::run_tool<options>("ballast-plan", "Plan which rank holds which expert, from recorded loads.",
                                          argc, argv, run);
}
