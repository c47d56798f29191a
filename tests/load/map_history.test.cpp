// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/map_history.hpp>

#include "support/random.hpp"

#include <doctest/doctest.h>
#include <support/throwing_contracts.hpp>

#include <algorithm>
#include <limits>
#include <ostream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using ballast_test::generator;
using row = std::vector<index_t>;

row map_in(map_history const& maps, index_t layer, std::int64_t pass, std::int64_t running, row const& current) {
  std::span<index_t const> out;
  maps.row_for(layer, pass, running, current, out).or_throw();
  return {out.begin(), out.end()};
}
std::string refusal(map_history const& maps, index_t layer, std::int64_t pass, std::int64_t running) {
  row const current{7, 7};
  std::span<index_t const> out;
  auto const result = maps.row_for(layer, pass, running, current, out);
  CHECK(result.code() == errc::invalid_load);
  CHECK(out.empty());
  return result.message();
}

}  // namespace

TEST_CASE("without commits the map in force is that of every pass") {
  map_history const maps{2, 2};
  for (std::int64_t pass = 1; pass <= 100; ++pass) { REQUIRE(map_in(maps, 1, pass, 100, {3, 4}) == row{3, 4}); }
}

TEST_CASE("what is committed in call k is in force from pass k + 1 on, in its layer alone") {
  map_history maps{2, 2};
  maps.note_commit(0, 5, row{1, 2});
  CHECK(map_in(maps, 0, 4, 6, {9, 9}) == row{1, 2});
  CHECK(map_in(maps, 0, 5, 6, {9, 9}) == row{1, 2});
  CHECK(map_in(maps, 0, 6, 6, {9, 9}) == row{9, 9});
  CHECK(map_in(maps, 1, 5, 6, {9, 9}) == row{9, 9});
}

TEST_CASE("a commit before the first pass leaves nothing of the map before") {
  map_history maps{1, 2};
  maps.note_commit(0, 0, row{1, 2});
  CHECK(map_in(maps, 0, 1, 1, {9, 9}) == row{9, 9});
}

TEST_CASE("maps between two commits in one call were in force in no pass") {
  map_history maps{1, 2, 2};
  maps.note_commit(0, 5, row{1, 2});
  for (index_t i = 0; i < 10; ++i) { maps.note_commit(0, 5, row{i, i}); }
  CHECK(map_in(maps, 0, 5, 6, {9, 9}) == row{1, 2});
  CHECK(map_in(maps, 0, 6, 6, {9, 9}) == row{9, 9});
  CHECK(map_in(maps, 0, 1, 6, {9, 9}) == row{1, 2});
}

TEST_CASE("passes whose map was dropped, and passes that are none, are refused by number") {
  map_history maps{2, 2, 2};
  for (index_t call = 1; call <= 3; ++call) { maps.note_commit(0, std::int64_t{10} * call, row{call, call}); }
  CHECK(refusal(maps, 0, 10, 31) == "counts of layer 0, pass 10 come too late: its maps are kept from pass 11 on");
  CHECK(map_in(maps, 0, 11, 31, {9, 9}) == row{2, 2});
  CHECK(map_in(maps, 0, 30, 31, {9, 9}) == row{3, 3});
  CHECK(map_in(maps, 1, 1, 31, {9, 9}) == row{9, 9});
  CHECK(refusal(maps, 0, 32, 31) == "counts of layer 0, pass 32: must be in [1, 31]");
  CHECK(refusal(maps, 1, 0, 31) == "counts of layer 1, pass 0: must be in [1, 31]");
  CHECK(refusal(maps, 1, std::numeric_limits<std::int64_t>::min(), 31).find("must be in") != std::string::npos);
  CHECK(refusal(maps, 2, 1, 31) == "counts of layer 2: must be in [0, 2)");
  CHECK(refusal(maps, -1, 1, 31) == "counts of layer -1: must be in [0, 2)");
  CHECK(refusal(map_history{}, 0, 1, 31) == "counts of layer 0: must be in [0, 0)");
}

