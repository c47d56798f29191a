// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/fold.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/detail/clock.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/pass_timeline.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>

#include "support/gpu.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

ballast_test::gpu_only const needs_gpu;
using ballast_test::busy_stream;
using ballast_test::generator;

constexpr index_t num_layers = 3;
constexpr index_t num_logical = 13;
constexpr nanoseconds_t millisecond = 1'000'000;

template <class Recorder>
std::vector<load_t> history_of(Recorder const& recorder) {
  std::vector<load_t> found(static_cast<std::size_t>(recorder.num_buckets()) *
                            static_cast<std::size_t>(recorder.num_layers()) *
                            static_cast<std::size_t>(recorder.num_logical()));
  recorder.history(found).or_throw();
  return found;
}
load_t sum(std::vector<load_t> const& tokens) { return std::accumulate(tokens.begin(), tokens.end(), load_t{0}); }

template <class Recorder>
std::vector<pass_span> spans_of(Recorder const& recorder) {
  std::vector<pass_span> found(static_cast<std::size_t>(recorder.num_spans()));
  recorder.spans(found);
  for (auto& span : found) {
    if (span.passes == 0) { span = {}; }
  }
  return found;
}

/// What a `device_recorder` promises, by copies of recorders on the host.
class model {
public:
  explicit model(window_options options) : options_{options}, window_{fresh()}, since_{fresh()} {}

  window_recorder const& told() const { return snapshot_ ? *snapshot_ : window_; }
  template <class Record>
  void record(Record record) {
    record(window_);
    record(since_);
  }
  void end_pass(bool counted) {
    if (snapshot_ && is_told_) { snapshot_.reset(); }
    window_.end_pass(counted);
    since_.end_pass(counted);
    if (snapshot_) { snapshot_->end_pass(false); }
  }
  void prepare_history() {
    snapshot_ = window_;
    since_.clear();
    is_told_ = false;
  }
  void tell() { is_told_ = true; }
  void clear() {
    if (snapshot_) {
      window_ = since_;
      snapshot_.reset();
    } else {
      window_.clear();
    }
  }

private:
  window_recorder fresh() const { return {num_layers, num_logical, options_}; }

  window_options options_;
  window_recorder window_;
  window_recorder since_;
  std::optional<window_recorder> snapshot_;
  bool is_told_ = false;
};

/// Both, fed with the same.
class pair_of_recorders {
public:
  pair_of_recorders(window_options options, std::uint64_t seed)
      : random_{seed},
        recorder_{stream_.get(), num_layers, num_logical, options},
        wanted_{options},
        ids_{cudart::device_memory<std::int32_t>::create(most_ids)} {}

  void act() {
    auto const what = random_.below(20);
    if (what < 7) { record(); }
    if (what >= 7 && what < 14) { end_pass(); }
    if (what == 14 || what == 15) { prepare_history(); }
    if (what == 16 || what == 17) { check(); }
    if (what == 18) { clear(); }
    if (what == 19) { recorder_.warm_up().or_throw(); }
  }
  void check() {
    auto const& wanted = wanted_.told();
    CHECK(recorder_.num_buckets() == wanted.num_buckets());
    CHECK(spans_of(recorder_) == spans_of(wanted));
    CHECK(recorder_.forgotten() == wanted.forgotten());
    std::vector<index_t> places(static_cast<std::size_t>(wanted.num_buckets()));
    auto wanted_places = places;
    pass_timeline const counted{spans_of(wanted), wanted.forgotten()};
    CHECK(recorder_.place(counted, places) == wanted.place(counted, wanted_places));
    CHECK(places == wanted_places);
    CHECK(history_of(recorder_) == history_of(wanted));
    CHECK(recorder_.failure().ok());
    wanted_.tell();
  }

private:
  static constexpr index_t most_ids = 200;

  void record() {
    auto const layer = random_.below(num_layers);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(random_.between(1, most_ids)));
    for (auto& id : ids) { id = random_.between(-1, num_logical); }
    auto const record_ids = [&](auto& recorder) { recorder.record_top_k(layer, ids).or_throw(); };
    wanted_.record(record_ids);
    if (random_.below(2) == 0) {
      record_ids(recorder_);
      return;
    }
    ballast_test::check_cuda(
        cudaMemcpyAsync(ids_.data(), ids.data(), ids.size() * sizeof(ids[0]), cudaMemcpyHostToDevice, stream_.get()),
        "cudaMemcpyAsync");
    cudart::routing<std::int32_t> const input{ids_.data(), static_cast<index_t>(ids.size()), 1, nullptr};
    cudart::record(stream_.get(), recorder_.view(), layer, input).or_throw();
  }
  void end_pass() {
    // The ring of counts from the host is never full here: what then happens has a test of its own.
    ballast_test::check_cuda(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
    bool const counted = random_.below(4) != 0;
    recorder_.end_pass(counted);
    wanted_.end_pass(counted);
  }
  void prepare_history() {
    recorder_.prepare_history();
    wanted_.prepare_history();
  }
  void clear() {
    recorder_.clear();
    wanted_.clear();
  }

  generator random_;
  cudart::stream stream_ = cudart::stream::create();
  cudart::device_recorder recorder_;
  model wanted_;
  cudart::device_memory<std::int32_t> ids_;
};

