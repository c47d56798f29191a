// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_GPU_REPORT_HPP
#define BALLAST_EXAMPLES_GPU_REPORT_HPP

#include <ballast/load/history.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/types.hpp>

#include "rank.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace gpu_example {

using ballast::index_t;

/// The passes as a table, a row for each eight, and whether they were as they should be.
class report {
public:
  explicit report(settings const& how) : how_{&how} {
    std::printf("             balancedness of the ranks' work       moved         on_forward_pass_end, us\n");
    std::printf("passes       never moved     as served      experts      MiB       mean     most\n");
  }

  void add(pass_facts const& facts) {
    ++pass_;
    if (facts.num_wrong > 0) {
      std::printf("pass %d: %lld outputs are wrong: %s\n", pass_, static_cast<long long>(facts.num_wrong),
                  facts.first_wrong.c_str());
      all_right_ = false;
    }
    if (!facts.failure.empty()) {
      std::printf("pass %d: moves ended early: %s\n", pass_, facts.failure.c_str());
      has_failed_ = true;
    }
    recovered_ = has_failed_ && facts.failure.empty();
    add_balance(facts.work);
    row_.moves += facts.moves;
    row_.bytes += facts.bytes;
    row_.calls += facts.call;
    row_.longest_call = std::max(row_.longest_call, facts.call);
    auto const num_passes = static_cast<index_t>(how_->choices.size());
    bool const traffic_ends = pass_ == num_passes / 2 || pass_ == num_passes;
    if (++row_.passes == 8 || traffic_ends) { end_row(traffic_ends); }
  }

  /// Print the verdict. @return whether everything that was promised has happened
  [[nodiscard]] bool conclude() const {
    std::printf("\n%s; balance %s for both kinds of traffic\n",
                all_right_ ? "every output was right" : "OUTPUTS WERE WRONG",
                improved_ ? "improved" : "DID NOT IMPROVE");
    bool const as_ordered = how_->stall_at > 0 ? recovered_ : !has_failed_;
    if (how_->stall_at > 0) {
      std::printf("the ranks %s\n", recovered_ ? "recovered" : "DID NOT RECOVER");
    } else if (has_failed_) {
      std::printf("MOVES ENDED EARLY, and no rank was told to be late\n");
    }
    return all_right_ && improved_ && as_ordered;
  }

private:
  /// Add what the ranks have computed, and what they would have where nothing was ever moved.
  void add_balance(std::vector<ballast::load_t> const& work) {
    auto const num_layers = static_cast<std::size_t>(how_->initial.num_layers());
    auto const& choices = how_->choices[static_cast<std::size_t>(pass_ - 1)];
    auto const in_layer = choices.size() / num_layers;
    std::vector<ballast::load_t> loads(static_cast<std::size_t>(how_->initial.num_logical()));
    for (std::size_t layer = 0; layer < num_layers; ++layer) {
      ballast::load_t most = 0;
      for (std::size_t i = layer; i < work.size(); i += num_layers) { most = std::max(most, work[i]); }
      row_.served +=
          ballast::layer_balance{static_cast<double>(in_layer) / how_->where.num_ranks(), static_cast<double>(most)};
      std::fill(loads.begin(), loads.end(), 0);
      for (std::size_t i = 0; i < in_layer; ++i) { ++loads[static_cast<std::size_t>(choices[layer * in_layer + i])]; }
      row_.unmoved += ballast::balance_of(how_->where, how_->initial, static_cast<index_t>(layer), loads);
    }
  }

  void end_row(bool traffic_ends) {
    std::printf("%3d to %3d   %11.3f   %11.3f   %10lld   %8.1f   %8.0f %8.0f\n", pass_ - row_.passes + 1, pass_,
                row_.unmoved.balancedness(), row_.served.balancedness(), static_cast<long long>(row_.moves),
                static_cast<double>(row_.bytes) / (1 << 20), static_cast<double>(row_.calls) / 1e3 / row_.passes,
                static_cast<double>(row_.longest_call) / 1e3);
    if (traffic_ends) {
      // Tokens are dealt to replicas by a hash, so a little more or less is luck: half of what is missing must be
      // there.
      auto const missing = 1 - row_.unmoved.balancedness();
      improved_ = improved_ && row_.served.balancedness() > 1 - missing / 2;
      if (pass_ < static_cast<index_t>(how_->choices.size())) { std::printf("the traffic changes\n"); }
    }
    row_ = {};
  }

  struct row {
    index_t passes = 0;
    ballast::layer_balance served;
    ballast::layer_balance unmoved;
    std::int64_t moves = 0;
    std::int64_t bytes = 0;
    ballast::nanoseconds_t calls = 0;
    ballast::nanoseconds_t longest_call = 0;
  };

  settings const* how_;
  index_t pass_ = 0;
  row row_;
  bool all_right_ = true;
  bool improved_ = true;
  bool has_failed_ = false;
  bool recovered_ = false;
};

}  // namespace gpu_example

#endif
