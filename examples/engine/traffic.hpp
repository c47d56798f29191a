// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_TRAFFIC_HPP
#define BALLAST_EXAMPLES_ENGINE_TRAFFIC_HPP

#include <ballast/types.hpp>

#include "kernels.hpp"

#include <cstdint>
#include <vector>

namespace engine {

using ballast::index_t;

/// What one user asks for.
struct request {
  index_t arrival = 0;  ///< pass before which it comes
  index_t prompt = 1;   ///< tokens
  index_t output = 1;   ///< tokens to generate
  index_t kind = 0;     ///< of text

  /// Tokens that are computed; the last one that is generated is not.
  [[nodiscard]] index_t num_positions() const noexcept { return prompt + output - 1; }
};

/// What the load generator makes.
struct traffic_options {
  index_t passes = 160;         ///< in which requests arrive
  index_t switch_at = 80;       ///< requests are of kind 1 from this pass on
  index_t requests_a_pass = 2;  ///< in the mean; they come in bursts
  index_t shortest_prompt = 8;
  index_t longest_prompt = 48;
  index_t longest_output = 24;
  std::uint64_t seed = 1;
};

/// Requests in the order in which they arrive. In every sixteen passes the last four bring none.
[[nodiscard]] inline std::vector<request> make_requests(traffic_options const& options) {
  constexpr index_t period = 16, busy = 12;
  generator random{options.seed};
  auto const between = [&random](index_t least, index_t most) {
    return least + static_cast<index_t>(random.below(static_cast<std::uint64_t>(most - least) + 1));
  };
  std::vector<request> made;
  for (index_t pass = 0; pass < options.passes; ++pass) {
    if (pass % period >= busy) { continue; }
    for (auto more = between(0, 2 * options.requests_a_pass * period / busy); more > 0; --more) {
      made.push_back({pass, between(options.shortest_prompt, options.longest_prompt),
                      between(1, options.longest_output), pass < options.switch_at ? 0 : 1});
    }
  }
  return made;
}

}  // namespace engine

#endif
