// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// ballast-quality [--curve | --every-batch] [folder of traces]: writes tables (Markdown) of time, balance, bound and
// moves for recorded loads; or, with --curve, how balance grows with moves, as data for bench/moves.gnuplot; or, with
// --every-batch, how evenly single batches fall on the ranks.
//
// Traces: the folder given, or $BALLAST_TRACES_DIR, or ../shared/traces beside the sources, and tests/data/traces.
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/dealt.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/balanced_shares.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/shares/replica_shares.hpp>

#include "batch_quality.hpp"

#include <support/peer_policies.hpp>
#include <support/trace_files.hpp>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using namespace ballast;

using ballast_test::trace;

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
    case 256: return {{{32, 4, 9, 0}}, {{32, 4, 9, 0}, 8}, {{64, 8, 5, 0}}, {{72, 9, 4, 0}}, {{144, 18, 2, 0}}};
    default: return {};
  }
}

/// Least processor time of several plans, in milliseconds; the last plan stays in `next`.
template <class Policy>
double time_of(Policy const& policy, matrix_view<load_t const> loads, placement const& current, topology const& where,
               placement& next) {
  double least = 1e30;
  double spent = 0;
  for (int i = 0; i < 3 || (i < 20 && spent < 60); ++i) {
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
                on.sizes.slots_per_rank, on.num_groups > 1 ? ", whole groups" : "", policy, milliseconds / of.steps,
                mean / max, worst, max / bound, static_cast<double>(doubled) / of.steps / of.layers);
  }
};

