// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/history.hpp>

#include <doctest/doctest.h>
#include <support/throwing_contracts.hpp>

#include <algorithm>
#include <limits>
#include <ostream>  // doctest prints error codes
#include <vector>

using namespace ballast;

namespace {

// [2, 2, 3]
std::vector<load_t> const two_buckets{1, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, 60};

}  // namespace

TEST_CASE("a history is read bucket by bucket, layer by layer") {
  load_history_view const history{two_buckets, 2, 2, 3};
  CHECK(history.num_buckets() == 2);
  CHECK(history.bucket(1)(0, 2) == 30);
  CHECK(std::ranges::equal(history.layer(0, 1), std::vector<load_t>{4, 5, 6}));
  CHECK(history.tokens().size() == 12);
}

TEST_CASE("a matrix of loads is a history of one bucket") {
  load_history_view const history = matrix_view<load_t const>{two_buckets, 4, 3};
  CHECK(history.num_buckets() == 1);
  CHECK(history.num_layers() == 4);
  CHECK(std::ranges::equal(history.layer(0, 3), std::vector<load_t>{40, 50, 60}));
}

TEST_CASE("buckets add up, and no buckets are no load") {
  std::vector<load_t> sum(3, 99);
  sum_buckets({two_buckets, 2, 2, 3}, 1, sum);
  CHECK(sum == std::vector<load_t>{44, 55, 66});
  sum_buckets({{}, 0, 2, 3}, 1, sum);
  CHECK(sum == std::vector<load_t>{0, 0, 0});
}

TEST_CASE("a negative load is refused with its place and value") {
  auto loads = two_buckets;
  loads[10] = -7;
  auto const result = validate_loads({loads, 2, 2, 3});
  CHECK(result.code() == errc::invalid_load);
  CHECK(result.message() == "load of layer 1, expert 1, bucket 1 is -7, must not be negative");
}

TEST_CASE("a layer above what planners can add is refused, its buckets together") {
  std::vector<load_t> loads{max_layer_tokens - 1, 1, 0, 0};
  CHECK(validate_loads({loads, 2, 1, 2}).ok());
  loads[3] = 1;
  auto const result = validate_loads({loads, 2, 1, 2});
  CHECK(result.code() == errc::invalid_load);
  CHECK(result.message() == "load of layer 0 exceeds 17592186044416 tokens at expert 1, bucket 1");
  CHECK(validate_loads({loads, 1, 2, 2}).ok());
}

TEST_CASE("layers that are too large are divided by the smallest power of two that makes them fit, the others stay") {
  // [2, 2, 2]: layer 0 holds 2^45 + 16 tokens over both buckets, layer 1 just what it may.
  std::vector<load_t> loads{max_layer_tokens, 16, max_layer_tokens - 5, 0, max_layer_tokens, 0, 4, 1};
  fit_layers(loads, 2, 2, 2);
  CHECK(loads == std::vector<load_t>{max_layer_tokens / 4, 4, max_layer_tokens - 5, 0, max_layer_tokens / 4, 0, 4, 1});
  CHECK(validate_loads({loads, 2, 2, 2}).ok());
}

TEST_CASE("a cell with tokens keeps one, one without gets none") {
  std::vector<load_t> loads{max_layer_tokens, 1, 0, 3};
  fit_layers(loads, 1, 1, 4);
  CHECK(loads == std::vector<load_t>{max_layer_tokens / 2, 1, 0, 1});
}

TEST_CASE("loads as large as there are come down without overflow") {
  std::vector<load_t> loads(600, std::numeric_limits<load_t>::max());
  loads[5] = 0;
  loads[6] = 1;
  fit_layers(loads, 3, 2, 100);
  CHECK(validate_loads({loads, 3, 2, 100}).ok());
  CHECK(loads[5] == 0);
  CHECK(loads[6] == 1);
  CHECK(loads[7] == std::numeric_limits<load_t>::max() >> 28);  // 2^44 / 300 rounds down to 2^35
  auto const once = loads;
  fit_layers(loads, 3, 2, 100);
  CHECK(loads == once);
}

TEST_CASE("what is negative stays, to be refused by name; what fits is left alone") {
  std::vector<load_t> loads{-7, max_layer_tokens, 5, 6, 7, 8};
  auto const before = loads;
  fit_layers(loads, 1, 2, 3);
  CHECK(loads[0] == -7);
  CHECK(std::equal(loads.begin() + 3, loads.end(), before.begin() + 3));
  CHECK(validate_loads({loads, 1, 2, 3}).message() ==
        "load of layer 0, expert 0, bucket 0 is -7, must not be negative");
  std::vector<load_t> nothing;
  fit_layers(nothing, 0, 2, 3);
  fit_layers(nothing, 2, 0, 3);
}

TEST_CASE("nothing to refuse in nothing") {
  CHECK(validate_loads({}).ok());
  CHECK(validate_loads({{}, 0, 58, 256}).ok());
}

TEST_CASE("views that do not fit their elements break the contract") {
  CHECK_BREAKS_CONTRACT((load_history_view{two_buckets, 2, 2, 4}));
  CHECK_BREAKS_CONTRACT((load_history_view{two_buckets, -2, 2, -3}));
  load_history_view const history{two_buckets, 2, 2, 3};
  CHECK_BREAKS_CONTRACT(history.bucket(2));
  CHECK_BREAKS_CONTRACT(history.layer(0, -1));
  std::vector<load_t> wrong(4);
  CHECK_BREAKS_CONTRACT(sum_buckets(history, 0, wrong));
  CHECK_BREAKS_CONTRACT(fit_layers(wrong, 1, 1, 5));
}
