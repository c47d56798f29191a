// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What every policy of ours owes its options: names, refusals, a place in the digest.
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/balanced_shares.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/regime.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <ostream>  // doctest prints error codes
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

template <class Policy>
struct wrong_option {
  std::string name;  ///< as `for_each_option` gives it
  std::string value;
  Policy policy;
};
template <class Policy, class T>
wrong_option<Policy> wrong(std::string name, T value, Policy policy) {
  return {std::move(name), detail::concat(value), std::move(policy)};
}

constexpr auto huge = std::numeric_limits<index_t>::max();
constexpr auto least = std::numeric_limits<index_t>::min();

template <class Policy>
struct nonsense;

template <>
struct nonsense<deepseek_placement> {
  static std::vector<wrong_option<deepseek_placement>> options() {
    std::vector<wrong_option<deepseek_placement>> result;
    for (index_t const v : {0, -1, least}) { result.push_back(wrong("num_groups", v, deepseek_placement{v})); }
    return result;
  }
  static std::set<std::string> any_value() { return {}; }
};

template <>
struct nonsense<balanced_placement> {
  static std::vector<wrong_option<balanced_placement>> options() {
    std::vector<wrong_option<balanced_placement>> result;
    auto const add = [&](std::string name, auto value, auto change) {
      balanced_placement policy;
      change(policy);
      result.push_back(wrong(std::move(name), value, policy));
    };
    for (index_t const v : {0, -4, least}) {
      add("num_groups", v, [v](auto& p) { p.num_groups = v; });
    }
    for (index_t const v : {-1, 3, huge}) {
      add("locality", v, [v](auto& p) { p.locality = group_locality{v}; });
    }
    for (index_t const v : {-1, 1000001, huge}) {
      add("split_price_percent", v, [v](auto& p) { p.split_price_percent = v; });
    }
    for (index_t const v : {-1, 1000001, least}) {
      add("tolerance_ppm", v, [v](auto& p) { p.tolerance_ppm = v; });
    }
    for (std::int64_t const v : {std::int64_t{-1}, INT64_MIN}) {
      add("work_per_layer", v, [v](auto& p) { p.work_per_layer = v; });
    }
    return result;
  }
  static std::set<std::string> any_value() { return {"cost"}; }
};

template <>
struct nonsense<headroom_placement> {
  static std::vector<wrong_option<headroom_placement>> options() {
    std::vector<wrong_option<headroom_placement>> result;
    for (index_t const v : {0, -1, least}) { result.push_back(wrong("id_blocks", v, headroom_placement{v})); }
    for (index_t const v : {-1, 1000001, huge}) {
      result.push_back(wrong("tolerance_ppm", v, headroom_placement{.tolerance_ppm = v}));
      result.push_back(wrong("even_tolerance_ppm", v, headroom_placement{.even_tolerance_ppm = v}));
    }
    for (index_t const v : {-1, least}) {
      result.push_back(wrong("exchanges_per_layer", v, headroom_placement{.exchanges_per_layer = v}));
      result.push_back(wrong("batch_exchanges", v, headroom_placement{.batch_exchanges = v}));
    }
    return result;
  }
  static std::set<std::string> any_value() { return {}; }
};