TEST_CASE("after a clear, earlier passes are too long ago") {
  map_history maps{1, 2};
  maps.note_commit(0, 5, row{1, 2});
  maps.clear(20);
  CHECK(refusal(maps, 0, 20, 25) == "counts of layer 0, pass 20 come too late: its maps are kept from pass 21 on");
  CHECK(map_in(maps, 0, 21, 25, {9, 9}) == row{9, 9});
  maps.note_commit(0, 23, row{3, 4});
  CHECK(map_in(maps, 0, 21, 25, {9, 9}) == row{3, 4});
  CHECK(map_in(maps, 0, 24, 25, {9, 9}) == row{9, 9});
}

TEST_CASE("random commits, compared with a list of the map of every pass") {
  generator random{1};
  for (int trial = 0; trial < 200; ++trial) {
    auto const depth = random.between(1, 5);
    auto const layers = random.between(1, 3);
    map_history maps{layers, 3, depth};
    std::vector<row> current(static_cast<std::size_t>(layers), row{0, 1, 2});
    std::vector<std::vector<row>> of_pass(static_cast<std::size_t>(layers));  // [L][pass - 1]
    std::vector<std::vector<std::int64_t>> last_passes(static_cast<std::size_t>(layers));
    for (std::int64_t call = 1; call <= 40; ++call) {
      for (std::size_t layer = 0; layer < current.size(); ++layer) { of_pass[layer].push_back(current[layer]); }
      for (auto commits = random.below(3); commits > 0; --commits) {
        auto const layer = random.below(layers);
        auto& map = current[static_cast<std::size_t>(layer)];
        maps.note_commit(layer, call, map);
        auto& noted = last_passes[static_cast<std::size_t>(layer)];
        if (noted.empty() || noted.back() != call) { noted.push_back(call); }
        map = {random.below(9), random.below(9), random.below(9)};
      }
      for (index_t layer = 0; layer < layers; ++layer) {
        auto const at = static_cast<std::size_t>(layer);
        auto const& noted = last_passes[at];
        auto const kept = static_cast<std::size_t>(depth);
        auto const known_from = noted.size() > kept ? noted[noted.size() - kept - 1] + 1 : 1;
        for (std::int64_t pass = 1; pass <= call; ++pass) {
          std::span<index_t const> out;
          auto const result = maps.row_for(layer, pass, call + 1, current[at], out);
          REQUIRE(result.ok() == (pass >= known_from));
          if (result.ok()) { REQUIRE(std::ranges::equal(out, of_pass[at][static_cast<std::size_t>(pass - 1)])); }
        }
        REQUIRE(map_in(maps, layer, call + 1, call + 1, current[at]) == current[at]);
      }
    }
  }
}

TEST_CASE("sizes that are none, and broken preconditions") {
  CHECK_THROWS_AS((map_history{-1, 2}), std::system_error);
  CHECK_THROWS_AS((map_history{1, -2}), std::system_error);
  CHECK_THROWS_AS((map_history{1, 2, 0}), std::system_error);
  map_history maps{1, 2};
  maps.note_commit(0, 5, row{1, 2});
  CHECK_BREAKS_CONTRACT(maps.note_commit(0, 4, row{1, 2}));
  CHECK_BREAKS_CONTRACT(maps.note_commit(1, 6, row{1, 2}));
  CHECK_BREAKS_CONTRACT(maps.note_commit(0, 6, row{1}));
}

// NOLINTBEGIN(bugprone-use-after-move,clang-analyzer-cplusplus.Move): what is left is what is tested
TEST_CASE("what was moved from keeps no map") {
  map_history maps{1, 2};
  maps.note_commit(0, 5, row{1, 2});
  map_history const taken{std::move(maps)};
  CHECK(map_in(taken, 0, 5, 6, row{3, 4}) == row{1, 2});
  std::span<index_t const> out;
  CHECK(maps.row_for(0, 5, 6, row{3, 4}, out).message() == "counts of layer 0: must be in [0, 0)");
  CHECK_BREAKS_CONTRACT(maps.note_commit(0, 6, row{1, 2}));
  maps.clear(7);
}
// NOLINTEND(bugprone-use-after-move,clang-analyzer-cplusplus.Move)
