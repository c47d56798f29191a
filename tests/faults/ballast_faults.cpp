// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-faults --count N --seed S [--deadline-ms T] [--jobs J] [--only INDEX]
//
// Strike N groups of real processes with one fault each while they rebalance, and print what came of it. --only runs a
// single one and also prints what its ranks said.
#include "faults/fault.hpp"
#include "faults/fault_run.hpp"
#include "faults/verdict.hpp"
#include "support/processes.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace ballast_test;

struct arguments {
  std::uint64_t count = 60;
  std::uint64_t seed = 1;
  std::uint64_t jobs = 4;
  ballast::nanoseconds_t deadline = 300 * millisecond;
  bool single = false;
  std::uint64_t only = 0;
};

[[noreturn]] void usage() {
  std::fputs("usage: ballast-faults [--count N] [--seed S] [--deadline-ms T] [--jobs J] [--only INDEX]\n", stderr);
  std::exit(2);
}

arguments parse(int argc, char** argv) {
  arguments out;
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) { usage(); }
    std::string_view const name{argv[i]};
    char* end = nullptr;
    auto const value = std::strtoull(argv[i + 1], &end, 10);
    if (*end != '\0') { usage(); }
    if (name == "--count") {
      out.count = value;
    } else if (name == "--seed") {
      out.seed = value;
    } else if (name == "--jobs" && value > 0) {
      out.jobs = value;
    } else if (name == "--deadline-ms" && value > 0) {
      out.deadline = static_cast<ballast::nanoseconds_t>(value) * millisecond;
    } else if (name == "--only") {
      out.single = true;
      out.only = value;
    } else {
      usage();
    }
  }
  return out;
}

// Verdicts travel from the workers as lines of numbers, the detail last.
std::string to_line(fault const& what, verdict found) {
  std::ostringstream line;
  line << what.index << ' ' << found.struck << ' ' << found.slowest;
  found.for_each_number([&](int number) { line << ' ' << number; });
  line << ' ' << found.detail;
  return line.str();
}
std::uint64_t from_line(std::string const& text, verdict& out) {
  std::istringstream line{text};
  std::uint64_t index = 0;
  line >> index >> out.struck >> out.slowest;
  out.for_each_number([&](int& number) { line >> number; });
  std::getline(line, out.detail);
  return index;
}

// One of the parallel workers: every jobs-th index, until its share of faults has struck.
void work(arguments const& options, std::uint64_t worker, int report) {
  auto const share = options.count / options.jobs + (worker < options.count % options.jobs ? 1 : 0);
  std::uint64_t struck = 0;
  for (auto index = worker; struck < share; index += options.jobs) {
    auto const what = draw_fault(options.seed, index, options.deadline);
    auto const found = fault_run{what}.finish();
    struck += found.struck ? 1 : 0;
    write_line(report, to_line(what, found));
  }
}

struct row {
  int faults = 0;
  int not_struck = 0;
  int fewest_cycles = 0;
  verdict sum;
  std::vector<ballast::nanoseconds_t> times;

  void add(verdict found) {
    found.struck ? ++faults : ++not_struck;
    bool const goes_on = found.caught == 0;
    if (goes_on && (fewest_cycles == 0 || found.cycles < fewest_cycles)) { fewest_cycles = found.cycles; }
    std::vector<int> numbers;
    found.for_each_number([&](int number) { numbers.push_back(number); });
    sum.for_each_number([at = std::size_t{0}, &numbers](int& number) mutable { number += numbers[at++]; });
    if (found.slowest > 0) { times.push_back(found.slowest); }
  }
  void print(char const* name) {
    std::ranges::sort(times);
    auto const at = [&](std::size_t percent) {
      return times.empty() ? 0.0 : static_cast<double>(times[(times.size() - 1) * percent / 100]) / millisecond;
    };
    std::printf("| %-19s | %4d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %.1f | %.1f |\n",
                name, faults, sum.hangs, sum.wrong_bytes, sum.lost_experts, sum.split_epochs, sum.without_cause,
                sum.not_back, sum.too_late, sum.by_chain, sum.not_serving, sum.settled, sum.resumes, fewest_cycles,
                sum.hiccups, at(50), at(100));
  }
};

int judge_all(arguments const& options, std::vector<std::string> const& lines) {
  std::array<row, fault_names.size()> rows;
  row total;
  int bad = 0;
  int stopped_by_word = 0;
  for (auto const& line : lines) {
    verdict found;
    auto const index = from_line(line, found);
    auto const what = draw_fault(options.seed, index, options.deadline);
    rows[static_cast<std::size_t>(what.kind)].add(found);
    total.add(found);
    bool const by_word = what.votes == votes_by::word && !what.asynchronous[0] && !what.asynchronous[1];
    stopped_by_word += by_word ? found.not_serving : 0;
    if (found.good()) { continue; }
    ++bad;
    std::fprintf(stderr, "fault %llu (%s):%s\n", static_cast<unsigned long long>(index), what.text().c_str(),
                 found.detail.c_str());
  }
  std::printf(
      "| fault | faults | hangs | wrong bytes | lost experts | split epochs | without cause | not back | too late | by "
      "chain | lost ranks | settled | resumes | clean cycles | again | median ms | slowest ms |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (std::size_t kind = 0; kind < rows.size(); ++kind) { rows[kind].print(fault_names[kind]); }
  total.print("all");
  std::printf(
      "\nseed %llu, deadline %lld ms; %d draws did not strike; %d of %d overwritten sources were caught; %d of the %d "
      "ranks that lost their cohort voted by one word in synchronous mode\n",
      static_cast<unsigned long long>(options.seed), static_cast<long long>(options.deadline / millisecond),
      total.not_struck, total.sum.caught, rows[static_cast<std::size_t>(fault_kind::source_overwritten)].faults,
      stopped_by_word, total.sum.not_serving);
  return bad == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  auto const options = parse(argc, argv);
  std::vector<std::string> lines;
  if (options.single) {
    auto const what = draw_fault(options.seed, options.only, options.deadline);
    lines.push_back(to_line(what, fault_run{what}.finish(true)));
    return judge_all(options, lines);
  }
  std::vector<child_process> workers;
  for (std::uint64_t worker = 0; worker < options.jobs; ++worker) {
    workers.emplace_back([&](int report) { work(options, worker, report); });
  }
  for (auto& worker : workers) {
    while (worker.read_some()) {}
    for (auto& line : lines_of(worker.text())) { lines.push_back(std::move(line)); }
  }
  return judge_all(options, lines);
}
