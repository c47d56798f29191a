// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "../../examples/support/placement_json.hpp"

#include <ballast/placement/placement.hpp>
#include <ballast/shares/replica_shares.hpp>

#include "../../examples/support/model_layers.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <ostream>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using namespace std::string_literals;
using ballast_tools::json;
using ballast_tools::json_input;

json_input parsed(std::string const& text) {
  json_input object;
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
  "replica_counts": [[2,1]]
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

TEST_CASE("the file of an engine has the map alone, and a start row for each dense layer") {
  placement in;
  REQUIRE(in.assign({2, 2, 3}, std::vector<index_t>{1, 0, 0, 1, 1, 0}).ok());
  CHECK(ballast_tools::format_json(ballast_tools::expert_location(in, ballast_tools::model_layers::all(2))) == R"({
  "physical_to_logical_map": [[1,0,0],[1,1,0]]
}
)");
  ballast_tools::model_layers const layers{5, {1, 3}};
  auto const located = ballast_tools::expert_location(in, layers);
  CHECK(ballast_tools::format_json(located) == R"({
  "physical_to_logical_map": [[0,1,0],[1,0,0],[0,1,0],[1,1,0],[0,1,0]]
}
)");
  placement read;
  REQUIRE(ballast_tools::placement_from_json(located, {2, 2, 3}, layers, read).ok());
  CHECK(read == in);
  auto const of_trace = ballast_tools::expert_location(in, ballast_tools::model_layers::all(2));
  REQUIRE(ballast_tools::placement_from_json(of_trace, {2, 2, 3}, layers, read).ok());
  CHECK(read == in);
  auto wrong = located;
  wrong["physical_to_logical_map"][3][1] = 7;
  CHECK(ballast_tools::placement_from_json(wrong, {2, 2, 3}, layers, read).message() ==
        "physical_to_logical_map[3][1] is 7, must be an expert from 0 to 1");
}

TEST_CASE("no text is too deep, and none says one thing twice") {
  auto const what = [](std::string const& text) {
    json_input object = 5;
    auto const result = ballast_tools::parse_json(text, object);
    CHECK(result.code() == errc::malformed_file);
    CHECK(object == 5);
    return result.message();
  };
  for (std::size_t const depth : {33u, 1000u, 200000u, 2000000u}) {
    CAPTURE(depth);
    CHECK(what(std::string(depth, '[')) == "nested deeper than 32 levels");
    std::string objects;
    for (std::size_t level = 0; level < depth; ++level) { objects += "{\"a\":"; }
    CHECK(what(objects) == "nested deeper than 32 levels");
    auto const under_a_key = "{\"x\": " + std::string(depth, '[') + std::string(depth, ']') + "}";
    CHECK(what(under_a_key) == "nested deeper than 32 levels");
  }
  json_input deepest;
  CHECK(ballast_tools::parse_json(std::string(32, '[') + std::string(32, ']'), deepest).ok());
  CHECK(ballast_tools::detail::json_excerpt(deepest) == std::string(32, '[') + "]]]]]...");

  CHECK(what(R"({"a": 1, "b": 2, "a": 3})") == "the key \"a\" is there twice");
  CHECK(what(R"({"a": 1, "\u0061": 3})") == "the key \"a\" is there twice");
  CHECK(what(R"([{"x": {"": 1, "": 1}}])") == "the key \"\" is there twice");
  json_input other;
  CHECK(ballast_tools::parse_json(R"({"a": {"a": 1}, "b": [{"a": 2}, {"a": 3}]})", other).ok());
}

TEST_CASE("a byte order mark does no harm, other encodings are named") {
  json_input object;
  CHECK(ballast_tools::parse_json("\xef\xbb\xbf{\"a\": 1}", object).ok());
  CHECK(object["a"] == 1);
  for (auto const& text : {"\xff\xfe{\0\"\0"s, "\xfe\xff\0{\0\""s, "{\0\"\0"s, "\0{\0\""s, "\xff\xfe\0\0"s}) {
    CHECK(ballast_tools::parse_json(text, object).message() == "not JSON: the text is UTF-16 or UTF-32, must be UTF-8");
  }
}

TEST_CASE("a message is short, whatever is wrong") {
  json_input object;
  auto const long_text = std::string(1000000, 'x');
  CHECK(ballast_tools::parse_json("\"" + long_text, object).message().size() < 300);
  CHECK(refusal("[\"" + long_text + "\"]").size() < 100);
  CHECK(refusal("{\"physical_to_logical_map\": \"" + long_text + "\"}").size() < 150);
}

TEST_CASE("a text with many keys is read in no time") {
  std::string text = "{";
  for (int key = 0; key < 200000; ++key) { text.append("\"").append(std::to_string(key)).append("\":0,"); }
  json_input object;
  CHECK(ballast_tools::parse_json(text + "\"end\":0}", object).ok());
  CHECK(object.size() == 200001);
}

TEST_CASE("text that is not JSON is refused") {
  json_input object = 5;
  for (auto const* text : {"", "{", "{\"a\": nan}", "[1,2", "{\"a\": 1} x", "\xff\xfe", "{\"a\": 010}", "{\"a\": 0x1}",
                           "{\"a\": 1e999}"}) {
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
