// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "../../examples/support/interruption.hpp"

#include <ballast/types.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <csignal>
#include <thread>
#include <vector>

using ballast::index_t;
using ballast_tools::step_gate;

TEST_CASE("an open gate lets every step begin") {
  step_gate gate;
  for (index_t step = 0; step < 10; ++step) { CHECK(gate.may_begin(step)); }
  CHECK(gate.num_begun() == 10);
}

TEST_CASE("a closed gate lets the slow ones catch up, and nobody go on") {
  step_gate gate;
  CHECK(gate.may_begin(0));
  CHECK(gate.may_begin(1));
  CHECK(gate.may_begin(2));
  gate.close();
  CHECK(gate.may_begin(1));  // another thread, which comes later
  CHECK(gate.may_begin(2));
  CHECK_FALSE(gate.may_begin(3));
  CHECK_FALSE(gate.may_begin(3));
  CHECK(gate.num_begun() == 3);
  step_gate never_opened;
  never_opened.close();
  CHECK_FALSE(never_opened.may_begin(0));
}

TEST_CASE("threads that walk at their own pace all stop before the same step") {
  for (int round = 0; round < 50; ++round) {
    constexpr index_t num_steps = 100000;
    step_gate gate;
    std::vector<index_t> stopped(4, -1);
    std::vector<std::thread> threads;
    for (auto& at : stopped) {
      threads.emplace_back([&] {
        index_t step = 0;
        while (step < num_steps && gate.may_begin(step)) { ++step; }
        at = step;
      });
    }
    gate.close();
    for (auto& thread : threads) { thread.join(); }
    CHECK(std::all_of(stopped.begin(), stopped.end(), [&](index_t at) { return at == gate.num_begun(); }));
  }
}

TEST_CASE("a signal is noted instead of ending the program") {
  CHECK(ballast_tools::noted_signal() == 0);
  ballast_tools::note_signals();
  std::raise(SIGINT);
  CHECK(ballast_tools::noted_signal() == SIGINT);
  std::signal(SIGTERM, SIG_DFL);
}
