// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/transport/in_process.hpp>

#include "support/control_laws.hpp"
#include "support/in_process_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstdint>

namespace {

using ballast::errc;
using ballast::in_process_endpoint;
using ballast_test::in_process_runner;

}  // namespace

TEST_CASE("threads of one process obey the laws of a control plane") {
  ballast_test::check_control_laws(in_process_runner{});
}

TEST_CASE("threads of one process obey the laws of a transport") {
  ballast_test::check_transport_laws(in_process_runner{});
}

TEST_CASE("an expelled rank is refused by every call, and the membership grows") {
  ballast::in_process_group group{3};
  auto const before = group.endpoint(0).membership();
  group.expel(2);
  CHECK(group.endpoint(0).membership() > before);

  auto& expelled = group.endpoint(2);
  std::array<std::int64_t, 1> value{};
  std::array<std::uint64_t, 1> mine{};
  std::array<std::uint64_t, 3> all{};
  std::array<std::byte, 1> bytes{};
  auto const stale = make_error_code(errc::stale_membership);
  CHECK(expelled.all_reduce(value, ballast_test::patience).code() == stale);
  CHECK(expelled.all_gather(mine, all, ballast_test::patience).code() == stale);
  CHECK(expelled.broadcast(bytes, 0, ballast_test::patience).code() == stale);
  CHECK(expelled.vote(true, ballast_test::patience).reason.code() == stale);
  CHECK(expelled.start({}, {}).code() == stale);
}

TEST_CASE("ranks that call different collectives are told so") {
  ballast::in_process_group group{2};
  std::array<ballast::status, 2> results;
  group.run([&](in_process_endpoint& self) {
    std::array<std::int64_t, 1> value{};
    results[static_cast<std::size_t>(self.rank())] = self.rank() == 0 ? self.all_reduce(value, ballast_test::patience)
                                                                      : self.vote(true, ballast_test::patience).reason;
  });
  for (auto const& result : results) {
    CHECK(result.code() == make_error_code(errc::disagreement));
    CHECK(result.message().find("vote") != std::string::npos);
    CHECK(result.message().find("all_reduce") != std::string::npos);
  }
}

TEST_CASE("a second batch is refused while one is open") {
  ballast::in_process_group group{2};
  auto& self = group.endpoint(0);
  REQUIRE(self.start({}, {}).ok());
  CHECK(self.start({}, {}).code() == make_error_code(errc::busy));
  CHECK(self.wait(0).ok());
  CHECK(self.start({}, {}).ok());
  CHECK(self.wait(0).ok());
}
