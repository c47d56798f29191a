// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A program of its own: no device is in use before.
#include <ballast/cudart/detail/device_scope.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/gpu.hpp"

#include <doctest/doctest.h>

using namespace ballast;
using namespace ballast_test;

namespace {

gpu_only const needs_gpu;

}  // namespace

TEST_CASE("a communicator touches no device but the rank's") {
  int devices = 0;
  check_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  int const own = devices - 1;
  CHECK_FALSE(cudart::detail::is_in_use(own));
  check_cuda(cudaSetDevice(own), "cudaSetDevice");
  in_process_group group{1};
  {
    nccl::communicator made;
    nccl::communicator::create(group.endpoint(0), made).or_throw();
  }
  CHECK(cudart::detail::is_in_use(own));
  for (int other = 0; other < own; ++other) {
    CAPTURE(other);
    CHECK_FALSE(cudart::detail::is_in_use(other));
  }
}
