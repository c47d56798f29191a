// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-replay as a user meets it: the calls on which it plans and moves, its events, and every refusal.
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/policy.hpp>

#include "../../examples/support/trace.hpp"
#include "support/random.hpp"
#include "support/tool.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using ballast_test::arguments;
using ballast_test::scratch_folder;
using ballast_test::with;
using nlohmann::json;

std::string const& program() {
  static auto const path = ballast_test::need_tool("ballast-replay");
  return path;
}

std::string const mixtral = BALLAST_TEST_DATA_DIR "/traces/mixtral-8x7b/domains.csv";
arguments const on_four{"--ranks", "4", "--nodes", "2", "--slots-per-rank", "3"};
arguments const without_spares{"--ranks", "4", "--nodes", "2", "--slots-per-rank", "2"};

std::string refusal(arguments const& given) {
  auto const result = ballast_test::run_tool(program(), given);
  CHECK(result.exit_status == 2);
  CHECK(result.out.empty());
  std::string const name = "ballast-replay: ";
  CHECK(result.err.starts_with(name));
  return result.err.substr(std::min(name.size(), result.err.size()));
}

/// Loads of `steps` passes over five layers of eight experts that differ so much from pass to pass that every plan of
/// deepseek changes every layer, whatever its ranks are called.
std::string changing_trace(index_t steps) {
  ballast_test::generator random{4};
  std::vector<load_t> tokens(static_cast<std::size_t>(steps) * 40);
  for (auto& count : tokens) { count = random.below(4) == 0 ? random.below(10000) : random.below(100); }
  return ballast_tools::format_trace({tokens, steps, 5, 8});
}

std::string uniform_trace(index_t steps) {
  std::vector<load_t> const tokens(static_cast<std::size_t>(steps) * 40, 100);
  return ballast_tools::format_trace({tokens, steps, 5, 8});
}

struct replayed {
  std::vector<json> events;
  std::string out;
};

replayed replay(std::string const& trace, arguments const& more, arguments const& group = on_four) {
  scratch_folder const scratch;
  auto const file = scratch.file("events.jsonl");
  auto const result = ballast_test::run_tool(
      program(), with({"--trace", scratch.file("trace.csv", trace), "--json", file, "--bytes-per-expert", "24"},
                      with(group, more)));
  REQUIRE_MESSAGE(result.exit_status == 0, result.err);
  CHECK(result.err.empty());
  replayed read{{}, result.out};
  std::istringstream lines{ballast_test::content_of(file)};
  for (std::string line; std::getline(lines, line);) { read.events.push_back(json::parse(line)); }
  return read;
}

std::vector<int> calls_of(std::vector<json> const& events, char const* kind) {
  std::vector<int> calls;
  for (auto const& event : events) {
    if (event["event"] == kind) { calls.push_back(event["call"].get<int>()); }
  }
  return calls;
}

/// Calls on which dumps and commits must come, by the table: C chunks a plan, `num_calls` calls.
struct timetable {
  std::vector<int> dumps;
  std::vector<int> commits;

  timetable(int interval, int chunks, int num_calls) {
    for (int dump = interval + 1; dump <= num_calls; dump += interval + (chunks > 1 ? chunks : 0)) {
      dumps.push_back(dump);
      for (int chunk = 1; chunk <= chunks; ++chunk) {
        auto const call = chunks > 1 ? dump + chunk : dump;
        if (call <= num_calls) { commits.push_back(call); }
      }
    }
  }
};

}  // namespace

TEST_CASE("dumps, plans and commits come on their calls") {
  constexpr int num_calls = 23;
  auto const trace = changing_trace(num_calls);
  for (int interval : {1, 2, 5}) {
    for (int per_chunk : {0, 1, 2, 3, 4, 5, 9}) {
      CAPTURE(interval);
      CAPTURE(per_chunk);
      arguments given{"--policy", "deepseek", "--interval", std::to_string(interval)};
      if (per_chunk > 0) { given = with(given, {"--layers-per-chunk", std::to_string(per_chunk)}); }
      auto const events = replay(trace, given).events;
      auto const chunks = per_chunk == 0 ? 1 : (5 + per_chunk - 1) / per_chunk;
      timetable const expected{interval, chunks, num_calls};
      CHECK(calls_of(events, "dump") == expected.dumps);
      CHECK(calls_of(events, "plan") == expected.dumps);
      CHECK(calls_of(events, "commit") == expected.commits);
      CHECK(events.size() == 2 * expected.dumps.size() + expected.commits.size());
    }
  }
}

