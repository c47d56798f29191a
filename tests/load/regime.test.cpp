// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/regime.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>
#include <support/trace_files.hpp>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <vector>

using namespace ballast;

namespace {

/// Buckets whose profile changes at the given buckets, `[H, 2, 16]`.
std::vector<load_t> buckets_with_changes(index_t num_buckets, std::vector<index_t> const& changes, load_t scale) {
  ballast_test::generator random{9};
  std::vector<load_t> tokens;
  std::vector<load_t> profile(32);
  for (index_t bucket = 0; bucket < num_buckets; ++bucket) {
    bool changed = bucket == 0;
    for (auto const change : changes) { changed = changed || change == bucket; }
    for (auto& mean : profile) {
      if (changed) { mean = 100 + random.below(900); }
    }
    for (auto const mean : profile) { tokens.push_back((mean + random.below(40)) * scale); }
  }
  return tokens;
}

index_t start_of(std::vector<load_t> const& tokens, index_t num_buckets) {
  return num_buckets - since_last_change({tokens, num_buckets, 2, 16}).num_buckets();
}

}  // namespace

TEST_CASE("integer roots are exact") {
  for (std::int64_t root : {0ll, 1ll, 2ll, 3ll, 1000ll, 46341ll, 2147483647ll}) {
    CHECK(detail::integer_root(root * root) == root);
    if (root > 0) { CHECK(detail::integer_root(root * root - 1) == root - 1); }
  }
}

TEST_CASE("steady traffic is one regime, however large the counts") {
  for (auto const scale : {load_t{1}, load_t{1} << 26}) {
    CHECK(start_of(buckets_with_changes(12, {}, scale), 12) == 0);
  }
}

TEST_CASE("a regime starts at the last change, seen in its first bucket") {
  CHECK(start_of(buckets_with_changes(8, {7}, 1), 8) == 7);
  CHECK(start_of(buckets_with_changes(8, {4}, 1), 8) == 4);
  CHECK(start_of(buckets_with_changes(12, {4, 9}, 1), 12) == 9);
}

TEST_CASE("a view of the newest buckets is what comes back") {
  auto const tokens = buckets_with_changes(6, {4}, 1);
  auto const regime = since_last_change({tokens, 6, 2, 16});
  REQUIRE(regime.num_buckets() == 2);
  CHECK(regime.tokens().data() == tokens.data() + std::ptrdiff_t{4} * 32);
  CHECK(regime.num_layers() == 2);
  CHECK(regime.num_logical() == 16);
}

TEST_CASE("histories with little in them are left alone") {
  std::vector<load_t> const zeros(std::size_t{8} * 32);
  CHECK(start_of(zeros, 8) == 0);
  CHECK(since_last_change({}).num_buckets() == 0);
  auto const one = buckets_with_changes(1, {}, 1);
  CHECK(start_of(one, 1) == 0);
}

TEST_CASE("the switches of task in a real trace are found, and few others") {
  auto const file = ballast_test::find_trace("deepseek-v2-lite/mixed_512tok");
  REQUIRE(!file.empty());
  auto const trace = ballast_test::read_trace(file);
  index_t wrong = 0;
  for (index_t last = 17; last < trace.steps; ++last) {
    auto const history = trace.history(0, last + 1);
    auto const start = last + 1 - since_last_change(history).num_buckets();
    wrong += start == last / 16 * 16 ? 0 : 1;
  }
  CHECK(wrong <= 2);
}
