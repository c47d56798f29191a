// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What the tools promise about every option and every file, whichever it is.
#include <ballast/detail/text.hpp>

#include "support/tool.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace std::string_literals;
using ballast_test::arguments;
using ballast_test::content_of;
using ballast_test::quoted;
using ballast_test::scratch_folder;
using ballast_test::tool_result;
/// Options and their values. An empty value in `changes` takes the option away.
using settings = std::map<std::string, std::string>;

std::string const mixtral = BALLAST_TEST_DATA_DIR "/traces/mixtral-8x7b/domains.csv";

/// Ids of 128 tokens in three layers, two of eight experts each.
std::string const& token_trace() {
  static scratch_folder const scratch;
  static auto const file = [] {
    std::ostringstream text;
    text << "128,3,2\n";
    for (int token = 0; token < 128; ++token) {
      for (int layer = 0; layer < 3; ++layer) {
        auto const first = (token * token + layer) % 8;
        text << (layer > 0 ? "," : "") << first << ',' << (first + 1 + token % 7) % 8;
      }
      text << '\n';
    }
    return scratch.file("tokens.csv", text.str());
  }();
  return file;
}

struct tool {
  std::string name;
  settings base;                     ///< runs and succeeds
  std::string trace_option;          ///< reads a trace
  std::vector<std::string> outputs;  ///< write a file
  arguments flags;                   ///< go with them
  std::vector<std::string> unused;   ///< options that do not

  [[nodiscard]] std::string command(settings const& changes = {}, arguments const& more = {}) const {
    auto all = base;
    for (auto const& [option, value] : changes) { all[option] = value; }
    arguments given;
    for (auto const& [option, value] : all) {
      if (!value.empty()) { given.insert(given.end(), {option, value}); }
    }
    given.insert(given.end(), flags.begin(), flags.end());
    given.insert(given.end(), more.begin(), more.end());
    return ballast_test::command_line(ballast_test::need_tool(name), given);
  }
  [[nodiscard]] tool_result run(settings const& changes = {}, arguments const& more = {}) const {
    return ballast_test::run_in_shell(command(changes, more));
  }
};

std::vector<tool> const tools{
    {"ballast-plan",
     {{"--loads", mixtral}, {"--ranks", "4"}, {"--nodes", "2"}, {"--slots-per-rank", "3"}, {"--policy", "deepseek"}},
     "--loads",
     {"--out", "--report"},
     {},
     {}},
    {"ballast-replay",
     {{"--tokens", token_trace()},
      {"--ranks", "4"},
      {"--nodes", "2"},
      {"--slots-per-rank", "3"},
      {"--policy", "deepseek"},
      {"--batch-tokens", "8"},
      {"--plan-on", "2"}},
     "--tokens",
     {"--json"},
     {"--every-batch"},
     {"--trace", "--layers-per-chunk", "--bytes-per-expert", "--threshold", "--shares-every", "--plot"}},
    {"ballast-replay",
     {{"--trace", mixtral},
      {"--ranks", "4"},
      {"--nodes", "2"},
      {"--slots-per-rank", "3"},
      {"--policy", "deepseek"},
      {"--interval", "2"},
      {"--bytes-per-expert", "64"}},
     "--trace",
     {"--json"},
     {},
     {"--tokens", "--batch-tokens", "--experts", "--plan-on", "--plot"}}};

/// What `--help` says about an option.
struct help_line {
  std::string option;
  std::string type;
  bool required = false;
};

std::vector<help_line> options_of(tool const& tool) {
  std::vector<help_line> found;
  std::istringstream lines{tool.run({}, {"--help"}).out};
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words{line};
    help_line read;
    std::string third;
    words >> read.option >> read.type >> third;
    read.required = third == "REQUIRED";
    bool const is_used = std::find(tool.unused.begin(), tool.unused.end(), read.option) == tool.unused.end();
    bool const has_value = !read.type.empty() && read.type[0] >= 'A' && read.type[0] <= 'Z';
    if (line.starts_with("  --") && read.option != "--version" && has_value && is_used) { found.push_back(read); }
  }
  return found;
}

