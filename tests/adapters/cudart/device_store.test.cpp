// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/cudart/profiling.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/check_complaints.hpp"
#include "support/gpu.hpp"
#include "support/gpu_member.hpp"
#include "support/group_runner.hpp"
#include "support/local_copy_runner.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

ballast_test::gpu_only const needs_gpu;
using ballast_test::run_ranks;
using transport = cudart::peer_copy<cudart::local_peers::member>;
using member = ballast_test::gpu_member<transport, in_process_endpoint>;

/// Behind the marks for profilers, which hand every event on.
class commit_log final : public observer {
public:
  struct entry {
    std::uint64_t step = 0;
    std::vector<index_t> layers;
    nanoseconds_t host = 0;
    nanoseconds_t receive = 0;
    nanoseconds_t commit = 0;
  };
  void on_event(ballast::event const& what) override {
    entry const noted{
        what.step, {what.layers.begin(), what.layers.end()}, what.duration, what.device_receive, what.device_commit};
    if (what.kind == event_kind::commit) { commits.push_back(noted); }
    if (what.kind == event_kind::device_times) { times.push_back(noted); }
  }
  std::vector<entry> commits;
  std::vector<entry> times;  // of the device
};

std::vector<std::string> rebalance(index_t num_ranks, rebalancer_options const& options,
                                   cudart::peer_copy_options wires = {}) {
  topology const where{{num_ranks, 1, 6, 1}};
  return run_ranks(num_ranks, wires, [&](in_process_endpoint& control, transport& copies, ballast_test::law_log& log) {
    commit_log seen;
    cudart::profiler_marks marks{&seen};
    member self{where, ballast_test::spread_placement(where, 3), copies, control, {copies.copy_stream()}, options,
                &marks};
    self.run(14, log);
    log.expect(!seen.commits.empty(), "no commit was observed");
    log.expect(seen.times.empty(), "times of the device, which nobody wanted");
    static_cast<void>(control.vote(true, ballast_test::patience));  // nobody's memory goes away before all are done
  });
}

/// A group and its weights, as another engine's tests have them.
struct engine_shape {
  index_t num_ranks;
  index_t num_layers;
  index_t slots_per_rank;
  index_t num_logical;
  std::vector<ballast_test::tensor_shape> tensors;
  index_t layers_per_step = 1;
};

/// From one random placement to others, each with random redundancy; every byte is compared after every change, also
/// after one to the placement in force, which moves nothing.
std::vector<std::string> apply_random_placements(engine_shape const& shape) {
  using namespace ballast_test;
  topology const where{{shape.num_ranks, 1, shape.slots_per_rank, 0}};
  placement_shape const sizes{shape.num_layers, shape.num_logical, where.num_slots()};
  return run_ranks(shape.num_ranks, {}, [&](in_process_endpoint& control, transport& copies, law_log& log) {
    generator random{static_cast<std::uint64_t>(where.num_slots()) * 100 +
                     static_cast<std::uint64_t>(sizes.num_layers)};
    member self{where,         random_placement(sizes, random), copies, control, {copies.copy_stream()}, {}, nullptr,
                shape.tensors, {shape.layers_per_step}};
    log.expect_ok(self.moved.start(), "start");
    for (int i = 0; i < 3 && log.complaints().empty(); ++i) {
      auto const target = random_placement(sizes, random);
      for (bool const again : {false, true}) {
        auto const epochs = self.moved.epoch(0);
        log.expect_ok(self.moved.apply(target), "apply");
        log.expect(!again || self.moved.epoch(0) == epochs, "a placement already in force was committed again");
        log.expect(self.moved.current() == target, "another placement is in force");
        auto const error = self.weights.first_error(target);
        log.expect(error.empty(), "after change ", i, " wrong at ", error);
      }
    }
    static_cast<void>(control.vote(true, patience));
  });
}

