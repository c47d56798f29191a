// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What peer copies do when devices, peers and other threads are not as one would wish. Both ranks of
// a batch are driven by one thread, in virtual time.
#include <ballast/cudart/peer_copy.hpp>

#include "simulated_device.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

using namespace ballast;
namespace simulated = ballast_test::simulated;

namespace {

constexpr nanoseconds_t milliseconds = 1'000'000;
constexpr std::size_t bytes = 10'000;
using wires_type = cudart::peer_copy<cudart::local_peers::member>;

/// Run a test in virtual time; no rule may be broken.
void in_virtual_time(std::function<void()> const& body, int num_devices = 1, std::uint64_t seed = 1) {
  simulated::machine_options options;
  options.num_devices = num_devices;
  options.seed = seed;
  options.virtual_time = true;
  simulated::reset(options);
  simulated::run_ranks(1, [&](int) { body(); });
  CHECK(simulated::to_text(simulated::take_violations()) == "");
}

/// Two ranks, each with memory that says whose it is and room for the other's.
struct pair_of_ranks {
  explicit pair_of_ranks(cudart::peer_copy_options const& options = {}, int num_devices = 1) {
    for (index_t rank = 0; rank < 2; ++rank) {
      REQUIRE(cudaSetDevice(rank % num_devices) == cudaSuccess);
      wires[at(rank)].emplace(peers.join(rank), options);
      source[at(rank)] = cudart::device_memory<std::byte>::create(bytes);
      target[at(rank)] = cudart::device_memory<std::byte>::create(bytes);
      fill(rank, static_cast<unsigned char>(rank + 1));
    }
    for (index_t rank = 0; rank < 2; ++rank) {
      segment const region{source[at(rank)].data(), bytes};
      wire(rank).expose({&region, 1}).or_throw();
    }
  }
  [[nodiscard]] static std::size_t at(index_t rank) { return static_cast<std::size_t>(rank); }
  [[nodiscard]] wires_type& wire(index_t rank) { return wires[at(rank)].value(); }

