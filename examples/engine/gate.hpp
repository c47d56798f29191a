// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GATE_HPP
#define BALLAST_EXAMPLES_ENGINE_GATE_HPP

#include "kernels.hpp"
#include "model.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace engine {

/// What the gate of one layer makes of the rows of a pass.
struct gated {
  std::vector<float> rows;     ///< [n, D] as the experts get them
  std::vector<index_t> ids;    ///< [n, k + 1] experts of a row; the last one is E, the shared expert
  std::vector<float> weights;  ///< [n, k + 1]; 1 for the shared expert
};

/// @param out  its memory is used again
inline void run_gate(model const& of, index_t layer, std::span<float const> rows, gated& out) {
  auto const& shape = of.shape();
  auto const hidden = static_cast<std::size_t>(shape.hidden);
  auto const width = static_cast<std::size_t>(shape.num_experts);
  auto const top_k = static_cast<std::size_t>(shape.top_k);
  auto const count = rows.size() / hidden;
  out.rows.resize(rows.size());
  for (std::size_t i = 0; i < rows.size(); i += hidden) {
    normalise(rows.subspan(i, hidden), of.free_width(), std::span{out.rows}.subspan(i, hidden));
  }
  std::vector<float> logits(count * width);
  multiply(out.rows, hidden, of.at(layer).gate, logits);
  out.ids.assign(count * (top_k + 1), shape.num_experts);
  out.weights.assign(count * (top_k + 1), 1);
  for (std::size_t i = 0; i < count; ++i) {
    auto const at = i * (top_k + 1);
    choose_experts(std::span{logits}.subspan(i * width, width), std::span{out.ids}.subspan(at, top_k),
                   std::span{out.weights}.subspan(at, top_k));
  }
}

/// Add what the experts made of the rows, in the order of each row's choices.
/// @param results  [n, k + 1, D]
inline void combine(gated const& of, std::span<float const> results, std::size_t hidden, std::span<float> rows) {
  auto const choices = of.ids.size() * hidden / std::max<std::size_t>(rows.size(), 1);
  for (std::size_t i = 0; i < of.ids.size(); ++i) {
    add_scaled(results.subspan(i * hidden, hidden), of.weights[i], rows.subspan(i / choices * hidden, hidden));
  }
}

}  // namespace engine

#endif
