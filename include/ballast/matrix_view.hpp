// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MATRIX_VIEW_HPP
#define BALLAST_MATRIX_VIEW_HPP

#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>

BALLAST_BEGIN_NAMESPACE

/// A row-major matrix that somebody else owns, `[rows, columns]`.
///
/// @lifetime the elements must outlive the view. Copying a view copies a pointer and two sizes.
template <class T>
class matrix_view {
public:
  constexpr matrix_view() = default;
  /// @pre `elements.size() == rows * columns`, both non-negative
  constexpr matrix_view(std::span<T> elements, index_t rows, index_t columns)
      : data_{elements.data()}, rows_{rows}, columns_{columns} {
    BALLAST_EXPECTS(rows >= 0 && columns >= 0, "matrix_view: negative extent");
    BALLAST_EXPECTS(elements.size() == static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns),
                    "matrix_view: element count is not rows * columns");
  }
  /// A view of mutable elements is also a view of constant ones.
  template <class U>
    requires(std::same_as<U const, T> && !std::same_as<U, T>)
  constexpr matrix_view(matrix_view<U> other) noexcept  // NOLINT(google-explicit-constructor): as `std::span`
      : data_{other.elements().data()}, rows_{other.rows()}, columns_{other.columns()} {}

  [[nodiscard]] constexpr index_t rows() const noexcept { return rows_; }
  [[nodiscard]] constexpr index_t columns() const noexcept { return columns_; }
  [[nodiscard]] constexpr std::span<T> elements() const noexcept {
    return {data_, static_cast<std::size_t>(rows_) * static_cast<std::size_t>(columns_)};
  }
  /// One row, `[columns]`. @pre `0 <= row < rows()`
  [[nodiscard]] constexpr std::span<T> row(index_t row) const {
    BALLAST_EXPECTS_BELOW(row, rows_, "matrix_view: row");
    return {data_ + static_cast<std::ptrdiff_t>(row) * columns_, static_cast<std::size_t>(columns_)};
  }
  /// @pre both indices in range
  [[nodiscard]] constexpr T& operator()(index_t row, index_t column) const {
    BALLAST_EXPECTS(row >= 0 && row < rows_ && column >= 0 && column < columns_, "matrix_view: index out of range");
    return data_[static_cast<std::ptrdiff_t>(row) * columns_ + column];
  }

private:
  T* data_ = nullptr;
  index_t rows_ = 0;
  index_t columns_ = 0;
};

BALLAST_END_NAMESPACE

#endif
