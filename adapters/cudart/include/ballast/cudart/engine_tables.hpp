// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_ENGINE_TABLES_HPP
#define BALLAST_CUDART_ENGINE_TABLES_HPP

#include <ballast/cudart/table_writer.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Which row of an engine's arrays each layer has: arrays may have rows for layers without experts, too.
class engine_rows {
public:
  /// Row i for layer i.
  engine_rows() = default;
  /// @param row_of_layer  [L] rows, each another one.
  /// @param num_rows      of the arrays.
  engine_rows(std::vector<index_t> row_of_layer, index_t num_rows)
      : row_of_layer_{std::move(row_of_layer)}, num_rows_{num_rows} {}

  /// Refuse rows that the arrays do not have, or that two layers would share. @complexity O(L + rows)
  [[nodiscard]] status validate(index_t num_layers) const {
    if (row_of_layer_.empty()) { return {}; }
    auto const refuse = [](auto const&... parts) {
      return status{errc::invalid_option, ballast::detail::concat("engine tables: ", parts...)};
    };
    if (row_of_layer_.size() != static_cast<std::size_t>(num_layers)) {
      return refuse("rows of ", row_of_layer_.size(), " layers, there are ", num_layers);
    }
    std::vector<unsigned char> taken(static_cast<std::size_t>(std::max<index_t>(num_rows_, 0)));
    for (index_t layer = 0; layer < num_layers; ++layer) {
      auto const row = (*this)[layer];
      if (row < 0 || row >= num_rows_) {
        return refuse("row ", row, " of layer ", layer, " is not in [0, ", num_rows_, ")");
      }
      if (std::exchange(ballast::detail::at(taken, row), static_cast<unsigned char>(1)) != 0) {
        return refuse("row ", row, " of layer ", layer, " is another layer's already");
      }
    }
    return {};
  }
  /// @pre `layer` in [0, L)
  [[nodiscard]] index_t operator[](index_t layer) const {
    return row_of_layer_.empty() ? layer : ballast::detail::at(row_of_layer_, layer);
  }

private:
  std::vector<index_t> row_of_layer_;
  index_t num_rows_ = 0;
};

/// Device memory for `replica_lists`; arrays that an engine does not keep are null.
///
/// L stands for the rows of `engine_rows`, P' = R (S + F) for all physical ids.
template <table_id Id>
struct replica_list_arrays {
  /// [L, P'] logical expert of each physical id; E + f in reserved slot f; -1 on ranks that are not alive.
  Id* logical_of_physical = nullptr;
  /// [L, E, X] physical ids of each logical expert, ascending, then -1. Replicas on ranks that are not alive are left
  /// out, and so are those whose share is 0, as far as others are left.
  Id* physical_of_logical = nullptr;
  Id* num_replicas = nullptr;  ///< [L, E] physical ids in the list
  /// X. At least P - E + 1, which an expert can come to have; more is of no use to us, but may be the engine's form.
  index_t width = 0;
};

/// Keeps the replicas of each logical expert as lists of one width: a `table_writer`.
///
/// @source SGLang `physical_to_logical_map`, `logical_to_all_physical_map` and `logical_to_all_physical_map_num_valid`;
///         vLLM `physical_to_logical_map`, `logical_to_physical_map` and `logical_replica_count`. Both pad with -1.
/// @threads as the store that it is used with.
template <table_id Id>
class replica_lists {
public:
  explicit replica_lists(replica_list_arrays<Id> const& arrays, engine_rows rows = {})
      : arrays_{arrays}, rows_{std::move(rows)} {}

  /// @return `errc::invalid_option` naming what is wrong: no array at all, a width that is too small, a row
  [[nodiscard]] status begin(topology const& where, placement_shape shape) {
    auto const refuse = [](auto const&... parts) {
      return status{errc::invalid_option, ballast::detail::concat("replica_lists: ", parts...)};
    };
    if (arrays_.logical_of_physical == nullptr && arrays_.physical_of_logical == nullptr &&
        arrays_.num_replicas == nullptr) {
      return refuse("no array is given");
    }
    auto const most = shape.num_slots - shape.num_logical + 1;
    if (arrays_.physical_of_logical != nullptr && arrays_.width < most) {
      return refuse("lists of ", arrays_.width, " ids, an expert can have ", most, " replicas (", shape.num_slots,
                    " slots for ", shape.num_logical, " experts): make them as wide");
    }
    auto result = rows_.validate(shape.num_layers);
    if (!result.ok()) { return result; }
    shape_ = shape;
    num_physical_ = where.num_physical_ids();
    counts_.assign(static_cast<std::size_t>(shape.num_logical), 0);
    widths_.assign(static_cast<std::size_t>(shape.num_layers), -1);
    return {};
  }
  [[nodiscard]] std::size_t most_bytes() const noexcept {
    auto const experts = static_cast<std::size_t>(shape_.num_logical);
    auto const widest = static_cast<std::size_t>(shape_.num_slots - shape_.num_logical) + 1;
    return table_sink::bytes_for<Id>(static_cast<std::size_t>(num_physical_)) + table_sink::bytes_for<Id>(experts) +
           table_sink::bytes_for<Id>(experts * widest);
  }

