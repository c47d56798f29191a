// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "reference.hpp"

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include "gate.hpp"
#include "kernels.hpp"
#include "sequences.hpp"

#include <algorithm>
#include <cstddef>

namespace engine {

namespace {

/// What all experts make of the rows. @param results  out: [n, k + 1, D]
void run_experts(model const& of, index_t layer, gated const& chosen, std::vector<float>& results) {
  auto const hidden = static_cast<std::size_t>(of.shape().hidden);
  auto const choices = static_cast<std::size_t>(of.shape().top_k) + 1;
  std::vector<float> rows;
  std::vector<float> out;
  std::vector<std::size_t> places;
  results.resize(chosen.ids.size() * hidden);
  for (index_t expert = 0; expert <= of.shape().num_experts; ++expert) {
    rows.clear();
    places.clear();
    for (std::size_t i = 0; i < chosen.ids.size(); ++i) {
      if (chosen.ids[i] != expert) { continue; }
      auto const row = std::span{chosen.rows}.subspan(i / choices * hidden, hidden);
      rows.insert(rows.end(), row.begin(), row.end());
      places.push_back(i);
    }
    out.resize(rows.size());
    run_expert(view_of(of.shape(), of.weights(layer, expert)), hidden, rows, out);
    for (std::size_t i = 0; i < places.size(); ++i) {
      std::copy_n(out.begin() + static_cast<std::ptrdiff_t>(i * hidden), hidden,
                  results.begin() + static_cast<std::ptrdiff_t>(places[i] * hidden));
    }
  }
}

}  // namespace

reference_outcome serve_alone(model const& of, std::span<request const> requests, schedule_options const& how) {
  auto const& shape = of.shape();
  auto const hidden = static_cast<std::size_t>(shape.hidden);
  auto const choices = static_cast<std::size_t>(shape.top_k) + 1;
  auto const layers = static_cast<std::size_t>(shape.num_layers);
  auto const experts = static_cast<std::size_t>(shape.num_experts);
  reference_outcome seen;
  seen.chosen.resize(static_cast<std::size_t>(shape.num_kinds) * layers * experts);
  sequences kept{of, requests};
  scheduler passes{requests, how};
  gated chosen;
  std::vector<float> results;
  while (!passes.is_done()) {
    auto const plan = passes.next();
    auto const& tokens = plan.tokens.front();
    std::vector<float> rows(tokens.size() * hidden);
    kept.embed(tokens, rows);
    for (index_t layer = 0; layer < shape.num_layers; ++layer) {
      kept.attend(layer, tokens, rows);
      run_gate(of, layer, rows, chosen);
      for (std::size_t i = 0; i < chosen.ids.size(); ++i) {
        auto const kind =
            static_cast<std::size_t>(requests[static_cast<std::size_t>(tokens[i / choices].request)].kind);
        if (chosen.ids[i] == shape.num_experts) { continue; }
        ++seen.chosen[(kind * layers + static_cast<std::size_t>(layer)) * experts +
                      static_cast<std::size_t>(chosen.ids[i])];
      }
      run_experts(of, layer, chosen, results);
      combine(chosen, results, hidden, rows);
    }
    kept.finish(tokens, rows);
  }
  for (std::size_t i = 0; i < requests.size(); ++i) { seen.outcomes.push_back(kept.outcome_of(i)); }
  return seen;
}

void require_alike(std::span<std::uint64_t const> first, std::span<std::uint64_t const> other, index_t tokens_a_rank) {
  auto const found = std::ranges::mismatch(first, other).in1;
  if (found == first.end()) { return; }
  ballast::status{ballast::errc::internal,
                  ballast::detail::concat("the model is not batch-invariant: request ", found - first.begin(),
                                          " comes out otherwise in batches of ", tokens_a_rank)}
      .or_throw();
}

reference_outcome prove_batch_invariance(model const& of, std::span<request const> requests) {
  auto const first = serve_alone(of, requests, {.num_ranks = 1, .tokens_a_rank = 1});
  for (schedule_options const how :
       {schedule_options{1, 64, 1}, schedule_options{1, 64, 2}, schedule_options{1, 23, 3}}) {
    require_alike(first.outcomes, serve_alone(of, requests, how).outcomes, how.tokens_a_rank);
  }
  return first;
}

}  // namespace engine
