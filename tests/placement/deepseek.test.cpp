// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Bit for bit what the published reference plans. Built again with other flags and for another processor: see
// tests/conformance.
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/deepseek.hpp>

#include "../support/random.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <ostream>  // doctest prints error codes
#include <string>
#include <vector>

namespace {

using namespace ballast;
using nlohmann::json;

struct golden_case {
  std::string name;
  topology where;
  index_t num_groups = 1;
  index_t num_layers = 0;
  index_t num_logical = 0;
  std::vector<load_t> loads;  // [L, E]
  json outputs;
};

golden_case read_case(std::filesystem::path const& file) {
  auto const data = json::parse(std::ifstream{file});
  auto const& inputs = data.at("inputs");
  golden_case result;
  result.name = file.stem().string();
  auto const ranks = inputs.at("num_gpus").get<index_t>();
  auto const nodes = inputs.at("num_nodes").get<index_t>();
  result.where = topology{{ranks, nodes, inputs.at("num_replicas").get<index_t>() / ranks, 0}};
  result.num_groups = inputs.at("num_groups").get<index_t>();
  for (auto const& layer : inputs.at("weight")) {
    for (auto const& tokens : layer) { result.loads.push_back(tokens.get<load_t>()); }
    result.num_logical = static_cast<index_t>(layer.size());
    ++result.num_layers;
  }
  result.outputs = data.contains("outputs_stable_sort") ? data.at("outputs_stable_sort") : data.at("outputs");
  return result;
}

std::vector<std::filesystem::path> golden_files() {
  std::vector<std::filesystem::path> files;
  for (auto const& entry : std::filesystem::directory_iterator{BALLAST_TEST_DATA_DIR "/golden"}) {
    if (entry.path().extension() == ".json") { files.push_back(entry.path()); }
  }
  std::sort(files.begin(), files.end());
  return files;
}

// Slots of an expert in the reference's order, without its padding.
std::vector<index_t> replicas_in(json const& slots) {
  std::vector<index_t> result;
  for (auto const& slot : slots) {
    if (slot.get<index_t>() >= 0) { result.push_back(slot.get<index_t>()); }
  }
  return result;
}

status plan_loads(deepseek_placement const& policy, topology const& where, std::vector<load_t> const& loads,
                  index_t num_layers, placement& next) {
  auto const num_logical = static_cast<index_t>(loads.size()) / num_layers;
  return plan(policy, matrix_view<load_t const>{loads, num_layers, num_logical},
              trivial_placement({num_layers, num_logical, where.num_slots()}), where, next);
}

}  // namespace

TEST_CASE("all golden files are reproduced: map, replica order and counts") {
  auto const files = golden_files();
  REQUIRE(files.size() == 35);
  for (auto const& file : files) {
    auto const golden = read_case(file);
    CAPTURE(golden.name);
    placement next;
    plan_loads({.num_groups = golden.num_groups}, golden.where, golden.loads, golden.num_layers, next).or_throw();
    for (index_t layer = 0; layer < golden.num_layers; ++layer) {
      CAPTURE(layer);
      auto const l = static_cast<std::size_t>(layer);
      REQUIRE(std::ranges::equal(next.logical_of_slot(layer),
                                 golden.outputs.at("phy2log").at(l).get<std::vector<index_t>>()));
      for (index_t expert = 0; expert < golden.num_logical; ++expert) {
        auto const e = static_cast<std::size_t>(expert);
        REQUIRE(
            std::ranges::equal(next.replicas_of(layer, expert), replicas_in(golden.outputs.at("log2phy").at(l).at(e))));
        REQUIRE(next.replica_count(layer, expert) == golden.outputs.at("logcnt").at(l).at(e).get<index_t>());
      }
    }
  }
}

TEST_CASE("the history's buckets are added up") {
  topology const where{{2, 1, 3, 0}};
  std::vector<load_t> const buckets{1, 2, 3, 4, 10, 0, 0, 1};
  std::vector<load_t> const sum{11, 2, 3, 5};
  auto const start = trivial_placement({1, 4, 6});
  placement from_history;
  plan(deepseek_placement{}, load_history_view{buckets, 2, 1, 4}, start, where, from_history).or_throw();
  placement from_sum;
  plan_loads({}, where, sum, 1, from_sum).or_throw();
  CHECK(from_history == from_sum);
}

