// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Shares refreshed on their own: between plans and during moves, through the same agreement and epochs.
#include <ballast/placement/balancedness.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/policies.hpp"
#include "../support/two_ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{2, 1, 3, 0}};
constexpr index_t num_layers = 3;
placement const initial = trivial_placement({num_layers, 4, 6});  // 0 1 2 | 3 0 1

// Expert 2 is heavy and only on rank 0; experts 0 and 1 are on both ranks.
std::vector<index_t> const heavy{2, 2, 2, 2, 0, 0, 1, 1};
// Expert 3 is heavy and only on rank 1.
std::vector<index_t> const other{3, 3, 3, 3, 0, 0, 1, 1};

/// Notes down layers and epochs of tables that come together; measures commits.
struct joint_store : host_store {
  using host_store::host_store;
  [[nodiscard]] status commit_tables(std::span<index_t const> layers, placement const& tables,
                                     std::span<epoch_t const> epochs) {
    if (fails) { return {errc::transport_failed, "no tables today"}; }
    calls.emplace_back();
    for (std::size_t i = 0; i < layers.size(); ++i) {
      calls.back() += std::to_string(layers[i]) + "@" + std::to_string(epochs[i]) + " ";
      if (auto result = host_store::commit(layers[i], {}, tables, epochs[i]); !result.ok()) { return result; }
    }
    return {};
  }
  [[nodiscard]] bool times_commits() const noexcept { return true; }
  [[nodiscard]] nanoseconds_t take_commit_time() { return is_known ? 70 : not_measured; }

  std::vector<std::string> calls;
  bool is_known = false;
  bool fails = false;
};
static_assert(joint_tables_store<joint_store> && !joint_tables_store<host_store>);

template <class Member>
void step(Member& self, std::vector<index_t> const& ids) {
  for (index_t layer = 0; layer < num_layers; ++layer) { self.moved.record_top_k(layer, ids); }
  self.moved.on_forward_pass_end().or_throw();
}

}  // namespace

