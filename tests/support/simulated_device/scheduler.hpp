// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_SCHEDULER_HPP
#define BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_SCHEDULER_HPP

#include "../splitmix.hpp"
#include "simulated_device.hpp"

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <queue>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace ballast_test::simulated {

class random_numbers : public splitmix {
public:
  explicit random_numbers(std::uint64_t seed) : splitmix{seed * 0x2545f4914f6cdd1du + 1} {}
  /// In [0, bound).
  std::int64_t below(std::int64_t bound) {
    return bound <= 1 ? 0 : static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(bound));
  }
  /// In [0, 1).
  double fraction() { return static_cast<double>(next() >> 11) * 0x1p-53; }
};

/// Order of everything that happens.
class trace {
public:
  void add(std::uint64_t value) noexcept {
    digest_ = (digest_ ^ value) * 0x100000001b3u;
    digest_ ^= digest_ >> 29;
  }
  void add(std::string_view text) noexcept {
    for (auto const c : text) { add(static_cast<std::uint64_t>(static_cast<unsigned char>(c))); }
  }
  [[nodiscard]] std::uint64_t digest() const noexcept { return digest_; }

private:
  std::uint64_t digest_ = 0xcbf29ce484222325u;
};

/// Time, and who runs.
///
/// In virtual time exactly one host thread runs, the one that holds the baton. It gives the baton away where it sleeps
/// or waits; then time jumps to the earliest of what is planned, and seeded draws choose among what is planned for the
/// same time. With the real clock, threads run freely; `lock()` protects the machine and a thread of the scheduler does
/// what is planned.
class scheduler {
public:
  using lock_type = std::unique_lock<std::mutex>;
  static constexpr nanoseconds never = std::numeric_limits<nanoseconds>::max();

  scheduler(bool virtual_time, std::uint64_t seed, trace& log);
  scheduler(scheduler const&) = delete;
  scheduler& operator=(scheduler const&) = delete;
  ~scheduler();

  [[nodiscard]] bool is_virtual() const noexcept { return virtual_; }
  /// Protects the machine; holds nothing in virtual time.
  [[nodiscard]] lock_type lock() { return virtual_ ? lock_type{} : lock_type{mutex_}; }

  [[nodiscard]] nanoseconds now();
  /// The time without letting any pass.
  [[nodiscard]] nanoseconds time() const;
  /// Let time pass for the calling thread, which holds no lock. 0: a little.
  void sleep(nanoseconds duration);
  /// Do something at a time, under the lock.
  void call_at(nanoseconds time, std::function<void()> what);
  /// Wait under the lock until `holds()`. @return false when that will never be, or the time is over
  bool wait(lock_type& lock, std::function<bool()> const& holds, nanoseconds deadline = never);
  /// Under the lock: what threads wait for may hold now.
  void changed();

  void run(int num_threads, std::function<void(int)> const& body);
  void run_beside(std::function<void()> body);

  /// Do nothing any more of what is planned.
  void stop();

  /// Called, at most once a wait, when all wait for ever.
  std::function<void()> on_hang;

private:
  struct host_thread {
    std::mutex mutex;
    std::condition_variable wake;
    bool has_baton = false;
    std::function<bool()> const* awaited = nullptr;  // null: not waiting
    bool is_called = false;                          // a turn is planned
    bool gave_up = false;
    std::uint64_t turn = 0;  // turns planned for earlier numbers are void
  };
  struct plan {
    nanoseconds time;
    std::uint64_t draw;
    std::uint64_t number;
    std::function<void()> what;  // or else
    host_thread* thread = nullptr;
    std::uint64_t turn = 0;
    [[nodiscard]] bool operator>(plan const& other) const noexcept {
      return std::tie(time, draw, number) > std::tie(other.time, other.draw, other.number);
    }
  };

  void plan_turn(host_thread& thread, nanoseconds time);
  void call_waiting();
  bool give_up_waiting();
  /// Do what is planned until it is this thread's turn, or another one's and this one has ended.
  void go_on(host_thread& self, bool has_ended);
  void pass_baton(host_thread& to, host_thread& self, bool has_ended);
  void start_thread(std::function<void()> body);
  void check_time() const;
  void serve_plans();

  bool virtual_;
  random_numbers random_;
  trace& log_;
  nanoseconds time_ = 0;
  std::uint64_t planned_ = 0;
  std::priority_queue<plan, std::vector<plan>, std::greater<>> plans_;
  bool recheck_ = false;
  bool in_plan_ = false;
  host_thread main_;
  std::vector<host_thread*> waiting_;
  std::vector<std::unique_ptr<host_thread>> others_;  // for good: plans may name those that have ended
  std::vector<std::thread> threads_;
  std::size_t num_running_ = 0;  // threads that have not ended
  std::exception_ptr failure_;

  // With the real clock.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable planned_for_;
  bool stopping_ = false;
  std::thread server_;
};

}  // namespace ballast_test::simulated

#endif
