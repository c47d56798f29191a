// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "batch_quality.hpp"

#include <ballast/detail/index.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "../examples/support/batch_balance.hpp"
#include "support/loads.hpp"

#include <support/random.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ballast_bench {

namespace {

using namespace ballast;
using ballast_test::trace;

// ---- batches ----

/// The ids that routers chose for a batch in every layer.
struct batch {
  index_t num_layers = 0;
  index_t num_logical = 0;
  std::vector<std::vector<index_t>> ids;  ///< [L][tokens * top_k]
  std::vector<load_t> loads;              ///< [L, E]

  [[nodiscard]] matrix_view<load_t const> view() const { return {loads, num_layers, num_logical}; }
  /// A rank's part of the tokens, one after the other.
  [[nodiscard]] std::span<index_t const> of_rank(index_t layer, index_t rank, index_t num_ranks, index_t top_k) const {
    auto const& all = ids[static_cast<std::size_t>(layer)];
    auto const tokens = static_cast<index_t>(all.size()) / top_k;
    auto const first = [&](index_t of) {
      return static_cast<std::size_t>(std::int64_t{tokens} * of / num_ranks * top_k);
    };
    return std::span{all}.subspan(first(rank), first(rank + 1) - first(rank));
  }
};

/// Ids that are counted as these loads are, in an order of their own.
batch with_counts(matrix_view<load_t const> loads, std::uint64_t seed) {
  batch made{loads.rows(), loads.columns(), {}, {loads.elements().begin(), loads.elements().end()}};
  ballast_test::generator random{seed};
  for (index_t layer = 0; layer < loads.rows(); ++layer) {
    auto& ids = made.ids.emplace_back();
    for (index_t expert = 0; expert < loads.columns(); ++expert) {
      ids.insert(ids.end(), static_cast<std::size_t>(loads(layer, expert)), expert);
    }
    ballast_test::shuffle(ids, random);
  }
  return made;
}

/// `num_ids` ids in every layer, each drawn from the distribution of these loads.
batch drawn_from(matrix_view<load_t const> loads, std::size_t num_ids, std::uint64_t seed) {
  batch made{loads.rows(), loads.columns(), {}, {}};
  made.loads.resize(loads.elements().size());
  ballast_test::generator random{seed};
  std::vector<load_t> ends(static_cast<std::size_t>(loads.columns()));
  for (index_t layer = 0; layer < loads.rows(); ++layer) {
    std::partial_sum(loads.row(layer).begin(), loads.row(layer).end(), ends.begin());
    auto& ids = made.ids.emplace_back(num_ids);
    for (auto& id : ids) {
      auto const drawn = static_cast<load_t>(random.next() % static_cast<std::uint64_t>(ends.back()));
      id = static_cast<index_t>(std::upper_bound(ends.begin(), ends.end(), drawn) - ends.begin());
      ++made.loads[static_cast<std::size_t>(layer * loads.columns() + id)];
    }
  }
  return made;
}

// ---- tables ----

/// Judges batches in every way, beside the best that any split could do.
class judged_case {
public:
  judged_case(topology const& where, index_t top_k, placement_shape sizes)
      : where_{where}, top_k_{top_k}, judge_{where, trivial_placement(sizes)} {}

