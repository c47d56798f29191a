// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_GPU_COPIES_BY_HAND_HPP
#define BALLAST_BENCH_GPU_COPIES_BY_HAND_HPP

#include <ballast/cudart/handles.hpp>

#include "support.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

namespace ballast_bench {

/// Copies as one would write them by hand: in turn over a few streams of the device that is current at construction.
class copies_by_hand {
public:
  static constexpr std::size_t most_streams = 3;

  copies_by_hand() {
    for (std::size_t i = 0; i < most_streams; ++i) { streams_.push_back(ballast::cudart::stream::create()); }
  }
  void add(std::byte* to, std::byte const* from, std::size_t bytes) { copies_.push_back({to, from, bytes}); }
  /// Make all of them, and wait for the last.
  void run(std::size_t num_streams) const {
    std::size_t next = 0;
    for (auto const& each : copies_) {
      check(cudaMemcpyAsync(each.to, each.from, each.bytes, cudaMemcpyDeviceToDevice,
                            streams_[next++ % num_streams].get()),
            "cudaMemcpyAsync");
    }
    for (std::size_t i = 0; i < num_streams; ++i) {
      check(cudaStreamSynchronize(streams_[i].get()), "cudaStreamSynchronize");
    }
  }

private:
  struct copy {
    std::byte* to;
    std::byte const* from;
    std::size_t bytes;
  };
  std::vector<copy> copies_;
  std::vector<ballast::cudart::stream> streams_;
};

}  // namespace ballast_bench

#endif
