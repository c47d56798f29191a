// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_REPLICA_CHECK_HPP
#define BALLAST_RUNTIME_DETAIL_REPLICA_CHECK_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Checks that all replicas of an expert hold the same bytes: a loader that left some of them out is found before they
/// spread. Each rank sums its own slots up, then the ranks compare.
template <expert_store Store>
class replica_check {
public:
  /// Bytes of each tensor's two ends that a sample reads.
  static constexpr std::size_t sample_bytes = std::size_t{64} << 10;

  /// The arguments outlive it.
  replica_check(topology const& where, placement const& in_force, Store& store, index_t rank)
      : where_{&where}, in_force_{&in_force}, store_{&store}, rank_{rank}, sums_(num_slots(), unknown) {}

  /// Sum every slot up whose expert has another replica. @param sample only the ends of large tensors
  void sum_all(bool sample) {
    forget();
    for (std::size_t i = 0; i < sums_.size() && failure_.ok(); ++i) { sum(i, sample); }
  }
  /// Sum the next slots up, round and round. @complexity reads the bytes of at most `count` slots
  void sum_some(index_t count) {
    for (auto looked = sums_.size(); count > 0 && looked > 0 && failure_.ok(); --looked) {
      next_ = (next_ + 1) % sums_.size();
      if (sums_[next_] == unknown && sum(next_, false)) { --count; }
    }
  }
  /// The layer has other contents now.
  void forget(index_t layer) {
    auto const first = static_cast<std::size_t>(layer) * slots();
    std::fill_n(sums_.begin() + static_cast<std::ptrdiff_t>(first), slots(), unknown);
  }
  void forget() {
    std::fill(sums_.begin(), sums_.end(), unknown);
    failure_ = {};
  }

  /// Compare what has been summed up. Called by all ranks together; every rank comes to the same verdict.
  ///
  /// @return `errc::corrupted` naming layer, expert and both ranks, or why a rank could not read its slots.
  /// @complexity one all-gather of L * S + 1 words.
  template <control_plane Control>
  [[nodiscard]] status compare(Control& control, nanoseconds_t timeout) {
    auto mine = sums_;
    mine.push_back(failure_.ok() ? 0 : static_cast<std::uint64_t>(code_for_others(failure_)) << 1 | 1);
    std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(control.num_ranks()));
    auto gathered = control.all_gather(mine, all, timeout);
    auto own = failure_;
    forget();
    if (!own.ok()) { return own; }
    if (!gathered.ok()) { return gathered; }
    for (index_t rank = 0; rank < where_->num_ranks(); ++rank) {
      auto const code = all[(static_cast<std::size_t>(rank) + 1) * mine.size() - 1];
      if (code == 0 || !where_->is_live(rank)) { continue; }
      return {static_cast<errc>(code >> 1), concat("replica check: rank ", rank, " cannot read its slots"), rank};
    }
    return compare_all(all, mine.size());
  }

private:
  static constexpr std::uint64_t unknown = 0;

  [[nodiscard]] std::size_t slots() const noexcept { return static_cast<std::size_t>(where_->slots_per_rank()); }
  [[nodiscard]] std::size_t num_slots() const noexcept {
    return slots() * static_cast<std::size_t>(in_force_->num_layers());
  }

  /// @return whether the slot was read
  bool sum(std::size_t index, bool sample) {
    auto const layer = static_cast<index_t>(index / slots());
    auto const slot = index % slots();
    auto const expert = in_force_->logical_of_slot(layer)[static_cast<std::size_t>(where_->first_slot(rank_)) + slot];
    if (in_force_->replica_count(layer, expert) < 2) { return false; }
    segments_.clear();
    for (auto const& tensor : store_->tensors(layer)) {
      auto* const begin = tensor.base + slot * tensor.stride;
      if (sample && tensor.bytes > 2 * sample_bytes) {
        segments_.push_back({begin, sample_bytes});
        segments_.push_back({begin + tensor.bytes - sample_bytes, sample_bytes});
      } else {
        segments_.push_back({begin, tensor.bytes});
      }
    }
    std::uint64_t found = 0;
    failure_ = store_->checksum(segments_, found);
    sums_[index] = found == unknown ? 1 : found;
    return true;
  }

  [[nodiscard]] status compare_all(std::span<std::uint64_t const> all, std::size_t words_of_rank) const {
    auto const sum_of = [this, &all, &words_of_rank](index_t layer, index_t slot) {
      auto const rank = static_cast<std::size_t>(where_->rank_of_slot(slot));
      auto const in_rank = static_cast<std::size_t>(slot) - rank * slots();
      return all[rank * words_of_rank + static_cast<std::size_t>(layer) * slots() + in_rank];
    };
    for (index_t layer = 0; layer < in_force_->num_layers(); ++layer) {
      for (index_t expert = 0; expert < in_force_->num_logical(); ++expert) {
        index_t first = -1;
        for (auto const slot : in_force_->replicas_of(layer, expert)) {
          if (!where_->is_live(where_->rank_of_slot(slot)) || sum_of(layer, slot) == unknown) { continue; }
          if (first < 0) { first = slot; }
          if (sum_of(layer, slot) != sum_of(layer, first)) { return differ(layer, expert, first, slot); }
        }
      }
    }
    return {};
  }
  [[nodiscard]] status differ(index_t layer, index_t expert, index_t a, index_t b) const {
    auto const place = [this](index_t slot) {
      auto const rank = where_->rank_of_slot(slot);
      return concat("slot ", slot - where_->first_slot(rank), " of rank ", rank);
    };
    return {errc::corrupted, concat("replica check: layer ", layer, ", expert ", expert, ": ", place(a), " and ",
                                    place(b), " hold different bytes")};
  }

  topology const* where_;
  placement const* in_force_;
  Store* store_;
  index_t rank_;
  std::vector<std::uint64_t> sums_;  // [L, S]; unknown where not read
  std::size_t next_ = 0;
  status failure_;  // why a slot could not be read
  std::vector<segment> segments_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
