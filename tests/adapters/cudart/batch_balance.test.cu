// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/kernels/batch_balancer.cuh>
#include <ballast/cudart/peer_directory.hpp>
#include <ballast/dispatch/tables.hpp>

#include "support/batch_ranks.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace ballast;
using ballast_test::generator;

namespace {

ballast_test::queue_for_each_stream const queues;
ballast_test::gpu_only const needs_gpu;

struct batch_case {
  index_t ranks;
  index_t nodes;
  index_t slots;
  index_t reserved;
  index_t experts;
  index_t tokens;
  index_t top_k;
  index_t tile;
};

template <class Id>
std::vector<std::vector<Id>> make_ids(batch_case const& of, generator& random) {
  std::vector<std::vector<Id>> ids;
  for (index_t rank = 0; rank < of.ranks; ++rank) {
    ids.push_back(ballast_test::batch_ids<Id>(of.tokens * of.top_k, of.experts, of.reserved, random));
  }
  return ids;
}
std::vector<std::int32_t> all_valid(batch_case const& of) {
  return std::vector<std::int32_t>(static_cast<std::size_t>(of.ranks), of.tokens);
}
template <class Id>
void pad(std::vector<std::vector<Id>>& ids, std::vector<std::int32_t> const& valid, index_t top_k) {
  for (std::size_t r = 0; r < ids.size(); ++r) {
    std::fill(ids[r].begin() + static_cast<std::ptrdiff_t>(valid[r]) * top_k, ids[r].end(), Id{-1});
  }
}

cudart::batch_options options_for(batch_case const& of) {
  cudart::batch_options options;
  options.max_tokens = of.tokens;
  options.top_k = of.top_k;
  options.quotas.tile = of.tile;
  options.control.wait_nanoseconds = 2'000'000'000;
  return options;
}

/// Whether all ranks' ids are what the host says, and what the first rank tells of the batch.
///
/// @param parts  in/out: what the batch starts from, and what it leaves to the next one; null: every batch starts from
///               the shares in force.
template <class Id>
void check_batch(ballast_test::batch_group<Id>& group, topology const& where, batch_case const& of, index_t layer,
                 std::vector<std::vector<Id>> const& ids, std::vector<index_t>* parts = nullptr) {
  ballast_test::expected_batch<Id> expected{where, group.ranks[0]->balancer.rows().row(layer), options_for(of).quotas,
                                            ids, parts == nullptr ? std::span<index_t const>{} : *parts};
  // From an earlier batch's quotas it may come out worse than by the shares in force: then these stay.
  bool const exact = expected.balance.max <= expected.balance.resident;
  CHECK((exact || parts != nullptr));
  if (parts != nullptr && exact) { expected.keep(*parts); }
  for (index_t rank = 0; rank < of.ranks; ++rank) {
    CAPTURE(rank);
    auto const at = static_cast<std::size_t>(rank);
    auto const found = group.ranks[at]->physical.read(ids[at].size());
    if (exact) {
      CHECK((found == expected.physical(rank, ids[at])));
    } else {
      auto resident = ids[at];
      dispatch_ids<Id>(group.ranks[at]->tables.host().view(), layer, of.top_k, ids[at], resident);
      CHECK((found == resident));
    }
    auto const told = group.ranks[at]->balancer.statistics(layer);
    CHECK(told.late + told.off + told.unlike == 0);
    CHECK(told.exact + told.below == told.batches);
    if (expected.balance.total == 0) { continue; }  // nothing to balance
    CHECK(told.max == static_cast<std::uint32_t>(expected.balance.max));
    CHECK(told.bound == static_cast<std::uint32_t>(expected.balance.bound));
    CHECK(told.resident == static_cast<std::uint32_t>(expected.balance.resident));
    CHECK(told.total == static_cast<std::uint32_t>(expected.balance.total));
    CHECK(told.sweeps == static_cast<std::uint32_t>(expected.balance.sweeps));
    CHECK(told.searches == static_cast<std::uint32_t>(expected.balance.searches));
  }
}

template <class Id>
void equals_host(batch_case const& of, std::uint64_t seed) {
  CAPTURE(of.ranks);
  CAPTURE(of.experts);
  CAPTURE(of.tokens);
  generator random{seed};
  topology const where{{of.ranks, of.nodes, of.slots, of.reserved}};
  auto const held = ballast_test::random_placement({2, of.experts, where.num_slots()}, random);
  ballast_test::batch_group<Id> group{where, held, options_for(of)};
  for (index_t batch = 0; batch < 6; ++batch) {
    auto ids = make_ids<Id>(of, random);
    auto valid = all_valid(of);
    if (batch == 2) { valid[0] = 0; }
    if (batch == 3) {
      for (auto& rows : valid) { rows = random.below(of.tokens + 1); }
    }
    group.give(ids, valid);
    group.launch(batch % 2, of.tokens);
    group.wait();
    pad(ids, valid, of.top_k);
    check_batch(group, where, of, batch % 2, ids);
  }
}

}  // namespace

