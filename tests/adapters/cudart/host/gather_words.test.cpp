// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/detail/gather_words.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/group_runner.hpp"

#include <doctest/doctest.h>

using namespace ballast;

TEST_CASE("who is ill is named, and not the expelled rank that its words stand in for") {
  for (auto const code : {errc::out_of_memory, errc::peer_lost}) {
    in_process_group group{3};
    group.expel(0);
    group.run([&](in_process_endpoint& wire) {
      if (wire.rank() == 0) { return; }
      auto const mine = wire.rank() == 1 ? status{code, "its own", 2} : status{};
      auto const result = cudart::detail::meet(wire, mine, ballast::detail::deadline_after(ballast_test::patience));
      CHECK(result.code() == (wire.rank() == 1 ? code : errc::peer_lost));
      CHECK(result.rank() == (wire.rank() == 1 ? 2 : 1));
    });
  }
}
