// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Force-included into every test translation unit, before any library header.
#ifndef BALLAST_TESTS_SUPPORT_THROWING_CONTRACTS_HPP
#define BALLAST_TESTS_SUPPORT_THROWING_CONTRACTS_HPP

#include <stdexcept>

namespace ballast_test {
/// What a broken contract becomes in tests, so that a test can ask for it with `CHECK_THROWS_AS`.
struct contract_error : std::logic_error {
  using std::logic_error::logic_error;
};
[[noreturn]] inline void on_violation(char const* what, char const* /*file*/, int /*line*/) {
  throw contract_error{what};
}
}  // namespace ballast_test

#define BALLAST_CONTRACT_HANDLER(what, file, line) ::ballast_test::on_violation(what, file, line)

#endif
