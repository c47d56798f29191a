// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_BATCH_BALANCE_HPP
#define BALLAST_EXAMPLES_SUPPORT_BATCH_BALANCE_HPP

#include <ballast/dispatch/quota_dispatch.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/load/history.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/shares/quota_rows.hpp>
#include <ballast/shares/quota_sources.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace ballast_tools {

/// The ways to send a batch's tokens to ranks that are compared.
enum class split_kind : std::uint8_t {
  start,      ///< nothing was planned: the layout to start with, tokens split evenly
  even,       ///< the plan, tokens split evenly
  shares,     ///< the plan and its shares
  refreshed,  ///< the plan, and the shares that were best for the batch before
  quotas,     ///< the plan, and quotas for this very batch
};
inline constexpr std::size_t num_split_kinds = 5;
inline constexpr std::array<char const*, num_split_kinds> split_names{"start", "even", "shares", "refreshed", "quotas"};

/// max / mean of the ranks' loads: sum of maxima over sum of means, and the worst layer of a batch.
struct rank_balance {
  double max = 0;
  double mean = 0;
  double worst = 0;  ///< 0 while there is none
  ballast::index_t worst_batch = 0;
  ballast::index_t worst_layer = 0;

  void add(ballast::index_t batch, ballast::index_t layer, double most, double average) {
    max += most;
    mean += average;
    if (average > 0 && most / average > worst) {
      worst = most / average;
      worst_batch = batch;
      worst_layer = layer;
    }
  }
  rank_balance& operator+=(rank_balance const& other) {
    max += other.max;
    mean += other.mean;
    if (other.worst > worst) {
      worst = other.worst;
      worst_batch = other.worst_batch;
      worst_layer = other.worst_layer;
    }
    return *this;
  }
  [[nodiscard]] double ratio() const { return mean > 0 ? max / mean : 1; }
};

/// What one or more batches came to.
struct batch_score {
  std::array<rank_balance, num_split_kinds> planned;   ///< by counts, in parts of tokens
  std::array<rank_balance, num_split_kinds> realised;  ///< by ids that were mapped, each to one replica
  std::int64_t rows_off = 0;                           ///< rows that replicas got beyond their quotas
  std::int64_t rows_mapped = 0;

  batch_score& operator+=(batch_score const& other) {
    for (std::size_t kind = 0; kind < num_split_kinds; ++kind) {
      planned[kind] += other.planned[kind];
      realised[kind] += other.realised[kind];
    }
    rows_off += other.rows_off;
    rows_mapped += other.rows_mapped;
    return *this;
  }
};

/// Judges how batches fall on the ranks under a plan, in every way.
class batch_judge {
public:
  using index_t = ballast::index_t;
  using load_t = ballast::load_t;

  batch_judge(ballast::topology const& where, ballast::placement const& start,
              ballast::quota_options const& options = {})
      : where_{where},
        options_{options},
        rows_{where, start.num_layers(), start.num_logical()},
        placements_{start, start, start, start},
        quotas_(static_cast<std::size_t>(start.num_layers())) {}

  /// Judge this plan from now on; without shares of its own it gets those that are best for `loads`.
  void adopt(ballast::placement const& plan, ballast::load_history_view loads) {
    in(split_kind::even) = plan;
    in(split_kind::even).drop_shares();
    in(split_kind::shares) = plan;
    if (!plan.has_shares()) { optimal_shares(where_, in(split_kind::shares), loads, solver_).or_throw(); }
    for (index_t layer = 0; layer < plan.num_layers(); ++layer) {
      rows_.publish(where_, in(split_kind::shares), layer);
    }
  }

  /// Judge the next batch.
  ///
  /// @param previous  [L, E] the batch before, for which shares are refreshed
  /// @param loads     [L, E]
  [[nodiscard]] batch_score plan(index_t batch, ballast::matrix_view<load_t const> previous,
                                 ballast::matrix_view<load_t const> loads) {
    in(split_kind::refreshed) = in(split_kind::shares);
    optimal_shares(where_, in(split_kind::refreshed), previous, solver_).or_throw();
    batch_score score;
    for (index_t layer = 0; layer < loads.rows(); ++layer) {
      auto const mean = mean_of(loads.row(layer));
      for (std::size_t kind = 0; kind < placements_.size(); ++kind) {
        score.planned[kind].add(batch, layer, balance_of(where_, placements_[kind], layer, loads.row(layer)).max, mean);
      }
      solve(layer, loads.row(layer));
      score.planned.back().add(batch, layer, balance_.max, mean);
    }
    return score;
  }

