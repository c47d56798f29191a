// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SHARES_QUOTA_ROWS_HPP
#define BALLAST_SHARES_QUOTA_ROWS_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// The rows that solvers of quotas read, one for each layer of a placement in force.
///
/// @threads one thread at a time.
class quota_rows {
public:
  /// No rows are filled yet: `publish` each layer before it is read.
  ///
  /// @param where        R ranks, P slots.
  /// @param num_layers   L > 0
  /// @param num_logical  E <= P
  /// @complexity O(L (E + P)) words
  /// @throws std::bad_alloc
  quota_rows(topology const& where, index_t num_layers, index_t num_logical)
      : shape_{where.num_ranks(), where.num_nodes(), num_logical, where.num_slots()},
        words_per_row_{quota_row::size_of(shape_)},
        words_(words_per_row_ * static_cast<std::size_t>(num_layers)),
        num_layers_{num_layers},
        replicas_(static_cast<std::size_t>(where.num_slots())),
        pairs_(static_cast<std::size_t>(shape_.max_pairs())),
        degree_(static_cast<std::size_t>(where.num_ranks())) {
    BALLAST_EXPECTS(num_layers > 0 && num_logical > 0 && num_logical <= where.num_slots(),
                    "quota_rows: a placement of other sizes than the topology");
  }

  /// Write a layer's row. Replicas on dead ranks are left out.
  ///
  /// @param where  as at construction but for the live ranks.
  /// @param from   [L, P] with or without shares; without, an expert's replicas have even ones.
  /// @param layer  in [0, L).
  /// @pre sizes as at construction
  /// @complexity O(E + P + pairs * classes)
  /// @throws std::bad_alloc
  /// @determinism the same row on every rank that has published as often.
  void publish(topology const& where, placement const& from, index_t layer) {
    BALLAST_EXPECTS(where.num_slots() == shape_.num_slots && from.num_slots() == shape_.num_slots &&
                        from.num_logical() == shape_.num_logical && from.num_layers() == num_layers_,
                    "quota_rows: a placement of other sizes than at construction");
    BALLAST_EXPECTS_BELOW(layer, num_layers_, "quota_rows: layer");
    auto const row = writer(layer);
    auto const version = row.version();
    std::fill_n(words_.begin() + static_cast<std::ptrdiff_t>(words_per_row_) * layer, words_per_row_, 0);
    row.version() = static_cast<index_t>((static_cast<std::uint32_t>(version) + 1) & 0x7fffffffu);
    row.num_live_ranks() = where.num_live_ranks();
    list_replicas(where, from, layer, row);
    list_pairs(row);
    deal_pairs(row);
  }

  [[nodiscard]] quota_shape const& shape() const noexcept { return shape_; }
  [[nodiscard]] index_t num_layers() const noexcept { return num_layers_; }
  /// @pre `layer` in [0, L)
  [[nodiscard]] quota_row row(index_t layer) const {
    return {shape_, words_.data() + words_per_row_ * static_cast<std::size_t>(layer)};
  }
  /// The words of a layer's row. @pre `layer` in [0, L)
  [[nodiscard]] std::span<index_t const> words(index_t layer) const {
    return std::span{words_}.subspan(words_per_row_ * static_cast<std::size_t>(layer), words_per_row_);
  }

private:
  struct replica_pair {
    index_t a;
    index_t b;
  };

  [[nodiscard]] quota_row_writer writer(index_t layer) {
    return {shape_, words_.data() + words_per_row_ * static_cast<std::size_t>(layer)};
  }

