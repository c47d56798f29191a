// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Every recorder with every policy and schedule: they compile together and run one rebalance over in-process ranks. A
// new model adds its type to one of the lists. Transports of the adapters run the same in their own tests.
#include <ballast/load/decay_recorder.hpp>
#include <ballast/load/pass_recorder.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/balanced_shares.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/patterned_weights.hpp"

#include <doctest/doctest.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{4, 2, 3, 0}};
constexpr index_t num_layers = 3;
constexpr index_t num_logical = 9;

template <class Schedule>
Schedule make_schedule() {
  if constexpr (requires { Schedule{}; }) {
    return Schedule{};
  } else {
    return Schedule{2};
  }
}

template <class Recorder, class Policy, class Schedule>
void rebalance_once() {
  in_process_group group{where.num_ranks()};
  std::vector<std::string> errors(static_cast<std::size_t>(where.num_ranks()));
  std::vector<epoch_t> commits(errors.size());
  group.run([&](in_process_endpoint& me) {
    auto const initial = trivial_placement({num_layers, num_logical, where.num_slots()});
    patterned_weights weights{where, me.rank(), initial, {{32, 32}}};
    host_store store{where, num_layers};
    weights.add_to(store);
    rebalancer moved{where, initial,
                     rebalancing{Recorder{num_layers, num_logical}, Policy{}, make_schedule<Schedule>(),
                                 rebalancer_options{.interval = 1, .timeout = patience}},
                     store, me};
    moved.start().or_throw();
    // Expert 8 is hot, so that every policy has something to gain. Enough calls for the longest schedule.
    for (int call = 0; call < 2 + 2 * num_layers * where.num_slots(); ++call) {
      for (index_t layer = 0; layer < num_layers; ++layer) {
        moved.record_top_k(layer, std::vector<index_t>{8, 8, 8, 8, 8, 8, 0, 1, 2, 3, 4, 5, 6, 7});
      }
      moved.on_forward_pass_end().or_throw();
    }
    auto const r = static_cast<std::size_t>(me.rank());
    errors[r] = weights.first_error(moved.current());
    commits[r] = moved.epoch(0);
  });
  for (std::size_t r = 0; r < errors.size(); ++r) {
    CHECK(errors[r] == "");
    CHECK(commits[r] > 0);
  }
}

template <class... Types>
struct list {};

using recorders = list<window_recorder, decay_recorder, pass_recorder>;
using policies =
    list<deepseek_placement, balanced_placement, incremental_placement, headroom_placement, balanced_shares_placement>;
using schedules =
    list<all_layers<>, layers_per_chunk<>, layers_per_chunk<every_layer, by_gain>, bytes_per_step<>, time_per_step<>>;

template <class Recorder, class Policy, class... Schedules>
void each_schedule(list<Schedules...>) {
  (rebalance_once<Recorder, Policy, Schedules>(), ...);
}
template <class Recorder, class... Policies>
void each_policy(list<Policies...>) {
  (each_schedule<Recorder, Policies>(schedules{}), ...);
}
template <class... Recorders>
void each_recorder(list<Recorders...>) {
  (each_policy<Recorders>(policies{}), ...);
}

}  // namespace

TEST_CASE("every recorder, policy and schedule run a rebalance together") { each_recorder(recorders{}); }
