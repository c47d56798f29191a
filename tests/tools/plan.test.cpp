// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-plan as a user meets it: files in, files out, and every refusal.
#include <ballast/detail/text.hpp>

#include "support/tool.hpp"
#include "support/trace_files.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace {

using ballast_test::arguments;
using ballast_test::scratch_folder;
using ballast_test::tool_result;
using ballast_test::with;
using nlohmann::json;

std::string const& program() {
  static auto const path = ballast_test::need_tool("ballast-plan");
  return path;
}

tool_result run(arguments const& given) { return ballast_test::run_tool(program(), given); }

/// What a run that must succeed writes to standard output.
json output_of(arguments const& given) {
  auto const result = run(given);
  REQUIRE_MESSAGE(result.exit_status == 0, result.err);
  CHECK(result.err.find("balancedness: ") != std::string::npos);
  return json::parse(result.out);
}

/// The report of a plan, which says the same as the plan itself.
json plan(arguments const& given) {
  scratch_folder const scratch;
  auto const file = scratch.file("report.json");
  auto const written = output_of(with(given, {"--report", file}));
  auto const report = json::parse(ballast_test::content_of(file));
  CHECK(written.size() == 1);
  CHECK(written["physical_to_logical_map"] == report["physical_to_logical_map"]);
  return report;
}

/// The message of a run that must fail, without the program's name.
std::string refusal(arguments const& given) {
  auto const result = run(given);
  CHECK(result.exit_status == 2);
  CHECK(result.out.empty());
  std::string const name = "ballast-plan: ";
  CHECK(result.err.starts_with(name));
  CHECK(result.err.ends_with("\n"));
  return result.err.substr(std::min(name.size(), result.err.size()));
}

std::string const traces = BALLAST_TEST_DATA_DIR "/traces/";
std::string const mixtral = traces + "mixtral-8x7b/domains.csv";
arguments const mixtral_on_four{"--loads", mixtral, "--ranks", "4", "--nodes", "2", "--slots-per-rank", "3"};

