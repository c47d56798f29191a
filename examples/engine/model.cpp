// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "model.hpp"

#include <ballast/digest.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace engine {

namespace {

/// What a matrix is for; part of its seed.
enum class part : std::uint64_t { query, key, value, output, gate, expert_in, expert_out, sample, embedding };

[[nodiscard]] std::uint64_t seed_of(part what, std::uint64_t layer, std::uint64_t number = 0) {
  return ballast::digest{}.add(static_cast<std::uint64_t>(what)).add(layer).add(number).value();
}

/// Numbers whose products with a row of `fan_in` numbers of variance 1 have variance `gain` squared.
void fill_matrix(std::uint64_t seed, std::size_t fan_in, float gain, std::span<float> out) {
  fill_evenly(seed, gain * std::sqrt(3.0F / static_cast<float>(fan_in)), out);
}

/// Clear the columns of [*, width] from `first` on: nothing is written to these places of a row.
void clear_columns(std::size_t width, std::size_t first, std::span<float> matrix) {
  for (std::size_t row = 0; row < matrix.size(); row += width) {
    std::fill_n(matrix.begin() + static_cast<std::ptrdiff_t>(row + first), width - first, 0.0F);
  }
}

}  // namespace

void fit_bias(std::span<double const> wanted, std::span<float const> logits, index_t top_k, std::span<float> out) {
  constexpr int rounds = 24;
  auto const width = out.size();
  auto const choices = static_cast<std::size_t>(top_k);
  auto const samples = logits.size() / width;
  auto const sum = std::accumulate(wanted.begin(), wanted.end(), 0.0);
  std::fill(out.begin(), out.end(), 0.0F);
  std::vector<float> shifted(width);
  std::vector<index_t> ids(choices);
  std::vector<float> weights(choices);
  std::vector<double> chosen(width);
  for (int round = 0; round < rounds; ++round) {
    std::fill(chosen.begin(), chosen.end(), 0.0);
    for (std::size_t sample = 0; sample < samples; ++sample) {
      for (std::size_t e = 0; e < width; ++e) { shifted[e] = logits[sample * width + e] + out[e]; }
      choose_experts(shifted, ids, weights);
      for (auto const id : ids) { ++chosen[static_cast<std::size_t>(id)]; }
    }
    for (std::size_t e = 0; e < width; ++e) {
      auto const target = wanted[e] / sum * static_cast<double>(samples * choices);
      out[e] += 0.5F * static_cast<float>(std::log((target + 0.5) / (chosen[e] + 0.5)));
    }
  }
}

model::model(model_shape const& shape, std::span<routing_skew const> skews)
    : shape_{shape}, layers_(static_cast<std::size_t>(shape.num_layers)) {
  auto const hidden = static_cast<std::size_t>(shape.hidden);
  auto const attention = static_cast<std::size_t>(shape.attention);
  for (index_t number = 0; number < shape.num_layers; ++number) {
    auto& made = layers_[static_cast<std::size_t>(number)];
    auto const seed = [&](part what) { return seed_of(what, static_cast<std::uint64_t>(number)); };
    for (auto* const matrix : {&made.query, &made.key, &made.value, &made.output}) {
      matrix->resize(hidden * attention);
    }
    fill_matrix(seed(part::query), hidden, 1, made.query);
    fill_matrix(seed(part::key), hidden, 1, made.key);
    fill_matrix(seed(part::value), hidden, 1, made.value);
    fill_matrix(seed(part::output), attention, 0.5F, made.output);
    clear_columns(hidden, free_width(), made.output);
    fill_experts(number, made);
    fill_gate(number, skews, made);
  }
}

void model::embed(std::uint64_t token, index_t kind, std::span<float> out) const {
  fill_normally(seed_of(part::embedding, 0, token), out.first(free_width()));
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(free_width()), out.end(), 0.0F);
  out[free_width() + static_cast<std::size_t>(kind)] = 1;
}

void model::fill_experts(index_t number, layer_weights& out) const {
  auto const hidden = static_cast<std::size_t>(shape_.hidden);
  auto const inner = static_cast<std::size_t>(shape_.intermediate);
  out.experts.resize(static_cast<std::size_t>(shape_.num_experts) + 1);
  for (std::size_t expert = 0; expert < out.experts.size(); ++expert) {
    auto& weights = out.experts[expert];
    weights.resize(shape_.expert_numbers());
    auto const in = std::span{weights}.first(2 * hidden * inner);
    auto const back = std::span{weights}.subspan(2 * hidden * inner);
    fill_matrix(seed_of(part::expert_in, static_cast<std::uint64_t>(number), expert), hidden, 1, in);
    fill_matrix(seed_of(part::expert_out, static_cast<std::uint64_t>(number), expert), inner, 1, back);
    clear_columns(hidden, free_width(), back);
  }
}

void model::fill_gate(index_t number, std::span<routing_skew const> skews, layer_weights& out) const {
  constexpr std::size_t samples = 512;
  auto const width = static_cast<std::size_t>(shape_.num_experts);
  auto const seed = static_cast<std::uint64_t>(number);
  out.gate.resize(static_cast<std::size_t>(shape_.hidden) * width);
  auto const free = std::span{out.gate}.first(free_width() * width);
  fill_matrix(seed_of(part::gate, seed), free_width(), 1, free);

  std::vector<float> rows(samples * free_width());
  fill_normally(seed_of(part::sample, seed), rows);
  std::vector<float> logits(samples * width);
  multiply(rows, free_width(), free, logits);
  for (std::size_t kind = 0; kind < skews.size(); ++kind) {
    fit_bias(std::span{skews[kind]}.subspan(static_cast<std::size_t>(number) * width, width), logits, shape_.top_k,
             std::span{out.gate}.subspan((free_width() + kind) * width, width));
  }
}

expert_view view_of(model_shape const& shape, std::span<float const> weights) {
  auto const matrix = static_cast<std::size_t>(shape.hidden) * static_cast<std::size_t>(shape.intermediate);
  return {weights.subspan(0, matrix), weights.subspan(matrix, matrix), weights.subspan(2 * matrix, matrix)};
}

}  // namespace engine
