// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_GPU_EXPERT_SIZES_HPP
#define BALLAST_BENCH_GPU_EXPERT_SIZES_HPP

#include <cstddef>
#include <numeric>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace ballast_bench {

/// The tensors of one expert of a real model, in bytes.
struct expert_sizes {
  char const* name;
  std::vector<std::size_t> tensors;

  [[nodiscard]] std::size_t total() const { return std::accumulate(tensors.begin(), tensors.end(), std::size_t{0}); }
};

/// 42 MiB: hidden 7168, intermediate 2048, FP8 with a float scale for each 128 x 128 block.
[[nodiscard]] inline expert_sizes deepseek_v3_fp8() {
  return {"deepseek_v3_fp8", {4096u * 7168, 32u * 56 * 4, 7168u * 2048, 56u * 16 * 4}};
}
/// 12.6 MiB: hidden and intermediate 2880, four bits a weight, a byte of scale for 32 weights, bfloat16 biases.
[[nodiscard]] inline expert_sizes gpt_oss_mxfp4() {
  return {"gpt_oss_mxfp4", {5760u * 2880 / 2, 5760u * 90, 5760u * 2, 2880u * 2880 / 2, 2880u * 90, 2880u * 2}};
}
/// 4.5 MiB: hidden 2048, intermediate 768, FP8 with a float scale for each 128 x 128 block.
[[nodiscard]] inline expert_sizes qwen3_30b_fp8() {
  return {"qwen3_30b_fp8", {1536u * 2048, 12u * 16 * 4, 2048u * 768, 16u * 6 * 4}};
}

[[nodiscard]] inline expert_sizes sizes_named(std::string_view name) {
  for (auto const& sizes : {deepseek_v3_fp8(), gpt_oss_mxfp4(), qwen3_30b_fp8()}) {
    if (name == sizes.name) { return sizes; }
  }
  throw std::invalid_argument{"no such model"};
}

}  // namespace ballast_bench

#endif
