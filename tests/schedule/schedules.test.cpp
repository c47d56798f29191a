// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/schedule/schedules.hpp>
#include <ballast/schedule/views.hpp>

#include "../support/long_runs.hpp"
#include "../support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using chunks = std::vector<std::vector<index_t>>;

template <chunk_schedule Schedule>
chunks cut(Schedule const& schedule, std::vector<layer_work> const& work) {
  chunks result;
  schedule.for_each_chunk(work,
                          [&](std::span<index_t const> layers) { result.emplace_back(layers.begin(), layers.end()); });
  return result;
}

template <chunk_schedule Schedule>
chunks cut_lazily(Schedule const& schedule, std::vector<layer_work> const& work) {
  chunks result;
  std::vector<layer_work> storage;
  for (auto&& chunk : views::chunks(schedule, work, storage)) {
    auto& layers = result.emplace_back();
    for (layer_work const& layer : chunk) { layers.push_back(layer.layer); }
  }
  return result;
}

// Layers 0 to n - 1, all changed, with 10 bytes each and falling gains.
std::vector<layer_work> plain(index_t n) {
  std::vector<layer_work> work;
  work.reserve(static_cast<std::size_t>(n));
  for (index_t layer = 0; layer < n; ++layer) {
    work.push_back(
        {.layer = layer, .changed = true, .moves = 1, .bytes = 10, .busiest_rank_bytes = 5, .gain = 100 - layer});
  }
  return work;
}

}  // namespace

TEST_CASE("layers_per_chunk cuts consecutive layers, the last chunk may be short") {
  CHECK(cut(layers_per_chunk{2}, plain(5)) == chunks{{0, 1}, {2, 3}, {4}});
  CHECK(cut(layers_per_chunk{5}, plain(5)) == chunks{{0, 1, 2, 3, 4}});
  CHECK(cut(layers_per_chunk{99}, plain(5)) == chunks{{0, 1, 2, 3, 4}});
  CHECK(cut(layers_per_chunk{1}, plain(2)) == chunks{{0}, {1}});
}

TEST_CASE("sizes of zero and below are refused with the value") {
  CHECK(layers_per_chunk{1}.validate().ok());
  CHECK(layers_per_chunk{0}.validate().message().find("is 0") != std::string::npos);
  CHECK(layers_per_chunk{-7}.validate().message().find("is -7") != std::string::npos);
  CHECK(bytes_per_step{0}.validate().message().find("is 0") != std::string::npos);
  CHECK(time_per_step{-1}.validate().message().find("is -1") != std::string::npos);
  CHECK(time_per_step{1, link_model{.bytes_per_microsecond = 0}}.validate().code() == errc::invalid_option);
  CHECK(time_per_step{1, link_model{.layer_overhead_us = -1}}.validate().message().find("-1 us a layer") !=
        std::string::npos);
}

TEST_CASE("no layer, or none that changes, is no chunk") {
  auto unchanged = plain(3);
  for (auto& work : unchanged) { work.changed = false; }
  CHECK(cut(layers_per_chunk{2}, {}).empty());
  CHECK(cut(all_layers{}, {}).empty());
  CHECK(cut(bytes_per_step{1}, {}).empty());
  CHECK(cut(layers_per_chunk{2}, unchanged).empty());
  CHECK(cut(all_layers{}, unchanged).empty());
  CHECK(cut(layers_per_chunk{2, every_layer{}}, unchanged) == chunks{{0, 1}, {2}});
}

TEST_CASE("layer ids may be sparse") {
  auto work = plain(3);
  work[0].layer = 3;
  work[1].layer = 7;
  work[2].layer = 60;
  CHECK(cut(layers_per_chunk{2}, work) == chunks{{3, 7}, {60}});
}