/// Rebalances of so many layers a step that begin after a warm-up and are switched off and on in between. While they
/// are off no byte changes; after every step each slot holds the right expert.
std::vector<std::string> update_on_some_steps(engine_shape const& shape, int warm_up, int num_steps) {
  using namespace ballast_test;
  topology const where{{shape.num_ranks, 1, shape.slots_per_rank, 0}};
  auto const initial = trivial_placement({shape.num_layers, shape.num_logical, where.num_slots()});
  return run_ranks(shape.num_ranks, {}, [&](in_process_endpoint& control, transport& copies, law_log& log) {
    member self{where,
                initial,
                copies,
                control,
                {copies.copy_stream()},
                {.interval = 1},
                nullptr,
                shape.tensors,
                {shape.layers_per_step}};
    log.expect_ok(self.moved.start(), "start");
    for (int step = 0; step < num_steps && log.complaints().empty(); ++step) {
      bool const updates = step >= warm_up && step % 5 != 4;
      if (updates && !self.moved.enabled()) { self.moved.enable(); }
      if (!updates) { self.moved.disable(); }
      auto const before = self.moved.current();
      log.expect_ok(self.moved.on_forward_pass_end(), "on_forward_pass_end");
      log.expect(updates || self.moved.current() == before, "step ", step, " changed what was to stay");
      auto const error = self.weights.first_error(self.moved.current());
      log.expect(error.empty(), "after step ", step, " wrong at ", error);
    }
    log.expect(self.moved.current() != initial, "nothing moved");
    static_cast<void>(control.vote(true, patience));
  });
}

/// A target and a draft model of other sizes, in turn on one transport; every byte of both is compared after every
/// step.
std::vector<std::string> rebalance_two_models(index_t num_ranks, bool asynchronous) {
  using namespace ballast_test;
  topology const where{{num_ranks, 1, 6, 1}};
  topology const draft_where{{num_ranks, 1, 4, 0}};
  rebalancer_options const options{.interval = 3, .asynchronous = asynchronous};
  return run_ranks(num_ranks, {}, [&](in_process_endpoint& control, transport& copies, law_log& log) {
    member target{where, spread_placement(where, 3), copies, control, {copies.copy_stream()}, options};
    member draft{draft_where,
                 spread_placement(draft_where, 2),
                 copies,
                 control,
                 {copies.copy_stream()},
                 options,
                 nullptr,
                 {{50'000, 50'000}, {100'000, 100'352}, {77, 80}}};
    member* const models[] = {&target, &draft};
    for (auto* model : models) {
      if (!log.expect_ok(model->moved.start(), "start")) { return; }
    }
    std::vector<std::uint64_t> all(static_cast<std::size_t>(num_ranks));
    for (int step = 0; step < 60; ++step) {
      for (auto* model : models) {
        std::uint64_t const mine[] = {model->moved.outgoing()};
        if (!log.expect_ok(control.all_gather(mine, all, patience), "exchange")) { return; }
        if (!log.expect_ok(model->moved.incoming(all), "incoming")) { return; }
      }
      for (auto* model : models) {
        if (!model->run_step(step, log)) { return; }
      }
    }
    for (auto* model : models) { model->expect_moves(log); }
    static_cast<void>(control.vote(true, patience));
  });
}

/// One rank is late for a call by more than the timeout, or its copies are; then all resume, and go on moving experts
/// to the right slots.
std::vector<std::string> heal_after_one_delay(index_t num_ranks, bool asynchronous, bool of_copies) {
  using namespace ballast_test;
  topology const where{{num_ranks, 1, 6, 1}};
  nanoseconds_t const timeout = 500 * millisecond;
  rebalancer_options const options{.interval = 2, .timeout = timeout, .asynchronous = asynchronous};
  std::barrier<> all_here{num_ranks};
  std::atomic<index_t> num_back = 0;
  return run_ranks(num_ranks, {}, [&](in_process_endpoint& control, transport& copies, law_log& log) {
    member self{where, spread_placement(where, 3), copies, control, {copies.copy_stream()}, options};
    log.expect_ok(self.moved.start(), "start");
    std::vector<std::uint64_t> all(static_cast<std::size_t>(num_ranks));
    auto const exchange = [&] {
      std::uint64_t const mine[] = {self.moved.outgoing()};
      static_cast<void>(control.all_gather(mine, all, timeout));
      return asynchronous ? self.moved.incoming(all) : status{};
    };
    bool has_failed = false;
    std::optional<busy_stream> stands;
    auto const pause = asynchronous ? 40 * millisecond : 0;  // of a pass: nobody waits for late copies
    for (int step = 0; step < 70 && !has_failed; ++step) {
      bool const is_late =
          control.rank() == num_ranks - 1 && step > 6 && self.moved.state() == rebalancer_state::moving;
      if (is_late && of_copies && !stands) { stands.emplace(copies.copy_stream()); }
      if (is_late && !of_copies) { sleep_for(3 * timeout); }
      sleep_for(pause);
      has_failed = !exchange().ok() || !self.moved.on_forward_pass_end().ok();
    }
    log.expect(has_failed, "nobody noticed");
    stands.reset();
    for (int attempt = 0; attempt < 5; ++attempt) {
      all_here.arrive_and_wait();
      num_back = 0;
      all_here.arrive_and_wait();
      auto const result = self.moved.resume();
      if (result.ok()) { ++num_back; }
      all_here.arrive_and_wait();
      if (num_back == num_ranks) { break; }
      log.expect(attempt < 4, "resume failed to the last: ", result.message());
    }
    auto const before = self.moved.epoch(0);
    for (int step = 0; step < 30; ++step) {
      if (!log.expect_ok(exchange(), "incoming after resume")) { break; }
      if (!self.run_step(step, log)) { break; }
    }
    log.expect(self.moved.epoch(0) >= before + 2, "layer 0 moved ", self.moved.epoch(0) - before, " times afterwards");
    all_here.arrive_and_wait();
  });
}

