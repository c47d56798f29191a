// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "scheduler.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>

namespace ballast_test::simulated {

namespace {

// Reading the clock takes that long.
constexpr nanoseconds clock_reading = 40;
// A thread that reads the clock in a loop lets others run after so long.
constexpr nanoseconds longest_spin = 50'000;
// No test wants more; a loop without a deadline does.
constexpr nanoseconds end_of_time = nanoseconds{100'000} * 1'000'000'000;

[[nodiscard]] nanoseconds real_time() {
  std::timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<nanoseconds>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

void really_sleep(nanoseconds duration) {
  std::timespec time{};
  time.tv_sec = static_cast<std::time_t>(duration / 1'000'000'000);
  time.tv_nsec = static_cast<long>(duration % 1'000'000'000);
  ::nanosleep(&time, nullptr);
}

}  // namespace

scheduler::scheduler(bool virtual_time, std::uint64_t seed, trace& log)
    : virtual_{virtual_time}, random_{seed}, log_{log} {
  main_.has_baton = true;
}

scheduler::~scheduler() { stop(); }

void scheduler::stop() {
  {
    std::lock_guard const held{mutex_};
    stopping_ = true;
  }
  planned_for_.notify_all();
  if (server_.joinable()) { server_.join(); }
}

nanoseconds scheduler::time() const { return virtual_ ? time_ : real_time(); }

// NOLINTNEXTLINE(misc-use-internal-linkage): which thread this is
static thread_local void* this_thread = nullptr;

nanoseconds scheduler::now() {
  if (!virtual_) { return real_time(); }
  time_ += clock_reading;
  if (!in_plan_ && !plans_.empty() && plans_.top().time + longest_spin < time_) { sleep(0); }
  check_time();
  return time_;
}

void scheduler::check_time() const {
  if (time_ < end_of_time) { return; }
  std::fputs("simulated device: time has no end; a loop without a deadline?\n", stderr);
  std::abort();
}

void scheduler::sleep(nanoseconds duration) {
  if (!virtual_) {
    duration > 0 ? really_sleep(duration) : std::this_thread::yield();
    return;
  }
  if (in_plan_) { return; }  // a host function of a stream cannot make the world wait
  constexpr nanoseconds shortest = 1'000;
  constexpr nanoseconds yield_range = 49'000;
  auto const pause =
      duration > 0 ? duration + random_.below(duration / 8 + 100) : shortest + random_.below(yield_range);
  auto& self = this_thread == nullptr ? main_ : *static_cast<host_thread*>(this_thread);
  plan_turn(self, pause > never - time_ ? never : time_ + pause);
  go_on(self, false);
}

void scheduler::call_at(nanoseconds time, std::function<void()> what) {
  plans_.push({time, random_.next(), planned_++, std::move(what), nullptr, 0});
  if (virtual_) { return; }
  if (!server_.joinable()) {
    server_ = std::thread{[this] { serve_plans(); }};
  }
  planned_for_.notify_all();
}

void scheduler::serve_plans() {
  std::unique_lock held{mutex_};
  while (!stopping_) {
    if (plans_.empty()) {
      planned_for_.wait(held);
    } else if (auto const left = plans_.top().time - real_time(); left > 0) {
      planned_for_.wait_for(held, std::chrono::nanoseconds{left});
    } else {
      auto const what = plans_.top().what;
      plans_.pop();
      what();
    }
  }
}

bool scheduler::wait(lock_type& lock, std::function<bool()> const& holds, nanoseconds deadline) {
  if (!virtual_) {
    while (!holds()) {
      if (deadline == never) {
        changed_.wait(lock);
      } else if (auto const left = deadline - real_time(); left > 0) {
        changed_.wait_for(lock, std::chrono::nanoseconds{left});
      } else {
        return false;
      }
    }
    return true;
  }
  if (in_plan_) { return holds(); }
  auto& self = this_thread == nullptr ? main_ : *static_cast<host_thread*>(this_thread);
  self.gave_up = false;
  while (!holds()) {
    if (self.gave_up || time_ >= deadline) { return false; }
    self.awaited = &holds;
    self.is_called = false;
    waiting_.push_back(&self);
    ++self.turn;
    if (deadline != never) { plans_.push({deadline, random_.next(), planned_++, {}, &self, self.turn}); }
    go_on(self, false);
    std::erase(waiting_, &self);
    self.awaited = nullptr;
    ++self.turn;
  }
  return true;
}

void scheduler::changed() {
  recheck_ = true;
  if (!virtual_) { changed_.notify_all(); }
}

void scheduler::plan_turn(host_thread& thread, nanoseconds time) {
  plans_.push({time, random_.next(), planned_++, {}, &thread, ++thread.turn});
}

void scheduler::call_waiting() {
  recheck_ = false;
  for (auto* const thread : waiting_) {
    if (thread->is_called || !(*thread->awaited)()) { continue; }
    thread->is_called = true;
    constexpr nanoseconds longest_wake_up = 4'000;
    plan_turn(*thread, time_ + random_.below(longest_wake_up));
  }
}

bool scheduler::give_up_waiting() {
  bool any = false;
  for (auto* const thread : waiting_) {
    if (thread->is_called) { continue; }
    thread->is_called = true;
    thread->gave_up = true;
    plan_turn(*thread, time_);
    any = true;
  }
  if (any && on_hang) { on_hang(); }
  return any;
}

void scheduler::go_on(host_thread& self, bool has_ended) {
  for (;;) {
    if (recheck_) { call_waiting(); }
    if (plans_.empty()) {
      if (give_up_waiting()) { continue; }
      std::fputs("simulated device: nothing is planned and nobody waits\n", stderr);
      std::abort();
    }
    auto const next = plans_.top();
    plans_.pop();
    if (next.thread != nullptr && next.turn != next.thread->turn) { continue; }
    time_ = std::max(time_, next.time);
    check_time();
    log_.add(static_cast<std::uint64_t>(next.time));
    log_.add(next.number);
    if (next.thread == nullptr) {
      in_plan_ = true;
      next.what();
      in_plan_ = false;
      continue;
    }
    if (next.thread == &self) { return; }
    return pass_baton(*next.thread, self, has_ended);
  }
}

void scheduler::pass_baton(host_thread& to, host_thread& self, bool has_ended) {
  if (!has_ended) { self.has_baton = false; }
  {
    std::lock_guard const held{to.mutex};
    to.has_baton = true;
    to.wake.notify_one();
  }
  if (has_ended) { return; }
  std::unique_lock held{self.mutex};
  self.wake.wait(held, [&] { return self.has_baton; });
}

void scheduler::start_thread(std::function<void()> body) {
  others_.push_back(std::make_unique<host_thread>());
  auto& self = *others_.back();
  ++num_running_;
  plan_turn(self, time_ + random_.below(20'000));
  threads_.emplace_back([this, &self, body = std::move(body)] {
    {
      std::unique_lock held{self.mutex};
      self.wake.wait(held, [&] { return self.has_baton; });
    }
    this_thread = &self;
    try {
      body();
    } catch (...) {
      if (!failure_) { failure_ = std::current_exception(); }
    }
    --num_running_;
    recheck_ = true;
    go_on(self, true);
  });
}

void scheduler::run_beside(std::function<void()> body) {
  auto const held = lock();
  if (virtual_) { return start_thread(std::move(body)); }
  threads_.emplace_back(std::move(body));
}

void scheduler::run(int num_threads, std::function<void(int)> const& body) {
  if (virtual_) {
    for (int i = 0; i < num_threads; ++i) {
      start_thread([&body, i] { body(i); });
    }
    lock_type none;
    while (!wait(none, [this] { return num_running_ == 0; })) {}  // ranks that hang have been told so
  } else {
    std::vector<std::thread> ranks;
    std::mutex failed;
    for (int i = 0; i < num_threads; ++i) {
      ranks.emplace_back([&, i] {
        try {
          body(i);
        } catch (...) {
          std::lock_guard const held{failed};
          if (!failure_) { failure_ = std::current_exception(); }
        }
      });
    }
    for (auto& rank : ranks) { rank.join(); }
  }
  for (auto& thread : threads_) { thread.join(); }
  threads_.clear();
  if (auto const failure = std::exchange(failure_, nullptr)) { std::rethrow_exception(failure); }
}

}  // namespace ballast_test::simulated
