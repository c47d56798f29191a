// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The host's side of every-batch balance: memory, publications, control, and failures of the device.
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/device_tables.hpp>
#include <ballast/cudart/follower_group.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/batch_balancer.cuh>
#include <ballast/dispatch/quota_dispatch.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/shares/quota_sources.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/transport/transport.hpp>

#include "support/random.hpp"
#include "support/simulated_device/batch_emulations.cuh"
#include "support/simulated_device/simulated_device.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <span>
#include <string>
#include <system_error>
#include <vector>

using namespace ballast;
using ballast_test::simulated::fail_next;

namespace {

constexpr index_t num_tokens = 700;
constexpr index_t top_k = 2;
constexpr index_t num_ranks = 3;
constexpr index_t num_logical = 12;

struct lone_rank {
  explicit lone_rank(bool warm_start = false)
      : balancer{stream.get(), where, 1, held, {.max_tokens = num_tokens, .top_k = top_k, .warm_start = warm_start}} {
    for (index_t layer = 0; layer < held.num_layers(); ++layer) {
      tables.publish(where, held, layer, stream.get()).or_throw();
    }
  }
  /// A batch of this rank's; the other ranks' counts are drawn. @return what the host says comes out
  std::vector<std::int32_t> draw() {
    for (auto& id : ids) { id = std::min(random.below(num_logical), random.below(num_logical)); }
    for (auto& count : counts) { count = random.below(500); }
    std::fill(counts.begin() + num_logical, counts.begin() + 2 * num_logical, 0);
    for (auto const id : ids) { ++counts[static_cast<std::size_t>(num_logical + id)]; }
    write(device_ids.data(), ids);
    write(device_counts.data(), counts);
    std::vector<index_t> tokens(num_logical);
    for (std::size_t i = 0; i < counts.size(); ++i) { tokens[i % num_logical] += counts[i]; }
    quota_solver solver;
    quota_sources sources;
    quota_dispatch dispatch;
    auto const row = balancer.rows().row(0);
    solver.solve(row, tokens, {}, parts);
    next_parts.resize(static_cast<std::size_t>(row.sizes().num_movable));
    solver.parts(next_parts);
    sources.assign(row, solver.quotas(), {std::span<index_t const>{counts}, num_ranks, num_logical}, 1);
    auto result = ids;
    dispatch.map<std::int32_t>(row, sources.ends(), 0, 0, result, result);
    return result;
  }
  [[nodiscard]] cudart::routing<std::int32_t> input() const { return {device_ids.data(), num_tokens, top_k}; }
  void enqueue() {
    auto const view = balancer.view();
    cudart::detail::launch_count(stream.get(), view, cudart::detail::cut(view, input()), true).or_throw();
    cudart::plan_and_dispatch(stream.get(), view, device_counts.data(), {}, tables.view(), 0, input(), physical.data())
        .or_throw();
  }
  [[nodiscard]] std::vector<std::int32_t> read() const {
    std::vector<std::int32_t> result(ids.size());
    cudart::to_status(cudaMemcpyAsync(result.data(), physical.data(), result.size() * sizeof result[0],
                                      cudaMemcpyDeviceToHost, stream.get()),
                      "cudaMemcpyAsync")
        .or_throw();
    cudart::to_status(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize").or_throw();
    return result;
  }
  template <class T>
  void write(T* to, std::vector<T> const& from) {
    cudart::to_status(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice, stream.get()),
                      "cudaMemcpyAsync")
        .or_throw();
    cudart::to_status(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize").or_throw();
  }

  ballast_test::generator random{23};
  topology where{{num_ranks, 1, 7, 0}};
  placement held = ballast_test::random_placement({2, num_logical, where.num_slots()}, random);
  cudart::stream stream = cudart::stream::create();
  cudart::device_tables<> tables{dispatch_tables{where, held.shape(), rank_id{1}, dispatch_mode::by_share}, where, 1};
  cudart::batch_balancer balancer;
  std::vector<index_t> parts;  ///< that the next batch starts from; empty: the shares in force
  std::vector<index_t> next_parts;
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(num_tokens * top_k);
  std::vector<index_t> counts = std::vector<index_t>(num_ranks * num_logical);
  cudart::device_memory<std::int32_t> device_ids = cudart::device_memory<std::int32_t>::create(num_tokens * top_k);
  cudart::device_memory<std::int32_t> physical = cudart::device_memory<std::int32_t>::create(num_tokens * top_k);
  cudart::device_memory<index_t> device_counts = cudart::device_memory<index_t>::create(num_ranks * num_logical);
};

void check_end() {
  CHECK(ballast_test::simulated::forget_failures() == 0);
  CHECK(ballast_test::simulated::to_text(ballast_test::simulated::violations()) == "");
}

}  // namespace

TEST_CASE("a captured batch goes by whatever placement was published before it is replayed") {
  {
    lone_rank self;
    static_cast<void>(self.read());
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    REQUIRE(cudaStreamBeginCapture(self.stream.get(), cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    self.enqueue();
    REQUIRE(cudaStreamEndCapture(self.stream.get(), &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&replay, graph, 0) == cudaSuccess);
    for (std::uint32_t batch = 1; batch <= 6; ++batch) {
      if (batch % 2 == 0) {
        self.held = ballast_test::random_placement({2, num_logical, self.where.num_slots()}, self.random);
        self.tables.publish(self.where, self.held, 0, self.stream.get()).or_throw();
        self.balancer.publish(self.where, self.held, 0).or_throw();
      }
      auto const wanted = self.draw();
      REQUIRE(cudaGraphLaunch(replay, self.stream.get()) == cudaSuccess);
      CHECK(self.read() == wanted);
      CHECK(self.balancer.statistics(0).exact == batch);
    }
    CHECK(cudaGraphExecDestroy(replay) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  }
  check_end();
}

TEST_CASE("control changes in stream order") {
  {
    lone_rank self;
    auto const wanted = self.draw();
    self.balancer.set_control({.on = 0}).or_throw();
    self.enqueue();
    auto resident = self.ids;
    dispatch_ids<std::int32_t>(self.tables.host().view(), 0, top_k, self.ids, resident);
    CHECK(self.read() == resident);
    CHECK(self.balancer.statistics(0).off == 1);
    self.balancer.set_control({}).or_throw();
    self.enqueue();
    CHECK(self.read() == wanted);
  }
  check_end();
}

TEST_CASE("with a warm start a batch starts from the last one's quotas, until a restart or another placement") {
  {
    lone_rank self{true};
    bool differed = false;
    for (int batch = 0; batch < 12; ++batch) {
      CAPTURE(batch);
      if (batch == 5) {
        self.balancer.restart(50).or_throw();
        self.parts.clear();
      }
      if (batch == 8) {
        self.held = ballast_test::random_placement({2, num_logical, self.where.num_slots()}, self.random);
        self.tables.publish(self.where, self.held, 0, self.stream.get()).or_throw();
        self.balancer.publish(self.where, self.held, 0).or_throw();
        self.parts.clear();
      }
      auto const wanted = self.draw();
      self.enqueue();
      CHECK(self.read() == wanted);
      differed = differed || (!self.parts.empty() && self.parts != self.next_parts);
      self.parts = self.next_parts;
    }
    CHECK(differed);
    fail_next("cudaMemsetAsync", cudaErrorInvalidValue);
    CHECK_FALSE(self.balancer.restart(90).ok());
  }
  check_end();
}

TEST_CASE("a store tells what batches of its follower come to, all layers together") {
  {
    lone_rank self;
    cudart::device_store<> store{
        self.where, 1, self.held, {.compute_stream = self.stream.get(), .follower = self.balancer.follower()}};
    REQUIRE(store.balanced_batches().has_value());
    CHECK(*store.balanced_batches() == batch_counters{});
    static_cast<void>(self.draw());
    for (int batch = 0; batch < 3; ++batch) { self.enqueue(); }
    self.balancer.set_control({.on = 0}).or_throw();
    self.enqueue();
    static_cast<void>(self.read());
    auto const told = *store.balanced_batches();
    CHECK(told.batches == 4);
    CHECK(told.exact == 3);
    CHECK(told.off == 1);
    auto const& layer = self.balancer.statistics(0);
    CHECK(told.planned == layer.max);
    CHECK(told.realised == layer.max);
    CHECK(told.resident == layer.resident);
    CHECK(told.mean == doctest::Approx(layer.total / 3.0));
    CHECK(told.planned >= told.mean);

    // As a device would leave it, of the other layer.
    cudart::batch_statistics other;
    other.batches = 7;
    other.late = 2;
    other.late_ranks_low = 1;
    other.late_ranks_high = 2;
    other.wait_nanoseconds = 900;
    self.balancer.view().host_statistics[1] = other;
    auto const both = *store.balanced_batches();
    CHECK(both.batches == 11);
    CHECK(both.late == 2);
    CHECK(both.late_ranks == (std::uint64_t{2} << 32 | 1));
    CHECK(both.longest_wait == 900);
    cudart::device_store<> const alone{self.where, 1, self.held, {.compute_stream = self.stream.get()}};
    CHECK_FALSE(alone.balanced_batches().has_value());
  }
  check_end();
}

TEST_CASE("a publication that fails says so and leaves the placement before in force") {
  {
    lone_rank self;
    auto const wanted = self.draw();
    auto const other = ballast_test::random_placement({2, num_logical, self.where.num_slots()}, self.random);
    fail_next("cudaMemcpyAsync", cudaErrorInvalidValue);
    CHECK_FALSE(self.balancer.publish(self.where, other, 0).ok());
    self.enqueue();
    CHECK(self.read() == wanted);
    CHECK(self.balancer.publish(self.where, other, 2).code() == errc::invalid_placement);
    self.balancer.publish(self.where, other, 0).or_throw();
    auto const then = self.draw();
    self.enqueue();
    CHECK(self.read() == then);
  }
  check_end();
}

TEST_CASE("a store hands on what it commits, and what it starts with") {
  {
    lone_rank self;
    auto const other = ballast_test::random_placement({2, num_logical, self.where.num_slots()}, self.random);
    cudart::device_store<> store{
        self.where, 1, other, {.compute_stream = self.stream.get(), .follower = self.balancer.follower()}};
    auto const at_start = self.draw();
    self.enqueue();
    CHECK(self.read() == at_start);
    store.commit(0, {}, self.held, 1).or_throw();
    auto const committed = self.draw();
    self.enqueue();
    CHECK(self.read() == committed);
    fail_next("cudaMemcpyAsync", cudaErrorInvalidValue);  // the store copies its rows by another call
    CHECK_FALSE(store.commit(0, {}, other, 2).ok());
  }
  check_end();
}

TEST_CASE("two batches that overlap have a balancer each, and one store tells both what it commits") {
  {
    lone_rank one;
    lone_rank two;
    auto const draw = [&] {
      return ballast_test::random_placement({2, num_logical, one.where.num_slots()}, one.random);
    };
    auto held = draw();
    cudart::follower_group both{{{}, one.balancer.follower(), two.balancer.follower()}};
    cudart::device_store<> store{
        one.where,
        1,
        held,
        {.compute_stream = one.stream.get(), .follower = both.follower(), .more_compute_streams = {two.stream.get()}}};
    for (int batch = 1; batch <= 3; ++batch) {
      CAPTURE(batch);
      auto const wanted = one.draw();
      auto const other = two.draw();
      one.enqueue();
      two.enqueue();
      held = draw();
      store.commit(0, {}, held, static_cast<epoch_t>(batch)).or_throw();
      CHECK(one.read() == wanted);
      CHECK(two.read() == other);
      CHECK(store.balanced_batches()->exact == 2 * batch);
      auto sum = one.balancer.counters();
      sum += two.balancer.counters();
      CHECK(*store.balanced_batches() == sum);
    }
    fail_next("cudaMemcpyAsync", cudaErrorInvalidValue, 1);  // the second balancer's
    CHECK_FALSE(store.commit(0, {}, held, 4).ok());
    cudart::follower_group nobody{{{}}};
    cudart::device_store<> const alone{
        one.where, 1, held, {.compute_stream = one.stream.get(), .follower = nobody.follower()}};
    CHECK_FALSE(alone.balanced_batches().has_value());
  }
  check_end();
}

TEST_CASE("physical ids of a batch may be of another type than the router's") {
  {
    lone_rank self;
    auto const narrow = self.draw();
    auto const wide = cudart::device_memory<std::int64_t>::create(narrow.size());
    auto const view = self.balancer.view();
    cudart::detail::launch_count(self.stream.get(), view, cudart::detail::cut(view, self.input()), true).or_throw();
    cudart::plan_and_dispatch(self.stream.get(), view, self.device_counts.data(), {}, self.tables.view(), 0,
                              self.input(), wide.data())
        .or_throw();
    std::vector<std::int64_t> found(narrow.size());
    cudart::to_status(cudaMemcpyAsync(found.data(), wide.data(), found.size() * sizeof found[0], cudaMemcpyDeviceToHost,
                                      self.stream.get()),
                      "cudaMemcpyAsync")
        .or_throw();
    cudart::to_status(cudaStreamSynchronize(self.stream.get()), "cudaStreamSynchronize").or_throw();
    CHECK(found == std::vector<std::int64_t>(narrow.begin(), narrow.end()));
    auto* const same = reinterpret_cast<std::int64_t*>(self.device_ids.data());
    auto const result = cudart::plan_and_dispatch(self.stream.get(), view, self.device_counts.data(), {},
                                                  self.tables.view(), 0, self.input(), same);
    CHECK(result.message().find("overlap") != std::string::npos);
  }
  check_end();
}

TEST_CASE("boards are refused by the rank that gave none or too little, and batches are not numbered from 0") {
  {
    lone_rank self;
    std::vector<segment> boards(num_ranks, self.balancer.board());
    auto const connect = [&] { return self.balancer.connect(std::span<segment const>{boards}); };
    boards[2].size -= 1;
    CHECK(connect().rank() == 2);
    boards[1].data = nullptr;
    CHECK(connect().rank() == 1);
    CHECK(self.balancer.view().boards == nullptr);
    // A dead rank needs none, until it is called live.
    auto survivors = self.where;
    survivors.set_live(2, false);
    boards.assign(num_ranks, self.balancer.board());
    boards[2] = {};
    self.balancer.publish(survivors, self.held, 0).or_throw();
    CHECK(connect().rank() == 2);  // layer 1 still counts on it
    self.balancer.publish(survivors, self.held, 1).or_throw();
    CHECK(connect().ok());
    auto const refused = self.balancer.publish(self.where, self.held, 0);
    CHECK(refused.code() == errc::invalid_topology);
    CHECK(refused.rank() == 2);
    boards.assign(num_ranks - 1, self.balancer.board());
    CHECK(connect().message().find("boards of 2 ranks, there are 3") != std::string::npos);
    boards.assign(num_ranks, self.balancer.board());
    CHECK(connect().ok());
    CHECK(self.balancer.publish(self.where, self.held, 0).ok());
    CHECK(self.balancer.view().boards != nullptr);
    CHECK(self.balancer.restart(0).message().find("batch 0") != std::string::npos);
    CHECK(self.balancer.restart(7).ok());
    CHECK(self.balancer.publish(self.where, self.held, 2).message().find("layer 2") != std::string::npos);
  }
  check_end();
}

TEST_CASE("a device without memory for it is told of at construction") {
  topology const where{{num_ranks, 1, 7, 0}};
  auto const stream = cudart::stream::create();
  auto const held = trivial_placement({2, num_logical, where.num_slots()});
  for (char const* const call : {"cudaMalloc", "cudaMallocHost", "cudaMemcpyAsync"}) {
    CAPTURE(call);
    fail_next(call, cudaErrorMemoryAllocation);
    CHECK_THROWS_AS(static_cast<void>(cudart::batch_balancer{
                        stream.get(), where, 1, held, {.max_tokens = num_tokens, .top_k = top_k}}),
                    std::system_error);
  }
  check_end();
}
