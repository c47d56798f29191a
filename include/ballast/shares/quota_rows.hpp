// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SHARES_QUOTA_ROWS_HPP
#define BALLAST_SHARES_QUOTA_ROWS_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/reset_by_move.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// The rows that solvers of quotas read, one for each layer of a placement in force.
///
/// @threads  one thread at a time.
/// @lifetime it must outlive the rows that it hands out, and stay where it is. What was moved from has no layers.
class quota_rows {
public:
  /// No rows are filled yet: `publish` each layer before it is read.
  ///
  /// @param where        R ranks, P slots.
  /// @param num_layers   L > 0
  /// @param num_logical  E in [1, P]
  /// @complexity O(L (E + P)) words
  /// @throws std::bad_alloc
  quota_rows(topology const& where, index_t num_layers, index_t num_logical)
      : layout_{shape_of(where, num_layers, num_logical)},
        rows_(layout_.size / sizeof(chunk) * static_cast<std::size_t>(num_layers)),
        num_layers_{num_layers},
        degree_(static_cast<std::size_t>(where.num_ranks())) {
    replicas_.reserve(static_cast<std::size_t>(where.num_slots()));
    pairs_.reserve(static_cast<std::size_t>(shape().max_pairs()));
    busy_.reserve(degree_.size());
  }

  /// Write a layer's row. Replicas on dead ranks are left out.
  ///
  /// @param where  as at construction but for the live ranks.
  /// @param from   [L, P] with or without shares; without, an expert's replicas have even ones.
  /// @param layer  in [0, L).
  /// @pre sizes as at construction
  /// @complexity O(E + P + pairs * classes), and sorting the pairs; no allocation.
  /// @throws nothing
  /// @determinism the same row on every rank.
  void publish(topology const& where, placement const& from, index_t layer) {
    BALLAST_EXPECTS(where.num_slots() == shape().num_slots && from.num_slots() == shape().num_slots &&
                        from.num_logical() == shape().num_logical && from.num_layers() == num_layers_,
                    "quota_rows: a placement of other sizes than at construction");
    BALLAST_EXPECTS_BELOW(layer, num_layers(), "quota_rows: layer");
    quota_row_writer const row{layout_, begin_of(layer)};
    std::fill_n(row.bytes(), layout_.size, std::byte{0});
    row.sizes().num_live_ranks = where.num_live_ranks();
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      row.live()[rank / 32] |= std::uint32_t{where.is_live(rank)} << (rank % 32);
    }
    list_replicas(where, from, layer, row);
    list_by_rank(row);
    list_pairs(row);
    deal_pairs(row);
    auto const value = digest{}.add_bytes(bytes(layer)).value();
    row.sizes().version = static_cast<index_t>((value ^ value >> 32) & 0x7fffffffu);
  }

  [[nodiscard]] quota_layout const& layout() const noexcept { return layout_; }
  [[nodiscard]] quota_shape const& shape() const noexcept { return layout_.shape; }
  [[nodiscard]] index_t num_layers() const noexcept { return num_layers_; }
  /// @pre `layer` in [0, L)
  [[nodiscard]] quota_row row(index_t layer) const { return {layout_, bytes(layer).data()}; }
  /// Those of a layer's row. @pre `layer` in [0, L)
  [[nodiscard]] std::span<std::byte const> bytes(index_t layer) const {
    BALLAST_EXPECTS_BELOW(layer, num_layers(), "quota_rows: layer");
    return std::as_bytes(std::span{rows_}).subspan(layout_.size * static_cast<std::size_t>(layer), layout_.size);
  }