TEST_CASE("shares follow the loads every M passes and no byte moves") {
  on_two_ranks([](in_process_endpoint& me) {
    member<keep_placement, all_layers<>> self{
        where, initial, {}, all_layers{}, me, {.interval = 100, .share_interval = 2, .timeout = patience}};
    self.moved.start().or_throw();
    for (int call = 1; call <= 4; ++call) { step(self, heavy); }
    // Rank 0 keeps expert 2 alone; what it shares goes to rank 1. A second refresh on like loads has nothing to
    // publish.
    CHECK(self.log.steps_of("shares") == std::vector<std::uint64_t>{2});
    CHECK(self.log.events.at(0).balancedness == doctest::Approx(1.0));
    CHECK(self.moved.current().has_shares());
    CHECK(self.moved.current().shares(0)[0] < share_one / 100);
    CHECK(self.moved.epoch(0) == 1);
    for (int call = 5; call <= 20; ++call) { step(self, other); }
    CHECK(self.moved.current().shares(0)[0] > share_one / 2);
    CHECK(self.moved.epoch(0) > 1);
    CHECK(std::ranges::equal(self.moved.current().logical_of_slot(0), initial.logical_of_slot(0)));
    CHECK(self.log.steps_of("commit").empty());
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("a store that can takes the tables of all layers at once, with shares and with a topology") {
  on_two_ranks([](in_process_endpoint& me) {
    member<keep_placement, all_layers<>, joint_store> self{
        where, initial, {}, all_layers{}, me, {.interval = 100, .share_interval = 2, .timeout = patience}};
    self.moved.start().or_throw();
    for (int call = 1; call <= 3; ++call) { step(self, heavy); }
    CHECK(self.store.calls == std::vector<std::string>{"0@1 1@1 2@1 "});
    CHECK(self.moved.current().has_shares());
    CHECK(self.moved.epoch(2) == 1);
    CHECK(self.log.layers_of("shares") == std::vector<std::vector<index_t>>{{0, 1, 2}});
    // Of a commit that measures, one time is told for all of them.
    self.store.is_known = true;
    step(self, heavy);
    CHECK(self.log.steps_of("device_times") == std::vector<std::uint64_t>{2});
    CHECK(self.log.events.back().device_commit == 70);
    self.moved.set_topology(where, self.moved.current()).or_throw();
    CHECK(self.store.calls.back() == "0@2 1@2 2@2 ");
    CHECK(self.store.calls.size() == 2);
    CHECK(self.moved.epoch(0) == 2);
    CHECK(self.first_error() == "");
  });
}

TEST_CASE("a rank whose store fails with the tables of several layers has to go") {
  on_two_ranks([](in_process_endpoint& me) {
    member<keep_placement, all_layers<>, joint_store> self{
        where, initial, {}, all_layers{}, me, {.interval = 100, .share_interval = 2, .timeout = patience}};
    self.moved.start().or_throw();
    for (index_t layer = 0; layer < num_layers; ++layer) { self.moved.record_top_k(layer, heavy); }
    self.moved.on_forward_pass_end().or_throw();
    self.store.fails = me.rank() == 1;
    for (index_t layer = 0; layer < num_layers; ++layer) { self.moved.record_top_k(layer, heavy); }
    auto const result = self.moved.on_forward_pass_end();
    if (me.rank() == 1) {
      CHECK(result.message().find("no tables today") != std::string::npos);
      CHECK(self.moved.state() == rebalancer_state::cohort_lost);
      CHECK(self.moved.epoch(0) == 0);
    } else {
      CHECK(self.moved.epoch(0) == 1);
    }
  });
}

TEST_CASE("shares that say what was so without them are not published") {
  in_process_group group{2};
  group.run([&](in_process_endpoint& me) {
    topology const alone{{2, 1, 3, 0}};
    member<rotate_placement, layers_per_chunk<>> self{alone,
                                                      trivial_placement({2, 6, 6}),
                                                      {},
                                                      layers_per_chunk<>{2},
                                                      me,
                                                      me,
                                                      {.interval = 100, .share_interval = 2, .timeout = patience}};
    self.moved.start().or_throw();
    for (int call = 0; call < 12; ++call) {
      for (index_t layer = 0; layer < 2; ++layer) {
        self.moved.record_logical(layer, std::vector<load_t>{9, 1, 4, 1, 5, 2}).or_throw();
      }
      self.moved.on_forward_pass_end().or_throw();
    }
    CHECK(self.log.steps_of("shares").empty());
    CHECK(self.moved.epoch(0) == 0);
  });
}

TEST_CASE("shares are refreshed between the chunks of a move, and moved layers get shares of their own") {
  on_two_ranks([](in_process_endpoint& me) {
    member<rotate_placement, layers_per_chunk<>> self{
        where, initial, {}, layers_per_chunk{1}, me, {.interval = 3, .share_interval = 1, .timeout = patience}};
    self.moved.start().or_throw();
    for (int call = 1; call <= 4; ++call) { step(self, heavy); }
    CHECK(self.moved.state() == rebalancer_state::moving);
    for (int call = 5; call <= 7; ++call) { step(self, call == 6 ? other : heavy); }
    CHECK(self.log.steps_of("commit") == std::vector<std::uint64_t>{5, 6, 7});
    auto const shares = self.log.steps_of("shares");
    CHECK(std::ranges::find(shares, 6u) != shares.end());
    CHECK(self.first_error() == "");
    for (index_t layer = 0; layer < num_layers; ++layer) {
      for (index_t expert = 0; expert < 4; ++expert) {
        std::uint64_t sum = 0;
        for (auto const slot : self.moved.current().replicas_of(layer, expert)) {
          sum += self.moved.current().shares(layer)[static_cast<std::size_t>(slot)];
        }
        CHECK(sum == share_one);
      }
    }
  });
}

TEST_CASE("a re-split that is good enough makes the plan unnecessary") {
  on_two_ranks([](in_process_endpoint& me) {
    member<rotate_placement, all_layers<>> self{
        where, initial,
        {},    all_layers{},
        me,    {.interval = 2, .share_interval = 50, .utilization_threshold = 0.95, .timeout = patience}};
    self.moved.start().or_throw();
    for (int call = 1; call <= 3; ++call) { step(self, heavy); }
    CHECK(self.log.events.at(0).kind == "dump");
    CHECK(self.log.events.at(0).balancedness < 0.9);
    CHECK(self.log.events.at(1).kind == "shares");
    CHECK(self.log.events.at(2).kind == "skip");
    CHECK(self.log.events.size() == 3);
  });
}