/// One rank's store over plain memory, and what hooks and commits did to it.
struct single_store {
  single_store() { store.add(0, "w", weights, 64).or_throw(); }
  [[nodiscard]] std::uint64_t checksum_of(std::byte* slot) {
    segment const bytes{slot, 64};
    std::uint64_t sum = 0;
    store.checksum({&bytes, 1}, sum).or_throw();
    return sum;
  }
  cudart::stream compute = cudart::stream::create();
  ballast_test::gpu_memory memory;
  std::byte* weights = memory.allocate(256);
  topology where{{1, 1, 4, 0}};
  placement initial = trivial_placement({1, 4, 4});
  std::vector<index_t> hooked;
  cudart::device_store<> store{where,
                               0,
                               initial,
                               {.compute_stream = compute.get(),
                                .staging_limit = 1000,
                                .hook = {[](void* context, index_t, index_t slot, cudaStream_t) {
                                           static_cast<std::vector<index_t>*>(context)->push_back(slot);
                                           return status{};
                                         },
                                         &hooked}}};
};

}  // namespace

TEST_CASE("every slot holds the expert that the placement names, after every step") {
  for (auto const size : ballast_test::rank_counts({1, 2, 4, 8})) {
    CAPTURE(size);
    ballast_test::check_complaints(rebalance(size, {.interval = 2}));
  }
}

TEST_CASE("two models share a transport, and each keeps its own experts") {
  for (auto const size : ballast_test::rank_counts({2, 4})) {
    for (bool const asynchronous : {false, true}) {
      CAPTURE(size);
      CAPTURE(asynchronous);
      ballast_test::check_complaints(rebalance_two_models(size, asynchronous));
    }
  }
}

TEST_CASE("one late rank, or late copies, and one resume: the same transport moves on") {
  auto const size = ballast_test::rank_count(3, 2);
  for (bool const asynchronous : {false, true}) {
    for (bool const of_copies : {false, true}) {
      CAPTURE(asynchronous);
      CAPTURE(of_copies);
      ballast_test::check_complaints(heal_after_one_delay(size, asynchronous, of_copies));
    }
  }
}

