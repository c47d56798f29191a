// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DISPATCH_TABLES_HPP
#define BALLAST_DISPATCH_TABLES_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/reset_by_move.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/dispatch/detail/table_builder.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// The tables with which one rank sends its own tokens to replicas, in host memory.
///
/// Each rank's tables are salted with the rank, so that small batches of many ranks do not all meet on one replica, and
/// `nearest` knows where the rank is. Addresses and sizes never change after construction; a copy of the tables in
/// device memory has the same layout. Not for engines in which several ranks must map a token alike: see
/// `invariant_dispatch_tables`.
///
/// @threads `publish` must not run while others look up.
class dispatch_tables {
public:
  /// No layers. So has what was moved from.
  dispatch_tables() = default;
  /// Tables that map every id to -1 until their layer is published.
  ///
  /// @throws std::system_error for what `validate` refuses
  dispatch_tables(topology const& where, placement_shape shape, rank_id rank, dispatch_mode mode)
      : rank_{to_index(rank)}, mode_{mode}, shape_{shape}, builder_{where} {
    validate(where, shape, rank, mode).or_throw();
    ranges_.resize(static_cast<std::size_t>(shape.num_layers) * static_cast<std::size_t>(shape.num_logical));
    entries_.resize(static_cast<std::size_t>(shape.num_layers) * static_cast<std::size_t>(shape.num_slots));
    num_reserved_ = where.reserved_slots();
    first_reserved_ = where.physical_id(where.first_slot(rank_)) + where.slots_per_rank();
  }

  /// Say whether these sizes and this mode can have tables, naming the first value that is wrong.
  [[nodiscard]] static status validate(topology const& where, placement_shape shape, rank_id rank,
                                       dispatch_mode mode = dispatch_mode::even) {
    if (mode > dispatch_mode::by_share) {
      return {errc::invalid_option, detail::concat("dispatch: mode is ", static_cast<std::uint32_t>(mode),
                                                   ", must be 0 (nearest), 1 (even), 2 (round_robin) or 3 (by_share)")};
    }
    if (to_index(rank) < 0 || to_index(rank) >= where.num_ranks()) {
      return {errc::invalid_topology,
              detail::concat("dispatch: rank ", to_index(rank), " of a group of ", where.num_ranks())};
    }
    if (where.num_physical_ids() > max_dispatch_ids) {
      return {errc::invalid_topology, detail::concat("dispatch: ", where.num_physical_ids(),
                                                     " physical ids, tables hold at most ", max_dispatch_ids)};
    }
    if (shape.num_slots != where.num_slots()) {
      return {errc::invalid_placement, detail::concat("dispatch: a placement of ", shape.num_slots,
                                                      " slots on a topology of ", where.num_slots())};
    }
    return placement::validate_shape(shape);
  }

  /// Rebuild one layer in place after its placement, its shares or the live ranks changed.
  ///
  /// @param where  as at construction but for the live ranks.
  /// @param from   [L, P] placement in force.
  /// @param layer  in [0, L)
  /// @complexity O(E + P + R), no allocation.
  /// @throws nothing
  /// @determinism depends on the arguments, the rank and the mode alone.
  void publish(topology const& where, placement const& from, index_t layer) {
    BALLAST_EXPECTS(from.shape() == shape(), "dispatch_tables: a placement of another shape");
    BALLAST_EXPECTS(where.num_slots() == shape_->num_slots, "dispatch_tables: a topology of another shape");
    BALLAST_EXPECTS_BELOW(layer, shape_->num_layers, "dispatch_tables: layer");
    builder_.build(where, from, layer, mode_, rank_, row(ranges_, layer, shape_->num_logical),
                   row(entries_, layer, shape_->num_slots));
  }
  /// Rebuild every layer.
  void publish(topology const& where, placement const& from) {
    for (index_t layer = 0; layer < from.num_layers(); ++layer) { publish(where, from, layer); }
  }

  /// What lookups read. @lifetime valid until the tables are destroyed, moved or assigned to.
  [[nodiscard]] dispatch_view view() const noexcept {
    dispatch_view result;
    result.ranges = ranges_.data();
    result.entries = entries_.data();
    result.num_layers = shape_->num_layers;
    result.num_logical = shape_->num_logical;
    result.num_slots = shape_->num_slots;
    result.num_reserved = num_reserved_;
    result.first_reserved = first_reserved_;
    result.salt = detail::scramble(static_cast<std::uint32_t>(rank_) + 1);
    result.rule = mode_ == dispatch_mode::round_robin ? dispatch_rule::rotated : dispatch_rule::hashed;
    return result;
  }
  [[nodiscard]] dispatch_mode mode() const noexcept { return mode_; }
  [[nodiscard]] placement_shape const& shape() const noexcept { return *shape_; }
  /// `[L, E]` for copies into device memory.
  [[nodiscard]] std::span<replica_range const> ranges() const noexcept { return ranges_; }
  /// `[L, P]` for copies into device memory.
  [[nodiscard]] std::span<dispatch_entry const> entries() const noexcept { return entries_; }

private:
  template <class T>
  [[nodiscard]] static std::span<T> row(std::vector<T>& elements, index_t layer, index_t width) {
    return std::span{elements}.subspan(static_cast<std::size_t>(layer) * static_cast<std::size_t>(width),
                                       static_cast<std::size_t>(width));
  }

