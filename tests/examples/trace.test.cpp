// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "../../examples/support/trace.hpp"

#include <ballast/load/pass_recorder.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/deepseek.hpp>

#include "support/histories.hpp"
#include "support/random.hpp"
#include "support/tool.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace ballast;
using namespace std::string_literals;
using ballast_tools::parse_trace;
using ballast_tools::step_range;
using ballast_tools::trace;
using loads = std::vector<load_t>;

trace const untouched{1, 1, 1, {42}};

/// What `parse_trace` says about a text that it must refuse, leaving its output alone.
std::string refusal(std::string const& text) {
  auto out = untouched;
  auto const result = parse_trace(text, out);
  CHECK(result.code() == errc::malformed_file);
  CHECK(out == untouched);
  return result.message();
}

trace parsed(std::string const& text) {
  trace out;
  parse_trace(text, out).or_throw();
  return out;
}

}  // namespace

TEST_CASE("a trace is steps, layers in them, experts in those") {
  auto const read = parsed("2,2,3\n1,2,3\n4,5,6\n7,8,9\n10,11,12\n");
  CHECK(read == trace{2, 2, 3, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}});
  CHECK(read.history().layer(1, 0)[2] == 9);
}

TEST_CASE("line ends of other systems and a missing last one are accepted") {
  CHECK(parsed("1,1,2\r\n3,4\r\n") == trace{1, 1, 2, {3, 4}});
  CHECK(parsed("1,1,2\n3,4") == trace{1, 1, 2, {3, 4}});
  CHECK(parsed("1,1,2\n3,4\n\n") == trace{1, 1, 2, {3, 4}});
}

TEST_CASE("blanks around numbers and a byte order mark are accepted") {
  trace const expected{1, 1, 2, {3, 4}};
  for (auto const& text :
       {"1, 1, 2\n3, 4\n"s, "1,1,2 \n3,4 \n"s, " 1,\t1 ,2\r\n\t3 , 4\t \r\n"s, "1,1,2\n3,4\n \n\t\r\n"s,
        "\xef\xbb\xbf"
        "1,1,2\r\n3,4\r\n"s}) {
    CAPTURE(text);
    CHECK(parsed(text) == expected);
  }
  CHECK(refusal("1,1,2\n3 3,4\n") == "line 2: value 1 is '3 3', must be an integer from 0 to 17592186044416");
  CHECK(refusal("1,1,2\n , 4\n") == "line 2: value 1 is '', must be an integer from 0 to 17592186044416");
  CHECK(refusal("1,1,2\n1,2\n\n3,\n").find("line 4: ") == 0);
}

TEST_CASE("numbers are decimal, whatever their leading zeros") {
  CHECK(parsed("01,001,02\n010,08\n") == trace{1, 1, 2, {10, 8}});
  for (auto const* wrong : {"0x10", "1e3", "+1", "1.0", "1_0", "1'0", "0b1", "1 0"}) {
    CHECK(refusal("1,1,2\n1,"s + wrong + "\n") ==
          "line 2: value 2 is '"s + wrong + "', must be an integer from 0 to 17592186044416");
  }
}

TEST_CASE("other encodings are named") {
  for (auto const& text : {"\xff\xfe"
                           "1\0,\0"s,
                           "\xfe\xff\0001\0,"s, "1\0,\0001\0"s, "\0001\0,"s}) {
    CHECK(refusal(text) == "line 1: the text is UTF-16 or UTF-32, must be UTF-8");
  }
}

TEST_CASE("a value is not cut short by what is in it, only by its length") {
  CHECK(refusal("1,1,2\n1,4\0x\n"s) == "line 2: value 2 is '4\0x', must be an integer from 0 to 17592186044416"s);
  CHECK(refusal("1,1,1\n" + std::string(1000000, '9') + "\n").size() < 120);
}

TEST_CASE("more tokens than can be planned for are refused, in whatever steps they come") {
  auto const most = std::to_string(max_layer_tokens);
  auto const read = parsed("3,2,2\n1,2\n" + most + ",0\n0,0\n1,0\n5,6\n0,0\n");
  CHECK(ballast_tools::check_windows(read, 1).ok());
  CHECK(ballast_tools::check_windows(read, 2).message() ==
        "the tokens of layer 1 in 2 steps up to step 1 exceed " + most);
  CHECK(ballast_tools::check_windows(read, 99).message() ==
        "the tokens of layer 1 in 2 steps up to step 1 exceed " + most);
  auto const one_step = parsed("1,1,3\n" + most + "," + most + "," + most + "\n");
  CHECK(ballast_tools::check_windows(one_step, 5).message() ==
        "the tokens of layer 0 in 1 steps up to step 0 exceed " + most);
  // Half a million such steps would not fit an integer.
  trace const many{3, 1, 1, loads(3, max_layer_tokens)};
  CHECK(sum_steps(many, {0, 3}) == loads{max_layer_tokens + 1});
}

