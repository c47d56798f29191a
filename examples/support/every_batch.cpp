// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "support/every_batch.hpp"

#include <ballast/detail/text.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/topology.hpp>

#include "support/batch_balance.hpp"
#include "support/file.hpp"
#include "support/interruption.hpp"
#include "support/placement_json.hpp"
#include "support/printable.hpp"
#include "support/progress_bar.hpp"
#include "support/token_trace.hpp"
#include "support/trace.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ballast_tools {

using ballast::index_t;
using ballast::load_t;
using ballast::status;
using ballast::detail::concat;

void every_batch_options::add_to(CLI::App& app) {
  app.add_flag("--every-batch", wanted,
               "move nothing between plans; split every batch by quotas for this very batch, and compare");
  add_text(app, "--tokens", tokens,
           "with --every-batch, instead of --trace: ids that routers chose, CSV: a line 'tokens,layers,topk', then a\n"
           "line of expert ids for each token, layer by layer; several such traces may follow each other",
           "FILE");
  add_integer(app, "--batch-tokens", batch_tokens, "of --tokens, tokens of a batch over all ranks (512)");
  add_integer(app, "--experts", num_logical, "of --tokens, E, experts of the model (the highest id and one)");
  add_integer(app, "--plan-on", plan_on, "with --every-batch, batches that the experts are placed for (8)");
  add_text(app, "--plot", plot, "with --every-batch, file for what bench/every_batch.gnuplot draws (none)", "FILE");
}

char const* every_batch_options::first_given() const {
  if (tokens) { return "--tokens"; }
  if (batch_tokens) { return "--batch-tokens"; }
  if (num_logical) { return "--experts"; }
  if (plan_on) { return "--plan-on"; }
  return plot ? "--plot" : nullptr;
}

namespace {

// ---- what to replay ----

struct setup {
  trace loads;  ///< a batch a step
  token_trace tokens;
  std::vector<std::size_t> firsts;  ///< first token of each batch; empty where ids are not known
  index_t batch_tokens = 0;
  index_t plan_on = 0;
  index_t interval = 0;  ///< 0: never again
  ballast::topology where;
  ballast::any_policy policy;
  ballast::placement start;