/// Settings that make a tool use an option.
settings users_of(std::string const& option, std::string const& value) {
  settings result{{option, value}};
  if (option == "--nodes") { result["--ranks"] = "8"; }
  if (option == "--max-moves") { result["--policy"] = "incremental"; }
  if (option == "--model-layers") { result["--moe-layers"] = "0:3"; }
  return result;
}

/// Whether a refusal is one line that a terminal shows as it is.
bool is_clean(std::string const& message) {
  return message.size() > 1 && message.ends_with('\n') &&
         std::none_of(message.begin(), message.end() - 1, [](char letter) {
           auto const byte = static_cast<unsigned char>(letter);
           return byte < 0x20 || byte == 0x7f || byte == 0x9b;
         });
}

void check_refused(tool_result const& result, std::string const& part) {
  CHECK(result.exit_status == 2);
  CHECK(result.out.empty());
  CHECK_MESSAGE(result.err.find(part) != std::string::npos, result.err);
  CHECK_MESSAGE(is_clean(result.err), result.err);
}

/// Write files, run a command under a limit that lets no file grow, and say what it said and its exit status.
tool_result run_on_full_disk(std::string const& command) {
  return ballast_test::run_in_shell("{ (ulimit -f 0; " + command + "; echo \"exit $?\") 2>&1; } | cat");
}

}  // namespace

TEST_CASE("every integer of every tool is decimal") {
  for (auto const& tool : tools) {
    std::size_t integers = 0;
    for (auto const& [option, type, required] : options_of(tool)) {
      if (type != "INT") { continue; }
      ++integers;
      CAPTURE(tool.name);
      CAPTURE(option);
      for (auto const* same : {"8", "08", "008"}) {
        auto const result = tool.run(users_of(option, same));
        CHECK_MESSAGE(result.exit_status == 0, result.err);
      }
      for (auto const* wrong : {"0x8", "0X8", "8.0", "8e0", "+8", " 8", "8 ", "8x", "0b1000", "0o10", "1'0", "1,0",
                                "eight", "8-", "99999999999999999999", "\xd9\xa8"}) {
        CAPTURE(wrong);
        check_refused(tool.run(users_of(option, wrong)), option + " is '" + wrong + "', must be a decimal integer");
      }
    }
    CHECK(integers >= 6);
  }
}

TEST_CASE("a leading zero changes nothing about a plan") {
  auto const& plan = tools.front();
  auto const out = [&](settings const& changes) {
    auto const result = plan.run(changes);
    CHECK_MESSAGE(result.exit_status == 0, result.err);
    return result.out;
  };
  CHECK(out({{"--ranks", "010"}}) == out({{"--ranks", "10"}}));
  CHECK(out({{"--ranks", "010"}}) != out({{"--ranks", "8"}}));
  CHECK(out({{"--slots-per-rank", "010"}}) == out({{"--slots-per-rank", "10"}}));
  CHECK(out({{"--moe-layers", "010:013"}}) == out({{"--moe-layers", "10:13"}}));
  CHECK(out({{"--steps", "01:04"}}) == out({{"--steps", "1:4"}}));
}

TEST_CASE("an option given twice, without its value, or with an empty one is refused by its name") {
  for (auto const& tool : tools) {
    for (auto const& [option, type, required] : options_of(tool)) {
      CAPTURE(tool.name);
      CAPTURE(option);
      settings const away{{option, ""}};
      check_refused(tool.run(away, {option, "8", option, "8"}), option + " is given more than once");
      check_refused(tool.run(away, {option, ""}), option);
      check_refused(tool.run(away, {option}), option);
      if (required) { check_refused(tool.run(away), option + " is required"); }
    }
  }
}

TEST_CASE("what is misspelt is named, also where something required is missing for it") {
  for (auto const& tool : tools) {
    for (auto const& [option, type, required] : options_of(tool)) {
      CAPTURE(option);
      auto const typo = option.substr(0, option.size() - 1);
      check_refused(tool.run({{option, ""}}, {typo, "4"}), "there is no option '" + typo + "'");
    }
    check_refused(tool.run({}, {"surplus"}), "unexpected argument 'surplus'");
    check_refused(tool.run({}, {"-q"}), "there is no option '-q'");
    check_refused(tool.run({}, {"--\x1b[2J"}), "there is no option '--\\x1b[2J'");
  }
}

