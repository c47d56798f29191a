// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/decay_recorder.hpp>
#include <ballast/load/pass_recorder.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/placement/placement.hpp>

#include "support/allocation_counter.hpp"
#include "support/archetypes.hpp"
#include "support/histories.hpp"
#include "support/trace_files.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <limits>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using ballast_test::history_of;
using ballast_test::total_of;
using loads = std::vector<load_t>;

static_assert(!load_recorder<int>);
static_assert(!load_recorder<pass_counter>, "a counter of one pass has no history");

using models = std::tuple<window_recorder, decay_recorder, pass_recorder>;

template <class Recorder>
void record(Recorder& recorder, index_t layer, loads const& counts) {
  recorder.record_logical(layer, counts).or_throw();
}

}  // namespace

TYPE_TO_STRING(window_recorder);
TYPE_TO_STRING(decay_recorder);
TYPE_TO_STRING(pass_recorder);

// ---- the laws of `load_recorder`; a new model adds one type to `models` ----

// NOLINTBEGIN(bugprone-use-after-move,clang-analyzer-cplusplus.Move): what is left is what is tested
TEST_CASE_TEMPLATE_DEFINE("a recorder counts what it is given", Recorder, recorder_laws) {
  Recorder recorder{2, 3};
  CHECK(recorder.num_layers() == 2);
  CHECK(recorder.num_logical() == 3);
  CHECK(total_of(recorder) == loads(6, 0));

  SUBCASE("a pass counts when it has ended, and a layer that was never touched is zero") {
    record(recorder, 1, {5, 0, 7});
    CHECK(total_of(recorder) == loads(6, 0));
    recorder.end_pass(true);
    CHECK(total_of(recorder) == loads{0, 0, 0, 5, 0, 7});
  }
  SUBCASE("recording a layer twice in a pass adds, whichever the input") {
    record(recorder, 0, {1, 2, 3});
    recorder.record_top_k(0, std::array<index_t, 3>{2, 2, 0}).or_throw();
    recorder.end_pass(true);
    CHECK(total_of(recorder) == loads{2, 2, 5, 0, 0, 0});
  }
  SUBCASE("a pass that does not count leaves no trace") {
    record(recorder, 0, {1, 2, 3});
    recorder.end_pass(true);
    for (int i = 0; i < 20; ++i) {
      record(recorder, 0, {10, 10, 10});
      recorder.end_pass(false);
    }
    CHECK(total_of(recorder) == loads{1, 2, 3, 0, 0, 0});
  }
  SUBCASE("clear forgets closed passes and keeps the one in progress") {
    record(recorder, 0, {1, 2, 3});
    recorder.end_pass(true);
    record(recorder, 1, {4, 5, 6});
    recorder.clear();
    CHECK(total_of(recorder) == loads(6, 0));
    recorder.end_pass(true);
    CHECK(total_of(recorder) == loads{0, 0, 0, 4, 5, 6});
  }
  SUBCASE("reading changes nothing") {
    record(recorder, 0, {1, 2, 3});
    recorder.end_pass(true);
    auto const first = ballast_test::history_of(recorder);
    CHECK(ballast_test::history_of(recorder) == first);
  }
  SUBCASE("a moved recorder goes on where it was") {
    Recorder source{2, 3};
    record(source, 0, {1, 2, 3});
    Recorder moved{std::move(source)};
    moved.end_pass(true);
    CHECK(total_of(moved) == loads{1, 2, 3, 0, 0, 0});
  }
  SUBCASE("what was moved from counts nothing, and says so") {
    for (int i = 0; i < 3; ++i) {
      record(recorder, 0, {1, 2, 3});
      recorder.end_pass(i != 1);
    }
    auto const before = total_of(recorder);
    Recorder moved{std::move(recorder)};
    CHECK(total_of(moved) == before);
    CHECK(recorder.num_layers() == 0);
    CHECK(recorder.num_logical() == 0);
    CHECK(recorder.record_top_k(0, std::array<index_t, 1>{1}).message() == "recorder: layer 0 is not in [0, 0)");
    CHECK(recorder.record_logical(0, loads{}).code() == errc::invalid_load);
    for (int i = 0; i < 20; ++i) { recorder.end_pass(i % 2 == 0); }
    loads nothing;
    CHECK(recorder.history(nothing).ok());
    std::vector<pass_span> spans(static_cast<std::size_t>(recorder.num_spans()));
    recorder.spans(spans);
    pass_timeline const of_others{{{-3, 0, 4}}};
    if constexpr (load_fading<Recorder>) {
      recorder.fade(of_others);
    } else {
      std::vector<index_t> places(static_cast<std::size_t>(recorder.num_buckets()));
      CHECK(recorder.place(of_others, places) >= 0);
    }
    recorder.clear();
    recorder.end_pass(true);
    recorder = std::move(moved);
    record(recorder, 1, {0, 0, 1});
    recorder.end_pass(true);
    CHECK(recorder.num_layers() == 2);
    CHECK(total_of(recorder)[5] > 0);
    CHECK(moved.num_layers() == 0);
    static_assert(std::is_nothrow_move_constructible_v<Recorder> && std::is_nothrow_move_assignable_v<Recorder>);
  }
  SUBCASE("a refused call adds nothing and says what was wrong") {
    record(recorder, 1, {1, 1, 1});
    auto const result = recorder.record_logical(1, loads{4, -5, 6});
    CHECK(result.code() == errc::invalid_load);
    CHECK(result.message() == "recorder: layer 1, expert 1 has -5 tokens, must not be negative");
    recorder.end_pass(true);
    CHECK(total_of(recorder) == loads{0, 0, 0, 1, 1, 1});
  }
  SUBCASE("counts stop at the largest load instead of wrapping round") {
    record(recorder, 0, {max_layer_tokens - 1, std::numeric_limits<load_t>::max(), 3});
    record(recorder, 0, {max_layer_tokens, std::numeric_limits<load_t>::max(), 4});
    recorder.record_top_k(0, std::array<index_t, 1>{1}).or_throw();
    recorder.end_pass(true);
    // Two full cells are too much for a layer: all of it is brought down by the same power of two.
    CHECK(total_of(recorder) == loads{max_layer_tokens / 4, max_layer_tokens / 4, 1, 0, 0, 0});
  }
  SUBCASE("what ranks must share is in the digest") {
    auto const value_of = [](Recorder const& of) {
      digest out;
      of.describe(out);
      return out.value();
    };
    CHECK(value_of(recorder) == value_of(Recorder{2, 3}));
    CHECK(value_of(recorder) != value_of(Recorder{3, 2}));
  }
  SUBCASE("room of another size is refused, and nothing is written") {
    record(recorder, 0, {1, 2, 3});
    recorder.end_pass(true);
    for (std::size_t const size : {std::size_t{0}, std::size_t{5}, history_of(recorder).size() + 1}) {
      CAPTURE(size);
      loads out(size, 77);
      auto const result = recorder.history(out);
      CHECK(result.code() == errc::invalid_load);
      CHECK(result.message().find(std::to_string(size) + " cells") != std::string::npos);
      CHECK(out == loads(size, 77));
    }
  }
  SUBCASE("it tells its passes, counted back from the last one that has ended") {
    for (bool const counted : {true, false, true, true, false}) { recorder.end_pass(counted); }
    std::vector<pass_span> spans(static_cast<std::size_t>(recorder.num_spans()));
    recorder.spans(spans);
    std::erase_if(spans, [](pass_span const& span) { return span.passes == 0; });
    REQUIRE_FALSE(spans.empty());
    CHECK(spans.front().first == -4);
    CHECK(spans.back().last == -1);
    CHECK(pass_timeline{spans}.num_passes() == 3);
    recorder.clear();
    spans.assign(static_cast<std::size_t>(recorder.num_spans()), {-1, -1, 1});
    recorder.spans(spans);
    CHECK(pass_timeline{spans}.num_passes() == 0);
  }
  SUBCASE("it names its options, and all of them are in the digest") {
    std::vector<std::string> names;
    recorder.for_each_option([&](std::string_view name, std::uint64_t) { names.emplace_back(name); });
    REQUIRE(names.size() >= 3);
    CHECK(std::set<std::string>(names.begin(), names.end()).size() == names.size());
    digest by_name;
    detail::describe_options(recorder, by_name);
    digest described;
    recorder.describe(described);
    CHECK(by_name.value() == described.value());
  }
}
// NOLINTEND(bugprone-use-after-move,clang-analyzer-cplusplus.Move)
TEST_CASE_TEMPLATE_APPLY(recorder_laws, models);

