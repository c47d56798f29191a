// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What balancing every batch comes to reaches the observer at the end of each window, as far as it is new.
#include <ballast/runtime/batch_counters.hpp>
#include <ballast/runtime/detail/batch_report.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/cohort.hpp"
#include "../support/policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

/// Stands for a store whose follower balances every batch.
class counting_store : public host_store {
public:
  using host_store::host_store;

  std::optional<batch_counters> told;

  [[nodiscard]] std::optional<batch_counters> balanced_batches() const { return told; }
};
static_assert(batch_counting_store<counting_store>);
static_assert(!batch_counting_store<host_store>);

}  // namespace

TEST_CASE("counters of two balancers add up, the longest wait is the longer one") {
  batch_counters const one{.batches = 1,
                           .exact = 2,
                           .below = 3,
                           .off = 4,
                           .late = 5,
                           .unlike = 6,
                           .alone = 7,
                           .mean = 8.5,
                           .planned = 9,
                           .realised = 10,
                           .resident = 11,
                           .bound = 12,
                           .longest_wait = 13,
                           .late_ranks = 5};
  batch_counters const twice{.batches = 2,
                             .exact = 4,
                             .below = 6,
                             .off = 8,
                             .late = 10,
                             .unlike = 12,
                             .alone = 14,
                             .mean = 17,
                             .planned = 18,
                             .realised = 20,
                             .resident = 22,
                             .bound = 24,
                             .longest_wait = 14,
                             .late_ranks = 7};
  for (bool const first_waits_longer : {true, false}) {
    auto a = one;
    auto b = one;
    (first_waits_longer ? a : b).longest_wait = 14;
    b.late_ranks = 6;
    a += b;
    CHECK(a == twice);
  }
}

TEST_CASE("counters that wrap tell what is new all the same, and where nothing was solved there is no balance") {
  struct counters_alone {
    batch_counters told;
    [[nodiscard]] std::optional<batch_counters> balanced_batches() const { return told; }
  } store;
  detail::batch_report report;
  std::vector<batch_counters> fresh;
  std::vector<double> balancedness;
  auto const tell = [&](event const& what) {
    fresh.push_back(*what.batches);
    balancedness.push_back(what.balancedness);
  };
  store.told = {.batches = 0xfffffff0, .exact = 0xfffffff0, .mean = 30, .realised = 40};
  report.tell_new(store, tell);
  store.told.batches = 5;  // 21 more, of which 20 by quotas
  store.told.exact = 4;
  store.told.late = 1;
  report.tell_new(store, tell);
  store.told.batches += 7;
  store.told.late += 7;
  report.tell_new(store, tell);
  REQUIRE(fresh.size() == 3);
  CHECK(fresh[0].batches == 0xfffffff0);
  CHECK(fresh[1].batches == 21);
  CHECK(fresh[1].exact == 20);
  CHECK(fresh[1].late == 1);
  CHECK(fresh[2].batches == 7);
  CHECK(fresh[2].exact == 0);
  CHECK(balancedness == std::vector<double>{0.75, 0.75, 0});
}

TEST_CASE("batches are told at the end of a window, those since the last time, and only where there were some") {
  topology const where{{2, 1, 3, 0}};
  in_process_group group{2};
  group.run([&](in_process_endpoint& me) {
    member<rotate_placement, layers_per_chunk<>, counting_store> self{
        where, trivial_placement({1, 6, 6}), {}, layers_per_chunk<>{1}, me, me, {.interval = 3, .timeout = patience}};
    self.moved.start().or_throw();
    std::vector<logged_event> told;
    for (std::int64_t call = 1; call <= 24; ++call) {
      if (call == 7) { self.store.told.emplace(); }  // no batch yet
      if (call >= 10 && call < 20) {
        auto& now = *self.store.told;
        ++now.batches;
        ++(call % 2 == 0 ? now.exact : now.late);
        now.mean = 30;
        now.realised = 40;
        now.longest_wait = call;
        now.late_ranks = 2;
      }
      self.moved.on_forward_pass_end().or_throw();
    }
    auto const dumps = self.log.steps_of("dump");
    auto const steps = self.log.steps_of("batches");
    REQUIRE(dumps.size() >= 5);
    REQUIRE(steps.size() >= 2);
    batch_counters sum;
    for (auto const& what : self.log.events) {
      if (what.kind != "batches") { continue; }
      CHECK(std::find(dumps.begin(), dumps.end(), what.step) != dumps.end());
      CHECK(what.batches.batches > 0);
      CHECK(what.balancedness == 0.75);
      CHECK(what.batches.late_ranks == 2);
      CHECK(what.batches.longest_wait == std::min<std::int64_t>(static_cast<std::int64_t>(what.step), 19));
      sum.batches += what.batches.batches;
      sum.exact += what.batches.exact;
      sum.late += what.batches.late;
    }
    CHECK(sum.batches == 10);
    CHECK(sum.exact == 5);
    CHECK(sum.late == 5);
  });
}
