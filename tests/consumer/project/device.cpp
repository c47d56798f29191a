// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/nccl/communicator.hpp>

// Links what the adapters take from CUDA and NCCL; whether there is a device does not matter.
bool knows_devices() {
  int version = 0;
  int num_devices = 0;
  static_cast<void>(cudaGetDeviceCount(&num_devices));
  return ncclGetVersion(&version) == ncclSuccess;
}
