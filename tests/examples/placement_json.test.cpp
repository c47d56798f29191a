// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "../../examples/support/placement_json.hpp"

#include <ballast/placement/placement.hpp>
#include <ballast/placement/replica_shares.hpp>

#include "support/random.hpp"

#include <doctest/doctest.h>

#include <ostream>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using ballast_tools::json;

json parsed(std::string const& text) {
  json object;
  ballast_tools::parse_json(text, object).or_throw();
  return object;
}

/// What `placement_from_json` says about two layers of three slots for two experts.
std::string refusal(std::string const& text) {
  auto const before = trivial_placement({1, 1, 1});
  auto out = before;
  auto const result = ballast_tools::placement_from_json(parsed(text), {2, 2, 3}, out);
  CHECK_FALSE(result.ok());
  CHECK(out == before);
  return result.message();
}

std::string share_refusal(std::string const& shares) {
  auto const before = trivial_placement({1, 2, 3});
  auto in_out = before;
  auto const result = ballast_tools::shares_from_json(parsed(R"({"shares": )" + shares + "}"), in_out);
  CHECK_FALSE(result.ok());
  CHECK(in_out == before);
  return result.message();
}

}  // namespace

TEST_CASE("a placement survives the way to text and back") {
  ballast_test::generator random{5};
  for (int round = 0; round < 50; ++round) {
    auto const experts = random.between(1, 20);
    placement_shape const shape{random.between(1, 5), experts, experts + random.between(0, 20)};
    auto const written = ballast_test::random_placement(shape, random);
    json object;
    ballast_tools::add_map(object, written);
    placement read;
    REQUIRE(ballast_tools::placement_from_json(parsed(ballast_tools::format_json(object)), shape, read).ok());
    CHECK(read == written);
  }
}

TEST_CASE("the three maps say the same") {
  auto const in = trivial_placement({1, 2, 3});
  json object;
  ballast_tools::add_map(object, in);
  CHECK(ballast_tools::format_json(object) == R"({
  "physical_to_logical_map": [[0,1,0]],
  "logical_to_physical_map": [[[0,2],[1]]],
  "logical_count": [[2,1]]
}
)");
}

TEST_CASE("balance and moves, worked out by hand") {
  topology const where{{.num_ranks = 2, .num_nodes = 1, .slots_per_rank = 2}};
  placement before;
  placement after;
  REQUIRE(before.assign({1, 3, 4}, std::vector<index_t>{0, 1, 2, 0}).ok());
  REQUIRE(after.assign({1, 3, 4}, std::vector<index_t>{0, 2, 1, 0}).ok());
  std::vector<load_t> const loads{10, 5, 1};
  json object;
  ballast_tools::add_balance(object, where, after, matrix_view<load_t const>{loads, 1, 3});
  ballast_tools::add_moves(object, where, before, after);
  CHECK(object["balancedness"].get<double>() == doctest::Approx(0.8));  // ranks have 6 and 10
  CHECK(object["balancedness_per_layer"].get<std::vector<double>>() == std::vector{0.8});
  CHECK(object["moves_per_layer"] == json{2});
}

TEST_CASE("only the first key is needed, and others do no harm") {
  placement read;
  CHECK(ballast_tools::placement_from_json(parsed(R"({"x": null, "physical_to_logical_map": [[1, 0, 1]]})"), {1, 2, 3},
                                           read)
            .ok());
  CHECK(read.replica_count(0, 1) == 2);
}

TEST_CASE("a map that is no placement is refused with the value and its place") {
  CHECK(refusal("[]") == "the file holds [], must hold a JSON object");
  CHECK(refusal("{}") == "there is no key physical_to_logical_map");
  auto const of_map = [](std::string const& map) { return refusal(R"({"physical_to_logical_map": )" + map + "}"); };
  CHECK(of_map("7") == "physical_to_logical_map is 7, must be an array of layers");
  CHECK(of_map("[[0,1,0]]") == "physical_to_logical_map has 1 layers, must have 2");
  CHECK(of_map("[[0,1,0],3]") == "physical_to_logical_map[1] is 3, must be an array of slots");
  CHECK(of_map("[[0,1,0],[0,1]]") == "physical_to_logical_map[1] has 2 slots, must have 3");
  auto const of_value = [&](std::string const& value) { return of_map("[[0,1,0],[1," + value + ",0]]"); };
  for (auto const* value : {"2", "-1", "1.0", "null", "\"1\"", "[1]", "true", "99999999999", "1e300"}) {
    CAPTURE(value);
    auto const message = of_value(value);
    CHECK(message.starts_with("physical_to_logical_map[1][1] is "));
    CHECK(message.ends_with(", must be an expert from 0 to 1"));
  }
  CHECK(of_map("[[0,1,0],[1,1,1]]") == "placement: layer 1 has no slot for expert 0");
}

TEST_CASE("text that is not JSON is refused") {
  json object = 5;
  for (auto const* text : {"", "{", "{\"a\": nan}", "[1,2", "{\"a\": 1} x", "\xff\xfe"}) {
    CAPTURE(text);
    auto const result = ballast_tools::parse_json(text, object);
    CHECK(result.code() == errc::malformed_file);
    CHECK(result.message().starts_with("not JSON: "));
    CHECK(object == 5);
  }
}

TEST_CASE("shares survive the way to text and back") {
  ballast_test::generator random{6};
  topology const where{{.num_ranks = 4, .num_nodes = 1, .slots_per_rank = 4}};
  for (int round = 0; round < 20; ++round) {
    auto written = ballast_test::random_placement({2, 10, 16}, random);
    share_solver solver;
    for (index_t layer = 0; layer < 2; ++layer) {
      std::vector<load_t> loads(10);
      for (auto& tokens : loads) { tokens = random.below(1000); }
      REQUIRE(optimal_shares(where, written, layer, loads, solver).ok());
    }
    json object;
    ballast_tools::add_shares(object, written);
    auto read = written;
    read.drop_shares();
    REQUIRE(ballast_tools::shares_from_json(parsed(ballast_tools::format_json(object)), read).ok());
    CHECK(read == written);
  }
}

TEST_CASE("shares with rounding errors are brought to sum to one") {
  auto in_out = trivial_placement({1, 2, 3});
  REQUIRE(ballast_tools::shares_from_json(parsed(R"({"shares": [[0.3333333, 1.0000001, 0.6666664]]})"), in_out).ok());
  auto const shares = in_out.shares(0);
  CHECK(shares[0] + shares[2] == share_one);
  CHECK(shares[1] == share_one);
}

TEST_CASE("shares that are none are refused with the value and its place") {
  CHECK(share_refusal("[[0.5, 1, 0.4]]") == "shares of layer 0, expert 0 sum to 0.9, must be 1");
  CHECK(share_refusal("[[1.5, 1, -0.5]]") == "shares[0][0] is 1.5, must be a number from 0 to 1");
  CHECK(share_refusal("[[1, 1, -0.5]]") == "shares[0][2] is -0.5, must be a number from 0 to 1");
  CHECK(share_refusal("[[1, null, 0]]") == "shares[0][1] is null, must be a number from 0 to 1");
  CHECK(share_refusal("[[1, 1]]") == "shares[0] has 2 slots, must have 3");
  CHECK(share_refusal("[]") == "shares has 0 layers, must have 1");
}
