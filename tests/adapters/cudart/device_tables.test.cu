// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_tables.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/detail/clock.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>

#include "support/gpu.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <ostream>
#include <semaphore>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

ballast_test::gpu_only const needs_gpu;
using ballast_test::busy_stream;
using ballast_test::generator;

constexpr nanoseconds_t millisecond = 1'000'000;

template <class T>
std::vector<T> read(T const* from, std::size_t count) {
  std::vector<T> host(count);
  ballast_test::check_cuda(cudaMemcpy(host.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return host;
}

template <class Copies>
struct fixture {
  topology where{{4, 1, 9, 1}};
  placement_shape shape{5, 30, 36};
  cudart::stream stream = cudart::stream::create();
  cudart::device_tables<dispatch_tables, Copies> tables{
      dispatch_tables{where, shape, rank_id{2}, dispatch_mode::nearest}, where, 2};

  /// The device has what the host has.
  void check(std::vector<placement> const& of_layer) {
    ballast_test::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    auto const view = tables.view();
    auto const host = tables.host().view();
    CHECK(read(view.ranges, 150) == std::vector<replica_range>(host.ranges, host.ranges + 150));
    CHECK(read(view.entries, 180) == std::vector<dispatch_entry>(host.entries, host.entries + 180));
    auto const map = read(tables.local_map(), 45);
    for (index_t layer = 0; layer < 5; ++layer) {
      CAPTURE(layer);
      auto const wanted = of_layer[static_cast<std::size_t>(layer)].logical_of_slot(layer).subspan(18, 9);
      CHECK(std::ranges::equal(wanted, std::span{map}.subspan(static_cast<std::size_t>(layer) * 9, 9)));
    }
  }
};

/// Call something while another thread captures a graph in global mode, as PyTorch does. @return how the capture ended
template <class Call>
cudaError_t during_capture(Call call) {
  std::binary_semaphore begun{0};
  std::binary_semaphore called{0};
  auto result = cudaSuccess;
  std::thread other{[&] {
    auto const stream = cudart::stream::create();
    ballast_test::check_cuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal),
                             "cudaStreamBeginCapture");
    begun.release();
    called.acquire();
    cudaGraph_t graph = nullptr;
    result = cudaStreamEndCapture(stream.get(), &graph);
    if (graph != nullptr) { static_cast<void>(cudaGraphDestroy(graph)); }
    static_cast<void>(cudaGetLastError());
  }};
  begun.acquire();
  try {
    call();
  } catch (...) {
    called.release();
    other.join();
    throw;
  }
  called.release();
  other.join();
  return result;
}

}  // namespace

TEST_CASE_TEMPLATE("publishing waits for no stream, however often and however far it is behind", Copies,
                   cudart::copy_batch, cudart::kernel_copies) {
  fixture<Copies> on;
  generator random{7};
  std::vector<placement> last(5, random_placement(on.shape, random));
  for (index_t layer = 0; layer < 5; ++layer) {
    on.tables.publish(on.where, last[0], layer, on.stream.get()).or_throw();
  }
  on.check(last);
  CHECK(on.tables.num_mirrors() == 10);
  for (int round = 0; round < 3; ++round) {
    busy_stream hung{on.stream.get()};
    auto const start = ballast::detail::now();
    for (int leg = 0; leg < 23; ++leg) {
      // Layer 0 three times in a row, then any.
      auto const layer = leg < 3 ? 0 : random.below(5);
      auto& holds = last[static_cast<std::size_t>(layer)];
      holds = random_placement(on.shape, random);
      on.tables.publish(on.where, holds, layer, on.stream.get()).or_throw();
      CHECK(on.tables.published().query() == cudaErrorNotReady);
    }
    CHECK(ballast::detail::now() - start < 1000 * millisecond);
    CHECK(hung.release());
    on.check(last);
    CHECK(on.tables.published().query() == cudaSuccess);
    CHECK(on.tables.num_mirrors() == 30);  // no more than the first round needed
  }
}

TEST_CASE("several layers in one batch are published by one mark") {
  fixture<cudart::kernel_copies> on;
  generator random{8};
  cudart::kernel_copies batch;
  for (int round = 0; round < 20; ++round) {
    auto const holds = random_placement(on.shape, random);
    for (index_t layer = 0; layer < 5; ++layer) { on.tables.collect(on.where, holds, layer, batch).or_throw(); }
    batch.submit(on.stream.get()).or_throw();
    on.tables.mark_published(on.stream.get()).or_throw();
    on.check(std::vector<placement>(5, holds));
  }
  CHECK(on.tables.num_mirrors() == 10);
}

TEST_CASE("tables refuse what does not fit them, and stay as they are") {
  fixture<cudart::copy_batch> on;
  generator random{9};
  auto const holds = random_placement(on.shape, random);
  auto const publish = [&](topology const& where, placement const& from, index_t layer) {
    return on.tables.publish(where, from, layer, on.stream.get());
  };
  for (index_t layer = 0; layer < 5; ++layer) { publish(on.where, holds, layer).or_throw(); }
  for (index_t const layer : {-1, 5, 1 << 30}) {
    auto const result = publish(on.where, holds, layer);
    CHECK(result.code() == errc::invalid_placement);
    CHECK(result.message().find(std::to_string(layer)) != std::string::npos);
  }
  CHECK(publish(on.where, random_placement({5, 29, 36}, random), 0).code() == errc::invalid_placement);
  CHECK(publish(topology{{4, 1, 8, 1}}, holds, 0).code() == errc::invalid_placement);
  on.check(std::vector<placement>(5, holds));
}

TEST_CASE("calls beside another thread's capture succeed and leave it whole") {
  fixture<cudart::kernel_copies> on;
  generator random{10};
  auto const holds = random_placement(on.shape, random);
  cudart::device_recorder recorder{on.stream.get(), 5, 30, {4, 2}};
  std::vector<load_t> found(std::size_t{2} * 5 * 30);
  std::vector<load_t> const counts(30, 1);
  CHECK(during_capture([&] {
          for (int leg = 0; leg < 30; ++leg) {
            on.tables.publish(on.where, holds, leg % 5, on.stream.get()).or_throw();
          }
        }) == cudaSuccess);
  CHECK(during_capture([&] { recorder.warm_up().or_throw(); }) == cudaSuccess);
  CHECK(during_capture([&] {
          for (int pass = 0; pass < 9; ++pass) {
            recorder.record_logical(0, counts).or_throw();
            recorder.end_pass(true);
          }
          recorder.prepare_history();
        }) == cudaSuccess);
  CHECK(during_capture([&] { recorder.history(found).or_throw(); }) == cudaSuccess);
  CHECK(during_capture([&] { recorder.clear(); }) == cudaSuccess);
  CHECK(during_capture([&] { recorder.history(found).or_throw(); }) == cudaSuccess);
  CHECK(during_capture([&] {
          cudart::kernel_copies copies;
          copies.warm_up().or_throw();
        }) == cudaSuccess);
  std::optional<cudart::device_recorder> another;
  CHECK(during_capture([&] {
          another.emplace(on.stream.get(), 5, 30, window_options{4, 2});
          another->warm_up().or_throw();
        }) == cudaSuccess);
  CHECK(recorder.failure().ok());
}
