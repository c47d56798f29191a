// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/gate.hpp>

#include <doctest/doctest.h>

#include <limits>
#include <ostream>
#include <string>
#include <vector>

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

TEST_CASE("a gate that nothing passes, bits that are no phase and a negative minimum are refused by value") {
  for (phase_mask phases = 1; phases <= all_phases; ++phases) { CHECK(pass_gate{.phases = phases}.validate().ok()); }
  CHECK(pass_gate{.min_tokens = std::numeric_limits<std::int64_t>::max()}.validate().ok());
  auto const refused = [](pass_gate gate, std::string const& message) {
    CHECK(gate.validate().code() == errc::invalid_option);
    CHECK(gate.validate().message() == "pass_gate: " + message);
  };
  refused({.phases = 0}, "phases is 0: no pass would ever count");
  refused({.phases = 8}, "phases is 8, which has bits beyond 7 that are no phase");
  refused({.phases = 15}, "phases is 15, which has bits beyond 7 that are no phase");
  refused({.phases = 0x80000001u}, "phases is 2147483649, which has bits beyond 7 that are no phase");
  refused({.min_tokens = -1}, "min_tokens is -1, must not be negative");
  refused({.min_tokens = std::numeric_limits<std::int64_t>::min()},
          "min_tokens is -9223372036854775808, must not be negative");
}

TEST_CASE("a pass of no phase, of two, or with negative tokens is refused by value and never counts") {
  for (auto const one : {phase::prefill, phase::decode, phase::mixed}) {
    CHECK(pass_info{.phase = one}.validate().ok());
  }
  for (std::uint32_t const value : {0u, 3u, 5u, 6u, 7u, 8u, 9u, 0xffffffffu}) {
    CAPTURE(value);
    pass_info const pass{.phase = static_cast<phase>(value), .tokens = 100};
    CHECK(pass.validate().code() == errc::invalid_option);
    CHECK(pass.validate().message().find("phase is " + std::to_string(value) + ",") != std::string::npos);
    CHECK_FALSE(pass_gate{}.admits(pass));
    CHECK_FALSE(pass_gate{.phases = ~phase_mask{0}}.admits(pass));
  }
  pass_info const negative{.tokens = -1};
  CHECK(negative.validate().message() == "pass_info: tokens is -1, must not be negative");
  CHECK_FALSE(pass_gate{.min_tokens = -5}.admits(negative));
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
