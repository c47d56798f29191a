// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/types.hpp>

#include "support/simulated_device/kernel_emulations.cuh"
#include "support/simulated_device/simulated_device.hpp"

#include <doctest/doctest.h>

#include <numeric>
#include <ostream>
#include <string>
#include <vector>

using namespace ballast;
using ballast_test::simulated::fail_next;

namespace {

/// A recorder whose every pass has one token.
class counter {
public:
  void run_pass() {
    recorder.record_logical(0, std::vector<load_t>{1, 0, 0, 0}).or_throw();
    recorder.end_pass(true);
  }
  void run_pass_that_fails() {
    fail_next("cudaGraphLaunch", cudaErrorLaunchOutOfResources);
    run_pass();
  }
  /// Tokens told, or -1.
  load_t told() {
    std::vector<load_t> found(16);
    auto const result = recorder.history(found);
    return result.ok() ? std::accumulate(found.begin(), found.end(), load_t{0}) : -1;
  }

private:
  cudart::stream stream_ = cudart::stream::create();

public:
  cudart::device_recorder recorder{stream_.get(), 1, 4, {8, 4}};
};

void check_end() {
  CHECK(ballast_test::simulated::forget_failures() == 0);
  CHECK(ballast_test::simulated::to_text(ballast_test::simulated::violations()) == "");
}

}  // namespace

TEST_CASE("a loss is told once, with the history of the passes that it befell") {
  counter one;
  one.run_pass();
  one.run_pass_that_fails();
  one.recorder.prepare_history();
  one.run_pass();
  CHECK(one.told() == -1);
  CHECK(one.told() == 1);
  one.recorder.clear();
  CHECK(one.told() == 1);

  // Behind the snapshot: with the next history.
  one.recorder.prepare_history();
  one.run_pass_that_fails();
  CHECK(one.told() == 1);
  one.recorder.clear();
  one.recorder.prepare_history();
  one.run_pass();
  CHECK(one.told() == -1);
  CHECK(one.told() == 0);
  one.recorder.clear();
  CHECK(one.told() == 1);

  // In a snapshot that nobody asked for: with the one after it.
  one.run_pass_that_fails();
  one.recorder.prepare_history();
  one.run_pass();
  one.recorder.prepare_history();
  one.run_pass();
  CHECK(one.told() == -1);
  CHECK(one.told() == 2);
  one.recorder.clear();
  CHECK(one.told() == 1);
  check_end();
}

TEST_CASE("a history that could not be prepared is as one that was not") {
  for (auto const* const call : {"cudaMemsetAsync", "cudaMemcpyAsync", "cudaEventRecord"}) {
    CAPTURE(std::string{call});
    counter one;
    one.run_pass();
    one.recorder.prepare_history();
    one.run_pass();
    fail_next(call, cudaErrorInvalidValue);
    one.recorder.prepare_history();
    one.run_pass();
    CHECK(one.told() == 3);
    CHECK(!one.recorder.failure().ok());
    one.recorder.clear();
    CHECK(one.told() == 0);
    check_end();
  }
}