TEST_CASE("ids, quotas and numbers of searches equal the host's, batch after batch") {
  std::vector<batch_case> const cases{
      {1, 1, 12, 0, 8, 64, 2, 1},    {2, 1, 9, 1, 12, 300, 4, 1},      {4, 2, 20, 0, 64, 1000, 6, 1},
      {8, 2, 36, 1, 256, 512, 8, 1}, {8, 1, 36, 0, 256, 4096, 8, 1},   {6, 3, 5, 0, 16, 700, 3, 64},
      {5, 1, 3, 2, 9, 33, 1, 1},     {3, 1, 1400, 0, 4096, 600, 8, 1}, {8, 4, 10, 0, 64, 16384, 2, 128},
  };
  for (auto const& of : cases) {
    equals_host<std::int32_t>(of, 1);
    equals_host<std::int64_t>(of, 2);
  }
}

TEST_CASE_TEMPLATE("physical ids may be of another type than the router's", Types,
                   std::pair<std::int32_t, std::int64_t>, std::pair<std::int64_t, std::int32_t>,
                   std::pair<std::int32_t, std::uint64_t>, std::pair<std::uint64_t, std::uint32_t>) {
  using from = typename Types::first_type;
  using to = typename Types::second_type;
  for (auto const& of : {batch_case{4, 2, 20, 1, 64, 1000, 6, 1}, batch_case{3, 1, 300, 2, 700, 600, 8, 1}}) {
    CAPTURE(of.experts);
    generator random{29};
    topology const where{{of.ranks, of.nodes, of.slots, of.reserved}};
    auto const held = ballast_test::random_placement({1, of.experts, where.num_slots()}, random);
    ballast_test::batch_group<std::int64_t> group{where, held, options_for(of)};
    std::vector<ballast_test::device_array<from>> ids;
    std::vector<ballast_test::device_array<to>> physical;
    auto const given = make_ids<std::int64_t>(of, random);
    for (auto const& own : given) {
      ids.emplace_back(own.size());
      ids.back().write(std::vector<from>(own.begin(), own.end()));
      physical.emplace_back(own.size());
    }
    for (std::size_t rank = 0; rank < ids.size(); ++rank) {
      auto& self = *group.ranks[rank];
      cudart::routing<from> const input{ids[rank].data(), of.tokens, of.top_k, nullptr};
      cudart::balance_and_dispatch(self.stream.get(), self.balancer.view(), {}, self.tables.view(), 0, input,
                                   physical[rank].data())
          .or_throw();
    }
    group.wait();
    ballast_test::expected_batch<std::int64_t> expected{where, group.ranks[0]->balancer.rows().row(0),
                                                        options_for(of).quotas, given};
    for (std::size_t rank = 0; rank < ids.size(); ++rank) {
      CAPTURE(rank);
      auto const wanted = expected.physical(static_cast<index_t>(rank), given[rank]);
      CHECK((physical[rank].read(wanted.size()) == std::vector<to>(wanted.begin(), wanted.end())));
      CHECK(group.ranks[rank]->balancer.statistics(0).exact == 1);
    }
    auto& first = *group.ranks[0];
    cudart::routing<from> const input{ids[0].data(), of.tokens, of.top_k, nullptr};
    auto* const same = reinterpret_cast<to*>(ids[0].data());
    auto const result =
        cudart::plan_and_dispatch(first.stream.get(), first.balancer.view(), first.balancer.view().counts, {},
                                  first.tables.view(), 0, input, same);
    CHECK(result.code() == errc::invalid_load);
    CHECK(result.message().find("overlap") != std::string::npos);
  }
}