template <>
struct nonsense<incremental_placement> {
  static std::vector<wrong_option<incremental_placement>> options() {
    std::vector<wrong_option<incremental_placement>> result;
    auto const add = [&](std::string name, auto value, auto change) {
      incremental_placement policy;
      change(policy);
      result.push_back(wrong(std::move(name), value, policy));
    };
    for (index_t const v : {-2, -7, least}) {
      add("max_moves_per_layer", v, [v](auto& p) { p.max_moves_per_layer = v; });
      add("max_arrivals_per_rank", v, [v](auto& p) { p.max_arrivals_per_rank = v; });
      add("max_remote_arrivals_per_rank", v, [v](auto& p) { p.max_remote_arrivals_per_rank = v; });
      add("max_moves_in_all", v, [v](auto& p) { p.max_moves_in_all = v; });
    }
    for (index_t const v : {-1, 2, huge}) {
      add("shares", v, [v](auto& p) { p.shares = share_mode{v}; });
    }
    for (index_t const v : {-1, 1000001, least}) {
      add("retries_per_layer", v, [v](auto& p) { p.retries_per_layer = v; });
    }
    for (std::int64_t const v : {std::int64_t{0}, std::int64_t{-1}, INT64_MIN}) {
      add("work_per_layer", v, [v](auto& p) { p.work_per_layer = v; });
    }
    for (std::int64_t const v : {std::int64_t{-1}, (std::int64_t{1} << 40) + 1, INT64_MAX}) {
      add("worth.bytes_per_expert", v, [v](auto& p) { p.worth.bytes_per_expert = v; });
    }
    for (std::int64_t const v : {std::int64_t{0}, std::int64_t{999'999}, INT64_MAX}) {
      add("worth.link_bytes_per_second", v, [v](auto& p) { p.worth.link_bytes_per_second = v; });
    }
    for (std::int64_t const v : {std::int64_t{0}, std::int64_t{-1}, INT64_MAX}) {
      add("worth.layer_nanoseconds", v, [v](auto& p) { p.worth.layer_nanoseconds = v; });
      add("worth.passes_until_next_plan", v, [v](auto& p) { p.worth.passes_until_next_plan = v; });
    }
    for (std::int64_t const v : {std::int64_t{-1}, std::int64_t{1001}, INT64_MAX}) {
      add("worth.plans_per_layout", v, [v](auto& p) { p.worth.plans_per_layout = v; });
    }
    return result;
  }
  static std::set<std::string> any_value() { return {"stop_when_not_worth", "cost"}; }
};

template <>
struct nonsense<balanced_shares_placement> {
  static std::vector<wrong_option<balanced_shares_placement>> options() {
    std::vector<wrong_option<balanced_shares_placement>> result;
    for (std::int64_t const v : {std::int64_t{-1}, std::int64_t{1000001}, INT64_MAX, INT64_MIN}) {
      result.push_back(wrong("room_price_ppm", v, balanced_shares_placement{.room_price_ppm = v}));
    }
    for (auto const& [name, value, policy] : nonsense<headroom_placement>::options()) {
      result.push_back(wrong("with_room." + name, value, balanced_shares_placement{.with_room = policy}));
    }
    for (auto const& [name, value, policy] : nonsense<balanced_placement>::options()) {
      result.push_back(wrong("packed." + name, value, balanced_shares_placement{.packed = policy}));
    }
    return result;
  }
  static std::set<std::string> any_value() { return {"packed.cost"}; }
};

template <>
struct nonsense<regime_placement<incremental_placement>> {
  using policy = regime_placement<incremental_placement>;
  static std::vector<wrong_option<policy>> options() {
    std::vector<wrong_option<policy>> result;
    for (index_t const v : {100, 0, -1, 1000001, huge, least}) {
      result.push_back(wrong("change_percent", v, policy{{}, v}));
    }
    for (auto const& [name, value, inner] : nonsense<incremental_placement>::options()) {
      result.push_back(wrong("policy." + name, value, policy{inner}));
    }
    return result;
  }
  static std::set<std::string> any_value() { return {"policy.stop_when_not_worth", "policy.cost"}; }
};

using policies = std::tuple<deepseek_placement, balanced_placement, headroom_placement, incremental_placement,
                            balanced_shares_placement, regime_placement<incremental_placement>>;

std::uint64_t digest_of(auto const& policy) {
  digest out;
  policy.describe(out);
  return out.value();
}

template <class Policy>
std::vector<std::pair<std::string, std::uint64_t>> options_of(Policy const& policy) {
  std::vector<std::pair<std::string, std::uint64_t>> result;
  policy.for_each_option([&](std::string_view name, std::uint64_t bits) { result.emplace_back(name, bits); });
  return result;
}

}  // namespace

TYPE_TO_STRING(deepseek_placement);
TYPE_TO_STRING(balanced_placement);
TYPE_TO_STRING(headroom_placement);
TYPE_TO_STRING(incremental_placement);
TYPE_TO_STRING(balanced_shares_placement);
TYPE_TO_STRING(regime_placement<incremental_placement>);

TEST_CASE_TEMPLATE_DEFINE("a policy names its options, and takes no value that makes no sense", Policy, option_laws) {
  static_assert(detail::names_options<Policy>);
  std::vector<load_t> const loads{1, 2, 3, 4};
  topology const where{{2, 1, 3, 0}};
  auto const current = trivial_placement({1, 4, 6});
  placement next;
  CHECK(Policy{}.validate().ok());
  CHECK(plan(Policy{}, {loads, 1, 1, 4}, current, where, next).ok());

  auto const usual = options_of(Policy{});
  auto tried = nonsense<Policy>::any_value();
  for (auto const& [name, value, policy] : nonsense<Policy>::options()) {
    CAPTURE(name);
    CAPTURE(value);
    tried.insert(name);
    auto const result = plan(policy, {loads, 1, 1, 4}, current, where, next);
    CHECK(result.code() == errc::invalid_option);
    CHECK(result.message() == policy.validate().message());
    CHECK(result.message().find(" is " + value) != std::string::npos);
    CHECK(result.code() == policy.plan({loads, 1, 1, 4}, current, where, next).code());
    // The option shows in the digest and, under its name, in what ranks compare; so does every part it belongs to.
    CHECK(digest_of(policy) != digest_of(Policy{}));
    auto const other = options_of(policy);
    REQUIRE(other.size() == usual.size());
    for (std::size_t i = 0; i < usual.size(); ++i) {
      CHECK(other[i].first == usual[i].first);
      bool const is_concerned = name == usual[i].first || name.find(usual[i].first + '.') == 0;
      CHECK((other[i].second != usual[i].second) == is_concerned);
    }
  }
  // A new option has to be added to the lists above; parts with a name of their own hold other options.
  for (auto const& [name, bits] : usual) {
    CAPTURE(name);
    auto const is_part = std::any_of(usual.begin(), usual.end(),
                                     [&part = name](auto const& one) { return one.first.find(part + '.') == 0; });
    CHECK((is_part || tried.count(name) == 1));
  }
}
TEST_CASE_TEMPLATE_APPLY(option_laws, policies);

TEST_CASE("groups that experts or nodes do not allow are refused, not ignored") {
  std::vector<load_t> const loads(16, 5);
  auto const refusal = [&](balanced_placement const& policy, topology const& where) {
    placement next;
    return plan(policy, {loads, 1, 1, 16}, trivial_placement({1, 16, where.num_slots()}), where, next);
  };
  topology const two_nodes{{4, 2, 5, 0}};
  topology const three_nodes{{6, 3, 4, 0}};
  for (index_t const groups : {3, 6, 5, 32, huge}) {
    CAPTURE(groups);
    for (auto const locality : {group_locality::whole, group_locality::relaxed, group_locality::free}) {
      auto const result = refusal({.num_groups = groups, .locality = locality}, two_nodes);
      CHECK(result.code() == errc::invalid_option);
      CHECK(result.message() ==
            detail::concat("balanced: num_groups is ", groups, ", must be a divisor of the number of experts, 16"));
    }
  }
  CHECK(refusal({.num_groups = 4}, three_nodes).message() ==
        "balanced: num_groups is 4, must be 1, or a multiple of the number of nodes, 3, unless groups may lie anywhere "
        "(group_locality::free)");
  CHECK_FALSE(refusal({.num_groups = 4, .locality = group_locality::relaxed}, three_nodes).ok());
  CHECK(refusal({.num_groups = 4, .locality = group_locality::free}, three_nodes).ok());
  CHECK(refusal({.num_groups = 1}, three_nodes).ok());
  CHECK(refusal({.num_groups = 4}, two_nodes).ok());
  CHECK(refusal({.num_groups = 16}, two_nodes).ok());
}

TEST_CASE("the dearest price of split groups does not overflow") {
  std::vector<load_t> loads(8, 0);
  loads[0] = max_layer_tokens - 1;
  loads[4] = 1;
  placement next;
  CHECK(plan(balanced_placement{.num_groups = 4, .locality = group_locality::relaxed, .split_price_percent = 1000000},
             {loads, 1, 1, 8}, trivial_placement({1, 8, 12}), topology{{4, 2, 3, 0}}, next)
            .ok());
}
