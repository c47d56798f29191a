// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-replay --every-batch as a user meets it: what it compares, on counts and on ids, and every refusal.
#include "support/tool.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <sstream>
#include <string>
#include <vector>

namespace {

using ballast_test::arguments;
using ballast_test::scratch_folder;
using ballast_test::with;
using nlohmann::json;

std::string const& program() {
  static auto const path = ballast_test::need_tool("ballast-replay");
  return path;
}

std::string const traces = BALLAST_TEST_DATA_DIR "/traces/deepseek-v2-lite/";
std::string const ids = BALLAST_TEST_DATA_DIR "/tokens/deepseek_v2_lite_intent.csv";
arguments const on_sixteen{"--every-batch", "--ranks", "16", "--slots-per-rank", "6"};

struct replayed {
  std::vector<json> batches;
  std::string out;
  std::string plot;

  /// max / mean over all batches, each of the same size.
  [[nodiscard]] double ratio(char const* how, char const* kind) const {
    double sum = 0;
    for (auto const& batch : batches) { sum += batch[how][kind]["ratio"].get<double>(); }
    return sum / static_cast<double>(batches.size());
  }
};

replayed replay(arguments const& given) {
  scratch_folder const scratch;
  auto const lines_file = scratch.file("batches.jsonl");
  auto const plot = scratch.file("batches.dat");
  auto const result = ballast_test::run_tool(program(), with(given, {"--json", lines_file, "--plot", plot}));
  REQUIRE_MESSAGE(result.exit_status == 0, result.err);
  CHECK(result.err.empty());
  replayed read{{}, result.out, ballast_test::content_of(plot)};
  std::istringstream lines{ballast_test::content_of(lines_file)};
  for (std::string line; std::getline(lines, line);) { read.batches.push_back(json::parse(line)); }
  return read;
}

std::string refusal(arguments const& given) {
  auto const result = ballast_test::run_tool(program(), given);
  CHECK(result.exit_status == 2);
  CHECK(result.out.empty());
  std::string const name = "ballast-replay: ";
  CHECK(result.err.starts_with(name));
  return result.err.substr(std::min(name.size(), result.err.size()));
}

/// The first steps of a trace of loads, as one of its own.
std::string first_steps(std::string const& file, int steps, int layers) {
  std::istringstream lines{ballast_test::content_of(file)};
  std::string line;
  std::getline(lines, line);
  auto text = std::to_string(steps) + line.substr(line.find(',')) + '\n';
  for (int i = 0; i < steps * layers && std::getline(lines, line); ++i) { text += line + '\n'; }
  return text;
}

}  // namespace

TEST_CASE("planned on batches 1 to 8, batches 9 to 16 are balanced by their quotas, with nothing moved") {
  for (auto const& group : {arguments{"8", "10"}, arguments{"16", "6"}}) {
    double sum = 0;
    for (auto const* task : {"intent", "law", "summary", "translation"}) {
      CAPTURE(task);
      CAPTURE(group[0]);
      auto const result = replay({"--every-batch", "--trace", traces + task + "_512tok.csv", "--ranks", group[0],
                                  "--slots-per-rank", group[1]});
      REQUIRE(result.batches.size() == 8);
      CHECK(result.batches.front()["batch"] == 9);
      sum += result.ratio("planned", "quotas");
      CHECK(result.ratio("planned", "quotas") <= 1.001);
      CHECK(result.ratio("planned", "refreshed") > 1.01);
      CHECK(result.ratio("planned", "even") > 1.02);
      CHECK(result.ratio("planned", "start") > 1.2);
      for (auto const& batch : result.batches) {
        CHECK(batch["moves"] == 0);
        CHECK_FALSE(batch.contains("realised"));
      }
      CHECK(result.out.find("experts moved: 0\n") != std::string::npos);
      CHECK(result.out.find("nothing is realised") != std::string::npos);
    }
    CHECK(sum / 4 <= 1.0005);
  }
}

