// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-quality [folder of traces]: writes tables (Markdown) of time, balance, bound and moves for recorded loads.
//
// Traces: the folder given, or $BALLAST_TRACES_DIR, or ../shared/traces beside the sources, and tests/data/traces.
#include <ballast/migration/relabel.hpp>
#include <ballast/placement/balanced.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/deepseek.hpp>
#include <ballast/placement/incremental.hpp>
#include <ballast/placement/moves.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace ballast;

/// Loads of one or more steps, `[steps, L, E]`.
struct trace {
  std::string name;
  index_t num_steps = 0;
  index_t num_layers = 0;
  index_t num_logical = 0;
  std::vector<load_t> tokens;

  [[nodiscard]] matrix_view<load_t const> step(index_t step) const {
    auto const size = static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_logical);
    return {std::span{tokens}.subspan(static_cast<std::size_t>(step) * size, size), num_layers, num_logical};
  }
};

trace read_trace(std::filesystem::path const& file) {
  std::ifstream in{file};
  trace result{file.parent_path().filename().string() + "/" + file.stem().string(), 0, 0, 0, {}};
  char comma = 0;
  in >> result.num_steps >> comma >> result.num_layers >> comma >> result.num_logical;
  result.tokens.resize(static_cast<std::size_t>(result.num_steps) * static_cast<std::size_t>(result.num_layers) *
                       static_cast<std::size_t>(result.num_logical));
  for (auto& tokens : result.tokens) {
    in >> tokens;
    in.get();
  }
  return result;
}

std::vector<trace> read_traces(std::vector<std::filesystem::path> const& folders) {
  std::vector<std::filesystem::path> files;
  std::set<std::string> known;
  for (auto const& folder : folders) {
    if (!std::filesystem::is_directory(folder)) { continue; }
    for (auto const& entry : std::filesystem::recursive_directory_iterator{folder}) {
      auto const name = entry.path().parent_path().filename().string() + "/" + entry.path().filename().string();
      if (entry.path().extension() == ".csv" && known.insert(name).second) { files.push_back(entry.path()); }
    }
  }
  std::sort(files.begin(), files.end(), [](auto const& a, auto const& b) {
    return a.parent_path().filename() / a.filename() < b.parent_path().filename() / b.filename();
  });
  std::vector<trace> traces;
  for (auto const& file : files) { traces.push_back(read_trace(file)); }
  return traces;
}

struct shape {
  topology_shape sizes;
  index_t num_groups = 1;
};

/// Group shapes that suit a model, by its number of experts.
std::vector<shape> shapes_for(index_t num_logical) {
  switch (num_logical) {
    case 8: return {{{4, 1, 3, 0}}, {{8, 1, 2, 0}}};
    case 64: return {{{8, 1, 9, 0}}, {{16, 2, 5, 0}}};
    case 128: return {{{16, 2, 9, 0}}};
    case 256: return {{{32, 4, 9, 0}}, {{32, 4, 9, 0}, 8}, {{72, 9, 4, 0}}, {{144, 18, 2, 0}}};
    default: return {};
  }
}

/// Least processor time of several plans, in milliseconds; the last plan stays in `next`.
template <class Policy>
double time_of(Policy const& policy, matrix_view<load_t const> loads, placement const& current, topology const& where,
               placement& next) {
  double least = 1e30;
  double spent = 0;
  for (int i = 0; i < 3 || (i < 20 && spent < 200); ++i) {
    auto const start = std::clock();
    plan(policy, loads, current, where, next).or_throw();
    auto const took = 1000.0 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    least = std::min(least, took);
    spent += took;
  }
  return least;
}

index_t doubled_slots(topology const& where, placement const& planned) {
  index_t doubled = 0;
  for (index_t layer = 0; layer < planned.num_layers(); ++layer) {
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      auto const held = planned.logical_of_slot(layer).subspan(static_cast<std::size_t>(where.first_slot(rank)),
                                                               static_cast<std::size_t>(where.slots_per_rank()));
      doubled += where.slots_per_rank() - static_cast<index_t>(std::set<index_t>{held.begin(), held.end()}.size());
    }
  }
  return doubled;
}

/// Quality over the steps of a trace.
struct score {
  double milliseconds = 0;
  double mean = 0;  ///< sum of mean rank loads
  double max = 0;   ///< sum of maxima
  double bound = 0;
  double worst = 1;
  index_t doubled = 0;

  void add(topology const& where, placement const& planned, matrix_view<load_t const> loads,
           std::vector<double> const& bounds) {
    for (index_t layer = 0; layer < loads.rows(); ++layer) {
      auto const balance = balance_of(where, planned, layer, loads.row(layer));
      mean += balance.mean;
      max += balance.max;
      bound += bounds[static_cast<std::size_t>(layer)];
      worst = std::min(worst, balance.balancedness());
    }
    doubled += doubled_slots(where, planned);
  }
  void print(trace const& of, shape const& on, char const* policy) const {
    std::printf("| %s | %d x %d%s | %s | %.2f | %.4f | %.4f | %.4f | %.2f |\n", of.name.c_str(), on.sizes.num_ranks,
                on.sizes.slots_per_rank, on.num_groups > 1 ? ", whole groups" : "", policy, milliseconds / of.num_steps,
                mean / max, worst, max / bound, static_cast<double>(doubled) / of.num_steps / of.num_layers);
  }
};

