// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/incremental.hpp>

#include "support/policies.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using namespace ballast;

topology const where{{2, 1, 4, 0}};
std::vector<load_t> const loads{9, 1, 4, 4, 2, 0, 0, 1, 3, 8, 2, 2};  // [1, 2, 6]
load_history_view const history{loads, 1, 2, 6};

std::uint64_t digest_of(placement_policy auto const& policy) {
  digest out;
  policy.describe(out);
  return out.value();
}

std::vector<std::pair<std::string, std::uint64_t>> options_of(auto const& policy) {
  std::vector<std::pair<std::string, std::uint64_t>> options;
  policy.for_each_option([&](std::string_view name, std::uint64_t bits) { options.emplace_back(name, bits); });
  return options;
}

// It ignores the loads, so it also plans for layers without any.
struct stays_put : ballast_test::keep_placement {};

// It knows only while the program runs whether it does.
struct learns_late : ballast_test::keep_placement {
  bool follows = false;
  [[nodiscard]] bool follows_loads() const { return follows; }
};

}  // namespace

TEST_CASE("a policy chosen at run time plans, is compared and names its options as the one inside") {
  auto const current = trivial_placement({2, 6, 8});
  incremental_placement const inside{.max_moves_per_layer = 1};
  any_policy const chosen{inside};
  placement direct;
  placement erased;
  REQUIRE(plan(inside, history, current, where, direct).ok());
  REQUIRE(plan(chosen, history, current, where, erased).ok());
  CHECK(erased == direct);
  CHECK(erased != current);
  CHECK(digest_of(chosen) == digest_of(inside));
  CHECK(digest_of(chosen) != digest_of(any_policy{incremental_placement{.max_moves_per_layer = 2}}));
  CHECK(options_of(chosen) == options_of(inside));
  CHECK_FALSE(options_of(chosen).empty());
}

TEST_CASE("copies go on with the policy when the original takes another") {
  any_policy chosen{ballast_test::rotate_placement{}};
  auto const copy = chosen;
  chosen = any_policy{ballast_test::keep_placement{}};
  auto const current = trivial_placement({2, 6, 8});
  placement next;
  REQUIRE(plan(copy, history, current, where, next).ok());
  CHECK(next != current);
  REQUIRE(plan(chosen, history, current, where, next).ok());
  CHECK(next == current);
}

TEST_CASE("options that make no sense are refused as by the policy inside") {
  auto const refused = validate_policy(any_policy{ballast_test::rotate_placement{0}});
  CHECK(refused.code() == errc::invalid_option);
  CHECK(refused.message() == "rotate_placement: every is 0, must be at least 1");
}

TEST_CASE("it knows whether the policy inside follows loads") {
  CHECK(any_policy{deepseek_placement{}}.follows_loads());
  CHECK_FALSE(any_policy{stays_put{}}.follows_loads());
  for (bool const follows : {false, true}) {
    learns_late inside;
    inside.follows = follows;
    CHECK(any_policy{inside}.follows_loads() == follows);
  }
  CHECK(detail::plans_from_loads(any_policy{deepseek_placement{}}));
  CHECK(detail::plans_from_loads(deepseek_placement{}));
  CHECK_FALSE(detail::plans_from_loads(any_policy{stays_put{}}));
  CHECK_FALSE(detail::plans_from_loads(stays_put{}));
}

TEST_CASE("without a policy every plan is refused") {
  any_policy const none;
  CHECK_FALSE(none.has_value());
  CHECK(any_policy{deepseek_placement{}}.has_value());
  CHECK(none.validate().code() == errc::invalid_option);
  placement next;
  auto const refused = plan(none, history, trivial_placement({2, 6, 8}), where, next);
  CHECK(refused.code() == errc::invalid_option);
  CHECK(refused.message() == "any_policy: there is no policy inside");
  CHECK(none.plan(history, trivial_placement({2, 6, 8}), where, next).code() == errc::invalid_option);
  CHECK_FALSE(none.follows_loads());
  CHECK(options_of(none).empty());
  CHECK(digest_of(none) == digest{}.value());
}
