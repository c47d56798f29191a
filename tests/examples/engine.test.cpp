// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The model of examples/engine: that it is batch-invariant, on which the proof of everything else rests, and that its
// routing is that of the recordings.
#include "../../examples/engine/gate.hpp"
#include "../../examples/engine/gpu/check_limits.hpp"
#include "../../examples/engine/kernels.hpp"
#include "../../examples/engine/model.hpp"
#include "../../examples/engine/reference.hpp"
#include "../../examples/engine/report.hpp"
#include "../../examples/engine/scheduler.hpp"
#include "../../examples/engine/traffic.hpp"
#include "../../examples/support/trace.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace {

using namespace engine;

std::vector<float> some_rows(std::uint64_t seed, std::size_t count) {
  std::vector<float> rows(count);
  fill_normally(seed, rows);
  return rows;
}

std::vector<ballast::load_t> recorded(std::string const& name, std::size_t layers) {
  ballast_tools::trace trace;
  ballast_tools::read_trace(BALLAST_TEST_DATA_DIR "/traces/deepseek-v2-lite/" + name + "_512tok.csv", trace).or_throw();
  auto const in_step = static_cast<std::size_t>(trace.num_layers * trace.num_logical);
  std::vector<ballast::load_t> sums(layers * static_cast<std::size_t>(trace.num_logical));
  for (std::size_t i = 0; i < trace.tokens.size(); ++i) {
    if (i % in_step < sums.size()) { sums[i % in_step] += trace.tokens[i]; }
  }
  return sums;
}

constexpr index_t num_layers = 2;

model const& small_model() {
  static model const made = [] {
    std::vector<routing_skew> skews;
    for (auto const* name : {"translation", "intent"}) {
      auto const loads = recorded(name, num_layers);
      skews.emplace_back(loads.begin(), loads.end());
    }
    return model{model_shape{.num_layers = num_layers, .hidden = 24, .intermediate = 8, .attention = 8}, skews};
  }();
  return made;
}

std::vector<request> some_requests(std::uint64_t seed = 3) {
  traffic_options options;
  options.passes = 24;
  options.switch_at = 12;
  options.seed = seed;
  return make_requests(options);
}

/// Cosine of the angle between two lists of counts.
template <class A, class B>
double likeness(std::span<A const> a, std::span<B const> b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    auto const x = static_cast<double>(a[i]);
    auto const y = static_cast<double>(b[i]);
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return ab / std::sqrt(aa * bb);
}

}  // namespace

TEST_CASE("a row comes to the same bits wherever it stands and whatever stands beside it") {
  auto const& shape = small_model().shape();
  auto const hidden = static_cast<std::size_t>(shape.hidden);
  auto const expert = view_of(shape, small_model().weights(1, 7));
  auto const row = some_rows(1, hidden);
  std::vector<float> alone(hidden);
  run_expert(expert, hidden, row, alone);
  CHECK(std::ranges::any_of(alone, [](float x) { return x != 0; }));
  for (std::size_t batch = 1; batch <= 9; ++batch) {
    for (std::size_t place = 0; place < batch; ++place) {
      auto rows = some_rows(10 * batch + place, batch * hidden);
      std::ranges::copy(row, rows.begin() + static_cast<std::ptrdiff_t>(place * hidden));
      std::vector<float> out(rows.size());
      run_expert(expert, hidden, rows, out);
      CAPTURE(batch);
      CAPTURE(place);
      CHECK(std::ranges::equal(std::span{out}.subspan(place * hidden, hidden), alone));
    }
  }
}

TEST_CASE("products are those of the definition") {
  std::vector<float> const rows{1, 2, 3, 4, 5, 6};        // [3, 2]
  std::vector<float> const weights{1, 0, 2, 0, 10, 100};  // [2, 3]
  std::vector<float> out(9);
  multiply(rows, 2, weights, out);
  CHECK(out == std::vector<float>{1, 20, 202, 3, 40, 406, 5, 60, 610});
}

TEST_CASE("the largest logits are chosen, the lower expert where two are equal, and their weights add up to 1") {
  std::vector<float> const logits{0.5F, 2, 1, 2, -1};
  std::array<index_t, 3> ids{};
  std::array<float, 3> weights{};
  choose_experts(logits, ids, weights);
  CHECK(ids == std::array<index_t, 3>{1, 3, 2});
  CHECK(weights[0] == weights[1]);
  CHECK(weights[2] == doctest::Approx(weights[0] * std::exp(-1.0)));
  CHECK(weights[0] + weights[1] + weights[2] == doctest::Approx(1));
}