TEST_CASE("where nothing changes there is a dump a period and no commit") {
  for (int interval : {1, 2, 5}) {
    CAPTURE(interval);
    arguments const given{"--policy", "incremental", "--interval", std::to_string(interval), "--layers-per-chunk", "1"};
    auto const events = replay(uniform_trace(13), given, without_spares).events;
    CHECK(calls_of(events, "dump") == timetable{interval, 0, 13}.dumps);
    CHECK(calls_of(events, "commit").empty());
    for (auto const& event : events) {
      CHECK(event["moves"] == 0);
      CHECK(event["layers"].empty());
    }
  }
}

TEST_CASE("a trace of N passes is over before the first plan, and the tool says so") {
  auto const result = replay(changing_trace(5), {"--policy", "deepseek", "--interval", "5"});
  CHECK(result.events.empty());
  CHECK(result.out.find("no expert was moved") != std::string::npos);
  CHECK(result.out.find("nothing was committed") != std::string::npos);
}

TEST_CASE("balance above the threshold skips the plan, and still dumps") {
  auto const events =
      replay(changing_trace(9), {"--policy", "deepseek", "--interval", "2", "--threshold", "0.01"}).events;
  CHECK(calls_of(events, "dump") == std::vector{3, 5, 7, 9});
  CHECK(calls_of(events, "skip") == std::vector{3, 5, 7, 9});
  CHECK(events.size() == 8);
}

TEST_CASE("shares are refreshed on their own, between plans and while layers move, and move nothing") {
  arguments const given{"--policy", "deepseek", "--interval", "6", "--layers-per-chunk", "3", "--shares-every", "2"};
  auto const events = replay(changing_trace(15), given).events;
  CHECK(calls_of(events, "dump") == timetable{6, 2, 15}.dumps);
  CHECK(calls_of(events, "commit") == timetable{6, 2, 15}.commits);
  // Every second call, and once more before each plan: re-splitting is the first remedy, moving the second.
  CHECK(calls_of(events, "shares") == std::vector{2, 4, 6, 7, 8, 10, 12, 14, 15});
  for (auto const& event : events) {
    if (event["event"] != "shares") { continue; }
    CHECK(event["moves"] == 0);
    CHECK(event["bytes"] == 0);
    CHECK_FALSE(event["layers"].empty());
  }
}

TEST_CASE("events tell what was moved, chunk by chunk") {
  auto const events =
      replay(changing_trace(30), {"--policy", "deepseek", "--interval", "4", "--layers-per-chunk", "2"}).events;
  json plan;
  json layers;
  std::int64_t moves = 0;
  int num_complete = 0;
  for (auto const& event : events) {
    CHECK(event.size() == 6);
    CHECK(event["bytes"].get<std::int64_t>() == 24 * event["moves"].get<std::int64_t>());
    if (event["event"] == "plan") {
      plan = event;
      layers = json::array();
      moves = 0;
    }
    if (event["event"] != "commit") { continue; }
    CHECK(std::is_sorted(event["layers"].begin(), event["layers"].end()));
    layers.insert(layers.end(), event["layers"].begin(), event["layers"].end());
    moves += event["moves"].get<std::int64_t>();
    CHECK(event["layers"].size() == (layers.size() == 5 ? 1 : 2));
    if (layers.size() < 5) { continue; }
    CHECK(layers == plan["layers"]);
    CHECK(moves == plan["moves"].get<std::int64_t>());
    CHECK(event["balancedness"] == plan["balancedness"]);
    ++num_complete;
  }
  CHECK(num_complete >= 3);
}

TEST_CASE("a dump adds exactly the last N passes of all ranks up") {
  topology const where{{.num_ranks = 4, .num_nodes = 2, .slots_per_rank = 3}};
  auto const initial = trivial_placement({5, 8, 12});
  ballast_tools::trace trace;
  REQUIRE(ballast_tools::parse_trace(changing_trace(20), trace).ok());
  auto const events = replay(changing_trace(20), {"--policy", "deepseek", "--interval", "3"}).events;
  placement current = initial;
  for (auto const& event : events) {
    auto const call = event["call"].get<index_t>();
    auto const sum = sum_steps(trace, {call - 3, call});
    matrix_view<load_t const> const loads{sum, 5, 8};
    if (event["event"] == "plan") {
      placement next;
      REQUIRE(plan(deepseek_placement{}, loads, current, where, next).ok());
      current = next;
    }
    CHECK(event["balancedness"].get<double>() == doctest::Approx(balancedness(where, current, loads)).epsilon(1e-12));
  }
  CHECK(calls_of(events, "dump").size() == 6);
}

