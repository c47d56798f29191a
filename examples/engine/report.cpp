// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "report.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

namespace engine {

namespace {

constexpr std::size_t window = 8;  // passes that are judged together
constexpr double balanced = 0.95;
constexpr double nanoseconds_a_millisecond = 1e6;
constexpr double bytes_a_mebibyte = 1048576;

/// @param values  sorted
[[nodiscard]] double percentile(std::vector<ballast::nanoseconds_t> const& values, std::size_t percent) {
  if (values.empty()) { return 0; }
  auto const at = std::min(values.size() - 1, values.size() * percent / 100);
  return static_cast<double>(values[at]) / nanoseconds_a_millisecond;
}

/// A pass without tokens has nothing to say on how long one takes.
[[nodiscard]] bool counts(step_record const& step) { return step.tokens > 0; }

struct totals {
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
};
[[nodiscard]] totals totals_of(mode_record const& of) {
  totals sum;
  for (auto const& step : of.steps) {
    sum.moves += step.moves;
    sum.bytes += step.bytes;
  }
  return sum;
}

[[nodiscard]] bool is_right(mode_record const& of) { return of.wrong.empty() && of.replicas.empty(); }
[[nodiscard]] char const* of_outputs(mode_record const& of) {
  return of.is_nonsense ? "nonsense" : is_right(of) ? "right" : "WRONG";
}

void print_setup(settings const& how, std::size_t num_requests, serve_record const& seen) {
  auto const& shape = how.shape;
  std::printf("%d ranks on %d node(s), %d slots each and one for the shared expert\n", how.where.num_ranks(),
              how.where.num_nodes(), how.where.slots_per_rank());
  std::printf("%d layers of %d experts, top %d, hidden %d, intermediate %d: %zu bytes an expert\n", shape.num_layers,
              shape.num_experts, shape.top_k, shape.hidden, shape.intermediate,
              shape.expert_numbers() * how.bytes_a_number);
  std::printf(
      "%zu requests in %zu passes, at most %d tokens a rank; from pass %d on requests are of the other kind\n\n",
      num_requests, seen.modes.front().steps.size(), how.schedule.tokens_a_rank, how.traffic.switch_at);
}

void print_times(serve_record const& seen) {
  std::printf("                        step, milliseconds                    of it in ballast     tokens\n");
  std::printf("mode                    p50      p90      p99    worst         p50      p99       a second\n");
  for (auto const& one : seen.modes) {
    auto const times = times_of(one);
    std::printf("%-18s %8.3f %8.3f %8.3f %8.3f    %8.3f %8.3f     %10.0f\n", one.name.c_str(), times.p50, times.p90,
                times.p99, times.worst, times.ballast_p50, times.ballast_p99, times.tokens_a_second);
  }
}

/// Where a mode spent the most in one step, stage by stage.
void print_stages(serve_record const& seen) {
  std::printf(
      "\nof ballast in one step at most, milliseconds; on the host, and on the device where that measures\n%-18s",
      "mode");
  for (std::size_t i = 0; i < num_stages; ++i) { std::printf(" %14s", to_string(static_cast<stage>(i))); }
  for (auto const& one : seen.modes) {
    std::printf("\n%-18s", one.name.c_str());
    for (std::size_t i = 0; i < num_stages; ++i) {
      ballast::nanoseconds_t most = 0;
      for (auto const& step : one.steps) { most = std::max(most, step.stages[i]); }
      std::printf(" %14.3f", static_cast<double>(most) / nanoseconds_a_millisecond);
    }
  }
  std::printf("\n");
}

void print_balance(settings const& how, serve_record const& seen) {
  constexpr std::size_t rows = 10;
  auto const layers = static_cast<std::size_t>(how.shape.num_layers);
  auto const passes = seen.modes.front().steps.size();
  auto const length = std::max<std::size_t>(1, (passes + rows - 1) / rows);
  std::printf("\nbalancedness (mean work of the ranks / work of the busiest), these passes together\n%-12s", "passes");
  for (auto const& one : seen.modes) { std::printf(" %9.9s", one.name.c_str()); }
  for (std::size_t first = 0; first < passes; first += length) {
    auto const last = std::min(passes, first + length);
    std::printf("\n%4zu to %4zu", first, last - 1);
    for (auto const& one : seen.modes) { std::printf(" %9.3f", balancedness_of(one, layers, first, last)); }
  }
}

void print_moves(settings const& how, serve_record const& seen) {
  std::printf("\n\n                                               from the change of traffic to %.2f\n", balanced);
  std::printf("mode               rebalances    moves      MiB     passes      MiB    outputs\n");
  for (auto const& one : seen.modes) {
    auto const sum = totals_of(one);
    auto const answer = answer_of(how, one);
    auto const passes = answer.passes ? std::to_string(*answer.passes) : "never";
    std::printf("%-18s %10lld %8lld %8.2f   %8s %8.2f    %s\n", one.name.c_str(),
                static_cast<long long>(one.rebalances), static_cast<long long>(sum.moves),
                static_cast<double>(sum.bytes) / bytes_a_mebibyte, passes.c_str(),
                static_cast<double>(answer.bytes) / bytes_a_mebibyte, of_outputs(one));
  }
}

void print_troubles(serve_record const& seen) {
  for (auto const& one : seen.modes) {
    if (!one.wrong.empty()) {
      std::printf("%s: outputs of %zu requests are wrong, request %zu is the first\n", one.name.c_str(),
                  one.wrong.size(), one.wrong.front());
    }
    if (!one.replicas.empty()) { std::printf("%s: %s\n", one.name.c_str(), one.replicas.c_str()); }
    if (one.dropped > 0) {
      std::printf("%s: %lld layers were late and left out\n", one.name.c_str(), static_cast<long long>(one.dropped));
    }
    if (one.failures > 0) {
      std::printf("%s: moves ended early %lld times, and went on\n", one.name.c_str(),
                  static_cast<long long>(one.failures));
    }
  }
  auto const& stop = seen.stop;
  if (stop.rank < 0) { return; }
  std::printf("pass %d: rank %d does not answer, told after %.3f s: %s\n", stop.pass, stop.rank,
              static_cast<double>(stop.told_after) / 1e9, stop.told.c_str());
  std::printf("the others went on after %.3f s, with the placement in force\n",
              static_cast<double>(stop.went_on_after) / 1e9);
}

}  // namespace

step_times times_of(mode_record const& of) {
  std::vector<ballast::nanoseconds_t> durations;
  std::vector<ballast::nanoseconds_t> in_ballast;
  double sum = 0;
  double tokens = 0;
  for (auto const& step : of.steps) {
    if (!counts(step)) { continue; }
    durations.push_back(step.duration);
    in_ballast.push_back(step.in_ballast);
    sum += static_cast<double>(step.duration);
    tokens += static_cast<double>(step.tokens);
  }
  std::ranges::sort(durations);
  std::ranges::sort(in_ballast);
  return {percentile(durations, 50),  percentile(durations, 90),        percentile(durations, 99),
          percentile(durations, 100), sum > 0 ? tokens / sum * 1e9 : 0, percentile(in_ballast, 50),
          percentile(in_ballast, 99)};
}

double balancedness_of(mode_record const& of, std::size_t num_layers, std::size_t first, std::size_t last) {
  if (of.steps.empty()) { return 1; }
  auto const cells = of.steps.front().work.size();
  std::vector<std::uint64_t> work(cells);
  for (auto pass = first; pass < last; ++pass) {
    for (std::size_t i = 0; i < cells; ++i) { work[i] += of.steps[pass].work[i]; }
  }
  std::uint64_t total = 0;
  std::uint64_t most = 0;
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    std::uint64_t busiest = 0;
    for (auto i = layer; i < cells; i += num_layers) {
      total += work[i];
      busiest = std::max(busiest, work[i]);
    }
    most += busiest;
  }
  // A rank that is gone computes nothing.
  std::size_t ranks = 0;
  for (std::size_t rank = 0; rank < cells; rank += num_layers) {
    auto const own = std::span{work}.subspan(rank, num_layers);
    if (std::ranges::any_of(own, [](auto rows) { return rows > 0; })) { ++ranks; }
  }
  return most > 0 ? static_cast<double>(total) / static_cast<double>(ranks) / static_cast<double>(most) : 1;
}

