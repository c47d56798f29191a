// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/pass_recorder.hpp>

#include "support/histories.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using ballast_test::history_of;
using loads = std::vector<load_t>;

void run(pass_recorder& recorder, load_t tokens, bool counted = true) {
  REQUIRE(recorder.record_logical(0, loads{tokens, tokens}).ok());
  recorder.end_pass(counted);
}

}  // namespace

TEST_CASE("every counted pass is a bucket of its own, however many there are") {
  pass_recorder recorder{1, 2, {.capacity = 1000}};
  for (load_t pass = 0; pass < 300; ++pass) {
    run(recorder, pass);
    REQUIRE(recorder.num_buckets() == pass + 1);
  }
  auto const history = history_of(recorder);
  for (std::size_t pass = 0; pass < 300; ++pass) { REQUIRE(history[2 * pass] == static_cast<load_t>(pass)); }

  recorder.clear();
  CHECK(recorder.num_buckets() == 0);
  run(recorder, 7);
  CHECK(history_of(recorder) == loads{7, 7});
}

TEST_CASE("pass numbers tell which passes were kept") {
  pass_recorder recorder{1, 2};
  for (int pass = 0; pass < 6; ++pass) { run(recorder, 1, pass % 2 == 1); }
  auto const numbers = recorder.pass_numbers();
  CHECK(std::vector<std::int64_t>(numbers.begin(), numbers.end()) == std::vector<std::int64_t>{1, 3, 5});
  recorder.clear();
  run(recorder, 1);
  CHECK(recorder.pass_numbers()[0] == 6);
}

TEST_CASE("a full recorder keeps what it has and counts what it drops") {
  pass_recorder recorder{1, 2, {.capacity = 3}};
  for (load_t pass = 0; pass < 10; ++pass) { run(recorder, pass); }
  CHECK(history_of(recorder) == loads{0, 0, 1, 1, 2, 2});
  CHECK(recorder.num_dropped() == 7);
  recorder.clear();
  CHECK(recorder.num_dropped() == 0);
}

TEST_CASE("a recorder that may keep nothing is refused") {
  CHECK(pass_recorder::validate({.capacity = 0}).message() ==
        "pass_recorder: capacity is 0 passes, must be at least 1");
  CHECK_THROWS_AS((pass_recorder{1, 1, {.capacity = 0}}), std::system_error);
}

TEST_CASE("the options are named") {
  std::vector<std::pair<std::string, std::uint64_t>> found;
  pass_recorder const recorder{2, 5, {.capacity = 7}};
  recorder.for_each_option([&](std::string_view option, std::uint64_t bits) { found.emplace_back(option, bits); });
  std::vector<std::pair<std::string, std::uint64_t>> const expected{
      {"pass_recorder capacity", 7}, {"recorded layers", 2}, {"recorded experts", 5}};
  CHECK(found == expected);
}
