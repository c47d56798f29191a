// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "../../bench/support/spread.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using nlohmann::json;

namespace {

json run_of(double time, char const* unit, double rate, char const* name = "copies/ranks:2/iterations:15/manual_time") {
  return {{"context", {{"num_cpus", 2}}},
          {"benchmarks",
           {{{"name", name},
             {"iterations", 15},
             {"real_time", time},
             {"cpu_time", 1.5},
             {"time_unit", unit},
             {"rate_GBs", rate},
             {"cards", 2.0}}}}};
}
std::string table_of(std::vector<json> const& runs) {
  std::ostringstream out;
  ballast_bench::spread_table{runs}.write(out);
  return out.str();
}

}  // namespace

TEST_CASE("figures of several runs come with their least, median and most, in microseconds") {
  auto const table = table_of({run_of(3, "ms", 40.25), run_of(1000, "us", 39), run_of(2e6, "ns", 41)});
  CHECK(table ==
        "| benchmark | time, us | figures |\n|---|---|---|\n"
        "| copies/ranks:2 | 1000 / 2000 / 3000 | cards 2; rate_GBs 39 / 40.25 / 41 |\n");
}

TEST_CASE("of an even number of runs the median is between the two in the middle") {
  CHECK(table_of({run_of(1, "us", 1), run_of(2, "us", 1), run_of(4, "us", 1), run_of(9, "us", 1)})
            .find("| 1 / 3 / 9 |") != std::string::npos);
}

TEST_CASE("runs that failed, that miss a row or have another one, and other files are refused by name") {
  auto const good = run_of(1, "us", 1);
  auto failed = good;
  failed["benchmarks"][0]["error_occurred"] = true;
  failed["benchmarks"][0]["error_message"] = "no card";
  CHECK_THROWS_WITH(table_of({good, failed}), "run 2: copies/ranks:2: no card");
  CHECK_THROWS_WITH(table_of({good, run_of(1, "us", 1, "other")}), "run 2: other was not measured in run 1");
  CHECK_THROWS_WITH(table_of({good, json{{"benchmarks", json::array()}}}),
                    "copies/ranks:2, time: measured in 1 of 2 runs");
  auto without = good;
  without["benchmarks"][0].erase("rate_GBs");
  CHECK_THROWS_WITH(table_of({good, without}), "copies/ranks:2, rate_GBs: measured in 1 of 2 runs");
  CHECK_THROWS_WITH(table_of({good, json::array()}), "run 2: is no output of a benchmark");
}
