// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_KERNELS_HPP
#define BALLAST_EXAMPLES_ENGINE_KERNELS_HPP

#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace engine {

// Arithmetic of the model. What a row comes to depends on that row alone, to the last bit: every sum has a fixed order,
// and rows are computed in tiles of one size, padded with zeros, so that no row is computed otherwise than its
// neighbours. Compiled in one source file, optimised in every build tree, without contraction.

/// Numbers that depend on a seed alone, the same on every machine.
class generator {
public:
  explicit generator(std::uint64_t seed) : state_{seed} {}

  std::uint64_t operator()() noexcept {
    state_ += 0x9e3779b97f4a7c15u;
    auto x = state_;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  /// In [0, bound). @pre bound > 0
  std::uint64_t below(std::uint64_t bound) noexcept { return (*this)() % bound; }

private:
  std::uint64_t state_;
};

/// Fill with numbers from [-scale, scale), evenly spread.
void fill_evenly(std::uint64_t seed, float scale, std::span<float> out);
/// Fill with numbers of mean 0 and variance 1, close to normally distributed.
void fill_normally(std::uint64_t seed, std::span<float> out);

/// out[n, N] = rows[n, K] * weights[K, N].
void multiply(std::span<float const> rows, std::size_t depth, std::span<float const> weights, std::span<float> out);

/// Divide the first `count` numbers by their root mean square; the others are copied.
void normalise(std::span<float const> row, std::size_t count, std::span<float> out);

/// One row's attention over the positions [0, keys.size() / query.size()): softmax of query * key, times values.
///
/// @param out  [A] as `query`
void attend(std::span<float const> query, std::span<float const> keys, std::span<float const> values,
            std::span<float> out);

/// The `ids.size()` largest logits, largest first, the lower expert first where two are equal, and their softmax.
void choose_experts(std::span<float const> logits, std::span<ballast::index_t> ids, std::span<float> weights);

/// The three matrices of an expert that computes down(silu(x gate) * (x up)).
struct expert_view {
  std::span<float const> gate;  ///< [D, I]
  std::span<float const> up;    ///< [D, I]
  std::span<float const> down;  ///< [I, D]
};
/// out[n, D] of rows[n, D]. @param hidden  D
void run_expert(expert_view const& expert, std::size_t hidden, std::span<float const> rows, std::span<float> out);

/// to += weight * row
void add_scaled(std::span<float const> row, float weight, std::span<float> to);

}  // namespace engine

#endif
