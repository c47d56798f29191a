// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/runtime/host_store.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>
#include <support/throwing_contracts.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <ostream>  // doctest prints error codes
#include <span>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  #define BALLAST_TESTS_ALLOCATION_ABORTS 1
#elif defined(__has_feature)
  #define BALLAST_TESTS_ALLOCATION_ABORTS (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
  #define BALLAST_TESTS_ALLOCATION_ABORTS 0
#endif

using namespace ballast;

namespace {

topology const two_ranks{{2, 1, 3, 0}};

bool same_row(placement const& a, placement const& b, index_t layer) {
  return std::ranges::equal(a.logical_of_slot(layer), b.logical_of_slot(layer)) &&
         std::ranges::equal(a.replica_offsets(layer), b.replica_offsets(layer)) &&
         std::ranges::equal(a.replica_slots(layer), b.replica_slots(layer));
}

std::uint64_t sum_of(host_store& store, std::vector<segment> const& segments) {
  std::uint64_t result = 0;
  store.checksum(segments, result).or_throw();
  return result;
}

}  // namespace

TEST_CASE("a store knows what it was made for and refuses to be made for nonsense") {
  host_store const store{two_ranks, 4};
  CHECK(store.num_layers() == 4);
  CHECK(store.slots_per_rank() == 3);
  CHECK(store.staging_limit() == host_store::unlimited);
  CHECK_THROWS_WITH_AS((host_store{two_ranks, -2}), doctest::Contains("-2 layers, must be at least 0"),
                       std::system_error);
  CHECK_THROWS_AS((host_store{two_ranks, trivial_placement({1, 2, 8})}), std::system_error);
  auto broken = trivial_placement({1, 4, 6});
  broken.edit(0).logical_of_slot[1] = 9;
  CHECK_THROWS_WITH_AS((host_store{two_ranks, broken}), doctest::Contains("layer 0, slot 1 holds expert 9"),
                       std::system_error);
  CHECK(host_store{two_ranks, 0}.num_layers() == 0);
}

TEST_CASE("a store for other layers or slots is refused with both") {
  host_store const store{two_ranks, 4};
  CHECK(validate_store(store, two_ranks, 4).ok());
  CHECK(validate_store(store, topology{{5, 1, 3, 0}}, 4).ok());
  auto const result = validate_store(store, topology{{2, 1, 2, 0}}, 4);
  CHECK(result.code() == errc::invalid_topology);
  CHECK(result.message() ==
        "store: made for 4 layers x 3 slots a rank, the placement has 4 layers, the topology 2 slots a rank");
  CHECK_FALSE(validate_store(store, two_ranks, 5).ok());
  CHECK_FALSE(validate_store(store, two_ranks, 3).ok());
}

TEST_CASE("the stride is what it says, or left out") {
  std::vector<std::byte> memory(64);
  host_store store{two_ranks, 1};
  CHECK(store.add(0, "scale", memory.data(), 4, 0).code() == errc::invalid_weights);
  CHECK(store.add(0, "scale", memory.data(), 4, -8).message().find("-8") != std::string::npos);
  CHECK(store.add(0, "scale", memory.data(), 4, static_cast<std::size_t>(-8)).message().find("stride -8 is negative") !=
        std::string::npos);
  REQUIRE(store.add(0, "scale", memory.data(), 4).ok());
  REQUIRE(store.add(0, "weight", memory.data() + 16, 4, std::size_t{8}).ok());
  CHECK(store.tensors(0)[0].stride == 4);
  CHECK(store.tensors(0)[1].stride == 8);
}

TEST_CASE("nothing is published before the first commit, then each layer as it is committed") {
  ballast_test::generator random{3};
  placement_shape const shape{3, 4, 6};
  host_store store{two_ranks, 3};
  CHECK(store.published().empty());
  CHECK_FALSE(store.is_published(1));
  CHECK(store.epoch(1) == 0);

  auto const first = ballast_test::random_placement(shape, random);
  REQUIRE(store.commit(1, {}, first, 7).ok());
  CHECK(store.is_published(1));
  CHECK(store.epoch(1) == 7);
  CHECK(same_row(store.published(), first, 1));
  for (index_t const layer : {0, 2}) {
    CHECK_FALSE(store.is_published(layer));
    CHECK(store.epoch(layer) == 0);
    CHECK(std::ranges::all_of(store.published().logical_of_slot(layer), [](index_t e) { return e == -1; }));
    for (index_t expert = 0; expert < 4; ++expert) { CHECK(store.published().replicas_of(layer, expert).empty()); }
  }
  auto const second = ballast_test::random_placement(shape, random);
  REQUIRE(store.publish(0, second, 2).ok());
  CHECK(same_row(store.published(), second, 0));
  CHECK(same_row(store.published(), first, 1));
  CHECK(store.epoch(0) == 2);
  CHECK(store.epoch(1) == 7);
  CHECK_FALSE(store.is_published(2));
}

TEST_CASE("a store made with a placement has its tables in force at once") {
  ballast_test::generator random{4};
  auto initial = ballast_test::random_placement({2, 4, 6}, random);
  host_store const store{two_ranks, initial, 1024};
  CHECK(store.staging_limit() == 1024);
  CHECK(store.published() == initial);
  CHECK(store.is_published(0));
  CHECK(store.epoch(1) == 0);
  initial.make_shares_even();
  CHECK(host_store{two_ranks, initial}.published() == initial);
}

