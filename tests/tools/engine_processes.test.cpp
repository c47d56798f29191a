// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// examples/engine with ranks that are processes: the same outputs, also when a rank stops answering, wherever it is.
#include "support/long_runs.hpp"
#include "support/tool.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

using ballast_test::arguments;
using ballast_test::scratch_folder;
using ballast_test::with;
using nlohmann::json;

/// @return the program, or the end of this one where it has no processes
std::string const& program() {
  static auto const path = [] {
    auto const found = ballast_test::need_tool("engine");
    auto const tried = ballast_test::run_tool(found, {"--transport", "processes", "--passes", "1"});
    if (tried.exit_status == 2 && tried.err.find("not built in") != std::string::npos) {
      std::printf("skipped: the engine has no processes\n");
      std::exit(77);
    }
    return found;
  }();
  return path;
}

json serve(arguments const& given) {
  scratch_folder const scratch;
  auto const file = scratch.file("seen.json");
  auto const result = ballast_test::run_tool(program(), with({"--transport", "processes", "--json", file}, given));
  REQUIRE_MESSAGE(result.exit_status == 0, result.out, result.err);
  CHECK(result.err.empty());
  auto seen = json::parse(ballast_test::content_of(file));
  for (auto const& one : seen["modes"]) {
    CAPTURE(one["name"].get<std::string>());
    CHECK(one["wrong_requests"].empty());
    CHECK(one["replicas"] == "");
  }
  return seen;
}

}  // namespace

TEST_CASE("between processes too, every mode gives the outputs of one rank") {
  arguments given{"--passes", "60", "--interval", "2", "--schedule", "4"};
  if (ballast_test::is_long_run()) {
    given = {"--passes", "400", "--interval", "3", "--ranks", "8", "--spare-slots", "3"};
  }
  auto const seen = serve(given);
  REQUIRE(seen["modes"].size() == 9);
  for (auto const& one : seen["modes"]) {
    CAPTURE(one["name"].get<std::string>());
    CHECK(one["failures"] == 0);
    CHECK((one["moves"].get<int>() > 0) == (one["name"] != "none"));
  }
}

// The rank stops in a step of the first mode; the others are then wherever their own cycles have got to: recording,
// with a chunk committed and others to come, with bytes on their way.
TEST_CASE("when a rank stops answering the others say so in time, and serve on with the last agreed placement") {
  constexpr int timeout_ms = 400;
  auto const modes = "incremental-async,incremental,seed-chunks,shares,every-batch,every-batch-async,seed,central";
  arguments const common{"--spare-slots", "6", "--passes",    "20", "--interval",   "2",
                         "--layers",      "3", "--stop-rank", "2",  "--timeout-ms", std::to_string(timeout_ms)};
  int const passes = ballast_test::is_long_run() ? 10 : 2;
  for (std::string const place : {"pass", "balance", "message"}) {
    for (int pass = 5; pass < 5 + passes; ++pass) {
      CAPTURE(place);
      CAPTURE(pass);
      auto const which = place == "balance" ? std::string{"incremental,"} + "seed,shares,central" : std::string{modes};
      auto const seen = serve(with(common, {"--modes", which, "--stop-in", place, "--stop-at", std::to_string(pass)}));
      REQUIRE(seen.contains("stop"));
      CHECK(seen["stop"]["rank"] == 2);
      CHECK(seen["stop"]["pass"] == pass);
      CHECK(seen["stop"]["told"].get<std::string>().find("rank 2") != std::string::npos);
      // A call of ballast and then the message of the step may each wait for it; the rest is a busy machine's.
      CHECK(seen["stop"]["told_after_ms"].get<double>() < 2 * timeout_ms + 1000);
    }
  }
}

TEST_CASE("a rank can only stop where the others can do without it") {
  auto const expect = [](arguments const& given, std::string const& text) {
    auto const result = ballast_test::run_tool(program(), with({"--transport", "processes"}, given));
    CHECK(result.exit_status == 2);
    CHECK_MESSAGE(result.err.find(text) != std::string::npos, result.err);
  };
  expect({"--modes", "seed", "--stop-rank", "2"},
         "without rank 2 the others have 54 slots for 64 experts: give more --spare-slots, 6 will do");
  expect({"--stop-rank", "2", "--spare-slots", "6"}, "mode 'none' cannot go on without a rank");
  expect({"--modes", "seed", "--stop-rank", "0"}, "--stop-rank is 0, must be from 1 to 3: rank 0 reports");
  expect({"--modes", "seed", "--stop-rank", "1", "--stop-in", "bed"}, "must be one of pass, balance, message");
}