TEST_CASE("help and version go to standard output, and say so when they do not arrive") {
  for (auto const& tool : tools) {
    auto const version = tool.run({}, {"--version"});
    CHECK(version.exit_status == 0);
    CHECK(version.out == tool.name + " 0.1.0\n");
    CHECK(version.err.empty());
    auto const help = tool.run({}, {"--help"});
    CHECK(help.exit_status == 0);
    CHECK(help.err.empty());
    for (auto const* part : {"REQUIRED", "steps,layers,experts", "standard input"}) {
      CHECK(help.out.find(part) != std::string::npos);
    }
    for (auto const* question : {"--help", "--version"}) {
      check_refused(ballast_test::run_in_shell(tool.command({}, {question}) + " >/dev/full"),
                    "standard output: cannot be written: No space left on device");
    }
  }
}

TEST_CASE("standard output that is full or closed is a failure") {
  scratch_folder const scratch;
  for (auto const& tool : tools) {
    CAPTURE(tool.name);
    check_refused(ballast_test::run_in_shell(tool.command() + " >/dev/full"),
                  "standard output: cannot be written: No space left on device");
    auto const closed = ballast_test::run_in_shell(tool.command() + " >&-");
    CHECK(closed.exit_status == 2);
    CHECK(closed.err.find("standard output: cannot be") != std::string::npos);
    // What a closed stream would print must not end in a file that is opened in its place.
    for (auto const& option : tool.outputs) {
      auto const file = scratch.file("with_closed_streams.json");
      static_cast<void>(ballast_test::run_in_shell(tool.command({{option, file}}) + " >&- 2>&- <&-"));
      if (!std::filesystem::exists(file)) { continue; }
      std::istringstream lines{content_of(file)};
      std::string first;
      std::getline(lines, first);
      CHECK(first.starts_with("{"));
    }
  }
}

TEST_CASE("a file that cannot be written is a failure, and what was there stays") {
  for (auto const& tool : tools) {
    for (auto const& option : tool.outputs) {
      CAPTURE(option);
      scratch_folder const scratch;
      auto const old = scratch.file("old.json", "as it was");
      auto const full = run_on_full_disk(tool.command({{option, old}}));
      CHECK_MESSAGE(full.out.ends_with("exit 2\n"), full.out);
      CHECK_MESSAGE(full.out.find(old + ": cannot be written: File too large") != std::string::npos, full.out);
      CHECK(content_of(old) == "as it was");
      auto const fresh = run_on_full_disk(tool.command({{option, scratch.file("new.json")}}));
      CHECK(fresh.out.ends_with("exit 2\n"));
      CHECK(scratch.names() == std::vector{"old.json"s});

      check_refused(tool.run({{option, "/dev/full"}}), "/dev/full: cannot be written: No space left on device");
      check_refused(tool.run({{option, scratch.file("no/such")}}), "No such file or directory");
      check_refused(tool.run({{option, old + "/x"}}), "Not a directory");
      check_refused(tool.run({{option, scratch.path().string()}}), "Is a directory");
      check_refused(tool.run({{option, "/proc/x.json"}}), "/proc/x.json: cannot be opened for writing: ");
      std::filesystem::create_symlink("loop", scratch.file("loop"));
      check_refused(tool.run({{option, scratch.file("loop")}}), "Too many levels of symbolic links");
      CHECK(content_of(old) == "as it was");
      CHECK(scratch.names() == std::vector{"loop"s, "old.json"s});
    }
  }
}

TEST_CASE("one file that cannot be written keeps the other from being replaced") {
  auto const& plan = tools.front();
  for (auto const& [bad, good] : {std::pair{"--out", "--report"}, std::pair{"--report", "--out"}}) {
    scratch_folder const scratch;
    auto const old = scratch.file("old.json", "as it was");
    check_refused(plan.run({{bad, "/dev/full"}, {good, old}}), "/dev/full: cannot be written");
    CHECK(content_of(old) == "as it was");
    CHECK(scratch.names() == std::vector{"old.json"s});
  }
}

