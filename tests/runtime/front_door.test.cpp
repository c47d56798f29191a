// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// How an engine holds a rebalancer. The forward header comes first: an engine's own header needs no more.
#include <ballast/fwd.hpp>

#include <memory>

namespace {

struct some_policy;
struct some_wires;
// What an engine's header says.
struct engine_of_header {
  using balancer = ballast::rebalancer<ballast::window_recorder, some_policy, ballast::layers_per_chunk<>, some_wires>;
  balancer* held = nullptr;
  // The policies that README.md recommends.
  ballast::incremental_placement* few_moves = nullptr;
  ballast::balanced_placement* best_balance = nullptr;
  ballast::balanced_shares_placement* best_shares = nullptr;
  ballast::headroom_placement* room = nullptr;
  ballast::deepseek_placement* published = nullptr;
  ballast::any_policy* any = nullptr;
  ballast::rebalancer_options* options = nullptr;
  ballast::observer* watcher = nullptr;
};

}  // namespace

#include <ballast/ballast.hpp>
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/balanced_shares.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/cohort.hpp"
#include "support/patterned_weights.hpp"
#include "support/policies.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{2, 1, 3, 0}};
constexpr index_t num_layers = 3;
constexpr index_t num_logical = 4;
placement const initial = trivial_placement({num_layers, num_logical, where.num_slots()});

using balancer = rebalancer<window_recorder, rotate_placement, layers_per_chunk<>, in_process_endpoint>;

static_assert(std::is_same_v<balancer, rebalancer<window_recorder, rotate_placement, layers_per_chunk<>,
                                                  in_process_endpoint, host_store, in_process_endpoint>>);
static_assert(std::is_nothrow_move_constructible_v<balancer> && std::is_nothrow_move_assignable_v<balancer>);
static_assert(!std::is_copy_constructible_v<balancer>);
static_assert(std::is_same_v<decltype(engine_of_header::few_moves), basic_incremental_placement<token_cost>*>);
static_assert(std::is_same_v<decltype(engine_of_header::best_balance), basic_balanced_placement<token_cost>*>);
static_assert(std::is_same_v<decltype(engine_of_header::best_shares), balanced_shares_placement*>);

/// An engine with a rebalancer as a member, made when the engine is ready for it.
struct engine {
  explicit engine(in_process_endpoint& me) : weights{where, me.rank(), initial, {{16, 16}}}, store{where, num_layers} {
    weights.add_to(store);
  }
  void step() {
    auto& held = balance.value();  // NOLINT(bugprone-unchecked-optional-access): throws where there is none
    for (index_t layer = 0; layer < num_layers; ++layer) {
      held.record_top_k(layer, std::vector<index_t>{0, 0, 0, 1, 2, 3});
    }
    held.on_forward_pass_end().or_throw();
  }

  event_log log;
  patterned_weights weights;
  host_store store;
  std::optional<balancer> balance;
};

/// A group of one rank, and its store.
struct lonely_rank {
  lonely_rank() { weights.add_to(store); }

  in_process_group group{1};
  in_process_endpoint& me = group.endpoint(0);
  topology where{{1, 1, 6, 0}};
  patterned_weights weights{where, 0, initial, {{16, 16}}};
  host_store store{where, num_layers};
};

}  // namespace

TEST_CASE("a rebalancer is moved into an engine, started or not, and in mid-cycle") {
  in_process_group group{where.num_ranks()};
  std::vector<std::string> errors(2);
  std::vector<rebalancer_state> in_mid_cycle(2);
  std::vector<epoch_t> commits(2);
  group.run([&](in_process_endpoint& me) {
    auto const at = static_cast<std::size_t>(me.rank());
    engine self{me};
    auto made = make_rebalancer(
        where, initial,
        rebalancing{window_recorder{num_layers, num_logical}, rotate_placement{}, layers_per_chunk{1},
                    rebalancer_options{.interval = 2, .timeout = patience}, static_cast<observer*>(&self.log)},
        self.store, me);
    static_assert(std::is_same_v<decltype(made), balancer>);
    self.balance = std::move(made);
    self.balance->start().or_throw();
    for (int call = 0; call < 4; ++call) { self.step(); }
    in_mid_cycle[at] = self.balance->state();
    balancer elsewhere{std::move(*self.balance)};
    self.balance = std::move(elsewhere);
    for (int call = 0; call < 2; ++call) { self.step(); }
    errors[at] = self.weights.first_error(self.balance->current());
    for (index_t layer = 0; layer < num_layers; ++layer) { commits[at] += self.balance->epoch(layer); }
  });
  CHECK(errors == std::vector<std::string>{"", ""});
  CHECK(in_mid_cycle == std::vector{rebalancer_state::moving, rebalancer_state::moving});
  CHECK(commits == std::vector<epoch_t>{num_layers, num_layers});
}