TEST_CASE_TEMPLATE_DEFINE("a recorder refuses sizes that are none", Recorder, recorder_sizes) {
  CHECK_THROWS_AS((Recorder{-1, 4}), std::system_error);
  CHECK_THROWS_AS((Recorder{2, 0}), std::system_error);
  CHECK_THROWS_AS((Recorder{2, -3}), std::system_error);
  Recorder no_layers{0, 4};
  no_layers.end_pass(true);
  CHECK(ballast_test::history_of(no_layers).empty());
}
TEST_CASE_TEMPLATE_APPLY(recorder_sizes, models);

TEST_CASE_TEMPLATE_DEFINE("recording does not allocate", Recorder, recorder_allocations) {
  topology const where{{.num_ranks = 4, .num_nodes = 2, .slots_per_rank = 3, .reserved_slots = 1}};
  auto const current = trivial_placement({3, 8, where.num_slots()});
  Recorder recorder{3, 8};
  if constexpr (requires { recorder.reserve(100); }) { recorder.reserve(100); }
  std::vector<std::int32_t> const ids{0, 7, -1, 3};
  std::vector<std::int64_t> const physical(16, 2);
  std::vector<std::int32_t> const local{1, 2, 3};
  loads out;

  ballast_test::allocation_count const allocations;
  for (int pass = 0; pass < 100; ++pass) {
    for (index_t layer = 0; layer < 3; ++layer) {
      auto const map = current.logical_of_slot(layer);
      recorder.record_top_k(layer, ids).or_throw();
      CHECK(recorder.record_physical(layer, physical, map, where).ok());
      CHECK(recorder.record_local(layer, local, 1, map, where).ok());
      CHECK(recorder.record_local_prefix_sums(layer, local, 1, map, where).ok());
    }
    recorder.end_pass(pass % 5 != 0);
  }
  CHECK(allocations() == 0);

  out.assign(static_cast<std::size_t>(recorder.num_buckets()) * 24, 0);
  ballast_test::allocation_count const while_dumping;
  CHECK(recorder.history(out).ok());
  recorder.clear();
  CHECK(while_dumping() == 0);
}
TEST_CASE_TEMPLATE_APPLY(recorder_allocations, models);

