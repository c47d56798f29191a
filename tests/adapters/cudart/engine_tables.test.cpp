// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Tables in the forms of engines, on a device, beside streams that stand.
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/engine_tables.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>

#include "support/gpu.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

using namespace ballast;
using ballast_test::busy_stream;
using ballast_test::check_cuda;
using ballast_test::generator;

namespace {

ballast_test::gpu_only const needs_gpu;

/// An array of an engine's, with guards before and behind; rows that nobody writes keep a value of their own.
template <class Id>
class engine_array {
public:
  static constexpr Id untouched = -77;

  engine_array(index_t rows, index_t width)
      : rows_{static_cast<std::size_t>(rows)},
        width_{static_cast<std::size_t>(width)},
        memory_{cudart::device_memory<Id>::create(rows_ * width_ + 2 * guard)} {
    std::vector<Id> const filled(rows_ * width_ + 2 * guard, untouched);
    check_cuda(cudaMemcpy(memory_.data(), filled.data(), filled.size() * sizeof(Id), cudaMemcpyHostToDevice),
               "cudaMemcpy");
    check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
  }
  [[nodiscard]] Id* data() const { return memory_.data() + guard; }
  [[nodiscard]] std::size_t bytes() const { return rows_ * width_ * sizeof(Id); }
  [[nodiscard]] std::vector<Id> read() const {
    std::vector<Id> all(rows_ * width_ + 2 * guard);
    check_cuda(cudaMemcpy(all.data(), memory_.data(), all.size() * sizeof(Id), cudaMemcpyDeviceToHost), "cudaMemcpy");
    for (std::size_t i = 0; i < guard; ++i) {
      CHECK(all[i] == untouched);
      CHECK(all[all.size() - 1 - i] == untouched);
    }
    return {all.begin() + guard, all.end() - guard};
  }

private:
  static constexpr std::ptrdiff_t guard = 8;
  std::size_t rows_;
  std::size_t width_;
  cudart::device_memory<Id> memory_;
};

/// What an engine has: arrays with more rows than there are layers, lists wider than any that can be needed.
template <class Id>
struct engine {
  static constexpr index_t spare_rows = 2;
  static constexpr index_t spare_width = 3;

  engine(topology of, index_t rank_of, placement_shape shape_of)
      : where{std::move(of)},
        rank{rank_of},
        shape{shape_of},
        width{shape.num_slots - shape.num_logical + 1 + spare_width} {}
  /// Layer l is in row L - l of L + 2: the first and the last are nobody's.
  [[nodiscard]] static std::vector<index_t> make_rows(index_t num_layers) {
    std::vector<index_t> rows;
    for (index_t layer = 0; layer < num_layers; ++layer) { rows.push_back(num_layers - layer); }
    return rows;
  }
  [[nodiscard]] index_t rows() const { return shape.num_layers + spare_rows; }
  [[nodiscard]] cudart::engine_rows where_rows() const { return {row_of_layer, rows()}; }