TEST_CASE("assigning a rebalancer ends the one that was there: its memory is given back before the other starts") {
  lonely_rank one;
  auto const make = [&] {
    return make_rebalancer(one.where, initial, rebalancing{window_recorder{num_layers, num_logical}, keep_placement{}},
                           one.store, one.me);
  };
  auto held = make();
  held.start().or_throw();
  auto next = make();
  held = std::move(next);
  // NOLINTNEXTLINE(bugprone-use-after-move,clang-analyzer-cplusplus.Move): that is the question
  for (auto const& refused : {next.start(), next.on_forward_pass_end(), next.resume()}) {
    CHECK(refused.code() == errc::invalid_option);
    CHECK(refused.message().find("was moved from") != std::string::npos);
  }
  // Calls that return no status have nothing else to say it with. Those that are noexcept end the program here.
  CHECK_BREAKS_CONTRACT(next.epoch(0));
  CHECK_BREAKS_CONTRACT(next.disable());
  CHECK(held.start().ok());
  CHECK(held.options().interval == rebalancer_options{}.interval);
  CHECK(held.on_forward_pass_end().ok());
}

TEST_CASE("two rebalancers do not use one store at the same time") {
  lonely_rank one;
  auto const make = [&] {
    return make_rebalancer(one.where, initial, rebalancing{window_recorder{num_layers, num_logical}, keep_placement{}},
                           one.store, one.me);
  };
  std::optional<decltype(make())> first{make()};
  auto second = make();
  first->start().or_throw();
  auto const refused = second.start();
  CHECK(refused.code() == errc::invalid_option);
  CHECK(refused.message() == "rebalancer: another rebalancer has started on this store and uses it still");
  CHECK(first->start().code() == errc::busy);
  CHECK(first->on_forward_pass_end().ok());
  first.reset();
  CHECK(second.start().ok());
}

#if !defined(__clang__) || __clang_major__ >= 17  // clang 16 does not deduce from named members

// What is left out has its default.
static_assert(std::is_same_v<decltype(rebalancing{.recorder = window_recorder{1, 1}, .policy = keep_placement{}}),
                             rebalancing<window_recorder, keep_placement, layers_per_chunk<>>>);
static_assert(
    std::is_same_v<decltype(rebalancing{
                       .recorder = window_recorder{1, 1}, .policy = keep_placement{}, .options = rebalancer_options{}}),
                   rebalancing<window_recorder, keep_placement, layers_per_chunk<>>>);
static_assert(std::is_same_v<decltype(rebalancing{.recorder = window_recorder{1, 1},
                                                  .policy = keep_placement{},
                                                  .watcher = static_cast<observer*>(nullptr)}),
                             rebalancing<window_recorder, keep_placement, layers_per_chunk<>>>);
static_assert(std::is_same_v<decltype(rebalancing{.recorder = window_recorder{1, 1},
                                                  .policy = keep_placement{},
                                                  .schedule = all_layers{},
                                                  .watcher = static_cast<observer*>(nullptr)}),
                             rebalancing<window_recorder, keep_placement, all_layers<>>>);

TEST_CASE("the parts have names") {
  lonely_rank one;
  event_log log;
  auto balance = make_rebalancer(one.where, initial,
                                 rebalancing{.recorder = window_recorder{num_layers, num_logical},
                                             .policy = any_policy{incremental_placement{}},
                                             .options = {.interval = 1},
                                             .watcher = &log},
                                 one.store, one.me);
  balance.start().or_throw();
  balance.record_top_k(0, std::vector<index_t>{0, 0, 0, 1});
  for (int call = 0; call < 2; ++call) { balance.on_forward_pass_end().or_throw(); }
  CHECK(log.steps_of("plan") == std::vector<std::uint64_t>{2});
  // As the one above, and none of it.
  rebalancing const few{.recorder = window_recorder{1, 1}, .policy = keep_placement{}, .watcher = &log};
  CHECK(few.watcher == &log);
  rebalancing const fewer{.recorder = window_recorder{1, 1}, .policy = keep_placement{}, .schedule = all_layers{}};
  CHECK(fewer.watcher == nullptr);
}

#endif
