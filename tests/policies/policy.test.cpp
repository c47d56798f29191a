// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/policies/policy.hpp>

#include <doctest/doctest.h>
#include <support/policies.hpp>

#include <cstdint>
#include <functional>
#include <new>
#include <ostream>  // doctest prints error codes
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

// ---- policies that break their promise ----

/// Does to a copy of the current placement whatever a test wants.
struct evil_policy {
  std::function<status(placement&)> deed;

  [[nodiscard]] status plan(load_history_view, placement const& current, topology const&, placement& next) const {
    next = current;
    return deed(next);
  }
  [[nodiscard]] status validate() const { return {}; }
  void describe(digest& out) const { out.add(std::string_view{"evil_policy"}); }
};

/// What becomes of it: 2 layers, 4 experts, 2 ranks of 3 slots.
status outcome(std::function<status(placement&)> deed, topology const& where = topology{{2, 1, 3, 0}}) {
  std::vector<load_t> const loads{1, 2, 3, 4, 5, 6, 7, 8};
  placement next;
  return plan(evil_policy{std::move(deed)}, {loads, 1, 2, 4}, trivial_placement({2, 4, 6}), where, next);
}
std::string complaint(std::function<void(placement&)> const& deed, topology const& where = topology{{2, 1, 3, 0}}) {
  auto const result = outcome(
      [&](placement& next) {
        deed(next);
        return status{};
      },
      where);
  CHECK(result.code() == errc::policy_failed);
  return result.message();
}

std::string const broken = "plan: the policy broke its promise: placement: ";

}  // namespace

TEST_CASE("a plan that breaks a promise is refused by name, whatever it holds") {
  CHECK(outcome([](placement&) { return status{}; }).ok());
  CHECK(complaint([](placement& next) {
          for (auto& expert : next.edit(0).logical_of_slot) { expert = expert == 3 ? 0 : expert; }
          next.index_replicas(0);
        }) == broken + "layer 0 has no slot for expert 3");
  CHECK(complaint([](placement& next) { next.edit(1).logical_of_slot[0] = 77; }) ==
        broken + "layer 1, slot 0 holds expert 77, must be in [0, 4)");
  CHECK(complaint([](placement& next) { next = trivial_placement({2, 4, 4}); }) ==
        broken + "2 layers x 4 slots of 4 experts, must be 2 layers x 6 slots of 4 experts");
  CHECK(complaint([](placement& next) { next = trivial_placement({2, 5, 6}); }) ==
        broken + "2 layers x 6 slots of 5 experts, must be 2 layers x 6 slots of 4 experts");
  CHECK(complaint([](placement& next) { next = trivial_placement({1, 4, 6}); }) ==
        broken + "1 layers x 6 slots of 4 experts, must be 2 layers x 6 slots of 4 experts");
  CHECK(complaint([](placement& next) { next = {}; }) ==
        broken + "0 layers x 0 slots of 0 experts, must be 2 layers x 6 slots of 4 experts");
  CHECK(complaint([](placement& next) { auto const stolen = std::move(next); }) ==
        broken + "0 layers x 0 slots of 0 experts, must be 2 layers x 6 slots of 4 experts");
  CHECK(complaint([](placement& next) {
          next.make_shares_even();
          for (auto& share : next.edit_shares(0)) { share = 0; }
        }) == broken + "layer 0, shares of expert 0 sum to 0, must be 1073741824");
  CHECK(complaint([](placement& next) {
          next.make_shares_even();
          next.edit_shares(1)[0] = 0xffffffffu;
          next.edit_shares(1)[4] = 0x40000001u;
        }) == broken + "layer 1, shares of expert 0 sum to 5368709120, must be 1073741824");
  CHECK(complaint([](placement& next) { next.edit(0).replica_slots[1] = 0; }) ==
        broken + "layer 0, expert 0 is listed twice in slot 0");
  CHECK(complaint([](placement& next) { next.edit(0).replica_offsets[2] = INT32_MAX; }) ==
        broken + "layer 0, replicas of expert 1 are from offset 2 to 2147483647 of 6");
  CHECK(complaint([](placement& next) { next.edit(0).logical_of_slot[0] = 1; }) ==
        broken + "layer 0, expert 0 is listed in slot 0, which holds expert 1");
}

TEST_CASE("a plan that counts on dead ranks is refused") {
  topology where{{3, 1, 2, 0}};
  where.set_live(1, false);  // slots 2 and 3: experts 2 and 3
  auto const keep = [](placement&) {};
  CHECK(complaint(keep, where) == broken + "layer 0: no live rank holds expert 2");
  auto const rescue = [](placement& next) {
    for (index_t layer = 0; layer < 2; ++layer) {
      next.edit(layer).logical_of_slot[4] = 2;
      next.edit(layer).logical_of_slot[5] = 3;
      next.index_replicas(layer);
    }
  };
  CHECK(outcome(
            [&](placement& next) {
              rescue(next);
              return status{};
            },
            where)
            .ok());
  CHECK(complaint(
            [&](placement& next) {
              rescue(next);
              next.edit(1).logical_of_slot[3] = 0;
              next.index_replicas(1);
            },
            where) == broken + "layer 1, slot 3 of dead rank 1 holds expert 3, the plan puts expert 0 there");
}

TEST_CASE("a policy that throws fails the plan and nothing else") {
  auto const thrown = [](auto const& what) { return outcome([&what](placement&) -> status { throw what; }); };
  CHECK(thrown(std::runtime_error{"no model loaded"}).code() == errc::policy_failed);
  CHECK(thrown(std::runtime_error{"no model loaded"}).message() == "plan: the policy threw: no model loaded");
  CHECK(thrown(std::bad_alloc{}).message() == "plan: the policy threw: std::bad_alloc");
  CHECK(thrown(7).message() == "plan: the policy threw something that is no std::exception");

  struct throws_when_asked : evil_policy {
    [[nodiscard]] status validate() const { throw std::runtime_error{"asked"}; }
  };
  std::vector<load_t> const loads{1, 2};
  placement next;
  auto const result =
      plan(throws_when_asked{}, {loads, 1, 1, 2}, trivial_placement({1, 2, 2}), topology{{2, 1, 1, 0}}, next);
  CHECK(result.code() == errc::policy_failed);
}

TEST_CASE("a policy's own refusal passes through") {
  auto const result = outcome([](placement&) { return status{errc::invalid_load, "not on Sundays", 1}; });
  CHECK(result.code() == errc::invalid_load);
  CHECK(result.message() == "not on Sundays");
  CHECK(result.rank() == 1);
  std::vector<load_t> const loads{1, 2};
  placement next;
  CHECK(plan(ballast_test::rotate_placement{0}, {loads, 1, 1, 2}, trivial_placement({1, 2, 2}), topology{{2, 1, 1, 0}},
             next)
            .message() == "rotate_placement: every is 0, must be at least 1");
}
