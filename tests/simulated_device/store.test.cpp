// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What the device store does beside a stream that stands, a limit, a transport without streams, and a capture.
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/transport/in_process.hpp>

#include "simulated_device.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <type_traits>
#include <vector>

using namespace ballast;
namespace simulated = ballast_test::simulated;

namespace {

constexpr nanoseconds_t milliseconds = 1'000'000;
constexpr std::size_t expert = 4096;
constexpr index_t num_layers = 2;
topology const where{{1, 1, 4, 0}};
placement const initial = trivial_placement({num_layers, 4, 4});

void in_virtual_time(std::function<void()> const& body) {
  simulated::machine_options options;
  options.virtual_time = true;
  simulated::reset(options);
  simulated::run_ranks(1, [&](int) { body(); });
  CHECK(simulated::to_text(simulated::take_violations()) == "");
}

struct engine {
  explicit engine(cudart::device_store_options options = {}) {
    options.compute_stream = compute.get();
    store = std::make_unique<cudart::device_store<>>(where, 0, initial, options);
    for (index_t layer = 0; layer < num_layers; ++layer) {
      weights.push_back(cudart::device_memory<std::byte>::create(4 * expert));
      store->add(layer, "w", weights.back().data(), expert).or_throw();
    }
  }
  /// Exchange two experts of a layer by way of staging.
  status commit(index_t layer, placement const& tables, epoch_t epoch) {
    auto* const first = weights[static_cast<std::size_t>(layer)].data();
    byte_copy const copies[] = {{store->staging(), first, expert, 0},
                                {first, first + expert, expert, 1},
                                {first + expert, store->staging(), expert, 2}};
    return store->commit(layer, copies, tables, epoch);
  }
  cudart::stream compute = cudart::stream::create();
  std::vector<cudart::device_memory<std::byte>> weights;
  std::unique_ptr<cudart::device_store<>> store;
};

[[nodiscard]] std::int64_t allocations() {
  return simulated::num_calls("cudaMalloc") + simulated::num_calls("cudaMallocHost") +
         simulated::num_calls("cudaMallocAsync");
}

/// A transport that does not tell on which streams it copies.
struct silent_transport {
  [[nodiscard]] index_t rank() const noexcept { return 0; }
  [[nodiscard]] index_t num_ranks() const noexcept { return 2; }
  [[nodiscard]] status start(std::span<outgoing_message const>, std::span<incoming_message const>) { return {}; }
  [[nodiscard]] transfer_state poll() { return transfer_state::idle; }
  [[nodiscard]] status wait(nanoseconds_t) { return {}; }
};
/// One of an engine's own, with one stream.
struct plain_transport : silent_transport {
  cudaStream_t stream = nullptr;
  [[nodiscard]] cudaStream_t copy_stream() const noexcept { return stream; }
};

}  // namespace

TEST_CASE("three commits of a layer behind one pass that stands wait for nothing") {
  in_virtual_time([] {
    engine self;
    self.store->warm_up().or_throw();
    auto pass = std::make_unique<simulated::held_stream>(self.compute.get());
    simulated::forget_waits();
    auto const begin = simulated::now();
    for (epoch_t epoch = 1; epoch <= 7; ++epoch) { self.commit(0, initial, epoch).or_throw(); }
    self.commit(1, initial, 1).or_throw();
    CHECK(simulated::calls_that_waited().empty());
    CHECK(simulated::now() - begin < 10 * milliseconds);
    pass.reset();
    REQUIRE(cudaStreamSynchronize(self.compute.get()) == cudaSuccess);
    self.commit(0, initial, 8).or_throw();
  });
}

