// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_MODES_HPP
#define BALLAST_EXAMPLES_ENGINE_MODES_HPP

#include <ballast/policies/any_policy.hpp>
#include <ballast/types.hpp>

#include "router.hpp"

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace engine {

/// Who decides when experts move.
enum class driver_kind : std::uint8_t {
  nobody,      ///< they stay where they are
  every_rank,  ///< a rebalancer on each rank, which all count passes alike
  scheduler,   ///< the engine's scheduler plans on rank 0 and tells the others
};

/// One way to serve with ballast, or without.
struct mode {
  std::string name;
  driver_kind driver = driver_kind::every_rank;
  split_kind split = split_kind::even;
  ballast::any_policy policy{};
  bool all_at_once = false;  ///< all layers in one chunk
  bool asynchronous = false;
  bool plans_once = false;
  bool refreshes_shares = false;
};

/// All of them, in the order in which they are shown.
[[nodiscard]] std::vector<mode> all_modes();
/// How fast an engine would be whose ranks always had the same work: `limit`, where all slots have, and
/// `limit-of-ranks`, where slots of a rank have as different work as a gate gives them. What comes out is nonsense.
[[nodiscard]] std::vector<mode> limit_modes();
/// Those with these names, in the order of `all_modes`; all of them for no names.
/// @param may_be_nonsense  whether `limit_modes` are among what can be named
/// @param out              out: unchanged on failure
/// @return a failure that names what there is not, and what there is
[[nodiscard]] status choose_modes(std::span<std::string const> names, bool may_be_nonsense, std::vector<mode>& out);

}  // namespace engine

#endif