void print_balance(trace const& of, shape const& on) {
  topology const where{on.sizes};
  auto const start = trivial_placement({of.num_layers, of.num_logical, where.num_slots()});
  score theirs;
  score ours;
  placement next;
  for (index_t step = 0; step < of.num_steps; ++step) {
    auto const loads = of.step(step);
    std::vector<double> bounds;
    for (index_t layer = 0; layer < of.num_layers; ++layer) {
      bounds.push_back(lower_bound(where, loads.row(layer), on.num_groups).best());
    }
    theirs.milliseconds += time_of(deepseek_placement{.num_groups = on.num_groups}, loads, start, where, next);
    theirs.add(where, next, loads, bounds);
    ours.milliseconds += time_of(balanced_placement{.num_groups = on.num_groups}, loads, start, where, next);
    ours.add(where, next, loads, bounds);
  }
  theirs.print(of, on, "deepseek");
  ours.print(of, on, "balanced");
}

/// What happens from one step to the next: the old plan on the new loads, and what each policy moves to do better.
void print_moves(trace const& of, shape const& on) {
  topology const where{on.sizes};
  double moves[4] = {};
  double mean = 0;
  double max[5] = {};
  auto const add = [&](int row, placement const& from, placement const& to, matrix_view<load_t const> loads) {
    moves[row] += static_cast<double>(count_moves(where, from, to));
    for (index_t layer = 0; layer < loads.rows(); ++layer) {
      max[row] += balance_of(where, to, layer, loads.row(layer)).max;
    }
  };
  placement current;
  placement next;
  auto const start = trivial_placement({of.num_layers, of.num_logical, where.num_slots()});
  plan(balanced_placement{}, of.step(0), start, where, current).or_throw();
  for (index_t step = 1; step < of.num_steps; ++step) {
    auto const loads = of.step(step);
    for (index_t layer = 0; layer < of.num_layers; ++layer) {
      auto const balance = balance_of(where, current, layer, loads.row(layer));
      mean += balance.mean;
      max[4] += balance.max;
    }
    plan(deepseek_placement{}, loads, current, where, next).or_throw();
    add(0, current, next, loads);
    relabel(current, where, next);
    add(1, current, next, loads);
    plan(incremental_placement{}, loads, current, where, next).or_throw();
    add(2, current, next, loads);
    plan(balanced_placement{}, loads, current, where, next).or_throw();
    relabel(current, where, next);
    add(3, current, next, loads);
    current = next;
  }
  auto const layers = static_cast<double>(of.num_steps - 1) * of.num_layers;
  std::printf("| %s | %d x %d | %.3f | %.1f : %.3f | %.1f : %.3f | %.1f : %.3f | %.1f : %.4f |\n", of.name.c_str(),
              on.sizes.num_ranks, on.sizes.slots_per_rank, mean / max[4], moves[0] / layers, mean / max[0],
              moves[1] / layers, mean / max[1], moves[2] / layers, mean / max[2], moves[3] / layers, mean / max[3]);
}

/// Traces of one step that belong together follow each other as the steps of one.
std::vector<trace> in_sequence(std::vector<trace> const& traces) {
  std::vector<trace> result;
  for (auto const& one : traces) {
    auto const model = one.name.substr(0, one.name.find('/'));
    bool const joins = one.num_steps == 1 && !result.empty() && result.back().name == model + "/*" &&
                       result.back().num_layers == one.num_layers && result.back().num_logical == one.num_logical;
    if (!joins) {
      result.push_back(one);
      if (one.num_steps == 1) { result.back().name = model + "/*"; }
      continue;
    }
    result.back().tokens.insert(result.back().tokens.end(), one.tokens.begin(), one.tokens.end());
    ++result.back().num_steps;
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  std::filesystem::path const source = BALLAST_SOURCE_DIR;
  std::vector<std::filesystem::path> folders;
  if (argc > 1) {
    folders.emplace_back(argv[1]);
  } else if (auto const* named = std::getenv("BALLAST_TRACES_DIR"); named != nullptr) {
    folders.emplace_back(named);
  } else {
    folders.emplace_back(source / "../shared/traces");
  }
  folders.push_back(source / "tests/data/traces");
  auto const traces = read_traces(folders);

  std::puts("## Balance on the loads planned for\n");
  std::puts(
      "Processor ms for all layers, mean over steps; balancedness = sum of means / sum of maxima; bound ratio = sum "
      "of");
  std::puts(
      "maxima / sum of lower bounds; doubled = slots a layer that hold a further copy of an expert on their rank.\n");
  std::puts("| trace | ranks x slots | policy | ms | balancedness | worst layer | bound ratio | doubled |");
  std::puts("|---|---|---|---:|---:|---:|---:|---:|");
  for (auto const& one : traces) {
    for (auto const& on : shapes_for(one.num_logical)) { print_balance(one, on); }
  }
  std::puts("\n## From one step to the next: moves a layer : balancedness\n");
  std::puts("Each step starts from the balanced plan of the one before. Recordings of one step follow each other.\n");
  std::puts("| trace | ranks x slots | kept | deepseek | deepseek, relabelled | incremental | balanced, relabelled |");
  std::puts("|---|---|---:|---:|---:|---:|---:|");
  for (auto const& one : in_sequence(traces)) {
    if (one.num_steps == 1) { continue; }
    for (auto const& on : shapes_for(one.num_logical)) {
      if (on.num_groups == 1) { print_moves(one, on); }
    }
  }
}