TEST_CASE("any loads give a placement: zero, equal, one hot, one expert, large counts") {
  ballast_test::generator random{9};
  for (int trial = 0; trial < 300; ++trial) {
    CAPTURE(trial);
    auto const ranks = random.between(1, 12);
    topology const where{{ranks, 1, random.between(1, 6), 0}};
    auto const experts = random.between(1, where.num_slots());
    std::vector<load_t> loads(static_cast<std::size_t>(experts));
    for (auto& tokens : loads) {
      auto const kind = trial % 4;
      tokens = kind == 0 ? 0 : kind == 1 ? 7 : kind == 2 ? random.below(1000) : load_t{random.below(1 << 20)} << 16;
    }
    if (trial % 5 == 0) { loads[0] = max_layer_tokens / 2; }
    placement next;
    plan_loads({}, where, loads, 1, next).or_throw();
    REQUIRE(placement::validate(next.shape(), next.logical_of_slot().elements()).ok());
    std::vector<index_t> seen;
    for (index_t expert = 0; expert < experts; ++expert) {
      for (auto const slot : next.replicas_of(0, expert)) {
        REQUIRE(next.logical_of_slot(0)[static_cast<std::size_t>(slot)] == expert);
        seen.push_back(slot);
      }
    }
    std::sort(seen.begin(), seen.end());
    REQUIRE(seen.size() == static_cast<std::size_t>(where.num_slots()));
    REQUIRE(std::ranges::adjacent_find(seen) == seen.end());
  }
}

TEST_CASE("whole groups stay on a node when nodes divide groups, and the plan is global when they do not") {
  topology const where{{4, 2, 3, 0}};
  std::vector<load_t> const loads{90, 132, 40, 61, 104, 165, 39, 4};
  placement hierarchical;
  plan_loads({.num_groups = 4}, where, loads, 1, hierarchical).or_throw();
  for (index_t group = 0; group < 4; ++group) {
    std::vector<index_t> nodes;
    for (index_t expert = 2 * group; expert < 2 * group + 2; ++expert) {
      for (auto const slot : hierarchical.replicas_of(0, expert)) { nodes.push_back(where.node_of_slot(slot)); }
    }
    CHECK(std::ranges::equal_range(nodes, nodes[0]).size() == nodes.size());
  }
  placement with_three;
  placement global;
  plan_loads({.num_groups = 3}, where, loads, 1, with_three).or_throw();  // 2 does not divide 3, so 8 mod 3 is no error
  plan_loads({.num_groups = 1}, where, loads, 1, global).or_throw();
  CHECK(with_three == global);
}

TEST_CASE("what cannot be planned is refused with the values") {
  topology where{{4, 2, 3, 0}};
  placement next;
  std::vector<load_t> const loads{1, 2, 3, 4, 5, 6, 7, 8, 9};
  auto const groups = plan_loads({.num_groups = 4}, where, loads, 1, next);
  CHECK(groups.code() == errc::invalid_option);
  CHECK(groups.message().find('9') != std::string::npos);
  CHECK(groups.message().find('4') != std::string::npos);
  CHECK(plan_loads({.num_groups = 0}, where, loads, 1, next).message().find("0") != std::string::npos);
  auto negative = loads;
  negative[3] = -5;
  CHECK(plan_loads({}, where, negative, 1, next).message().find("expert 3, bucket 0 is -5") != std::string::npos);
}

TEST_CASE("dead ranks are never used, or the plan is refused") {
  topology where{{4, 1, 3, 0}};
  where.set_live(1, false);
  placement next;
  std::vector<load_t> const loads{9, 8, 7, 6, 5, 4, 3, 2};
  auto const result = plan_loads({}, where, loads, 1, next);
  if (result.ok()) {
    for (index_t expert = 0; expert < 8; ++expert) {
      CHECK(std::ranges::any_of(next.replicas_of(0, expert),
                                [&](index_t slot) { return where.is_live(where.rank_of_slot(slot)); }));
    }
  } else {
    CHECK(result.message().find("rank 1") != std::string::npos);
  }
}

TEST_CASE("the digest tells the options apart") {
  digest one;
  digest four;
  deepseek_placement{.num_groups = 1}.describe(one);
  deepseek_placement{.num_groups = 4}.describe(four);
  CHECK(one.value() != four.value());
}
