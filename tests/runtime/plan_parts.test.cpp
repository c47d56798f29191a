// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Plans that the ranks make together: each some layers, all of them the same plan in the end.
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/planning_group.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace ballast;
using namespace ballast_test;
using namespace ballast_test::planning;

TEST_CASE("ranks that plan in parts come to the plan that each would have made alone") {
  auto const same_in_parts = [](auto const& policy, index_t dead) {
    CAPTURE(dead);
    auto const parts = one_cycle(policy, {.plan_in_parts = true, .checked_layers = 2}, dead);
    auto const whole = one_cycle(policy, {.plan_in_parts = false}, dead);
    for (std::size_t rank = 0; rank < num_ranks; ++rank) {
      if (static_cast<index_t>(rank) == dead) { continue; }
      CHECK(parts.ended[rank].ok());
      CHECK(whole.ended[rank].ok());
      CHECK(parts.planned[rank] == whole.planned[rank]);
      CHECK_FALSE(parts.planned[rank] == trivial_placement(shape));
    }
  };
  for (index_t const dead : {-1, 3}) {
    same_in_parts(incremental_placement{}, dead);
    same_in_parts(incremental_placement{.max_moves_per_layer = 8, .shares = share_mode::optimal}, dead);
    same_in_parts(incremental_placement{.max_moves_in_all = 9}, dead);
    same_in_parts(headroom_placement{}, dead);
    same_in_parts(any_policy{incremental_placement{.max_moves_in_all = 9}}, dead);
    same_in_parts(any_policy{headroom_placement{}}, dead);
  }
}

TEST_CASE("each rank plans its own layers alone, and every layer is planned once") {
  std::mutex lock;
  std::vector<index_t> planned;
  watched<headroom_placement> policy;
  policy.on_layers = [&](index_t rank, std::span<index_t const> layers) {
    std::lock_guard const guard{lock};
    for (auto const layer : layers) { CHECK(layer % num_ranks == rank); }
    planned.insert(planned.end(), layers.begin(), layers.end());
  };
  auto const result = one_cycle(policy, {});
  for (auto const& ended : result.ended) { CHECK(ended.ok()); }
  std::sort(planned.begin(), planned.end());
  CHECK(planned == std::vector<index_t>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("a rank that cannot plan its layers is named to all, and nothing moves") {
  watched<headroom_placement> policy;
  policy.spoil = [](index_t rank, std::span<index_t const>, placement&) {
    return rank == 2 ? status{errc::invalid_load, "rank 2 has a headache"} : status{};
  };
  auto result = one_cycle(policy, {});
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    auto const& ended = result.ended[rank];
    CAPTURE(ended.message());
    REQUIRE_FALSE(ended.ok());
    CHECK(ended.message().find(rank == 2 ? "headache" : "rank 2 could not plan its layers") != std::string::npos);
    CHECK(result.planned[rank] == trivial_placement(shape));
  }
  // A row that lost an expert is found where it was planned.
  policy.spoil = [](index_t rank, std::span<index_t const> layers, placement& next) {
    if (rank != 1) { return status{}; }
    for (auto& expert : next.edit(layers.front()).logical_of_slot) { expert = expert == 7 ? 8 : expert; }
    next.index_replicas(layers.front());
    return status{};
  };
  result = one_cycle(policy, {});
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    REQUIRE_FALSE(result.ended[rank].ok());
    CHECK(result.planned[rank] == trivial_placement(shape));
  }
  CHECK(result.ended[1].code() == errc::policy_failed);
  CHECK(result.ended[1].message().find("expert 7") != std::string::npos);
  CHECK(result.ended[0].message().find("rank 1 could not plan its layers") != std::string::npos);
}

TEST_CASE("a policy that plans otherwise on one rank is found by who plans its layers as well") {
  watched<headroom_placement> policy;
  policy.spoil = [](index_t rank, std::span<index_t const> layers, placement& next) {
    for (auto const layer : layers) {
      if (rank != 3) { continue; }
      auto const map = next.edit(layer).logical_of_slot;
      std::rotate(map.begin(), map.begin() + 8, map.end());
      next.index_replicas(layer);
      next.make_shares_even();
    }
    return status{};
  };
  auto const unseen = one_cycle(policy, {});
  for (auto const& ended : unseen.ended) { CHECK(ended.ok()); }
  auto const seen = one_cycle(policy, {.checked_layers = 1});
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    REQUIRE_FALSE(seen.ended[rank].ok());
    CHECK(seen.planned[rank] == trivial_placement(shape));
  }
  CHECK(seen.ended[2].message().find("rank 2 and rank 3 plan layer 3 differently") != std::string::npos);
}

