// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_OUTCOME_HPP
#define BALLAST_RUNTIME_DETAIL_OUTCOME_HPP

#include <ballast/config.hpp>
#include <ballast/status.hpp>

#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// How a part of a cycle ended on this rank, and what that means for what is in force.
class outcome {
public:
  enum class ending {
    well,
    failed,     ///< nobody has committed what was under way
    undecided,  ///< the others may have committed it
    torn,       ///< the store failed in a commit: a layer may be torn
  };

  outcome() = default;
  outcome(ending how, status why) : how_{how}, why_{std::move(why)} {}

  [[nodiscard]] bool ok() const noexcept { return how_ == ending::well; }
  [[nodiscard]] ending how() const noexcept { return how_; }
  [[nodiscard]] status const& why() const noexcept { return why_; }

private:
  ending how_ = ending::well;
  status why_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
