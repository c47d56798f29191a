// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/profiling.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

namespace {

using namespace ballast;

// The thread sanitizer is the judge: the first call of a program is the one that looks for a profiler.
TEST_CASE("threads that come first at once may all mark the timeline") {
  std::atomic<int> waiting{4};
  std::atomic<std::size_t> heard{0};
  struct counter final : observer {
    explicit counter(std::atomic<std::size_t>& count) : heard{count} {}
    void on_event(event const&) override { heard.fetch_add(1, std::memory_order_relaxed); }
    std::atomic<std::size_t>& heard;
  };
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&waiting, &heard, thread] {
      counter next{heard};
      cudart::profiler_marks marks{&next};
      // Relaxed: the threads shall meet and yet see nothing of one another.
      waiting.fetch_sub(1, std::memory_order_relaxed);
      while (waiting.load(std::memory_order_relaxed) != 0) {}
      if (thread % 2 == 0) {
        cudart::profiler_range const range{"test"};
        marks.on_event({});
      } else {
        marks.on_event({});
      }
    });
  }
  threads.clear();
  CHECK(heard == 4);
}

}  // namespace