TEST_CASE("a rank that plans too long is waited for once, named, and can come back") {
  topology const where{{num_ranks, 1, 8, 0}};
  auto const initial = trivial_placement(shape);
  constexpr auto timeout = 400 * milliseconds;
  in_process_group group{num_ranks};
  group.run([&](in_process_endpoint& wire) {
    watched<headroom_placement> policy;
    policy.rank = wire.rank();
    auto dawdles = std::make_shared<bool>(wire.rank() == 1);
    policy.on_layers = [dawdles](index_t, std::span<index_t const>) {
      if (std::exchange(*dawdles, false)) { std::this_thread::sleep_for(std::chrono::nanoseconds{3 * timeout}); }
    };
    member<watched<headroom_placement>, layers_per_chunk<>> part{
        where, initial, policy, layers_per_chunk<>{num_layers}, wire, {.interval = 1, .timeout = timeout}};
    part.moved.start().or_throw();
    auto const pass = [&] {
      auto const loads = some_loads();
      for (index_t layer = 0; layer < num_layers; ++layer) {
        auto const row = matrix_view<load_t const>{loads, num_layers, num_experts}.row(layer);
        part.moved.record_logical(layer, row).or_throw();
      }
      return part.moved.on_forward_pass_end({.tokens = 1});
    };
    pass().or_throw();
    auto const before = std::chrono::steady_clock::now();
    auto const ended = pass();
    auto const waited = std::chrono::steady_clock::now() - before;
    CHECK_FALSE(ended.ok());
    CHECK(part.moved.state() == rebalancer_state::failed);
    if (wire.rank() != 1) {
      CHECK(ended.rank() == 1);
      CHECK(waited < std::chrono::nanoseconds{2 * timeout});
    }
    CHECK(part.moved.current() == initial);
    // Whoever is early waits for the one that is late: engines resume when they have heard that all are back.
    while (!part.moved.resume().ok()) {}
    pass().or_throw();
    pass().or_throw();
    CHECK_FALSE(part.moved.current() == initial);
    CHECK(part.first_error().empty());
  });
}

TEST_CASE("ranks that would plan on different loads hear it before they plan, or take rank 0's plan") {
  topology const where{{num_ranks, 1, 8, 0}};
  auto const initial = trivial_placement(shape);
  for (bool const adopts : {false, true}) {
    CAPTURE(adopts);
    std::vector<placement> planned(num_ranks);
    in_process_group group{num_ranks};
    group.run([&](in_process_endpoint& wire) {
      miscounting_control control{wire, wire.rank() == 3};
      miscounting_member<headroom_placement> self{where,
                                                  initial,
                                                  {},
                                                  layers_per_chunk<>{num_layers},
                                                  control,
                                                  wire,
                                                  {.interval = 1, .timeout = patience, .adopt_first_plan = adopts}};
      auto& moved = self.moved;
      moved.start().or_throw();
      status ended;
      for (int pass = 0; pass < 2; ++pass) {
        auto const loads = some_loads();
        for (index_t layer = 0; layer < num_layers; ++layer) {
          auto const row = matrix_view<load_t const>{loads, num_layers, num_experts}.row(layer);
          moved.record_logical(layer, row).or_throw();
        }
        ended = moved.on_forward_pass_end({.tokens = 1});
      }
      CHECK(ended.ok() == adopts);
      if (!adopts) { CHECK(ended.message().find("rank 3 differs from rank 0 in loads and placement") == 0); }
      CHECK((moved.current() == initial) != adopts);
      CHECK(self.first_error().empty());
      planned[static_cast<std::size_t>(wire.rank())] = moved.current();
    });
    for (auto const& one : planned) { CHECK(one == planned.front()); }
  }
}

TEST_CASE("words of one rank that stand in for another's are not taken for its rows") {
  topology const where{{num_ranks, 1, 8, 0}};
  detail::plan_parts parts{where, shape, 0, 0};
  auto plan = trivial_placement(shape);
  parts.write(plan, parts.layers());
  // As an all-gather gives them for a rank that was expelled and that the topology still has alive.
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    std::ranges::copy(parts.mine(), parts.all().begin() + static_cast<std::ptrdiff_t>(rank * parts.mine().size()));
  }
  auto const result = parts.read(plan);
  CHECK(result.code() == errc::disagreement);
  CHECK(result.rank() == 1);
  CHECK(result.message() == "plan: rank 1 planned layer 0, not layer 1");
}
