// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_SUPPORT_LOADS_HPP
#define BALLAST_BENCH_SUPPORT_LOADS_HPP

#include <ballast/types.hpp>

#include <cmath>
#include <cstddef>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace ballast_bench {

/// Log-normal expert loads, `[L, E]`, the spread of DeepSeek-R1's: no shippable trace has the sizes of these models.
inline std::vector<ballast::load_t> log_normal_loads(ballast::index_t num_layers, ballast::index_t num_logical,
                                                     double sigma = 0.65, unsigned seed = 58) {
  std::mt19937_64 random{seed};
  std::normal_distribution<double> normal;
  std::vector<ballast::load_t> loads(static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_logical));
  for (auto& tokens : loads) { tokens = static_cast<ballast::load_t>(250'000 * std::exp(sigma * normal(random))); }
  return loads;
}

/// The same loads some time later: each times a log-normal factor.
inline std::vector<ballast::load_t> drifted(std::vector<ballast::load_t> loads, double sigma, unsigned seed = 59) {
  std::mt19937_64 random{seed};
  std::normal_distribution<double> normal;
  for (auto& tokens : loads) {
    tokens = static_cast<ballast::load_t>(static_cast<double>(tokens) * std::exp(sigma * normal(random)));
  }
  return loads;
}

/// Loads by Zipf's law, `[L, E]`, about 2^30 a layer: the k-th most popular expert of a layer, in an order of its own,
/// has a part of them in proportion to k^-exponent.
inline std::vector<ballast::load_t> zipf_loads(ballast::index_t num_layers, ballast::index_t num_logical,
                                               double exponent, unsigned seed = 60) {
  std::mt19937_64 random{seed};
  std::vector<double> parts(static_cast<std::size_t>(num_logical));
  for (std::size_t k = 0; k < parts.size(); ++k) { parts[k] = std::pow(static_cast<double>(k + 1), -exponent); }
  auto const sum = std::accumulate(parts.begin(), parts.end(), 0.0);
  std::vector<ballast::load_t> loads;
  for (ballast::index_t layer = 0; layer < num_layers; ++layer) {
    for (auto i = parts.size(); i > 1; --i) { std::swap(parts[i - 1], parts[random() % i]); }
    for (auto const part : parts) { loads.push_back(static_cast<ballast::load_t>(part / sum * (1 << 30))); }
  }
  return loads;
}

}  // namespace ballast_bench

#endif