  topology where;
  index_t rank;
  placement_shape shape;
  index_t width;
  std::vector<index_t> row_of_layer = make_rows(shape.num_layers);
  engine_array<Id> logical{rows(), where.num_physical_ids()};
  engine_array<Id> physical{rows(), shape.num_logical* width};
  engine_array<Id> counts{rows(), shape.num_logical};
  engine_array<Id> slots{rows(), shape.num_logical};
  engine_array<Id> nearest{rows(), shape.num_logical};
  cudart::replica_lists<Id> lists{{logical.data(), physical.data(), counts.data(), width}, where_rows()};
  cudart::rank_maps<Id> maps{rank, {slots.data(), nearest.data()}, where_rows()};
};

/// One layer's row of each array, from the definitions.
template <class Id>
struct expected_row {
  expected_row(engine<Id> const& of, topology const& where, placement const& holds, index_t layer)
      : logical(static_cast<std::size_t>(where.num_physical_ids()), Id{-1}),
        physical(static_cast<std::size_t>(holds.num_logical() * of.width), Id{-1}) {
    dispatch_tables tables{where, holds.shape(), rank_id{of.rank}, dispatch_mode::nearest};
    tables.publish(where, holds, layer);
    for (index_t slot = 0; slot < holds.num_slots(); ++slot) {
      if (!where.is_live(where.rank_of_slot(slot))) { continue; }
      logical[static_cast<std::size_t>(where.physical_id(slot))] =
          holds.logical_of_slot(layer)[static_cast<std::size_t>(slot)];
    }
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      for (index_t i = 0; i < where.reserved_slots() && where.is_live(rank); ++i) {
        auto const first = where.physical_id(where.first_slot(rank)) + where.slots_per_rank();
        logical[static_cast<std::size_t>(first + i)] = holds.num_logical() + i;
      }
    }
    for (index_t expert = 0; expert < holds.num_logical(); ++expert) {
      std::vector<index_t> live;
      std::vector<index_t> shared;
      index_t own = -1;
      auto const replicas = holds.replicas_of(layer, expert);
      for (index_t slot = 0; slot < holds.num_slots(); ++slot) {
        if (std::find(replicas.begin(), replicas.end(), slot) == replicas.end()) { continue; }
        if (where.rank_of_slot(slot) == of.rank && own < 0) { own = slot - where.first_slot(of.rank); }
        if (!where.is_live(where.rank_of_slot(slot))) { continue; }
        live.push_back(where.physical_id(slot));
        if (holds.has_shares() && holds.shares(layer)[static_cast<std::size_t>(slot)] > 0) {
          shared.push_back(where.physical_id(slot));
        }
      }
      auto const& listed = shared.empty() ? live : shared;
      for (std::size_t i = 0; i < listed.size(); ++i) {
        physical[static_cast<std::size_t>(expert * of.width) + i] = listed[i];
      }
      counts.push_back(static_cast<Id>(listed.size()));
      slots.push_back(own);
      nearest.push_back(dispatch_one(tables.view(), layer, 0, 0, expert));
    }
  }
  std::vector<Id> logical;
  std::vector<Id> physical;
  std::vector<Id> counts;
  std::vector<Id> slots;
  std::vector<Id> nearest;
};

/// All arrays of an engine, row by row.
template <class Id>
struct all_rows {
  explicit all_rows(engine<Id> const& of) : rows{static_cast<std::size_t>(of.rows())} {
    wanted(logical, of.where.num_physical_ids());
    wanted(physical, of.shape.num_logical * of.width);
    for (auto* const each : {&counts, &slots, &nearest}) { wanted(*each, of.shape.num_logical); }
  }
  void put(engine<Id> const& of, topology const& where, placement const& holds, index_t layer) {
    expected_row<Id> const row{of, where, holds, layer};
    auto const at = static_cast<std::size_t>(of.row_of_layer[static_cast<std::size_t>(layer)]);
    auto const copy = [at](std::vector<Id> const& from, std::vector<Id>& to) {
      std::copy(from.begin(), from.end(), to.begin() + static_cast<std::ptrdiff_t>(at * from.size()));
    };
    copy(row.logical, logical);
    copy(row.physical, physical);
    copy(row.counts, counts);
    copy(row.slots, slots);
    copy(row.nearest, nearest);
  }
  void check(engine<Id> const& of) const {
    CHECK((of.logical.read() == logical));
    CHECK((of.physical.read() == physical));
    CHECK((of.counts.read() == counts));
    CHECK((of.slots.read() == slots));
    CHECK((of.nearest.read() == nearest));
  }

  std::size_t rows;
  std::vector<Id> logical;
  std::vector<Id> physical;
  std::vector<Id> counts;
  std::vector<Id> slots;
  std::vector<Id> nearest;

private:
  void wanted(std::vector<Id>& array, index_t width) const {
    array.assign(rows * static_cast<std::size_t>(width), engine_array<Id>::untouched);
  }
};