  /// @complexity O(P' + E w), where w is the most replicas that an expert of the layer has, or had at the last call. A
  ///             copy of a few bytes for each array.
  void write(topology const& where, placement const& in_force, index_t layer, table_sink& to) {
    auto const row = static_cast<std::size_t>(rows_[layer]);
    if (arrays_.logical_of_physical != nullptr) {
      auto const ids = static_cast<std::size_t>(num_physical_);
      name_slots(where, in_force, layer, to.add(arrays_.logical_of_physical + row * ids, ids));
    }
    count_replicas(where, in_force, layer);
    if (arrays_.physical_of_logical != nullptr) { list_replicas(where, in_force, layer, row, to); }
    if (arrays_.num_replicas != nullptr) {
      auto const out = to.add(arrays_.num_replicas + row * counts_.size(), counts_.size());
      std::copy(counts_.begin(), counts_.end(), out.begin());
    }
  }

private:
  static void name_slots(topology const& where, placement const& in_force, index_t layer, std::span<Id> out) {
    auto const held = in_force.logical_of_slot(layer);
    std::size_t slot = 0;
    std::size_t id = 0;
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      bool const live = where.is_live(rank);
      for (index_t i = 0; i < where.slots_per_rank(); ++i, ++slot) { out[id++] = live ? Id{held[slot]} : Id{-1}; }
      for (index_t i = 0; i < where.reserved_slots(); ++i) {
        out[id++] = live ? Id{in_force.num_logical() + i} : Id{-1};
      }
    }
  }

  /// Visit the slots that take tokens, ascending, of each expert.
  template <class Visit>
  static void for_each_replica(topology const& where, placement const& in_force, index_t layer, Visit visit) {
    auto const held = in_force.logical_of_slot(layer);
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      if (!where.is_live(rank)) { continue; }
      auto const first = where.first_slot(rank);
      for (auto slot = first; slot < first + where.slots_per_rank(); ++slot) {
        visit(held[static_cast<std::size_t>(slot)], slot);
      }
    }
  }
  /// How many replicas each expert lists; experts whose live replicas all have no share list all of those.
  void count_replicas(topology const& where, placement const& in_force, index_t layer) {
    shared_.assign(counts_.size(), 0);
    std::fill(counts_.begin(), counts_.end(), 0);
    auto const has_shares = in_force.has_shares();
    for_each_replica(where, in_force, layer, [this, &has_shares, &in_force, &layer](index_t expert, index_t slot) {
      ++ballast::detail::at(counts_, expert);
      bool const takes = !has_shares || in_force.shares(layer)[static_cast<std::size_t>(slot)] > 0;
      ballast::detail::at(shared_, expert) += takes ? 1 : 0;
    });
    for (std::size_t expert = 0; expert < counts_.size(); ++expert) {
      if (shared_[expert] > 0) { counts_[expert] = shared_[expert]; }
    }
  }
  void list_replicas(topology const& where, placement const& in_force, index_t layer, std::size_t row, table_sink& to) {
    auto const pitch = static_cast<std::size_t>(arrays_.width);
    auto* const begin = arrays_.physical_of_logical + row * counts_.size() * pitch;
    auto& known = ballast::detail::at(widths_, layer);
    if (known < 0) { to.clear(begin, counts_.size() * pitch); }
    auto const now = *std::max_element(counts_.begin(), counts_.end());
    auto const width = static_cast<std::size_t>(std::max(known, now));
    known = now;
    auto const out = to.add_columns(begin, counts_.size(), pitch, width);
    std::fill(out.begin(), out.end(), Id{-1});
    next_.assign(counts_.size(), 0);
    for_each_replica(
        where, in_force, layer, [this, &in_force, &layer, &out, &width, &where](index_t expert, index_t slot) {
          bool const takes = !in_force.has_shares() || in_force.shares(layer)[static_cast<std::size_t>(slot)] > 0;
          if (!takes && ballast::detail::at(shared_, expert) > 0) { return; }
          auto& position = ballast::detail::at(next_, expert);
          out[static_cast<std::size_t>(expert) * width + static_cast<std::size_t>(position++)] =
              Id{where.physical_id(slot)};
        });
  }

  replica_list_arrays<Id> arrays_;
  engine_rows rows_;
  placement_shape shape_;
  index_t num_physical_ = 0;
  std::vector<index_t> counts_;  // [E] replicas that are listed
  std::vector<index_t> shared_;  // [E] live replicas with a share
  std::vector<index_t> next_;    // [E] listed so far
  std::vector<index_t> widths_;  // [L] columns that may hold ids; -1: any may hold anything
};