TEST_CASE("the same replay writes the same events, with every policy") {
  for (auto const* policy : {"deepseek", "balanced", "incremental", "headroom"}) {
    CAPTURE(policy);
    arguments const given{"--policy", policy, "--interval", "3", "--layers-per-chunk", "2"};
    auto const first = replay(changing_trace(12), given);
    auto const second = replay(changing_trace(12), given);
    CHECK(first.events == second.events);
    CHECK(first.events.size() > 3);
    CHECK(first.out.find("verified after every commit: ") != std::string::npos);
  }
}

TEST_CASE("sizes of weights that are not a whole number of words, one rank, one expert") {
  scratch_folder const scratch;
  auto const run = [&](std::string const& trace, arguments const& more) {
    auto const result = ballast_test::run_tool(
        program(),
        with({"--trace", scratch.file("trace.csv", trace), "--policy", "deepseek", "--interval", "1"}, more));
    CHECK_MESSAGE(result.exit_status == 0, result.err);
  };
  run(changing_trace(4), with(on_four, {"--bytes-per-expert", "1"}));
  run(changing_trace(4), with(on_four, {"--bytes-per-expert", "4099"}));
  run(changing_trace(4), {"--ranks", "1", "--nodes", "1", "--slots-per-rank", "8"});
  run("3,1,1\n5\n0\n7\n", {"--ranks", "2", "--nodes", "1", "--slots-per-rank", "2"});
}

TEST_CASE("bad input is refused with its value") {
  arguments const base = with({"--trace", mixtral}, on_four);
  arguments const good = with(base, {"--policy", "deepseek", "--interval", "2"});
  CHECK(refusal(with(on_four, {"--policy", "deepseek", "--interval", "2"})) == "--trace is required\n");
  CHECK(refusal(with(base, {"--policy", "deepseek"})) == "--interval is required\n");
  CHECK(refusal(with(base, {"--interval", "2"})).starts_with("--policy is required"));
  for (auto const* option : {"--tokens", "--batch-tokens", "--experts", "--plan-on", "--plot"}) {
    CHECK(refusal(with(good, {option, "8"})) == option + std::string{" is for --every-batch\n"});
  }
  CHECK(refusal(with(good, {"--layers-per-chunk", "0"})) == "--layers-per-chunk is 0, must be at least 1\n");
  CHECK(refusal(with(good, {"--layers-per-chunk", "-2"})) == "--layers-per-chunk is -2, must be at least 1\n");
  CHECK(refusal(with(good, {"--bytes-per-expert", "0"})) == "--bytes-per-expert is 0, must be at least 1\n");
  CHECK(refusal(with(good, {"--bytes-per-expert", "999999999999999"})).find("999999999999999") != std::string::npos);
  CHECK(refusal(with(good, {"--shares-every", "0"})) == "--shares-every is 0, must be at least 1\n");
  CHECK(refusal(with(good, {"--threshold", "-1"})) == "--threshold is -1, must be from 0 to 1\n");
  CHECK(refusal(with(good, {"--groups", "0"})) == "--groups is 0, must be at least 1\n");
  CHECK(refusal(with(good, {"--json", "/no/such/folder/events"})) ==
        "/no/such/folder/events: cannot be opened for writing: No such file or directory\n");
  CHECK(refusal(with(base, {"--policy", "deepseek", "--interval", "0"})) == "--interval is 0, must be at least 1\n");
  CHECK(refusal(with(base, {"--policy", "magic", "--interval", "2"})) ==
        "there is no policy 'magic'; known are: deepseek, balanced, incremental, headroom, balanced_shares\n");
  CHECK(refusal({"--trace", mixtral, "--ranks", "2000", "--nodes", "1", "--slots-per-rank", "1", "--policy", "deepseek",
                 "--interval", "2"}) == "--ranks is 2000, each is a thread: must be at most 1024\n");
  CHECK(refusal({"--trace", mixtral, "--ranks", "4", "--nodes", "4", "--slots-per-rank", "3", "--groups", "4",
                 "--policy", "magic", "--interval", "2"})
            .starts_with("there is no policy 'magic'"));
  CHECK(refusal({"--trace", mixtral, "--ranks", "4", "--nodes", "1", "--slots-per-rank", "3", "--groups", "3",
                 "--policy", "deepseek", "--interval", "99"}) ==
        "--groups is 3, must divide the 8 experts of the trace\n");
  CHECK(refusal({"--trace", mixtral, "--ranks", "4", "--nodes", "1", "--slots-per-rank", "1", "--policy", "deepseek",
                 "--interval", "2"}) == "placement: 4 slots cannot hold 8 experts\n");
  CHECK(refusal(with(good, {"--groups", "3"})) ==
        "--groups is 3, must be a multiple of the 2 nodes: else groups cannot be kept on one each\n");
  CHECK(refusal(with(base, {"--policy", "headroom", "--interval", "2", "--groups", "2"})) ==
        "--groups is 2, but only the policies deepseek and balanced keep groups together, not 'headroom'\n");
  CHECK(refusal(with(good, {"--max-moves", "2"})) ==
        "--max-moves is 2, but only the policy incremental plans with a budget, not 'deepseek'\n");
  scratch_folder const scratch;
  auto const large = scratch.file("large.csv",
                                  "3,1,8\n1,2,3,4,5,6,7,8\n17592186044416,0,0,0,0,0,0,0\n"
                                  "1,0,0,0,0,0,0,0\n");
  CHECK(refusal(with({"--trace", large, "--policy", "deepseek", "--interval", "2"}, on_four)) ==
        large + ": the tokens of layer 0 in 2 steps up to step 1 exceed 17592186044416\n");
  auto const truncated = scratch.file("truncated.csv", "2,1,8\n1,2,3,4,5,6,7,8\n1,2,3");
  CHECK(refusal(with({"--trace", truncated, "--policy", "deepseek", "--interval", "1"}, on_four)) ==
        truncated + ": line 3: has 3 values, must have 8\n");
}

