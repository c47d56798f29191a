// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_ROUTER_HPP
#define BALLAST_EXAMPLES_ENGINE_ROUTER_HPP

#include <ballast/detail/text.hpp>
#include <ballast/dispatch/quota_dispatch.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/shares/quota_rows.hpp>
#include <ballast/shares/quota_sources.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>

#include "exchange.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace engine {

/// How an expert's tokens are split over its replicas.
enum class split_kind : std::uint8_t {
  even,           ///< by a hash of the token
  shares,         ///< by a hash, in proportion to the shares in force
  quotas,         ///< by quotas that are worked out for every batch
  perfect,        ///< to any expert, alike many to each: what no balancer could beat, and nonsense
  perfect_ranks,  ///< to any rank, alike many to each, and there to experts as unevenly as the gate: nonsense too
};
/// Whether tokens go to experts that the gate did not choose.
[[nodiscard]] constexpr bool is_nonsense(split_kind split) noexcept {
  return split == split_kind::perfect || split == split_kind::perfect_ranks;
}

/// Turns the gate's choices into physical ids.
class router {
public:
  router(ballast::topology const& where, ballast::placement const& initial, index_t rank, split_kind split)
      : split_{split},
        rank_{rank},
        tables_{where, initial.shape(), ballast::rank_id{rank},
                split == split_kind::shares ? ballast::dispatch_mode::by_share : ballast::dispatch_mode::even},
        rows_{where, initial.num_layers(), initial.num_logical()} {
    for (index_t layer = 0; layer < initial.num_layers(); ++layer) { publish(where, initial, layer); }
  }

  /// Route by this placement's layer from now on.
  void publish(ballast::topology const& where, ballast::placement const& in_force, index_t layer) {
    if (split_ == split_kind::quotas) {
      rows_.publish(where, in_force, layer);
    } else {
      tables_.publish(where, in_force, layer);
    }
    is_live_.resize(static_cast<std::size_t>(where.num_ranks()));
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      is_live_[static_cast<std::size_t>(rank)] = where.is_live(rank) ? 1 : 0;
    }
  }

  /// @param ids       [n, choices]
  /// @param physical  out: [n, choices]
  /// @return what the exchange of counts returns, which quotas take; `errc::missing_expert` for an id without a replica
  [[nodiscard]] status map(index_t layer, index_t choices, std::span<index_t const> ids, std::span<index_t> physical,
                           token_exchange& ranks) {
    if (split_ != split_kind::quotas) {
      ballast::dispatch_ids(tables_.view(), layer, choices, ids, physical);
    } else if (auto result = map_by_quotas(layer, ids, physical, ranks); !result.ok()) {
      return result;
    }
    auto const missing = std::ranges::find(physical, -1);
    if (missing == physical.end()) { return {}; }
    return {ballast::errc::missing_expert,
            ballast::detail::concat("layer ", layer, ": expert ",
                                    ids[static_cast<std::size_t>(missing - physical.begin())], " has no live replica")};
  }

private:
  [[nodiscard]] status map_by_quotas(index_t layer, std::span<index_t const> ids, std::span<index_t> physical,
                                     token_exchange& ranks) {
    auto const row = rows_.row(layer);
    auto const experts = static_cast<std::size_t>(row.shape().num_logical);
    mine_.assign(experts, 0);
    for (auto const id : ids) {
      if (static_cast<std::size_t>(id) < experts) { ++mine_[static_cast<std::size_t>(id)]; }
    }
    gathered_.resize(experts * is_live_.size());
    if (auto result = ranks.all_gather(mine_, gathered_); !result.ok()) { return result; }
    counts_.resize(gathered_.size());
    totals_.assign(experts, 0);
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      counts_[i] = is_live_[i / experts] != 0 ? static_cast<index_t>(gathered_[i]) : 0;
      totals_[i % experts] += counts_[i];
    }
    solver_.solve(row, totals_);
    sources_.assign(row, solver_.quotas(),
                    ballast::matrix_view<index_t const>{counts_, row.shape().num_ranks, row.shape().num_logical},
                    rank_);
    auto const tables = tables_.view();
    dispatcher_.map(row, sources_.ends(), tables.num_reserved, tables.first_reserved, ids, physical);
    return {};
  }

  split_kind split_;
  index_t rank_;
  ballast::dispatch_tables tables_;
  ballast::quota_rows rows_;
  ballast::quota_solver solver_;
  ballast::quota_sources sources_;
  ballast::quota_dispatch dispatcher_;
  std::vector<unsigned char> is_live_;   ///< [R]
  std::vector<std::uint64_t> mine_;      ///< [E]
  std::vector<std::uint64_t> gathered_;  ///< [R, E]
  std::vector<index_t> counts_;          ///< [R, E]
  std::vector<index_t> totals_;          ///< [E]
};

}  // namespace engine

#endif