TEST_CASE("the smallest trace, no load and the largest load") {
  CHECK(parsed("1,1,1\n0\n") == trace{1, 1, 1, {0}});
  CHECK(parsed("1,1,1\n17592186044416\n") == trace{1, 1, 1, {max_layer_tokens}});
}

TEST_CASE("what is wrong is said with line, place and value") {
  CHECK(refusal("") == "line 1: the file is empty, must start with steps,layers,experts");
  CHECK(refusal("\n") == "line 1: has 0 values, must have 3");
  CHECK(refusal("1,1\n1\n") == "line 1: has 2 values, must have 3");
  CHECK(refusal("1,1,2,9\n1,2\n") == "line 1: has 4 values, must have 3");
  CHECK(refusal("0,1,2\n") == "line 1: value 1 is '0', must be an integer from 1 to 2147483647");
  CHECK(refusal("1,-3,2\n") == "line 1: value 2 is '-3', must be an integer from 1 to 2147483647");
  CHECK(refusal("steps,layers,experts\n1\n") == "line 1: value 1 is 'steps', must be an integer from 1 to 2147483647");
  CHECK(refusal("1,1,3\n1,2\n") == "line 2: has 2 values, must have 3");
  CHECK(refusal("1,1,3\n1,2,3,4\n") == "line 2: has 4 values, must have 3");
  CHECK(refusal("1,2,2\n1,2\n3,-4\n") == "line 3: value 2 is '-4', must be an integer from 0 to 17592186044416");
  CHECK(refusal("1,1,2\nnan,2\n") == "line 2: value 1 is 'nan', must be an integer from 0 to 17592186044416");
  CHECK(refusal("1,1,2\n1,2.5\n") == "line 2: value 2 is '2.5', must be an integer from 0 to 17592186044416");
  CHECK(refusal("1,1,2\n1,\n") == "line 2: value 2 is '', must be an integer from 0 to 17592186044416");
  CHECK(refusal("1,1,2\n1,99999999999999999999\n") ==
        "line 2: value 2 is '99999999999999999999', must be an integer from 0 to 17592186044416");
  CHECK(refusal("1,1,2\n1,2\n3,4\n") == "line 3: the file goes on, but its header promises 1 lines of counts");
  CHECK(refusal("2,2,2\n1,2\n3,4\n") ==
        "line 3: the file ends here, after 2 of 4 lines of counts (2 steps x 2 layers)");
}

TEST_CASE("a header is not believed before its data is there") {
  CHECK(refusal("2147483647,2147483647,2147483647\n1\n").starts_with("line 2: "));
  CHECK(refusal("1,1,2147483647\n1\n") == "line 2: the file is too short for 2147483647 experts a line");
  CHECK(refusal("99999999999,1,1\n1\n").starts_with("line 1: value 1 is '99999999999'"));
}

TEST_CASE("a trace that is cut short is refused wherever a line or a field is missing") {
  std::string const whole = "2,3,4\n10,11,12,13\n14,15,16,17\n18,19,20,21\n22,23,24,25\n26,27,28,29\n30,31,32,33\n";
  auto const last_digits = whole.rfind("33");
  for (std::size_t size = 0; size <= last_digits; ++size) {
    CAPTURE(size);
    auto out = untouched;
    CHECK_FALSE(parse_trace(whole.substr(0, size), out).ok());
    CHECK(out == untouched);
  }
}

TEST_CASE("random damage is refused or read, and never breaks the reader") {
  std::string const whole = "2,2,3\n10,11,12\n13,14,15\n16,17,18\n19,20,21\n";
  auto const alphabet = "0123456789,-.\n\r x\0\xff"s;
  ballast_test::generator random{7};
  for (int round = 0; round < 20000; ++round) {
    auto text = whole;
    for (auto edits = random.between(1, 4); edits > 0; --edits) {
      auto const at = static_cast<std::size_t>(random.below(static_cast<index_t>(text.size())));
      auto const letter = alphabet[static_cast<std::size_t>(random.below(static_cast<index_t>(alphabet.size())))];
      switch (random.below(3)) {
        case 0: text[at] = letter; break;
        case 1: text.insert(at, 1, letter); break;
        default: text.erase(at, 1); break;
      }
    }
    trace out;
    auto const result = parse_trace(text, out);
    auto const cells = static_cast<std::size_t>(out.num_steps) * static_cast<std::size_t>(out.num_layers) *
                       static_cast<std::size_t>(out.num_logical);
    REQUIRE(out.tokens.size() == cells);
    REQUIRE(result.ok() == !out.tokens.empty());
    REQUIRE(result.ok() == result.message().empty());
  }
}

