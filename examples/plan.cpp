// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-plan: plans a placement for recorded loads, and writes it as JSON.
#include <ballast/matrix_view.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/policy.hpp>
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
  std::string out;
  ballast_tools::topology_options topology;
  ballast_tools::policy_options policy;

  void add_to(CLI::App& app) {
    app.add_option("--loads", loads, "trace of expert loads (CSV)")->required();
    app.add_option("--steps", steps, "plan for the sum of the steps [A, B), written A:B (all steps)");
    topology.add_to(app);
    policy.add_to(app, true);
    app.add_option("--current", current,
                   "JSON file with the placement to count moves from (slot p holds expert p mod E)");
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

[[nodiscard]] status run(options const& options) {
  ballast_tools::any_policy policy;
  if (auto result = options.policy.make(policy); !result.ok()) { return result; }
  inputs in;
  if (auto result = read_inputs(options, in); !result.ok()) { return result; }
  ballast::placement current;
  if (auto result = read_current(options, in.shape, current); !result.ok()) { return result; }

  ballast::placement next;
  if (auto result = ballast::plan(policy, in.loads_view(), current, in.where, next); !result.ok()) { return result; }

  ballast_tools::json object;
  ballast_tools::add_map(object, next);
  ballast_tools::add_balance(object, in.where, next, in.loads_view());
  ballast_tools::add_moves(object, in.where, current, next);
  return write_result(options, object);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Plan which rank holds which expert, from recorded loads.", "ballast-plan"};
  options options;
  options.add_to(app);
  return ballast_tools::run_tool(app, argc, argv, [&] { return run(options); });
}
