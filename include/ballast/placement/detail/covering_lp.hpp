// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_DETAIL_COVERING_LP_HPP
#define BALLAST_PLACEMENT_DETAIL_COVERING_LP_HPP

#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A small linear program, min c x subject to A x >= b, x >= 0 with c >= 0, solved by the dual simplex method while
/// rows are added one by one.
///
/// Fixed-point arithmetic: the same result on every machine and under every flag, at the price of small rounding
/// errors. Whoever needs a proof evaluates the multipliers exactly; any that are >= 0 give a valid bound.
class covering_lp {
public:
  using fixed = std::int64_t;
  static constexpr int scale_bits = 22;
  static constexpr fixed one = fixed{1} << scale_bits;

  /// Start over. @param costs [columns] whole numbers
  void reset(std::span<index_t const> costs) {
    num_columns_ = costs.size();
    reduced_.clear();
    for (auto const cost : costs) { reduced_.push_back(cost * one); }
    nonbasic_.resize(num_columns_);
    row_of_.assign(num_columns_, none);
    for (std::size_t j = 0; j < num_columns_; ++j) { nonbasic_[j] = static_cast<index_t>(j); }
    rows_.clear();
    constant_.clear();
    basic_.clear();
    objective_ = 0;
  }

  /// Add a row sum(coefficients x) >= bound. @param coefficients [columns] whole numbers
  void add_row(std::span<index_t const> coefficients, index_t bound) {
    auto const slack = static_cast<index_t>(num_columns_ + basic_.size());
    auto const first = rows_.size();
    rows_.resize(first + num_columns_, 0);
    fixed constant = -bound * one;
    auto const row = std::span{rows_}.subspan(first, num_columns_);
    for (std::size_t j = 0; j < num_columns_; ++j) {
      auto const variable = nonbasic_[j];
      if (static_cast<std::size_t>(variable) < num_columns_) {
        row[j] += coefficients[static_cast<std::size_t>(variable)] * one;
      }
    }
    // Basic structural variables are replaced by what they stand for.
    for (std::size_t i = 0; i < basic_.size(); ++i) {
      auto const variable = static_cast<std::size_t>(basic_[i]);
      if (variable >= num_columns_ || coefficients[variable] == 0) { continue; }
      auto const factor = coefficients[variable];
      constant += factor * constant_[i];
      auto const other = row_at(i);
      for (std::size_t j = 0; j < num_columns_; ++j) { row[j] += factor * other[j]; }
    }
    basic_.push_back(slack);
    constant_.push_back(constant);
    row_of_.push_back(static_cast<index_t>(basic_.size()) - 1);
  }

  /// Restore feasibility. @return false when the work is used up or the rows contradict each other.
  /// @param limit  stop once the objective exceeds it: multipliers prove that already.
  bool solve(fixed limit, std::int64_t& work) {
    while (objective_ <= limit && work > 0) {
      auto const row = most_violated();
      if (row == basic_.size()) { return true; }
      auto const column = entering(row);
      if (column == num_columns_) { return false; }
      pivot(row, column);
      work -= static_cast<std::int64_t>(basic_.size() * num_columns_);
    }
    return false;
  }

  [[nodiscard]] fixed objective() const noexcept { return objective_; }
  [[nodiscard]] std::size_t num_rows() const noexcept { return basic_.size(); }
  /// Value of a variable.
  [[nodiscard]] fixed value(std::size_t column) const noexcept {
    auto const row = row_of_[column];
    return row == none ? 0 : std::max<fixed>(constant_[static_cast<std::size_t>(row)], 0);
  }
  /// Multipliers of the rows, in the order in which they were added. @param out out: [num_rows()]
  void multipliers(std::span<fixed> out) const noexcept {
    std::fill(out.begin(), out.end(), fixed{0});
    for (std::size_t j = 0; j < num_columns_; ++j) {
      auto const variable = static_cast<std::size_t>(nonbasic_[j]);
      if (variable >= num_columns_) { out[variable - num_columns_] = std::max<fixed>(reduced_[j], 0); }
    }
  }

private:
  static constexpr index_t none = -1;
  static constexpr fixed tiny = one >> 9;     ///< coefficients and shortfalls below are rounding
  static constexpr fixed leeway = one >> 12;  ///< reduced costs may end up below zero by this