  void plan_on(load_history_view history) {
    auto const start = trivial_placement({history.num_layers(), history.num_logical(), where_.num_slots()});
    plan(headroom_placement{}, history, start, where_, planned_).or_throw();
    judge_.adopt(planned_, history);
  }
  void judge(matrix_view<load_t const> previous, batch const& of) {
    auto const score = judge_.realise(1, previous, of.view(), top_k_, [&](index_t layer, index_t rank) {
      return of.of_rank(layer, rank, where_.num_ranks(), top_k_);
    });
    sum_ += score;
    for (index_t layer = 0; layer < of.num_layers; ++layer) {
      auto const loads = of.view().row(layer);
      solver_.open(where_, planned_.logical_of_slot(layer), loads).or_throw();
      auto const total = std::accumulate(loads.begin(), loads.end(), load_t{0});
      best_.add(1, layer, static_cast<double>(solver_.solve()) / (1 << 18),
                static_cast<double>(total) / where_.num_ranks());
    }
  }
  void print(std::string const& name, char const* must) const {
    std::printf("| %s | %d x %d |", name.c_str(), where_.num_ranks(), where_.slots_per_rank());
    for (auto const& of : sum_.realised) { std::printf(" %.4f |", of.ratio()); }
    std::printf(" %.4f | %.4f | %.4f | %lld | %s |\n", best_.ratio(), sum_.realised.back().worst, best_.worst,
                static_cast<long long>(sum_.rows_off), must);
    std::fflush(stdout);
  }

private:
  topology const& where_;
  index_t top_k_;
  ballast_tools::batch_judge judge_;
  placement planned_;
  share_solver solver_;
  ballast_tools::batch_score sum_;
  ballast_tools::rank_balance best_;
};

void print_header() {
  std::puts(
      "| batches | ranks x slots | start | even | own shares | refreshed | quotas | optimum | worst layer | its "
      "optimum | "
      "rows off | must |");
  std::puts("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|");
}

// ---- Zipf ----

/// max / mean over all layers of ranks that hold the experts in order, without spare slots.
double home_imbalance(std::vector<load_t> const& loads, index_t per_rank, index_t per_layer) {
  double max = 0;
  double mean = 0;
  for (std::size_t first = 0; first < loads.size(); first += static_cast<std::size_t>(per_layer)) {
    load_t most = 0;
    load_t total = 0;
    for (index_t rank = 0; rank < per_layer / per_rank; ++rank) {
      auto const at = loads.begin() + static_cast<std::ptrdiff_t>(first) + std::ptrdiff_t{rank} * per_rank;
      auto const load = std::accumulate(at, at + per_rank, load_t{0});
      most = std::max(most, load);
      total += load;
    }
    max += static_cast<double>(most);
    mean += static_cast<double>(total) * per_rank / per_layer;
  }
  return max / mean;
}

void print_zipf(double imbalance) {
  constexpr index_t layers = 16;
  constexpr index_t experts = 256;
  constexpr std::size_t ids = std::size_t{8} * 1024 * 64;
  double low = 0;
  double high = 2;
  for (int i = 0; i < 40; ++i) {
    auto const middle = (low + high) / 2;
    (home_imbalance(zipf_loads(layers, experts, middle), 4, experts) < imbalance ? low : high) = middle;
  }
  auto const popularity = zipf_loads(layers, experts, low);
  matrix_view<load_t const> const loads{popularity, layers, experts};
  topology const where{{64, 1, 6, 0}};
  judged_case judged{where, 8, {layers, experts, where.num_slots()}};
  auto before = drawn_from(loads, ids, 1);
  judged.plan_on(before.view());
  for (std::uint64_t seed = 2; seed < 6; ++seed) {
    auto next = drawn_from(loads, ids, seed);
    judged.judge(before.view(), next);
    before = std::move(next);
  }
  char name[64];
  std::snprintf(name, sizeof name, "Zipf %.3f, home layout %.2f", low, imbalance);
  judged.print(name, "<= 1.0005");
}

// ---- recordings ----

bool starts_with(std::string const& text, char const* start) { return text.starts_with(start); }

/// Batches drawn from each recording of one kind, on plans for each other of another.
void print_recordings(std::vector<trace> const& traces, char const* from_kind, char const* to_kind, char const* name,
                      topology_shape sizes, char const* must) {
  constexpr std::size_t ids = std::size_t{8} * 32768;
  topology const where{sizes};
  std::optional<judged_case> judged;
  for (auto const& to : traces) {
    if (!starts_with(to.name, to_kind)) { continue; }
    auto const before = drawn_from(to.step(0), ids, 1);
    auto const next = drawn_from(to.step(0), ids, 2);
    for (auto const& from : traces) {
      if (!starts_with(from.name, from_kind) || &from == &to) { continue; }
      if (!judged) { judged.emplace(where, 8, placement_shape{to.layers, to.experts, where.num_slots()}); }
      judged->plan_on(from.history());
      judged->judge(before.view(), next);
    }
  }
  if (judged) { judged->print(name, must); }
}

// ---- consecutive batches of four tasks ----

constexpr index_t batches_per_task = 16;
constexpr index_t num_tasks = 4;

/// Two batches of each task but one, as a history.
std::vector<load_t> two_of_each(trace const& mixed, index_t without = -1) {
  std::vector<load_t> tokens;
  for (index_t task = 0; task < num_tasks; ++task) {
    if (task == without) { continue; }
    auto const two = mixed.history(batches_per_task * task, 2).tokens();
    tokens.insert(tokens.end(), two.begin(), two.end());
  }
  return tokens;
}

void judge_steps(judged_case& judged, trace const& of, index_t first, index_t last) {
  for (auto step = first; step < last; ++step) {
    judged.judge(of.step(step - 1), with_counts(of.step(step), static_cast<std::uint64_t>(step)));
  }
}

void print_tasks(trace const& mixed) {
  for (auto const& sizes : {topology_shape{8, 1, 10, 0}, topology_shape{16, 1, 6, 0}}) {
    topology const where{sizes};
    judged_case judged{where, 6, {mixed.layers, mixed.experts, where.num_slots()}};
    for (index_t task = 0; task < num_tasks; ++task) {
      auto const first = batches_per_task * task;
      judged.plan_on(mixed.history(first, 8));
      judge_steps(judged, mixed, first + 8, first + batches_per_task);
    }
    judged.print("V2-Lite, 512 tokens, each task planned on batches 1 to 8, judged on 9 to 16", "<= 1.0005");
  }
  for (auto const& sizes : {topology_shape{8, 1, 10, 0}, topology_shape{16, 1, 6, 0}}) {
    topology const where{sizes};
    judged_case judged{where, 6, {mixed.layers, mixed.experts, where.num_slots()}};
    auto const history = two_of_each(mixed);
    judged.plan_on({history, 2 * num_tasks, mixed.layers, mixed.experts});
    for (index_t task = 0; task < num_tasks; ++task) {
      auto const first = batches_per_task * task;
      judge_steps(judged, mixed, first + 2, first + batches_per_task);
    }
    judged.print("V2-Lite, 512 tokens, four tasks, planned once on two batches of each, judged on 14",
                 sizes.num_ranks == 16 ? "<= 1.04, 0 moves" : "");
  }
}

// ---- a task that no plan has seen ----

/// Plan on three tasks, let the fourth come, and plan again after every `interval` batches on those that came.
class unseen_task {
public:
  unseen_task(trace const& mixed, index_t task, index_t interval, index_t max_moves)
      : mixed_{mixed},
        task_{task},
        interval_{interval},
        policy_{.max_moves_per_layer = max_moves, .shares = share_mode::optimal} {
    auto const history = two_of_each(mixed, task);
    auto const start = trivial_placement({mixed.layers, mixed.experts, where_.num_slots()});
    plan(headroom_placement{}, {history, 2 * (num_tasks - 1), mixed.layers, mixed.experts}, start, where_, current_)
        .or_throw();
  }