TEST_CASE("outputs of all requests are the same in every batch, and batches of other sizes and orders are compared") {
  auto const requests = some_requests();
  auto const proven = prove_batch_invariance(small_model(), requests);
  CHECK(proven.outcomes.size() == requests.size());
  // Other batches than those: an even size, an odd one, another order.
  for (schedule_options const how :
       {schedule_options{1, 16, 7}, schedule_options{1, 5, 8}, schedule_options{1, 200, 9}}) {
    CHECK(serve_alone(small_model(), requests, how).outcomes == proven.outcomes);
  }
  // Another model, or other requests, come to something else: the bits say something.
  std::vector<routing_skew> const flat(2, routing_skew(std::size_t{64} * num_layers, 1.0));
  CHECK(serve_alone(model{small_model().shape(), flat}, requests, {}).outcomes != proven.outcomes);
  auto all = proven.outcomes;
  std::ranges::sort(all);
  CHECK(std::ranges::adjacent_find(all) == all.end());
}

TEST_CASE("routing follows the recording of the kind of text, and not the other's") {
  auto const chosen = serve_alone(small_model(), some_requests(), {.num_ranks = 1, .tokens_a_rank = 64}).chosen;
  auto const width = std::size_t{64};
  auto const per_kind = width * num_layers;
  std::array const wanted{recorded("translation", num_layers), recorded("intent", num_layers)};
  for (std::size_t kind = 0; kind < 2; ++kind) {
    for (std::size_t layer = 0; layer < num_layers; ++layer) {
      CAPTURE(kind);
      CAPTURE(layer);
      auto const got = std::span<std::int64_t const>{chosen}.subspan(kind * per_kind + layer * width, width);
      auto const own = likeness(got, std::span<ballast::load_t const>{wanted[kind]}.subspan(layer * width, width));
      auto const other =
          likeness(got, std::span<ballast::load_t const>{wanted[1 - kind]}.subspan(layer * width, width));
      CHECK(own > 0.95);
      CHECK(other < own - 0.1);
    }
  }
}

TEST_CASE("every token of every request is served once, in order, on its rank, and some ranks are idle now and then") {
  auto const requests = some_requests();
  schedule_options const how{.num_ranks = 4, .tokens_a_rank = 20, .seed = 2};
  scheduler passes{requests, how};
  std::vector<index_t> next(requests.size());
  int idle = 0, prefills = 0, decodes = 0;
  while (!passes.is_done()) {
    auto const pass = passes.num_passes();
    auto const plan = passes.next();
    prefills += plan.has_prefill ? 1 : 0;
    decodes += plan.has_decode ? 1 : 0;
    for (std::size_t rank = 0; rank < plan.tokens.size(); ++rank) {
      auto tokens = plan.tokens[rank];
      CHECK(tokens.size() <= 20);
      idle += tokens.empty() && plan.num_tokens() > 0 ? 1 : 0;
      std::ranges::sort(tokens, {}, [](token const& one) { return one.position; });
      for (auto const& one : tokens) {
        auto const number = static_cast<std::size_t>(one.request);
        CHECK(passes.rank_of(number) == static_cast<index_t>(rank));
        CHECK(requests[number].arrival <= pass);
        CHECK(one.position == next[number]++);
      }
    }
  }
  for (std::size_t i = 0; i < requests.size(); ++i) { CHECK(next[i] == requests[i].num_positions()); }
  CHECK(idle > 0);
  CHECK(prefills > 0);
  CHECK(decodes > 0);
}

TEST_CASE("a dead rank's requests begin anew on the others") {
  auto const requests = some_requests();
  scheduler passes{requests, {.num_ranks = 3, .tokens_a_rank = 20}};
  for (int i = 0; i < 10; ++i) { static_cast<void>(passes.next()); }
  std::vector<std::size_t> moved;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (passes.rank_of(i) == 1) { moved.push_back(i); }
  }
  REQUIRE(!moved.empty());
  passes.move_requests(1, std::array<index_t, 2>{0, 2});
  std::vector<index_t> next(requests.size());
  while (!passes.is_done()) {
    auto const plan = passes.next();
    CHECK(plan.tokens[1].empty());
    for (auto const& tokens : plan.tokens) {
      for (auto const& one : tokens) { ++next[static_cast<std::size_t>(one.request)]; }
    }
  }
  for (auto const number : moved) { CHECK(next[number] == requests[number].num_positions()); }
}

