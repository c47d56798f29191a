// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_REQUEST_OUTPUTS_HPP
#define BALLAST_EXAMPLES_ENGINE_REQUEST_OUTPUTS_HPP

#include <ballast/digest.hpp>

#include "scheduler.hpp"
#include "traffic.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace engine {

/// What has come out of the model so far.
///
/// A token that is generated is drawn from the bits of the output before it, so a wrong bit anywhere changes all that
/// follows.
class request_outputs {
public:
  explicit request_outputs(std::span<request const> requests) : requests_{requests}, outputs_(requests.size()) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      outputs_[i].resize(static_cast<std::size_t>(requests[i].num_positions()));
    }
  }

  /// What a token's embedding depends on.
  [[nodiscard]] std::uint64_t drawn(token const& at) const {
    auto const number = static_cast<std::size_t>(at.request);
    return at.position < requests_[number].prompt ? ballast::digest{}.add(at.request).add(at.position).value()
                                                  : outputs_[number][static_cast<std::size_t>(at.position) - 1];
  }
  /// @param bits  of what came out for a token
  void keep(token const& at, std::uint64_t bits) {
    outputs_[static_cast<std::size_t>(at.request)][static_cast<std::size_t>(at.position)] = bits;
  }
  /// Bits of all outputs of a request.
  [[nodiscard]] std::uint64_t outcome_of(std::size_t request) const {
    ballast::digest bits;
    for (auto const output : outputs_[request]) { bits.add(output); }
    return bits.value();
  }

private:
  std::span<request const> requests_;
  std::vector<std::vector<std::uint64_t>> outputs_;  ///< [requests], each [positions]
};

}  // namespace engine

#endif
