// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A small mixture-of-experts engine that keeps its experts balanced with ballast in every way that there is, without it
// too, and proves that the answers are the same to the last bit. It ends with 1 where they are not.
#include <ballast/detail/text.hpp>
#include <ballast/load/history.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>

#include "gpu/check_limits.hpp"
#ifdef ENGINE_HAS_MPI
  #include "mpi_ranks.hpp"
#endif
#include "rank_links.hpp"
#include "reference.hpp"
#include "report.hpp"
#include "serve.hpp"
#include "settings.hpp"
#include "support/cli.hpp"
#include "support/file.hpp"
#include "support/trace.hpp"

#include <nlohmann/json.hpp>

#ifdef ENGINE_HAS_GPUS
  #include "gpu/gpu_ranks.hpp"
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using ballast::index_t;
using ballast::status;

struct options {
  index_t ranks = 4, nodes = 1, spare_slots = 2;
  index_t layers = 4, top_k = 6, hidden = 32, intermediate = 16;
  index_t longest_prompt = 48, longest_output = 24;
  index_t passes = 160, requests = 2, tokens = 32, interval = 4, layers_per_chunk = 1, patience = 8, plan_work = 50'000,
          timeout_ms = 10'000;
  std::optional<index_t> switch_at;
  index_t seed = 1, schedule = 1;
  std::optional<std::string> traffic, then, modes, json, trace;
  std::optional<std::string> transport = "threads";
  std::optional<std::string> damage, stop_in, moves_with;
  std::optional<index_t> slow_rank, stop_rank, stop_at;
  index_t verify = 1, reference = 1, turn = 1, cards = 0, small_pass = 128, least_batch = 0;

  void add_to(CLI::App& app) {
    using namespace ballast_tools;
    add_text(app, "--modes", modes, "Which to serve in, separated by commas (all of them)");
    add_text(app, "--transport", transport,
             "threads: ranks are threads; processes: each is a process; mpi: each is one that mpirun has started; "
             "gpus: each is a thread with a card, or a part of one; gpu-processes: each is a process with a card "
             "(threads)");
    add_integer(app, "--ranks", ranks, "R, ranks (4)");
    add_integer(app, "--nodes", nodes, "N, nodes that they are spread over (1)");
    add_integer(app, "--spare-slots", spare_slots, "Slots of a rank beyond the experts' own (2)");
    add_integer(app, "--layers", layers, "L, layers of the model (4)");
    add_integer(app, "--top-k", top_k, "k, experts that a token picks (6)");
    add_integer(app, "--hidden", hidden, "D, numbers of a token's row (32)");
    add_integer(app, "--intermediate", intermediate, "I, width of an expert (16)");
    add_text(app, "--traffic", traffic, "Trace of loads that routing follows at first (V2-Lite, translation)", "FILE");
    add_text(app, "--then", then, "The same from the change of traffic on (V2-Lite, intent)", "FILE");
    add_integer(app, "--passes", passes, "Passes in which requests arrive (160)");
    add_integer(app, "--switch-at", switch_at, "Pass from which on the traffic is the other (half of --passes)");
    add_integer(app, "--requests", requests, "That arrive in a pass, in the mean (2)");
    add_integer(app, "--longest-prompt", longest_prompt, "Tokens of a request, at most; at least a sixth of them (48)");
    add_integer(app, "--longest-output", longest_output, "Tokens that a request generates, at most (24)");
    add_integer(app, "--tokens", tokens, "Of a rank and pass, at most (32)");
    add_integer(app, "--interval", interval, "Passes between plans (4)");
    add_integer(app, "--layers-per-chunk", layers_per_chunk,
                "Layers that move together, in modes that move by chunks (1)");
    add_integer(app, "--work-per-plan-call", plan_work,
                "Of a plan, in a call: what is left is planned in the next ones; 0: all at once (50000)");
    add_integer(app, "--patience", patience, "Passes that the central scheduler waits for a layer (8)");
    add_integer(app, "--slow-rank", slow_rank, "Rank that lets bytes travel at the end of its passes only (none)");
    add_integer(app, "--seed", seed, "Of the requests (1)");
    add_integer(app, "--schedule", schedule, "Seed of where requests are served, and in what order (1)");
    add_integer(app, "--timeout-ms", timeout_ms, "Milliseconds that ranks wait for each other (10000)");
    add_integer(app, "--verify", verify, "1: compare every move with its source; 0: do not (1)");
    add_integer(app, "--reference", reference,
                "1: compare outputs with those of one rank without ballast; 0: with those of the first mode (1)");
    add_integer(app, "--turn", turn, "Passes of a mode before the next mode's (1)");
    add_integer(app, "--cards", cards, "GPUs that are used at most; with --transport gpus (0: all)");
    add_integer(app, "--small-pass", small_pass, "Tokens of a rank up to which a pass is a small one, on GPUs (128)");
    add_integer(app, "--least-batch", least_batch,
                "Choices of all ranks below which a batch is not balanced, on GPUs (0)");
    add_text(app, "--moves-with", moves_with,
             "What moves experts between GPUs: copy-engines, kernels or nccl (copy-engines)");
    add_text(app, "--json", json, "Write the results for programs", "FILE");
    add_text(app, "--trace", trace, "Write the routing as a trace of loads, a step for each pass", "FILE");
    add_text(app, "--damage", damage, "Spoil something on rank 1, to see that it shows: weight, table or move");
    add_integer(app, "--stop-rank", stop_rank, "Rank that stops answering for good; of ranks that are processes");
    add_integer(app, "--stop-at", stop_at, "In which pass, from 0 on (a quarter of --passes)");
    add_text(app, "--stop-in", stop_in, "Where in it: pass, balance (before ballast's call) or message (pass)");
  }
};