  void list_replicas(topology const& where, placement const& from, index_t layer, quota_row_writer row) {
    // Movable replicas first; experts with one replica behind them.
    index_t position = 0;
    for (bool const movable : {true, false}) {
      for (index_t expert = 0; expert < shape_.num_logical; ++expert) {
        list_live(where, from, layer, expert);
        auto const count = static_cast<index_t>(replicas_.size());
        if ((count > 1) != movable) { continue; }
        row.first()[expert] = position;
        row.count()[expert] = count;
        if (movable) { row.group_first()[row.num_groups()] = position; }
        auto rest = share_one;
        for (index_t i = 0; i < count; ++i, ++position) {
          auto const slot = detail::at(replicas_, i);
          auto const even = share_one / static_cast<share_t>(count);
          auto const wanted = from.has_shares() ? from.shares(layer)[static_cast<std::size_t>(slot)] : even;
          auto const share = i + 1 == count ? rest : std::min(rest, wanted);
          rest -= share;
          row.physical()[position] = where.physical_id(slot);
          row.rank()[position] = where.rank_of_slot(slot);
          row.expert()[position] = expert;
          row.share()[position] = static_cast<index_t>(share);
          if (movable) { row.group_of()[position] = row.num_groups(); }
        }
        if (movable) { ++row.num_groups(); }
      }
      if (movable) { row.num_movable() = position; }
    }
    row.num_replicas() = position;
  }
  void list_live(topology const& where, placement const& from, index_t layer, index_t expert) {
    replicas_.clear();
    for (auto const slot : from.replicas_of(layer, expert)) {
      if (where.is_live(where.rank_of_slot(slot))) { replicas_.push_back(slot); }
    }
    std::sort(replicas_.begin(), replicas_.end());
  }

  /// All pairs of up to four replicas; of more, each with the next two in a ring.
  void list_pairs(quota_row row) {
    pairs_.clear();
    constexpr index_t all_of = 4;
    for (index_t group = 0; group < row.num_groups(); ++group) {
      auto const first = row.group_first()[group];
      auto const count = row.count()[row.expert()[first]];
      for (index_t i = 0; i < count; ++i) {
        if (count <= all_of) {
          for (index_t j = i + 1; j < count; ++j) { add_pair(row, first + i, first + j); }
        } else {
          add_pair(row, first + i, first + (i + 1) % count);
          add_pair(row, first + i, first + (i + 2) % count);
        }
      }
    }
  }
  void add_pair(quota_row row, index_t a, index_t b) {
    if (row.rank()[a] != row.rank()[b]) { pairs_.push_back({a, b}); }
  }

  /// Deal the pairs into classes, those of the ranks with most pairs first, each into the first class that has room.
  void deal_pairs(quota_row_writer row) {
    std::fill(degree_.begin(), degree_.end(), 0);
    for (auto const& pair : pairs_) {
      ++detail::at(degree_, row.rank()[pair.a]);
      ++detail::at(degree_, row.rank()[pair.b]);
    }
    auto const crowd = [&](replica_pair const& pair) {
      return std::max(detail::at(degree_, row.rank()[pair.a]), detail::at(degree_, row.rank()[pair.b]));
    };
    std::sort(pairs_.begin(), pairs_.end(), [&](replica_pair const& x, replica_pair const& y) {
      if (crowd(x) != crowd(y)) { return crowd(x) > crowd(y); }
      return x.a != y.a ? x.a < y.a : x.b < y.b;
    });
    row.num_pairs() = static_cast<index_t>(pairs_.size());
    index_t dealt = 0;
    while (!pairs_.empty()) {
      busy_.assign(degree_.size(), 0);
      auto kept = pairs_.begin();
      for (auto const& pair : pairs_) {
        auto& a = detail::at(busy_, row.rank()[pair.a]);
        auto& b = detail::at(busy_, row.rank()[pair.b]);
        if (a != 0 || b != 0) {
          *kept++ = pair;
          continue;
        }
        a = b = 1;
        row.pair_a()[dealt] = pair.a;
        row.pair_b()[dealt++] = pair.b;
      }
      pairs_.erase(kept, pairs_.end());
      row.class_end()[row.num_classes()++] = dealt;
    }
  }

  quota_shape shape_;
  std::size_t words_per_row_;
  std::vector<index_t> words_;  ///< [L] rows
  index_t num_layers_;
  std::vector<index_t> replicas_;
  std::vector<replica_pair> pairs_;
  std::vector<index_t> degree_;      ///< [R] pairs of each rank
  std::vector<unsigned char> busy_;  ///< [R] has a pair in this class
};

BALLAST_END_NAMESPACE

#endif
