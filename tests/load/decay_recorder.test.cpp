// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/decay_recorder.hpp>

#include "support/histories.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <ostream>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using ballast_test::history_of;
using loads = std::vector<load_t>;

void run(decay_recorder& recorder, load_t tokens, bool counted = true) {
  REQUIRE(recorder.record_logical(0, loads{tokens}).ok());
  recorder.end_pass(counted);
}

}  // namespace

static_assert(!decay_recorder::clears_on_dump);

TEST_CASE("half of the past stays") {
  decay_recorder recorder{1, 1, {.keep = 32768}};
  run(recorder, 1000);
  CHECK(history_of(recorder) == loads{1000});
  run(recorder, 100);
  CHECK(history_of(recorder) == loads{600});
  run(recorder, 0);
  CHECK(history_of(recorder) == loads{300});
}

TEST_CASE("halves of a token are kept, and round up when read") {
  decay_recorder recorder{1, 1, {.keep = 32768}};
  run(recorder, 1);
  run(recorder, 0);
  CHECK(history_of(recorder) == loads{1});
  run(recorder, 0);
  CHECK(history_of(recorder) == loads{0});
  run(recorder, 3);
  CHECK(history_of(recorder) == loads{3});
}

TEST_CASE("the extremes: all of the past and none of it") {
  decay_recorder all{1, 1, {.keep = 65536}};
  decay_recorder none{1, 1, {.keep = 0}};
  for (load_t tokens = 1; tokens <= 100; ++tokens) {
    run(all, tokens);
    run(none, tokens);
  }
  CHECK(history_of(all) == loads{5050});
  CHECK(history_of(none) == loads{100});
}

TEST_CASE("fixed point stays within a token of real numbers") {
  std::mt19937 random{3};
  for (auto const keep : {1, 6554, 32768, 58982, 64881, 65470, 65535}) {
    CAPTURE(keep);
    decay_recorder recorder{1, 1, {.keep = keep}};
    double exact = 0;
    for (int pass = 0; pass < 2000; ++pass) {
      auto const tokens = static_cast<load_t>(random() % 100000);
      run(recorder, tokens);
      exact = exact * keep / 65536 + static_cast<double>(tokens);
    }
    CHECK(std::abs(static_cast<double>(history_of(recorder)[0]) - exact) <= 1.01);
  }
}

TEST_CASE("passes that do not count do not decay") {
  decay_recorder recorder{1, 1, {.keep = 32768}};
  run(recorder, 1000);
  for (int i = 0; i < 10; ++i) { run(recorder, 5, false); }
  CHECK(history_of(recorder) == loads{1000});
}

TEST_CASE("the sum stops at the largest load and comes back down") {
  decay_recorder recorder{1, 1, {.keep = 65536}};
  for (int i = 0; i < 3; ++i) { run(recorder, max_layer_tokens); }
  CHECK(history_of(recorder) == loads{max_layer_tokens});
  decay_recorder fading{1, 1, {.keep = 32768}};
  for (int i = 0; i < 3; ++i) { run(fading, max_layer_tokens); }
  CHECK(history_of(fading) == loads{max_layer_tokens});
  run(fading, 0);
  CHECK(history_of(fading) == loads{max_layer_tokens / 2});
}

TEST_CASE("a decay outside [0, 1] is refused") {
  CHECK(decay_recorder::validate({.keep = 65537}).message() == "decay_recorder: keep is 65537, must be in [0, 65536]");
  CHECK(decay_recorder::validate({.keep = -1}).code() == errc::invalid_option);
  CHECK_THROWS_AS((decay_recorder{1, 1, {.keep = 70000}}), std::system_error);
}

TEST_CASE("the options are named") {
  std::vector<std::pair<std::string, std::uint64_t>> found;
  decay_recorder const recorder{2, 5, {.keep = 7}};
  recorder.for_each_option([&](std::string_view option, std::uint64_t bits) { found.emplace_back(option, bits); });
  std::vector<std::pair<std::string, std::uint64_t>> const expected{
      {"decay_recorder keep", 7}, {"recorded layers", 2}, {"recorded experts", 5}};
  CHECK(found == expected);
}
