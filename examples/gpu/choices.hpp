// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_GPU_CHOICES_HPP
#define BALLAST_EXAMPLES_GPU_CHOICES_HPP

#include <ballast/matrix_view.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gpu_example {

/// What the routers choose in one pass, [L, T, k]: as many tokens for each expert as the trace has, dealt choice by
/// choice, so that a token's experts differ.
[[nodiscard]] inline std::vector<std::int32_t> choices_of(ballast::matrix_view<ballast::load_t const> loads,
                                                          ballast::index_t num_layers, ballast::index_t num_tokens,
                                                          ballast::index_t top_k) {
  std::vector<std::int32_t> choices(static_cast<std::size_t>(num_layers) *
                                    static_cast<std::size_t>(num_tokens * top_k));
  for (ballast::index_t layer = 0; layer < num_layers; ++layer) {
    auto dealt = layer * num_tokens * top_k;
    for (ballast::index_t expert = 0; expert < loads.columns(); ++expert) {
      for (auto left = loads(layer, expert); left > 0; --left, ++dealt) {
        auto const token = dealt % num_tokens;
        auto const k = dealt / num_tokens % top_k;
        choices[static_cast<std::size_t>((layer * num_tokens + token) * top_k + k)] = expert;
      }
    }
  }
  return choices;
}

}  // namespace gpu_example

#endif