  void run() {
    constexpr double goal = 1.05;
    for (index_t batch = 0; batch < batches_per_task; ++batch) {
      if (batch > 0 && batch % interval_ == 0) { plan_on_last(batch); }
      ratios_.push_back(ratio_of(batch));
      if (batches_until_ == 0 && ratios_.back() <= goal) {
        batches_until_ = batch + 1;
        moves_until_ = moves_;
      }
    }
  }
  void print(char const* name) const {
    std::printf("| %s | %d | %d |", name, interval_, policy_.max_moves_per_layer);
    for (auto const batch : {0, 1, 2, 4, 8, 15}) { std::printf(" %.3f |", detail::at(ratios_, batch)); }
    auto const per_layer = [&](std::int64_t moves) { return static_cast<double>(moves) / mixed_.layers; };
    if (batches_until_ == 0) {
      std::printf(" not in 16 | |");
    } else {
      std::printf(" %d | %.1f |", batches_until_, per_layer(moves_until_));
    }
    std::printf(" %.1f |\n", per_layer(moves_));
    std::fflush(stdout);
  }

private:
  void plan_on_last(index_t batch) {
    auto const first = std::max(batch - most_batches, index_t{0});
    placement next;
    plan(policy_, mixed_.history(batches_per_task * task_ + first, batch - first), current_, where_, next).or_throw();
    relabel(current_, where_, next, {.scope = interchangeable(policy_)});
    moves_ += count_moves(where_, current_, next);
    current_ = std::move(next);
  }
  [[nodiscard]] double ratio_of(index_t batch) {
    quota_rows rows{where_, mixed_.layers, mixed_.experts};
    auto const loads = mixed_.step(batches_per_task * task_ + batch);
    double max = 0;
    double total = 0;
    for (index_t layer = 0; layer < mixed_.layers; ++layer) {
      rows.publish(where_, current_, layer);
      std::vector<index_t> const tokens{loads.row(layer).begin(), loads.row(layer).end()};
      auto const reached = quotas_.solve(rows.row(layer), tokens);
      max += reached.max;
      total += reached.total;
    }
    return max * where_.num_ranks() / total;
  }