TEST_CASE("shares are published with the row they belong to") {
  auto tables = trivial_placement({2, 2, 6});
  host_store store{two_ranks, tables};
  tables.make_shares_even();
  for (index_t const layer : {0, 1}) {
    tables.edit_shares(layer)[0] = share_one;
    tables.edit_shares(layer)[2] = 0;
    tables.edit_shares(layer)[4] = 0;
  }
  REQUIRE(store.commit(1, {}, tables, 1).ok());
  CHECK(store.published().shares(1)[0] == share_one);
  CHECK(store.published().shares(0)[0] == share_one / 3 + 1);
  REQUIRE(store.commit(1, {}, trivial_placement({2, 2, 6}), 2).ok());
  CHECK(store.published().shares(1)[0] == share_one / 3 + 1);
}

TEST_CASE("tables that are not for this store are refused before a byte is copied") {
  auto const good = trivial_placement({2, 4, 6});
  host_store store{two_ranks, good};
  std::array<char, 2> bytes{'a', 'b'};
  byte_copy const copy{reinterpret_cast<std::byte*>(bytes.data()), reinterpret_cast<std::byte const*>(&bytes[1]), 1, 0};
  auto const refused = [&](index_t layer, placement const& tables) {
    auto const result = store.commit(layer, {&copy, 1}, tables, 9);
    CHECK(result.code() == errc::invalid_placement);
    CHECK(bytes[0] == 'a');
    CHECK(store.published() == good);
    CHECK(store.epoch(0) == 0);
    CHECK(store.publish(layer, tables, 9).message() == result.message());
    return result.message();
  };
  CHECK(refused(2, good) == "host_store: layer 2, there are 2 layers");
  CHECK(refused(-1, good) == "host_store: layer -1, there are 2 layers");
  CHECK(refused(0, trivial_placement({3, 4, 6})) ==
        "host_store: tables of 3 layers x 6 slots of 4 experts, the store is for 2 layers x 6 slots of 4 experts");
  CHECK(refused(0, trivial_placement({2, 4, 9})).find("9 slots") != std::string::npos);
  CHECK(refused(0, trivial_placement({2, 5, 6})).find("5 experts") != std::string::npos);
  CHECK(refused(0, placement{}).find("0 layers") != std::string::npos);
  CHECK(store.commit(0, {&copy, 1}, good, 9).ok());
  CHECK(bytes[0] == 'b');
  CHECK(store.epoch(0) == 9);
}

TEST_CASE("copies are made in order, also onto memory they come from") {
  std::string text = "abcdefgh";
  auto const to = [&](std::size_t i) { return reinterpret_cast<std::byte*>(text.data()) + i; };
  host_store store{two_ranks, 1};
  std::vector<byte_copy> const copies{{to(0), to(4), 2, 0},       // ef cdefgh
                                      {to(1), to(0), 4, 1},       // e efcd fgh
                                      {to(7), to(1), 1, 2},       // last becomes e
                                      {nullptr, nullptr, 0, 2}};  // nothing to do
  REQUIRE(store.commit(0, copies, trivial_placement({1, 2, 6}), 1).ok());
  CHECK(text == "eefcdfge");
}

TEST_CASE("a checksum is the digest of the bytes, or a failure") {
  std::vector<std::byte> bytes(20, std::byte{7});
  host_store store{two_ranks, 1};
  digest expected;
  expected.add_bytes({bytes.data(), 13}).add_bytes({bytes.data() + 13, 7});
  CHECK(sum_of(store, {{bytes.data(), 13}, {bytes.data() + 13, 7}}) == expected.value());
  CHECK(sum_of(store, {{bytes.data(), 13}}) != expected.value());
  CHECK(sum_of(store, {}) == digest{}.value());
  CHECK(sum_of(store, {{nullptr, 0}}) == sum_of(store, {{bytes.data(), 0}}));
  std::uint64_t untouched = 42;
  std::vector<segment> const lost{{bytes.data(), 4}, {nullptr, 5}};
  CHECK_FALSE(store.checksum(lost, untouched).ok());
  CHECK(untouched == 42);
}

TEST_CASE("staging stays within its limit, and asking for too much leaves what there is") {
  host_store store{two_ranks, 1, 100};
  CHECK(store.reserve_staging(60).ok());
  CHECK(store.staging_high_water() == 60);
  CHECK(store.reserve_staging(101).message() == "host_store: 101 bytes of staging needed, the limit is 100");
  CHECK(store.reserve_staging(40).ok());
  CHECK(store.staging_high_water() == 60);
  host_store greedy{two_ranks, 1};
  REQUIRE(greedy.reserve_staging(8).ok());
  std::vector<std::size_t> too_much{host_store::unlimited, host_store::unlimited / 2 + 2};
#if !BALLAST_TESTS_ALLOCATION_ABORTS  // it ends the program instead
  too_much.push_back(host_store::unlimited / 2);
  too_much.push_back(host_store::unlimited / 4);
#endif
  for (auto const bytes : too_much) {
    auto const result = greedy.reserve_staging(bytes);
    CHECK(result.code() == errc::out_of_memory);
    CHECK(result.message().find(std::to_string(bytes)) != std::string::npos);
  }
  CHECK(greedy.staging_high_water() == 8);
}
