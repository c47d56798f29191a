// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_COVERING_LP_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_COVERING_LP_HPP

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

/// A linear program with few rows and many columns, min c x subject to A x >= b, x >= 0 with c >= 0, solved by the
/// revised simplex method while it grows: rows are added and feasibility is restored by dual steps, columns are added
/// and optimality is restored by primal ones.
///
/// The matrix stays with the caller, as `columns`, whole numbers throughout:
/// - `columns.size()`; `columns.cost(j)`; `columns.is_fixed(j)` for columns that have to stay at zero;
/// - `columns.combine(weights, out)`: out[j] = sum over rows of weights[row] * A[row][j];
/// - `columns.coefficient(row, j)`: A[row][j].
///
/// Fixed-point arithmetic: the same result on every machine and under every flag, at the price of small rounding
/// errors. Whoever needs a proof evaluates the multipliers exactly; any that are >= 0 give a valid bound.
class covering_lp {
public:
  using fixed = std::int64_t;
  static constexpr int scale_bits = 22;
  static constexpr fixed one = fixed{1} << scale_bits;

  /// Start over without rows.
  void reset() {
    basic_.clear();
    constant_.clear();
    price_.clear();
    on_slack_.clear();
    row_of_column_.clear();
    objective_ = 0;
  }

  [[nodiscard]] std::size_t num_rows() const noexcept { return basic_.size(); }
  [[nodiscard]] fixed objective() const noexcept { return objective_; }
  /// Multipliers of the rows; rounding may leave them a little below zero.
  [[nodiscard]] std::span<fixed const> multipliers() const noexcept { return price_; }
  /// Value of a column's variable.
  [[nodiscard]] fixed value(std::size_t column) const noexcept {
    auto const row = column < row_of_column_.size() ? row_of_column_[column] : none;
    return row == none ? 0 : std::max<fixed>(constant_[static_cast<std::size_t>(row)], 0);
  }
  /// Calls `visit(column, value)` for every column that is not zero.
  template <class Visit>
  void for_each_value(Visit visit) const {
    for (std::size_t i = 0; i < basic_.size(); ++i) {
      if (basic_[i] >= 0 && constant_[i] > 0) { visit(static_cast<std::size_t>(basic_[i]), constant_[i]); }
    }
  }

  /// Take in the row that `columns` has as its last: sum(coefficients x) >= bound. @complexity O(rows^2)
  template <class Columns>
  void add_row(Columns const& columns, index_t bound) {
    auto const row = basic_.size();
    widen();
    fixed constant = -bound * one;
    // Basic columns are replaced by what they stand for.
    for (std::size_t i = 0; i < row; ++i) {
      if (basic_[i] < 0) { continue; }
      auto const factor = columns.coefficient(row, static_cast<std::size_t>(basic_[i]));
      if (factor == 0) { continue; }
      constant += factor * constant_[i];
      for (std::size_t q = 0; q < row; ++q) { slope(row, q) += factor * slope(i, q); }
    }
    basic_.push_back(slack_of(row));
    constant_.push_back(constant);
    price_.push_back(0);
  }

  /// Restore feasibility after rows were added. @return false when the work is used up, the objective has passed the
  /// limit, or the rows contradict each other.
  template <class Columns>
  bool make_feasible(Columns const& columns, fixed limit, std::int64_t& work) {
    row_of_column_.resize(columns.size(), none);
    while (objective_ <= limit && work > 0) {
      auto const row = most_violated();
      if (row == basic_.size()) { return true; }
      auto const entering = find_entering(columns, row);
      if (entering == nothing) { return false; }
      pivot(columns, row, entering, work);
    }
    return false;
  }
  /// Restore optimality after columns were added to a feasible program. @return false when the work is used up.
  template <class Columns>
  bool make_optimal(Columns const& columns, std::int64_t& work) {
    row_of_column_.resize(columns.size(), none);
    while (work > 0) {
      auto const entering = most_paying(columns);
      if (entering == nothing) { return true; }
      fill_column(columns, entering);
      auto const row = find_leaving();
      if (row == basic_.size()) { return false; }
      pivot(columns, row, entering, work);
    }
    return false;
  }

private:
  // Variables are columns, >= 0, or the slacks of rows, < 0.
  static constexpr index_t none = -1;
  static constexpr index_t nothing = std::numeric_limits<index_t>::max();
  static constexpr fixed tiny = one >> 9;     ///< coefficients and shortfalls below are rounding
  static constexpr fixed leeway = one >> 12;  ///< reduced costs may end up below zero by this

