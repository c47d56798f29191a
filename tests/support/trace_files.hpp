// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_TRACE_FILES_HPP
#define BALLAST_TESTS_SUPPORT_TRACE_FILES_HPP

#include <ballast/load/history.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace ballast_test {

/// A trace file in memory, `[steps, L, E]`.
struct trace {
  std::string name;
  ballast::index_t steps = 0;
  ballast::index_t layers = 0;
  ballast::index_t experts = 0;
  std::vector<ballast::load_t> tokens;

  [[nodiscard]] ballast::load_history_view history(ballast::index_t first, ballast::index_t count) const {
    auto const step = static_cast<std::size_t>(layers) * static_cast<std::size_t>(experts);
    return {std::span{tokens}.subspan(static_cast<std::size_t>(first) * step, static_cast<std::size_t>(count) * step),
            count, layers, experts};
  }
  [[nodiscard]] ballast::load_history_view history() const { return history(0, steps); }
  [[nodiscard]] ballast::matrix_view<ballast::load_t const> step(ballast::index_t step) const {
    return history().bucket(step);
  }
};

inline trace read_trace(std::filesystem::path const& file) {
  std::ifstream in{file};
  trace result{file.parent_path().filename().string() + "/" + file.stem().string(), 0, 0, 0, {}};
  char comma = 0;
  in >> result.steps >> comma >> result.layers >> comma >> result.experts;
  result.tokens.resize(static_cast<std::size_t>(result.steps) * static_cast<std::size_t>(result.layers) *
                       static_cast<std::size_t>(result.experts));
  for (auto& tokens : result.tokens) {
    in >> tokens;
    in.get();
  }
  return result;
}

/// Folders with traces that exist here: the ones in the repository, and those that may not be shipped.
inline std::vector<std::filesystem::path> trace_folders() {
  std::vector<std::filesystem::path> folders;
  auto const add = [&folders](std::filesystem::path const& folder) {
    if (std::filesystem::is_directory(folder)) { folders.push_back(folder); }
  };
#if defined(BALLAST_SOURCE_DIR)
  std::filesystem::path const source = BALLAST_SOURCE_DIR;
#else
  std::filesystem::path const source = ".";
#endif
  add(source / "tests/data/traces");
  if (auto const* named = std::getenv("BALLAST_TRACES_DIR"); named != nullptr) {
    add(named);
  } else {
    add(source / "../shared/traces");
  }
  return folders;
}

/// Path of "<model>/<name>.csv", empty where it is missing.
inline std::filesystem::path find_trace(std::string const& name) {
  for (auto const& folder : trace_folders()) {
    if (auto file = folder / (name + ".csv"); std::filesystem::exists(file)) { return file; }
  }
  return {};
}

/// Every trace below the folders, each once, by "<model>/<name>".
inline std::vector<std::filesystem::path> all_traces(
    std::vector<std::filesystem::path> const& folders = trace_folders()) {
  std::map<std::filesystem::path, std::filesystem::path> files;
  for (auto const& folder : folders) {
    if (!std::filesystem::is_directory(folder)) { continue; }
    for (auto const& entry : std::filesystem::recursive_directory_iterator{folder}) {
      auto const& file = entry.path();
      if (file.extension() == ".csv") { files.emplace(file.parent_path().filename() / file.filename(), file); }
    }
  }
  std::vector<std::filesystem::path> result;
  result.reserve(files.size());
  for (auto const& [name, file] : files) { result.push_back(file); }
  return result;
}

}  // namespace ballast_test

#endif