// ---- the inputs, the same code in every model ----

TEST_CASE("ids that are no logical expert are ignored") {
  window_recorder recorder{1, 4};
  SUBCASE("32 bits") {
    recorder
        .record_top_k(0, std::vector<std::int32_t>{0, 3, 3, -1, -7, 4, 5, std::numeric_limits<std::int32_t>::max(),
                                                   std::numeric_limits<std::int32_t>::min()})
        .or_throw();
  }
  SUBCASE("64 bits, also those that look valid when cut to 32") {
    recorder
        .record_top_k(0, std::vector<std::int64_t>{0, 3, 3, -1, 4, std::int64_t{1} << 32, (std::int64_t{1} << 40) + 3,
                                                   std::numeric_limits<std::int64_t>::min()})
        .or_throw();
  }
  SUBCASE("unsigned") { recorder.record_top_k(0, std::vector<std::uint32_t>{0, 3, 3, 4, 0xffffffffu}).or_throw(); }
  recorder.end_pass(true);
  CHECK(total_of(recorder) == loads{1, 0, 0, 2});
}

TEST_CASE("an empty batch is a pass like any other") {
  window_recorder recorder{1, 4, {.passes = 2, .buckets = 2}};
  recorder.record_top_k(0, std::vector<std::int32_t>{1}).or_throw();
  recorder.end_pass(true);
  for (int i = 0; i < 2; ++i) {
    recorder.record_top_k(0, std::vector<std::int32_t>{}).or_throw();
    recorder.end_pass(true);
  }
  CHECK(total_of(recorder) == loads(4, 0));
}

TEST_CASE("physical counts become logical ones, reserved slots aside") {
  // Three ranks of two slots and one reserved slot: ids 2, 5 and 8 are reserved. Expert 0 has three replicas.
  topology const where{{.num_ranks = 3, .num_nodes = 1, .slots_per_rank = 2, .reserved_slots = 1}};
  std::vector<index_t> const map{0, 1, 0, 2, 3, 0};
  window_recorder recorder{1, 4};
  REQUIRE(recorder.record_physical(0, std::vector<std::int32_t>{1, 2, 900, 4, 8, 900, 16, 32, 900}, map, where).ok());
  recorder.end_pass(true);
  CHECK(total_of(recorder) == loads{1 + 4 + 32, 2, 8, 16});

  auto const refused = recorder.record_physical(0, std::vector<std::int32_t>{0, 0, 0, 0, -8, 0, 0, 0, 0}, map, where);
  CHECK(refused.message() == "recorder: layer 0, physical expert 4 has -8 tokens, must not be negative");
}