TEST_CASE("sixty-four ranks by their boards") {
  for (auto const& of : {batch_case{64, 8, 6, 0, 256, 128, 8, 1}, batch_case{48, 1, 3, 1, 100, 40, 2, 1},
                         batch_case{33, 1, 2, 0, 40, 64, 4, 16}}) {
    CAPTURE(of.ranks);
    generator random{23};
    topology const where{{of.ranks, of.nodes, of.slots, of.reserved}};
    auto const held = ballast_test::random_placement({1, of.experts, where.num_slots()}, random);
    ballast_test::batch_group<std::int32_t> group{where, held, options_for(of)};
    for (index_t batch = 0; batch < 3; ++batch) {
      CAPTURE(batch);
      auto const ids = make_ids<std::int32_t>(of, random);
      group.give(ids, all_valid(of));
      group.launch_in_stages(0, of.tokens);
      group.wait();
      check_batch(group, where, of, 0, ids);
    }
  }
}

TEST_CASE("batches start from the quotas of the last one where all ranks have them, else from the shares in force") {
  std::vector<batch_case> const cases{
      {8, 2, 36, 1, 256, 512, 8, 1}, {32, 1, 3, 0, 64, 300, 4, 1}, {6, 3, 5, 0, 16, 700, 3, 64}};
  for (auto const& of : cases) {
    CAPTURE(of.ranks);
    generator random{11};
    topology const where{{of.ranks, of.nodes, of.slots, of.reserved}};
    auto held = ballast_test::random_placement({2, of.experts, where.num_slots()}, random);
    auto options = options_for(of);
    options.warm_start = true;
    ballast_test::batch_group<std::int32_t> group{where, held, options};
    std::vector<std::vector<index_t>> parts(2);  // of each layer
    for (index_t batch = 0; batch < 20; ++batch) {
      CAPTURE(batch);
      if (batch == 6) {  // another placement: quotas of the last one say nothing
        held = ballast_test::random_placement({2, of.experts, where.num_slots()}, random);
        for (auto const& rank : group.ranks) { rank->publish(where, held); }
        parts.assign(2, {});
      }
      if (batch == 10) {  // one rank has lost its own
        auto& starts = group.ranks[1]->balancer.view().starts[0];
        ballast_test::check_cuda(cudaMemset(&starts, 0, sizeof starts), "cudaMemset");
        ballast_test::check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
        parts[0].clear();
      }
      if (batch == 14) {
        for (auto const& rank : group.ranks) { rank->balancer.restart(100).or_throw(); }
        parts.assign(2, {});
      }
      auto ids = make_ids<std::int32_t>(of, random);
      auto valid = all_valid(of);
      if (batch % 4 == 3) { valid.assign(valid.size(), 1); }  // experts without tokens keep their parts
      group.give(ids, valid);
      group.launch(batch % 2, of.tokens);
      group.wait();
      pad(ids, valid, of.top_k);
      check_batch(group, where, of, batch % 2, ids, &parts[static_cast<std::size_t>(batch % 2)]);
    }
  }
}

