// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_RELABEL_SCOPE_HPP
#define BALLAST_POLICIES_RELABEL_SCOPE_HPP

#include <ballast/config.hpp>

#include <concepts>

BALLAST_BEGIN_NAMESPACE

/// What may change names so that a plan costs fewer bytes; each allows what those before it do.
enum class relabel_scope : unsigned char {
  none,   ///< nothing: the plan as it is
  slots,  ///< slots of a rank: an expert that a rank keeps stays in its slot
  ranks,  ///< ranks of a node
  nodes,  ///< nodes as wholes: ranks that share a node in the plan go on doing so
  all,    ///< any rank, on any node
};

/// The name of a scope.
[[nodiscard]] constexpr char const* to_string(relabel_scope scope) noexcept {
  switch (scope) {
    case relabel_scope::none: return "none";
    case relabel_scope::slots: return "slots";
    case relabel_scope::ranks: return "ranks";
    case relabel_scope::nodes: return "nodes";
    case relabel_scope::all: return "all";
  }
  return "?";
}

namespace detail {
template <class P>
concept names_what_is_interchangeable = requires(P const& policy) {
  { policy.interchangeable() } -> std::same_as<relabel_scope>;
};
}  // namespace detail

/// What may change names in a policy's plans without making them worse: `policy.interchangeable() -> relabel_scope`,
/// where the policy says so. Of one that does not, only the slots of a rank: who knows what its ranks are to it.
/// @throws nothing
template <class Policy>
[[nodiscard]] constexpr relabel_scope interchangeable([[maybe_unused]] Policy const& policy) noexcept {
  if constexpr (detail::names_what_is_interchangeable<Policy>) {
    return policy.interchangeable();
  } else {
    return relabel_scope::slots;
  }
}

BALLAST_END_NAMESPACE

#endif