TEST_CASE("local counts of all ranks add up to the physical counts of all ranks") {
  topology const where{{.num_ranks = 3, .num_nodes = 1, .slots_per_rank = 2, .reserved_slots = 1}};
  std::vector<index_t> const map{0, 1, 0, 2, 3, 0};
  window_recorder recorder{1, 4};
  auto const with_reserved = [](std::int32_t a, std::int32_t b) { return std::vector<std::int32_t>{a, b, 900}; };

  SUBCASE("with the reserved slots") {
    REQUIRE(recorder.record_local(0, with_reserved(1, 2), 0, map, where).ok());
    REQUIRE(recorder.record_local(0, with_reserved(4, 8), 1, map, where).ok());
    REQUIRE(recorder.record_local(0, with_reserved(16, 32), 2, map, where).ok());
  }
  SUBCASE("without them") {
    REQUIRE(recorder.record_local(0, std::vector<std::int64_t>{1, 2}, 0, map, where).ok());
    REQUIRE(recorder.record_local(0, std::vector<std::int64_t>{4, 8}, 1, map, where).ok());
    REQUIRE(recorder.record_local(0, std::vector<std::int64_t>{16, 32}, 2, map, where).ok());
  }
  SUBCASE("as prefix sums") {
    REQUIRE(recorder.record_local_prefix_sums(0, std::vector<std::int32_t>{1, 3}, 0, map, where).ok());
    REQUIRE(recorder.record_local_prefix_sums(0, std::vector<std::int32_t>{4, 12, 912}, 1, map, where).ok());
    REQUIRE(recorder.record_local_prefix_sums(0, std::vector<std::int32_t>{16, 48}, 2, map, where).ok());
  }
  recorder.end_pass(true);
  CHECK(total_of(recorder) == loads{1 + 4 + 32, 2, 8, 16});
}

TEST_CASE("prefix sums are taken apart slot by slot") {
  topology const where{{.num_ranks = 2, .num_nodes = 1, .slots_per_rank = 4}};
  std::vector<index_t> const map{7, 6, 5, 4, 3, 2, 1, 0};
  window_recorder recorder{1, 8};
  REQUIRE(recorder.record_local_prefix_sums(0, std::vector<std::int32_t>{1, 3, 3, 11}, 1, map, where).ok());
  recorder.end_pass(true);
  CHECK(total_of(recorder) == loads{8, 0, 2, 1, 0, 0, 0, 0});
}

// ---- what does not fit, the same for each input of every model; nothing may be counted then ----