  /// The same, and map every id to its replica.
  ///
  /// @param ids_of  (layer, rank) -> [tokens, top_k] ids of the rank's tokens; they count up to `loads`
  template <class IdsOf>
  [[nodiscard]] batch_score realise(index_t batch, ballast::matrix_view<load_t const> previous,
                                    ballast::matrix_view<load_t const> loads, index_t top_k, IdsOf ids_of) {
    auto score = plan(batch, previous, loads);
    std::vector<std::array<std::vector<load_t>, num_split_kinds>> received(static_cast<std::size_t>(loads.rows()));
    for (auto& of_layer : received) {
      of_layer.fill(std::vector<load_t>(static_cast<std::size_t>(where_.num_ranks())));
    }
    for (index_t rank = 0; rank < where_.num_ranks(); ++rank) { dispatch(rank, top_k, ids_of, received); }
    for (index_t layer = 0; layer < loads.rows(); ++layer) {
      auto& of_layer = received[static_cast<std::size_t>(layer)];
      keep_to_quotas(layer, loads, ids_of, of_layer.back(), score);
      for (std::size_t kind = 0; kind < num_split_kinds; ++kind) {
        auto const most = *std::max_element(of_layer[kind].begin(), of_layer[kind].end());
        score.realised[kind].add(batch, layer, static_cast<double>(most), mean_of(loads.row(layer)));
      }
    }
    return score;
  }

private:
  [[nodiscard]] ballast::placement& in(split_kind kind) { return placements_[static_cast<std::size_t>(kind)]; }
  [[nodiscard]] double mean_of(std::span<load_t const> loads) const {
    return static_cast<double>(std::accumulate(loads.begin(), loads.end(), load_t{0})) / where_.num_ranks();
  }
  void solve(index_t layer, std::span<load_t const> loads) {
    tokens_.assign(loads.begin(), loads.end());
    balance_ = quota_solver_.solve(rows_.row(layer), tokens_, options_);
    quotas_[static_cast<std::size_t>(layer)].assign(quota_solver_.quotas().begin(), quota_solver_.quotas().end());
  }

  /// Map a rank's tokens by table, as its own tables say.
  template <class IdsOf, class Received>
  void dispatch(index_t rank, index_t top_k, IdsOf const& ids_of, Received& received) {
    for (std::size_t kind = 0; kind < placements_.size(); ++kind) {
      auto const mode =
          placements_[kind].has_shares() ? ballast::dispatch_mode::by_share : ballast::dispatch_mode::even;
      ballast::dispatch_tables tables{where_, placements_[kind].shape(), ballast::rank_id{rank}, mode};
      tables.publish(where_, placements_[kind]);
      for (index_t layer = 0; layer < placements_[kind].num_layers(); ++layer) {
        std::span<index_t const> const ids = ids_of(layer, rank);
        physical_.resize(ids.size());
        ballast::dispatch_ids<index_t>(tables.view(), layer, top_k, ids, physical_);
        auto& loads = received[static_cast<std::size_t>(layer)][kind];
        for (auto const slot : physical_) { ++loads[static_cast<std::size_t>(where_.rank_of_slot(slot))]; }
      }
    }
  }

  /// Map all ranks' tokens by quota, and compare what replicas get with their quotas.
  template <class IdsOf>
  void keep_to_quotas(index_t layer, ballast::matrix_view<load_t const> loads, IdsOf const& ids_of,
                      std::vector<load_t>& received, batch_score& score) {
    auto const row = rows_.row(layer);
    auto const& quotas = quotas_[static_cast<std::size_t>(layer)];
    counts_.assign(static_cast<std::size_t>(where_.num_ranks()) * static_cast<std::size_t>(loads.columns()), 0);
    ballast::matrix_view<index_t> const counts{counts_, where_.num_ranks(), loads.columns()};
    for (index_t rank = 0; rank < where_.num_ranks(); ++rank) {
      for (auto const id : std::span<index_t const>{ids_of(layer, rank)}) { ++counts(rank, id); }
    }
    by_slot_.assign(static_cast<std::size_t>(where_.num_slots()), 0);
    for (index_t rank = 0; rank < where_.num_ranks(); ++rank) {
      std::span<index_t const> const ids = ids_of(layer, rank);
      physical_.resize(ids.size());
      sources_.assign(row, quotas, counts, rank);
      dispatcher_.map<index_t>(row, sources_.ends(), 0, 0, ids, physical_);
      for (auto const slot : physical_) {
        ++by_slot_[static_cast<std::size_t>(slot)];
        ++received[static_cast<std::size_t>(where_.rank_of_slot(slot))];
      }
      score.rows_mapped += static_cast<std::int64_t>(ids.size());
    }
    for (index_t position = 0; position < row.sizes().num_replicas; ++position) {
      auto const got = by_slot_[static_cast<std::size_t>(row.physical()[position])];
      score.rows_off += std::max(index_t{0}, got - quotas[static_cast<std::size_t>(position)]);
    }
  }

  ballast::topology const& where_;
  ballast::quota_options options_;
  ballast::quota_rows rows_;
  std::array<ballast::placement, num_split_kinds - 1> placements_;  ///< of all kinds but quotas
  std::vector<std::vector<index_t>> quotas_;                        ///< [L] of the batch, by position
  ballast::share_solver solver_;
  ballast::quota_solver quota_solver_;
  ballast::quota_sources sources_;
  ballast::quota_dispatch dispatcher_;
  ballast::quota_balance balance_;
  std::vector<index_t> tokens_;
  std::vector<index_t> physical_;
  std::vector<index_t> counts_;   ///< [R, E]
  std::vector<index_t> by_slot_;  ///< [P] rows that each got
};

}  // namespace ballast_tools

#endif
