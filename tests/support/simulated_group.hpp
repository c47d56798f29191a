// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SIMULATED_GROUP_HPP
#define BALLAST_TESTS_SUPPORT_SIMULATED_GROUP_HPP

#include <ballast/control/engine_control.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "support/simulated_device/scheduler.hpp"
#include "support/simulated_device/simulated_device.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace ballast_test {

/// An engine's all-gather among the ranks of a simulated machine, with seeded delays; virtual time only.
///
/// It keeps the contract of `all_gather_function` and no more: words that arrive after a rank's deadline are lost on
/// that rank, and so a gather may end well on one and fail on another.
class simulated_channel {
public:
  simulated_channel(ballast::index_t num_ranks, std::uint64_t seed, ballast::nanoseconds_t longest_delay)
      : random_{seed}, longest_delay_{longest_delay}, open_{std::make_shared<round>()} {
    open_->words.resize(static_cast<std::size_t>(num_ranks));
  }

  [[nodiscard]] ballast::index_t num_ranks() const { return static_cast<ballast::index_t>(open_->words.size()); }

  [[nodiscard]] ballast::status gather(ballast::index_t rank, std::span<std::uint64_t const> mine,
                                       std::span<std::uint64_t> all, ballast::nanoseconds_t timeout) {
    auto const deadline = deadline_after(timeout);
    auto const here = open_;
    here->words[static_cast<std::size_t>(rank)].assign(mine.begin(), mine.end());
    if (++here->num_present == num_ranks()) {
      here->complete = true;
      open_ = std::make_shared<round>();
      open_->words.resize(here->words.size());
      simulated::something_changed();
    }
    if (!simulated::wait_until([&] { return here->complete; }, deadline)) { return leave(*here, rank); }
    auto const delay = random_.below(longest_delay_) + 1'000;
    auto const now = simulated::now();
    if (delay > deadline - now) {
      simulated::sleep_for(std::max<ballast::nanoseconds_t>(deadline - now, 1));
      return {ballast::errc::deadline_exceeded, ballast::detail::concat("rank ", rank, " heard the others too late")};
    }
    simulated::sleep_for(delay);
    auto to = all.begin();
    for (auto const& words : here->words) { to = std::copy(words.begin(), words.end(), to); }
    return {};
  }

  /// A control plane on this channel.
  [[nodiscard]] auto control(ballast::index_t rank) {
    auto all_gather = [this, rank](std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                   ballast::nanoseconds_t timeout) { return gather(rank, mine, all, timeout); };
    return ballast::engine_control{rank, num_ranks(), all_gather, {.frame_words = 96}};
  }

  /// The engine's own exchange, which waits as long as it takes.
  [[nodiscard]] std::vector<std::uint64_t> tell_all(ballast::index_t rank, std::uint64_t word) {
    std::vector<std::uint64_t> words(open_->words.size());
    gather(rank, {&word, 1}, words, forever).or_throw();
    return words;
  }

private:
  struct round {
    std::vector<std::vector<std::uint64_t>> words;
    ballast::index_t num_present = 0;
    bool complete = false;
  };
  static constexpr auto forever = std::numeric_limits<ballast::nanoseconds_t>::max();

  [[nodiscard]] static ballast::nanoseconds_t deadline_after(ballast::nanoseconds_t timeout) {
    auto const now = simulated::now();
    return timeout > forever - now ? forever : now + timeout;
  }
  [[nodiscard]] ballast::status leave(round& from, ballast::index_t rank) {
    from.words[static_cast<std::size_t>(rank)].clear();
    --from.num_present;
    for (ballast::index_t other = 0; other < num_ranks(); ++other) {
      if (other != rank && from.words[static_cast<std::size_t>(other)].empty()) {
        return {ballast::errc::deadline_exceeded, ballast::detail::concat("rank ", other, " did not come in time"),
                other};
      }
    }
    return {ballast::errc::deadline_exceeded, "not all ranks came in time"};
  }

  simulated::random_numbers random_;
  ballast::nanoseconds_t longest_delay_;
  std::shared_ptr<round> open_;
};

}  // namespace ballast_test

#endif