  index_t rank_ = 0;
  dispatch_mode mode_ = dispatch_mode::even;
  detail::reset_by_move<placement_shape> shape_;
  detail::reset_by_move<index_t> num_reserved_;
  index_t first_reserved_ = 0;
  std::vector<replica_range> ranges_;
  std::vector<dispatch_entry> entries_;
  detail::dispatch_builder builder_;
};

/// Tables that are the same on every rank: a token's physical ids depend on its row, the layer and the expert alone.
///
/// For engines without an all-to-all, where every rank sees all tokens and computes those that fall to its own physical
/// experts: were two ranks to disagree about a token, it would be computed twice or not at all. Hence neither a salt
/// nor locality; and no reserved slots, which are each rank's own.
class invariant_dispatch_tables {
public:
  /// No layers. So has what was moved from.
  invariant_dispatch_tables() = default;
  /// @throws std::system_error for what `validate` refuses
  invariant_dispatch_tables(topology const& where, placement_shape shape, dispatch_mode mode) {
    validate(where, shape, mode).or_throw();
    tables_ = dispatch_tables{where, shape, rank_id{0}, mode};
  }

  /// Say whether such tables can exist, naming the first value that is wrong.
  [[nodiscard]] static status validate(topology const& where, placement_shape shape, dispatch_mode mode) {
    if (mode == dispatch_mode::nearest) {
      return {errc::invalid_option, "dispatch: the nearest replica differs from rank to rank"};
    }
    if (where.reserved_slots() > 0) {
      return {errc::invalid_topology, detail::concat("dispatch: ", where.reserved_slots(),
                                                     " reserved slots are each rank's own, ranks would disagree")};
    }
    return dispatch_tables::validate(where, shape, rank_id{0}, mode);
  }

  /// Rebuild one layer in place. As `dispatch_tables::publish`.
  void publish(topology const& where, placement const& from, index_t layer) { tables_.publish(where, from, layer); }
  /// Rebuild every layer.
  void publish(topology const& where, placement const& from) { tables_.publish(where, from); }

  /// What lookups read. @lifetime valid until the tables are destroyed, moved or assigned to.
  [[nodiscard]] dispatch_view view() const noexcept {
    auto result = tables_.view();
    result.salt = 0;
    return result;
  }
  [[nodiscard]] dispatch_mode mode() const noexcept { return tables_.mode(); }
  [[nodiscard]] placement_shape const& shape() const noexcept { return tables_.shape(); }
  /// `[L, E]` for copies into device memory.
  [[nodiscard]] std::span<replica_range const> ranges() const noexcept { return tables_.ranges(); }
  /// `[L, P]` for copies into device memory.
  [[nodiscard]] std::span<dispatch_entry const> entries() const noexcept { return tables_.entries(); }

private:
  dispatch_tables tables_;
};

/// Map a batch of the router's top-k ids of one layer to physical ids.
///
/// @param view      tables of this rank.
/// @param layer     in [0, L)
/// @param top_k     ids a token, at least 1.
/// @param logical   [tokens, top_k] ids; those outside [0, E + F) are invalid (padding).
/// @param physical  out: [tokens, top_k]; -1 for invalid ids. Of another element type only where it is named:
///                  `dispatch_ids<std::int32_t, std::int64_t>`. May be the same array as `logical` where it is not.
/// @pre `logical.size() == physical.size()`, a multiple of `top_k`
/// @complexity O(tokens * top_k), no allocation.
/// @throws nothing
/// @determinism as `dispatch_one`.
template <std::integral Id, std::integral Physical = Id>
void dispatch_ids(dispatch_view const& view, index_t layer, index_t top_k, std::span<Id const> logical,
                  std::span<std::type_identity_t<Physical>> physical) {
  BALLAST_EXPECTS_BELOW(layer, view.num_layers, "dispatch_ids: layer");
  BALLAST_EXPECTS(logical.size() == physical.size(), "dispatch_ids: arrays differ in size");
  BALLAST_EXPECTS(top_k > 0 && logical.size() % static_cast<std::size_t>(top_k) == 0,
                  "dispatch_ids: not [tokens, top_k]");
  std::size_t i = 0;
  for (std::uint32_t row = 0; i < logical.size(); ++row) {
    for (std::uint32_t k = 0; k < static_cast<std::uint32_t>(top_k); ++k, ++i) {
      physical[i] = static_cast<Physical>(dispatch_one(view, layer, row, k, static_cast<std::int64_t>(logical[i])));
    }
  }
}

BALLAST_END_NAMESPACE

#endif
