// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_EXCHANGE_HPP
#define BALLAST_EXAMPLES_ENGINE_EXCHANGE_HPP

#include <ballast/matrix_view.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace engine {

using ballast::index_t;
using ballast::status;

/// The engine's own wires between the ranks: the all-to-all of its tokens, and the message that ends every step. All
/// calls are made by all live ranks, and each ends by a deadline.
class token_exchange {
public:
  token_exchange() = default;
  token_exchange(token_exchange const&) = delete;
  token_exchange& operator=(token_exchange const&) = delete;
  virtual ~token_exchange() = default;

  [[nodiscard]] virtual index_t rank() const = 0;
  [[nodiscard]] virtual index_t num_ranks() const = 0;

  /// Where the rows stand that `send` sends: those for rank 0 first.
  [[nodiscard]] virtual std::span<float> outbox() = 0;
  /// Send rows to all ranks, and receive theirs.
  ///
  /// @param rows     [R, R] from which rank to which, the same on every rank.
  /// @param width    D, numbers of a row.
  /// @param arrived  out: rows from rank 0 first.
  [[nodiscard]] virtual status send(ballast::matrix_view<index_t const> rows, std::size_t width,
                                    std::span<float> arrived) = 0;

  /// @param all  out: [R, n]; of ranks that are expelled, anything
  [[nodiscard]] virtual status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all) = 0;
  [[nodiscard]] virtual status all_reduce(std::span<std::int64_t> values) = 0;
  [[nodiscard]] virtual status broadcast(std::span<std::byte> bytes, index_t root) = 0;

  /// Go on without a rank: called by all others, which may have stopped at different places.
  [[nodiscard]] virtual status go_on_without(index_t dead) = 0;
};

}  // namespace engine

#endif