/// Device memory for `rank_maps`; arrays that an engine does not keep are null. L is as for `replica_list_arrays`.
template <table_id Id>
struct rank_map_arrays {
  /// [L, E] slot of this rank, in [0, S), that holds the logical expert, the first where several do; -1: none does.
  Id* slot_of_logical = nullptr;
  /// [L, E] the one physical id that this rank sends an expert's tokens to, as `dispatch_mode::nearest` chooses it; -1:
  /// no rank that is alive has one.
  Id* physical_of_logical = nullptr;
};

/// Keeps one rank's maps of logical experts: a `table_writer`.
///
/// @source `slot_of_logical`: `expert_map` of vLLM's and vllm-ascend's fused MoE layers. `physical_of_logical`: SGLang
///         `logical_to_rank_dispatch_physical_map`, vllm-ascend `log2phy`. Which replica is chosen is our own rule.
/// @threads as the store that it is used with.
template <table_id Id>
class rank_maps {
public:
  /// @param rank  whose maps they are.
  rank_maps(index_t rank, rank_map_arrays<Id> const& arrays, engine_rows rows = {})
      : rank_{rank}, arrays_{arrays}, rows_{std::move(rows)} {}

  /// @return `errc::invalid_option` naming what is wrong: no array at all, a row; as `dispatch_tables::validate`
  [[nodiscard]] status begin(topology const& where, placement_shape shape) {
    if (arrays_.slot_of_logical == nullptr && arrays_.physical_of_logical == nullptr) {
      return {errc::invalid_option, "rank_maps: no array is given"};
    }
    if (auto result = rows_.validate(shape.num_layers); !result.ok()) { return result; }
    if (auto result = dispatch_tables::validate(where, shape, rank_id{rank_}); !result.ok()) { return result; }
    shape_ = shape;
    if (arrays_.physical_of_logical != nullptr) {
      nearest_ = dispatch_tables{where, shape, rank_id{rank_}, dispatch_mode::nearest};
    }
    return {};
  }
  [[nodiscard]] std::size_t most_bytes() const noexcept {
    return 2 * table_sink::bytes_for<Id>(static_cast<std::size_t>(shape_.num_logical));
  }

  /// @complexity O(S + E), with `physical_of_logical` as `dispatch_tables::publish`
  void write(topology const& where, placement const& in_force, index_t layer, table_sink& to) {
    auto const experts = static_cast<std::size_t>(shape_.num_logical);
    auto const row = static_cast<std::size_t>(rows_[layer]) * experts;
    if (arrays_.slot_of_logical != nullptr) {
      auto const out = to.add(arrays_.slot_of_logical + row, experts);
      std::fill(out.begin(), out.end(), Id{-1});
      auto const held = in_force.logical_of_slot(layer).subspan(static_cast<std::size_t>(where.first_slot(rank_)));
      for (auto slot = where.slots_per_rank() - 1; slot >= 0; --slot) {
        out[static_cast<std::size_t>(held[static_cast<std::size_t>(slot)])] = Id{slot};
      }
    }
    if (arrays_.physical_of_logical != nullptr) {
      auto const out = to.add(arrays_.physical_of_logical + row, experts);
      nearest_.publish(where, in_force, layer);
      for (index_t expert = 0; expert < shape_.num_logical; ++expert) {
        out[static_cast<std::size_t>(expert)] = Id{dispatch_one(nearest_.view(), layer, 0, 0, expert)};
      }
    }
  }

private:
  index_t rank_;
  rank_map_arrays<Id> arrays_;
  engine_rows rows_;
  placement_shape shape_;
  dispatch_tables nearest_;
};

static_assert(table_writer<replica_lists<std::int32_t>> && table_writer<replica_lists<std::int64_t>>);
static_assert(table_writer<rank_maps<std::int32_t>> && table_writer<rank_maps<std::int64_t>>);

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
