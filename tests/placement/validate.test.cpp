// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/validate.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ostream>  // doctest prints error codes
#include <string>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// What `validate_placement` promises, written down another way: every slot is listed once, under its own expert.
bool is_valid(placement const& in) {
  auto const& shape = in.shape();
  for (index_t layer = 0; layer < shape.num_layers; ++layer) {
    auto const offsets = in.replica_offsets(layer);
    std::vector<index_t> listed(at(shape.num_slots), 0);
    if (offsets.front() != 0 || offsets.back() != shape.num_slots) { return false; }
    for (index_t expert = 0; expert < shape.num_logical; ++expert) {
      std::uint64_t sum = 0;
      if (offsets[at(expert)] >= offsets[at(expert) + 1]) { return false; }
      for (auto i = offsets[at(expert)]; i < offsets[at(expert) + 1]; ++i) {
        if (i < 0 || i >= shape.num_slots) { return false; }
        auto const slot = in.replica_slots(layer)[at(i)];
        if (slot < 0 || slot >= shape.num_slots || in.logical_of_slot(layer)[at(slot)] != expert) { return false; }
        if (++listed[at(slot)] > 1) { return false; }
        if (in.has_shares()) { sum += in.shares(layer)[at(slot)]; }
      }
      if (in.has_shares() && sum != share_one) { return false; }
    }
  }
  return true;
}

/// Puts replicas into another order, as policies may.
void reorder_replicas(placement& in, ballast_test::generator& random) {
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      auto const first = in.replica_offsets(layer)[at(expert)];
      auto const count = in.replica_count(layer, expert);
      auto const slots = in.edit(layer).replica_slots.subspan(at(first), at(count));
      std::swap(slots[at(random.below(count))], slots[at(random.below(count))]);
    }
  }
}

/// Writes something somewhere.
void damage(placement& in, ballast_test::generator& random) {
  auto const layer = random.below(in.num_layers());
  auto const rows = in.edit(layer);
  auto const pick = [&](auto const& row) -> auto& { return row[at(random.below(static_cast<index_t>(row.size())))]; };
  auto const extreme = [&] {
    index_t const values[] = {-1, in.num_slots(), in.num_logical(), INT32_MAX, INT32_MIN, random.below(in.num_slots())};
    return values[random.below(6)];
  };
  switch (random.below(in.has_shares() ? 6 : 5)) {
    case 0: pick(rows.logical_of_slot) = extreme(); break;
    case 1: pick(rows.replica_offsets) = extreme(); break;
    case 2: pick(rows.replica_slots) = extreme(); break;
    case 3: std::swap(pick(rows.replica_slots), pick(rows.replica_slots)); break;
    case 4: pick(rows.replica_slots) = pick(rows.replica_slots); break;
    default: pick(in.edit_shares(layer)) += static_cast<share_t>(random.between(-1, 1)); break;
  }
}

std::string message(placement const& in) { return validate_placement(in, in.shape()).message(); }

}  // namespace

TEST_CASE("placements of any kind are accepted, and what damages them is found") {
  ballast_test::generator random{31};
  int refused = 0;
  int harmless = 0;
  for (int trial = 0; trial < 6000; ++trial) {
    auto const experts = random.between(1, 12);
    auto in = ballast_test::random_placement({random.between(1, 3), experts, random.between(experts, 30)}, random);
    reorder_replicas(in, random);
    if (random.below(2) == 0) { in.make_shares_even(); }
    REQUIRE(message(in).empty());
    for (auto times = random.between(1, 3); times > 0; --times) { damage(in, random); }
    CAPTURE(trial);
    auto const result = validate_placement(in, in.shape());
    CAPTURE(result.message());
    REQUIRE(result.ok() == is_valid(in));
    if (result.ok()) {
      ++harmless;
    } else {
      ++refused;
      REQUIRE(result.message().find("placement: layer ") == 0);
      REQUIRE((result.code() == errc::invalid_placement || result.code() == errc::missing_expert));
    }
  }
  CHECK(refused > 2000);
  CHECK(harmless > 200);
}

