// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/window_recorder.hpp>

#include "support/histories.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
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

/// Pass number n (from 0) puts 2^n tokens on the only expert: a sum of passes tells which ones they were.
load_t tokens_of(index_t pass) { return load_t{1} << pass; }

/// All passes of [first, last).
load_t sum_of(index_t first, index_t last) { return tokens_of(last) - tokens_of(first); }

void run(window_recorder& recorder, index_t first, index_t last) {
  for (auto pass = first; pass < last; ++pass) {
    REQUIRE(recorder.record_logical(0, loads{tokens_of(pass)}).ok());
    recorder.end_pass(true);
  }
}

load_t total(window_recorder const& recorder) {
  auto const history = history_of(recorder);
  return std::accumulate(history.begin(), history.end(), load_t{0});
}

}  // namespace

TEST_CASE("a window of one-pass buckets holds exactly the last W passes") {
  for (index_t window = 1; window <= 9; ++window) {
    for (auto const passes : {0, 1, window - 1, window, window + 1, 2 * window, 2 * window + 3}) {
      CAPTURE(window);
      CAPTURE(passes);
      window_recorder recorder{1, 1, {.passes = window, .buckets = window}};
      CHECK(recorder.num_buckets() == window);
      run(recorder, 0, passes);
      loads expected(static_cast<std::size_t>(window), 0);
      for (index_t i = 0; i < std::min(window, passes); ++i) {
        expected[static_cast<std::size_t>(window - 1 - i)] = tokens_of(passes - 1 - i);
      }
      CHECK(history_of(recorder) == expected);
    }
  }
}

TEST_CASE("a window of longer buckets holds the last W - b + 1 to W passes, each once") {
  for (index_t window = 1; window <= 20; ++window) {
    for (index_t buckets = 1; buckets <= 10; ++buckets) {
      window_recorder recorder{1, 1, {.passes = window, .buckets = buckets}};
      auto const longest = (window + buckets - 1) / buckets;
      for (index_t passes = 1; passes <= 43; ++passes) {
        CAPTURE(window);
        CAPTURE(buckets);
        CAPTURE(passes);
        run(recorder, passes - 1, passes);
        // The passes held are the last `held` ones: their sum is 2^passes - 2^(passes - held).
        index_t held = 0;
        while (held < passes && sum_of(passes - held, passes) != total(recorder)) { ++held; }
        REQUIRE(sum_of(passes - held, passes) == total(recorder));
        CHECK(held <= window);
        CHECK(held >= std::min(passes, window - longest + 1));
      }
    }
  }
}

TEST_CASE("buckets differ in length by one pass at most and come oldest first") {
  window_recorder recorder{1, 1, {.passes = 21, .buckets = 8}};
  run(recorder, 0, 21);
  auto const history = history_of(recorder);
  REQUIRE(history.size() == 8);
  index_t next = 0;
  for (auto const tokens : history) {
    bool const two = tokens == sum_of(next, next + 2);
    bool const three = tokens == sum_of(next, next + 3);
    REQUIRE((two || three));
    next += two ? 2 : 3;
  }
  CHECK(next == 21);
}

TEST_CASE("a period as long as the window dumps every pass once") {
  window_recorder recorder{1, 1, {.passes = 7, .buckets = 3}};
  for (index_t period = 0; period < 5; ++period) {
    run(recorder, 7 * period, 7 * (period + 1));
    CHECK(total(recorder) == sum_of(7 * period, 7 * (period + 1)));
    recorder.clear();
    CHECK(total(recorder) == 0);
  }
}

TEST_CASE("after a clear, fewer passes than the window are all there is") {
  window_recorder recorder{1, 1, {.passes = 6, .buckets = 2}};
  run(recorder, 0, 11);
  recorder.clear();
  run(recorder, 11, 14);
  CHECK(history_of(recorder) == loads{0, sum_of(11, 14)});
}

TEST_CASE("a cleared recorder cuts its buckets as a new one does") {
  window_recorder fresh{1, 1, {.passes = 7, .buckets = 3}};
  run(fresh, 0, 7);
  for (index_t before = 1; before < 20; ++before) {
    CAPTURE(before);
    window_recorder used{1, 1, {.passes = 7, .buckets = 3}};
    run(used, 0, before);
    used.clear();
    run(used, 0, 7);
    CHECK(history_of(used) == history_of(fresh));
  }
}

TEST_CASE("the order of passes inside a bucket does not matter") {
  window_recorder forward{1, 1, {.passes = 8, .buckets = 1}};
  window_recorder backward{1, 1, {.passes = 8, .buckets = 1}};
  for (index_t pass = 0; pass < 8; ++pass) {
    run(forward, pass, pass + 1);
    run(backward, 7 - pass, 8 - pass);
  }
  CHECK(history_of(forward) == history_of(backward));
}

TEST_CASE("more buckets than passes are as many as passes") {
  CHECK(window_recorder{1, 1, {.passes = 3, .buckets = 8}}.num_buckets() == 3);
  CHECK(window_recorder{1, 1}.num_buckets() == 8);
}

TEST_CASE("layers and experts keep their places") {
  window_recorder recorder{2, 2, {.passes = 2, .buckets = 2}};
  REQUIRE(recorder.record_logical(0, loads{1, 2}).ok());
  recorder.end_pass(true);
  REQUIRE(recorder.record_logical(1, loads{3, 4}).ok());
  recorder.end_pass(true);
  CHECK(history_of(recorder) == loads{1, 2, 0, 0, 0, 0, 3, 4});
}

TEST_CASE("a window without passes or buckets is refused") {
  CHECK(window_recorder::validate({.passes = 0}).message() ==
        "window_recorder: window is 0 passes, must be at least 1");
  CHECK(window_recorder::validate({.passes = 1, .buckets = -2}).message() ==
        "window_recorder: number of buckets is -2, must be at least 1");
  CHECK_THROWS_AS((window_recorder{1, 1, {.passes = 0}}), std::system_error);
  CHECK_THROWS_AS((window_recorder{1, 1, {.buckets = 0}}), std::system_error);
}

TEST_CASE("the options are named") {
  std::vector<std::pair<std::string, std::uint64_t>> found;
  window_recorder const recorder{2, 5, {.passes = 7, .buckets = 3}};
  recorder.for_each_option([&](std::string_view option, std::uint64_t bits) { found.emplace_back(option, bits); });
  std::vector<std::pair<std::string, std::uint64_t>> const expected{
      {"window_recorder passes", 7}, {"window_recorder buckets", 3}, {"recorded layers", 2}, {"recorded experts", 5}};
  CHECK(found == expected);
}