TEST_CASE("headroom is replayed with the shares that it leaves room for, unless it is told when") {
  arguments const given{"--policy", "headroom", "--interval", "3"};
  auto const trace = changing_trace(12);
  auto const shares = [&](arguments const& more) {
    return calls_of(replay(trace, with(given, more)).events, "shares");
  };
  CHECK_FALSE(shares({}).empty());
  CHECK(shares({}) == shares({"--shares-every", "3"}));
  CHECK(calls_of(replay(trace, {"--policy", "balanced", "--interval", "3"}).events, "shares").empty());
}

TEST_CASE("an interrupted replay writes whole events, sums up what it saw, and says that it was interrupted") {
  scratch_folder const scratch;
  auto const trace = scratch.file("trace.csv", changing_trace(20000));
  auto const complete = replay(changing_trace(200), {"--policy", "deepseek", "--interval", "3"}).events;
  for (auto const& [signal, exit_status] : {std::pair{"INT", 130}, std::pair{"TERM", 143}}) {
    CAPTURE(signal);
    scratch_folder const results;
    auto const file = results.file("events.jsonl");
    auto const command = ballast_test::command_line(
        program(),
        with({"--trace", trace, "--json", file, "--bytes-per-expert", "24", "--policy", "deepseek", "--interval", "3"},
             on_four));
    // Once events are on their way it runs; the file that they go to has no name yet that could be waited for.
    auto const result = ballast_test::run_in_shell(
        command + " & tool=$!\nfor i in $(seq 3000); do [ -s " + ballast_test::quoted(results.path().string()) +
        "/.ballast-* ] && break; sleep 0.02; done\nkill -" + signal + " $tool\nwait $tool");
    CHECK_MESSAGE(result.exit_status == exit_status, result.err);
    CHECK(result.err.empty());
    CHECK(result.out.find("verified after every commit: ") != std::string::npos);
    auto const said = result.out.find("interrupted after ");
    REQUIRE(said != std::string::npos);
    int passes = 0;
    REQUIRE(std::sscanf(result.out.c_str() + said, "interrupted after %d of 20000 forward passes", &passes) == 1);
    CHECK(passes > 0);
    CHECK(passes < 20000);
    CHECK(results.names() == std::vector<std::string>{"events.jsonl"});
    auto const text = ballast_test::content_of(file);
    CHECK(text.ends_with("}\n"));
    std::istringstream lines{text};
    std::size_t num_events = 0;
    for (std::string line; std::getline(lines, line); ++num_events) {
      auto const event = json::parse(line);
      CHECK(event["call"].get<int>() <= passes);
      if (num_events < complete.size()) { CHECK(event == complete[num_events]); }
    }
    CHECK(num_events == 3 * static_cast<std::size_t>((passes - 1) / 3));
  }
}
