// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "../../examples/support/model_layers.hpp"

#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <doctest/doctest.h>

#include <optional>
#include <ostream>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using ballast_tools::model_layers;
using layers = std::vector<index_t>;

model_layers parsed(std::string const& list, index_t num_layers, std::optional<index_t> num_rows = {}) {
  model_layers out;
  ballast_tools::parse_model_layers(list, num_layers, num_rows, out).or_throw();
  return out;
}

std::string refusal(std::string const& list, index_t num_layers, std::optional<index_t> num_rows = {}) {
  model_layers out{-1, {7}};
  auto const result = ballast_tools::parse_model_layers(list, num_layers, num_rows, out);
  CHECK(result.code() == errc::invalid_option);
  CHECK(out.num_rows == -1);
  CHECK(out.of_layer == layers{7});
  return result.message();
}

}  // namespace

TEST_CASE("dense layers in front, in between, and behind") {
  CHECK(parsed("3:6", 3).of_layer == layers{3, 4, 5});
  CHECK(parsed("3:6", 3).num_rows == 6);
  CHECK(parsed("3:6", 3, 8).num_rows == 8);
  CHECK(parsed("1:8:2", 4).of_layer == layers{1, 3, 5, 7});
  CHECK(parsed("0,2,5:7,9:14:3", 6).of_layer == layers{0, 2, 5, 6, 9, 12});
  CHECK(parsed("007", 1).of_layer == layers{7});
  CHECK(parsed("08:010", 2).of_layer == layers{8, 9});
  CHECK(model_layers::all(3).of_layer == layers{0, 1, 2});
  CHECK(model_layers::all(3).num_rows == 3);
}

TEST_CASE("a list that does not fit is refused with what is wrong") {
  CHECK(refusal("3:61", 57) == "--moe-layers is '3:61', must name the trace's 57 layers, names more");
  CHECK(refusal("3:61", 59) == "--moe-layers is '3:61', must name the trace's 59 layers, names 58");
  CHECK(refusal("3,2", 2) == "--moe-layers is '3,2', must ascend, but 2 comes after 3");
  CHECK(refusal("3,3", 2) == "--moe-layers is '3,3', must ascend, but 3 comes after 3");
  CHECK(refusal("0:4,2", 5) == "--moe-layers is '0:4,2', must ascend, but 2 comes after 3");
  CHECK(refusal("3:61", 58, 60) == "--model-layers is 60, but --moe-layers names layer 60");
  CHECK(refusal("3", 1, -1) == "--model-layers is -1, but --moe-layers names layer 3");
  CHECK(refusal("0:2147483647", 3).find("names more") != std::string::npos);
  CHECK(refusal("2000000000", 1) == "2000000001 model layers are more than this tool plans for (1048576)");
  for (auto const* wrong :
       {"",      ",",      "1,",      ",1", "a",  "-1",  "1:",  ":1",  "1:1",        "2:1",
        "0:4:0", "0:4:-1", "0:4:1:1", "1 ", " 1", "0x1", "1.0", "1;2", "2147483647", "99999999999"}) {
    CAPTURE(wrong);
    CHECK(refusal(wrong, 1).find("must be a list of layers") != std::string::npos);
  }
}