TEST_CASE("the first thing that is wrong is named") {
  auto const base = trivial_placement({2, 3, 7});  // slots of expert 0: 0 3 6, of 1: 1 4, of 2: 2 5
  auto const with = [&](auto change) {
    auto in = base;
    change(in, in.edit(1));
    return message(in);
  };
  using rows = placement::layer_writer;
  CHECK(with([](placement&, rows to) { to.logical_of_slot[2] = 77; }) ==
        "placement: layer 1, slot 2 holds expert 77, must be in [0, 3)");
  CHECK(with([](placement& in, rows to) {
          for (auto& expert : to.logical_of_slot) { expert = expert == 1 ? 0 : expert; }
          in.index_replicas(1);
        }) == "placement: layer 1 has no slot for expert 1");
  CHECK(with([](placement&, rows to) { to.logical_of_slot[4] = 2; }) ==
        "placement: layer 1, expert 1 is listed in slot 4, which holds expert 2");
  CHECK(with([](placement&, rows to) { to.replica_slots[1] = 0; }) ==
        "placement: layer 1, expert 0 is listed twice in slot 0");
  CHECK(with([](placement&, rows to) { to.replica_slots[6] = 7; }) ==
        "placement: layer 1, expert 2 is listed in slot 7, must be in [0, 7)");
  CHECK(with([](placement&, rows to) { to.replica_slots[0] = -1; }) ==
        "placement: layer 1, expert 0 is listed in slot -1, must be in [0, 7)");
  CHECK(with([](placement&, rows to) { to.replica_offsets[0] = 1; }) ==
        "placement: layer 1, replicas of expert 0 start at offset 1, must be 0");
  CHECK(with([](placement&, rows to) { to.replica_offsets[1] = 2000000000; }) ==
        "placement: layer 1, replicas of expert 0 are from offset 0 to 2000000000 of 7");
  CHECK(with([](placement&, rows to) { to.replica_offsets[2] = -5; }) ==
        "placement: layer 1, replicas of expert 1 are from offset 3 to -5 of 7");
  CHECK(with([](placement&, rows to) { to.replica_offsets[3] = 6; }) ==
        "placement: layer 1, replicas end at offset 6, must be 7");
  CHECK(with([](placement& in, rows) {
          in.make_shares_even();
          in.edit_shares(1)[4] = 0;
        }) == "placement: layer 1, shares of expert 1 sum to 536870912, must be 1073741824");
  CHECK(with([](placement& in, rows) {  // 32 bits would wrap round to one
          in.make_shares_even();
          in.edit_shares(1)[1] = 0xc0000000u;
          in.edit_shares(1)[4] = 0x80000000u;
        }) == "placement: layer 1, shares of expert 1 sum to 5368709120, must be 1073741824");
  CHECK(with([](placement& in, rows) {
          in.make_shares_even();
          in.edit_shares(1)[2] += 1;
        }) == "placement: layer 1, shares of expert 2 sum to 1073741825, must be 1073741824");
}

TEST_CASE("another shape is refused with both, and what was moved from is empty") {
  auto in = trivial_placement({2, 3, 7});
  CHECK(validate_placement(in, {2, 3, 8}).message() ==
        "placement: 2 layers x 7 slots of 3 experts, must be 2 layers x 8 slots of 3 experts");
  CHECK_FALSE(validate_placement(in, {2, 4, 7}).ok());
  CHECK_FALSE(validate_placement(in, {1, 3, 7}).ok());
  in.make_shares_even();
  auto const taken = std::move(in);
  CHECK(message(taken).empty());
  // What was moved from is the question.
  // NOLINTNEXTLINE(bugprone-use-after-move,clang-analyzer-cplusplus.Move)
  bool const is_empty = in.empty() && in == placement{};
  CHECK(is_empty);
  CHECK(validate_placement(in, {2, 3, 7}).code() == errc::invalid_placement);
  in = trivial_placement({1, 1, 1});
  auto other = taken;
  in = std::move(other);
  CHECK(in == taken);
  // NOLINTNEXTLINE(bugprone-use-after-move,clang-analyzer-cplusplus.Move)
  bool const is_empty_too = other == placement{};
  CHECK(is_empty_too);
  CHECK(validate_placement(trivial_placement({0, 3, 4}), {0, 3, 4}).ok());
}

TEST_CASE("an expert that only dead ranks hold is named") {
  topology where{{3, 1, 2, 0}};
  auto const in = trivial_placement({2, 4, 6});  // experts 0 1 | 2 3 | 0 1
  CHECK(validate_live(where, in).ok());
  where.set_live(2, false);
  CHECK(validate_live(where, in).ok());
  where.set_live(1, false);
  auto const result = validate_live(where, in);
  CHECK(result.code() == errc::missing_expert);
  CHECK(result.message() == "placement: layer 0: no live rank holds expert 2");
  CHECK(validate_live(topology{{2, 1, 2, 0}}, in).code() == errc::invalid_topology);
}