TEST_CASE("a file that is written takes the old one's place: its name, its mode, and where links lead") {
  for (auto const& tool : tools) {
    for (auto const& option : tool.outputs) {
      CAPTURE(option);
      scratch_folder const scratch;
      auto const target = scratch.file("target.json", "as it was");
      REQUIRE(::chmod(target.c_str(), 0640) == 0);
      auto const link = scratch.file("link.json");
      std::filesystem::create_symlink("target.json", link);
      auto const dangling = scratch.file("dangling.json");
      std::filesystem::create_symlink(scratch.file("created.json"), dangling);
      auto const fresh = scratch.file("fresh.json");
      for (auto const& file : {link, dangling, fresh}) {
        auto const result = ballast_test::run_in_shell("umask 027; " + tool.command({{option, file}}));
        CHECK_MESSAGE(result.exit_status == 0, result.err);
        CHECK(content_of(file).starts_with("{"));
        struct stat info{};
        REQUIRE(::stat(file.c_str(), &info) == 0);
        CHECK((info.st_mode & 0777) == 0640);
      }
      CHECK(std::filesystem::is_symlink(link));
      CHECK(content_of(target) == content_of(fresh));
      CHECK(std::filesystem::is_symlink(dangling));
      CHECK(scratch.names() ==
            std::vector{"created.json"s, "dangling.json"s, "fresh.json"s, "link.json"s, "target.json"s});
    }
  }
}

TEST_CASE("devices and streams are written to as they are") {
  scratch_folder const scratch;
  for (auto const& tool : tools) {
    for (auto const& option : tool.outputs) {
      CAPTURE(option);
      CHECK(tool.run({{option, "/dev/null"}}).exit_status == 0);
      // Added to what is there, and not in place of it.
      auto const log = scratch.file("log", "before\n");
      auto const result = ballast_test::run_in_shell(tool.command({{option, "/dev/fd/7"}}) + " 7>>" + quoted(log));
      CHECK_MESSAGE(result.exit_status == 0, result.err);
      CHECK(content_of(log).starts_with("before\n{"));
      auto const pipe = ballast_test::run_in_shell(tool.command({{option, "/dev/fd/7"}}) + " 7>&1 >/dev/null | cat");
      CHECK(pipe.out.starts_with("{"));
    }
  }
}

TEST_CASE("no file that is read is written, whatever it is called") {
  for (auto const& tool : tools) {
    std::vector<std::pair<std::string, settings>> readers{{tool.trace_option, {}}};
    if (tool.name == "ballast-plan") {
      readers.push_back({"--current", {}});
      readers.push_back({"--score", {{"--policy", ""}}});
    }
    for (auto const& [reader, changes] : readers) {
      for (auto const& writer : tool.outputs) {
        if (reader == "--score" && writer == "--report") { continue; }  // refused whatever it is
        CAPTURE(reader);
        CAPTURE(writer);
        scratch_folder const scratch;
        auto const is_trace = reader == tool.trace_option;
        auto const content = is_trace ? content_of(tool.base.at(reader))
                                      : tools.front().run({{"--loads", mixtral}, {"--policy", "balanced"}}).out;
        auto const input = scratch.file("input", content);
        std::filesystem::create_symlink("input", scratch.file("symbolic"));
        std::filesystem::create_hard_link(input, scratch.file("hard"));
        std::filesystem::create_directory_symlink(".", scratch.file("folder"));
        auto const refused = [&](std::string const& in, std::string const& out, std::string const& streams = "") {
          auto all = changes;
          all[reader] = in;
          all[writer] = out;
          check_refused(ballast_test::run_in_shell(tool.command(all) + streams),
                        ballast::detail::concat(writer, " is '", out, "', which is the file that ", reader,
                                                " reads: name another file"));
          CHECK(content_of(input) == content);
        };
        for (auto const* name : {"input", "symbolic", "hard", "folder/input", "./folder/./folder/input"}) {
          CAPTURE(name);
          refused(input, scratch.file(name));
          refused(scratch.file(name), input);
        }
        refused("-", input, " <" + quoted(input));
        refused("/dev/stdin", input, " <" + quoted(input));
        refused(input, "/dev/fd/7", " 7>>" + quoted(input));
        auto appended = changes;
        appended[reader] = input;
        auto const streamed = ballast_test::run_in_shell(tool.command(appended) + " >>" + quoted(input));
        CHECK(streamed.exit_status == 2);
        CHECK(content_of(input) == content);
      }
    }
  }
}

