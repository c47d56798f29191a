// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// On which call a rebalancer plans, and on which it moves: the table of docs/design.md.
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{2, 1, 3, 0}};
constexpr index_t num_layers = 5;
placement const initial = trivial_placement({num_layers, 4, 6});
constexpr std::uint64_t num_calls = 40;

struct outcome {
  event_log log;
  std::string error;  // first place where weights and tables differed after a call
};

// Drive two ranks through `num_calls` calls; what rank 0 saw.
template <class Policy, class Schedule>
outcome drive(index_t interval, Policy policy, Schedule schedule, placement const& start = initial) {
  std::vector<outcome> outcomes(2);
  in_process_group group{2};
  group.run([&](in_process_endpoint& me) {
    member<Policy, Schedule> self{where, start, policy, schedule, me, {.interval = interval, .timeout = patience}};
    auto& seen = outcomes[static_cast<std::size_t>(me.rank())];
    self.moved.start().or_throw();
    for (std::uint64_t call = 1; call <= num_calls; ++call) {
      for (index_t layer = 0; layer < num_layers; ++layer) {
        self.moved.record_top_k(layer, std::vector<index_t>{0, 1, 2});
      }
      self.moved.on_forward_pass_end().or_throw();
      if (seen.error.empty()) { seen.error = self.first_error(); }
    }
    seen.log = self.log;
  });
  CHECK(outcomes[0].error == "");
  CHECK(outcomes[1].error == "");
  CHECK(outcomes[0].log.steps_of("commit") == outcomes[1].log.steps_of("commit"));
  return outcomes[0];
}

// The seed's loop, written down independently: a generator that is advanced once a call, suspends N times, then dumps,
// then suspends before each chunk when there is more than one.
struct expected_calls {
  std::vector<std::uint64_t> dumps;
  std::vector<std::uint64_t> moves;
};
expected_calls seed_loop(index_t interval, index_t num_chunks) {
  expected_calls calls;
  std::uint64_t call = 1;  // the call that runs the generator now
  while (call <= num_calls) {
    call += static_cast<std::uint64_t>(interval);
    if (call > num_calls) { break; }
    calls.dumps.push_back(call);
    for (index_t chunk = 0; chunk < num_chunks; ++chunk) {
      if (num_chunks > 1) { ++call; }
      if (call <= num_calls) { calls.moves.push_back(call); }
    }
  }
  return calls;
}

}  // namespace

TEST_CASE("plans and moves fall on the calls that the seed's loop would use") {
  for (index_t const interval : {1, 2, 5}) {
    CAPTURE(interval);
    // 5 layers: one chunk, two with a short last one, five, and more room than layers.
    for (index_t const per_chunk : {5, 3, 1, 9}) {
      CAPTURE(per_chunk);
      auto const seen = drive(interval, rotate_placement{}, layers_per_chunk{per_chunk}).log;
      auto const expected = seed_loop(interval, (num_layers + per_chunk - 1) / per_chunk);
      CHECK(seen.steps_of("dump") == expected.dumps);
      CHECK(seen.steps_of("commit") == expected.moves);
    }
  }
}

TEST_CASE("the worked example: N = 5, three chunks") {
  auto const seen = drive(5, rotate_placement{}, layers_per_chunk{2}).log;
  CHECK(seen.steps_of("dump") == std::vector<std::uint64_t>{6, 14, 22, 30, 38});
  auto const commits = seen.steps_of("commit");
  CHECK(std::vector<std::uint64_t>(commits.begin(), commits.begin() + 6) ==
        std::vector<std::uint64_t>{7, 8, 9, 15, 16, 17});
  auto const layers = seen.layers_of("commit");
  CHECK(layers[0] == std::vector<index_t>{0, 1});
  CHECK(layers[1] == std::vector<index_t>{2, 3});
  CHECK(layers[2] == std::vector<index_t>{4});
}

TEST_CASE("a plan that changes nothing costs no call") {
  for (index_t const interval : {1, 2, 5}) {
    CAPTURE(interval);
    auto const seen = drive(interval, keep_placement{}, layers_per_chunk{2}).log;
    CHECK(seen.steps_of("dump") == seed_loop(interval, 0).dumps);
    CHECK(seen.steps_of("plan").size() == seen.steps_of("dump").size());
    CHECK(seen.steps_of("commit").empty());
  }
}

TEST_CASE("only changed layers are cut into chunks, unless the schedule takes every layer") {
  // Layers 0, 2 and 4 change.
  auto const changed = drive(2, rotate_placement{2}, layers_per_chunk{2}).log;
  CHECK(changed.steps_of("dump") == seed_loop(2, 2).dumps);
  CHECK(changed.layers_of("commit")[0] == std::vector<index_t>{0, 2});
  CHECK(changed.layers_of("commit")[1] == std::vector<index_t>{4});

  auto const every = drive(2, rotate_placement{2}, layers_per_chunk{2, every_layer{}}).log;
  CHECK(every.steps_of("dump") == seed_loop(2, 3).dumps);
  CHECK(every.layers_of("commit")[0] == std::vector<index_t>{0});
  CHECK(every.layers_of("commit")[1] == std::vector<index_t>{2});
  CHECK(every.layers_of("commit")[2] == std::vector<index_t>{4});
}

TEST_CASE("all_layers moves on the call that plans") {
  auto const seen = drive(2, rotate_placement{}, all_layers{}).log;
  CHECK(seen.steps_of("commit") == seen.steps_of("dump"));
  CHECK(seen.steps_of("dump") == seed_loop(2, 1).dumps);
}

TEST_CASE("a layer above the bytes of a step arrives over several calls and is committed with the last") {
  // Without replicas a rotation moves two experts of 53 bytes a layer, one each way.
  auto const single = trivial_placement({num_layers, 6, 6});
  auto const whole = drive(2, rotate_placement{}, bytes_per_step{106}, single).log;
  CHECK(whole.steps_of("dump") == seed_loop(2, 5).dumps);
  auto const halves = drive(2, rotate_placement{}, bytes_per_step{53}, single).log;
  CHECK(halves.steps_of("dump") == seed_loop(2, 10).dumps);
  auto const commits = halves.steps_of("commit");
  CHECK(std::vector<std::uint64_t>(commits.begin(), commits.begin() + 5) ==
        std::vector<std::uint64_t>{5, 7, 9, 11, 13});
  CHECK(halves.layers_of("commit")[1] == std::vector<index_t>{1});
}