TEST_CASE("a graph balances whatever ids and placement it finds, and counts for the recorder") {
  batch_case const of{4, 1, 10, 0, 32, 500, 4, 1};
  generator random{7};
  topology const where{{of.ranks, of.nodes, of.slots, of.reserved}};
  auto held = ballast_test::random_placement({1, of.experts, where.num_slots()}, random);
  ballast_test::batch_group<std::int32_t> group{where, held, options_for(of)};
  group.wait();
  std::vector<cudaGraphExec_t> graphs;
  for (auto const& rank : group.ranks) {
    cudaGraph_t graph = nullptr;
    ballast_test::check_cuda(cudaStreamBeginCapture(rank->stream.get(), cudaStreamCaptureModeThreadLocal), "begin");
    rank->launch(0, of.tokens, of.top_k);
    ballast_test::check_cuda(cudaStreamEndCapture(rank->stream.get(), &graph), "end");
    ballast_test::check_cuda(cudaGraphInstantiate(&graphs.emplace_back(), graph, 0), "instantiate");
    ballast_test::check_cuda(cudaGraphDestroy(graph), "destroy");
  }
  std::vector<load_t> recorded(static_cast<std::size_t>(of.experts));
  for (int batch = 0; batch < 20; ++batch) {
    auto const ids = make_ids<std::int32_t>(of, random);
    if (batch % 5 == 4) {
      held = ballast_test::random_placement({1, of.experts, where.num_slots()}, random);
      for (auto const& rank : group.ranks) { rank->publish(where, held); }
    }
    group.give(ids, all_valid(of));
    for (std::size_t r = 0; r < graphs.size(); ++r) {
      ballast_test::check_cuda(cudaGraphLaunch(graphs[r], group.ranks[r]->stream.get()), "launch");
    }
    group.wait();
    check_batch(group, where, of, 0, ids);
    for (auto const id : ids[1]) {
      if (id >= 0 && id < of.experts) { ++recorded[static_cast<std::size_t>(id)]; }
    }
  }
  auto& recorder = group.ranks[1]->recorder;
  recorder.end_pass(true);
  std::vector<load_t> counted(recorded.size());
  recorder.history(counted).or_throw();
  CHECK(counted == recorded);
  for (auto const graph : graphs) { ballast_test::check_cuda(cudaGraphExecDestroy(graph), "destroy"); }
}

TEST_CASE("counts that the engine gathers give the same, for any number of ranks") {
  for (index_t const ranks : {2, 33, 64, 96}) {
    batch_case const of{ranks, 1, 4, 0, 3 * ranks, 200, 4, 1};
    generator random{3};
    topology const where{{of.ranks, of.nodes, of.slots, of.reserved}};
    auto const held = ballast_test::random_placement({1, of.experts, where.num_slots()}, random);
    auto const ids = make_ids<std::int32_t>(of, random);
    ballast_test::batch_rank<std::int32_t> self{where, 1, held, options_for(of)};
    ballast_test::expected_batch<std::int32_t> expected{where, self.balancer.rows().row(0), options_for(of).quotas,
                                                        ids};
    self.ids.write(ids[1]);
    self.num_valid.write(std::vector<std::int32_t>{of.tokens});
    auto const view = self.balancer.view();
    cudart::count_batch(self.stream.get(), view, 0, self.input(of.tokens, of.top_k)).or_throw();
    ballast_test::check_cuda(cudaStreamSynchronize(self.stream.get()), "cudaStreamSynchronize");
    auto const all = expected.counts();
    ballast_test::device_array<index_t> gathered{all.elements().size()};
    std::vector<index_t> own(static_cast<std::size_t>(of.experts));
    ballast_test::check_cuda(cudaMemcpy(own.data(), view.counts, own.size() * sizeof(index_t), cudaMemcpyDeviceToHost),
                             "cudaMemcpy");
    CHECK(std::equal(own.begin(), own.end(), all.row(1).begin(), all.row(1).end()));
    gathered.write(all.elements());
    cudart::plan_and_dispatch(self.stream.get(), view, gathered.data(), {}, self.tables.view(), 0,
                              self.input(of.tokens, of.top_k), self.physical.data())
        .or_throw();
    ballast_test::check_cuda(cudaStreamSynchronize(self.stream.get()), "cudaStreamSynchronize");
    CHECK((self.physical.read(ids[1].size()) == expected.physical(1, ids[1])));
    CHECK(self.balancer.statistics(0).exact == 1);
  }
}

namespace {

/// What `dispatch` makes of a rank's ids.
std::vector<std::int32_t> resident(ballast_test::batch_rank<std::int32_t> const& rank, index_t top_k,
                                   std::vector<std::int32_t> const& ids) {
  auto result = ids;
  dispatch_ids<std::int32_t>(rank.tables.host().view(), 0, top_k, ids, result);
  return result;
}

struct small_group {
  batch_case of{3, 1, 6, 0, 12, 100, 2, 1};
  generator random{5};
  topology where{{of.ranks, of.nodes, of.slots, of.reserved}};
  placement held = ballast_test::random_placement({1, of.experts, where.num_slots()}, random);
  ballast_test::batch_group<std::int32_t> group{where, held, options_for(of)};
  std::vector<std::vector<std::int32_t>> ids = make_ids<std::int32_t>(of, random);

