// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_SEQUENCES_HPP
#define BALLAST_EXAMPLES_ENGINE_SEQUENCES_HPP

#include "model.hpp"
#include "request_outputs.hpp"
#include "scheduler.hpp"
#include "traffic.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace engine {

/// What a rank keeps of the requests that it serves: keys and values of the positions computed, and what came out.
class sequences {
public:
  sequences(model const& of, std::span<request const> requests);

  /// Rows that a pass starts from. @param rows  out: [n, D]
  void embed(std::span<token const> tokens, std::span<float> rows) const;
  /// Attention of one layer, added to the rows. Tokens of one request may stand in any order, but none before its
  /// predecessors' pass.
  void attend(index_t layer, std::span<token const> tokens, std::span<float> rows);
  /// Keep what came out. @param rows  [n, D]
  void finish(std::span<token const> tokens, std::span<float const> rows);

  /// Bits of all outputs of a request.
  [[nodiscard]] std::uint64_t outcome_of(std::size_t request) const { return outputs_.outcome_of(request); }

private:
  struct history {
    std::vector<std::vector<float>> keys;    ///< [L], each [positions, A]
    std::vector<std::vector<float>> values;  ///< [L]
  };
  [[nodiscard]] history& of(token const& at);

  model const& model_;
  std::span<request const> requests_;
  request_outputs outputs_;
  std::vector<history> histories_;
};

}  // namespace engine

#endif