TEST_CASE("no file is written twice") {
  auto const& plan = tools.front();
  scratch_folder const scratch;
  auto const there = scratch.file("there", "as it was");
  std::filesystem::create_hard_link(there, scratch.file("hard"));
  std::filesystem::create_directory_symlink(".", scratch.file("folder"));
  for (auto const& [out, report] : {std::pair{"there", "there"},
                                    {"there", "hard"},
                                    {"folder/there", "there"},
                                    {"new", "new"},
                                    {"new", "folder/new"},
                                    {"folder/new", "new"}}) {
    auto const name = scratch.file(report);
    check_refused(plan.run({{"--out", scratch.file(out)}, {"--report", name}}),
                  "--report is '" + name + "', which is the file that --out writes: name another file");
  }
  CHECK(content_of(there) == "as it was");
  check_refused(plan.run({{"--report", "-"}}), "--report is '-', but --out goes to standard output already");
  check_refused(tools.back().run({{"--json", "-"}}), "--json is '-', but the summary goes to standard output already");
  CHECK(plan.run({{"--out", scratch.file("plan.json")}, {"--report", "-"}}).out.find("replica_counts") !=
        std::string::npos);
}

TEST_CASE("- is standard input and output") {
  scratch_folder const scratch;
  for (auto const& tool : tools) {
    auto const piped = ballast_test::run_in_shell(tool.command({{tool.trace_option, "-"}}) + " <" +
                                                  quoted(tool.base.at(tool.trace_option)));
    CHECK_MESSAGE(piped.exit_status == 0, piped.err);
    if (tool.name == "ballast-plan") { CHECK(piped.out == tool.run({{"--out", "-"}}).out); }
    check_refused(tool.run({{tool.trace_option, "-"}}), "standard input: line 1: the file is empty");
    auto const closed = ballast_test::run_in_shell(tool.command({{tool.trace_option, "-"}}) + " <&-");
    CHECK(closed.exit_status == 2);
    CHECK(closed.err.find("standard input: cannot be") != std::string::npos);
  }
  check_refused(tools.front().run({{"--loads", "-"}, {"--current", "-"}}),
                "--current is '-', but --loads reads standard input already");
  CHECK_FALSE(std::filesystem::exists("-"));
}

TEST_CASE("whatever a trace holds, it is read or refused in one clean line") {
  scratch_folder const scratch;
  for (auto const& tool : tools) {
    CAPTURE(tool.name);
    auto const good = content_of(tool.base.at(tool.trace_option));
    auto with_mark = "\xef\xbb\xbf" + good;
    auto spaced = good;
    for (std::size_t at = 0; (at = spaced.find(',', at)) != std::string::npos; at += 2) { spaced.insert(at + 1, " "); }
    std::string crlf;
    for (auto const letter : good) { crlf += letter == '\n' ? " \r\n"s : std::string(1, letter); }
    std::string utf16 = "\xff\xfe";
    for (auto const letter : good) { utf16 += std::string(1, letter) + '\0'; }
    for (auto const& fine : {with_mark, spaced, crlf, with_mark + "\n \n"}) {
      CHECK(tool.run({{tool.trace_option, scratch.file("fine.csv", fine)}}).exit_status == 0);
    }
    std::vector<std::pair<std::string, std::string>> const bad{{utf16, "the text is UTF-16 or UTF-32, must be UTF-8"},
                                                               {"44\0,1,1\n"s, "value 1 is '44\\x00'"},
                                                               {"\x1b[31m,1,1\n", "value 1 is '\\x1b[31m'"},
                                                               {"4\xc2\x9b,1,1\n", "value 1 is '4\\xc2\\x9b'"},
                                                               {"\xe2\x80\x8b"
                                                                "4,1,1\n",
                                                                R"(value 1 is '\xe2\x80\x8b4')"},
                                                               {"4,1\r1,1\n", "value 2 is '1\\x0d1'"},
                                                               {"\xff,1,1\n", "value 1 is '\\xff'"},
                                                               {std::string(1000000, '['), "line 1: "},
                                                               {std::string(100000, ','), "line 1: has 100001 values"},
                                                               {std::string(100000, '\n'), "line 1: has 0 values"},
                                                               {std::string(100000, '\0'), "line 1: "}};
    for (auto const& [content, message] : bad) {
      check_refused(tool.run({{tool.trace_option, scratch.file("bad.csv", content)}}), message);
    }
    auto const strange = scratch.file("a\x1b[2J\nb\xff.csv", "x");
    check_refused(tool.run({{tool.trace_option, strange}}), R"(a\x1b[2J\x0ab\xff.csv: line 1: )");
    check_refused(tool.run({{tool.trace_option, strange + "x"}}), R"(a\x1b[2J\x0ab\xff.csvx: cannot be opened: )");
    check_refused(tool.run({{"--policy", "\x1b[2J"}}), "there is no policy '\\x1b[2J'");
  }
}

