// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/posix/detail/regroup_word.hpp>
#include <ballast/posix/detail/suspicion.hpp>

#include <doctest/doctest.h>

#include <cstdint>

using namespace ballast::posix::detail;

TEST_CASE("a suspicion stays within its bits, whomever it names") {
  for (ballast::index_t const culprit : {0, 63, 255, -1}) {
    CAPTURE(culprit);
    auto const word = pack({cause::late, culprit});
    CHECK((word >> suspicion_bits) == 0);
    CHECK(unpack(word).why == cause::late);
    CHECK(unpack(word).culprit == (culprit & 0xff));
    CHECK(is_of(pack_in(7, {cause::late, culprit}), 7));
    regroup_word const failed{3, regroup_word::state::failed, 0, {cause::late, culprit}};
    CHECK(regroup_word::unpack(failed.pack()).attempt == 3);
  }
}
