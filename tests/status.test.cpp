// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/status.hpp>

#include <doctest/doctest.h>

#include <ostream>  // doctest prints error codes
#include <set>
#include <string>
#include <system_error>

using namespace ballast;

TEST_CASE("success is the default and says nothing") {
  status const good;
  CHECK(good.ok());
  CHECK(good.message().empty());
  CHECK_FALSE(good.code());
  CHECK_NOTHROW(good.or_throw());
}

TEST_CASE("a failure carries a code to branch on and a sentence") {
  status const bad{errc::invalid_load, "load of layer 3 is -1"};
  CHECK_FALSE(bad.ok());
  CHECK(bad.code() == errc::invalid_load);
  CHECK(bad.code() != errc::invalid_topology);
  CHECK(bad.message() == "load of layer 3 is -1");
}

TEST_CASE("a failure can be thrown, code and sentence with it") {
  status const bad{errc::not_enough_slots, "4 slots cannot hold 5 experts"};
  try {
    bad.or_throw();
    FAIL("must throw");
  } catch (std::system_error const& error) {
    CHECK(error.code() == errc::not_enough_slots);
    CHECK(std::string{error.what()}.find("4 slots cannot hold 5 experts") != std::string::npos);
  }
}

TEST_CASE("an environment's own codes pass through") {
  status const bad{std::make_error_code(std::errc::connection_reset), "peer 2 went away"};
  CHECK(bad.code() == std::errc::connection_reset);
  CHECK_FALSE(bad.ok());
}

TEST_CASE("every code has a description of its own") {
  std::set<std::string> descriptions;
  for (auto value = static_cast<int>(errc::invalid_topology); value <= static_cast<int>(errc::internal); ++value) {
    auto const code = make_error_code(static_cast<errc>(value));
    CAPTURE(value);
    CHECK(&code.category() == &category());
    CHECK(code.message() != "unknown error");
    CHECK(descriptions.insert(code.message()).second);
  }
  CHECK(category().message(0) == "unknown error");
  CHECK(std::string{category().name()} == "ballast");
}