  void run() {
    group.give(ids, all_valid(of));
    group.launch(0, of.tokens);
    group.wait();
  }
  void check_resident() {
    for (std::size_t r = 0; r < group.ranks.size(); ++r) {
      CHECK((group.ranks[r]->physical.read(ids[r].size()) == resident(*group.ranks[r], of.top_k, ids[r])));
    }
  }
  cudart::batch_statistics told(std::size_t rank) { return group.ranks[rank]->balancer.statistics(0); }
};

}  // namespace

TEST_CASE("one rank that is off, or asks for more tokens or gain, leaves all ranks with the shares in force") {
  small_group self;
  auto control = options_for(self.of).control;
  auto& second = self.group.ranks[1]->balancer;
  control.on = 0;
  second.set_control(control).or_throw();
  self.run();
  self.check_resident();
  for (std::size_t r = 0; r < 3; ++r) { CHECK(self.told(r).off == 1); }

  control.on = 1;
  control.min_tokens = 601;  // there are 600 choices, some of them nobody's
  second.set_control(control).or_throw();
  self.run();
  self.check_resident();
  for (std::size_t r = 0; r < 3; ++r) { CHECK(self.told(r).below == 1); }

  control.min_tokens = 100;
  control.min_gain_ppm = 900'000'000;
  second.set_control(control).or_throw();
  self.run();
  self.check_resident();
  for (std::size_t r = 0; r < 3; ++r) { CHECK(self.told(r).below == 2); }

  control.min_gain_ppm = 0;
  second.set_control(control).or_throw();
  self.run();
  for (std::size_t r = 0; r < 3; ++r) {
    CHECK(self.told(r).exact == 1);
    CHECK(self.told(r).batches == 4);
  }
}

TEST_CASE("ranks with different placements or options fall back to what each has in force") {
  small_group self;
  auto const other = ballast_test::random_placement({1, self.of.experts, self.where.num_slots()}, self.random);
  self.group.ranks[2]->publish(self.where, other);
  self.run();
  self.check_resident();
  for (std::size_t r = 0; r < 3; ++r) { CHECK(self.told(r).unlike == 1); }
  for (auto const& rank : self.group.ranks) { rank->publish(self.where, other); }
  self.run();
  for (std::size_t r = 0; r < 3; ++r) { CHECK(self.told(r).exact == 1); }
}

TEST_CASE("a rank that does not come leaves the others with the shares in force, in bounded time, and they name it") {
  small_group self;
  auto control = options_for(self.of).control;
  control.wait_nanoseconds = 3'000'000;
  for (auto const& rank : self.group.ranks) { rank->balancer.set_control(control).or_throw(); }
  self.group.give(self.ids, all_valid(self.of));
  for (std::size_t r = 0; r < 2; ++r) { self.group.ranks[r]->launch(0, self.of.tokens, self.of.top_k); }
  self.group.wait();
  for (std::size_t r = 0; r < 2; ++r) {
    CHECK(self.told(r).late == 1);
    CHECK(self.told(r).late_ranks_low == 4);
    CHECK(self.told(r).wait_nanoseconds >= 3'000'000);
    CHECK((self.group.ranks[r]->physical.read(self.ids[r].size()) ==
           resident(*self.group.ranks[r], self.of.top_k, self.ids[r])));
  }
  // It comes after all: the others' counts are there, but the verdict is given.
  self.group.ranks[2]->launch(0, self.of.tokens, self.of.top_k);
  self.group.wait();
  CHECK(self.told(2).late == 1);
  CHECK(self.told(2).alone == 0);
  self.check_resident();
  // And all go on together.
  self.run();
  for (std::size_t r = 0; r < 3; ++r) { CHECK(self.told(r).exact == 1); }
}