TEST_CASE("mapped ids keep to quotas exactly, whatever the batch, and by share they do not") {
  for (auto const* batch_tokens : {"64", "37", "5"}) {
    CAPTURE(batch_tokens);
    auto const result = replay(with(on_sixteen, {"--tokens", ids, "--batch-tokens", batch_tokens, "--experts", "64"}));
    REQUIRE(result.batches.size() == static_cast<std::size_t>(1024 / std::stoi(batch_tokens) - 8));
    for (auto const& batch : result.batches) {
      CHECK(batch["rows_off"] == 0);
      CHECK(batch["realised"]["quotas"] == batch["planned"]["quotas"]);
    }
    CHECK(result.ratio("realised", "quotas") < result.ratio("realised", "refreshed"));
    CHECK(result.ratio("realised", "shares") > result.ratio("planned", "shares"));
    CHECK(result.out.find("; off their quotas: 0\n") != std::string::npos);
  }
}

TEST_CASE("a trace of ids is the trace of its counts") {
  scratch_folder const scratch;
  auto const counts = scratch.file("counts.csv", first_steps(traces + "intent_512tok.csv", 2, 26));
  auto const by_ids = replay(with(on_sixteen, {"--tokens", ids, "--plan-on", "1"}));
  auto const by_counts = replay(with(on_sixteen, {"--trace", counts, "--plan-on", "1"}));
  REQUIRE(by_ids.batches.size() == 1);
  REQUIRE(by_counts.batches.size() == 1);
  CHECK(by_ids.batches[0]["planned"] == by_counts.batches[0]["planned"]);
  // Twice the same tokens are two parts, through a pipe as well.
  auto const piped = ballast_test::run_in_shell(
      "cat " + ballast_test::quoted(ids) + " " + ballast_test::quoted(ids) + " | " +
      ballast_test::command_line(program(), with(on_sixteen, {"--tokens", "-", "--batch-tokens", "100"})));
  CHECK_MESSAGE(piped.exit_status == 0, piped.err);
  CHECK(piped.out.find("  20 batches of 100 tokens, top 6, of a model with 26 MoE layers of 64 experts\n") !=
        std::string::npos);
}

TEST_CASE("experts move when it plans again, and only then") {
  auto const mixed = traces + "mixed_512tok.csv";
  auto const again = replay(with(on_sixteen, {"--trace", mixed, "--interval", "16"}));
  REQUIRE(again.batches.size() == 56);
  for (std::size_t i = 0; i < 56; ++i) { CHECK((again.batches[i]["moves"] > 0) == (i > 0 && i % 16 == 0)); }
  CHECK(again.out.find("plans: 4; ") != std::string::npos);
  auto const few =
      replay(with(on_sixteen, {"--trace", mixed, "--policy", "incremental", "--max-moves", "1", "--interval", "16"}));
  for (auto const& batch : few.batches) { CHECK(batch["moves"] <= 26); }
  auto const once = replay(with(on_sixteen, {"--trace", mixed}));
  CHECK(once.ratio("planned", "quotas") > again.ratio("planned", "quotas"));
}

TEST_CASE("every policy has quotas, with and without shares of its own") {
  for (auto const* policy : {"deepseek", "balanced", "incremental", "headroom", "balanced_shares"}) {
    CAPTURE(policy);
    auto const result = replay(with(
        on_sixteen, {"--tokens", ids, "--batch-tokens", "64", "--policy", policy, "--nodes", "2", "--interval", "4"}));
    for (auto const& batch : result.batches) { CHECK(batch["rows_off"] == 0); }
    CHECK(result.ratio("realised", "quotas") < result.ratio("realised", "refreshed"));
    auto const twice = replay(with(
        on_sixteen, {"--tokens", ids, "--batch-tokens", "64", "--policy", policy, "--nodes", "2", "--interval", "4"}));
    CHECK(twice.batches == result.batches);
    CHECK(twice.out == result.out);
  }
}

TEST_CASE("the plot has a line a batch, with what the ids came to") {
  auto const result = replay(with(on_sixteen, {"--tokens", ids, "--batch-tokens", "64"}));
  std::istringstream lines{result.plot};
  std::string line;
  std::getline(lines, line);
  CHECK(line == "# max / mean of the rank loads, realised");
  std::getline(lines, line);
  CHECK(line == "# batch moves start even shares refreshed quotas");
  for (auto const& batch : result.batches) {
    int number = 0;
    int moves = 0;
    lines >> number >> moves;
    CHECK(number == batch["batch"].get<int>());
    CHECK(moves == batch["moves"].get<int>());
    for (auto const* kind : {"start", "even", "shares", "refreshed", "quotas"}) {
      double ratio = 0;
      lines >> ratio;
      CHECK(ratio == doctest::Approx(batch["realised"][kind]["ratio"].get<double>()).epsilon(1e-5));
    }
  }
  CHECK((lines >> std::ws).eof());
}