  void fill(index_t rank, unsigned char value) {
    std::vector<unsigned char> const data(bytes, value);
    REQUIRE(cudaMemcpy(source[at(rank)].data(), data.data(), bytes, cudaMemcpyHostToDevice) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  }
  /// Have every rank send all of its memory to the other, under the next tag.
  status start(index_t rank, std::uint32_t region = 0) {
    auto const other = 1 - rank;
    auto& mine = messages[at(rank)];
    mine.from = {source[at(rank)].data(), bytes};
    mine.to = {target[at(rank)].data(), bytes};
    mine.remote = {region, 0, bytes};
    mine.send = {other, 0, tag, {&mine.from, 1}};
    mine.receive = {other, 0, tag, {&mine.to, 1}, {&mine.remote, 1}};
    return wire(rank).start({&mine.send, 1}, {&mine.receive, 1});
  }
  void next_batch() { ++tag; }
  /// Poll both until neither is pending, or time is up.
  std::array<transfer_state, 2> poll_both(nanoseconds_t timeout) {
    auto const end = simulated::now() + timeout;
    std::array<transfer_state, 2> states{};
    do {
      for (index_t rank = 0; rank < 2; ++rank) { states[at(rank)] = wire(rank).poll(); }
      simulated::sleep_for(5'000);
    } while (simulated::now() < end && (states[0] == transfer_state::pending || states[1] == transfer_state::pending));
    return states;
  }
  [[nodiscard]] bool target_is(index_t rank, unsigned char value) {
    std::vector<unsigned char> data(bytes);
    REQUIRE(cudaMemcpy(data.data(), target[at(rank)].data(), bytes, cudaMemcpyDeviceToHost) == cudaSuccess);
    return data == std::vector<unsigned char>(bytes, value);
  }
  /// A whole batch that must work.
  void exchange() {
    next_batch();
    for (index_t rank = 0; rank < 2; ++rank) { start(rank).or_throw(); }
    auto const states = poll_both(50 * milliseconds);
    CHECK(states[0] == transfer_state::done);
    CHECK(states[1] == transfer_state::done);
    for (index_t rank = 0; rank < 2; ++rank) { wire(rank).wait(0).or_throw(); }
    CHECK(target_is(0, 2));
    CHECK(target_is(1, 1));
  }

  struct batch_of_rank {
    segment from, to;
    remote_segment remote;
    outgoing_message send;
    incoming_message receive;
  };
  cudart::local_peers peers{2};
  std::array<cudart::device_memory<std::byte>, 2> source, target;
  std::array<std::optional<wires_type>, 2> wires;
  std::array<batch_of_rank, 2> messages;
  std::uint64_t tag = 0;
};

}  // namespace

TEST_CASE("a rank that cannot begin a batch is heard by its peer at once") {
  in_virtual_time([] {
    pair_of_ranks self;
    self.next_batch();
    self.start(1).or_throw();
    CHECK_FALSE(self.start(0, 7).ok());
    auto const begin = simulated::now();
    auto const result = self.wire(1).wait(3'000 * milliseconds);
    CHECK(result.rank() == 0);
    CHECK(result.message().find("rank 0 gave up the batch") != std::string::npos);
    CHECK(simulated::now() - begin < 5 * milliseconds);
    self.exchange();
  });
}

TEST_CASE("a rank whose batch ends late is heard by its peer at once, also by one that only gives") {
  in_virtual_time([] {
    pair_of_ranks self;
    self.next_batch();
    self.start(0).or_throw();
    CHECK(self.wire(0).wait(2 * milliseconds).code() == errc::deadline_exceeded);
    self.start(1).or_throw();
    auto const begin = simulated::now();
    CHECK(self.wire(1).wait(3'000 * milliseconds).rank() == 0);
    CHECK(simulated::now() - begin < 5 * milliseconds);
    self.exchange();
  });
}

TEST_CASE("a wait lasts no longer than its timeout, and what it left under way lets the next batch begin") {
  in_virtual_time([] {
    pair_of_ranks self;
    auto held = std::make_unique<simulated::held_stream>(self.wire(0).copy_stream());
    self.next_batch();
    for (index_t rank = 0; rank < 2; ++rank) { self.start(rank).or_throw(); }
    static_cast<void>(self.poll_both(1 * milliseconds));
    auto const begin = simulated::now();
    auto const late = self.wire(0).wait(4 * milliseconds);
    CHECK(simulated::now() - begin < 5 * milliseconds);
    CHECK(late.message().find("have not finished") != std::string::npos);
    CHECK_FALSE(self.wire(1).wait(4 * milliseconds).ok());

    self.next_batch();
    for (index_t rank = 0; rank < 2; ++rank) { self.start(rank).or_throw(); }
    CHECK(self.poll_both(1 * milliseconds)[0] == transfer_state::pending);
    held.reset();
    auto const states = self.poll_both(50 * milliseconds);
    CHECK(states[0] == transfer_state::done);
    CHECK(states[1] == transfer_state::done);
    CHECK(self.wire(0).wait(0).ok());
    CHECK(self.wire(1).wait(0).ok());
    CHECK(self.target_is(0, 2));
    CHECK(self.target_is(1, 1));
    self.exchange();
  });
}

TEST_CASE("a batch that cannot begin because copies do not end fails by its deadline, and the one after works") {
  in_virtual_time([] {
    pair_of_ranks self;
    auto held = std::make_unique<simulated::held_stream>(self.wire(0).copy_stream());
    for (int round = 0; round < 3; ++round) {
      self.next_batch();
      for (index_t rank = 0; rank < 2; ++rank) { self.start(rank).or_throw(); }
      static_cast<void>(self.poll_both(1 * milliseconds));
      CHECK_FALSE(self.wire(0).wait(2 * milliseconds).ok());
      CHECK_FALSE(self.wire(1).wait(2 * milliseconds).ok());
    }
    held.reset();
    self.exchange();
  });
}

TEST_CASE("a transport that goes while it copies waits a while, and then leaves everything in place") {
  SUBCASE("copies that end") {
    in_virtual_time([] {
      pair_of_ranks self;
      auto const end = simulated::now() + 30 * milliseconds;
      simulated::hold_until(self.wire(0).copy_stream(), end);
      self.next_batch();
      for (index_t rank = 0; rank < 2; ++rank) { self.start(rank).or_throw(); }
      static_cast<void>(self.poll_both(1 * milliseconds));
      self.wires[0].reset();
      CHECK(simulated::now() >= end);
      CHECK_FALSE(self.wire(1).wait(1 * milliseconds).ok());
    });
  }
  SUBCASE("copies that do not") {
    in_virtual_time([] {
      pair_of_ranks self;
      simulated::held_stream const held{self.wire(0).copy_stream()};
      self.next_batch();
      for (index_t rank = 0; rank < 2; ++rank) { self.start(rank).or_throw(); }
      static_cast<void>(self.poll_both(1 * milliseconds));
      auto const begin = simulated::now();
      self.wires[0].reset();
      CHECK(simulated::now() - begin < 3'000 * milliseconds);
    });
  }
}

TEST_CASE("after a warm-up the first batch costs nothing of first use") {
  in_virtual_time(
      [] {
        pair_of_ranks self{{}, 2};
        for (index_t rank = 0; rank < 2; ++rank) {
          REQUIRE(cudaSetDevice(rank) == cudaSuccess);
          self.wire(rank).warm_up().or_throw();
        }
        auto const first_uses = [] {
          std::int64_t calls = 0;
          for (auto const* const call : {"cudaDeviceEnablePeerAccess", "cudaMalloc", "cudaMallocHost",
                                         "cudaMallocAsync", "cudaGraphInstantiate", "cudaEventCreateWithFlags"}) {
            calls += simulated::num_calls(call);
          }
          return calls;
        };
        auto const before = first_uses();
        simulated::forget_waits();
        self.next_batch();
        for (index_t rank = 0; rank < 2; ++rank) {
          REQUIRE(cudaSetDevice(rank) == cudaSuccess);
          self.start(rank).or_throw();
        }
        CHECK(self.poll_both(50 * milliseconds)[0] == transfer_state::done);
        CHECK(self.wire(0).wait(0).ok());
        CHECK(self.wire(1).wait(0).ok());
        CHECK(first_uses() == before);
        CHECK(simulated::calls_that_waited().empty());
      },
      2);
}

TEST_CASE("an error that the engine has not looked at stays where it is") {
  in_virtual_time([] {
    pair_of_ranks self;
    simulated::held_stream held{self.wire(0).copy_stream()};
    CHECK(cudaSetDevice(99) == cudaErrorInvalidDevice);
    self.next_batch();
    for (index_t rank = 0; rank < 2; ++rank) { self.start(rank).or_throw(); }
    CHECK(self.poll_both(1 * milliseconds)[0] == transfer_state::pending);
    CHECK(cudaPeekAtLastError() == cudaErrorInvalidDevice);
    held.release();
    CHECK(self.poll_both(50 * milliseconds)[0] == transfer_state::done);
    CHECK(self.wire(0).wait(0).ok());
    CHECK(self.wire(1).wait(0).ok());
    CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
  });
}

TEST_CASE("copies that touch stay apart: they may lie in two allocations") {
  std::array<std::byte, 8> to{};
  std::array<std::byte, 8> from{};
  cudart::copy_batch batch;
  batch.add(to.data(), from.data(), 4);
  batch.add(to.data() + 4, from.data() + 4, 4);
  CHECK(batch.size() == 2);
  batch.clear();
}
