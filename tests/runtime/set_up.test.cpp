// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/runtime/detail/set_up.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/in_process.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <string>
#include <system_error>

using namespace ballast;

namespace {

constexpr nanoseconds_t patience = 30'000'000'000;

// What each of three ranks hears where these are their own failures.
std::array<status, 3> heard(std::array<status, 3> const& own) {
  std::array<status, 3> results;
  in_process_group group{3};
  group.run([&](in_process_endpoint& me) {
    auto const rank = static_cast<std::size_t>(me.rank());
    results[rank] = detail::all_ready(me, own[rank], "start", patience);
  });
  return results;
}

}  // namespace

TEST_CASE("all are ready where nobody has a failure") {
  for (auto const& result : heard({})) { CHECK(result.ok()); }
}

TEST_CASE("a rank that is not ready is heard by all, its own words stay its own") {
  auto const results = heard({{{}, {errc::out_of_memory, "too small"}, {}}});
  CHECK(results[1].message() == "too small");
  for (auto const rank : {0u, 2u}) {
    CHECK(results[rank].code() == errc::out_of_memory);
    CHECK(results[rank].rank() == 1);
    CHECK(results[rank].message() == "rank 1 cannot start: out of memory; that rank's own error says more");
  }
}

TEST_CASE("a failure that is not of this library is heard as one of the transport") {
  auto const results = heard({{{}, {std::make_error_code(std::errc::io_error), "a driver"}, {}}});
  CHECK(results[0].code() == errc::transport_failed);
}

TEST_CASE("a rank that is not ready because of another is not the one to blame") {
  status const late{errc::deadline_exceeded, "rank 2 is late", 2};
  auto results = heard({{{}, late, {}}});
  CHECK(results[0].rank() == 2);
  CHECK(results[2].rank() == 2);
  CHECK(results[0].message() ==
        "rank 1 cannot start because of rank 2: deadline exceeded; that rank's own error says more");
  // One with a reason of its own stands before those that only suffer from it.
  results = heard({{late, {}, {errc::invalid_weights, "overlap"}}});
  CHECK(results[1].rank() == 2);
  CHECK(results[1].code() == errc::invalid_weights);
  CHECK(results[0].rank() == 2);
}