TEST_CASE("with checksums, in pieces, and through the host") {
  ballast_test::check_complaints(rebalance(4, {.interval = 2, .max_message_bytes = 30'000, .verify = true}));
  auto const never = [](int, int) { return false; };
  ballast_test::check_complaints(
      rebalance(3, {.interval = 2}, {.num_streams = 3, .can_access = never, .bounce_bytes = 9'999}));
}

TEST_CASE("the group shapes of vLLM's tests: every slot holds the right expert") {
  std::vector<ballast_test::tensor_shape> const floats{{128, 128}, {256, 256}};
  for (auto const& [ranks, layers, slots, experts] : std::vector<std::array<index_t, 4>>{
           {2, 1, 2, 3}, {2, 2, 3, 4}, {2, 4, 8, 16}, {4, 1, 2, 6}, {4, 2, 2, 5}, {4, 8, 8, 16}, {2, 2, 2, 3}}) {
    CAPTURE(ranks);
    CAPTURE(layers);
    ballast_test::check_complaints(apply_random_placements({ranks, layers, slots, experts, floats}));
  }
}

// Their weight is ten rows of 1024 floats, 2048 floats apart. The last of their cases has 61 layers; the first and the
// last steps of a sweep over six show the same.
TEST_CASE("the group shapes of TensorRT-LLM's tests: every slot holds the right expert after every step") {
  std::vector<ballast_test::tensor_shape> const rows(10, {4096, 8192});
  ballast_test::check_complaints(update_on_some_steps({2, 2, 4, 8, rows, 1}, 2, 12));
  ballast_test::check_complaints(update_on_some_steps({4, 3, 4, 16, rows, 2}, 1, 12));
  ballast_test::check_complaints(update_on_some_steps({8, 5, 4, 32, rows, 3}, 0, 12));
  ballast_test::check_complaints(update_on_some_steps({36, 6, 8, 256, rows, 5}, 3, 8));
}

TEST_CASE("a store needs a created stream") {
  CHECK_THROWS_AS((cudart::device_store<>{topology{}, 0, trivial_placement({1, 1, 1}), {}}), std::system_error);
}

TEST_CASE("a store refuses what does not fit its topology") {
  auto const compute = cudart::stream::create();
  topology const where{{2, 1, 4, 1}};
  auto const make = [&](index_t rank, placement const& initial) {
    cudart::device_store<> const store{where, rank, initial, {.compute_stream = compute.get()}};
    cudart::device_store<invariant_dispatch_tables> const invariant{
        where, rank, initial, {.compute_stream = compute.get(), .dispatch = dispatch_mode::round_robin}};
  };
  CHECK_THROWS_AS(make(2, trivial_placement({1, 6, 8})), std::system_error);
  CHECK_THROWS_AS(make(-1, trivial_placement({1, 6, 8})), std::system_error);
  CHECK_THROWS_AS(make(0, trivial_placement({1, 6, 12})), std::system_error);

  cudart::device_store<> store{where, 1, trivial_placement({2, 6, 8}), {.compute_stream = compute.get()}};
  CHECK(store.rank() == 1);
  CHECK(store.num_layers() == 2);
  CHECK(store.slots_per_rank() == 4);
  for (index_t const layer : {-1, 2}) {
    auto const refused = store.commit(layer, {}, trivial_placement({2, 6, 8}), 1);
    CHECK(refused.code() == errc::invalid_placement);
    CHECK(refused.message().find(std::to_string(layer)) != std::string::npos);
  }
  CHECK(store.commit(0, {}, trivial_placement({2, 7, 8}), 1).code() == errc::invalid_placement);
  CHECK(store.set_topology(topology{{4, 1, 4, 1}}).code() == errc::invalid_topology);
  auto survivors = where;
  survivors.set_live(0, false);
  CHECK(store.set_topology(survivors).ok());
}

TEST_CASE("a store of no layers is no failure") {
  auto const compute = cudart::stream::create();
  topology const where{{1, 1, 4, 0}};
  cudart::device_store<> store{where, 0, trivial_placement({0, 4, 4}), {.compute_stream = compute.get()}};
  CHECK(store.num_layers() == 0);
  CHECK(store.prepare().ok());
  CHECK(!store.add(0, "w", &store, 64).ok());
}

TEST_CASE("impossible tensors are refused before the driver is asked about their memory") {
  auto const compute = cudart::stream::create();
  topology const where{{1, 1, 4, 0}};
  for (bool const exported : {false, true}) {
    CAPTURE(exported);
    cudart::device_store<> store{
        where, 0, trivial_placement({1, 4, 4}), {.compute_stream = compute.get(), .exported = exported}};
    ballast_test::gpu_memory memory;
    auto* const base = memory.allocate(256);
    auto const is_refused = [&](char const* name, void* at, std::size_t bytes, std::optional<std::ptrdiff_t> stride,
                                char const* why) {
      auto const refused = store.add(0, name, at, bytes, stride);
      CHECK(refused.code() == errc::invalid_weights);
      CAPTURE(refused.message());
      CHECK(refused.message().find(why) != std::string::npos);
    };
    is_refused("w", base, 64, 0, "stride 0");
    is_refused("w", base, 64, -64, "-64");
    is_refused("w", base, 64, 63, "63");
    is_refused("w", base, 0, {}, "0 bytes");
    is_refused("w", nullptr, 64, {}, "null");
    is_refused("w", base, ~std::size_t{0} - 8, {}, "address space");
    is_refused("w", base, 64, std::ptrdiff_t{1} << 62, "address space");
    CHECK(store.regions().empty());
    CHECK(store.add(0, "w", base, 64).ok());
  }
}

TEST_CASE("bytes that the device cannot read are a failure, not a checksum") {
  single_store self;
  constexpr std::size_t bytes = std::size_t{64} << 20;
  std::byte* freed = nullptr;
  {
    ballast_test::gpu_memory shortly;
    freed = shortly.allocate(bytes);
  }
  std::uint64_t sum = 17;
  for (segment const gone : {segment{freed, 4096}, segment{nullptr, 64}}) {
    std::vector<segment> const both{{self.weights, 64}, gone};
    auto const refused = self.store.checksum(both, sum);
    CHECK(!refused.ok());
    CHECK(!refused.message().empty());
    CHECK(sum == 17);
  }
  CHECK(self.checksum_of(self.weights) == self.checksum_of(self.weights));
}

TEST_CASE("staging grows to its limit and no further") {
  single_store self;
  CHECK(self.store.reserve_staging(600).ok());
  auto* const first = self.store.staging();
  CHECK(self.store.reserve_staging(500).ok());
  CHECK(self.store.staging() == first);
  CHECK(self.store.reserve_staging(1000).ok());
  CHECK(self.store.staging_high_water() == 1000);
  auto const refused = self.store.reserve_staging(1001);
  CHECK(refused.code() == errc::out_of_memory);
  CHECK(refused.message().find("1001") != std::string::npos);
}

TEST_CASE("phases of a commit run one after the other, and the hook sees the slots that changed") {
  single_store self;
  std::vector<std::byte> bytes(256);
  for (std::size_t i = 0; i < bytes.size(); ++i) { bytes[i] = static_cast<std::byte>(i / 64); }
  self.memory.write(self.weights, bytes);
  REQUIRE(self.store.reserve_staging(64).ok());
  auto* const staging = self.store.staging();
  auto const slot = [&](int i) { return self.weights + std::ptrdiff_t{64} * i; };
  // Slots 0 and 1 trade places by way of staging, slot 3 takes what slot 0 gets.
  std::vector<byte_copy> const copies{
      {staging, slot(0), 64, 0}, {slot(0), slot(1), 64, 1}, {slot(1), staging, 64, 2}, {slot(3), slot(0), 64, 2}};
  CHECK(self.store.commit(0, copies, self.initial, 1).ok());
  ballast_test::check_cuda(cudaStreamSynchronize(self.compute.get()), "cudaStreamSynchronize");
  self.memory.read(self.weights, bytes);
  CHECK(bytes[0] == std::byte{1});
  CHECK(bytes[64] == std::byte{0});
  CHECK(bytes[128] == std::byte{2});
  CHECK(bytes[192] == std::byte{1});
  CHECK(self.hooked == std::vector<index_t>{0, 1, 3});
  CHECK(self.checksum_of(slot(0)) == self.checksum_of(slot(3)));
  CHECK(self.checksum_of(slot(0)) != self.checksum_of(slot(1)));
}

TEST_CASE("a commit without copies changes the tables only") {
  single_store self;
  auto const before = self.store.view();
  placement next;
  REQUIRE(next.assign({1, 4, 4}, std::vector<index_t>{3, 2, 1, 0}).ok());
  CHECK(self.store.commit(0, {}, next, 1).ok());
  ballast_test::check_cuda(cudaStreamSynchronize(self.compute.get()), "cudaStreamSynchronize");
  auto const after = self.store.view();
  CHECK(after.ranges == before.ranges);
  CHECK(after.entries == before.entries);
  std::vector<dispatch_entry> entries(4);
  ballast_test::check_cuda(cudaMemcpy(entries.data(), after.entries, 32, cudaMemcpyDeviceToHost), "cudaMemcpy");
  CHECK(std::ranges::equal(entries, self.store.tables().host().entries()));
  CHECK(self.hooked.empty());
}

TEST_CASE("memory that other processes cannot open is refused by layer, tensor and remedy") {
  auto const compute = cudart::stream::create();
  topology const where{{1, 1, 4, 0}};
  cudart::device_store<> store{
      where, 0, trivial_placement({2, 4, 4}), {.compute_stream = compute.get(), .exported = true}};
  ballast_test::gpu_memory memory;
  CHECK(store.add(1, "w13", memory.allocate(256), 64).ok());
  void* pooled = nullptr;
  ballast_test::check_cuda(cudaMallocAsync(&pooled, 4096, compute.get()), "cudaMallocAsync");
  auto const refused = store.add(1, "w13_scale", pooled, 64);
  CHECK(refused.code() == errc::invalid_weights);
  CHECK(refused.message().find("'w13_scale' of layer 1") != std::string::npos);
  CHECK(refused.message().find("cudaMalloc") != std::string::npos);
  ballast_test::check_cuda(cudaFreeAsync(pooled, compute.get()), "cudaFreeAsync");
}

TEST_CASE("the observer hears what each chunk took on the device, one call later") {
  auto const num_ranks = ballast_test::rank_count(4, 2);
  topology const where{{num_ranks, 1, 6, 1}};
  ballast_test::check_complaints(run_ranks(
      num_ranks, {.timed = true}, [&](in_process_endpoint& control, transport& copies, ballast_test::law_log& log) {
        commit_log seen;
        cudart::profiler_marks marks{&seen};
        member self{where,
                    ballast_test::spread_placement(where, 3),
                    copies,
                    control,
                    {copies.copy_stream()},
                    {.interval = 2},
                    &marks,
                    ballast_test::odd_tensors(),
                    {2},
                    true};
        self.run(14, log);  // waits for the device after every call
        bool const last_has_committed = !seen.commits.empty() && seen.commits.back().step == self.moved.step();
        log.expect(seen.times.size() + (last_has_committed ? 1 : 0) == seen.commits.size(), seen.times.size(),
                   " times of ", seen.commits.size(), " chunks");
        nanoseconds_t received = 0;
        for (std::size_t i = 0; i < seen.times.size(); ++i) {
          auto const& times = seen.times[i];
          auto const& commit = seen.commits.at(i);
          log.expect(times.step == commit.step && times.layers == commit.layers, "chunk ", i, " is another");
          log.expect(times.commit > 0, "chunk ", i, " was committed in ", times.commit, " ns");
          log.expect(times.receive >= 0 && times.receive < commit.host + 100'000, "chunk ", i, " was received in ",
                     times.receive, " ns, the call took ", commit.host);
          received += times.receive;
        }
        log.expect(received > 0, "everything was received in no time");
        static_cast<void>(control.vote(true, ballast_test::patience));
      }));
}

TEST_CASE("a commit waits for no pass, whenever its layer and others were committed before") {
  auto const compute = cudart::stream::create();
  topology const where{{1, 1, 4, 0}};
  auto const initial = trivial_placement({2, 4, 4});
  cudart::device_store<> store{where, 0, initial, {.compute_stream = compute.get()}};
  CHECK(store.commit(1, {}, initial, 1).ok());
  ballast_test::check_cuda(cudaStreamSynchronize(compute.get()), "cudaStreamSynchronize");
  ballast_test::busy_stream pass{compute.get()};
  CHECK(store.commit(0, {}, initial, 1).ok());
  CHECK(store.commit(1, {}, initial, 2).ok());
  CHECK(pass.release());
}

TEST_CASE("commits can be timed on the device") {
  auto const compute = cudart::stream::create();
  topology const where{{1, 1, 4, 0}};
  auto const initial = trivial_placement({1, 4, 4});
  cudart::device_store<> store{where, 0, initial, {.compute_stream = compute.get(), .timed = true}};
  CHECK(store.times_commits());
  for (int round = 0; round < 3; ++round) {  // the first makes events, the others use them again
    CHECK(store.take_commit_time() == not_measured);
    for (epoch_t commit = 1; commit <= 2; ++commit) { CHECK(store.commit(0, {}, initial, commit).ok()); }
    ballast_test::check_cuda(cudaStreamSynchronize(compute.get()), "cudaStreamSynchronize");
    CHECK(store.take_commit_time() > 0);
    CHECK(store.take_commit_time() > 0);
  }
  CHECK(store.take_commit_time() == not_measured);
}
