// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "kernels.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace engine {

namespace {

constexpr std::size_t tile = 4;           // rows that are computed together
constexpr float half_range = 8388608.0F;  // 2^23: 24 bits of a draw are exact in a float

[[nodiscard]] float draw(generator& random) { return static_cast<float>(random() >> 40) / half_range - 1.0F; }

}  // namespace

void fill_evenly(std::uint64_t seed, float scale, std::span<float> out) {
  generator random{seed};
  for (auto& value : out) { value = scale * draw(random); }
}

void fill_normally(std::uint64_t seed, std::span<float> out) {
  constexpr int draws = 6;
  float const scale = std::sqrt(3.0F / draws);
  generator random{seed};
  for (auto& value : out) {
    float sum = 0;
    for (int i = 0; i < draws; ++i) { sum += draw(random); }
    value = scale * sum;
  }
}

void multiply(std::span<float const> rows, std::size_t depth, std::span<float const> weights, std::span<float> out) {
  auto const width = weights.size() / depth;
  auto const count = rows.size() / depth;
  std::vector<float> in(tile * depth);
  std::vector<float> sums(tile * width);
  for (std::size_t first = 0; first < count; first += tile) {
    auto const used = std::min(tile, count - first);
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(first * depth), used * depth, in.begin());
    std::fill(in.begin() + static_cast<std::ptrdiff_t>(used * depth), in.end(), 0.0F);
    std::fill(sums.begin(), sums.end(), 0.0F);
    for (std::size_t k = 0; k < depth; ++k) {
      float const* const weight = weights.data() + k * width;
      for (std::size_t row = 0; row < tile; ++row) {
        float const x = in[row * depth + k];
        float* const sum = sums.data() + row * width;
        for (std::size_t j = 0; j < width; ++j) { sum[j] += x * weight[j]; }
      }
    }
    std::copy_n(sums.begin(), used * width, out.begin() + static_cast<std::ptrdiff_t>(first * width));
  }
}

void normalise(std::span<float const> row, std::size_t count, std::span<float> out) {
  float sum = 1e-6F;
  for (std::size_t i = 0; i < count; ++i) { sum += row[i] * row[i]; }
  float const scale = std::sqrt(static_cast<float>(count) / sum);
  for (std::size_t i = 0; i < count; ++i) { out[i] = row[i] * scale; }
  for (std::size_t i = count; i < row.size(); ++i) { out[i] = row[i]; }
}

void attend(std::span<float const> query, std::span<float const> keys, std::span<float const> values,
            std::span<float> out) {
  auto const width = query.size();
  auto const count = keys.size() / width;
  std::vector<float> scores(count);
  float const scale = 1.0F / std::sqrt(static_cast<float>(width));
  for (std::size_t p = 0; p < count; ++p) {
    float score = 0;
    for (std::size_t i = 0; i < width; ++i) { score += query[i] * keys[p * width + i]; }
    scores[p] = score * scale;
  }
  float const most = *std::max_element(scores.begin(), scores.end());
  float sum = 0;
  for (auto& score : scores) {
    score = std::exp(score - most);
    sum += score;
  }
  std::fill(out.begin(), out.end(), 0.0F);
  for (std::size_t p = 0; p < count; ++p) { add_scaled(values.subspan(p * width, width), scores[p] / sum, out); }
}

void choose_experts(std::span<float const> logits, std::span<ballast::index_t> ids, std::span<float> weights) {
  std::vector<ballast::index_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  auto const logit = [&](ballast::index_t id) { return logits[static_cast<std::size_t>(id)]; };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(ids.size()), order.end(),
                    [&](auto a, auto b) { return logit(a) != logit(b) ? logit(a) > logit(b) : a < b; });
  std::copy_n(order.begin(), ids.size(), ids.begin());
  float sum = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    weights[i] = std::exp(logit(ids[i]) - logit(ids[0]));
    sum += weights[i];
  }
  for (auto& weight : weights) { weight /= sum; }
}

void run_expert(expert_view const& expert, std::size_t hidden, std::span<float const> rows, std::span<float> out) {
  auto const count = rows.size() / hidden;
  auto const width = expert.gate.size() / hidden;
  std::vector<float> gate(count * width);
  std::vector<float> up(count * width);
  multiply(rows, hidden, expert.gate, gate);
  multiply(rows, hidden, expert.up, up);
  for (std::size_t i = 0; i < gate.size(); ++i) { gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i]; }
  multiply(gate, width, expert.down, out);
}

void add_scaled(std::span<float const> row, float weight, std::span<float> to) {
  for (std::size_t i = 0; i < row.size(); ++i) { to[i] += weight * row[i]; }
}

}  // namespace engine