TEST_CASE_TEMPLATE_DEFINE("input that does not fit is refused with what is wrong", Recorder, recorder_refusals) {
  topology const where{{.num_ranks = 3, .num_nodes = 1, .slots_per_rank = 2, .reserved_slots = 1}};
  std::vector<index_t> const map{0, 1, 0, 2, 3, 0};
  using ids = std::vector<std::int32_t>;
  auto const max = std::numeric_limits<std::int64_t>::max();
  auto const min = std::numeric_limits<std::int64_t>::min();
  Recorder recorder{2, 4};
  auto const refused = [](status const& result, std::string const& message) {
    CHECK(result.code() == errc::invalid_load);
    CHECK(result.message() == "recorder: " + message);
  };

  for (index_t const layer :
       {index_t{-1}, index_t{2}, std::numeric_limits<index_t>::max(), std::numeric_limits<index_t>::min()}) {
    auto const message = "layer " + std::to_string(layer) + " is not in [0, 2)";
    refused(recorder.record_top_k(layer, ids{0, 1}), message);
    refused(recorder.record_logical(layer, loads(4, 1)), message);
    refused(recorder.record_physical(layer, loads(9, 1), map, where), message);
    refused(recorder.record_local(layer, loads(2, 1), 0, map, where), message);
    refused(recorder.record_local_prefix_sums(layer, loads(2, 1), 0, map, where), message);
  }

  refused(recorder.record_logical(1, loads(3, 1)), "layer 1, 3 counts, must be 4 [E]");
  refused(recorder.record_logical(1, loads{}), "layer 1, 0 counts, must be 4 [E]");
  refused(recorder.record_physical(1, loads(6, 1), map, where), "layer 1, 6 counts, must be 9 [R (S + F)]");
  for (std::size_t const size : {std::size_t{0}, std::size_t{1}, std::size_t{4}}) {
    auto const message = "layer 1, " + std::to_string(size) + " counts, must be 2 [S] or 3 [S + F]";
    refused(recorder.record_local(1, loads(size, 1), 0, map, where), message);
    refused(recorder.record_local_prefix_sums(1, loads(size, 1), 0, map, where), message);
  }

  for (index_t const rank : {index_t{-1}, index_t{3}, std::numeric_limits<index_t>::max()}) {
    auto const message = "layer 0, rank " + std::to_string(rank) + " is not in [0, 3)";
    refused(recorder.record_local(0, loads(2, 1), rank, map, where), message);
    refused(recorder.record_local_prefix_sums(0, loads(2, 1), rank, map, where), message);
  }

  auto const with_map = [&](std::vector<index_t> const& wrong, std::string const& message) {
    refused(recorder.record_physical(0, loads(9, 1), wrong, where), message);
    refused(recorder.record_local(0, loads(2, 1), 2, wrong, where), message);
    refused(recorder.record_local_prefix_sums(0, loads(2, 1), 2, wrong, where), message);
  };
  with_map({}, "layer 0, the map has 0 slots, must have 6");
  with_map({0, 1, 0, 2, 3}, "layer 0, the map has 5 slots, must have 6");
  with_map({0, 1, 0, 2, 4, 0}, "layer 0, the map holds expert 4 at slot 4, must be in [0, 4)");
  with_map({0, 1, 0, 2, 3, -1}, "layer 0, the map holds expert -1 at slot 5, must be in [0, 4)");

  refused(recorder.record_logical(0, loads{1, 2, min, 3}),
          "layer 0, expert 2 has -9223372036854775808 tokens, must not be negative");
  refused(recorder.record_physical(0, ids{1, 0, 0, 0, -8, 0, 0, 0, 0}, map, where),
          "layer 0, physical expert 4 has -8 tokens, must not be negative");
  refused(recorder.record_local(0, ids{1, -2}, 1, map, where),
          "layer 0, local slot 1 has -2 tokens, must not be negative");
  refused(recorder.record_local_prefix_sums(0, ids{7, 5}, 1, map, where),
          "layer 0, the prefix sum falls from 7 to 5 at local slot 1");
  refused(recorder.record_local_prefix_sums(0, loads{max, min, 0}, 1, map, where),
          "layer 0, the prefix sum falls from 9223372036854775807 to -9223372036854775808 at local slot 1");
  refused(recorder.record_local_prefix_sums(0, loads{min, max}, 1, map, where),
          "layer 0, the prefix sum at local slot 0 is -9223372036854775808, must not be negative");
  refused(recorder.record_local_prefix_sums(0, std::vector<std::uint32_t>{7, 5}, 1, map, where),
          "layer 0, the prefix sum falls from 7 to 5 at local slot 1");

  recorder.end_pass(true);
  CHECK(total_of(recorder) == loads(8, 0));
}
TEST_CASE_TEMPLATE_APPLY(recorder_refusals, models);

TEST_CASE("of the map, local counts need this rank's part only") {
  topology const where{{.num_ranks = 2, .num_nodes = 1, .slots_per_rank = 2}};
  window_recorder recorder{1, 4};
  REQUIRE(recorder.record_local(0, loads{1, 2}, 0, std::vector<index_t>{0, 1, 99, 99}, where).ok());
  recorder.end_pass(true);
  CHECK(total_of(recorder) == loads{1, 2, 0, 0});
}

TEST_CASE("sums of any width are taken apart without overflow") {
  topology const where{{.num_ranks = 1, .num_nodes = 1, .slots_per_rank = 3}};
  std::vector<index_t> const map{0, 1, 2};
  pass_recorder recorder{1, 3};
  auto const top = std::numeric_limits<std::uint64_t>::max();
  REQUIRE(recorder.record_local_prefix_sums(0, std::vector<std::uint64_t>{9, top - 5, top}, 0, map, where).ok());
  recorder.end_pass(true);
  CHECK(total_of(recorder) == loads{4, max_layer_tokens / 2, 2});
}

