// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_GPU_MARKDOWN_REPORTER_HPP
#define BALLAST_BENCH_GPU_MARKDOWN_REPORTER_HPP

#include <benchmark/benchmark.h>

#include <cstdio>
#include <ctime>
#include <fstream>
#include <string>
#include <vector>

namespace ballast_bench {

/// Prints results as usual and keeps them for a table.
class markdown_reporter : public benchmark::ConsoleReporter {
public:
  markdown_reporter() : ConsoleReporter{OO_None} {}

  void ReportRuns(std::vector<Run> const& runs) override {
    ConsoleReporter::ReportRuns(runs);
    for (auto const& run : runs) {
      auto row =
          "| " + without_settings(run.benchmark_name()) + " | " + format("%.2f", run.GetAdjustedRealTime()) + " |";
      for (auto const& [name, counter] : run.counters) {
        row += " " + name + " " + format("%.4g", counter.value) + ",";
      }
      if (row.back() == ',') { row.back() = ' '; }
      rows_.push_back(row + "|");
    }
  }

  /// @param machine  what the table was measured on.
  void write(std::string const& file, std::string const& machine) const {
    std::ofstream out{file};
    char date[32];
    auto const now = std::time(nullptr);
    std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
    out << "Measured on " << date << " with `./dev gpu` on " << machine << ".\n\n"
        << "Times are means in microseconds; the figures beside them come from medians of the same run.\n\n"
        << "| benchmark | time, us | figures |\n|---|---:|---|\n";
    for (auto const& row : rows_) { out << row << '\n'; }
  }

private:
  [[nodiscard]] static std::string format(char const* how, double value) {
    char text[40];
    std::snprintf(text, sizeof text, how, value);
    return text;
  }
  [[nodiscard]] static std::string without_settings(std::string name) {
    return name.substr(0, name.find("/iterations:"));
  }

  std::vector<std::string> rows_;
};

}  // namespace ballast_bench

#endif