  [[nodiscard]] static fixed times(fixed a, fixed b) noexcept { return (a * b) >> scale_bits; }
  [[nodiscard]] std::span<fixed> row_at(std::size_t row) noexcept {
    return std::span{rows_}.subspan(row * num_columns_, num_columns_);
  }

  [[nodiscard]] std::size_t most_violated() const noexcept {
    auto const least = std::min_element(constant_.begin(), constant_.end());
    return least == constant_.end() || *least > -tiny ? constant_.size()
                                                      : static_cast<std::size_t>(least - constant_.begin());
  }
  /// Least reduced cost for what the variable adds to the row. Among those that are nearly least, the one that adds
  /// most: small pivots would magnify rounding.
  [[nodiscard]] std::size_t entering(std::size_t row) noexcept {
    auto const coefficients = row_at(row);
    auto least = std::numeric_limits<fixed>::max();
    for (std::size_t j = 0; j < num_columns_; ++j) {
      if (coefficients[j] < tiny) { continue; }
      least = std::min(least, ((std::max<fixed>(reduced_[j], 0) + leeway) << scale_bits) / coefficients[j]);
    }
    std::size_t best = num_columns_;
    for (std::size_t j = 0; j < num_columns_; ++j) {
      if (coefficients[j] < tiny || (best != num_columns_ && coefficients[j] <= coefficients[best])) { continue; }
      if (reduced_[j] <= times(least, coefficients[j])) { best = j; }
    }
    return best;
  }

  /// Exchange the basic variable of a row for a nonbasic one.
  void pivot(std::size_t row, std::size_t column) noexcept {
    auto const pivot_row = row_at(row);
    auto const inverse = (fixed{1} << (2 * scale_bits)) / pivot_row[column];
    for (std::size_t j = 0; j < num_columns_; ++j) { pivot_row[j] = -times(pivot_row[j], inverse); }
    pivot_row[column] = inverse;
    constant_[row] = -times(constant_[row], inverse);
    for (std::size_t i = 0; i < basic_.size(); ++i) {
      if (i != row) { constant_[i] += substitute(row_at(i), pivot_row, column, constant_[row]); }
    }
    objective_ += substitute(reduced_, pivot_row, column, constant_[row]);
    auto const leaving = basic_[row];
    basic_[row] = nonbasic_[column];
    nonbasic_[column] = leaving;
    row_of_[static_cast<std::size_t>(basic_[row])] = static_cast<index_t>(row);
    row_of_[static_cast<std::size_t>(leaving)] = none;
  }
  /// Replace a variable in a row by the row that it stands for. @return what the row's constant gains
  static fixed substitute(std::span<fixed> row, std::span<fixed const> stands_for, std::size_t column,
                          fixed constant) noexcept {
    auto const factor = row[column];
    if (factor == 0) { return 0; }
    row[column] = 0;
    for (std::size_t j = 0; j < row.size(); ++j) { row[j] += times(factor, stands_for[j]); }
    return times(factor, constant);
  }

  std::size_t num_columns_ = 0;
  std::vector<fixed> rows_;      // [rows, columns] basic = constant + sum(row * nonbasic)
  std::vector<fixed> constant_;  // [rows] values of the basic variables
  std::vector<fixed> reduced_;   // [columns] of the nonbasic variables
  std::vector<index_t> basic_;
  std::vector<index_t> nonbasic_;
  std::vector<index_t> row_of_;  // row of each variable that is basic
  fixed objective_ = 0;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
