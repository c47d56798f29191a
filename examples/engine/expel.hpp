// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_EXPEL_HPP
#define BALLAST_EXAMPLES_ENGINE_EXPEL_HPP

#include <ballast/status.hpp>
#include <ballast/types.hpp>

namespace engine {

/// Go on without a rank, where the control plane can.
template <class Control>
[[nodiscard]] ballast::status expel(Control& control, ballast::index_t dead) {
  if constexpr (requires { control.expel(dead); }) {
    return control.expel(dead);
  } else {
    return {ballast::errc::peer_lost, "these ranks end together", dead};
  }
}

}  // namespace engine

#endif