TEST_CASE("tables of many layers go out in as many calls as those of one, and are the same") {
  in_virtual_time([] {
    constexpr index_t many = 58;
    topology const group{{8, 1, 36, 1}};
    ballast_test::generator random{3};
    auto const old = ballast_test::random_placement({many, 256, group.num_slots()}, random);
    auto fresh = ballast_test::random_placement(old.shape(), random);
    fresh.make_shares_even();
    auto const compute = cudart::stream::create();
    cudart::device_store_options const options{
        .compute_stream = compute.get(), .dispatch = dispatch_mode::by_share, .timed = true};
    cudart::device_store<> together{group, 3, old, options};
    cudart::device_store<> apart{group, 3, old, options};
    std::vector<index_t> layers;
    for (index_t layer = 0; layer < many; ++layer) {
      if (layer % 5 != 2) { layers.push_back(layer); }
    }
    std::vector<epoch_t> const epochs(layers.size(), 1);
    auto const calls = [] {
      return simulated::num_calls("cudaMemcpyBatchAsync") + simulated::num_calls("cudaMemcpyAsync") +
             simulated::num_calls("cudaEventRecord");
    };
    auto before = calls();
    together.commit(0, {}, fresh, 1).or_throw();
    auto const of_one = calls() - before;
    before = calls();
    together.commit_tables(layers, fresh, epochs).or_throw();
    CHECK(calls() - before == of_one);
    for (auto const layer : layers) { apart.commit(layer, {}, fresh, 1).or_throw(); }
    REQUIRE(cudaStreamSynchronize(compute.get()) == cudaSuccess);
    auto const read = [](auto const* from, index_t width) {
      std::vector<std::remove_cvref_t<decltype(*from)>> all(static_cast<std::size_t>(many * width));
      REQUIRE(cudaMemcpy(all.data(), from, all.size() * sizeof all[0], cudaMemcpyDeviceToHost) == cudaSuccess);
      return all;
    };
    CHECK((read(together.view().ranges, 256) == read(apart.view().ranges, 256)));
    CHECK((read(together.view().entries, group.num_slots()) == read(apart.view().entries, group.num_slots())));
    CHECK((read(together.tables().local_map(), 36) == read(apart.tables().local_map(), 36)));
    int times = 0;
    while (together.take_commit_time() >= 0) { ++times; }
    CHECK(times == 2);
    // Copies of a transport start behind them.
    auto const copies = cudart::stream::create();
    plain_transport wires;
    wires.stream = copies.get();
    together.connect(wires).or_throw();
    together.prepare().or_throw();
    simulated::held_stream const pass{compute.get()};
    together.commit_tables(layers, old, epochs).or_throw();
    together.prepare().or_throw();
    CHECK(copies.query() == cudaErrorNotReady);
    // Nothing happens where one of them is wrong, or there are none.
    before = calls();
    layers.push_back(many);
    CHECK(together.commit_tables(layers, old, std::vector<epoch_t>(layers.size(), 1)).code() ==
          errc::invalid_placement);
    CHECK(together.commit_tables({}, old, {}).ok());
    CHECK(calls() == before);
  });
}

TEST_CASE("a checksum waits for the commits, not for the pass behind them, and never beyond the timeout") {
  in_virtual_time([] {
    engine self;
    self.store->set_timeout(5 * milliseconds);
    self.store->warm_up().or_throw();
    segment const part{self.weights[0].data(), expert};
    std::uint64_t before = 0;
    self.store->checksum({&part, 1}, before).or_throw();
    {
      simulated::held_stream const pass{self.compute.get()};
      std::uint64_t sum = 0;
      self.store->checksum({&part, 1}, sum).or_throw();
      CHECK(sum == before);
      self.commit(0, initial, 1).or_throw();
      sum = 7;
      auto const begin = simulated::now();
      CHECK(self.store->checksum({&part, 1}, sum).code() == errc::deadline_exceeded);
      CHECK(sum == 7);
      CHECK(simulated::now() - begin < 6 * milliseconds);
    }
    std::uint64_t sum = 0;
    self.store->checksum({&part, 1}, sum).or_throw();
    CHECK(sum == before);
  });
}

TEST_CASE("staging is allocated once, by start, never from a pool, and stays within the limit") {
  in_virtual_time([] {
    engine self{{.staging_limit = std::size_t{1} << 20}};
    self.store->warm_up().or_throw();
    CHECK(self.store->staging_high_water() == std::size_t{num_layers} * 4 * expert);
    auto const before = allocations();
    for (std::size_t experts = 1; experts <= 8; ++experts) { self.store->reserve_staging(experts * expert).or_throw(); }
    self.commit(0, initial, 1).or_throw();
    CHECK(allocations() == before);
    CHECK(simulated::num_calls("cudaMallocAsync") == 0);
  });
  in_virtual_time([] {
    engine self{{.staging_limit = 2 * expert}};
    self.store->warm_up().or_throw();
    CHECK(self.store->staging_high_water() == 2 * expert);
    CHECK(self.store->reserve_staging(2 * expert + 1).code() == errc::out_of_memory);
  });
}

TEST_CASE("memory that there is not is found by start") {
  in_virtual_time([] {
    engine self;
    simulated::fail_next("cudaMalloc", cudaErrorMemoryAllocation);
    auto const result = self.store->warm_up();
    CHECK(result.code() == errc::out_of_memory);
    CHECK(result.message().find("staging_limit") != std::string::npos);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    self.store->warm_up().or_throw();
  });
}

TEST_CASE("the engine's own staging is used as it is") {
  in_virtual_time([] {
    auto mine = cudart::device_memory<std::byte>::create(2 * expert);
    {
      engine self{{.staging = {mine.data(), 2 * expert}}};
      auto const before = simulated::num_calls("cudaMalloc");
      self.store->warm_up().or_throw();
      CHECK(simulated::num_calls("cudaMalloc") == before);
      CHECK(self.store->staging() == mine.data());
      CHECK(self.store->staging_limit() == 2 * expert);
      self.store->reserve_staging(2 * expert).or_throw();
      CHECK(self.store->reserve_staging(3 * expert).code() == errc::out_of_memory);
    }
    CHECK_THROWS_AS((engine{{.staging = {mine.data() + 1, expert}}}), std::system_error);
    CHECK_THROWS_AS((engine{{.staging = {mine.data(), 0}}}), std::system_error);
    CHECK_THROWS_AS((engine{{.staging = {nullptr, expert}}}), std::system_error);
  });
}

