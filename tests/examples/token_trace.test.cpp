// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "../../examples/support/token_trace.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace {

using namespace ballast;
using ballast_tools::token_trace;

std::string refusal(std::string const& text, std::optional<index_t> experts = {}) {
  token_trace const before{1, 2, 3, {4}, {5}};
  auto read = before;
  auto const result = ballast_tools::parse_token_trace(text, experts, read);
  CHECK_FALSE(result.ok());
  CHECK(read == before);
  return result.message();
}

std::string const two_tokens = "2,2,2\n0,1,2,3\n4,5,6,7\n";

}  // namespace

TEST_CASE("ids are read token by token, and experts are as many as the highest id says, or as is said") {
  token_trace read;
  for (auto const* end : {"", "\n", " \n\n"}) {
    REQUIRE(ballast_tools::parse_token_trace(two_tokens + end, {}, read).ok());
    CHECK(read == token_trace{2, 2, 8, {2}, {0, 1, 2, 3, 4, 5, 6, 7}});
  }
  REQUIRE(ballast_tools::parse_token_trace("2,2,2\n0,1,2,3\n4,5,6,7", 20, read).ok());
  CHECK(read.num_logical == 20);
  std::vector<index_t> ids{-1};
  read.append_ids(0, 2, 1, ids);
  CHECK(ids == std::vector{-1, 2, 3, 6, 7});
}

TEST_CASE("batches are whole, and of one trace each") {
  token_trace read;
  std::string text;
  for (int const tokens : {5, 1, 4}) {
    text += std::to_string(tokens) + ",1,1\n";
    for (int i = 0; i < tokens; ++i) { text += std::to_string(i) + '\n'; }
  }
  REQUIRE(ballast_tools::parse_token_trace(text, {}, read).ok());
  CHECK(read.part_sizes == std::vector{5, 1, 4});
  CHECK(read.batches(2) == std::vector<std::size_t>{0, 2, 6, 8});
  CHECK(read.batches(5) == std::vector<std::size_t>{0});
  CHECK(read.batches(6).empty());
  auto const counted = read.count(read.batches(2), 2);
  CHECK(counted.num_steps == 4);
  CHECK(counted.tokens == std::vector<load_t>{1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0});
}

TEST_CASE("what is no trace of tokens is refused with its line, and with the value") {
  CHECK(refusal("") == "line 1: the file is empty, must start with tokens,layers,topk");
  CHECK(refusal("2,2\n") == "line 1: has 2 values, must have 3");
  CHECK(refusal("0,2,2\n") == "line 1: value 1 is '0', must be an integer from 1 to 2147483647");
  CHECK(refusal("2,2,2\n0,1,2,3\n") == "line 2: the file ends here, after 1 of 2 tokens");
  CHECK(refusal("1,2,2\n0,1,2\n") == "line 2: has 3 values, must have 4 (2 layers x top 2)");
  CHECK(refusal("1,2,2\n0,1,2,3,4\n") == "line 2: has 5 values, must have 4 (2 layers x top 2)");
  CHECK(refusal("1,1,2\n0,-1\n") ==
        "line 2: value 2 is '-1', must be an integer from 0 to 2147483646 (1 layers x top 2)");
  CHECK(refusal("1,1,2\n0,64\n", 64) == "line 2: value 2 is '64', must be an integer from 0 to 63 (1 layers x top 2)");
  CHECK(refusal("1,1,3\n0,1,1\n", 2) == "line 1: top 3 of 2 experts");
  CHECK(refusal("1,1000000,1000000\n") == "line 1: the file is too short for 1000000 layers x top 1000000 a line");
  CHECK(refusal(two_tokens + "1,2,3,4\n") == "line 4: has 4 values, must have 3");
  CHECK(refusal(two_tokens + "\n1,2,1\n0,1\n") ==
        "line 5: another trace begins here, of 2 layers and top 1, must be of 2 layers and top 2 as the one before");
  CHECK(refusal(two_tokens + "1,2,2") == "line 4: the file ends here, after 0 of 1 tokens");
}
