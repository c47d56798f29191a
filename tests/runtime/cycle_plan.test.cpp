// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What a cycle moves and in which portions, and how a plan travels.
#include <ballast/policies/balanced_shares.hpp>
#include <ballast/runtime/detail/cycle_plan.hpp>
#include <ballast/runtime/detail/plan_message.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/schedule/schedules.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

namespace {

using namespace ballast;

topology const where{{4, 2, 4, 0}};
constexpr placement_shape shape{6, 10, 16};
constexpr std::size_t expert_bytes = 256;
constexpr std::size_t layer_bytes = 4 * expert_bytes;

struct plan_of {
  explicit plan_of(std::size_t staging_limit, std::uint64_t seed) : store{where, shape.num_layers, staging_limit} {
    for (index_t layer = 0; layer < shape.num_layers; ++layer) {
      store.add(layer, "w", weights.data() + static_cast<std::size_t>(layer) * layer_bytes, expert_bytes).or_throw();
    }
    ballast_test::generator random{seed};
    from = ballast_test::random_placement(shape, random);
    to = ballast_test::random_placement(shape, random);
    to.copy_layer(from, 2);
  }
  std::array<std::byte, 6 * layer_bytes> weights{};
  host_store store;
  placement from;
  placement to;
  std::vector<load_t> tokens = std::vector<load_t>(60, 7);
  [[nodiscard]] matrix_view<load_t const> loads() const { return {tokens, shape.num_layers, shape.num_logical}; }
};

std::size_t most_arrivals(layer_transfer const& transfer) {
  std::vector<index_t> staged(static_cast<std::size_t>(where.num_ranks()));
  detail::staged_experts(where, transfer, staged);
  return static_cast<std::size_t>(*std::max_element(staged.begin(), staged.end()));
}

}  // namespace

TEST_CASE("groups take every changed layer once, in order, and fit staging together") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    plan_of const in{9 * expert_bytes, seed};
    layers_per_chunk const schedule{4};
    detail::cycle_plan<layers_per_chunk<>, host_store> plan{where, schedule, in.store};
    REQUIRE(plan.assign(in.from, in.to, in.loads(), {}).ok());
    REQUIRE(plan.num_chunks() == 2);
    CHECK(plan.num_steps() == 2);
    std::vector<index_t> seen;
    std::vector<layer_transfer const*> group;
    std::int64_t bytes = 0;
    for (index_t c = 0; c < plan.num_chunks(); ++c) {
      auto const chunk = plan.chunk(c);
      CHECK(plan.spread_layer(chunk) == nullptr);
      for (auto at = chunk.begin; at < chunk.end;) {
        at = plan.next_group(at, chunk.end, group);
        std::size_t staged = 0;
        for (auto const* const transfer : group) {
          seen.push_back(transfer->layer);
          staged += most_arrivals(*transfer) * expert_bytes;
          bytes += plan.bytes_of(*transfer);
        }
        CHECK(staged <= in.store.staging_limit());
      }
    }
    CHECK(seen == std::vector<index_t>{0, 1, 3, 4, 5});
    CHECK(bytes == plan.num_bytes());
    CHECK(bytes == plan.num_moves() * static_cast<std::int64_t>(expert_bytes));
  }
}

TEST_CASE("a layer that does not fit staging has waypoints and a group of its own; less than an expert is refused") {
  plan_of const in{expert_bytes, 3};
  all_layers const schedule;
  detail::cycle_plan<all_layers<>, host_store> plan{where, schedule, in.store};
  REQUIRE(plan.assign(in.from, in.to, in.loads(), {}).ok());
  std::vector<layer_transfer const*> group;
  auto const chunk = plan.chunk(0);
  for (auto at = chunk.begin; at < chunk.end;) {
    at = plan.next_group(at, chunk.end, group);
    if (group.empty()) { continue; }
    REQUIRE(group.size() == 1);
    auto const* const split = plan.split_of(group.front()->layer);
    if (most_arrivals(*group.front()) > 1) {
      REQUIRE(split != nullptr);
      CHECK(split->rows.size() >= 2 * static_cast<std::size_t>(shape.num_slots));
    } else {
      CHECK(split == nullptr);
    }
  }
  plan_of const small{expert_bytes - 1, 3};
  detail::cycle_plan<all_layers<>, host_store> refused{where, schedule, small.store};
  auto const result = refused.assign(small.from, small.to, small.loads(), {});
  CHECK(result.code() == errc::out_of_memory);
  CHECK(result.message().find("256 bytes of staging, the limit is 255") != std::string::npos);
}

TEST_CASE("a layer above the bytes of a step is spread over steps of whole rounds") {
  plan_of const in{std::size_t{1} << 20, 5};
  bytes_per_step const schedule{4 * static_cast<std::int64_t>(expert_bytes)};
  detail::cycle_plan<bytes_per_step<>, host_store> plan{where, schedule, in.store};
  REQUIRE(plan.assign(in.from, in.to, in.loads(), {}).ok());
  index_t steps = 0;
  for (index_t c = 0; c < plan.num_chunks(); ++c) {
    auto const* const spread = plan.spread_layer(plan.chunk(c));
    if (spread == nullptr) {
      ++steps;
      continue;
    }
    for (index_t round = 0; round < spread->num_rounds; ++steps) {
      auto const next = plan.round_after_step(*spread, round);
      REQUIRE(next > round);
      auto const moves = std::count_if(spread->moves.begin(), spread->moves.end(), [&](expert_move const& move) {
        return move.round >= round && move.round < next;
      });
      CHECK(moves <= 4);
      round = next;
    }
  }
  CHECK(steps == plan.num_steps());
  CHECK(steps > plan.num_chunks());
}

TEST_CASE("a plan comes out of its message as it went in, shares and replica order included") {
  plan_of in{0, 7};
  placement read;
  detail::plan_message message{shape};
  CHECK(!message.has_plan());
  for (bool const with_shares : {false, true}) {
    if (with_shares) {
      share_solver solver;
      REQUIRE(optimal_shares(where, in.to, in.loads(), solver).ok());
    }
    message.write(in.to);
    REQUIRE(message.has_plan());
    REQUIRE(message.read(read).ok());
    CHECK(read == in.to);
    CHECK(read.has_shares() == with_shares);
  }
}
