// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-plan as a user meets it: files in, files out, and every refusal.
#include "support/tool.hpp"
#include "support/trace_files.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

namespace {

using ballast_test::scratch_folder;
using ballast_test::tool_result;
using nlohmann::json;
using arguments = std::vector<std::string>;

std::string const& program() {
  static auto const path = ballast_test::need_tool("ballast-plan");
  return path;
}

tool_result run(arguments const& given) { return ballast_test::run_tool(program(), given); }

json plan(arguments const& given) {
  auto const result = run(given);
  REQUIRE_MESSAGE(result.exit_status == 0, result.err);
  CHECK(result.err.empty());
  return json::parse(result.out);
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

arguments with(arguments base, arguments const& more) {
  base.insert(base.end(), more.begin(), more.end());
  return base;
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
    auto const planned =
        plan({"--loads", scratch.file("loads.csv", trace_of(in["weight"])), "--policy", "deepseek", "--ranks",
              std::to_string(ranks), "--nodes", in["num_nodes"].dump(), "--groups", in["num_groups"].dump(),
              "--slots-per-rank", std::to_string(in["num_replicas"].get<int>() / ranks)});
    auto const& expected = golden.contains("outputs_stable_sort") ? golden["outputs_stable_sort"] : golden["outputs"];
    CHECK(planned["physical_to_logical_map"] == expected["phy2log"]);
    CHECK(planned["logical_to_physical_map"] == without_padding(expected["log2phy"]));
    CHECK(planned["logical_count"] == expected["logcnt"]);
  }
}

TEST_CASE("a plan says how good it is and what it costs") {
  for (auto const* policy : {"deepseek", "balanced", "incremental", "headroom"}) {
    CAPTURE(policy);
    auto const planned = plan(with(mixtral_on_four, {"--policy", policy}));
    CHECK(planned["physical_to_logical_map"].size() == 3);
    CHECK(planned["physical_to_logical_map"][0].size() == 12);
    CHECK(planned["balancedness"].get<double>() > 0.8);
    CHECK(planned["balancedness"].get<double>() <= 1);
    CHECK(planned["balancedness_per_layer"].size() == 3);
    CHECK(planned["moves_per_layer"].size() == 3);
    CHECK_FALSE(planned.contains("shares"));
    for (auto const& layer : planned["logical_count"]) {
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
    CHECK(single["logical_count"] == json::parse("[[4]]"));
    CHECK(single["balancedness"] == 1.0);
    CHECK(plan({"--loads", one, "--ranks", "1", "--slots-per-rank", "1", "--policy", policy})["moves_per_layer"] ==
          json::array({0}));
  }
}

TEST_CASE("groups that the nodes do not divide are planned globally; experts that groups do not divide are refused") {
  auto const base = with(mixtral_on_four, {"--policy", "deepseek"});
  CHECK(plan(with(base, {"--groups", "3"})) == plan(base));
  CHECK(refusal({"--loads", mixtral, "--ranks", "4", "--nodes", "1", "--slots-per-rank", "3", "--policy", "deepseek",
                 "--groups", "3"}) == "deepseek: 8 experts cannot be divided into 3 groups\n");
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
    auto const even = plan(base);
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
  auto const made = run(with(base, {"--policy", "deepseek", "--shares", "optimal", "--out", file}));
  REQUIRE(made.exit_status == 0);
  auto const planned = json::parse(ballast_test::content_of(file));

  auto const score = [&](char const* steps, char const* shares) {
    return plan(with(mixtral_on_four, {"--steps", steps, "--score", file, "--shares", shares}));
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
        plan(with(mixtral_on_four, {"--steps", "3:5", "--score", file}))["balancedness"]);

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
        "there is no policy 'magic'; known are: deepseek, balanced, incremental, headroom\n");
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
  CHECK(refusal(mixtral_on_four) == "--policy is required; known are: deepseek, balanced, incremental, headroom\n");
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
  CHECK(of_current("nonsense").starts_with("not JSON: "));
  auto map = plan(with(mixtral_on_four, {"--policy", "deepseek"}))["physical_to_logical_map"];
  for (auto& expert : map[2]) { expert = expert == 5 ? json(4) : expert; }
  CHECK(of_current(json{{"physical_to_logical_map", map}}.dump()) == "placement: layer 2 has no slot for expert 5\n");
}

TEST_CASE("help is no failure") {
  auto const result = run({"--help"});
  CHECK(result.exit_status == 0);
  for (auto const* option : {"--loads", "--steps", "--ranks", "--nodes", "--slots-per-rank", "--groups", "--policy",
                             "--current", "--out", "--max-moves", "--shares", "--score"}) {
    CHECK(result.out.find(option) != std::string::npos);
  }
}
