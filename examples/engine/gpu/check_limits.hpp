// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_CHECK_LIMITS_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_CHECK_LIMITS_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "../settings.hpp"
#include "limits.hpp"

namespace engine {

/// Refuse what the kernels would get wrong.
/// @return `errc::invalid_option` naming the first number that is too large, or no multiple
[[nodiscard]] inline ballast::status check_limits(settings const& how) {
  auto const refuse = [](auto const&... parts) {
    return ballast::status{ballast::errc::invalid_option, ballast::detail::concat("on GPUs ", parts...)};
  };
  auto const& shape = how.shape;
  struct limit {
    char const* what;
    index_t value, most;
  };
  for (auto const& one :
       {limit{"the experts of a layer", shape.num_experts, most_experts}, limit{"--top-k", shape.top_k, most_choices},
        limit{"the slots of a rank", how.where.slots_per_rank() + how.where.reserved_slots(), most_slots},
        limit{"the slots of all ranks", how.where.num_physical_ids(), most_ids},
        limit{"the positions of a request", how.traffic.longest_prompt + how.traffic.longest_output, most_positions}}) {
    if (one.value > one.most) { return refuse(one.what, " can be ", one.most, " at most, not ", one.value); }
  }
  if (shape.hidden % tile_columns != 0) {
    return refuse("--hidden is ", shape.hidden, ", must be a multiple of ", tile_columns);
  }
  if (shape.intermediate % tile_depth != 0) {
    return refuse("--intermediate is ", shape.intermediate, ", must be a multiple of ", tile_depth);
  }
  return {};
}

}  // namespace engine

#endif