/// Counts that say from which pass they are: pass p has p tokens of expert 0 in layer 0.
template <class Recorder>
void record_pass(Recorder& recorder, load_t pass) {
  std::vector<load_t> counts(num_logical);
  counts[0] = pass;
  recorder.record_logical(0, counts).or_throw();
}

/// Whether a call came back without waiting for a stream that stands still.
template <class Call>
bool is_prompt(Call call) {
  auto const start = ballast::detail::now();
  call();
  return ballast::detail::now() - start < 500 * millisecond;
}

}  // namespace

TEST_CASE("whatever the order of calls, a device recorder tells and keeps what recorders on the host would") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    generator random{seed};
    auto const passes = random.between(1, 12);
    pair_of_recorders both{{passes, random.between(1, 6)}, seed};
    for (int action = 0; action < 200; ++action) {
      CAPTURE(action);
      both.act();
    }
    both.check();
  }
}

TEST_CASE("planning after every pass loses no count and tells none twice") {
  auto const stream = cudart::stream::create();
  for (bool const prepares : {true, false}) {
    cudart::device_recorder recorder{stream.get(), num_layers, num_logical, {4, 2}};
    recorder.warm_up().or_throw();
    if (prepares) { recorder.prepare_history(); }
    load_t told = 0;
    constexpr load_t num_passes = 200;
    for (load_t pass = 1; pass <= num_passes; ++pass) {
      record_pass(recorder, pass);
      recorder.end_pass(pass % 5 != 0);
      // The pass before this one, or this one.
      auto const found = sum(history_of(recorder));
      auto const newest = prepares ? pass - 1 : pass;
      CHECK(found == (newest % 5 == 0 ? 0 : newest));
      told += found;
      recorder.clear();
      if (prepares) { recorder.prepare_history(); }
    }
    told += sum(history_of(recorder));
    constexpr load_t not_counted = 5 * (num_passes / 5) * (num_passes / 5 + 1) / 2;
    CHECK(told == num_passes * (num_passes + 1) / 2 - not_counted);
  }
}

TEST_CASE("a history that was prepared is told while the next pass stands still") {
  auto const stream = cudart::stream::create();
  cudart::device_recorder recorder{stream.get(), num_layers, num_logical, {8, 4}};
  record_pass(recorder, 5);
  recorder.end_pass(true);
  recorder.prepare_history();
  busy_stream hung{stream.get()};
  CHECK(is_prompt([&] {
    record_pass(recorder, 7);
    recorder.end_pass(true);
    CHECK(sum(history_of(recorder)) == 5);
    recorder.clear();
    recorder.prepare_history();
  }));
  CHECK(hung.release());
  CHECK(sum(history_of(recorder)) == 7);
}

TEST_CASE("a history behind a pass that hangs is given up in time, and can be had later") {
  auto const stream = cudart::stream::create();
  cudart::device_recorder recorder{stream.get(), num_layers, num_logical, {8, 4}};
  recorder.set_timeout(20 * millisecond);
  for (bool const prepares : {true, false}) {
    CAPTURE(prepares);
    busy_stream hung{stream.get()};
    record_pass(recorder, 5);
    recorder.end_pass(true);
    if (prepares) { recorder.prepare_history(); }
    record_pass(recorder, 7);
    recorder.end_pass(true);
    std::vector<load_t> found(std::size_t{4} * num_layers * num_logical);
    for (int again = 0; again < 3; ++again) {
      auto const start = ballast::detail::now();
      CHECK(recorder.history(found).code() == errc::deadline_exceeded);
      auto const waited = ballast::detail::now() - start;
      CHECK(waited >= 20 * millisecond);
      CHECK(waited < 500 * millisecond);
    }
    CHECK(recorder.failure().ok());
    CHECK(hung.release());
    ballast_test::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    CHECK(sum(history_of(recorder)) == (prepares ? 5 : 12));
    recorder.clear();
    CHECK(sum(history_of(recorder)) == (prepares ? 7 : 0));
    recorder.clear();
  }
}

