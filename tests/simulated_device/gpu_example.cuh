// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SIMULATED_DEVICE_GPU_EXAMPLE_CUH
#define BALLAST_TESTS_SIMULATED_DEVICE_GPU_EXAMPLE_CUH

#include "gpu/experts.cuh"
#include "support/simulated_device/kernel_emulations.cuh"
#include "support/simulated_device/simulated_device.hpp"

#include <cstddef>
#include <cstdint>

// What the kernel of examples/gpu does, for the simulated device. Included before rank.cu.

namespace ballast_test::simulated {

inline void emulate_experts(kernel_actions& actions, dim3 /*blocks*/, dim3 /*threads*/,
                            gpu_example::expert_work const& work) {
  actions.reads(work.physical, work.num_choices * sizeof(std::int32_t));
  for (int tensor = 0; tensor < gpu_example::num_tensors; ++tensor) {
    auto const words = static_cast<std::size_t>(work.num_slots) * gpu_example::words_of(tensor);
    actions.reads(work.slots[tensor], words * sizeof(std::uint32_t));
  }
  actions.writes(work.outputs, work.num_choices * sizeof(std::int64_t));
  actions.compute([=] {
    for (std::uint32_t choice = 0; choice < work.num_choices; ++choice) {
      work.outputs[choice] = gpu_example::compute(work, choice);
    }
  });
}

struct example_emulations {
  example_emulations() { simulate_kernel(gpu_example::run_experts, emulate_experts); }
};
inline example_emulations const example_kernel;

}  // namespace ballast_test::simulated

#endif
