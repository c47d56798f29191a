// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/gate.hpp>

#include <doctest/doctest.h>

#include <limits>

namespace {
using namespace ballast;

static_assert(pass_gate{}.admits({}), "by default every pass counts");
static_assert(!pass_gate{}.admits({.counted = false}));
}  // namespace

TEST_CASE("a gate lets through the phases of its mask") {
  pass_gate const no_decode{.phases = phase::prefill | phase::mixed};
  CHECK(no_decode.admits({.phase = phase::prefill}));
  CHECK(no_decode.admits({.phase = phase::mixed}));
  CHECK_FALSE(no_decode.admits({.phase = phase::decode}));
  CHECK_FALSE(no_decode.admits({.counted = false, .phase = phase::prefill}));
  CHECK_FALSE(pass_gate{.phases = 0}.admits({}));
  CHECK((phase::prefill | phase::decode | phase::mixed) == all_phases);
}

TEST_CASE("a gate wants a minimum of tokens, the minimum included") {
  pass_gate const representative{.min_tokens = 512};
  CHECK_FALSE(representative.admits({.tokens = 511}));
  CHECK(representative.admits({.tokens = 512}));
  CHECK(representative.admits({.tokens = std::numeric_limits<std::int64_t>::max()}));
}

TEST_CASE("both options are in what the ranks compare") {
  auto const value_of = [](pass_gate gate) {
    digest out;
    gate.describe(out);
    return out.value();
  };
  CHECK(value_of({}) == value_of({}));
  CHECK(value_of({}) != value_of({.phases = to_mask(phase::decode)}));
  CHECK(value_of({}) != value_of({.min_tokens = 1}));
}
