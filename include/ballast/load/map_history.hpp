// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_MAP_HISTORY_HPP
#define BALLAST_LOAD_MAP_HISTORY_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/reset_by_move.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// The maps that were in force before the present ones, layer by layer, for counts that come late: an engine that
/// overlaps its host work with the next pass hands the counts of a pass in after that pass was closed, and a commit may
/// lie between.
///
/// Passes are numbered from 1; pass p is closed by call p of `on_forward_pass_end`. What is committed in call k or
/// after it, before call k + 1, is in force from pass k + 1 on.
///
/// A layer's last `depth` maps are kept, `[L, depth, P]` in all; nothing but the constructor allocates. Commits that
/// change shares alone have no map of their own and are not noted. What was moved from has no layers.
///
/// @determinism holds what it is given; nothing is shared by ranks.
class map_history {
public:
  /// Maps that are kept of each layer, the one in force aside.
  static constexpr index_t default_depth = 4;

  map_history() = default;
  /// @throws std::system_error (`errc::invalid_option`) for negative sizes, or a depth below 1; std::bad_alloc
  map_history(index_t num_layers, index_t num_slots, index_t depth = default_depth)
      : num_layers_{num_layers}, num_slots_{num_slots}, depth_{depth} {
    if (num_layers < 0 || num_slots < 0 || depth < 1) {
      status{errc::invalid_option, detail::concat("map_history: ", num_layers, " layers x ", num_slots, " slots, ",
                                                  depth, " maps: sizes must be positive")}
          .or_throw();
      return;
    }
    auto const maps = static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(depth);
    last_pass_.assign(maps, 0);
    count_.assign(static_cast<std::size_t>(num_layers), 0);
    known_from_.assign(static_cast<std::size_t>(num_layers), 1);
    maps_.assign(maps * static_cast<std::size_t>(num_slots), 0);
  }

  /// Note that a layer has another map from now on.
  ///
  /// @param layer    in [0, L).
  /// @param pass     the last pass that the old map was in force in: calls of `on_forward_pass_end` so far, the running
  ///                 one included. Not before an earlier commit of the layer. A map that was in force in no pass,
  ///                 between two commits in one call, is not kept.
  /// @param old_row  [P] the map that is replaced.
  /// @complexity O(P), no allocation.
  /// @throws nothing
  void note_commit(index_t layer, std::int64_t pass, std::span<index_t const> old_row) {
    BALLAST_EXPECTS_BELOW(layer, *num_layers_, "map_history: layer");
    BALLAST_EXPECTS(old_row.size() == static_cast<std::size_t>(num_slots_), "map_history: map is not [P]");
    auto const at = static_cast<std::size_t>(layer);
    auto& count = count_[at];
    auto const newest = count > 0 ? last_pass(layer, count - 1) : known_from_[at] - 1;
    BALLAST_EXPECTS(pass >= newest, "map_history: commits of a layer are noted out of order");
    if (pass <= newest) { return; }
    if (count == depth_) { drop_oldest(layer); }
    last_pass(layer, count) = pass;
    std::copy(old_row.begin(), old_row.end(), row(layer, count).begin());
    ++count;
  }

  /// The map that was in force in a pass.
  ///
  /// @param layer    in [0, L).
  /// @param pass     in [1, running].
  /// @param running  the pass in progress: one more than calls of `on_forward_pass_end` so far.
  /// @param current  [P] the map in force now.
  /// @param out      out: [P] that map. @lifetime of `current`, or until the layer's next commit
  /// @complexity O(depth), no allocation on success.
  /// @throws nothing; the status (`errc::invalid_load`) names a layer or pass out of range, or a pass too long ago.
  [[nodiscard]] status row_for(index_t layer, std::int64_t pass, std::int64_t running, std::span<index_t const> current,
                               std::span<index_t const>& out) const {
    if (layer < 0 || layer >= num_layers_) {
      return {errc::invalid_load, detail::concat("counts of layer ", layer, ": must be in [0, ", *num_layers_, ")")};
    }
    if (pass < 1 || pass > running) {
      return {errc::invalid_load,
              detail::concat("counts of layer ", layer, ", pass ", pass, ": must be in [1, ", running, "]")};
    }
    auto const known_from = known_from_[static_cast<std::size_t>(layer)];
    if (pass < known_from) {
      return {errc::invalid_load, detail::concat("counts of layer ", layer, ", pass ", pass,
                                                 " come too late: its maps are kept from pass ", known_from, " on")};
    }
    auto const count = count_[static_cast<std::size_t>(layer)];
    for (index_t i = 0; i < count; ++i) {
      if (pass <= last_pass_[index_of(layer, i)]) {
        out = std::span{maps_}.subspan(index_of(layer, i) * static_cast<std::size_t>(num_slots_),
                                       static_cast<std::size_t>(num_slots_));
        return {};
      }
    }
    out = current;
    return {};
  }

  /// Forget all maps: passes up to `pass` are too long ago from now on. For ranks that number their calls anew.
  void clear(std::int64_t pass) noexcept {
    std::fill(count_.begin(), count_.end(), 0);
    std::fill(known_from_.begin(), known_from_.end(), pass + 1);
  }

private:
  [[nodiscard]] std::size_t index_of(index_t layer, index_t map) const noexcept {
    return static_cast<std::size_t>(layer) * static_cast<std::size_t>(depth_) + static_cast<std::size_t>(map);
  }
  [[nodiscard]] std::int64_t& last_pass(index_t layer, index_t map) noexcept {
    return last_pass_[index_of(layer, map)];
  }
  [[nodiscard]] std::span<index_t> row(index_t layer, index_t map) noexcept {
    return std::span{maps_}.subspan(index_of(layer, map) * static_cast<std::size_t>(num_slots_),
                                    static_cast<std::size_t>(num_slots_));
  }
  void drop_oldest(index_t layer) noexcept {
    known_from_[static_cast<std::size_t>(layer)] = last_pass(layer, 0) + 1;
    auto& count = count_[static_cast<std::size_t>(layer)];
    for (index_t i = 1; i < count; ++i) {
      last_pass(layer, i - 1) = last_pass(layer, i);
      std::copy(row(layer, i).begin(), row(layer, i).end(), row(layer, i - 1).begin());
    }
    --count;
  }

  detail::reset_by_move<index_t> num_layers_;
  index_t num_slots_ = 0;
  index_t depth_ = default_depth;
  std::vector<index_t> count_;            // [L] maps that are kept
  std::vector<std::int64_t> known_from_;  // [L] first pass whose map is known
  std::vector<std::int64_t> last_pass_;   // [L, depth] last pass that each was in force in, ascending
  std::vector<index_t> maps_;             // [L, depth, P], oldest first
};

BALLAST_END_NAMESPACE

#endif