TEST_CASE("default streams are refused as compute stream") {
  in_virtual_time([] {
    for (auto* const stream : {cudaStream_t{nullptr}, cudaStreamLegacy, cudaStreamPerThread}) {
      CHECK_THROWS_AS((cudart::device_store<>{where, 0, initial, {.compute_stream = stream}}), std::system_error);
    }
  });
}

TEST_CASE("a transport that does not tell its streams is refused, with the remedy, unless the options name them") {
  in_virtual_time([] {
    engine self;
    silent_transport const silent;
    auto const refused = self.store->connect(silent);
    CHECK(refused.code() == errc::invalid_option);
    CHECK(refused.message().find("copy_streams") != std::string::npos);
    auto const copies = cudart::stream::create();
    plain_transport plain;
    plain.stream = copies.get();
    self.store->connect(plain).or_throw();
    // What is copied from now on starts behind the commits.
    simulated::held_stream const pass{self.compute.get()};
    self.store->warm_up().or_throw();
    self.commit(0, initial, 1).or_throw();
    self.store->prepare().or_throw();
    CHECK(copies.query() == cudaErrorNotReady);
  });
  in_virtual_time([] {
    auto const copies = cudart::stream::create();
    engine self{{.copy_streams = {copies.get()}}};
    CHECK(self.store->connect(silent_transport{}).ok());
  });
}

TEST_CASE("a store that goes beside a pass that never ends waits a while, and leaves its memory in place") {
  in_virtual_time([] {
    auto self = std::make_unique<engine>();
    self->store->set_timeout(20 * milliseconds);
    self->store->warm_up().or_throw();
    auto pass = std::make_unique<simulated::held_stream>(self->compute.get());
    self->commit(0, initial, 1).or_throw();
    auto const begin = simulated::now();
    simulated::forget_waits();
    self->store.reset();
    CHECK(simulated::now() - begin < 60 * milliseconds);
    CHECK(simulated::calls_that_waited().empty());
    pass.reset();
    REQUIRE(cudaStreamSynchronize(self->compute.get()) == cudaSuccess);
  });
}

TEST_CASE("nothing of the store's breaks a capture that another thread makes, or fails beside it") {
  simulated::machine_options options;
  options.virtual_time = true;
  simulated::reset(options);
  bool capturing = false;
  bool done = false;
  auto ended = cudaErrorUnknown;
  simulated::run_ranks(2, [&](int rank) {
    if (rank == 1) {
      auto const stream = cudart::stream::create();
      REQUIRE(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal) == cudaSuccess);
      capturing = true;
      simulated::something_changed();
      simulated::wait_until([&] { return done; });
      cudaGraph_t graph = nullptr;
      ended = cudaStreamEndCapture(stream.get(), &graph);
      if (graph != nullptr) { REQUIRE(cudaGraphDestroy(graph) == cudaSuccess); }
      return;
    }
    simulated::wait_until([&] { return capturing; });
    {
      cudart::local_peers peers{1};
      cudart::peer_copy<cudart::local_peers::member> wires{peers.join(0), {.timed = true}};
      auto const compute = cudart::stream::create();
      cudart::device_store<> store{where, 0, initial, {.compute_stream = compute.get(), .timed = true}};
      auto memory = cudart::device_memory<std::byte>::create(4 * expert);
      for (index_t layer = 0; layer < num_layers; ++layer) {
        CHECK(store.add(layer, "w", memory.data() + static_cast<std::size_t>(layer) * expert, expert / 4).ok());
      }
      CHECK(wires.expose(store.regions()).ok());
      CHECK(store.connect(wires).ok());
      CHECK(wires.warm_up().ok());
      CHECK(store.warm_up().ok());
      CHECK(store.reserve_staging(1).ok());
      byte_copy const copy{store.staging(), memory.data(), 128, 0};
      for (epoch_t epoch = 1; epoch < 5; ++epoch) { CHECK(store.commit(0, {&copy, 1}, initial, epoch).ok()); }
      CHECK(store.prepare().ok());
      CHECK(wires.start({}, {}).ok());
      CHECK(wires.wait(milliseconds).ok());
      static_cast<void>(store.take_commit_time());
      std::uint64_t sum = 0;
      segment const part{memory.data(), 100};
      CHECK(store.checksum({&part, 1}, sum).ok());
      wires.retract(0);
      store.disconnect(wires);
    }
    done = true;
    simulated::something_changed();
  });
  CHECK(ended == cudaSuccess);
  CHECK(simulated::to_text(simulated::take_violations()) == "");
}
