// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_LAW_LOG_HPP
#define BALLAST_TESTS_SUPPORT_LAW_LOG_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <initializer_list>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace ballast_test {

/// What one rank of a group has found wrong. Ranks may be threads or processes, where doctest's own checks do not
/// reach.
class law_log {
public:
  explicit law_log(ballast::index_t rank) : rank_{rank} {}

  template <class... Parts>
  bool expect(bool holds, Parts const&... what) {
    if (!holds) { complaints_.push_back(ballast::detail::concat("rank ", rank_, ": ", what...)); }
    return holds;
  }
  bool expect_ok(ballast::status const& result, std::string_view what) {
    return expect(result.ok(), what, " failed: ", result.message());
  }
  /// A failure with one of `codes` whose message holds `fragment`.
  bool expect_failure(ballast::status const& result, std::initializer_list<ballast::errc> codes,
                      std::string_view fragment, std::string_view what) {
    bool known = false;
    for (auto const code : codes) { known = known || result.code() == make_error_code(code); }
    return expect(known, what, ": wrong code '", result.code().message(), "', message: ", result.message()) &&
           expect(result.message().find(fragment) != std::string::npos, what, ": '", result.message(),
                  "' does not name '", fragment, "'");
  }

  [[nodiscard]] std::vector<std::string> const& complaints() const noexcept { return complaints_; }

private:
  ballast::index_t rank_;
  std::vector<std::string> complaints_;
};

}  // namespace ballast_test

#endif
