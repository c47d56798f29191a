// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_SCHEDULER_HPP
#define BALLAST_EXAMPLES_ENGINE_SCHEDULER_HPP

#include <ballast/load/gate.hpp>
#include <ballast/types.hpp>

#include "kernels.hpp"
#include "traffic.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace engine {

/// One token of a pass.
struct token {
  index_t request = 0;   ///< number
  index_t position = 0;  ///< in prompt and output
};

/// What every rank computes in one pass.
struct pass_plan {
  std::vector<std::vector<token>> tokens;  ///< [R]
  bool has_prefill = false;
  bool has_decode = false;

  [[nodiscard]] ballast::phase phase() const noexcept {
    if (has_prefill && has_decode) { return ballast::phase::mixed; }
    return has_prefill ? ballast::phase::prefill : ballast::phase::decode;
  }
  [[nodiscard]] std::int64_t num_tokens() const noexcept {
    std::int64_t sum = 0;
    for (auto const& of_rank : tokens) { sum += static_cast<std::int64_t>(of_rank.size()); }
    return sum;
  }
};

/// How passes are made up. Outputs must not depend on it.
struct schedule_options {
  index_t num_ranks = 1;
  index_t tokens_a_rank = 32;  ///< at most, in a pass
  std::uint64_t seed = 1;      ///< which rank a request goes to, and in which order tokens stand in a pass
};

/// Continuous batching: a request stays on its rank; a rank's pass has a token of each request that generates, and then
/// as much of the waiting prompts as there is room for. Every rank knows all of it: nothing depends on what is
/// computed.
class scheduler {
public:
  scheduler(std::span<request const> requests, schedule_options const& options)
      : requests_{requests}, options_{options}, progress_(requests.size()), rank_of_(requests.size()) {
    generator random{options.seed};
    for (auto& rank : rank_of_) {
      rank = static_cast<index_t>(random.below(static_cast<std::uint64_t>(options.num_ranks)));
    }
  }

  [[nodiscard]] bool is_done() const noexcept { return num_done_ == requests_.size(); }
  /// Passes that have been planned.
  [[nodiscard]] index_t num_passes() const noexcept { return pass_; }
  [[nodiscard]] index_t rank_of(std::size_t request) const { return rank_of_[request]; }

  /// Plan the next pass. @pre not done
  [[nodiscard]] pass_plan next() {
    pass_plan plan;
    plan.tokens.resize(static_cast<std::size_t>(options_.num_ranks));
    for (bool const decode : {true, false}) {
      for (std::size_t i = 0; i < requests_.size() && requests_[i].arrival <= pass_; ++i) { add(i, decode, plan); }
    }
    generator random{options_.seed + static_cast<std::uint64_t>(pass_)};
    for (auto& tokens : plan.tokens) { shuffle(tokens, random); }
    ++pass_;
    return plan;
  }

  /// Start a dead rank's requests anew on others. @param live  ranks that are left
  void move_requests(index_t dead, std::span<index_t const> live) {
    for (std::size_t i = 0, next = 0; i < requests_.size(); ++i) {
      if (rank_of_[i] != dead) { continue; }
      if (progress_[i] == requests_[i].num_positions()) { --num_done_; }
      progress_[i] = 0;
      rank_of_[i] = live[next++ % live.size()];
    }
  }

private:
  void add(std::size_t number, bool decode, pass_plan& plan) {
    auto const& of = requests_[number];
    auto& at = progress_[number];
    if (at == of.num_positions() || (at >= of.prompt) != decode) { return; }
    auto& tokens = plan.tokens[static_cast<std::size_t>(rank_of_[number])];
    auto const room = options_.tokens_a_rank - static_cast<index_t>(tokens.size());
    auto const count = std::min(room, decode ? 1 : of.prompt - at);
    for (index_t i = 0; i < count; ++i) { tokens.push_back({static_cast<index_t>(number), at++}); }
    if (count > 0) { (decode ? plan.has_decode : plan.has_prefill) = true; }
    if (count > 0 && at == of.num_positions()) { ++num_done_; }
  }
  static void shuffle(std::vector<token>& tokens, generator& random) {
    for (std::size_t i = tokens.size(); i > 1; --i) { std::swap(tokens[i - 1], tokens[random.below(i)]); }
  }

  std::span<request const> requests_;
  schedule_options options_;
  std::vector<index_t> progress_;  ///< [requests] positions computed or planned
  std::vector<index_t> rank_of_;   ///< [requests]
  std::size_t num_done_ = 0;
  index_t pass_ = 0;
};

}  // namespace engine

#endif
