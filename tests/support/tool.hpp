// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_TOOL_HPP
#define BALLAST_TESTS_SUPPORT_TOOL_HPP

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

namespace ballast_test {

/// A folder for the files of one test, gone afterwards.
class scratch_folder {
public:
  scratch_folder() {
    auto pattern = (std::filesystem::temp_directory_path() / "ballast-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) { std::abort(); }
    path_ = pattern;
  }
  scratch_folder(scratch_folder const&) = delete;
  scratch_folder& operator=(scratch_folder const&) = delete;
  ~scratch_folder() { std::filesystem::remove_all(path_); }

  [[nodiscard]] std::filesystem::path const& path() const { return path_; }
  [[nodiscard]] std::string file(std::string_view name) const { return (path_ / name).string(); }
  /// Path of a new file with this content.
  [[nodiscard]] std::string file(std::string_view name, std::string_view content) const {
    std::ofstream{file(name), std::ios::binary} << content;
    return file(name);
  }
  /// Names of all that is in it, hidden files too, in order.
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (auto const& entry : std::filesystem::directory_iterator{path_}) {
      found.push_back(entry.path().filename().string());
    }
    std::sort(found.begin(), found.end());
    return found;
  }

private:
  std::filesystem::path path_;
};

[[nodiscard]] inline std::string content_of(std::string const& file) {
  std::ifstream in{file, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

/// What a tool is called with.
using arguments = std::vector<std::string>;

[[nodiscard]] inline arguments with(arguments base, arguments const& more) {
  base.insert(base.end(), more.begin(), more.end());
  return base;
}

struct tool_result {
  int exit_status = -1;
  std::string out;
  std::string err;
};

/// Path of one of the project's programs, beside this test in the build folder; empty if it was not built.
[[nodiscard]] inline std::string find_tool(std::string const& name) {
  auto const tests = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  for (auto const& file : {tests / name, tests.parent_path() / "examples" / name}) {
    if (std::filesystem::exists(file)) { return file.string(); }
  }
  return {};
}

/// A text as one word for the shell.
[[nodiscard]] inline std::string quoted(std::string const& text) {
  std::string word = "'";
  for (auto const letter : text) { word += letter == '\'' ? std::string{"'\\''"} : std::string(1, letter); }
  return word + "'";
}

/// A program and its arguments as a line for the shell.
[[nodiscard]] inline std::string command_line(std::string const& program, arguments const& given) {
  auto line = quoted(program);
  for (auto const& argument : given) { line.append(" ").append(quoted(argument)); }
  return line;
}

/// Run a line of the shell and wait for it.
[[nodiscard]] inline tool_result run_in_shell(std::string const& line) {
  scratch_folder const scratch;
  auto const command =
      "{ " + line + "\n} >" + quoted(scratch.file("out")) + " 2>" + quoted(scratch.file("err")) + " </dev/null";
  auto const status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, content_of(scratch.file("out")),
          content_of(scratch.file("err"))};
}

/// Run a program and wait for it.
[[nodiscard]] inline tool_result run_tool(std::string const& program, arguments const& given) {
  return run_in_shell(command_line(program, given));
}

/// The program, or the end of this test program with the exit status that means skipped.
[[nodiscard]] inline std::string need_tool(std::string const& name) {
  auto program = find_tool(name);
  if (program.empty()) {
    std::printf("skipped: %s was not built\n", name.c_str());
    std::exit(77);
  }
  return program;
}

}  // namespace ballast_test

#endif