TEST_CASE("a rank that is dead by the topology is not waited for, be it the judge or another") {
  for (index_t const dead : {0, 2}) {
    CAPTURE(dead);
    small_group self;
    auto survivors = self.where;
    survivors.set_live(dead, false);
    auto left = self.ids;
    left[static_cast<std::size_t>(dead)].clear();
    auto control = options_for(self.of).control;
    control.wait_nanoseconds = 3'000'000;
    for (auto const& rank : self.group.ranks) {
      rank->balancer.set_control(control).or_throw();
      rank->balancer.restart(0x90000000u).or_throw();  // as after a week: nobody has told a verdict on another board
    }
    for (int batch = 0; batch < 3; ++batch) {
      for (auto const& rank : self.group.ranks) { rank->publish(batch == 0 ? self.where : survivors, self.held); }
      self.group.give(self.ids, all_valid(self.of));
      for (index_t r = 0; r < 3; ++r) {
        if (r != dead) { self.group.ranks[static_cast<std::size_t>(r)]->launch(0, self.of.tokens, self.of.top_k); }
      }
      self.group.wait();
    }
    for (index_t r = 0; r < 3; ++r) {
      if (r == dead) { continue; }
      auto const& rank = *self.group.ranks[static_cast<std::size_t>(r)];
      CHECK(self.told(static_cast<std::size_t>(r)).late == 1);
      CHECK(self.told(static_cast<std::size_t>(r)).exact == 2);
      ballast_test::expected_batch<std::int32_t> expected{survivors, rank.balancer.rows().row(0),
                                                          options_for(self.of).quotas, left};
      auto const& own = self.ids[static_cast<std::size_t>(r)];
      CHECK((rank.physical.read(own.size()) == expected.physical(r, own)));
    }
  }
}

TEST_CASE("a rank that has missed batches starts again where the others are") {
  small_group self;
  auto control = options_for(self.of).control;
  control.wait_nanoseconds = 2'000'000;
  for (auto const& rank : self.group.ranks) { rank->balancer.set_control(control).or_throw(); }
  self.group.give(self.ids, all_valid(self.of));
  for (int batch = 0; batch < 5; ++batch) {
    for (std::size_t r = 0; r < 2; ++r) { self.group.ranks[r]->launch(0, self.of.tokens, self.of.top_k); }
    self.group.wait();
  }
  self.run();  // far apart: everybody is late for everybody
  CHECK(self.told(0).exact + self.told(1).exact + self.told(2).exact == 0);
  self.check_resident();
  for (auto const& rank : self.group.ranks) { rank->balancer.restart(100).or_throw(); }
  self.run();
  for (std::size_t r = 0; r < 3; ++r) { CHECK(self.told(r).exact == 1); }
  CHECK_FALSE(self.group.ranks[0]->balancer.restart(0).ok());
}

TEST_CASE("a store publishes what it commits, and a directory brings the boards together") {
  batch_case const of{2, 1, 6, 0, 8, 100, 2, 1};
  generator random{9};
  topology const where{{of.ranks, of.nodes, of.slots, of.reserved}};
  auto const held = ballast_test::random_placement({1, of.experts, where.num_slots()}, random);
  auto const other = ballast_test::random_placement({1, of.experts, where.num_slots()}, random);
  cudart::local_peers peers{2};
  auto first = peers.join(0);
  auto second = peers.join(1);
  auto const stream = cudart::stream::create();
  cudart::batch_balancer self{stream.get(), where, 0, held, options_for(of)};
  cudart::batch_balancer twin{stream.get(), where, 1, other, options_for(of)};
  cudart::device_store<> store{where, 0, held, {.compute_stream = stream.get(), .follower = self.follower()}};
  auto const version = [](cudart::batch_balancer const& of_rank) { return of_rank.rows().row(0).sizes().version; };
  CHECK(version(self) != version(twin));
  store.commit(0, {}, other, 1).or_throw();
  CHECK(version(self) == version(twin));
  self.expose_board(first).or_throw();
  CHECK(self.connect(first).message().find("rank 1") != std::string::npos);
  twin.expose_board(second).or_throw();
  self.connect(first).or_throw();
  twin.connect(second).or_throw();
  ballast_test::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  std::vector<cudart::count_board::line*> found(2);
  ballast_test::check_cuda(cudaMemcpy(found.data(), self.view().boards, sizeof(found[0]) * 2, cudaMemcpyDeviceToHost),
                           "cudaMemcpy");
  CHECK(reinterpret_cast<std::byte*>(found[0]) == self.board().data);
  CHECK(reinterpret_cast<std::byte*>(found[1]) == twin.board().data);
}

