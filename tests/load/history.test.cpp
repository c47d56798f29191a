// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/history.hpp>

#include <doctest/doctest.h>
#include <support/throwing_contracts.hpp>

#include <algorithm>
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

TEST_CASE("nothing to refuse in nothing") {
  CHECK(validate_loads({}).ok());
  CHECK(validate_loads({{}, 0, 58, 256}).ok());
}

TEST_CASE("views that do not fit their elements break the contract") {
  CHECK_THROWS_AS((load_history_view{two_buckets, 2, 2, 4}), ballast_test::contract_error);
  CHECK_THROWS_AS((load_history_view{two_buckets, -2, 2, -3}), ballast_test::contract_error);
  load_history_view const history{two_buckets, 2, 2, 3};
  CHECK_THROWS_AS((void)history.bucket(2), ballast_test::contract_error);
  CHECK_THROWS_AS((void)history.layer(0, -1), ballast_test::contract_error);
  std::vector<load_t> wrong(4);
  CHECK_THROWS_AS(sum_buckets(history, 0, wrong), ballast_test::contract_error);
}