void print_balance(trace const& of, shape const& on) {
  topology const where{on.sizes};
  auto const start = trivial_placement({of.layers, of.experts, where.num_slots()});
  score theirs;
  score ours;
  placement next;
  for (index_t step = 0; step < of.steps; ++step) {
    auto const loads = of.step(step);
    std::vector<double> bounds;
    bounds.reserve(static_cast<std::size_t>(of.layers));
    for (index_t layer = 0; layer < of.layers; ++layer) {
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

/// What a policy did from one step to the next, over the steps of a trace.
struct change_score {
  std::string policy;
  double milliseconds = 0;
  double mean = 0;  ///< sum of mean rank loads
  double max = 0;   ///< sum of maxima
  double bound = 0;
  double moves = 0;

  void add(topology const& where, placement const& from, placement const& to, matrix_view<load_t const> loads) {
    for (index_t layer = 0; layer < loads.rows(); ++layer) {
      auto const balance = balance_of(where, to, layer, loads.row(layer));
      mean += balance.mean;
      max += balance.max;
      bound += lower_bound(where, loads.row(layer)).best();
    }
    moves += static_cast<double>(count_moves(where, from, to));
  }
  void print(trace const& of, shape const& on) const {
    auto const steps = of.steps - 1.0;
    std::printf("| %s | %d x %d | %s | %.2f | %.4f | %.4f | %.1f |\n", of.name.c_str(), on.sizes.num_ranks,
                on.sizes.slots_per_rank, policy.c_str(), milliseconds / steps, mean / max, max / bound,
                moves / steps / of.layers);
  }
};

std::string name_of(incremental_placement const& policy) {
  std::string name = "incremental";
  if (policy.max_moves_per_layer >= 0) { name += ", <= " + std::to_string(policy.max_moves_per_layer); }
  return policy.shares == share_mode::optimal ? name + ", shares" : name;
}

/// Let each policy plan every step of a trace but the first, from the balanced plan of the step before.
std::vector<change_score> scores_of_changes(trace const& of, topology const& where,
                                            std::vector<incremental_placement> const& incremental) {
  std::vector<change_score> scores;
  for (auto const* name : {"as it was", "deepseek", "deepseek, relabelled", "balanced", "balanced, relabelled"}) {
    scores.push_back({.policy = name});
  }
  for (auto const& policy : incremental) { scores.push_back({.policy = name_of(policy)}); }
  placement current;
  placement next;
  auto const start = trivial_placement({of.layers, of.experts, where.num_slots()});
  plan(balanced_placement{}, of.step(0), start, where, current).or_throw();
  for (index_t step = 1; step < of.steps; ++step) {
    auto const loads = of.step(step);
    auto score = scores.begin();
    auto const keep = [&](double milliseconds) {
      score->milliseconds += milliseconds;
      score++->add(where, current, next, loads);
    };
    auto const relabel_next = [&] {
      auto const begin = std::clock();
      relabel(current, where, next);
      return 1000.0 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    };
    next = current;
    keep(0);
    auto milliseconds = time_of(deepseek_placement{}, loads, current, where, next);
    keep(milliseconds);
    keep(milliseconds + relabel_next());
    milliseconds = time_of(balanced_placement{}, loads, current, where, next);
    keep(milliseconds);
    keep(milliseconds + relabel_next());
    auto const fresh = next;
    for (auto const& policy : incremental) { keep(time_of(policy, loads, current, where, next)); }
    current = fresh;
  }
  return scores;
}

incremental_placement with_budget(index_t moves, share_mode shares = share_mode::even) {
  return {.max_moves_per_layer = moves, .shares = shares};
}

void print_changes(trace const& of, shape const& on) {
  std::vector<incremental_placement> incremental;
  for (index_t const moves : {4, 8, 16, 24, 40, -1}) { incremental.push_back(with_budget(moves)); }
  for (index_t const moves : {4, 8}) { incremental.push_back(with_budget(moves, share_mode::optimal)); }
  for (auto const& score : scores_of_changes(of, topology{on.sizes}, incremental)) { score.print(of, on); }
}

/// Moves a layer and balancedness: a block for plans from scratch, then curves of plans with budgets.
void print_curve(trace const& of, shape const& on) {
  std::vector<incremental_placement> incremental;
  std::vector<index_t> const budgets{0, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64};
  for (auto const shares : {share_mode::even, share_mode::optimal}) {
    for (auto const moves : budgets) { incremental.push_back(with_budget(moves, shares)); }
  }
  incremental.push_back(with_budget(-1));
  auto const scores = scores_of_changes(of, topology{on.sizes}, incremental);
  std::printf("# %s on %d ranks of %d slots\n", of.name.c_str(), on.sizes.num_ranks, on.sizes.slots_per_rank);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    bool const begins_block = i == 5 || i == 5 + budgets.size() || i == 5 + 2 * budgets.size();
    std::printf("%s%.2f %.5f \"%s\"\n", begins_block ? "\n\n" : "", scores[i].moves / (of.steps - 1.0) / of.layers,
                scores[i].mean / scores[i].max, scores[i].policy.c_str());
  }
}

/// Balancedness on the step planned for, and on the one after it.
class next_window {
public:
  explicit next_window(topology const& where) : where_{where} {}

  /// @param re_split  whether the shares are solved anew for the step after
  template <class Policy>
  void add(Policy const& policy, trace const& of, bool re_split) {
    auto const start = trivial_placement({of.layers, of.experts, where_.num_slots()});
    placement planned;
    sums here;
    sums after;
    for (index_t step = 0; step + 1 < of.steps; ++step) {
      plan(policy, of.step(step), start, where_, planned).or_throw();
      here.add(where_, planned, of.step(step));
      if (re_split) { optimal_shares(where_, planned, of.step(step + 1), solver_).or_throw(); }
      after.add(where_, planned, of.step(step + 1));
    }
    std::printf(" %.4f | %.4f |", here.mean / here.max, after.mean / after.max);
  }

private:
  struct sums {
    double mean = 0;
    double max = 0;

    void add(topology const& where, placement const& planned, matrix_view<load_t const> loads) {
      for (index_t layer = 0; layer < loads.rows(); ++layer) {
        auto const balance = balance_of(where, planned, layer, loads.row(layer));
        mean += balance.mean;
        max += balance.max;
      }
    }
  };

  topology const& where_;
  share_solver solver_;
};

void print_next_window(trace const& of, shape const& on) {
  topology const where{on.sizes};
  next_window columns{where};
  std::printf("| %s | %d x %d |", of.name.c_str(), on.sizes.num_ranks, on.sizes.slots_per_rank);
  columns.add(deepseek_placement{}, of, false);
  columns.add(balanced_placement{}, of, false);
  columns.add(balanced_shares_placement{}, of, false);
  columns.add(balanced_shares_placement{}, of, true);
  std::puts("");
}

// ---- planned on one recording, judged on another ----

/// A window of loads that was recorded in one piece.
struct recording {
  std::string kind;  ///< recordings of a kind are of the same model and the same use
  std::string model;
  matrix_view<load_t const> loads;
};

/// Recordings that are long enough to plan on, and different enough to judge by.
std::vector<recording> recordings_in(std::vector<trace> const& traces) {
  constexpr index_t most_steps = 6;  // traces of more are sequences
  std::vector<recording> result;
  for (auto const& one : traces) {
    if (one.steps > most_steps) { continue; }
    auto const model = one.name.substr(0, one.name.find('/'));
    auto const kind = one.steps == 1 ? one.name.substr(0, one.name.find("_in")) : one.name;
    for (index_t step = 0; step < one.steps; ++step) { result.push_back({kind, model, one.step(step)}); }
  }
  return result;
}

/// Means over pairs of recordings, of one policy on one topology.
class pair_score {
public:
  explicit pair_score(topology const& where) : where_{where} {}

  void plan_on(any_policy const& policy, matrix_view<load_t const> loads, placement const& from) {
    auto const start = std::clock();
    plan(policy, loads, from, where_, planned_).or_throw();
    milliseconds_ += 1000.0 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    relabel(from, where_, planned_, {.scope = interchangeable(policy)});
    moves_ += static_cast<double>(count_moves(where_, from, planned_)) / loads.rows();
    doubled_ += static_cast<double>(doubled_slots(where_, planned_)) / loads.rows();
    here_ = score_of(planned_, loads);
    ++plans_;
  }
  void judge_on(matrix_view<load_t const> loads) {
    in_sample_ += here_;
    auto even = planned_;
    even.drop_shares();
    even_ += score_of(even, loads);
    own_ += score_of(planned_, loads);
    optimal_shares(where_, even, loads, solver_).or_throw();
    split_ += score_of(even, loads);
    ++pairs_;
  }
  void print(std::string const& kind, char const* policy) const {
    std::printf("| %s | %d x %d | %s | %.2f | %.4f | %.4f | %.4f | %.4f | %.1f | %.2f |\n", kind.c_str(),
                where_.num_ranks(), where_.slots_per_rank(), policy, milliseconds_ / plans_, in_sample_ / pairs_,
                even_ / pairs_, own_ / pairs_, split_ / pairs_, moves_ / plans_, doubled_ / plans_);
  }

private:
  [[nodiscard]] double score_of(placement const& in, matrix_view<load_t const> loads) const {
    return balancedness(where_, in, loads);
  }

  topology const& where_;
  share_solver solver_;
  placement planned_;
  double here_ = 0;
  double milliseconds_ = 0, moves_ = 0, doubled_ = 0;
  double in_sample_ = 0, even_ = 0, own_ = 0, split_ = 0;
  int plans_ = 0;
  int pairs_ = 0;
};

struct contender {
  char const* name;
  any_policy policy;
  bool from_dealt = false;
};
std::vector<contender> contenders() {
  auto const incremental = [](index_t moves, share_mode shares = share_mode::even) {
    return any_policy{with_budget(moves, shares)};
  };
  return {
      {"deepseek", any_policy{deepseek_placement{}}},
      {"TensorRT-LLM", any_policy{ballast_test::tensorrt_llm_policy{}}},
      {"SGLang deepseek_vec", any_policy{ballast_test::sglang_vec_policy{}}},
      {"xLLM", any_policy{ballast_test::xllm_policy{}}},
      {"vllm-ascend swift", any_policy{ballast_test::swift_policy{}}},
      {"balanced", any_policy{balanced_placement{}}},
      {"balanced_shares", any_policy{balanced_shares_placement{}}},
      {"headroom", any_policy{headroom_placement{}}},
      {"incremental", incremental(-1)},
      {"incremental, <= 8", incremental(8)},
      {"incremental, <= 32", incremental(32)},
      {"incremental, shares", incremental(-1, share_mode::optimal)},
      {"incremental, shares, <= 44", incremental(44, share_mode::optimal)},
      {"incremental, <= 1 a rank", any_policy{incremental_placement{.max_arrivals_per_rank = 1}}},
      {"incremental, <= 1 a rank of other nodes", any_policy{incremental_placement{.max_remote_arrivals_per_rank = 1}}},
      {"incremental, <= 500 in all", any_policy{incremental_placement{.max_moves_in_all = 500}}},
      {"dealt, incremental", incremental(-1), true},
      {"dealt, incremental, <= 8", incremental(8), true}};
}

void print_pairs(std::vector<recording> const& all, std::string const& from_kind, std::string const& to_kind,
                 shape const& on) {
  topology const where{on.sizes};
  for (auto const& one : contenders()) {
    pair_score score{where};
    for (auto const& first : all) {
      if (first.kind != from_kind) { continue; }
      placement_shape const sizes{first.loads.rows(), first.loads.columns(), where.num_slots()};
      score.plan_on(one.policy, first.loads, one.from_dealt ? dealt_placement(sizes, where) : trivial_placement(sizes));
      for (auto const& second : all) {
        if (second.kind == to_kind && &second != &first) { score.judge_on(second.loads); }
      }
    }
    score.print(from_kind == to_kind ? from_kind : from_kind + " -> " + to_kind, one.name);
  }
}

void print_all_pairs(std::vector<trace> const& traces) {
  std::puts("\n## The first plan, judged on another recording\n");
  std::puts(
      "Planned on one recording from slot p = expert p mod E (or from `dealt_placement`), relabelled, judged on every "
      "other of the");
  std::puts(
      "same kind, or of another kind of the model; means over all ordered pairs. Next: with even shares, with the "
      "plan's own, and");
  std::puts(
      "split anew. Moves and doubled: a layer. TensorRT-LLM, SGLang, xLLM and vllm-ascend are as their algorithms are "
      "described, in");
  std::puts(
      "`tests/support/peer_policies.hpp`: the first two give the original's plans; xLLM itself takes only shapes whose "
      "experts and");
  std::puts("spare slots its ranks divide; vllm-ascend's own swift balances less.\n");
  std::puts(
      "| recordings | ranks x slots | policy | ms | in sample | next, even | next, own | next, split anew | moves | "
      "doubled |");
  std::puts("|---|---|---|---:|---:|---:|---:|---:|---:|---:|");
  auto const all = recordings_in(traces);
  std::set<std::pair<std::string, std::string>> kinds;
  for (auto const& first : all) {
    for (auto const& second : all) {
      if (&first == &second || first.model != second.model) { continue; }
      // Of models with several kinds, all pairs of kinds of the same number of layers.
      if (first.loads.rows() == second.loads.rows()) { kinds.insert({first.kind, second.kind}); }
    }
  }
  for (auto const& [from_kind, to_kind] : kinds) {
    auto const experts = std::find_if(all.begin(), all.end(), [&kind = from_kind](recording const& one) {
                           return one.kind == kind;
                         })->loads.columns();
    for (auto const& on : shapes_for(experts)) {
      if (on.num_groups == 1) { print_pairs(all, from_kind, to_kind, on); }
    }
  }
}

/// Traces of one step that belong together follow each other as the steps of one.
std::vector<trace> in_sequence(std::vector<trace> const& traces) {
  std::vector<trace> result;
  for (auto const& one : traces) {
    auto const model = one.name.substr(0, one.name.find('/'));
    bool const joins = one.steps == 1 && !result.empty() && result.back().name == model + "/*" &&
                       result.back().layers == one.layers && result.back().experts == one.experts;
    if (!joins) {
      result.push_back(one);
      if (one.steps == 1) { result.back().name = model + "/*"; }
      continue;
    }
    result.back().tokens.insert(result.back().tokens.end(), one.tokens.begin(), one.tokens.end());
    ++result.back().steps;
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  bool const curve = argc > 1 && std::string_view{argv[1]} == "--curve";
  bool const every_batch = argc > 1 && std::string_view{argv[1]} == "--every-batch";
  auto folders = ballast_test::trace_folders();
  if (argc > (curve || every_batch ? 2 : 1)) { folders = {argv[argc - 1], BALLAST_SOURCE_DIR "/tests/data/traces"}; }
  std::vector<trace> traces;
  for (auto const& file : ballast_test::all_traces(folders)) { traces.push_back(ballast_test::read_trace(file)); }
  if (curve) {
    print_curve(in_sequence(traces).front(), shapes_for(in_sequence(traces).front().experts).front());
    return 0;
  }
  if (every_batch) {
    ballast_bench::print_every_batch(traces);
    return 0;
  }
  std::puts("## Balance on the loads planned for\n");
  std::puts(
      "Processor ms for all layers, mean over steps; balancedness = sum of means / sum of maxima; bound ratio = sum "
      "of");
  std::puts(
      "maxima / sum of lower bounds; doubled = slots a layer that hold a further copy of an expert on their rank.\n");
  std::puts("| trace | ranks x slots | policy | ms | balancedness | worst layer | bound ratio | doubled |");
  std::puts("|---|---|---|---:|---:|---:|---:|---:|");
  for (auto const& one : traces) {
    for (auto const& on : shapes_for(one.experts)) { print_balance(one, on); }
  }
  std::puts("\n## From one step to the next: time, balance and moves\n");
  std::puts(
      "Each step starts from the balanced plan of the one before. Recordings of one step follow each other. Moves: a "
      "layer,");
  std::puts(
      "mean over layers and steps; \"<= 16\": at most so many in any layer; \"shares\": shares solved with them.\n");
  std::puts("| trace | ranks x slots | policy | ms | balancedness | bound ratio | moves |");
  std::puts("|---|---|---|---:|---:|---:|---:|");
  for (auto const& one : in_sequence(traces)) {
    if (one.steps > 1) { print_changes(one, shapes_for(one.experts).front()); }
  }
  print_all_pairs(traces);
  std::puts("\n## On the next step, nothing moved\n");
  std::puts(
      "Planned from scratch on each step; balancedness on that step and on the next. \"Even\" is balanced packing with "
      "even");
  std::puts(
      "shares, the peers' way; \"ours\" is `balanced_shares_placement`, with its shares kept, and solved again.\n");
  std::puts(
      "| trace | ranks x slots | deepseek | next | even | next | ours, shares kept | next | ours | next, shares solved "
      "again |");
  std::puts("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|");
  for (auto const& one : in_sequence(traces)) {
    for (auto const& on : shapes_for(one.experts)) {
      if (one.steps > 1 && on.num_groups == 1) { print_next_window(one, on); }
    }
  }
}
