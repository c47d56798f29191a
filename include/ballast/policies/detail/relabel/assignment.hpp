// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_RELABEL_ASSIGNMENT_HPP
#define BALLAST_POLICIES_DETAIL_RELABEL_ASSIGNMENT_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Matches rows to columns one to one for the least total cost, exactly.
///
/// Rows whose cheapest column is free take it; every other row is settled by a shortest augmenting path over reduced
/// costs, which ends at the first free column. Costs of overlaps are mostly equal, so paths are short.
///
/// @threads distinct solvers are independent; no allocation once the size has been seen.
/// @source R. Jonker and A. Volgenant, "A shortest augmenting path algorithm", Computing 38 (1987)
class assignment_solver {
public:
  using cost_t = std::int64_t;

  /// @param cost    [n, n] cost of giving a row a column; sums of n of them fit.
  /// @param column  out: [n] column of each row.
  /// @return the total cost.
  /// @complexity O(n^3) at worst, O(n^2) where most rows find a free cheapest column.
  /// @determinism among equal solutions the lowest columns are tried first.
  cost_t solve(matrix_view<cost_t const> cost, std::span<index_t> column) {
    BALLAST_ASSERT(cost.rows() == cost.columns(), "assignment_solver: not square");
    auto const size = static_cast<std::size_t>(cost.rows());
    column_price_.assign(size, 0);
    row_of_.assign(size, none);
    column_of_ = column;
    std::fill(column.begin(), column.end(), none);
    distance_.resize(size);
    from_row_.resize(size);
    done_.resize(size);
    row_price_.resize(size);
    for (index_t row = 0; row < cost.rows(); ++row) { take_cheapest(cost, row); }
    for (index_t row = 0; row < cost.rows(); ++row) {
      if (at(column, row) == none) { augment(cost, row); }
    }
    cost_t total = 0;
    for (index_t row = 0; row < cost.rows(); ++row) { total += cost(row, at(column, row)); }
    return total;
  }

private:
  static constexpr index_t none = -1;

  void take_cheapest(matrix_view<cost_t const> cost, index_t row) {
    auto const costs = cost.row(row);
    auto const least = *std::min_element(costs.begin(), costs.end());
    at(row_price_, row) = least;
    for (index_t column = 0; column < cost.columns(); ++column) {
      if (at(costs, column) == least && at(row_of_, column) == none) {
        at(row_of_, column) = row;
        at(column_of_, row) = column;
        return;
      }
    }
  }

  /// Shortest path from a row without column to a column without row; the rows on it shift along.
  void augment(matrix_view<cost_t const> cost, index_t start) {
    auto const size = cost.columns();
    std::fill(distance_.begin(), distance_.end(), std::numeric_limits<cost_t>::max());
    std::fill(done_.begin(), done_.end(), static_cast<unsigned char>(0));
    cost_t reached = 0;
    index_t row = start;
    index_t last = none;
    while (last == none) {
      auto const costs = cost.row(row);
      auto const base = reached - at(row_price_, row);
      index_t nearest = none;
      cost_t least = std::numeric_limits<cost_t>::max();
      for (index_t column = 0; column < size; ++column) {
        if (at(done_, column) != 0) { continue; }
        auto& distance = at(distance_, column);
        auto const over = base + at(costs, column) - at(column_price_, column);
        if (over < distance) {
          distance = over;
          at(from_row_, column) = row;
        }
        bool const free_now = at(row_of_, column) == none;
        if (distance < least || (distance == least && free_now && at(row_of_, nearest) != none)) {
          least = distance;
          nearest = column;
        }
      }
      reached = least;
      at(done_, nearest) = 1;
      if (at(row_of_, nearest) == none) {
        last = nearest;
      } else {
        row = at(row_of_, nearest);
      }
    }
    reprice(start, reached);
    for (index_t column = last; column != none;) {
      auto const owner = at(from_row_, column);
      std::swap(column, at(column_of_, owner));
      at(row_of_, at(column_of_, owner)) = owner;
      if (owner == start) { break; }
    }
  }

  void reprice(index_t start, cost_t reached) noexcept {
    at(row_price_, start) += reached;
    for (std::size_t column = 0; column < done_.size(); ++column) {
      if (done_[column] == 0 || row_of_[column] == none) { continue; }
      auto const saved = reached - distance_[column];
      column_price_[column] -= saved;
      at(row_price_, row_of_[column]) += saved;
    }
  }

  std::vector<cost_t> row_price_;     // [n]
  std::vector<cost_t> column_price_;  // [n]
  std::vector<cost_t> distance_;      // [n]
  std::vector<index_t> from_row_;     // [n]
  std::vector<index_t> row_of_;       // [n] of each column
  std::vector<unsigned char> done_;   // [n]
  std::span<index_t> column_of_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
