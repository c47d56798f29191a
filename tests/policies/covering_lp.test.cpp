// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Programs small enough to be solved by hand.
#include <ballast/policies/detail/balanced/covering_lp.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

using namespace ballast;
using detail::covering_lp;

namespace {

using fixed = covering_lp::fixed;
constexpr fixed one = covering_lp::one;

/// A matrix of whole numbers, row by row.
struct table {
  std::vector<std::int64_t> costs;
  std::vector<std::vector<std::int64_t>> rows;
  std::vector<bool> fixed_columns = std::vector<bool>(costs.size(), false);

  [[nodiscard]] std::size_t size() const { return costs.size(); }
  [[nodiscard]] std::int64_t cost(std::size_t column) const { return costs[column]; }
  [[nodiscard]] bool is_fixed(std::size_t column) const { return fixed_columns[column]; }
  [[nodiscard]] std::int64_t coefficient(std::size_t row, std::size_t column) const { return rows[row][column]; }
  void combine(std::span<fixed const> weights, std::span<fixed> out) const {
    for (std::size_t column = 0; column < out.size(); ++column) {
      out[column] = 0;
      for (std::size_t row = 0; row < weights.size(); ++row) { out[column] += weights[row] * rows[row][column]; }
    }
  }
  void add_row(covering_lp& to, std::vector<std::int64_t> row, index_t bound) {
    rows.push_back(std::move(row));
    to.add_row(*this, bound);
  }
};

bool is_about(fixed value, std::int64_t whole) {
  auto const off = value - whole * one;
  return off > -one / 64 && off < one / 64;
}

constexpr fixed no_limit = 1000 * one;

}  // namespace

TEST_CASE("rows that are added are satisfied at the least cost") {
  // min 3 x + 2 y, x + y >= 4, x >= 1
  table columns{.costs = {3, 2}, .rows = {}};
  covering_lp program;
  std::int64_t work = 1000;
  columns.add_row(program, {1, 1}, 4);
  REQUIRE(program.make_feasible(columns, no_limit, work));
  CHECK(is_about(program.objective(), 8));
  CHECK(is_about(program.value(0), 0));
  CHECK(is_about(program.value(1), 4));
  columns.add_row(program, {1, 0}, 1);
  REQUIRE(program.make_feasible(columns, no_limit, work));
  CHECK(program.num_rows() == 2);
  CHECK(is_about(program.objective(), 9));
  CHECK(is_about(program.value(0), 1));
  CHECK(is_about(program.value(1), 3));
  // What a unit more of each bound would cost.
  CHECK(is_about(program.multipliers()[0], 2));
  CHECK(is_about(program.multipliers()[1], 1));
  fixed sum = 0;
  program.for_each_value([&](std::size_t, fixed value) { sum += value; });
  CHECK(is_about(sum, 4));
}

TEST_CASE("a column that is added comes in where it pays") {
  table columns{.costs = {3, 2}, .rows = {}};
  covering_lp program;
  std::int64_t work = 1000;
  columns.add_row(program, {1, 1}, 4);
  columns.add_row(program, {1, 0}, 1);
  REQUIRE(program.make_feasible(columns, no_limit, work));
  columns.costs.push_back(1);
  columns.rows[0].push_back(1);
  columns.rows[1].push_back(0);
  columns.fixed_columns.push_back(false);
  REQUIRE(program.make_optimal(columns, work));
  CHECK(is_about(program.objective(), 6));
  CHECK(is_about(program.value(1), 0));
  CHECK(is_about(program.value(2), 3));
  // One that is dearer does not.
  columns.costs.push_back(5);
  columns.rows[0].push_back(1);
  columns.rows[1].push_back(0);
  columns.fixed_columns.push_back(false);
  REQUIRE(program.make_optimal(columns, work));
  CHECK(is_about(program.objective(), 6));
}

TEST_CASE("no answer: rows that contradict, a limit that is passed, work that is used up") {
  std::int64_t work = 1000;
  {
    table columns{.costs = {1}, .rows = {}, .fixed_columns = {true}};
    covering_lp program;
    columns.add_row(program, {1}, 1);
    CHECK_FALSE(program.make_feasible(columns, no_limit, work));
  }
  table columns{.costs = {3, 2}, .rows = {}};
  covering_lp program;
  columns.add_row(program, {1, 1}, 4);
  columns.add_row(program, {1, 0}, 1);
  CHECK_FALSE(program.make_feasible(columns, one, work));
  program.reset();
  CHECK(program.num_rows() == 0);
  columns.rows.clear();
  columns.add_row(program, {1, 1}, 4);
  std::int64_t none = 0;
  CHECK_FALSE(program.make_feasible(columns, no_limit, none));
  REQUIRE(program.make_feasible(columns, no_limit, work));
  CHECK(is_about(program.objective(), 8));
}