std::vector<std::filesystem::path> golden_files() {
  std::vector<std::filesystem::path> files;
  for (std::filesystem::path const folder : {BALLAST_TEST_DATA_DIR "/golden", BALLAST_SOURCE_DIR "/../shared/golden"}) {
    if (!files.empty() || !std::filesystem::is_directory(folder)) { continue; }
    for (auto const& entry : std::filesystem::directory_iterator{folder}) {
      if (entry.path().extension() == ".json") { files.push_back(entry.path()); }
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::string trace_of(json const& loads) {
  auto text = "1," + std::to_string(loads.size()) + "," + std::to_string(loads[0].size()) + "\n";
  for (auto const& layer : loads) {
    auto row = layer.dump();
    text += row.substr(1, row.size() - 2) + "\n";
  }
  return text;
}

json without_padding(json const& replicas) {
  auto result = json::array();
  for (auto const& layer : replicas) {
    auto& row = result.emplace_back(json::array());
    for (auto const& slots : layer) {
      auto& kept = row.emplace_back(json::array());
      for (auto const& slot : slots) {
        if (slot != -1) { kept.push_back(slot); }
      }
    }
  }
  return result;
}

}  // namespace

TEST_CASE("deepseek plans what the reference published, replica ranks included") {
  auto const files = golden_files();
  if (files.empty()) { MESSAGE("skipped: no golden files here"); }
  for (auto const& file : files) {
    CAPTURE(file.filename().string());
    auto const golden = json::parse(ballast_test::content_of(file.string()));
    auto const& in = golden["inputs"];
    scratch_folder const scratch;
    auto const ranks = in["num_gpus"].get<int>();
    arguments given{"--loads",          scratch.file("loads.csv", trace_of(in["weight"])),
                    "--policy",         "deepseek",
                    "--ranks",          std::to_string(ranks),
                    "--nodes",          in["num_nodes"].dump(),
                    "--slots-per-rank", std::to_string(in["num_replicas"].get<int>() / ranks)};
    // The reference ignores groups that the nodes do not divide; the tool refuses what it would ignore.
    if (in["num_groups"].get<int>() % in["num_nodes"].get<int>() == 0) {
      given = with(given, {"--groups", in["num_groups"].dump()});
    }
    auto const planned = plan(given);
    auto const& expected = golden.contains("outputs_stable_sort") ? golden["outputs_stable_sort"] : golden["outputs"];
    CHECK(planned["physical_to_logical_map"] == expected["phy2log"]);
    CHECK(planned["logical_to_physical_map"] == without_padding(expected["log2phy"]));
    CHECK(planned["replica_counts"] == expected["logcnt"]);
  }
}

TEST_CASE("a plan says how good it is and what it costs") {
  for (auto const* policy : {"deepseek", "balanced", "incremental", "headroom", "balanced_shares"}) {
    CAPTURE(policy);
    auto const planned = plan(with(mixtral_on_four, {"--policy", policy}));
    CHECK(planned["physical_to_logical_map"].size() == 3);
    CHECK(planned["physical_to_logical_map"][0].size() == 12);
    CHECK(planned["balancedness"].get<double>() > 0.8);
    CHECK(planned["balancedness"].get<double>() <= 1);
    CHECK(planned["balancedness_per_layer"].size() == 3);
    CHECK(planned["moves_per_layer"].size() == 3);
    CHECK(planned["balancedness"].get<double>() > planned["balancedness_of_current"].get<double>());
    CHECK(planned.contains("shares") ==
          (policy == std::string{"headroom"} || policy == std::string{"balanced_shares"}));
    CHECK_FALSE(planned.contains("logical_count"));
    for (auto const& layer : planned["replica_counts"]) {
      CHECK(std::accumulate(layer.begin(), layer.end(), 0, [](int a, json const& b) { return a + b.get<int>(); }) ==
            12);
    }
  }
}

TEST_CASE("from its own plan there is nothing to move, whichever way the file is written") {
  scratch_folder const scratch;
  auto const file = scratch.file("plan.json");
  auto const base = with(mixtral_on_four, {"--policy", "deepseek"});
  auto const written = run(with(base, {"--out", file}));
  CHECK(written.exit_status == 0);
  CHECK(written.out.empty());
  auto const again = plan(with(base, {"--current", file}));
  CHECK(again["moves_per_layer"] == json::array({0, 0, 0}));
  CHECK(json::parse(ballast_test::content_of(file))["physical_to_logical_map"] == again["physical_to_logical_map"]);

  json const first_key_only{{"physical_to_logical_map", again["physical_to_logical_map"]}};
  CHECK(plan(with(base, {"--current", scratch.file("map.json", first_key_only.dump())}))["moves_per_layer"] ==
        json::array({0, 0, 0}));

  auto const report = scratch.file("report.json", again.dump());
  CHECK(plan(with(base, {"--current", report}))["moves_per_layer"] == json::array({0, 0, 0}));
  auto as_once_written = again;
  as_once_written["logical_count"] = again["replica_counts"];
  as_once_written.erase("replica_counts");
  CHECK(plan(with(base, {"--current", scratch.file("old.json", as_once_written.dump())}))["moves_per_layer"] ==
        json::array({0, 0, 0}));
}

TEST_CASE("what is written is what the engine's loader takes: one named argument, a row for each layer of the model") {
  scratch_folder const scratch;
  auto const loader = scratch.file("loader.py", R"(
import json, sys

# As the loader of --init-expert-location: every key of the file is a named argument, and the map is the only one known.
def init_by_mapping(server_args, model_config, physical_to_logical_map):
    num_logical = model_config["num_logical_experts"]
    assert len(physical_to_logical_map) == model_config["num_layers"], "rows"
    for row in physical_to_logical_map:
        assert len(row) == model_config["num_physical_experts"], "columns"
        assert sorted(set(row)) == list(range(num_logical)), "every expert has a place"

layers, logical, physical = map(int, sys.argv[2:])
config = {"num_layers": layers, "num_logical_experts": logical, "num_physical_experts": physical}
init_by_mapping(None, config, **json.load(open(sys.argv[1])))
print("loaded")
)");
  bool const has_python = ballast_test::run_in_shell("python3 --version").exit_status == 0;
  if (!has_python) { MESSAGE("skipped: no python3 for the loader's call"); }
  struct example {
    arguments layers;
    std::size_t rows;
    std::vector<std::size_t> of_layer;
  };
  for (auto const& [layers, rows, of_layer] :
       {example{{}, 3, {0, 1, 2}}, example{{"--moe-layers", "3:6"}, 6, {3, 4, 5}},
        example{{"--moe-layers", "1:6:2", "--model-layers", "7"}, 7, {1, 3, 5}}}) {
    for (auto const* policy : {"deepseek", "balanced", "incremental", "headroom"}) {
      for (auto const* shares : {"even", "optimal"}) {
        auto const file = scratch.file("plan.json");
        auto const report = scratch.file("report.json");
        auto const made = run(with(with(mixtral_on_four, layers),
                                   {"--policy", policy, "--shares", shares, "--out", file, "--report", report}));
        REQUIRE_MESSAGE(made.exit_status == 0, made.err);
        CHECK(made.out.empty());
        auto const written = json::parse(ballast_test::content_of(file));
        CHECK(written.size() == 1);
        auto const& map = written["physical_to_logical_map"];
        auto const planned = json::parse(ballast_test::content_of(report));
        REQUIRE(map.size() == rows);
        for (std::size_t row = 0; row < rows; ++row) {
          auto const at = std::find(of_layer.begin(), of_layer.end(), row);
          if (at == of_layer.end()) {
            CHECK(map[row] == json::parse("[0,1,2,3,4,5,6,7,0,1,2,3]"));
          } else {
            CHECK(map[row] == planned["physical_to_logical_map"][static_cast<std::size_t>(at - of_layer.begin())]);
          }
        }
        CHECK(planned.contains("model_layers") == !layers.empty());
        if (has_python) {
          auto const loaded = ballast_test::run_tool("python3", {loader, file, std::to_string(rows), "8", "12"});
          CHECK_MESSAGE(loaded.out == "loaded\n", loaded.err);
        }
      }
    }
  }
}

TEST_CASE("a file with rows for dense layers is read back, as current and to be scored") {
  scratch_folder const scratch;
  auto const file = scratch.file("plan.json");
  auto const base = with(mixtral_on_four, {"--moe-layers", "2:5", "--model-layers", "6"});
  auto const made = run(with(base, {"--policy", "balanced", "--out", file}));
  REQUIRE_MESSAGE(made.exit_status == 0, made.err);
  auto const again = plan(with(mixtral_on_four, {"--policy", "balanced"}));
  auto const report = scratch.file("report.json");
  auto const kept = run(with(base, {"--policy", "balanced", "--current", file, "--report", report}));
  REQUIRE_MESSAGE(kept.exit_status == 0, kept.err);
  CHECK(json::parse(ballast_test::content_of(report))["moves_per_layer"] == json::array({0, 0, 0}));
  auto const scored = output_of(with(base, {"--score", file}));
  CHECK(scored["balancedness"] == again["balancedness"]);
  CHECK(scored["model_layers"] == json::array({2, 3, 4}));
  auto const by_layer_of_trace = output_of(with(base, {"--score", report}));
  CHECK(by_layer_of_trace["balancedness"] == again["balancedness"]);
  CHECK(refusal(with(mixtral_on_four, {"--score", file})) ==
        file +
            ": physical_to_logical_map has 6 layers, must have 3; where it has the rows of dense layers too, "
            "--moe-layers and --model-layers say which\n");
  CHECK(refusal(with(mixtral_on_four, {"--score", file, "--moe-layers", "2:5"})) ==
        file +
            ": physical_to_logical_map has 6 layers, must have 3 or 5; where it has the rows of dense layers too, "
            "--moe-layers and --model-layers say which\n");
  CHECK(refusal(with(mixtral_on_four, {"--policy", "balanced", "--model-layers", "6"})) ==
        "--model-layers is 6, but not which of them the 3 layers of the trace are: --moe-layers says it\n");
  CHECK(refusal(with(mixtral_on_four, {"--policy", "balanced", "--moe-layers", "2:6"})) ==
        "--moe-layers is '2:6', must name the trace's 3 layers, names more\n");
}

TEST_CASE("a layer without tokens keeps its row where a placement is in force, with every policy") {
  scratch_folder const scratch;
  auto const busy = scratch.file("busy.csv", "1,3,8\n90,1,2,3,4,5,6,7\n1,80,3,4,5,6,7,8\n9,8,70,6,5,4,3,2\n");
  auto const idle = scratch.file("idle.csv", "1,3,8\n0,0,0,0,0,0,0,0\n1,80,3,4,5,6,7,8\n0,0,0,0,0,0,0,0\n");
  arguments const group{"--ranks", "4", "--nodes", "2", "--slots-per-rank", "3"};
  for (auto const* policy : {"deepseek", "balanced", "incremental", "headroom"}) {
    for (auto const* shares : {"even", "optimal"}) {
      CAPTURE(policy);
      CAPTURE(shares);
      auto const rest = with(group, {"--policy", policy, "--shares", shares});
      auto const before = plan(with({"--loads", busy}, rest));
      auto const file = scratch.file("plan.json", before.dump());
      auto const after = plan(with({"--loads", idle, "--current", file}, rest));
      CHECK(after["moves_per_layer"][0] == 0);
      CHECK(after["moves_per_layer"][2] == 0);
      for (std::size_t const layer : {0u, 2u}) {
        CHECK(after["physical_to_logical_map"][layer] == before["physical_to_logical_map"][layer]);
      }
    }
  }
}

TEST_CASE("steps are summed from A to B, B not included") {
  scratch_folder const scratch;
  auto const all = scratch.file("all.csv", "3,1,4\n1,2,3,4\n50,6,7,8\n9,100,11,12\n");
  auto const two = scratch.file("two.csv", "1,1,4\n59,106,18,20\n");
  arguments const rest{"--ranks", "2", "--nodes", "1", "--slots-per-rank", "3", "--policy", "deepseek"};
  CHECK(plan(with({"--loads", all, "--steps", "1:3"}, rest)) == plan(with({"--loads", two}, rest)));
  CHECK(plan(with({"--loads", all, "--steps", "0:3"}, rest)) == plan(with({"--loads", all}, rest)));
}

TEST_CASE("no load at all, a single expert, a single slot") {
  scratch_folder const scratch;
  auto const nothing = scratch.file("nothing.csv", "1,2,3\n0,0,0\n0,0,0\n");
  auto const one = scratch.file("one.csv", "1,1,1\n7\n");
  for (auto const* policy : {"deepseek", "balanced", "incremental", "headroom"}) {
    CAPTURE(policy);
    auto const empty = plan({"--loads", nothing, "--ranks", "2", "--slots-per-rank", "2", "--policy", policy});
    CHECK(empty["balancedness"] == 1.0);
    auto const single = plan({"--loads", one, "--ranks", "2", "--slots-per-rank", "2", "--policy", policy});
    CHECK(single["replica_counts"] == json::parse("[[4]]"));
    CHECK(single["balancedness"] == 1.0);
    CHECK(plan({"--loads", one, "--ranks", "1", "--slots-per-rank", "1", "--policy", policy})["moves_per_layer"] ==
          json::array({0}));
  }
}

TEST_CASE("groups are refused where they would be ignored") {
  auto const groups = [](char const* policy, char const* value, char const* nodes) {
    return refusal({"--loads", mixtral, "--ranks", "4", "--nodes", nodes, "--slots-per-rank", "3", "--policy", policy,
                    "--groups", value});
  };
  for (auto const* policy : {"incremental", "headroom"}) {
    CHECK(plan(with(mixtral_on_four, {"--policy", policy, "--groups", "1"})) ==
          plan(with(mixtral_on_four, {"--policy", policy})));
    for (auto const* value : {"2", "4"}) {
      CHECK(groups(policy, value, "2") ==
            "--groups is " + std::string{value} +
                ", but only the policies deepseek and balanced keep groups together, not '" + policy + "'\n");
    }
  }
  for (auto const* policy : {"deepseek", "balanced"}) {
    CHECK(groups(policy, "3", "2") ==
          "--groups is 3, must be a multiple of the 2 nodes: else groups cannot be kept on one each\n");
    CHECK(groups(policy, "2", "4") ==
          "--groups is 2, must be a multiple of the 4 nodes: else groups cannot be kept on one each\n");
    for (auto const* value : {"3", "6", "16"}) {
      CHECK(groups(policy, value, "1") ==
            "--groups is " + std::string{value} + ", must divide the 8 experts of the trace\n");
    }
    CHECK(groups(policy, "6", "2") == "--groups is 6, must divide the 8 experts of the trace\n");
    CHECK(groups(policy, "0", "2") == "--groups is 0, must be at least 1\n");
    CHECK(groups(policy, "2", "0") == "topology: number of nodes is 0, must be at least 1\n");
    for (auto const* value : {"1", "2", "4", "8"}) {
      CHECK(run(with(mixtral_on_four, {"--policy", policy, "--groups", value})).exit_status == 0);
    }
  }
}

TEST_CASE("a score plans nothing, and refuses what only a plan uses") {
  scratch_folder const scratch;
  auto const file = scratch.file("plan.json");
  REQUIRE(run(with(mixtral_on_four, {"--policy", "deepseek", "--out", file})).exit_status == 0);
  auto const current = scratch.file("current.json", ballast_test::content_of(file));
  for (auto const& [option, value] :
       std::vector<std::pair<std::string, std::string>>{{"--policy", "deepseek"},
                                                        {"--policy", "nonsense"},
                                                        {"--groups", "2"},
                                                        {"--groups", "0"},
                                                        {"--max-moves", "3"},
                                                        {"--current", current},
                                                        {"--current", "/nonexistent"},
                                                        {"--report", scratch.file("report.json")}}) {
    CHECK(refusal(with(mixtral_on_four, {"--score", file, option, value})) ==
          ballast::detail::concat(option, " is '", value, "', but nothing is planned with --score\n"));
  }
  CHECK(scratch.names() == std::vector<std::string>{"current.json", "plan.json"});
}

TEST_CASE("headroom is planned for the shares that it leaves room for, unless it is told otherwise") {
  auto const base = with(mixtral_on_four, {"--policy", "headroom"});
  CHECK(plan(base) == plan(with(base, {"--shares", "optimal"})));
  auto const optimal = run(base);
  auto const even = run(with(base, {"--shares", "even"}));
  CHECK(optimal.err.find("policy headroom, optimal shares") != std::string::npos);
  CHECK(optimal.err.find("note: ") == std::string::npos);
  CHECK(even.exit_status == 0);
  CHECK(even.err.find("note: headroom leaves room for optimal shares and balances badly with even ones") !=
        std::string::npos);
}

TEST_CASE("a budget limits the moves of every layer") {
  for (int budget : {0, 1, 3}) {
    auto const planned =
        plan(with(mixtral_on_four, {"--policy", "incremental", "--max-moves", std::to_string(budget)}));
    for (auto const& moves : planned["moves_per_layer"]) { CHECK(moves.get<int>() <= budget); }
  }
  CHECK(refusal(with(mixtral_on_four, {"--policy", "incremental", "--max-moves", "-1"})) ==
        "--max-moves is -1, must not be negative\n");
  CHECK(refusal(with(mixtral_on_four, {"--policy", "deepseek", "--max-moves", "4"})) ==
        "--max-moves is 4, but only the policy incremental plans with a budget, not 'deepseek'\n");
}

TEST_CASE("optimal shares are written, sum to one, and balance better than even ones") {
  for (auto const* policy : {"deepseek", "balanced", "incremental", "headroom"}) {
    CAPTURE(policy);
    auto const base = with(mixtral_on_four, {"--policy", policy});
    auto const even = plan(with(base, {"--shares", "even"}));
    auto const optimal = plan(with(base, {"--shares", "optimal"}));
    CHECK(optimal["balancedness"].get<double>() >= even["balancedness"].get<double>() - 1e-9);
    for (std::size_t layer = 0; layer < 3; ++layer) {
      std::vector<double> sum(8, 0);
      for (std::size_t slot = 0; slot < 12; ++slot) {
        auto const share = optimal["shares"][layer][slot].get<double>();
        CHECK(share >= 0);
        sum[optimal["physical_to_logical_map"][layer][slot].get<std::size_t>()] += share;
      }
      for (auto const of_expert : sum) { CHECK(of_expert == doctest::Approx(1).epsilon(1e-9)); }
    }
  }
}

TEST_CASE("with optimal shares balanced is at least as good as with even ones, also where a rank has two slots") {
  for (auto const* slots_per_rank : {"2", "3", "9"}) {
    CAPTURE(slots_per_rank);
    auto const ranks = std::to_string(72 / std::stoi(slots_per_rank));
    arguments const base{"--loads",          traces + "deepseek-v2-lite/intent_512tok.csv",
                         "--ranks",          ranks,
                         "--nodes",          "1",
                         "--slots-per-rank", slots_per_rank};
    auto const value = [&](char const* policy, char const* shares) {
      return plan(with(base, {"--policy", policy, "--shares", shares}))["balancedness"].get<double>();
    };
    auto const optimal = value("balanced", "optimal");
    CHECK(optimal >= value("balanced", "even") - 1e-3);
    CHECK(optimal >= value("deepseek", "optimal"));
    CHECK(optimal >= value("headroom", "optimal") - 1e-9);
  }
}

TEST_CASE("a stored plan is scored on other loads") {
  scratch_folder const scratch;
  auto const file = scratch.file("plan.json");
  auto const base = with(mixtral_on_four, {"--steps", "0:3"});
  auto const made = run(with(base, {"--policy", "deepseek", "--shares", "optimal", "--report", file}));
  REQUIRE(made.exit_status == 0);
  auto const planned = json::parse(ballast_test::content_of(file));

  auto const score = [&](char const* steps, char const* shares) {
    return output_of(with(mixtral_on_four, {"--steps", steps, "--score", file, "--shares", shares}));
  };
  CHECK(score("0:3", "stored")["balancedness"] == planned["balancedness"]);
  CHECK(score("0:3", "stored")["balancedness_per_layer"] == planned["balancedness_per_layer"]);
  CHECK(score("0:3", "optimal")["balancedness"].get<double>() ==
        doctest::Approx(planned["balancedness"].get<double>()).epsilon(1e-6));

  auto const even = score("3:5", "even");
  auto const optimal = score("3:5", "optimal");
  CHECK(even["bound"] == optimal["bound"]);
  CHECK(optimal["balancedness"].get<double>() == doctest::Approx(optimal["bound"].get<double>()).epsilon(1e-6));
  CHECK(even["balancedness"].get<double>() <= even["bound"].get<double>() + 1e-9);
  CHECK(score("3:5", "even")["balancedness"] ==
        output_of(with(mixtral_on_four, {"--steps", "3:5", "--score", file}))["balancedness"]);

  CHECK(refusal(with(mixtral_on_four, {"--score", file, "--shares", "best"})) ==
        "--shares is 'best', must be even, stored or optimal\n");
  auto const map_only =
      scratch.file("map.json", json{{"physical_to_logical_map", planned["physical_to_logical_map"]}}.dump());
  CHECK(refusal(with(mixtral_on_four, {"--score", map_only, "--shares", "stored"})) ==
        map_only + ": there is no key shares\n");
}

TEST_CASE("bad options are refused with their value") {
  auto const replaced = [](std::string const& option, std::string const& value) {
    auto given = with(mixtral_on_four, {"--policy", "deepseek"});
    auto const at = std::find(given.begin(), given.end(), option);
    if (at == given.end()) { return refusal(with(given, {option, value})); }
    at[1] = value;
    return refusal(given);
  };
  CHECK(replaced("--policy", "magic") ==
        "there is no policy 'magic'; known are: deepseek, balanced, incremental, headroom, balanced_shares\n");
  CHECK(replaced("--ranks", "0") == "topology: number of ranks is 0, must be at least 1\n");
  CHECK(replaced("--ranks", "-4") == "topology: number of ranks is -4, must be at least 1\n");
  CHECK(replaced("--ranks", "5") == "topology: 5 ranks cannot be divided over 2 nodes\n");
  CHECK(replaced("--ranks", "2") == "placement: 6 slots cannot hold 8 experts\n");
  CHECK(replaced("--ranks", "four").find("four") != std::string::npos);
  CHECK(replaced("--ranks", "4.5").find("4.5") != std::string::npos);
  CHECK(replaced("--ranks", "99999999999").find("99999999999") != std::string::npos);
  CHECK(replaced("--ranks", "2000000000").find("6000000000") != std::string::npos);
  CHECK(replaced("--nodes", "0") == "topology: number of nodes is 0, must be at least 1\n");
  CHECK(replaced("--slots-per-rank", "0") == "topology: slots per rank is 0, must be at least 1\n");
  CHECK(replaced("--groups", "0") == "--groups is 0, must be at least 1\n");
  CHECK(replaced("--shares", "stored") == "--shares is 'stored', must be even or optimal\n");
  CHECK(replaced("--steps", "2:9") == "--steps 2:9 is no range of the 5 steps of the trace (0:5 is all of them)\n");
  CHECK(replaced("--steps", "x") == "--steps is 'x', must be A:B with integers A < B\n");
  CHECK(replaced("--out", "/no/such/folder/plan.json") ==
        "/no/such/folder/plan.json: cannot be opened for writing: No such file or directory\n");
  CHECK(replaced("--speed", "9").find("--speed") != std::string::npos);
  CHECK(refusal(mixtral_on_four) ==
        "--policy is required; known are: deepseek, balanced, incremental, headroom, balanced_shares\n");
  CHECK(refusal({}).find("--loads is required") != std::string::npos);
}

TEST_CASE("bad files are refused with the place, and nothing is written") {
  scratch_folder const scratch;
  auto const out = scratch.file("plan.json", "as it was");
  auto const of_trace = [&](std::string const& content) {
    auto const file = scratch.file("loads.csv", content);
    auto const message = refusal({"--loads", file, "--ranks", "2", "--nodes", "1", "--slots-per-rank", "2", "--policy",
                                  "deepseek", "--out", out});
    CHECK(ballast_test::content_of(out) == "as it was");
    CHECK(message.starts_with(file + ": "));
    return message.substr(std::min(file.size() + 2, message.size()));
  };
  CHECK(of_trace("") == "line 1: the file is empty, must start with steps,layers,experts\n");
  CHECK(of_trace("1,1,3\n1,2,-3\n") == "line 2: value 3 is '-3', must be an integer from 0 to 17592186044416\n");
  CHECK(of_trace("1,1,3\n1,nan,3\n") == "line 2: value 2 is 'nan', must be an integer from 0 to 17592186044416\n");
  CHECK(of_trace("1,1,3\n1,2\n") == "line 2: has 2 values, must have 3\n");
  CHECK(of_trace("2,1,3\n1,2,3\n") ==
        "line 2: the file ends here, after 1 of 2 lines of counts (2 steps x 1 layers)\n");

  auto const of_current = [&](std::string const& content) {
    auto const file = scratch.file("current.json", content);
    auto const message = refusal(with(mixtral_on_four, {"--policy", "deepseek", "--current", file, "--out", out}));
    CHECK(ballast_test::content_of(out) == "as it was");
    return message.substr(std::min(file.size() + 2, message.size()));
  };
  CHECK(of_current("{}") == "there is no key physical_to_logical_map\n");
  CHECK(of_current("nonsense").starts_with("not JSON: parse error at line 1, column 2: "));
  auto map = plan(with(mixtral_on_four, {"--policy", "deepseek"}))["physical_to_logical_map"];
  for (auto& expert : map[2]) { expert = expert == 5 ? json(4) : expert; }
  CHECK(of_current(json{{"physical_to_logical_map", map}}.dump()) == "placement: layer 2 has no slot for expert 5\n");
}

TEST_CASE("help is no failure") {
  auto const result = run({"--help"});
  CHECK(result.exit_status == 0);
  for (auto const* option : {"--loads", "--steps", "--ranks", "--nodes", "--slots-per-rank", "--groups", "--policy",
                             "--current", "--out", "--max-moves", "--shares", "--score", "--moe-layers",
                             "--model-layers", "--report", "--version", "steps,layers,experts", "(required"}) {
    CAPTURE(option);
    CHECK(result.out.find(option) != std::string::npos);
  }
}