  [[nodiscard]] bool has_ids() const { return !firsts.empty(); }
};

[[nodiscard]] status refuse(auto const&... parts) { return {ballast::errc::invalid_option, concat(parts...)}; }

[[nodiscard]] std::string input_of(every_batch_options const& options) {
  return options.tokens ? *options.tokens : options.trace.value_or(std::string{});
}

[[nodiscard]] status check_numbers(every_batch_options const& options) {
  constexpr index_t max_ranks = 1024;
  if (options.topology.ranks > max_ranks) {
    return refuse("--ranks is ", options.topology.ranks, ", must be at most ", max_ranks);
  }
  auto const check = [](char const* name, std::optional<index_t> value) {
    return value && *value < 1 ? refuse(name, " is ", *value, ", must be at least 1") : status{};
  };
  if (auto result = check("--batch-tokens", options.batch_tokens); !result.ok()) { return result; }
  if (auto result = check("--experts", options.num_logical); !result.ok()) { return result; }
  if (auto result = check("--plan-on", options.plan_on); !result.ok()) { return result; }
  return check("--interval", options.interval);
}

[[nodiscard]] status check_inputs(every_batch_options const& options) {
  if (options.trace && options.tokens) {
    return refuse("--trace and --tokens are both given: one of them is replayed");
  }
  if (!options.trace && !options.tokens) { return refuse("--trace or --tokens is required"); }
  if (!options.tokens && options.batch_tokens) { return refuse("--batch-tokens is for --tokens: steps are batches"); }
  if (!options.tokens && options.num_logical) { return refuse("--experts is for --tokens: a trace of loads says it"); }
  std::vector<named_file> outputs{{"the summary", std::string{standard_stream}}};
  if (options.json) { outputs.push_back({"--json", *options.json}); }
  if (options.plot) { outputs.push_back({"--plot", *options.plot}); }
  return ballast_tools::check_files({{options.tokens ? "--tokens" : "--trace", input_of(options)}}, outputs);
}

/// What planners and tables are made of, before memory is asked for.
[[nodiscard]] status check_shape(every_batch_options const& options, setup const& in, index_t layers,
                                 index_t num_logical) {
  if (in.where.num_slots() >= ballast::quota_shape::most_slots) {
    return refuse(in.where.num_slots(), " slots in a layer, --every-batch has quotas for less than ",
                  ballast::quota_shape::most_slots);
  }
  if (auto result = options.policy.check_experts(num_logical); !result.ok()) { return result; }
  if (auto result = check_size(layers, in.where.num_slots()); !result.ok()) { return result; }
  return ballast::placement::validate_shape({layers, num_logical, in.where.num_slots()});
}

[[nodiscard]] status read_tokens(every_batch_options const& options, setup& out) {
  constexpr std::int64_t max_cells = std::int64_t{1} << 28;
  auto& tokens = out.tokens;
  if (auto result = read_token_trace(input_of(options), options.num_logical, tokens); !result.ok()) { return result; }
  if (auto result = check_shape(options, out, tokens.num_layers, tokens.num_logical); !result.ok()) { return result; }
  out.batch_tokens = options.batch_tokens.value_or(512);
  out.firsts = tokens.batches(out.batch_tokens);
  auto const batches = static_cast<std::int64_t>(out.firsts.size());
  if (batches > max_cells / tokens.num_layers / tokens.num_logical) {
    return refuse("--batch-tokens is ", out.batch_tokens, ": ", batches, " batches x ", tokens.num_layers, " layers x ",
                  tokens.num_logical, " experts is more than this tool counts (", max_cells, ")");
  }
  out.loads = tokens.count(out.firsts, out.batch_tokens);
  return {};
}

[[nodiscard]] status check_batches(every_batch_options const& options, setup const& in) {
  auto const& loads = in.loads;
  if (loads.num_steps <= in.plan_on) {
    auto const what = in.batch_tokens > 0 ? concat(" of ", in.batch_tokens, " tokens") : std::string{};
    return in_file(input_of(options), refuse("holds ", loads.num_steps, " whole batches", what, ", of which --plan-on ",
                                             in.plan_on, " leaves none to judge"));
  }
  auto const history = loads.history();
  for (index_t step = 0; step < loads.num_steps; ++step) {
    for (index_t layer = 0; layer < loads.num_layers; ++layer) {
      load_t sum = 0;
      for (auto const tokens : history.layer(step, layer)) {
        sum = std::min(sum + tokens, ballast::max_batch_tokens + 1);
      }
      if (sum > ballast::max_batch_tokens) {
        return in_file(input_of(options), {ballast::errc::invalid_load,
                                           concat("the tokens of layer ", layer, " in step ", step, " exceed ",
                                                  ballast::max_batch_tokens, ", the most of a batch")});
      }
    }
  }
  return in_file(input_of(options), check_windows(loads, in.plan_on));
}

[[nodiscard]] status prepare(every_batch_options const& options, setup& out) {
  if (auto result = check_numbers(options); !result.ok()) { return result; }
  if (auto result = check_inputs(options); !result.ok()) { return result; }
  if (auto result = options.topology.make(out.where); !result.ok()) { return result; }
  auto made = options.policy.make(options.topology.nodes, ballast::share_mode::optimal, out.policy);
  if (!made.ok()) { return made; }
  if (options.tokens) {
    if (auto result = read_tokens(options, out); !result.ok()) { return result; }
  } else {
    if (auto result = read_trace(input_of(options), out.loads); !result.ok()) { return result; }
    auto checked = check_shape(options, out, out.loads.num_layers, out.loads.num_logical);
    if (!checked.ok()) { return checked; }
  }
  out.plan_on = options.plan_on.value_or(8);
  out.interval = options.interval.value_or(0);
  out.start = ballast::trivial_placement({out.loads.num_layers, out.loads.num_logical, out.where.num_slots()});
  return check_batches(options, out);
}

// ---- batch by batch ----

/// One batch that was judged.
struct judged_batch {
  index_t number = 0;  ///< from 1
  std::int64_t moves = 0;
  batch_score score;
};

/// The ids of a batch by layer and rank. Each rank has a part of its tokens, one after the other; the lowest ranks take
/// what is left over.
struct rank_ids {
  setup const& of;
  index_t batch;
  std::vector<index_t>& ids;

  std::span<index_t const> operator()(index_t layer, index_t rank) const {
    auto const ranks = static_cast<std::size_t>(of.where.num_ranks());
    auto const tokens = static_cast<std::size_t>(of.batch_tokens);
    auto const number = static_cast<std::size_t>(rank);
    auto const before = number * (tokens / ranks) + std::min(number, tokens % ranks);
    auto const own = tokens / ranks + (number < tokens % ranks ? 1 : 0);
    ids.clear();
    of.tokens.append_ids(of.firsts[static_cast<std::size_t>(batch)] + before, own, layer, ids);
    return ids;
  }
};

class batch_replay {
public:
  explicit batch_replay(setup const& setup) : setup_{setup}, judge_{setup.where, setup.start} {}