[[nodiscard]] bool on_gpus(options const& given) {
  return given.transport == "gpus" || given.transport == "gpu-processes";
}

[[nodiscard]] status refuse(auto const&... parts) {
  return {ballast::errc::invalid_option, ballast::detail::concat(parts...)};
}

// ---- from options to settings ----

[[nodiscard]] status check_sizes(options const& given) {
  struct range {
    char const* name;
    index_t value, least, most;
  };
  for (auto const& one : {range{"--ranks", given.ranks, 2, 64},
                          range{"--spare-slots", given.spare_slots, 0, 1'000},
                          range{"--layers", given.layers, 1, 1'000},
                          range{"--hidden", given.hidden, 8, 65'536},
                          range{"--intermediate", given.intermediate, 1, 65'536},
                          range{"--top-k", given.top_k, 1, 64},
                          range{"--passes", given.passes, 1, 1'000'000},
                          range{"--requests", given.requests, 1, 1'000},
                          range{"--tokens", given.tokens, 1, 65'536},
                          range{"--longest-prompt", given.longest_prompt, 1, 8'192},
                          range{"--longest-output", given.longest_output, 1, 8'192},
                          range{"--interval", given.interval, 1, 100'000},
                          range{"--layers-per-chunk", given.layers_per_chunk, 1, 1'000},
                          range{"--work-per-plan-call", given.plan_work, 0, 2'000'000'000},
                          range{"--patience", given.patience, 1, 100'000},
                          range{"--seed", given.seed, 0, 1'000'000},
                          range{"--schedule", given.schedule, 0, 1'000'000},
                          range{"--verify", given.verify, 0, 1},
                          range{"--reference", given.reference, 0, 1},
                          range{"--turn", given.turn, 1, 1'000},
                          range{"--cards", given.cards, 0, 64},
                          range{"--small-pass", given.small_pass, 1, 65'536},
                          range{"--least-batch", given.least_batch, 0, 1'000'000'000},
                          range{"--timeout-ms", given.timeout_ms, 1, 3'600'000}}) {
    if (one.value >= one.least && one.value <= one.most) { continue; }
    return refuse(one.name, " is ", one.value, ", must be from ", one.least, " to ", one.most);
  }
  if (given.switch_at && (*given.switch_at < 0 || *given.switch_at > given.passes)) {
    return refuse("--switch-at is ", *given.switch_at, ", must be from 0 to the ", given.passes, " of --passes");
  }
  if (given.slow_rank && (*given.slow_rank < 0 || *given.slow_rank >= given.ranks)) {
    return refuse("--slow-rank is ", *given.slow_rank, ", must be from 0 to ", given.ranks - 1);
  }
  return {};
}

/// How often each expert is chosen in a recording, over all of its steps.
/// @param out  out: [L, E]
[[nodiscard]] status read_skew(std::string const& file, index_t layers, index_t top_k, engine::routing_skew& out,
                               index_t& num_experts) {
  ballast_tools::trace trace;
  if (auto result = ballast_tools::read_trace(file, trace); !result.ok()) { return result; }
  if (trace.num_layers < layers) {
    return refuse(file, ": holds ", trace.num_layers, " layers, --layers asks for ", layers);
  }
  if (num_experts != 0 && trace.num_logical != num_experts) {
    return refuse(file, ": holds ", trace.num_logical, " experts, the traffic before it ", num_experts,
                  ": both must be of one model");
  }
  if (top_k > trace.num_logical) {
    return refuse("--top-k is ", top_k, ", must be at most the ", trace.num_logical, " experts of ", file);
  }
  num_experts = trace.num_logical;
  auto const width = static_cast<std::size_t>(layers) * static_cast<std::size_t>(num_experts);
  auto const in_step = static_cast<std::size_t>(trace.num_layers) * static_cast<std::size_t>(num_experts);
  out.assign(width, 0);
  for (std::size_t i = 0; i < trace.tokens.size(); ++i) {
    if (i % in_step < width) { out[i % in_step] += static_cast<double>(trace.tokens[i]); }
  }
  return {};
}

[[nodiscard]] status read_modes(options const& given, std::vector<engine::mode>& out) {
  std::vector<std::string> names;
  for (std::string_view rest = given.modes ? std::string_view{*given.modes} : std::string_view{}; !rest.empty();) {
    auto const end = std::min(rest.find(','), rest.size());
    names.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return engine::choose_modes(names, on_gpus(given), out);
}

/// @param out  out: which of the names was given; unchanged without one
template <class Kind, std::size_t n>
[[nodiscard]] status read_word(char const* option, std::optional<std::string> const& given,
                               std::array<std::pair<char const*, Kind>, n> const& known, Kind& out) {
  if (!given) { return {}; }
  std::string names;
  for (auto const& [name, kind] : known) {
    if (*given == name) {
      out = kind;
      return {};
    }
    names += (names.empty() ? "" : ", ") + std::string{name};
  }
  return refuse(option, " is '", *given, "', must be one of ", names);
}

[[nodiscard]] status read_damage(options const& given, engine::damage_kind& out) {
  using kind = engine::damage_kind;
  constexpr std::array<std::pair<char const*, kind>, 3> known{
      {{"weight", kind::weight}, {"table", kind::table}, {"move", kind::move}}};
  return read_word("--damage", given.damage, known, out);
}

[[nodiscard]] status read_mover(options const& given, engine::mover_kind& out) {
  using kind = engine::mover_kind;
  constexpr std::array<std::pair<char const*, kind>, 3> known{
      {{"copy-engines", kind::copy_engines}, {"kernels", kind::kernels}, {"nccl", kind::nccl}}};
  auto result = read_word("--moves-with", given.moves_with, known, out);
#ifndef ENGINE_HAS_NCCL
  if (result.ok() && out == kind::nccl) {
    return refuse("--moves-with nccl is not built in: configure with -DBALLAST_ENABLE_NCCL=ON, where NCCL is");
  }
#endif
  return result;
}

[[nodiscard]] status read_stop(options const& given, engine::settings const& how, engine::stop_order& out) {
  using place = engine::stop_place;
  constexpr std::array<std::pair<char const*, place>, 3> known{
      {{"pass", place::pass}, {"balance", place::balance}, {"message", place::message}}};
  if (auto result = read_word("--stop-in", given.stop_in, known, out.place); !result.ok()) { return result; }
  if (!given.stop_rank) {
    return given.stop_at || given.stop_in ? refuse("--stop-at and --stop-in say when --stop-rank stops: give it too")
                                          : status{};
  }
  if (given.transport != "processes" && given.transport != "gpu-processes") {
    return refuse("--stop-rank is for --transport processes and gpu-processes: a thread cannot be stopped alone");
  }
  out.rank = *given.stop_rank;
  out.pass = given.stop_at.value_or(given.passes / 4);
  if (out.rank < 1 || out.rank >= given.ranks) {
    return refuse("--stop-rank is ", out.rank, ", must be from 1 to ", given.ranks - 1, ": rank 0 reports");
  }
  if (out.pass < 0 || out.pass >= given.passes) {
    return refuse("--stop-at is ", out.pass, ", must be from 0 to ", given.passes - 1);
  }
  if (given.layers < 2) { return refuse("--stop-rank needs --layers 2 or more: it stops between two of them"); }
  for (auto const& one : how.modes) {
    if (one.driver != engine::driver_kind::nobody) { continue; }
    return refuse("mode '", one.name, "' cannot go on without a rank and its experts: leave it out of --modes");
  }
  return {};
}

/// What only some kinds of ranks can.
[[nodiscard]] status check_gpus(options const& given) {
  if (!on_gpus(given)) { return given.moves_with ? refuse("--moves-with is for ranks on GPUs") : status{}; }
#ifndef ENGINE_HAS_GPUS
  return refuse(
      "--transport gpus is not built in: configure with -DBALLAST_ENABLE_CUDART=ON and "
      "-DBALLAST_BUILD_BENCH=ON, where nvcc is");
#endif
  if (given.transport == "gpu-processes") {
#if !ENGINE_HAS_PROCESSES
    return refuse("--transport gpu-processes is not built in: configure with -DBALLAST_ENABLE_POSIX=ON");
#endif
    if (given.moves_with) { return refuse("--moves-with is for --transport gpus: processes move with copy engines"); }
  }
  if (given.damage) { return refuse("--damage is for ranks that are threads or processes"); }
  if (given.slow_rank) { return refuse("--slow-rank is for ranks that are threads or processes"); }
  return {};
}

[[nodiscard]] status check_outputs(options const& given, std::vector<std::string> const& inputs) {
  std::vector<ballast_tools::named_file> read{{"--traffic", inputs[0]}};
  if (inputs[1] != inputs[0]) { read.push_back({"--then", inputs[1]}); }
  std::vector<ballast_tools::named_file> written{{"the summary", std::string{ballast_tools::standard_stream}}};
  if (given.json) { written.push_back({"--json", *given.json}); }
  if (given.trace) { written.push_back({"--trace", *given.trace}); }
  return ballast_tools::check_files(read, written);
}

/// @param skews  out: of both kinds of traffic
[[nodiscard]] status make_settings(options const& given, engine::settings& how,
                                   std::vector<engine::routing_skew>& skews) {
  if (auto result = check_sizes(given); !result.ok()) { return result; }
  constexpr std::array known{"threads", "processes", "mpi", "gpus", "gpu-processes"};
  if (std::find(known.begin(), known.end(), given.transport) == known.end()) {
    return refuse("--transport is '", given.transport.value_or(""),
                  "', must be threads, processes, mpi, gpus or gpu-processes");
  }
  if (auto result = check_gpus(given); !result.ok()) { return result; }
  std::string const traces{ENGINE_TRACES};
  std::vector<std::string> const inputs{given.traffic.value_or(traces + "/translation_512tok.csv"),
                                        given.then.value_or(traces + "/intent_512tok.csv")};
  if (auto result = check_outputs(given, inputs); !result.ok()) { return result; }
  if (auto result = read_modes(given, how.modes); !result.ok()) { return result; }
  auto const comparable =
      std::ranges::count_if(how.modes, [](engine::mode const& one) { return !engine::is_nonsense(one.split); });
  if (given.reference == 0 && comparable < 2) {
    return refuse("--reference 0 compares outputs with those of the first mode: --modes must name another one too");
  }
  if (auto result = read_damage(given, how.damage); !result.ok()) { return result; }
  if (auto result = read_mover(given, how.mover); !result.ok()) { return result; }
  if (auto result = read_stop(given, how, how.stop); !result.ok()) { return result; }
  skews.resize(inputs.size());
  index_t experts = 0;
  for (std::size_t kind = 0; kind < inputs.size(); ++kind) {
    auto result = read_skew(inputs[kind], given.layers, given.top_k, skews[kind], experts);
    if (!result.ok()) { return result; }
  }
  how.shape = {given.layers, experts, given.top_k, given.hidden, given.intermediate, 16, 2};
  auto const slots = (experts + given.ranks - 1) / given.ranks + given.spare_slots;
  ballast::topology_shape const where{given.ranks, given.nodes, slots, 1};
  if (auto result = ballast::topology::validate(where); !result.ok()) { return result; }
  how.where = ballast::topology{where};
  how.initial = ballast::trivial_placement({given.layers, experts, how.where.num_slots()});
  auto const left = (given.ranks - 1) * slots;
  if (how.stop.rank >= 0 && left < experts) {
    return refuse("without rank ", how.stop.rank, " the others have ", left, " slots for ", experts,
                  " experts: give more --spare-slots, ", given.spare_slots + (experts - left) / (given.ranks - 1) + 1,
                  " will do");
  }
  how.traffic.passes = given.passes;
  how.traffic.switch_at = given.switch_at.value_or(given.passes / 2);
  how.traffic.requests_a_pass = given.requests;
  how.traffic.shortest_prompt = std::max(1, given.longest_prompt / 6);
  how.traffic.longest_prompt = given.longest_prompt;
  how.traffic.longest_output = given.longest_output;
  how.traffic.seed = static_cast<std::uint64_t>(given.seed);
  how.schedule = {given.ranks, given.tokens, static_cast<std::uint64_t>(given.schedule)};
  how.interval = given.interval;
  how.layers_per_chunk = given.layers_per_chunk;
  how.work_per_plan_call = given.plan_work;
  how.patience = given.patience;
  how.slow_rank = given.slow_rank.value_or(-1);
  how.timeout = ballast::nanoseconds_t{1'000'000} * given.timeout_ms;
  how.keeps_routing = given.trace.has_value();
  how.verifies = given.verify != 0;
  how.has_reference = given.reference != 0;
  how.turn = given.turn;
  how.bytes_a_number = on_gpus(given) ? 2 : sizeof(float);
  how.cards = given.cards;
  how.small_pass = std::min(given.small_pass, given.tokens);
  how.least_batch = static_cast<std::uint32_t>(given.least_batch);
  if (on_gpus(given)) { return engine::check_limits(how); }
  return {};
}

// ---- the run ----

/// Serve with ranks that are threads or processes, with the model in host memory.
[[nodiscard]] status serve_on_host(options const& given, engine::settings const& how,
                                   std::span<engine::routing_skew const> skews,
                                   std::span<engine::request const> requests, engine::serve_record& seen) {
  engine::model const model{how.shape, skews};
  engine::reference_outcome expected;
  if (how.has_reference) { expected = engine::prove_batch_invariance(model, requests); }
  auto const body = [&](engine::rank_links& links) { engine::serve(how, requests, expected.outcomes, links, seen); };
  if (given.transport == "threads") {
    engine::run_as_threads(how, model, body);
    return {};
  }
#if ENGINE_HAS_PROCESSES
  engine::run_as_processes(how, model, body);
  return {};
#else
  return refuse("--transport processes is not built in: configure with -DBALLAST_ENABLE_POSIX=ON");
#endif
}

/// Serve with ranks that mpirun has started. @param is_first  out: whether this is rank 0, which knows how it went
[[nodiscard]] status serve_on_mpi([[maybe_unused]] engine::settings const& how,
                                  [[maybe_unused]] std::span<engine::routing_skew const> skews,
                                  [[maybe_unused]] std::span<engine::request const> requests,
                                  [[maybe_unused]] engine::serve_record& seen, [[maybe_unused]] bool& is_first) {
#ifdef ENGINE_HAS_MPI
  engine::mpi_job const job;
  is_first = job.rank() == 0;
  if (job.num_ranks() != how.where.num_ranks()) {
    return is_first ? refuse("--ranks is ", how.where.num_ranks(), ", but mpirun has started ", job.num_ranks(),
                             ": give both the same number")
                    : status{};
  }
  engine::model const model{how.shape, skews};
  engine::reference_outcome expected;
  if (how.has_reference && is_first) { expected = engine::prove_batch_invariance(model, requests); }
  job.run(how, model, [&](engine::rank_links& links) { engine::serve(how, requests, expected.outcomes, links, seen); });
  return {};
#else
  return refuse("--transport mpi is not built in: configure with -DBALLAST_ENABLE_MPI=ON");
#endif
}

/// Serve with ranks that have cards, or parts of one.
void serve_on_gpus([[maybe_unused]] options const& given, [[maybe_unused]] engine::settings const& how,
                   [[maybe_unused]] std::span<engine::routing_skew const> skews,
                   [[maybe_unused]] std::span<engine::request const> requests,
                   [[maybe_unused]] engine::serve_record& seen) {
#ifdef ENGINE_HAS_GPUS
  std::vector<std::uint64_t> expected;
  auto const prove = [&] {
    if (how.has_reference) { expected = engine::prove_batch_invariance_on_card(how, skews, requests); }
  };
  auto const body = [&](engine::rank_links& links) { engine::serve(how, requests, expected, links, seen); };
  #if ENGINE_HAS_PROCESSES
  if (given.transport == "gpu-processes") {
    engine::run_on_gpus_as_processes(how, skews, prove, body);
    return;
  }
  #endif
  prove();
  engine::run_on_gpus(how, skews, body);
#endif
}

[[nodiscard]] status write_files(options const& given, engine::settings const& how, std::size_t num_requests,
                                 engine::serve_record const& seen) {
  if (given.json) {
    auto const text = engine::to_json(how, num_requests, seen).dump(2) + '\n';
    if (auto result = ballast_tools::write_file(*given.json, text); !result.ok()) { return result; }
  }
  if (!given.trace) { return {}; }
  auto const passes = static_cast<index_t>(seen.modes.front().steps.size());
  ballast::load_history_view const loads{seen.routing, passes, how.shape.num_layers, how.shape.num_experts};
  return ballast_tools::write_file(*given.trace, ballast_tools::format_trace(loads));
}

/// @param good  out: whether all outputs were right
[[nodiscard]] status serve_all(options const& given, bool& good) {
  engine::settings how;
  std::vector<engine::routing_skew> skews;
  if (auto result = make_settings(given, how, skews); !result.ok()) { return result; }
  auto const requests = engine::make_requests(how.traffic);
  if (requests.empty()) { return refuse("no request arrives in ", how.traffic.passes, " passes: give more --passes"); }
  engine::serve_record seen;
  bool is_first = true;
  if (on_gpus(given)) {
    serve_on_gpus(given, how, skews, requests, seen);
  } else if (given.transport == "mpi") {
    if (auto result = serve_on_mpi(how, skews, requests, seen, is_first); !result.ok()) { return result; }
    if (!is_first) { return {}; }
  } else if (auto result = serve_on_host(given, how, skews, requests, seen); !result.ok()) {
    return result;
  }
  good = engine::print_report(how, requests.size(), seen);
  if (auto result = write_files(given, how, requests.size(), seen); !result.ok()) { return result; }
  return ballast_tools::flush_standard_output();
}

}  // namespace

int main(int argc, char** argv) {
  bool good = true;
  auto const exit_status = ballast_tools::run_tool<options>(
      "engine", "Serve a small mixture-of-experts model in several modes at once, and compare them.", argc, argv,
      [&](options const& given) { return serve_all(given, good); });
  return exit_status == 0 && !good ? 1 : exit_status;
}