TEST_CASE("bad input is refused with its value") {
  scratch_folder const scratch;
  auto const good = with(on_sixteen, {"--tokens", ids});
  CHECK(refusal(with(good, {"--batch-tokens", "0"})) == "--batch-tokens is 0, must be at least 1\n");
  CHECK(refusal(with(good, {"--experts", "0"})) == "--experts is 0, must be at least 1\n");
  CHECK(refusal(with(good, {"--plan-on", "0"})) == "--plan-on is 0, must be at least 1\n");
  CHECK(refusal(with(good, {"--interval", "0"})) == "--interval is 0, must be at least 1\n");
  CHECK(refusal(good) == ids + ": holds 2 whole batches of 512 tokens, of which --plan-on 8 leaves none to judge\n");
  CHECK(refusal(with(good, {"--batch-tokens", "4096"})) ==
        ids + ": holds 0 whole batches of 4096 tokens, of which --plan-on 8 leaves none to judge\n");
  CHECK(refusal(with(good, {"--experts", "60"})).find("must be an integer from 0 to 59 (26 layers x top 6)") !=
        std::string::npos);
  CHECK(refusal(with(good, {"--experts", "97"})) == "placement: 96 slots cannot hold 97 experts\n");
  CHECK(refusal(with(good, {"--trace", ids})) == "--trace and --tokens are both given: one of them is replayed\n");
  CHECK(refusal(on_sixteen) == "--trace or --tokens is required\n");
  CHECK(refusal(with(good, {"--policy", "magic"})).starts_with("there is no policy 'magic'"));
  CHECK(refusal(with(good, {"--nodes", "3"})) == "topology: 16 ranks cannot be divided over 3 nodes\n");
  CHECK(refusal(with(good, {"--plan-on", "1", "--plot", "/no/such/folder/plot"})) ==
        "/no/such/folder/plot: cannot be opened for writing: No such file or directory\n");
  CHECK(refusal(with(good, {"--plot", ids})) ==
        "--plot is '" + ids + "', which is the file that --tokens reads: name another file\n");
  CHECK(refusal(with(on_sixteen, {"--tokens", "/no/such/file"})) ==
        "/no/such/file: cannot be opened: No such file or directory\n");
  CHECK(refusal(with(on_sixteen, {"--tokens", scratch.file("empty.csv", "")}))
            .ends_with("empty.csv: line 1: the file is empty, must start with tokens,layers,topk\n"));
  CHECK(refusal(with(on_sixteen, {"--tokens", scratch.file("short.csv", "1,2,2\n1,2,3\n")}))
            .ends_with("short.csv: line 2: has 3 values, must have 4 (2 layers x top 2)\n"));
  CHECK(refusal({"--every-batch", "--tokens", ids, "--ranks", "2000", "--slots-per-rank", "1"}) ==
        "--ranks is 2000, must be at most 1024\n");
  CHECK(refusal({"--every-batch", "--tokens", ids, "--ranks", "1024", "--slots-per-rank", "64"}) ==
        "65536 slots in a layer, --every-batch has quotas for less than 65536\n");
  auto const counts = with(on_sixteen, {"--trace", traces + "intent_512tok.csv"});
  CHECK(refusal(with(counts, {"--batch-tokens", "8"})) == "--batch-tokens is for --tokens: steps are batches\n");
  CHECK(refusal(with(counts, {"--experts", "64"})) == "--experts is for --tokens: a trace of loads says it\n");
  CHECK(refusal(with(counts, {"--plan-on", "16"}))
            .ends_with("holds 16 whole batches, of which --plan-on 16 leaves none to judge\n"));
  for (auto const* option : {"--layers-per-chunk", "--bytes-per-expert", "--threshold", "--shares-every"}) {
    CHECK(refusal(with(counts, {option, "1"})) == option + std::string{" is not for --every-batch\n"});
  }
  auto const large = scratch.file("large.csv", "2,1,2\n1,1\n1073741824,1\n");
  CHECK(refusal({"--every-batch", "--trace", large, "--ranks", "2", "--slots-per-rank", "1", "--plan-on", "1"}) ==
        large + ": the tokens of layer 0 in step 1 exceed 1073741824, the most of a batch\n");
}
