// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "support/golden_files.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace ballast_test {

using ballast::index_t;
using nlohmann::json;

namespace {

golden_case read_case(std::filesystem::path const& file) {
  auto const data = json::parse(std::ifstream{file});
  auto const& inputs = data.at("inputs");
  golden_case result;
  result.name = file.stem().string();
  auto const ranks = inputs.at("num_gpus").get<index_t>();
  auto const nodes = inputs.at("num_nodes").get<index_t>();
  result.where = ballast::topology{{ranks, nodes, inputs.at("num_replicas").get<index_t>() / ranks, 0}};
  result.num_groups = inputs.at("num_groups").get<index_t>();
  for (auto const& layer : inputs.at("weight")) {
    for (auto const& tokens : layer) { result.loads.push_back(tokens.get<ballast::load_t>()); }
    result.num_logical = static_cast<index_t>(layer.size());
    ++result.num_layers;
  }
  auto const& outputs = data.contains("outputs_stable_sort") ? data.at("outputs_stable_sort") : data.at("outputs");
  outputs.at("phy2log").get_to(result.logical_of_slot);
  outputs.at("log2phy").get_to(result.replicas);
  for (auto& layer : result.replicas) {
    for (auto& slots : layer) { std::erase(slots, -1); }
  }
  return result;
}

}  // namespace

std::vector<golden_case> read_golden_cases() {
  std::vector<golden_case> cases;
  for (auto const& entry : std::filesystem::directory_iterator{BALLAST_TEST_DATA_DIR "/golden"}) {
    if (entry.path().extension() == ".json") { cases.push_back(read_case(entry.path())); }
  }
  std::sort(cases.begin(), cases.end(), [](auto const& a, auto const& b) { return a.name < b.name; });
  return cases;
}

}  // namespace ballast_test
