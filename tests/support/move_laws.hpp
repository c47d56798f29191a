// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_MOVE_LAWS_HPP
#define BALLAST_TESTS_SUPPORT_MOVE_LAWS_HPP

#include <ballast/detail/text.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/runtime/detail/layer_mover.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/transport.hpp>

#include "support/check_complaints.hpp"
#include "support/control_laws.hpp"
#include "support/group_runner.hpp"
#include "support/patterned_weights.hpp"
#include "support/policies.hpp"
#include "support/random.hpp"
#include "support/transfers.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// What a rebalancer promises about moves, for ranks that a runner brings to life.
namespace ballast_test {

/// A way to move a layer.
struct move_way {
  char const* name;
  std::size_t staging_limit = ballast::host_store::unlimited;
  ballast::rebalancer_options options = {};
};

/// One rank that moves a layer with tensors of odd sizes from one random placement to the next, judging plan, rounds,
/// bytes and staging.
template <class Endpoint>
class moving_rank {
public:
  moving_rank(Endpoint& self, law_log& log, move_way const& way)
      : self_{self},
        log_{log},
        way_{way},
        where_{{self.num_ranks(), self.num_ranks() % 2 == 0 ? 2 : 1, 5, 1}},
        initial_{ballast::trivial_placement({1, where_.num_slots() * 2 / 3, where_.num_slots()})},
        weights_{where_, self.rank(), initial_, {{61, 61}, {16, 40}, {3, 7}}},
        store_{where_, 1, way.staging_limit},
        moved_{where_, initial_,       {ballast::window_recorder{1, initial_.num_logical()}, {}, {}, way.options},
               store_, self.transport, self.control} {
    weights_.add_to(store_);
  }

  void run(int pairs) {
    if (!log_.expect_ok(moved_.start(), ballast::detail::concat(way_.name, ": start"))) { return; }
    generator random{static_cast<std::uint64_t>(self_.num_ranks())};
    bool well = true;
    for (int pair = 0; pair < pairs && well; ++pair) {
      auto const target =
          pair % 3 == 0 ? random_placement(initial_.shape(), random) : nudged_placement(moved_.current(), random);
      auto const flaw = move_to(target);
      well = log_.expect(flaw.empty(), way_.name, ", pair ", pair, ": ", flaw);
    }
    meet(self_, log_);  // nobody's weights go before its peers are done with them
  }

private:
  using transport = std::remove_cvref_t<decltype(std::declval<Endpoint&>().transport)>;
  using control = std::remove_cvref_t<decltype(std::declval<Endpoint&>().control)>;
  using store = poisoning_store<ballast::host_store>;

  [[nodiscard]] std::string move_to(ballast::placement const& target) {
    ballast::layer_transfer transfer;
    if (auto planned =
            plan_layer_transfer(where_, moved_.current(), target, 0, scratch_, transfer, {way_.options.relay});
        !planned.ok()) {
      return planned.message();
    }
    if (auto flaw = first_flaw(where_, moved_.current(), target, transfer); !flaw.empty()) { return flaw; }
    if (auto applied = moved_.apply(target); !applied.ok()) { return applied.message(); }
    if (!(moved_.current() == target)) { return "another placement is in force"; }
    if (auto wrong = weights_.first_error(target); !wrong.empty()) { return wrong; }
    return check_staging(transfer);
  }
  [[nodiscard]] std::string check_staging(ballast::layer_transfer const& transfer) {
    std::vector<ballast::index_t> staged(static_cast<std::size_t>(where_.num_ranks()));
    ballast::detail::staged_experts(where_, transfer, staged);
    auto const mine = static_cast<std::size_t>(staged[static_cast<std::size_t>(self_.rank())]);
    most_staged_ = std::max(most_staged_, mine * ballast::detail::size_of_expert(store_.tensors(0)).staged);
    auto const allowed = std::min(most_staged_, way_.staging_limit);
    return store_.staging_high_water() <= allowed
               ? std::string{}
               : ballast::detail::concat("staged ", store_.staging_high_water(), " bytes, ", allowed, " are enough");
  }

  Endpoint& self_;
  law_log& log_;
  move_way const& way_;
  ballast::topology where_;
  ballast::placement initial_;
  patterned_weights weights_;
  store store_;
  ballast::rebalancer<ballast::window_recorder, keep_placement, ballast::layers_per_chunk<>, transport, store, control>
      moved_;
  ballast::detail::transfer_scratch scratch_;
  std::size_t most_staged_ = 0;
};

/// Move through `pairs` random pairs of placements in each of several ways.
template <class Endpoint>
void moves_random_pairs(Endpoint& self, law_log& log, int pairs) {
  move_way const ways[] = {
      {.name = "whole", .options = {.timeout = patience}},
      {.name = "in pieces", .options = {.timeout = patience, .max_message_bytes = 29}},
      {.name = "a round at a time", .options = {.timeout = patience, .max_message_bytes = 50, .rounds_per_batch = 1}},
      {.name = "one expert of staging", .staging_limit = 768, .options = {.timeout = patience, .verify = true}},
      {.name = "relayed", .options = {.timeout = patience, .relay = true}}};
  for (auto const& way : ways) {
    if (way.options.relay && ballast::peer_copier<std::remove_cvref_t<decltype(self.transport)>>) { continue; }
    moving_rank{self, log, way}.run(pairs);
    if (!log.complaints().empty()) { return; }
  }
}

template <class Runner>
void check_random_moves(Runner const& runner, int pairs) {
  for (auto const num_ranks : runner.sizes()) {
    check_complaints(runner.run(num_ranks, [&](auto& self, law_log& log) { moves_random_pairs(self, log, pairs); }));
  }
}

}  // namespace ballast_test

#endif