TEST_CASE("traffic changes where it is told to, and comes in bursts") {
  auto const requests = some_requests();
  REQUIRE(!requests.empty());
  for (auto const& one : requests) {
    CHECK(one.kind == (one.arrival < 12 ? 0 : 1));
    CHECK(one.arrival % 16 < 12);
  }
  CHECK(std::ranges::is_sorted(requests, {}, &request::arrival));
  auto const same = some_requests();
  CHECK(std::ranges::equal(requests, same, [](auto const& a, auto const& b) { return a.prompt == b.prompt; }));
}

TEST_CASE("percentiles, balancedness and the answer to a change are what the steps say") {
  mode_record seen;
  for (int i = 1; i <= 100; ++i) {
    step_record step;
    step.duration = ballast::nanoseconds_t{1'000'000} * i;
    step.in_ballast = 500'000;
    step.tokens = 10;
    step.bytes = 100;
    // Two ranks, two layers: uneven for the first 60 passes, even from then on.
    step.work = i <= 60 ? std::vector<std::uint64_t>{30, 10, 10, 10} : std::vector<std::uint64_t>{20, 10, 20, 10};
    seen.steps.push_back(step);
  }
  auto const times = times_of(seen);
  CHECK(times.p50 == doctest::Approx(51));
  CHECK(times.p99 == doctest::Approx(100));
  CHECK(times.worst == doctest::Approx(100));
  CHECK(times.ballast_p50 == doctest::Approx(0.5));
  CHECK(times.tokens_a_second == doctest::Approx(1000 / 5.05));
  CHECK(balancedness_of(seen, 2, 0, 1) == doctest::Approx(30.0 / 40));
  CHECK(balancedness_of(seen, 2, 60, 100) == doctest::Approx(1));

  settings how;
  how.shape.num_layers = 2;
  how.traffic.switch_at = 50;
  auto const answer = answer_of(how, seen);
  // Eight passes of which one is uneven: (8 * 30) / (30 + 10 + 7 * 30) = 0.96, the first of at least 0.95.
  CHECK(answer.passes == std::optional<std::size_t>{17});
  CHECK(answer.bytes == 1700);
  how.traffic.switch_at = 95;
  CHECK_FALSE(answer_of(how, seen).passes.has_value());
  CHECK(answer_of(how, seen).bytes == 500);
}

TEST_CASE("what the kernels have no room for is refused, and the largest that they have is not") {
  settings how;
  how.shape = {.num_layers = 1, .num_experts = 512, .top_k = 32, .hidden = 1024, .intermediate = 768};
  how.where = ballast::topology{{.num_ranks = 6, .num_nodes = 1, .slots_per_rank = 1023, .reserved_slots = 1}};
  how.traffic.longest_prompt = 8192;
  how.traffic.longest_output = 4096;
  CHECK(check_limits(how).ok());
  auto const is_refused = [&](auto change, std::string const& text) {
    auto wrong = how;
    change(wrong);
    auto const result = check_limits(wrong);
    CHECK(result.code() == ballast::errc::invalid_option);
    CHECK_MESSAGE(result.message().find(text) != std::string::npos, result.message());
  };
  is_refused([](settings& of) { of.shape.num_experts = 513; }, "512 at most, not 513");
  is_refused([](settings& of) { of.shape.top_k = 33; }, "--top-k can be 32 at most, not 33");
  is_refused([](settings& of) { of.where = ballast::topology{{6, 1, 1024, 1}}; }, "1024 at most, not 1025");
  is_refused([](settings& of) { of.where = ballast::topology{{7, 1, 1023, 1}}; }, "6144 at most, not 7168");
  is_refused([](settings& of) { of.traffic.longest_output = 4097; }, "12288 at most, not 12289");
  is_refused([](settings& of) { of.shape.hidden = 1000; }, "--hidden is 1000, must be a multiple of 128");
  is_refused([](settings& of) { of.shape.intermediate = 100; }, "--intermediate is 100, must be a multiple of 64");
}
