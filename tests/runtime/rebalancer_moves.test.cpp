// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Whatever placement is put in force, every slot holds the right bytes after every chunk.
#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/patterned_weights.hpp"
#include "../support/policies.hpp"
#include "../support/random.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

struct group_shape {
  topology_shape where;
  index_t num_logical;
  index_t pairs;
};

// Remembers the first chunk after which weights and tables did not agree.
template <class Rebalancer>
struct chunk_checker final : observer {
  patterned_weights const* weights = nullptr;
  Rebalancer const* watched = nullptr;
  std::string error;
  int commits = 0;

  void on_event(event const& what) override {
    if (what.kind != event_kind::commit) { return; }
    ++commits;
    if (error.empty()) { error = weights->first_error(watched->current()); }
  }
};

// One rank's life: put one random placement after the other in force.
template <class Rebalancer, class Endpoint>
std::string walk(group_shape const& shape, std::uint64_t seed, index_t rank, Endpoint& wire,
                 std::size_t staging_limit) {
  generator random{seed};
  topology const where{shape.where};
  placement_shape const sizes{2, shape.num_logical, where.num_slots()};
  auto const initial = trivial_placement(sizes);
  patterned_weights weights{where, rank, initial, {{61, 61}, {16, 40}, {3, 7}}};
  poisoning_store<host_store> store{where, sizes.num_layers, staging_limit};
  weights.add_to(store);
  chunk_checker<Rebalancer> checker;
  Rebalancer moved{where,
                   initial,
                   {window_recorder{sizes.num_layers, sizes.num_logical},
                    keep_placement{},
                    layers_per_chunk{1},
                    {.timeout = 20'000'000'000,
                     .relay = seed % 5 < 2,
                     .max_message_bytes = seed % 3 == 0 ? 17 : 0,
                     .rounds_per_batch = seed % 4 == 1 ? 2 : 0,
                     .verify = seed % 2 == 0},
                    &checker},
                   store,
                   wire};
  checker.weights = &weights;
  checker.watched = &moved;
  moved.start().or_throw();
  auto target = initial;
  for (index_t pair = 0; pair < shape.pairs; ++pair) {
    target = pair % 2 == 0 ? random_placement(sizes, random) : nudged_placement(target, random);
    moved.apply(target).or_throw();
    if (!(moved.current() == target)) { return detail::concat("pair ", pair, ": another placement is in force"); }
  }
  return checker.commits == 0 ? "nothing was ever committed" : checker.error;
}

using moved_by_threads =
    rebalancer<window_recorder, keep_placement, layers_per_chunk<>, in_process_endpoint, poisoning_store<host_store>>;

void check_all_pairs(group_shape const& shape, std::uint64_t seed, std::size_t staging_limit = host_store::unlimited) {
  CAPTURE(shape.where.num_ranks);
  CAPTURE(shape.num_logical);
  in_process_group group{shape.where.num_ranks};
  std::vector<std::string> errors(static_cast<std::size_t>(shape.where.num_ranks));
  group.run([&](in_process_endpoint& me) {
    errors[static_cast<std::size_t>(me.rank())] = walk<moved_by_threads>(shape, seed, me.rank(), me, staging_limit);
  });
  for (auto const& error : errors) { CHECK(error == ""); }
}

}  // namespace

TEST_CASE("every slot holds the right bytes after every chunk of thousands of random moves") {
  group_shape const shapes[] = {
      {{1, 1, 8, 0}, 5, 200},  {{2, 1, 1, 0}, 2, 400},  {{2, 2, 4, 0}, 8, 400}, {{3, 3, 5, 0}, 11, 200},
      {{4, 2, 3, 1}, 12, 300}, {{6, 2, 4, 0}, 7, 200},  {{8, 1, 9, 0}, 64, 60}, {{8, 4, 2, 0}, 5, 200},
      {{16, 2, 3, 0}, 40, 40}, {{32, 4, 9, 0}, 256, 6},
  };
  std::uint64_t seed = 1;
  for (auto const& shape : shapes) { check_all_pairs(shape, seed++); }
}

TEST_CASE("a chunk that exceeds the staging limit is moved in groups of layers") {
  // One layer of this shape needs at most 8 arrivals and a spare of three tensors, 256 bytes each in staging.
  check_all_pairs({{2, 1, 8, 0}, 12, 60}, 7, std::size_t{9} * 3 * 256);
}

TEST_CASE("a full reshuffle runs with staging for one expert a rank") {
  // One expert of three tensors, 256 bytes each in staging.
  check_all_pairs({{4, 2, 4, 0}, 16, 60}, 8, std::size_t{3} * 256);
  check_all_pairs({{8, 1, 9, 0}, 64, 20}, 9, std::size_t{3} * 256);
}