  /// The experts are placed before the first batch that is judged, and again after every interval.
  [[nodiscard]] status run(index_t batch, judged_batch& out) {
    out = {batch + 1, 0, {}};
    auto const judged = batch - setup_.plan_on;
    if (judged == 0 || (setup_.interval > 0 && judged % setup_.interval == 0)) {
      if (auto result = plan_before(batch, out.moves); !result.ok()) { return result; }
    }
    auto const history = setup_.loads.history();
    out.score = setup_.has_ids() ? judge_.realise(batch + 1, history.bucket(batch - 1), history.bucket(batch),
                                                  setup_.tokens.top_k, rank_ids{setup_, batch, ids_})
                                 : judge_.plan(batch + 1, history.bucket(batch - 1), history.bucket(batch));
    return {};
  }

private:
  /// @param moves  out: 0 for the first plan, which is what weights are loaded by
  [[nodiscard]] status plan_before(index_t batch, std::int64_t& moves) {
    auto const per_step =
        static_cast<std::size_t>(setup_.loads.num_layers) * static_cast<std::size_t>(setup_.loads.num_logical);
    ballast::load_history_view const history{
        std::span{setup_.loads.tokens}.subspan(static_cast<std::size_t>(batch - setup_.plan_on) * per_step,
                                               static_cast<std::size_t>(setup_.plan_on) * per_step),
        setup_.plan_on, setup_.loads.num_layers, setup_.loads.num_logical};
    bool const first = current_.num_layers() == 0;
    auto const& from = first ? setup_.start : current_;
    ballast::placement next;
    if (auto result = ballast::plan(setup_.policy, history, from, setup_.where, next); !result.ok()) { return result; }
    if (!first) {
      ballast::relabel(from, setup_.where, next, {.scope = ballast::interchangeable(setup_.policy)});
      moves = ballast::count_moves(setup_.where, from, next);
    }
    current_ = std::move(next);
    judge_.adopt(current_, history);
    return {};
  }

  setup const& setup_;
  batch_judge judge_;
  ballast::placement current_;
  std::vector<index_t> ids_;  ///< of one layer and rank
};

// ---- what is shown ----

/// All batches together.
struct summary {
  batch_score score;
  index_t num_batches = 0;
  index_t num_plans = 1;
  std::int64_t moves = 0;

