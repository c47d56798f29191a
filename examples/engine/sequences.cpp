// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "sequences.hpp"

#include <ballast/digest.hpp>

#include "kernels.hpp"

#include <algorithm>
#include <cstddef>

namespace engine {

sequences::sequences(model const& of, std::span<request const> requests)
    : model_{of}, requests_{requests}, outputs_{requests}, histories_(requests.size()) {}

void sequences::embed(std::span<token const> tokens, std::span<float> rows) const {
  auto const width = static_cast<std::size_t>(model_.shape().hidden);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    auto const& asked = requests_[static_cast<std::size_t>(tokens[i].request)];
    model_.embed(outputs_.drawn(tokens[i]), asked.kind, rows.subspan(i * width, width));
  }
}

sequences::history& sequences::of(token const& at) {
  auto const number = static_cast<std::size_t>(at.request);
  auto& found = histories_[number];
  if (found.keys.empty()) {
    auto const positions = static_cast<std::size_t>(requests_[number].num_positions());
    std::vector<float> const empty(positions * static_cast<std::size_t>(model_.shape().attention));
    found.keys.assign(static_cast<std::size_t>(model_.shape().num_layers), empty);
    found.values = found.keys;
  }
  return found;
}

void sequences::attend(index_t layer, std::span<token const> tokens, std::span<float> rows) {
  auto const hidden = static_cast<std::size_t>(model_.shape().hidden);
  auto const width = static_cast<std::size_t>(model_.shape().attention);
  auto const number = static_cast<std::size_t>(layer);
  auto const& weights = model_.at(layer);
  std::vector<float> in(rows.size());
  for (std::size_t i = 0; i < rows.size(); i += hidden) {
    normalise(rows.subspan(i, hidden), model_.free_width(), std::span{in}.subspan(i, hidden));
  }
  std::vector<float> queries(tokens.size() * width);
  std::vector<float> keys(queries.size());
  std::vector<float> values(queries.size());
  multiply(in, hidden, weights.query, queries);
  multiply(in, hidden, weights.key, keys);
  multiply(in, hidden, weights.value, values);
  auto const part = [width](std::vector<float>& from, std::size_t i) {
    return std::span{from}.subspan(i * width, width);
  };
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    auto& kept = of(tokens[i]);
    auto const position = static_cast<std::size_t>(tokens[i].position);
    std::ranges::copy(part(keys, i), part(kept.keys[number], position).begin());
    std::ranges::copy(part(values, i), part(kept.values[number], position).begin());
  }
  std::vector<float> attended(queries.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    auto& kept = of(tokens[i]);
    auto const seen = (static_cast<std::size_t>(tokens[i].position) + 1) * width;
    engine::attend(part(queries, i), std::span{kept.keys[number]}.first(seen),
                   std::span{kept.values[number]}.first(seen), part(attended, i));
  }
  std::vector<float> out(rows.size());
  multiply(attended, width, weights.output, out);
  add_scaled(out, 1, rows);
}

void sequences::finish(std::span<token const> tokens, std::span<float const> rows) {
  auto const width = static_cast<std::size_t>(model_.shape().hidden);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    outputs_.keep(tokens[i], ballast::digest{}.add_bytes(std::as_bytes(rows.subspan(i * width, width))).value());
  }
}

}  // namespace engine
