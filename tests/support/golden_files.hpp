// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_GOLDEN_FILES_HPP
#define BALLAST_TESTS_SUPPORT_GOLDEN_FILES_HPP

#include <ballast/matrix_view.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <string>
#include <vector>

namespace ballast_test {

/// What the published reference planned for one problem, in its stable order.
struct golden_case {
  std::string name;
  ballast::topology where;
  ballast::index_t num_groups = 1;
  ballast::index_t num_layers = 0;
  ballast::index_t num_logical = 0;
  std::vector<ballast::load_t> loads;                                ///< [L, E]
  std::vector<std::vector<ballast::index_t>> logical_of_slot;        ///< [L][P]
  std::vector<std::vector<std::vector<ballast::index_t>>> replicas;  ///< [L][E], without the padding

  [[nodiscard]] ballast::matrix_view<ballast::load_t const> view() const { return {loads, num_layers, num_logical}; }
};

/// All cases of tests/data/golden, by name. Compiled apart: reading JSON takes longer to compile than most tests.
[[nodiscard]] std::vector<golden_case> read_golden_cases();

}  // namespace ballast_test

#endif