TEST_CASE("boards on another device are written to without anybody having switched on access") {
  batch_case const of{2, 1, 6, 0, 8, 100, 2, 1};
  generator random{9};
  topology const where{{of.ranks, of.nodes, of.slots, of.reserved}};
  auto const held = ballast_test::random_placement({1, of.experts, where.num_slots()}, random);
  int devices = 0;
  ballast_test::check_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  int const far = devices > 1 ? 1 : 0;
  cudart::local_peers peers{2};
  auto first = peers.join(0);
  auto const stream = cudart::stream::create();
  cudart::batch_balancer self{stream.get(), where, 0, held, options_for(of)};
  ballast_test::check_cuda(cudaSetDevice(far), "cudaSetDevice");
  auto second = peers.join(1);
  auto const far_stream = cudart::stream::create();
  cudart::batch_balancer twin{far_stream.get(), where, 1, held, options_for(of)};
  twin.expose_board(second).or_throw();
  ballast_test::check_cuda(cudaSetDevice(0), "cudaSetDevice");
  self.expose_board(first).or_throw();
  self.connect(first).or_throw();
  int current = -1;
  ballast_test::check_cuda(cudaGetDevice(&current), "cudaGetDevice");
  CHECK(current == 0);
  auto const result = far == 0 ? cudaErrorPeerAccessAlreadyEnabled : cudaDeviceEnablePeerAccess(far, 0);
  CHECK(result == cudaErrorPeerAccessAlreadyEnabled);
  static_cast<void>(cudaGetLastError());
  ballast_test::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
}

TEST_CASE("what would read or write elsewhere is refused") {
  small_group self;
  auto& rank = *self.group.ranks[0];
  auto const view = rank.balancer.view();
  auto const launch = [&](index_t layer, index_t tokens, index_t top_k, std::int32_t* to) {
    return cudart::balance_and_dispatch(rank.stream.get(), view, {}, rank.tables.view(), layer,
                                        rank.input(tokens, top_k), to)
        .message();
  };
  auto* const to = rank.physical.data();
  CHECK(launch(1, 10, 2, to).find("layer 1") != std::string::npos);
  CHECK(launch(0, 101, 2, to).find("room for 200") != std::string::npos);
  CHECK(launch(0, 10, 0, to).find("10 tokens x 0") != std::string::npos);
  CHECK(launch(0, 10, 2, nullptr).find("null pointer") != std::string::npos);
  CHECK(view.boards != nullptr);
  auto alone = view;
  alone.boards = nullptr;
  CHECK_FALSE(
      cudart::balance_and_dispatch(rank.stream.get(), alone, {}, rank.tables.view(), 0, rank.input(10, 2), to).ok());

  auto const make = [&](auto change) {
    auto options = options_for(self.of);
    change(options);
    return cudart::batch_balancer{rank.stream.get(), self.where, 0, self.held, options};
  };
  CHECK_THROWS_WITH(static_cast<void>(make([](auto& o) { o.max_tokens = 0; })), doctest::Contains("max_tokens is 0"));
  CHECK_THROWS_WITH(static_cast<void>(make([](auto& o) { o.top_k = 0; })), doctest::Contains("top_k is 0"));
  CHECK_THROWS_WITH(static_cast<void>(make([](auto& o) { o.judge = 3; })), doctest::Contains("judge is 3"));
  CHECK_THROWS_WITH(static_cast<void>(make([](auto& o) { o.quotas.tile = 0; })), doctest::Contains("tile is 0"));
  CHECK_THROWS_WITH(static_cast<void>(make([](auto& o) { o.max_tokens = 1 << 30; })), doctest::Contains("at most"));
  std::vector<segment> boards(2, rank.balancer.board());
  auto const connect = [&] { return rank.balancer.connect(std::span<segment const>{boards}).message(); };
  CHECK(connect().find("boards of 2") != std::string::npos);
  boards.resize(3);
  CHECK(connect().find("rank 2") != std::string::npos);
}