TEST_CASE("whatever a placement file holds, it is read or refused in one clean line") {
  auto const& plan = tools.front();
  scratch_folder const scratch;
  auto const good = plan.run().out;
  auto const deep = [](std::string const& opening, std::size_t depth) {
    std::string text;
    for (std::size_t level = 0; level < depth; ++level) { text += opening; }
    return text;
  };
  std::string utf16 = "\xff\xfe";
  for (auto const letter : good) { utf16 += std::string(1, letter) + '\0'; }
  auto const in_map = [](std::string const& value) { return "{\"physical_to_logical_map\": " + value + "}"; };
  std::vector<std::pair<std::string, std::string>> const bad{
      {deep("[", 200000), "nested deeper than 32 levels"},
      {deep("{\"a\":", 200000), "nested deeper than 32 levels"},
      {in_map(deep("[", 200000) + deep("]", 200000)), "nested deeper than 32 levels"},
      {"{\"x\": " + deep("[", 200000) + deep("]", 200000) + "}", "nested deeper than 32 levels"},
      {deep("[{\"a\":", 200000), "nested deeper than 32 levels"},
      {deep("[", 31) + deep("]", 31), "must hold a JSON object"},
      {R"({"physical_to_logical_map": [], "physical_to_logical_map": []})", "is there twice"},
      {R"({"physical_to_logical_map": [], "a": 1, "a": 2})", "the key \"a\" is there twice"},
      {utf16, "the text is UTF-16 or UTF-32, must be UTF-8"},
      {in_map(R"("\u001b[2J\u0000\u009b")"), "physical_to_logical_map is "},
      {in_map("[[\"\xe2\x80\xae\"]]"), "physical_to_logical_map has 1 layers"},
      {"{\"\x1b[2J\": 1}", "not JSON: "},
      {"\0{}"s, "not JSON: "},
      {"{}\0"s, "not JSON: byte 2 is 0"},
      {good + "\0x"s, "is 0"},
      {"", "not JSON: "},
      {"\xff", "not JSON: "},
      {"[1e999]", "not JSON: "},
      {R"({"a": 1e999})", "not JSON: "},
      {"{\"" + std::string(100000, 'x'), "not JSON: "},
      {in_map("010"), "not JSON: "},
      {in_map("[[0x1]]"), "not JSON: "},
      {"{} {}", "not JSON: "},
      {"// c\n{}", "not JSON: "}};
  for (auto const* reader : {"--current", "--score"}) {
    CAPTURE(reader);
    settings const changes = reader == "--score"s ? settings{{"--policy", ""}} : settings{};
    auto const run = [&](std::string const& content) {
      auto all = changes;
      all[reader] = scratch.file("file.json", content);
      return plan.run(all);
    };
    CHECK(run("\xef\xbb\xbf" + good).exit_status == 0);
    for (auto const& [content, message] : bad) {
      CAPTURE(message);
      check_refused(run(content), message);
    }
  }
}

TEST_CASE("a threshold is a decimal number from 0 to 1") {
  auto const& replay = tools.back();
  for (auto const* fine : {"0", "1", "0.5", "1.0", "5e-1", "0.950"}) {
    CHECK(replay.run({{"--threshold", fine}}).exit_status == 0);
  }
  for (auto const* wrong : {"90", "1.0001", "-0.1", "nan", "inf", "-1"}) {
    check_refused(replay.run({{"--threshold", wrong}}),
                  "--threshold is " + std::string{wrong} + ", must be from 0 to 1");
  }
  for (auto const* wrong : {"0x1p-1", "0,5", "half", " 0.5", "0.5 ", "1e999"}) {
    check_refused(replay.run({{"--threshold", wrong}}),
                  "--threshold is '" + std::string{wrong} + "', must be a decimal number");
  }
}
