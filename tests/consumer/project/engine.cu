// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The engine of docs/gpu.md, as a project compiles it that has ballast from a package.
#include <ballast/ballast.hpp>
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/nccl/cohort.hpp>
#include <ballast/policies/incremental.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

using namespace ballast;

struct engine {                // what each rank has already, its device current
  ncclComm_t comm;             // the communicator of the expert-parallel group
  cudaStream_t stream;         // runs the forward passes; not one of the default streams
  std::vector<char*> weights;  // of each layer in device memory: one expert behind the other, a slot each
  std::size_t expert_bytes;
  // An all-gather on the host, by MPI or a store of the engine's: rank r's words go to all[r * mine.size()], and it
  // gives up after so many nanoseconds.
  std::function<status(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all, nanoseconds_t timeout)>
      gather;
};

void serve(engine& self, index_t num_ranks, index_t slots_per_rank, index_t num_experts, index_t num_steps) {
  auto const num_layers = static_cast<index_t>(self.weights.size());
  topology const where{{.num_ranks = num_ranks, .num_nodes = 1, .slots_per_rank = slots_per_rank}};
  auto const initial = trivial_placement({num_layers, num_experts, where.num_slots()});
  nccl::cohort cohort{self.comm, self.gather, {.compute_stream = self.stream}};
  cudart::device_store store{where, initial, cohort};
  for (index_t layer = 0; layer < num_layers; ++layer) {  // for each tensor of an expert: its name, where it lies, size
    store.add(layer, "weights", self.weights[static_cast<std::size_t>(layer)], self.expert_bytes).or_throw();
  }
  auto balancer =
      make_rebalancer(where, initial,
                      rebalancing{cudart::device_recorder{self.stream, num_layers, num_experts, {.passes = 100}},
                                  incremental_placement{},
                                  layers_per_chunk{4},
                                  {.interval = 100}},
                      store, cohort);
  balancer.start().or_throw();
  for (index_t step = 0; step < num_steps; ++step) {
    // ... the forward pass on `stream`, whose kernels count: cudart::record(stream, balancer.recorder().view(), ...)
    balancer.on_forward_pass_end().or_throw();
  }
}
