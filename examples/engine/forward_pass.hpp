// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_FORWARD_PASS_HPP
#define BALLAST_EXAMPLES_ENGINE_FORWARD_PASS_HPP

#include <ballast/topology.hpp>

#include "exchange.hpp"
#include "gate.hpp"
#include "model.hpp"
#include "rank_experts.hpp"
#include "scheduler.hpp"
#include "sequences.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace engine {

/// One rank's part of a forward pass: attention of its own tokens, the experts that it holds for everybody's.
class forward_pass {
public:
  forward_pass(model const& of, ballast::topology const& where, rank_experts& experts, sequences& kept,
               token_exchange& ranks);

  /// Says where the choices of a layer go. @param ids  [n, k + 1] @param physical  out: [n, k + 1]
  using route_function =
      std::function<status(index_t layer, std::span<index_t const> ids, std::span<index_t> physical)>;

  /// @param tokens  of this rank; a rank without any takes part all the same
  /// @return why the ranks could not exchange rows; `errc::peer_lost` and others name the rank
  [[nodiscard]] status run(std::span<token const> tokens, route_function const& route);

  /// [L] rows that this rank's slots computed in the last pass, those of the shared expert left out.
  [[nodiscard]] std::span<std::uint64_t const> work() const noexcept { return work_; }

private:
  [[nodiscard]] status run_layer(index_t layer, std::span<token const> tokens, route_function const& route);
  /// Which rows go where, and how many come.
  [[nodiscard]] status count_rows();
  void fill_outbox();
  /// What has arrived goes through the experts, and what comes out into the outbox.
  void run_experts(index_t layer);

  model const& model_;
  ballast::topology const& where_;
  rank_experts& experts_;
  sequences& kept_;
  token_exchange& ranks_;

  std::vector<float> rows_;  ///< [n, D]
  gated chosen_;
  std::vector<index_t> physical_;         ///< [n, k + 1]
  std::vector<std::size_t> order_;        ///< places in `physical_`, by id
  std::vector<std::uint64_t> mine_;       ///< [physical ids] rows for each
  std::vector<std::uint64_t> counts_;     ///< [R, physical ids]
  std::vector<index_t> sent_, returned_;  ///< [R, R] rows from which rank to which
  std::vector<float> arrived_;            ///< rows by source rank and slot
  std::vector<float> results_;            ///< [n, k + 1, D]
  std::vector<std::uint64_t> work_;
};

}  // namespace engine

#endif