  void add(judged_batch const& batch, setup const& of) {
    score += batch.score;
    ++num_batches;
    auto const judged = batch.number - 1 - of.plan_on;
    num_plans += judged > 0 && of.interval > 0 && judged % of.interval == 0 ? 1 : 0;
    moves += batch.moves;
  }
};

[[nodiscard]] json in_json(judged_batch const& batch, bool realised) {
  json line{{"batch", batch.number}, {"moves", batch.moves}};
  auto const add = [&line](char const* name, std::array<rank_balance, num_split_kinds> const& of) {
    for (std::size_t kind = 0; kind < num_split_kinds; ++kind) {
      line[name][split_names[kind]] = {{"ratio", of[kind].ratio()}, {"worst_layer", of[kind].worst}};
    }
  };
  add("planned", batch.score.planned);
  if (realised) {
    add("realised", batch.score.realised);
    line["rows_off"] = batch.score.rows_off;
  }
  return line;
}

/// A line of numbers by columns: batch, moves, then max / mean of each kind, realised where ids are known.
[[nodiscard]] std::string plot_line(judged_batch const& batch, bool realised) {
  auto line = concat(batch.number, ' ', batch.moves);
  for (auto const& of : realised ? batch.score.realised : batch.score.planned) {
    std::array<char, 32> text;
    std::snprintf(text.data(), text.size(), " %.5f", of.ratio());
    line += text.data();
  }
  return line + '\n';
}

void print_setup(every_batch_options const& options, setup const& setup) {
  auto const& where = setup.where;
  std::printf("%s\n", printable(input_name(input_of(options))).c_str());
  std::printf(
      "  %d batches%s of a model with %d MoE layers of %d experts\n", setup.loads.num_steps,
      setup.has_ids() ? concat(" of ", setup.batch_tokens, " tokens, top ", setup.tokens.top_k, ",").c_str() : "",
      setup.loads.num_layers, setup.loads.num_logical);
  std::printf("  %d ranks on %d node(s), %d expert slots each: %d spare in a layer\n", where.num_ranks(),
              where.num_nodes(), where.slots_per_rank(), where.num_slots() - setup.loads.num_logical);
  auto const again =
      setup.interval > 0 ? concat(", and again every ", setup.interval, " batches on as many") : std::string{", once"};
  std::printf("  policy %s: planned on batches 1 to %d%s\n\n", options.policy.name.value_or("").c_str(), setup.plan_on,
              again.c_str());
}

void print_balance(summary const& sum, bool realised) {
  constexpr std::array names{"start layout, even shares", "plan, even shares", "plan, its own shares",
                             "plan, shares of the batch before", "plan, quotas of the batch"};
  auto const number = [](double value) {
    std::array<char, 16> text;
    std::snprintf(text.data(), text.size(), "%.4f", value);
    return std::string{text.data()};
  };
  std::printf("load of the busiest rank / load of the average rank, sums over layers and batches (1 is perfect)\n");
  std::printf("%-34s %9s %9s   %s\n", "", "planned", "realised", "worst layer (its batch, layer)");
  for (std::size_t kind = 0; kind < num_split_kinds; ++kind) {
    auto const& planned = sum.score.planned[kind];
    auto const& worst = realised ? sum.score.realised[kind] : planned;
    std::printf("%-34s %9s %9s   %s (%d, %d)\n", names[kind], number(planned.ratio()).c_str(),
                realised ? number(sum.score.realised[kind].ratio()).c_str() : "-", number(worst.worst).c_str(),
                worst.worst_batch, worst.worst_layer);
  }
}

void print_summary(every_batch_options const& options, setup const& setup, summary const& sum) {
  print_setup(options, setup);
  if (noted_signal() != 0) {
    std::printf("interrupted after %d of %d batches\n\n", sum.num_batches, setup.loads.num_steps - setup.plan_on);
  }
  if (sum.num_batches == 0) { return; }
  print_balance(sum, setup.has_ids());
  std::printf("\nbatches judged: %d; plans: %d; experts moved: %lld\n", sum.num_batches, sum.num_plans,
              static_cast<long long>(sum.moves));
  if (setup.has_ids()) {
    std::printf("rows mapped by quota: %lld; off their quotas: %lld\n", static_cast<long long>(sum.score.rows_mapped),
                static_cast<long long>(sum.score.rows_off));
  } else {
    std::printf("nothing is realised: the trace has counts, and no ids to map (--tokens)\n");
  }
}

/// The files that are asked for: lines for programs, and data for a plot. Both are there in the end, or none.
class result_files {
public:
  [[nodiscard]] status open(every_batch_options const& options, bool realised) {
    realised_ = realised;
    if (options.json) {
      if (auto result = lines_.open(*options.json); !result.ok()) { return result; }
    }
    if (!options.plot) { return {}; }
    if (auto result = plot_.open(*options.plot); !result.ok()) { return result; }
    plot_.write(concat("# max / mean of the rank loads, ", realised ? "realised" : "planned", "\n# batch moves"));
    for (auto const* name : split_names) { plot_.write(concat(' ', name)); }
    plot_.write("\n");
    return {};
  }
  void write(judged_batch const& batch) {
    if (lines_.is_open()) { lines_.write(in_json(batch, realised_).dump() + '\n'); }
    if (plot_.is_open()) { plot_.write(plot_line(batch, realised_)); }
  }
  [[nodiscard]] status publish() {
    std::vector<output_file*> open;
    for (auto* file : {&lines_, &plot_}) {
      if (file->is_open()) { open.push_back(file); }
    }
    for (auto* file : open) {
      if (auto result = file->finish(); !result.ok()) { return result; }
    }
    for (auto* file : open) {
      if (auto result = file->publish(); !result.ok()) { return result; }
    }
    return {};
  }

private:
  output_file lines_;
  output_file plot_;
  bool realised_ = false;
};

}  // namespace

status replay_every_batch(every_batch_options options) {
  if (!options.policy.name) { options.policy.name = "headroom"; }
  setup setup;
  if (auto result = prepare(options, setup); !result.ok()) { return result; }
  result_files files;
  if (auto result = files.open(options, setup.has_ids()); !result.ok()) { return result; }
  note_signals();
  batch_replay replay{setup};
  progress_bar bar{setup.loads.num_steps};
  summary sum;
  for (auto batch = setup.plan_on; batch < setup.loads.num_steps && noted_signal() == 0; ++batch) {
    judged_batch judged;
    if (auto result = replay.run(batch, judged); !result.ok()) { return result; }
    sum.add(judged, setup);
    files.write(judged);
    bar.show(batch + 1);
  }
  if (auto result = files.publish(); !result.ok()) { return result; }
  print_summary(options, setup, sum);
  return flush_standard_output();
}

}  // namespace ballast_tools
