// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Passes that run on two streams at once, as two batches that overlap do: counts, tables and weights.
#include <ballast/cudart/compute_streams.hpp>
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/detail/clock.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>

#include "support/gpu.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <ostream>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

using namespace ballast;
using ballast_test::busy_stream;
using ballast_test::check_cuda;
using ballast_test::generator;

namespace {

ballast_test::gpu_only const needs_gpu;

constexpr nanoseconds_t millisecond = 1'000'000;

struct two_streams {
  cudart::stream first = cudart::stream::create();
  cudart::stream second = cudart::stream::create();
  std::array<cudaStream_t, 1> more = {second.get()};

  [[nodiscard]] cudart::compute_streams all() const { return cudart::compute_streams{first.get(), more}; }
  [[nodiscard]] cudaStream_t operator[](index_t i) const { return i == 0 ? first.get() : second.get(); }
  void wait() const {
    for (index_t i = 0; i < 2; ++i) { check_cuda(cudaStreamSynchronize((*this)[i]), "cudaStreamSynchronize"); }
  }
};

/// A recorder on two streams and its twin on the host, fed with the same.
class overlapping_counts {
public:
  static constexpr index_t num_layers = 2;
  static constexpr index_t num_logical = 24;

  void record(index_t stream) {
    auto const layer = random_.below(num_layers);
    auto const count = random_.below(most_ids + 1);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
    for (auto& id : ids) { id = random_.below(num_logical); }
    auto memory = cudart::device_memory<std::int32_t>::create(ids.size());
    check_cuda(cudaMemcpy(memory.data(), ids.data(), ids.size() * sizeof ids[0], cudaMemcpyHostToDevice), "cudaMemcpy");
    check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
    cudart::record(on_[stream], recorder.view(), layer, cudart::routing<std::int32_t>{memory.data(), count, 1, nullptr})
        .or_throw();
    if (is_open_) { twin_.record_top_k(layer, ids).or_throw(); }
    ids_.push_back(std::move(memory));
  }
  void set_gate(bool open) {
    recorder.set_gate(open).or_throw();
    is_open_ = open;
  }
  void end_pass(bool counted = true) {
    recorder.end_pass(counted);
    twin_.end_pass(counted);
  }
  void check() {
    std::vector<load_t> found(std::size_t{8} * num_layers * num_logical);
    std::vector<load_t> wanted(found.size());
    recorder.history(found).or_throw();
    twin_.history(wanted).or_throw();
    CHECK(found == wanted);
    CHECK(recorder.failure().ok());
    on_.wait();
    ids_.clear();
  }
  [[nodiscard]] two_streams const& streams() const { return on_; }
  [[nodiscard]] generator& random() { return random_; }

private:
  static constexpr index_t most_ids = 4000;

  generator random_{31};
  two_streams on_;
  window_recorder twin_{num_layers, num_logical, {8, 8}};
  std::vector<cudart::device_memory<std::int32_t>> ids_;
  bool is_open_ = true;

public:
  cudart::device_recorder recorder{on_.all(), num_layers, num_logical, {8, 8}};
};

/// One layer of one of two ranks: weights, tables, counters, and a pass that uses all of them on any of the streams.
struct overlapping_engine {
  static constexpr std::size_t expert_bytes = 4096;
  static constexpr index_t slots = 4;
  static constexpr index_t num_logical = 6;
  static constexpr index_t num_ids = 300;

