// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_TWO_RANKS_HPP
#define BALLAST_TESTS_SUPPORT_TWO_RANKS_HPP

#include <ballast/transport/in_process.hpp>

namespace ballast_test {

/// Run the same body on two in-process ranks.
template <class Body>
void on_two_ranks(Body body) {
  ballast::in_process_group group{2};
  group.run(body);
}

}  // namespace ballast_test

#endif