TEST_CASE("every pass is folded under the map that was in force, so the sum is conserved when the map changes") {
  topology const where{{.num_ranks = 4, .num_nodes = 1, .slots_per_rank = 4}};
  std::mt19937 random{1};
  auto const draw = [&](index_t below) { return static_cast<index_t>(random() % static_cast<std::uint32_t>(below)); };
  window_recorder recorder{1, 8, {.passes = 100, .buckets = 8}};
  loads expected(8, 0);
  for (int pass = 0; pass < 100; ++pass) {
    std::vector<index_t> map(16);
    for (std::size_t p = 0; p < 16; ++p) { map[p] = p < 8 ? static_cast<index_t>(p) : draw(8); }
    for (std::size_t p = 15; p > 0; --p) { std::swap(map[p], map[static_cast<std::size_t>(draw(16))]); }
    std::vector<std::int32_t> counts(16);
    for (std::size_t p = 0; p < 16; ++p) {
      counts[p] = draw(50);
      expected[static_cast<std::size_t>(map[p])] += counts[p];
    }
    REQUIRE(recorder.record_physical(0, counts, map, where).ok());
    recorder.end_pass(true);
  }
  CHECK(total_of(recorder) == expected);
}

TEST_CASE("top-k ids and the all-to-all's counts of the same tokens agree") {
  topology const where{{.num_ranks = 2, .num_nodes = 1, .slots_per_rank = 4}};
  auto const current = trivial_placement({1, 6, 8});
  std::mt19937 random{2};
  window_recorder by_id{1, 6};
  window_recorder by_slot{1, 6};
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> physical(8, 0);
  for (int i = 0; i < 1000; ++i) {
    auto const expert = static_cast<std::int32_t>(random() % 6);
    auto const replicas = current.replicas_of(0, expert);
    ids.push_back(expert);
    ++physical[static_cast<std::size_t>(replicas[random() % replicas.size()])];
  }
  by_id.record_top_k(0, ids).or_throw();
  REQUIRE(by_slot.record_physical(0, physical, current.logical_of_slot(0), where).ok());
  by_id.end_pass(true);
  by_slot.end_pass(true);
  CHECK(total_of(by_id) == total_of(by_slot));
}

TEST_CASE("a model's router choices, fed token by token, add up to its recorded trace") {
  auto const folder = std::string{BALLAST_TEST_DATA_DIR};
  auto const trace = ballast_test::read_trace(folder + "/traces/deepseek-v2-lite/intent_512tok.csv");
  std::ifstream file{folder + "/tokens/deepseek_v2_lite_intent.csv"};
  char comma = 0;
  int num_tokens = 0;
  index_t num_layers = 0;
  std::size_t top_k = 0;
  file >> num_tokens >> comma >> num_layers >> comma >> top_k;
  REQUIRE(num_tokens == 1024);
  REQUIRE(num_layers == trace.layers);
  pass_recorder recorder{num_layers, trace.experts};
  std::vector<std::int32_t> ids(top_k);
  for (int token = 0; token < num_tokens; ++token) {
    for (index_t layer = 0; layer < num_layers; ++layer) {
      for (auto& id : ids) {
        file >> id;
        file.get();
      }
      recorder.record_top_k(layer, ids).or_throw();
    }
    if (token % 512 == 511) { recorder.end_pass(true); }
  }
  REQUIRE(recorder.num_buckets() == 2);
  auto const expected = trace.history(0, 2).tokens();
  CHECK(ballast_test::history_of(recorder) == loads(expected.begin(), expected.end()));
}

TEST_CASE("prefill by ids and decode by local counts in one window: nothing is counted twice") {
  topology const where{{.num_ranks = 2, .num_nodes = 1, .slots_per_rank = 2}};
  std::vector<index_t> const map{0, 1, 2, 3};
  window_recorder recorder{1, 4};
  recorder.record_top_k(0, std::vector<std::int32_t>{0, 1, 1}).or_throw();
  recorder.end_pass(true);
  REQUIRE(recorder.record_local(0, std::vector<std::int32_t>{5, 6}, 1, map, where).ok());
  recorder.end_pass(true);
  CHECK(total_of(recorder) == loads{1, 2, 5, 6});
}

TEST_CASE("more cells than an array can have are refused by value") {
  constexpr auto most = std::numeric_limits<index_t>::max();
  CHECK_THROWS_WITH_AS((window_recorder{most, most}),
                       doctest::Contains("2147483647 layers x 2147483647 experts do not fit memory"),
                       std::system_error);
  CHECK_THROWS_AS((decay_recorder{most, most}), std::system_error);
  CHECK_THROWS_AS((pass_recorder{most, most}), std::system_error);
}