private:
  struct alignas(16) chunk {
    std::byte bytes[16];
  };

  /// Before anything is sized by it.
  [[nodiscard]] static quota_shape shape_of(topology const& where, index_t num_layers, index_t num_logical) {
    BALLAST_EXPECTS_WITHIN(num_layers, 1, std::numeric_limits<index_t>::max(), "quota_rows: number of layers");
    BALLAST_EXPECTS_BELOW(where.num_slots(), quota_shape::most_slots, "quota_rows: number of slots");
    BALLAST_EXPECTS_WITHIN(num_logical, 1, where.num_slots(), "quota_rows: number of experts");
    return {where.num_ranks(), where.num_nodes(), num_logical, where.num_slots()};
  }
  [[nodiscard]] std::byte* begin_of(index_t layer) {
    return std::as_writable_bytes(std::span{rows_}).data() + layout_.size * static_cast<std::size_t>(layer);
  }

  /// Movable replicas first; experts with one replica behind them.
  void list_replicas(topology const& where, placement const& from, index_t layer, quota_row_writer row) {
    auto& sizes = row.sizes();
    bool const even = from.has_even_shares(layer);
    for (bool const movable : {true, false}) {
      for (index_t expert = 0; expert < shape().num_logical; ++expert) {
        list_live(where, from, layer, expert);
        if ((replicas_.size() > 1) == movable) { add_expert(where, from, layer, expert, even, row); }
      }
      if (movable) { sizes.num_movable = sizes.num_replicas; }
    }
    row.group_first()[sizes.num_groups] = sizes.num_movable;
  }
  /// @param even  live replicas share evenly, be it that nothing else was said.
  void add_expert(topology const& where, placement const& from, index_t layer, index_t expert, bool even,
                  quota_row_writer row) {
    auto& sizes = row.sizes();
    auto const count = static_cast<index_t>(replicas_.size());
    bool const movable = count > 1;
    row.entries()[expert] = {count == 1 ? where.physical_id(replicas_[0]) : sizes.num_replicas, -1, 0, count};
    if (movable) { row.group_first()[sizes.num_groups] = sizes.num_replicas; }
    auto rest = share_one;
    for (index_t i = 0; i < count; ++i) {
      auto const slot = detail::at(replicas_, i);
      auto const wanted =
          even ? share_one / static_cast<share_t>(count) : from.shares(layer)[static_cast<std::size_t>(slot)];
      auto const share = i + 1 == count ? rest : std::min(rest, wanted);
      rest -= share;
      auto const position = sizes.num_replicas++;
      row.physical()[position] = where.physical_id(slot);
      row.holders()[position] = {static_cast<std::uint16_t>(where.rank_of_slot(slot)),
                                 static_cast<std::uint16_t>(movable ? sizes.num_groups : 0),
                                 static_cast<std::uint16_t>(expert),
                                 static_cast<std::uint16_t>(where.node_of_slot(slot))};
      if (movable) { row.share()[position] = static_cast<index_t>(share); }
    }
    if (movable) { ++sizes.num_groups; }
  }
  void list_live(topology const& where, placement const& from, index_t layer, index_t expert) {
    replicas_.clear();
    for (auto const slot : from.replicas_of(layer, expert)) {
      if (where.is_live(where.rank_of_slot(slot))) { replicas_.push_back(slot); }
    }
    std::sort(replicas_.begin(), replicas_.end());
  }

  void list_by_rank(quota_row_writer row) {
    auto const movable = row.sizes().num_movable;
    auto& next = degree_;  // place of each rank's next one
    std::fill(next.begin(), next.end(), 0);
    for (index_t position = 0; position < movable; ++position) { ++next[row.holders()[position].rank]; }
    index_t listed = 0;
    for (index_t rank = 0; rank < shape().num_ranks; ++rank) {
      row.rank_first()[rank] = listed;
      listed += std::exchange(next[static_cast<std::size_t>(rank)], listed);
    }
    row.rank_first()[shape().num_ranks] = listed;
    for (index_t position = 0; position < movable; ++position) {
      row.by_rank()[next[row.holders()[position].rank]++] = position;
    }
  }

  /// All pairs of up to four replicas; of more, each with the next two in a ring.
  void list_pairs(quota_row row) {
    pairs_.clear();
    constexpr index_t all_of = 4;
    for (index_t group = 0; group < row.sizes().num_groups; ++group) {
      auto const first = row.group_first()[group];
      auto const count = row.group_first()[group + 1] - first;
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
    auto const rank_a = row.holders()[a].rank;
    auto const rank_b = row.holders()[b].rank;
    if (rank_a == rank_b) { return; }
    pairs_.push_back({static_cast<std::uint16_t>(a), static_cast<std::uint16_t>(b), rank_a, rank_b});
  }

  /// Deal the pairs into classes, those of the ranks with most pairs first, each into the first class that has room.
  void deal_pairs(quota_row_writer row) {
    std::fill(degree_.begin(), degree_.end(), 0);
    for (auto const& pair : pairs_) {
      ++degree_[pair.rank_a];
      ++degree_[pair.rank_b];
    }
    auto const crowd = [this](quota_pair const& pair) { return std::max(degree_[pair.rank_a], degree_[pair.rank_b]); };
    std::sort(pairs_.begin(), pairs_.end(), [&crowd](quota_pair const& x, quota_pair const& y) {
      if (crowd(x) != crowd(y)) { return crowd(x) > crowd(y); }
      return x.a != y.a ? x.a < y.a : x.b < y.b;
    });
    auto& sizes = row.sizes();
    while (!pairs_.empty()) {
      busy_.assign(degree_.size(), 0);
      auto kept = pairs_.begin();
      for (auto const& pair : pairs_) {
        if (busy_[pair.rank_a] != 0 || busy_[pair.rank_b] != 0) {
          *kept++ = pair;
          continue;
        }
        busy_[pair.rank_a] = busy_[pair.rank_b] = 1;
        row.pairs()[sizes.num_pairs++] = pair;
      }
      pairs_.erase(kept, pairs_.end());
      row.class_end()[sizes.num_classes++] = sizes.num_pairs;
    }
  }

  quota_layout layout_;
  std::vector<chunk> rows_;
  detail::reset_by_move<index_t> num_layers_;
  std::vector<index_t> replicas_;
  std::vector<quota_pair> pairs_;
  std::vector<index_t> degree_;      ///< [R] pairs of each rank
  std::vector<unsigned char> busy_;  ///< [R] has a pair in this class
};

BALLAST_END_NAMESPACE

#endif
