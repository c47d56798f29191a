// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_MODEL_HPP
#define BALLAST_EXAMPLES_ENGINE_MODEL_HPP

#include <ballast/types.hpp>

#include "kernels.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace engine {

using ballast::index_t;

/// Sizes of a mixture-of-experts transformer.
struct model_shape {
  index_t num_layers = 4;     ///< L
  index_t num_experts = 64;   ///< E, routed ones; expert E is shared: every token goes there too
  index_t top_k = 6;          ///< k
  index_t hidden = 32;        ///< D, of which the last `num_kinds` say what kind of text a token is of
  index_t intermediate = 16;  ///< I
  index_t attention = 16;     ///< A
  index_t num_kinds = 2;      ///< kinds of text

  [[nodiscard]] std::size_t expert_numbers() const noexcept {
    return std::size_t{3} * static_cast<std::size_t>(hidden) * static_cast<std::size_t>(intermediate);
  }
};

/// How a kind of text is routed: [L, E] how often each expert is chosen, in any unit.
using routing_skew = std::vector<double>;

/// Of what is added to these logits experts are chosen as often as `wanted` says.
/// @param wanted  [E] in any unit
/// @param logits  [samples, E]
/// @param out     out: [E]
void fit_bias(std::span<double const> wanted, std::span<float const> logits, index_t top_k, std::span<float> out);

/// The model, all of it: what a checkpoint is to an engine. Weights depend on the layer and the expert alone.
///
/// The gate is a matrix like any other. Its rows for the kinds of text are chosen so that random tokens of a kind pick
/// experts as often as the kind's `routing_skew` says; nothing that a layer computes goes into those places of a row.
///
/// @threads it never changes
class model {
public:
  /// @param skews  one for each kind
  model(model_shape const& shape, std::span<routing_skew const> skews);

  struct layer_weights {
    std::vector<float> query, key, value;     ///< [D, A]
    std::vector<float> output;                ///< [A, D]
    std::vector<float> gate;                  ///< [D, E]
    std::vector<std::vector<float>> experts;  ///< [E + 1], each gate, up and down behind each other
  };

  [[nodiscard]] model_shape const& shape() const noexcept { return shape_; }
  [[nodiscard]] layer_weights const& at(index_t number) const { return layers_[static_cast<std::size_t>(number)]; }
  /// One expert's weights as one run. @param expert  in [0, E]
  [[nodiscard]] std::span<float const> weights(index_t layer, index_t expert) const {
    return at(layer).experts[static_cast<std::size_t>(expert)];
  }
  /// Places of a row that layers write to.
  [[nodiscard]] std::size_t free_width() const noexcept {
    return static_cast<std::size_t>(shape_.hidden - shape_.num_kinds);
  }
  /// A token as the first layer gets it. @param out  [D]
  void embed(std::uint64_t token, index_t kind, std::span<float> out) const;

private:
  void fill_experts(index_t number, layer_weights& out) const;
  void fill_gate(index_t number, std::span<routing_skew const> skews, layer_weights& out) const;

  model_shape shape_;
  std::vector<layer_weights> layers_;
};

/// The matrices in a run of weights.
[[nodiscard]] expert_view view_of(model_shape const& shape, std::span<float const> weights);

}  // namespace engine

#endif