TEST_CASE("by_gain takes what removes most imbalance per byte first, and what is free before all") {
  std::vector<layer_work> const work{
      {.layer = 0, .changed = true, .bytes = 10, .gain = 10}, {.layer = 1, .changed = true, .bytes = 1000, .gain = 500},
      {.layer = 2, .changed = true, .bytes = 10, .gain = 20}, {.layer = 3, .changed = true, .bytes = 0, .gain = 1},
      {.layer = 4, .changed = true, .bytes = 20, .gain = 20}, {.layer = 5, .changed = true, .bytes = 10, .gain = -5},
      {.layer = 6, .changed = false, .bytes = 0, .gain = 0}};
  CHECK(cut(layers_per_chunk{1, changed_layers{}, by_gain{}}, work) == chunks{{3}, {2}, {0}, {4}, {1}, {5}});
}

TEST_CASE("bytes_per_step fills steps up to the limit; a larger layer is a step of its own") {
  auto work = plain(5);
  work[2].bytes = 100;
  CHECK(cut(bytes_per_step{20}, work) == chunks{{0, 1}, {2}, {3, 4}});
  CHECK(cut(bytes_per_step{19}, work) == chunks{{0}, {1}, {2}, {3}, {4}});
  CHECK(cut(bytes_per_step{1'000'000}, work).size() == 1);
}

TEST_CASE("time_per_step counts the busiest link and an overhead a layer") {
  // 5 bytes at 1 byte per us and 3 us overhead: 8 us a layer.
  link_model const link{.bytes_per_microsecond = 1, .layer_overhead_us = 3};
  CHECK(cut(time_per_step{16, link}, plain(5)) == chunks{{0, 1}, {2, 3}, {4}});
  CHECK(cut(time_per_step{15, link}, plain(3)) == chunks{{0}, {1}, {2}});
}

TEST_CASE("an overhead of more than an hour a layer is refused by value, and within it no cost overflows") {
  auto const of = [](std::int64_t overhead) { return time_per_step{1, link_model{1, overhead}}; };
  constexpr auto most = link_model::most_overhead_us;
  CHECK(of(most).validate().ok());
  CHECK(of(most + 1).validate().message() ==
        "time_per_step: a layer's overhead is 3600000001 us, must be in [0, 3600000000]");
  CHECK(of(std::numeric_limits<std::int64_t>::max()).validate().code() == errc::invalid_option);
  auto work = plain(3);
  for (auto& layer : work) { layer.busiest_rank_bytes = std::numeric_limits<std::int64_t>::max() - most; }
  CHECK(cut(of(most), work) == chunks{{0}, {1}, {2}});
}

TEST_CASE("inside a host more layers fit a step than over a network") {
  auto work = plain(4);
  for (auto& layer : work) { layer.busiest_rank_bytes = 42 << 20; }  // 176 us at 250 GB/s, 2.2 ms at 20
  CHECK(cut(time_per_step{500, link_model::nvlink()}, work) == chunks{{0, 1}, {2, 3}});
  CHECK(cut(time_per_step{500}, work) == chunks{{0}, {1}, {2}, {3}});
}

TEST_CASE("whatever the schedule, each changed layer comes once and no chunk is empty") {
  ballast_test::generator random{5};
  for (int trial = 0, count = ballast_test::cases(200); trial < count; ++trial) {
    auto work = plain(random.below(70));
    std::vector<index_t> expected;
    for (auto& item : work) {
      item.changed = random.below(3) > 0;
      item.bytes = std::int64_t{random.below(3)} * random.below(1000);
      item.busiest_rank_bytes = item.bytes / 2;
      item.gain = random.below(2000) - 1000;
      if (item.changed) { expected.push_back(item.layer); }
    }
    auto const check = [&](auto const& schedule) {
      REQUIRE(cut_lazily(schedule, work) == cut(schedule, work));
      std::vector<index_t> seen;
      for (auto const& chunk : cut(schedule, work)) {
        REQUIRE(!chunk.empty());
        seen.insert(seen.end(), chunk.begin(), chunk.end());
      }
      std::sort(seen.begin(), seen.end());
      REQUIRE(seen == expected);
    };
    check(all_layers{});
    check(layers_per_chunk{random.between(1, 9)});
    check(layers_per_chunk{random.between(1, 9), changed_layers{}, by_gain{}});
    check(bytes_per_step{random.between(1, 3000), changed_layers{}, by_gain{}});
    check(time_per_step{random.between(1, 300)});
  }
}