  [[nodiscard]] static index_t slack_of(std::size_t row) noexcept { return -1 - static_cast<index_t>(row); }
  [[nodiscard]] static std::size_t row_of_slack(index_t slack) noexcept { return static_cast<std::size_t>(-1 - slack); }
  [[nodiscard]] static fixed times(fixed a, fixed b) noexcept { return (a * b) >> scale_bits; }
  /// The least of several ratios of a value, a little raised, to a positive rate; divisions are slow.
  struct least_ratio {
    fixed value = 1;
    fixed rate = 0;  ///< 0: none yet
    void consider(fixed candidate, fixed candidate_rate) noexcept {
      auto const raised = std::max<fixed>(candidate, 0) + leeway;
      if (rate == 0 || raised * rate < value * candidate_rate) {
        value = raised;
        rate = candidate_rate;
      }
    }
    /// Whether another ratio, not raised, is no larger.
    [[nodiscard]] bool admits(fixed candidate, fixed candidate_rate) const noexcept {
      return candidate * rate <= value * candidate_rate;
    }
  };

  /// How a basic variable grows with a nonbasic slack; 0 for basic slacks.
  [[nodiscard]] fixed& slope(std::size_t row, std::size_t slack) noexcept { return on_slack_[row * stride_ + slack]; }
  [[nodiscard]] fixed slope(std::size_t row, std::size_t slack) const noexcept {
    return on_slack_[row * stride_ + slack];
  }
  /// Make room for one more row and slack.
  void widen() {
    auto const rows = basic_.size();
    if (rows + 1 > stride_) {
      auto const wider = stride_ * 2 + 16;
      std::vector<fixed> copy(wider * wider);
      for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t q = 0; q < rows; ++q) { copy[i * wider + q] = slope(i, q); }
      }
      on_slack_ = copy;
      stride_ = wider;
      return;
    }
    on_slack_.resize(std::max(on_slack_.size(), stride_ * stride_));
    for (std::size_t i = 0; i <= rows; ++i) { slope(i, rows) = slope(rows, i) = 0; }
  }

  [[nodiscard]] std::size_t most_violated() const noexcept {
    auto const least = std::min_element(constant_.begin(), constant_.end());
    return least == constant_.end() || *least > -tiny ? constant_.size()
                                                      : static_cast<std::size_t>(least - constant_.begin());
  }
  template <class Columns>
  void fill_reduced(Columns const& columns) {
    reduced_.resize(columns.size());
    columns.combine(price_, reduced_);
    for (std::size_t j = 0; j < reduced_.size(); ++j) { reduced_[j] = columns.cost(j) * one - reduced_[j]; }
  }
  [[nodiscard]] bool may_enter(auto const& columns, std::size_t column) const noexcept {
    return row_of_column_[column] == none && !columns.is_fixed(column);
  }

  /// Variable with the least reduced cost for what it adds to the row. Among those that are nearly least, the one that
  /// adds most: small pivots would magnify rounding.
  template <class Columns>
  [[nodiscard]] index_t find_entering(Columns const& columns, std::size_t row) {
    fill_reduced(columns);
    weights_.assign(basic_.size(), 0);
    for (std::size_t q = 0; q < basic_.size(); ++q) { weights_[q] = -slope(row, q); }
    if (basic_[row] < 0) { weights_[row_of_slack(basic_[row])] += one; }
    adds_.resize(columns.size());
    columns.combine(weights_, adds_);
    least_ratio least;
    for (std::size_t j = 0; j < adds_.size(); ++j) {
      if (adds_[j] >= tiny && may_enter(columns, j)) { least.consider(reduced_[j], adds_[j]); }
    }
    for (std::size_t q = 0; q < basic_.size(); ++q) {
      if (slope(row, q) >= tiny) { least.consider(price_[q], slope(row, q)); }
    }
    index_t best = nothing;
    fixed most = tiny - 1;
    for (std::size_t j = 0; j < adds_.size(); ++j) {
      if (adds_[j] <= most || !least.admits(reduced_[j], adds_[j]) || !may_enter(columns, j)) { continue; }
      best = static_cast<index_t>(j);
      most = adds_[j];
    }
    for (std::size_t q = 0; q < basic_.size(); ++q) {
      if (slope(row, q) <= most || !least.admits(price_[q], slope(row, q))) { continue; }
      best = slack_of(q);
      most = slope(row, q);
    }
    if (best != nothing) { fill_column(columns, best); }
    return best;
  }
  template <class Columns>
  [[nodiscard]] index_t most_paying(Columns const& columns) {
    fill_reduced(columns);
    index_t best = nothing;
    fixed least = -leeway;
    for (std::size_t j = 0; j < reduced_.size(); ++j) {
      if (reduced_[j] >= least || !may_enter(columns, j)) { continue; }
      best = static_cast<index_t>(j);
      least = reduced_[j];
    }
    for (std::size_t q = 0; q < basic_.size(); ++q) {
      if (price_[q] >= least) { continue; }
      best = slack_of(q);
      least = price_[q];
    }
    return best;
  }
  /// How every basic variable grows with a nonbasic one.
  template <class Columns>
  void fill_column(Columns const& columns, index_t variable) {
    column_.assign(basic_.size(), 0);
    if (variable < 0) {
      for (std::size_t i = 0; i < basic_.size(); ++i) { column_[i] = slope(i, row_of_slack(variable)); }
      return;
    }
    for (std::size_t q = 0; q < basic_.size(); ++q) {
      auto const coefficient = columns.coefficient(q, static_cast<std::size_t>(variable));
      if (coefficient == 0) { continue; }
      for (std::size_t i = 0; i < basic_.size(); ++i) {
        column_[i] += coefficient * ((basic_[i] == slack_of(q) ? one : 0) - slope(i, q));
      }
    }
  }
  /// Row whose basic variable reaches zero first when the filled-in variable grows; among those nearly first, the
  /// steepest.
  [[nodiscard]] std::size_t find_leaving() const noexcept {
    least_ratio least;
    for (std::size_t i = 0; i < basic_.size(); ++i) {
      if (-column_[i] >= tiny) { least.consider(constant_[i], -column_[i]); }
    }
    auto best = basic_.size();
    fixed most = tiny - 1;
    for (std::size_t i = 0; i < basic_.size(); ++i) {
      if (-column_[i] <= most || !least.admits(constant_[i], -column_[i])) { continue; }
      best = i;
      most = -column_[i];
    }
    return best;
  }

  /// Exchange the basic variable of a row for the one whose column is filled in.
  template <class Columns>
  void pivot(Columns const& columns, std::size_t row, index_t entering, std::int64_t& work) {
    auto const rows = basic_.size();
    auto const inverse = (fixed{1} << (2 * scale_bits)) / column_[row];
    auto const leaving = basic_[row];
    auto const reduced = entering < 0 ? price_[row_of_slack(entering)] : reduced_[static_cast<std::size_t>(entering)];
    for (std::size_t q = 0; q < rows; ++q) { slope(row, q) = -times(slope(row, q), inverse); }
    if (entering < 0) { slope(row, row_of_slack(entering)) = 0; }
    if (leaving < 0) { slope(row, row_of_slack(leaving)) = inverse; }
    constant_[row] = -times(constant_[row], inverse);
    for (std::size_t i = 0; i < rows; ++i) {
      if (i == row) { continue; }
      if (entering < 0) { slope(i, row_of_slack(entering)) = 0; }
      if (column_[i] == 0) { continue; }
      constant_[i] += times(column_[i], constant_[row]);
      for (std::size_t q = 0; q < rows; ++q) { slope(i, q) += times(column_[i], slope(row, q)); }
    }
    if (entering < 0) { price_[row_of_slack(entering)] = 0; }
    for (std::size_t q = 0; q < rows; ++q) { price_[q] += times(reduced, slope(row, q)); }
    objective_ += times(reduced, constant_[row]);
    basic_[row] = entering;
    if (entering >= 0) { row_of_column_[static_cast<std::size_t>(entering)] = static_cast<index_t>(row); }
    if (leaving >= 0) { row_of_column_[static_cast<std::size_t>(leaving)] = none; }
    work -= static_cast<std::int64_t>(2 * rows * rows + 4 * columns.size());
  }

  std::size_t stride_ = 0;
  std::vector<index_t> basic_;
  std::vector<fixed> constant_;  // values of the basic variables
  std::vector<fixed> price_;     // [rows] reduced costs of the nonbasic slacks
  std::vector<fixed> on_slack_;  // [stride, stride]
  std::vector<index_t> row_of_column_;
  fixed objective_ = 0;
  std::vector<fixed> reduced_;  // [columns] scratch
  std::vector<fixed> weights_;  // [rows] scratch
  std::vector<fixed> adds_;     // [columns] scratch
  std::vector<fixed> column_;   // [rows] scratch
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
