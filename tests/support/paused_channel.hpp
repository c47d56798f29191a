// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_PAUSED_CHANNEL_HPP
#define BALLAST_TESTS_SUPPORT_PAUSED_CHANNEL_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "support/group_runner.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace ballast_test {

/// An engine's all-gather whose ranks are stopped for as long as a test likes, in a time that nobody has to wait for.
///
/// Ranks are threads. Each runs until it gathers, sleeps or ends; when none runs any more, the clock jumps to whatever
/// happens next: all ranks meet in a gather, a deadline passes, a sleeper wakes. So a run depends on its seed alone.
/// The channel keeps the contract of `all_gather_function` and no more: a rank that is stopped in the last instant of
/// its call, until after its deadline, fails where the others have succeeded.
class paused_channel {
public:
  /// How long a rank is stopped in the last instant of a gather in which all have met.
  using stop = std::function<ballast::nanoseconds_t(ballast::index_t rank)>;

  explicit paused_channel(ballast::index_t num_ranks) {
    for (ballast::index_t rank = 0; rank < num_ranks; ++rank) { ranks_.push_back(std::make_unique<rank_state>()); }
  }

  /// Run `body(rank)` on a thread for each rank.
  template <class Body>
  void run(Body body) {
    num_running_ = ranks_.size();
    std::vector<std::thread> threads;
    for (ballast::index_t rank = 0; rank < num_ranks(); ++rank) {
      threads.emplace_back([this, rank, &body] {
        body(rank);
        block(rank, activity::ended, never);
      });
    }
    for (auto& thread : threads) { thread.join(); }
  }

  [[nodiscard]] ballast::index_t num_ranks() const { return static_cast<ballast::index_t>(ranks_.size()); }
  void stop_after_gathers(stop how_long) { stop_ = std::move(how_long); }

  void sleep(ballast::index_t rank, ballast::nanoseconds_t duration) {
    if (duration > 0) { block(rank, activity::sleeps, time_ + duration); }
  }
  /// Wait for all ranks to come here. Tests know more than the ranks.
  void meet(ballast::index_t rank) { block(rank, activity::meets, never); }

  /// The gathers of the call that this rank makes next fail after `timeout`.
  void begin_call(ballast::index_t rank, ballast::nanoseconds_t timeout) { at(rank).deadline = time_ + timeout; }

  ballast::status gather(ballast::index_t rank, std::span<std::uint64_t const> mine, std::span<std::uint64_t> all) {
    auto& self = at(rank);
    self.words.assign(mine.begin(), mine.end());
    self.met = false;
    block(rank, activity::gathers, self.deadline);
    if (self.met && time_ <= self.deadline) {
      std::copy(self.all.begin(), self.all.end(), all.begin());
      return {};
    }
    // Not by `deadline_exceeded`: in the time of the control plane, which is not this one, the deadline lies far ahead.
    return {ballast::errc::transport_failed, ballast::detail::concat("rank ", rank, " waited in vain")};
  }

private:
  enum class activity { runs, gathers, sleeps, meets, ended };
  struct rank_state {
    std::condition_variable wake;
    activity does = activity::runs;
    ballast::nanoseconds_t until = 0;
    ballast::nanoseconds_t deadline = 0;
    std::vector<std::uint64_t> words;
    std::vector<std::uint64_t> all;  // of a gather in which all have met
    bool met = false;
  };
  static constexpr auto never = std::numeric_limits<ballast::nanoseconds_t>::max();
  static constexpr ballast::nanoseconds_t time_of_gather = 1000;

  [[nodiscard]] rank_state& at(ballast::index_t rank) { return *ranks_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] bool all_do(activity what) const {
    return std::ranges::all_of(ranks_, [&](auto const& rank) { return rank->does == what; });
  }

  void block(ballast::index_t rank, activity what, ballast::nanoseconds_t until) {
    std::unique_lock lock{mutex_};
    auto& self = at(rank);
    self.does = what;
    self.until = until;
    if (--num_running_ == 0) { go_on(); }
    if (what == activity::ended) { return; }
    self.wake.wait(lock, [&] { return self.does == activity::runs; });
  }
  void let_run(rank_state& rank) {
    rank.does = activity::runs;
    ++num_running_;
    rank.wake.notify_all();
  }

  void go_on() {
    if (all_do(activity::ended)) { return; }
    if (all_do(activity::meets)) {
      for (auto& rank : ranks_) { let_run(*rank); }
      return;
    }
    if (all_do(activity::gathers)) { gather_all(); }
    if (num_running_ > 0) { return; }
    auto const next = std::ranges::min_element(
        ranks_, {}, [](auto const& rank) { return std::max<ballast::nanoseconds_t>(rank->until, 0); });
    time_ = std::max(time_, (*next)->until);
    let_run(**next);
  }
  void gather_all() {
    time_ += time_of_gather;
    std::vector<std::uint64_t> all;
    for (auto const& rank : ranks_) { all.insert(all.end(), rank->words.begin(), rank->words.end()); }
    for (ballast::index_t rank = 0; rank < num_ranks(); ++rank) {
      auto& other = at(rank);
      other.all = all;
      other.met = true;
      auto const pause = stop_ ? stop_(rank) : 0;
      if (pause > 0) {
        other.does = activity::sleeps;
        other.until = time_ + pause;
      } else {
        let_run(other);
      }
    }
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<rank_state>> ranks_;
  std::size_t num_running_ = 0;
  ballast::nanoseconds_t time_ = 0;
  stop stop_;
};

}  // namespace ballast_test

#endif