/// A placement that gives some experts many replicas, and some replicas no share.
placement draw(placement_shape shape, generator& random) {
  auto holds = ballast_test::random_placement(shape, random);
  if (random.below(3) == 0) { return holds; }
  holds.make_shares_even();
  for (index_t layer = 0; layer < shape.num_layers; ++layer) {
    for (index_t expert = 0; expert < shape.num_logical; ++expert) {
      auto const replicas = holds.replicas_of(layer, expert);
      if (random.below(2) == 0) { continue; }
      auto const all = replicas[static_cast<std::size_t>(random.below(static_cast<index_t>(replicas.size())))];
      for (auto const slot : replicas) { holds.edit_shares(layer)[static_cast<std::size_t>(slot)] = 0; }
      holds.edit_shares(layer)[static_cast<std::size_t>(all)] = share_one;
    }
  }
  return holds;
}

template <class Id>
void obeys_definitions(topology where, index_t rank, placement_shape shape, std::uint64_t seed) {
  CAPTURE(seed);
  generator random{seed};
  auto const stream = cudart::stream::create();
  engine<Id> self{where, rank, shape};
  all_rows<Id> wanted{self};
  auto holds = draw(shape, random);
  cudart::device_store<> store{
      where, rank, holds, {.compute_stream = stream.get(), .table_writers = {self.lists, self.maps}}};
  for (index_t layer = 0; layer < shape.num_layers; ++layer) { wanted.put(self, where, holds, layer); }
  wanted.check(self);
  for (epoch_t epoch = 1; epoch <= 12; ++epoch) {
    CAPTURE(epoch);
    if (where.num_ranks() > 1 && epoch == 7) {
      where.set_live(where.num_ranks() - 1, false);
      store.set_topology(where).or_throw();
    }
    holds = draw(shape, random);
    auto const layer = random.below(shape.num_layers);
    store.commit(layer, {}, holds, epoch).or_throw();
    wanted.put(self, where, holds, layer);
    check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    wanted.check(self);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("an engine's own tables are those of the placement that was committed, padded, row by row", Id,
                   std::int32_t, std::int64_t) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    obeys_definitions<Id>(topology{{4, 2, 9, 1}}, 2, {3, 20, 36}, seed);
    obeys_definitions<Id>(topology{{4, 2, 5, 0}}, 0, {2, 6, 20}, seed);
    obeys_definitions<Id>(topology{{1, 1, 8, 2}}, 0, {1, 8, 8}, seed);  // no replicas
    obeys_definitions<Id>(topology{{3, 1, 4, 0}}, 1, {2, 1, 12}, seed);
  }
}

TEST_CASE("without rows of its own, layer i has row i; and arrays that are not given are not written") {
  generator random{5};
  topology const where{{4, 1, 6, 0}};
  placement_shape const shape{3, 16, 24};
  auto const stream = cudart::stream::create();
  auto const holds = ballast_test::random_placement(shape, random);
  engine_array<std::int64_t> const logical{3, 24};
  engine_array<std::int32_t> const nearest{3, 16};
  cudart::replica_lists<std::int64_t> lists{{.logical_of_physical = logical.data()}};
  cudart::rank_maps<std::int32_t> maps{1, {.physical_of_logical = nearest.data()}};
  cudart::device_store<> const store{where, 1, holds, {.compute_stream = stream.get(), .table_writers = {lists, maps}}};
  auto const found = logical.read();
  auto const sent = nearest.read();
  dispatch_tables tables{where, shape, rank_id{1}, dispatch_mode::nearest};
  for (index_t layer = 0; layer < 3; ++layer) {
    tables.publish(where, holds, layer);
    for (index_t slot = 0; slot < 24; ++slot) {
      CHECK(found[static_cast<std::size_t>(layer * 24 + slot)] ==
            holds.logical_of_slot(layer)[static_cast<std::size_t>(slot)]);
    }
    for (index_t expert = 0; expert < 16; ++expert) {
      CHECK(sent[static_cast<std::size_t>(layer * 16 + expert)] == dispatch_one(tables.view(), layer, 7, 1, expert));
    }
  }
}

