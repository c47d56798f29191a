// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Code in README.md and docs/ cannot rot: every C++ block is an excerpt of a file that is compiled, and says of which.
//
//   <!-- excerpt: examples/quickstart.cpp -->      the next block stands in that file, indentation apart
//   <!-- output: quickstart -->                    the next block is what that program of examples/ prints
#include <doctest/doctest.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace fs = std::filesystem;

fs::path const source_dir{BALLAST_SOURCE_DIR};

struct code_block {
  std::string language;
  std::string mark;  // the last line before the block that is not blank
  std::string text;
};

std::string read_file(fs::path const& path) {
  std::ifstream file{path};
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string without_indentation(std::string const& text) {
  std::istringstream lines{text};
  std::string result;
  for (std::string line; std::getline(lines, line);) {
    auto const first = line.find_first_not_of(' ');
    if (first != std::string::npos) { result += line.substr(first); }
    result += '\n';
  }
  return result;
}

std::vector<code_block> blocks_of(std::string const& document) {
  std::istringstream lines{document};
  std::vector<code_block> result;
  std::string mark;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("```")) {
      code_block block{line.substr(3), mark, {}};
      while (std::getline(lines, line) && line != "```") { block.text += line + '\n'; }
      result.push_back(block);
      mark.clear();
    } else if (!line.empty()) {
      mark = line;
    }
  }
  return result;
}

// What stands after `key` in a line '<!-- key: value -->'; empty if that is not the key.
std::string value_of(std::string const& mark, std::string const& key) {
  auto const begin = "<!-- " + key + ": ";
  std::string_view const end = " -->";
  if (!mark.starts_with(begin) || !mark.ends_with(end)) { return {}; }
  return mark.substr(begin.size(), mark.size() - begin.size() - end.size());
}

std::string output_of(fs::path const& program) {
  auto* const pipe = ::popen(program.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string result;
  std::array<char, 4096> buffer{};
  while (auto const n = std::fread(buffer.data(), 1, buffer.size(), pipe)) { result.append(buffer.data(), n); }
  CHECK(::pclose(pipe) == 0);
  return result;
}

std::vector<fs::path> documents() {
  std::vector<fs::path> result;
  for (auto const& dir : {source_dir, source_dir / "docs"}) {
    if (!fs::exists(dir)) { continue; }
    for (auto const& entry : fs::directory_iterator{dir}) {
      if (entry.path().extension() == ".md") { result.push_back(entry.path()); }
    }
  }
  return result;
}

}  // namespace

TEST_CASE("C++ in the documents is an excerpt of a file that is compiled") {
  for (auto const& document : documents()) {
    for (auto const& block : blocks_of(read_file(document))) {
      if (block.language != "cpp") { continue; }
      CAPTURE(document.filename().string());
      CAPTURE(block.text);
      auto const excerpt_of = value_of(block.mark, "excerpt");
      CHECK_MESSAGE(!excerpt_of.empty(), "a line '<!-- excerpt: FILE -->' must stand before the block");
      auto const file = without_indentation(read_file(source_dir / excerpt_of));
      CHECK_MESSAGE(file.find(without_indentation(block.text)) != std::string::npos, "not found in ", excerpt_of);
    }
  }
}

TEST_CASE("output in the documents is what the examples print") {
  fs::path const examples_dir{BALLAST_EXAMPLES_DIR};
  if (examples_dir.empty()) {
    MESSAGE("skipped: the examples are not built");
    return;
  }
  for (auto const& document : documents()) {
    for (auto const& block : blocks_of(read_file(document))) {
      auto const program = value_of(block.mark, "output");
      if (program.empty()) { continue; }
      CAPTURE(document.filename().string());
      CHECK(block.text == output_of(examples_dir / program));
    }
  }
}

TEST_CASE("blocks, their languages and their marks are found") {
  auto const blocks = blocks_of("text\n<!-- excerpt: a.cpp -->\n\n```cpp\nint a;\n\n```\n```sh\nls\n```\n");
  REQUIRE(blocks.size() == 2);
  CHECK(blocks[0].language == "cpp");
  CHECK(value_of(blocks[0].mark, "excerpt") == "a.cpp");
  CHECK(value_of(blocks[0].mark, "output").empty());
  CHECK(blocks[0].text == "int a;\n\n");
  CHECK(blocks[1].language == "sh");
  CHECK(value_of(blocks[1].mark, "excerpt").empty());
  CHECK(without_indentation("  int a;\n\n    b\n") == "int a;\n\nb\n");
}