TEST_CASE("a file that is not there, or is a folder, is named") {
  ballast_test::scratch_folder const scratch;
  auto out = untouched;
  auto const missing = scratch.file("missing.csv");
  CHECK(ballast_tools::read_trace(missing, out).message() == missing + ": cannot be opened: No such file or directory");
  auto const folder = scratch.file("");
  CHECK(ballast_tools::read_trace(folder, out).message() == folder + ": cannot be read: Is a directory");
  auto const broken = scratch.file("broken.csv", "1,1,1\nx\n");
  CHECK(ballast_tools::read_trace(broken, out).message() ==
        broken + ": line 2: value 1 is 'x', must be an integer from 0 to 17592186044416");
  CHECK(out == untouched);
}

TEST_CASE("steps are chosen as A:B, B not included") {
  auto const chosen = [](std::optional<std::string_view> text) {
    step_range out{-1, -1};
    ballast_tools::parse_steps(text, 10, out).or_throw();
    return std::vector{out.first, out.last};
  };
  CHECK(chosen({}) == std::vector{0, 10});
  CHECK(chosen("08:010") == std::vector{8, 10});
  CHECK(chosen("0:10") == std::vector{0, 10});
  CHECK(chosen("3:4") == std::vector{3, 4});
  for (auto const* wrong :
       {"", "3", "0x1:3", ":", "3:", ":3", "a:b", "3:3", "4:3", "-1:3", "0:11", "1:2:3", "1.5:3", "1: 3"}) {
    CAPTURE(wrong);
    step_range out{-1, -1};
    auto const result = ballast_tools::parse_steps(wrong, 10, out);
    CHECK(result.code() == errc::invalid_option);
    CHECK(result.message().find(wrong) != std::string::npos);
    CHECK(out.first == -1);
  }
  auto const read = parsed("3,1,2\n1,2\n10,20\n100,200\n");
  CHECK(sum_steps(read, {0, 3}) == loads{111, 222});
  CHECK(sum_steps(read, {1, 2}) == loads{10, 20});
}

TEST_CASE("recorded passes go to a file and come back as the loads that an initial placement is planned for") {
  ballast_test::generator random{11};
  topology const where{{.num_ranks = 4, .num_nodes = 2, .slots_per_rank = 3}};
  auto const current = trivial_placement({2, 8, where.num_slots()});
  pass_recorder recorder{2, 8};
  for (int pass = 0; pass < 5; ++pass) {
    for (index_t layer = 0; layer < 2; ++layer) {
      std::vector<std::int32_t> counts(static_cast<std::size_t>(where.num_physical_ids()));
      for (auto& count : counts) { count = random.below(1000); }
      REQUIRE(recorder.record_physical(layer, counts, current.logical_of_slot(layer), where).ok());
    }
    recorder.end_pass(true);
  }
  auto const recorded = ballast_test::history_of(recorder);
  load_history_view const history{recorded, 5, 2, 8};

  auto const read = parsed(ballast_tools::format_trace(history));
  CHECK(read == trace{5, 2, 8, recorded});

  placement from_memory;
  placement from_file;
  REQUIRE(plan(deepseek_placement{}, history, current, where, from_memory).ok());
  auto const sum = sum_steps(read, {0, 5});
  REQUIRE(plan(deepseek_placement{}, matrix_view<load_t const>{sum, 2, 8}, current, where, from_file).ok());
  CHECK(from_memory == from_file);
}

TEST_CASE("tokens that several ranks see alike scale the loads and do not change the plan") {
  ballast_test::generator random{12};
  topology const where{{.num_ranks = 4, .num_nodes = 1, .slots_per_rank = 5}};
  auto const current = trivial_placement({3, 16, where.num_slots()});
  loads once(48);
  for (auto& tokens : once) { tokens = random.below(10000); }
  auto twice = once;
  for (auto& tokens : twice) { tokens *= 2; }
  placement of_once;
  placement of_twice;
  REQUIRE(plan(deepseek_placement{}, matrix_view<load_t const>{once, 3, 16}, current, where, of_once).ok());
  REQUIRE(plan(deepseek_placement{}, matrix_view<load_t const>{twice, 3, 16}, current, where, of_twice).ok());
  CHECK(of_once == of_twice);
}
