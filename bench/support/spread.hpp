// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_SUPPORT_SPREAD_HPP
#define BALLAST_BENCH_SUPPORT_SPREAD_HPP

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <map>
#include <ostream>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ballast_bench {

/// What several runs of one program measured, each written by `--benchmark_out`: a table of the least, the median and
/// the most of every figure.
class spread_table {
public:
  /// @throws std::runtime_error naming a run that is no output of a benchmark, or that has other rows than the first
  explicit spread_table(std::span<nlohmann::json const> runs) {
    for (std::size_t run = 0; run < runs.size(); ++run) { add(runs[run], run); }
    for (auto const& [name, figures] : rows_) {
      for (auto const& [figure_name, values] : figures) {
        if (values.size() == runs.size()) { continue; }
        throw std::runtime_error{name + ", " + figure_name + ": measured in " + std::to_string(values.size()) + " of " +
                                 std::to_string(runs.size()) + " runs"};
      }
    }
  }

  void write(std::ostream& out) const {
    out << "| benchmark | time, us | figures |\n|---|---|---|\n";
    for (auto const& [name, figures] : rows_) {
      out << "| " << name << " | " << text_of(figures.front().second) << " |";
      for (std::size_t i = 1; i < figures.size(); ++i) {
        out << (i == 1 ? " " : "; ") << figures[i].first << ' ' << text_of(figures[i].second);
      }
      out << " |\n";
    }
  }

private:
  using figure = std::pair<std::string, std::vector<double>>;  // and its value in each run

  void add(nlohmann::json const& run, std::size_t number) {
    auto const refuse = [&](std::string const& why) {
      throw std::runtime_error{"run " + std::to_string(number + 1) + ": " + why};
    };
    if (!run.is_object() || !run.contains("benchmarks")) { refuse("is no output of a benchmark"); }
    for (auto const& row : run["benchmarks"]) {
      auto const whole = row.value("name", std::string{});
      auto const name = whole.substr(0, whole.find("/iterations:"));
      if (row.value("error_occurred", false)) { refuse(name + ": " + row.value("error_message", std::string{})); }
      auto& figures = find(name, number, refuse);
      value_of(figures, "time").push_back(microseconds(row));
      for (auto const& [key, value] : row.items()) {
        if (value.is_number_float() && key != "real_time" && key != "cpu_time") {
          value_of(figures, key).push_back(value.get<double>());
        }
      }
    }
  }
  template <class Refuse>
  [[nodiscard]] std::vector<figure>& find(std::string const& name, std::size_t number, Refuse refuse) {
    auto const at = std::find_if(rows_.begin(), rows_.end(), [&](auto const& row) { return row.first == name; });
    if (at != rows_.end()) { return at->second; }
    if (number > 0) { refuse(name + " was not measured in run 1"); }
    return rows_.emplace_back(name, std::vector<figure>{}).second;
  }
  [[nodiscard]] static std::vector<double>& value_of(std::vector<figure>& figures, std::string const& name) {
    auto const at = std::find_if(figures.begin(), figures.end(), [&](auto const& each) { return each.first == name; });
    return at != figures.end() ? at->second : figures.emplace_back(name, std::vector<double>{}).second;
  }
  [[nodiscard]] static double microseconds(nlohmann::json const& row) {
    static std::map<std::string, double> const units{{"ns", 1e-3}, {"us", 1}, {"ms", 1e3}, {"s", 1e6}};
    return row.value("real_time", 0.0) * units.at(row.value("time_unit", std::string{"ns"}));
  }
  /// Least, median, most; of one value that.
  [[nodiscard]] static std::string text_of(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    auto const format = [](double value) {
      char text[40];
      std::snprintf(text, sizeof text, "%.4g", value);
      return std::string{text};
    };
    if (values.front() == values.back()) { return format(values.front()); }
    auto const median = (values[values.size() / 2] + values[(values.size() - 1) / 2]) / 2;
    return format(values.front()) + " / " + format(median) + " / " + format(values.back());
  }

  std::vector<std::pair<std::string, std::vector<figure>>> rows_;
};

}  // namespace ballast_bench

#endif
