// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_MODEL_RUNNER_HPP
#define BALLAST_EXAMPLES_ENGINE_MODEL_RUNNER_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "balancer.hpp"
#include "exchange.hpp"
#include "scheduler.hpp"
#include "settings.hpp"
#include "traffic.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace engine {

/// The host's time in calls of ballast.
class ballast_clock {
public:
  template <class Call>
  auto timed(Call call) {
    auto const began = ballast::detail::now();
    auto result = call();
    spent_ += ballast::detail::now() - began;
    return result;
  }
  void reset() noexcept { spent_ = 0; }
  [[nodiscard]] ballast::nanoseconds_t spent() const noexcept { return spent_; }

private:
  ballast::nanoseconds_t spent_ = 0;
};

/// What a runner works on; all of it outlives the runner.
struct runner_parts {
  settings const& how;
  std::size_t number;  ///< of the mode
  std::span<request const> requests;
  ballast::observer& watcher;
  ballast_clock& clock;

  [[nodiscard]] mode const& of() const { return how.modes[number]; }
};

/// The model on one rank in one mode: weights, caches and the forward pass, and the balancer that moves the weights.
class model_runner {
public:
  model_runner() = default;
  model_runner(model_runner const&) = delete;
  model_runner& operator=(model_runner const&) = delete;
  virtual ~model_runner() = default;

  /// On all ranks, before the first pass.
  [[nodiscard]] virtual status start() = 0;
  /// Null where nothing moves.
  [[nodiscard]] virtual balancer* own_balancer() = 0;

  /// Set a pass off. It may still be running on return.
  ///
  /// @param tokens       of this rank; a rank without any takes part all the same
  /// @param in_batch     tokens of all ranks
  /// @param halfway      called once in the middle, or before it is set off on a device
  /// @return why the ranks could not exchange rows; `errc::peer_lost` and others name the rank
  [[nodiscard]] virtual status launch(std::span<token const> tokens, std::int64_t in_batch,
                                      std::function<void()> const& halfway) = 0;
  /// Wait for what came out of it, until a deadline.
  [[nodiscard]] virtual status finish() = 0;

  /// [L] rows that this rank's slots computed in the last pass, those of the shared expert left out.
  [[nodiscard]] virtual std::span<std::uint64_t const> work() const = 0;
  /// [L, E] what the gate chose for this rank's tokens in the last pass; empty where that is not kept.
  [[nodiscard]] virtual std::span<std::int64_t const> routing() const = 0;
  /// Bits of all outputs of a request that this rank serves.
  [[nodiscard]] virtual std::uint64_t outcome_of(std::size_t request) const = 0;

  /// Go on without a rank, which is marked dead in `where`.
  [[nodiscard]] virtual status go_on_without(index_t dead, ballast::topology const& where) = 0;
};

}  // namespace engine

#endif
