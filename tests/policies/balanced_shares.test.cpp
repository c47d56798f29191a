// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/policies/balanced_shares.hpp>

#include "support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ostream>  // doctest prints error codes
#include <string>
#include <vector>

using namespace ballast;

namespace {

struct problem {
  topology where;
  index_t num_logical;
  std::vector<load_t> loads;  ///< [L, E]

  static constexpr index_t num_layers = 4;

  problem(topology_shape sizes, index_t experts, std::uint64_t seed) : where{sizes}, num_logical{experts} {
    ballast_test::generator random{seed};
    for (index_t i = 0; i < num_layers * experts; ++i) { loads.push_back(100000 / (1 + random.below(100))); }
  }

  [[nodiscard]] matrix_view<load_t const> view() const { return {loads, num_layers, num_logical}; }
  [[nodiscard]] placement plan(placement_policy auto const& policy) const {
    placement next;
    ballast::plan(policy, view(), trivial_placement({num_layers, num_logical, where.num_slots()}), where, next)
        .or_throw();
    return next;
  }
  [[nodiscard]] double max_load(placement const& in, index_t layer) const {
    return balance_of(where, in, layer, view().row(layer)).max;
  }
  [[nodiscard]] placement packed() const {
    auto result = plan(balanced_placement{});
    share_solver solver;
    optimal_shares(where, result, view(), solver).or_throw();
    return result;
  }
};

bool same_layer(placement const& a, placement const& b, index_t layer) {
  return std::ranges::equal(a.logical_of_slot(layer), b.logical_of_slot(layer)) &&
         std::ranges::equal(a.shares(layer), b.shares(layer));
}

}  // namespace

TEST_CASE("every layer has the plan with room, or the packed one where room costs more than its price") {
  index_t num_packed = 0;
  // Where a rank has two or three slots, room has its price.
  for (auto const& in : {problem{{24, 1, 2, 0}, 40, 1}, problem{{12, 1, 3, 0}, 30, 2}, problem{{8, 2, 9, 0}, 64, 3}}) {
    auto const with_room = in.plan(headroom_placement{});
    auto const packed = in.packed();
    for (std::int64_t const price : {0, 500, 20000}) {
      CAPTURE(price);
      auto const made = in.plan(balanced_shares_placement{.room_price_ppm = price});
      for (index_t layer = 0; layer < problem::num_layers; ++layer) {
        CAPTURE(layer);
        auto const worth =
            in.max_load(with_room, layer) <= in.max_load(packed, layer) * (1 + static_cast<double>(price) / 1e6);
        CHECK(same_layer(made, worth ? with_room : packed, layer));
        num_packed += worth ? 0 : 1;
      }
    }
  }
  CHECK(num_packed > 0);
}

TEST_CASE("any price for room is paid when asked to") {
  problem const in{{24, 1, 2, 0}, 40, 1};
  CHECK(in.plan(balanced_shares_placement{.room_price_ppm = 1'000'000}) == in.plan(headroom_placement{}));
}

TEST_CASE("a negative price is refused, and the price is in the digest") {
  problem const in{{4, 1, 3, 0}, 8, 1};
  placement next;
  auto const result = plan(balanced_shares_placement{.room_price_ppm = -1}, in.view(),
                           trivial_placement({problem::num_layers, 8, 12}), in.where, next);
  CHECK(result.code() == errc::invalid_option);
  CHECK(result.message() == "balanced_shares: room_price_ppm is -1, must be in [0, 1000000]");
  digest one;
  digest other;
  balanced_shares_placement{}.describe(one);
  balanced_shares_placement{.room_price_ppm = 1}.describe(other);
  CHECK(one.value() != other.value());
}