TEST_CASE("a pass sees a layer's tables whole: all as before the commit, or all as after it") {
  using id = std::int64_t;
  generator random{6};
  topology const where{{4, 2, 9, 1}};
  placement_shape const shape{2, 30, 36};
  auto const first = cudart::stream::create();
  auto const second = cudart::stream::create();
  engine<id> self{where, 3, shape};
  all_rows<id> wanted{self};
  auto holds = draw(shape, random);
  cudart::device_store<> store{where,
                               3,
                               holds,
                               {.compute_stream = first.get(),
                                .more_compute_streams = {second.get()},
                                .table_writers = {self.lists, self.maps}}};
  for (index_t layer = 0; layer < 2; ++layer) { wanted.put(self, where, holds, layer); }

  struct seen {
    engine_array<id> logical;
    engine_array<id> physical;
    engine_array<id> counts;
    all_rows<id> wanted;
  };
  std::vector<seen> passes;
  passes.reserve(12);
  // What a pass reads is copied where it runs.
  auto const pass = [&](cudaStream_t on) {
    passes.push_back({{self.rows(), where.num_physical_ids()},
                      {self.rows(), shape.num_logical * self.width},
                      {self.rows(), shape.num_logical},
                      wanted});
    auto const copy = [on](auto const& from, auto const& to) {
      check_cuda(cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice, on),
                 "cudaMemcpyAsync");
    };
    copy(self.logical, passes.back().logical);
    copy(self.physical, passes.back().physical);
    copy(self.counts, passes.back().counts);
  };
  for (auto const slow : {first.get(), second.get()}) {
    std::vector<seen> const before = std::exchange(passes, {});
    passes.reserve(6);
    busy_stream late{slow};
    pass(first.get());
    pass(second.get());
    for (epoch_t epoch = 1; epoch <= 2; ++epoch) {
      holds = draw(shape, random);
      store.commit(static_cast<index_t>(epoch) - 1, {}, holds, epoch).or_throw();
      wanted.put(self, where, holds, static_cast<index_t>(epoch) - 1);
      pass(second.get());
      pass(first.get());
    }
    CHECK(late.release());
    for (auto const& each : {&first, &second}) {
      check_cuda(cudaStreamSynchronize(each->get()), "cudaStreamSynchronize");
    }
    for (auto const& one : passes) {
      CHECK((one.logical.read() == one.wanted.logical));
      CHECK((one.physical.read() == one.wanted.physical));
      CHECK((one.counts.read() == one.wanted.counts));
    }
  }
}

TEST_CASE("arrays that could not hold every placement are refused before a store is made, with the remedy") {
  topology const where{{2, 1, 6, 0}};
  placement const initial = trivial_placement({2, 8, 12});
  auto const stream = cudart::stream::create();
  auto const memory = cudart::device_memory<std::int32_t>::create(1000);
  auto* const to = memory.data();
  auto const make = [&](cudart::table_writer_ref writer) {
    static_cast<void>(
        cudart::device_store<>{where, 0, initial, {.compute_stream = stream.get(), .table_writers = {writer}}});
  };
  using lists = cudart::replica_lists<std::int32_t>;
  using maps = cudart::rank_maps<std::int32_t>;
  auto const refused = [&](auto writer, char const* why) { CHECK_THROWS_WITH(make(writer), doctest::Contains(why)); };
  refused(lists{{}}, "no array");
  refused(maps{0, {}}, "no array");
  refused(lists{{.physical_of_logical = to, .width = 4}}, "can have 5 replicas");
  refused(maps{2, {.slot_of_logical = to}}, "rank 2");
  refused(lists{{.num_replicas = to}, {{0}, 2}}, "rows of 1 layers, there are 2");
  refused(lists{{.num_replicas = to}, {{0, 2}, 2}}, "row 2 of layer 1 is not in [0, 2)");
  refused(maps{0, {.slot_of_logical = to}, {{-1, 1}, 2}}, "row -1 of layer 0");
  refused(maps{0, {.slot_of_logical = to}, {{1, 1}, 2}}, "row 1 of layer 1 is another layer's");
  lists good{{.physical_of_logical = to, .width = 5}, {{1, 0}, 2}};
  make(good);
  make(good);  // another store begins anew
}