TEST_CASE("counts of the host wait for no stream, and none is lost however far it is behind") {
  auto const stream = cudart::stream::create();
  topology const where{{2, 1, 13, 1}};
  auto const holds = trivial_placement({num_layers, num_logical, 26});
  cudart::device_recorder recorder{stream.get(), num_layers, num_logical, {1000, 1}};
  window_recorder twin{num_layers, num_logical, {1000, 1}};
  std::vector<load_t> const local(14, 3);
  std::vector<load_t> const sums{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
  std::vector<load_t> const physical(28, 2);
  std::vector<std::int32_t> const ids{0, 12, 13, -1, 4};
  auto const record_all = [&](auto& to) {
    for (index_t layer = 0; layer < num_layers; ++layer) {
      to.record_local(layer, local, 1, holds.logical_of_slot(layer), where).or_throw();
      to.record_local_prefix_sums(layer, sums, 0, holds.logical_of_slot(layer), where).or_throw();
      to.record_physical(layer, physical, holds.logical_of_slot(layer), where).or_throw();
      to.record_logical(layer, std::vector<load_t>(num_logical, layer)).or_throw();
      to.record_top_k(layer, ids).or_throw();
    }
  };
  busy_stream hung{stream.get()};
  for (int pass = 0; pass < 30; ++pass) {
    CHECK(is_prompt([&] { record_all(recorder); }));
    record_all(twin);
    bool const counted = pass % 4 != 2 && pass != 29;
    CHECK(is_prompt([&] { recorder.end_pass(counted); }));
    twin.end_pass(counted);
  }
  CHECK(hung.release());
  ballast_test::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  // What had no room goes up with the next pass that counts.
  for (bool const counted : {false, true}) {
    recorder.end_pass(counted);
    twin.end_pass(counted);
  }
  CHECK(history_of(recorder) == history_of(twin));
  CHECK(spans_of(recorder) == spans_of(twin));
  CHECK(recorder.failure().ok());
}

TEST_CASE("a recorder goes in time although its stream stands still") {
  auto const stream = cudart::stream::create();
  std::optional<cudart::device_recorder> recorder;
  recorder.emplace(stream.get(), num_layers, num_logical, window_options{8, 4});
  recorder->set_timeout(20 * millisecond);
  busy_stream hung{stream.get()};
  record_pass(*recorder, 5);
  recorder->end_pass(true);
  recorder->prepare_history();
  CHECK(is_prompt([&] { recorder.reset(); }));
  CHECK(hung.release());
  ballast_test::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
}

TEST_CASE("a recorder that is moved or replaced keeps to its own stream") {
  auto const first = cudart::stream::create();
  auto const second = cudart::stream::create();
  cudart::device_recorder recorder{first.get(), num_layers, num_logical, {8, 4}};
  record_pass(recorder, 5);
  recorder.end_pass(true);
  recorder.prepare_history();
  auto moved = std::move(recorder);
  record_pass(moved, 7);
  moved.end_pass(true);
  CHECK(sum(history_of(moved)) == 5);
  moved.clear();
  CHECK(sum(history_of(moved)) == 7);
  cudart::device_recorder other{second.get(), num_layers, num_logical, {8, 4}};
  record_pass(other, 9);
  other.end_pass(true);
  moved = std::move(other);
  CHECK(sum(history_of(moved)) == 9);
}

TEST_CASE("an error that the engine has not asked for yet is neither taken for ours nor swallowed") {
  auto const stream = cudart::stream::create();
  auto const map = cudart::device_memory<index_t>::create(num_layers * 4);
  auto const counts = cudart::device_memory<std::int32_t>::create(4);
  auto const bucket = cudart::device_memory<load_t>::create(cudart::detail::padded_cells(num_layers, num_logical));
  cudart::device_recorder recorder{stream.get(), num_layers, num_logical, {2, 2}, map.data(), 4};
  ballast_test::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  CHECK(cudaSetDevice(-1) == cudaErrorInvalidDevice);
  cudart::record_arrivals(stream.get(), recorder.view(), 0, cudart::arrivals<std::int32_t>{counts.data()}).or_throw();
  cudart::record(stream.get(), recorder.view(), 0, cudart::routing<std::int32_t>{counts.data(), 4, 1, nullptr})
      .or_throw();
  cudart::detail::fold(stream.get(), recorder.view(), {.to = {bucket.data(), true}}).or_throw();
  recorder.end_pass(true);
  recorder.prepare_history();
  CHECK(recorder.failure().ok());
  CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
}

TEST_CASE("arrivals at slots of experts that the counters do not have are not counted") {
  auto const stream = cudart::stream::create();
  auto const map = cudart::device_memory<index_t>::create(4);
  std::vector<index_t> const experts{0, num_logical, -1, 2};
  ballast_test::check_cuda(cudaMemcpy(map.data(), experts.data(), 16, cudaMemcpyHostToDevice), "cudaMemcpy");
  auto const counts = cudart::device_memory<std::int32_t>::create(4);
  std::vector<std::int32_t> const arrived{1, 10, 100, 1000};
  ballast_test::check_cuda(cudaMemcpy(counts.data(), arrived.data(), 16, cudaMemcpyHostToDevice), "cudaMemcpy");
  cudart::device_recorder recorder{stream.get(), 1, num_logical, {1, 1}, map.data(), 4};
  cudart::record_arrivals(stream.get(), recorder.view(), 0, cudart::arrivals<std::int32_t>{counts.data()}).or_throw();
  recorder.end_pass(true);
  auto const found = history_of(recorder);
  CHECK(found[0] == 1);
  CHECK(found[2] == 1000);
  CHECK(sum(found) == 1001);
}