  explicit overlapping_engine(std::uint64_t seed) : random{seed} {
    for (auto& id : ids) { id = random.below(num_logical); }
    check_cuda(cudaMemcpy(device_ids.data(), ids.data(), ids.size() * sizeof ids[0], cudaMemcpyHostToDevice),
               "cudaMemcpy");
    auto const bytes = weights_of(holds);
    check_cuda(cudaMemcpy(weights.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
    check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
    store.add(0, "w", weights.data(), expert_bytes).or_throw();
    store.warm_up().or_throw();
  }
  [[nodiscard]] static std::vector<std::byte> weights_of(placement const& from) {
    std::vector<std::byte> bytes;
    for (index_t slot = 0; slot < slots; ++slot) {
      bytes.insert(bytes.end(), expert_bytes,
                   static_cast<std::byte>(1 + from.logical_of_slot(0)[static_cast<std::size_t>(slot)]));
    }
    return bytes;
  }

  /// What one pass computes, and what it should.
  struct pass {
    cudart::device_memory<std::int32_t> physical;
    cudart::device_memory<std::byte> weights;
    std::vector<std::int32_t> wanted_physical;
    std::vector<std::byte> wanted_weights;
  };
  void run(index_t stream) {
    passes.push_back({cudart::device_memory<std::int32_t>::create(num_ids),
                      cudart::device_memory<std::byte>::create(slots * expert_bytes),
                      std::vector<std::int32_t>(num_ids), weights_of(holds)});
    auto& now = passes.back();
    cudart::dispatch_and_record(on[stream], recorder.view(), store.view(), 0,
                                cudart::routing<std::int32_t>{device_ids.data(), num_ids, 1, nullptr},
                                now.physical.data())
        .or_throw();
    check_cuda(
        cudaMemcpyAsync(now.weights.data(), weights.data(), slots * expert_bytes, cudaMemcpyDeviceToDevice, on[stream]),
        "cudaMemcpyAsync");
    dispatch_ids<std::int32_t>(store.tables().host().view(), 0, 1, ids, now.wanted_physical);
  }
  /// Exchange the experts in two slots by way of staging.
  void commit() {
    auto const one = random.below(slots);
    auto const two = (one + 1 + random.below(slots - 1)) % slots;
    std::vector<index_t> map(holds.logical_of_slot(0).begin(), holds.logical_of_slot(0).end());
    std::swap(map[static_cast<std::size_t>(one)], map[static_cast<std::size_t>(two)]);
    holds.assign(holds.shape(), map).or_throw();
    auto* const first = weights.data() + static_cast<std::size_t>(one) * expert_bytes;
    auto* const second = weights.data() + static_cast<std::size_t>(two) * expert_bytes;
    byte_copy const copies[] = {{store.staging(), first, expert_bytes, 0},
                                {first, second, expert_bytes, 1},
                                {second, store.staging(), expert_bytes, 2}};
    store.commit(0, copies, holds, ++epoch).or_throw();
  }
  void check() {
    on.wait();
    for (auto const& each : passes) {
      std::vector<std::int32_t> found(num_ids);
      std::vector<std::byte> bytes(slots * expert_bytes);
      check_cuda(cudaMemcpy(found.data(), each.physical.data(), found.size() * sizeof found[0], cudaMemcpyDeviceToHost),
                 "cudaMemcpy");
      check_cuda(cudaMemcpy(bytes.data(), each.weights.data(), bytes.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
      CHECK(found == each.wanted_physical);
      CHECK((bytes == each.wanted_weights));
    }
    passes.clear();
  }

  generator random;
  two_streams on;
  topology where{{2, 1, slots, 0}};
  placement holds = trivial_placement({1, num_logical, where.num_slots()});
  cudart::device_memory<std::byte> weights = cudart::device_memory<std::byte>::create(slots * expert_bytes);
  cudart::device_store<> store{
      where, 0, holds, {.compute_stream = on.first.get(), .more_compute_streams = {on.second.get()}}};
  cudart::device_recorder recorder{on.all(), 1, num_logical, {64, 1}};
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(num_ids);
  cudart::device_memory<std::int32_t> device_ids = cudart::device_memory<std::int32_t>::create(num_ids);
  std::vector<pass> passes;
  epoch_t epoch = 0;
};

/// End passes while one of the streams is late. @param fill  `fill(counts, pass)` enqueues what the pass has
template <class Fill>
void end_passes_with_a_late_stream(Fill fill) {
  for (index_t const slow : {0, 1}) {
    CAPTURE(slow);
    overlapping_counts counts;
    // The driver loads a kernel when it is first launched, and may wait for all that the device does.
    counts.record(0);
    counts.end_pass();
    counts.check();
    for (int pass = 0; pass < 6; ++pass) {
      CAPTURE(pass);
      busy_stream late{counts.streams()[slow]};
      fill(counts, pass);
      ballast::detail::sleep_for(5 * millisecond);  // whoever does not wait goes on
      CHECK(late.release());
      counts.end_pass();
      counts.check();
    }
  }
}

}  // namespace

TEST_CASE("a pass is closed behind the kernels of both streams, and before what they are given next") {
  end_passes_with_a_late_stream([](overlapping_counts& counts, int pass) {
    for (index_t const stream : {0, 1, 0, 1}) { counts.record(stream); }
    counts.end_pass(pass % 3 != 1);
    for (index_t const stream : {1, 0}) { counts.record(stream); }
  });
}

TEST_CASE("a gate opens and closes for both streams where it is set") {
  end_passes_with_a_late_stream([](overlapping_counts& counts, int pass) {
    for (index_t const stream : {0, 1}) { counts.record(stream); }
    counts.set_gate(pass % 2 != 0);
    for (index_t const stream : {0, 1}) { counts.record(stream); }
  });
}

TEST_CASE("no count of many passes on two streams is lost, or told twice") {
  overlapping_counts counts;
  for (int round = 0; round < 8; ++round) {
    CAPTURE(round);
    for (int pass = 0; pass < 8; ++pass) {
      auto const launches = counts.random().below(6);
      for (index_t i = 0; i < launches; ++i) { counts.record(counts.random().below(2)); }
      counts.end_pass(counts.random().below(5) != 0);
    }
    counts.check();
  }
}

TEST_CASE("a commit is behind the passes of both streams, and before what they are given next") {
  for (index_t const slow : {0, 1}) {
    CAPTURE(slow);
    overlapping_engine self{static_cast<std::uint64_t>(slow) + 1};
    self.run(0);  // loads the kernels
    self.recorder.end_pass(true);
    self.commit();
    self.check();
    for (int round = 0; round < 5; ++round) {
      CAPTURE(round);
      busy_stream late{self.on[slow]};
      self.run(0);
      self.run(1);
      self.recorder.end_pass(true);
      self.commit();
      self.run(1);
      self.run(0);
      self.recorder.end_pass(true);
      self.commit();
      self.run(0);
      ballast::detail::sleep_for(5 * millisecond);
      CHECK(late.release());
      self.check();
    }
    std::vector<load_t> found(overlapping_engine::num_logical);
    self.recorder.history(found).or_throw();
    load_t sum = 0;
    for (auto const tokens : found) { sum += tokens; }
    CHECK(sum == (1 + 5 * 5 - 1) * overlapping_engine::num_ids);  // the very last pass has not been closed
  }
}

TEST_CASE("streams that events cannot order are refused, by number") {
  two_streams const on;
  auto const fails = [&](cudaStream_t first, std::vector<cudaStream_t> const& more, char const* why) {
    auto const result = cudart::compute_streams::validate(first, more);
    CHECK(result.code() == errc::invalid_option);
    CHECK(result.message().find(why) != std::string::npos);
    CHECK_THROWS_AS((cudart::device_recorder{cudart::compute_streams{first, more}, 1, 8}), std::system_error);
    topology const where{{1, 1, 8, 0}};
    CHECK_THROWS_AS(
        (cudart::device_store<>{
            where, 0, trivial_placement({1, 8, 8}), {.compute_stream = first, .more_compute_streams = more}}),
        std::system_error);
  };
  for (auto* const made_by_nobody : {cudaStream_t{nullptr}, cudaStreamLegacy, cudaStreamPerThread}) {
    fails(on.first.get(), {on.second.get(), made_by_nobody}, "a default stream");
    fails(made_by_nobody, {on.second.get()}, "default stream");
  }
  fails(on.first.get(), {on.first.get()}, "number 1 besides the first is named twice");
  fails(on.first.get(), {on.second.get(), on.second.get()}, "number 2 besides the first is named twice");
  CHECK(cudart::compute_streams::validate(on.first.get(), on.more).ok());
  CHECK(cudart::compute_streams::validate(nullptr, {}).ok());  // one stream: whoever uses it says what may be
}