  static constexpr index_t most_batches = 4;

  trace const& mixed_;
  index_t task_;
  index_t interval_;
  incremental_placement policy_;
  topology where_{{16, 1, 6, 0}};
  placement current_;
  quota_solver quotas_;
  std::vector<double> ratios_;
  std::int64_t moves_ = 0;
  std::int64_t moves_until_ = 0;
  index_t batches_until_ = 0;
};

void print_unseen(trace const& mixed) {
  std::puts("\n### A task that no plan has seen\n");
  std::puts(
      "V2-Lite, 16 x 6: planned on two batches of each of three tasks, then 16 batches of the fourth, each split by "
      "its");
  std::puts(
      "quotas; `incremental_placement` (optimal shares) plans again after every so many batches, on the last four of "
      "the");
  std::puts(
      "task. max / mean of batches 1, 2, ...; most moves: in a layer and plan, -1: no limit; moves: a layer, all "
      "plans.\n");
  std::puts(
      "| unseen | again after | most moves | 1 | 2 | 3 | 5 | 9 | 16 | batches until <= 1.05 | moves until then | moves "
      "in "
      "16 |");
  std::puts("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
  std::vector<char const*> const names{"intent", "law", "summary", "translation"};
  for (index_t const interval : {1, 2, 4}) {
    for (index_t const max_moves : {-1, 8}) {
      for (index_t task = 0; task < num_tasks; ++task) {
        unseen_task one{mixed, task, interval, max_moves};
        one.run();
        one.print(names[static_cast<std::size_t>(task)]);
      }
    }
  }
}

}  // namespace

void print_every_batch(std::vector<trace> const& traces) {
  std::puts("## Every batch by quotas of its own\n");
  std::puts(
      "Busiest rank / average rank, sum over layers and batches; ids are mapped, each to one replica. Experts are "
      "placed "
      "once by");
  std::puts(
      "`headroom_placement` on earlier loads, then nothing moves. Start: the layout p mod E, nothing planned. Own: the "
      "plan's");
  std::puts(
      "shares by hash; refreshed: shares that were best for the batch before, by hash; quotas: `quota_solver` with its "
      "default");
  std::puts(
      "options; optimum: `share_solver` in parts of tokens. Worst layer: of any batch, with quotas; beside it the "
      "worst "
      "optimum.\n");
  print_header();
  for (double const imbalance : {1.51, 2.01, 3.03}) { print_zipf(imbalance); }
  constexpr auto prefill = "deepseek-r1/prefill";
  constexpr auto decode = "deepseek-r1/decode";
  constexpr topology_shape of_384{32, 4, 12, 0};
  constexpr topology_shape of_64{64, 8, 6, 0};
  constexpr topology_shape of_288{32, 4, 9, 0};
  constexpr auto pairs = "R1, 32,768 tokens, one prefill recording to another, 12 pairs";
  print_recordings(traces, prefill, prefill, pairs, of_384, "<= 1.0005");
  print_recordings(traces, prefill, prefill, pairs, of_64, "<= 1.004");
  print_recordings(traces, prefill, prefill, pairs, of_288, "<= 1.042, goal 1.03");
  constexpr auto changed = "R1, 32,768 tokens, prefill to decode, 8 pairs";
  for (auto const& sizes : {of_384, of_64, of_288}) { print_recordings(traces, prefill, decode, changed, sizes, ""); }
  auto const mixed = std::find_if(traces.begin(), traces.end(),
                                  [](trace const& one) { return one.name == "deepseek-v2-lite/mixed_512tok"; });
  if (mixed == traces.end()) { return; }
  print_tasks(*mixed);
  print_unseen(*mixed);
}

}  // namespace ballast_bench