switch_answer answer_of(settings const& how, mode_record const& of) {
  auto const begin = static_cast<std::size_t>(how.traffic.switch_at);
  switch_answer answer;
  for (auto pass = begin; pass < of.steps.size(); ++pass) {
    answer.bytes += of.steps[pass].bytes;
    auto const passes = pass + 1 - begin;
    if (passes < window) { continue; }
    if (balancedness_of(of, static_cast<std::size_t>(how.shape.num_layers), pass + 1 - window, pass + 1) < balanced) {
      continue;
    }
    answer.passes = passes;
    return answer;
  }
  return answer;
}

bool print_report(settings const& how, std::size_t num_requests, serve_record const& seen) {
  print_setup(how, num_requests, seen);
  print_times(seen);
  print_stages(seen);
  print_balance(how, seen);
  print_moves(how, seen);
  print_troubles(seen);
  auto const right = std::ranges::all_of(seen.modes, is_right);
  std::printf("\noutputs of all requests are %s as those of %s\n", right ? "the same, bit for bit," : "NOT the same",
              how.has_reference ? "one rank without ballast" : "the first mode");
  return right;
}

nlohmann::json to_json(settings const& how, std::size_t num_requests, serve_record const& seen) {
  using nlohmann::json;
  auto const layers = static_cast<std::size_t>(how.shape.num_layers);
  json modes = json::array();
  for (auto const& one : seen.modes) {
    auto const times = times_of(one);
    auto const sum = totals_of(one);
    auto const answer = answer_of(how, one);
    json balance = json::array();
    json durations = json::array();
    json idle = json::array();
    json tokens = json::array();
    json in_ballast = json::array();
    json bytes = json::array();
    json stages = json::object();
    for (std::size_t pass = 0; pass < one.steps.size(); ++pass) {
      balance.push_back(balancedness_of(one, layers, pass, pass + 1));
      tokens.push_back(one.steps[pass].tokens);
      bytes.push_back(one.steps[pass].bytes);
      idle.push_back(one.steps[pass].idle_ranks);
      in_ballast.push_back(static_cast<double>(one.steps[pass].in_ballast) / nanoseconds_a_millisecond);
      for (std::size_t i = 0; i < num_stages; ++i) {
        stages[to_string(static_cast<stage>(i))].push_back(static_cast<double>(one.steps[pass].stages[i]) /
                                                           nanoseconds_a_millisecond);
      }
      durations.push_back(static_cast<double>(one.steps[pass].duration) / nanoseconds_a_millisecond);
    }
    modes.push_back({{"name", one.name},
                     {"step_ms", {{"p50", times.p50}, {"p90", times.p90}, {"p99", times.p99}, {"worst", times.worst}}},
                     {"ballast_ms", {{"p50", times.ballast_p50}, {"p99", times.ballast_p99}}},
                     {"tokens_a_second", times.tokens_a_second},
                     {"balancedness", balance},
                     {"steps_ms", durations},
                     {"steps_ballast_ms", in_ballast},
                     {"steps_stages_ms", stages},
                     {"rebalances", one.rebalances},
                     {"moves", sum.moves},
                     {"tokens", tokens},
                     {"idle_ranks", idle},
                     {"bytes", sum.bytes},
                     {"steps_bytes", bytes},
                     {"layers_dropped", one.dropped},
                     {"failures", one.failures},
                     {"passes_to_balance", answer.passes ? json(*answer.passes) : json()},
                     {"bytes_to_balance", answer.bytes},
                     {"wrong_requests", one.wrong},
                     {"replicas", one.replicas}});
  }
  json out{{"ranks", how.where.num_ranks()},
           {"slots_per_rank", how.where.slots_per_rank()},
           {"layers", how.shape.num_layers},
           {"experts", how.shape.num_experts},
           {"requests", num_requests},
           {"switch_at", how.traffic.switch_at},
           {"modes", modes}};
  if (seen.stop.rank >= 0) {
    out["stop"] = {{"rank", seen.stop.rank},
                   {"pass", seen.stop.pass},
                   {"told", seen.stop.told},
                   {"told_after_ms", static_cast<double>(seen.stop.told_after) / nanoseconds_a_millisecond},
                   {"went_on_after_ms", static_cast<double>(seen.stop.went_on_after) / nanoseconds_a_millisecond}};
  }
  return out;
}

}  // namespace engine
