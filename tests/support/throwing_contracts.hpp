// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Force-included into every test translation unit, before any library header.
#ifndef BALLAST_TESTS_SUPPORT_THROWING_CONTRACTS_HPP
#define BALLAST_TESTS_SUPPORT_THROWING_CONTRACTS_HPP

#include <ostream>  // doctest prints what it compares, error codes too
#include <stdexcept>

namespace ballast_test {
/// What a broken contract becomes in tests, so that a test can ask for it with `CHECK_BREAKS_CONTRACT`.
struct contract_error : std::logic_error {
  using std::logic_error::logic_error;
};
[[noreturn]] inline void on_violation(char const* what, char const* /*file*/, int /*line*/) {
  throw contract_error{what};
}
}  // namespace ballast_test

#define BALLAST_CONTRACT_HANDLER(what, file, line) ::ballast_test::on_violation(what, file, line)

// That an expression breaks a documented precondition. At level 0, where nobody would notice, it is only compiled.
#if BALLAST_CONTRACT_LEVEL >= 1
  #define CHECK_BREAKS_CONTRACT(...) CHECK_THROWS_AS(static_cast<void>(__VA_ARGS__), ::ballast_test::contract_error)
#else
  #define CHECK_BREAKS_CONTRACT(...) (false ? static_cast<void>(__VA_ARGS__) : static_cast<void>(0))
#endif

#endif
