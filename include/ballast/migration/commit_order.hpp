// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MIGRATION_COMMIT_ORDER_HPP
#define BALLAST_MIGRATION_COMMIT_ORDER_HPP

#include <ballast/contract.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Where an expert lies while its rank commits a layer: in a slot of the rank, or in staging.
struct expert_location {
  enum kind_t : unsigned char { slot, staged } kind = slot;
  index_t index = 0;  ///< slot of the rank in [0, S), or staging place in [0, num_staged)

  bool operator==(expert_location const&) const = default;
};

/// One expert's copy in a commit.
struct commit_copy {
  expert_location from;
  expert_location to;
  index_t phase = 0;  ///< copies of one phase are independent; phases run in order
};

/// How one rank writes a layer's arrivals and local copies into its slots without losing what is still to be read.
struct commit_order {
  index_t num_arrivals = 0;  ///< staging places [0, num_arrivals) hold this rank's moves, in the order of the plan
  index_t num_staged = 0;    ///< places in all: one more when local copies form a cycle
  std::vector<commit_copy> copies;  ///< by ascending phase
};

namespace detail {

/// Orders the copies of one rank; the working memory is kept between calls.
class commit_orderer {
public:
  /// @complexity O(moves + copies + S), no allocation once storage has grown.
  void order(topology const& where, layer_transfer const& transfer, index_t rank, commit_order& out) {
    first_ = where.first_slot(rank);
    num_slots_ = where.slots_per_rank();
    auto const slots = static_cast<std::size_t>(num_slots_);
    source_.assign(slots, {});
    readers_.assign(slots, 0);
    ready_phase_.assign(slots, 0);
    state_.assign(slots, keeps);
    out.copies.clear();
    out.num_arrivals = 0;
    collect(transfer, out);
    out.num_staged = out.num_arrivals;
    run_chains(out);
    run_cycles(out);
    // No two copies of a phase write the same place. (std::stable_sort would allocate.)
    std::sort(out.copies.begin(), out.copies.end(), [](commit_copy const& a, commit_copy const& b) {
      return std::tie(a.phase, a.to.kind, a.to.index) < std::tie(b.phase, b.to.kind, b.to.index);
    });
  }

private:
  enum state_t : unsigned char { keeps, waits, done };

  [[nodiscard]] bool mine(index_t slot) const noexcept { return slot >= first_ && slot < first_ + num_slots_; }
  [[nodiscard]] std::size_t local(index_t slot) const noexcept { return static_cast<std::size_t>(slot - first_); }

  // Who fills each slot, and how many still want its old contents.
  void collect(layer_transfer const& transfer, commit_order& out) {
    for (auto const& move : transfer.moves) {
      if (!mine(move.target_slot)) { continue; }
      fill(move.target_slot, {expert_location::staged, out.num_arrivals++});
    }
    for (auto const& repeat : transfer.repeats) {
      if (mine(repeat.target_slot)) { fill(repeat.target_slot, source_[local(repeat.source_slot)]); }
    }
    for (auto const& copy : transfer.copies) {
      if (!mine(copy.target_slot)) { continue; }
      fill(copy.target_slot, {expert_location::slot, copy.source_slot - first_});
      ++readers_[local(copy.source_slot)];
    }
  }
  void fill(index_t slot, expert_location from) {
    source_[local(slot)] = from;
    state_[local(slot)] = waits;
  }

  // A slot nobody reads any more may be written; writing it frees the slot it reads from.
  void run_chains(commit_order& out) {
    for (std::size_t slot = 0; slot < state_.size(); ++slot) {
      auto at = slot;
      while (state_[at] == waits && readers_[at] == 0) {
        auto const from = source_[at];
        emit(out, from, at, ready_phase_[at]);
        if (from.kind == expert_location::staged) { break; }
        auto const next = static_cast<std::size_t>(from.index);
        ready_phase_[next] = std::max(ready_phase_[next], ready_phase_[at] + 1);
        --readers_[next];
        at = next;
      }
    }
  }

  // What is left are cycles in which every slot is read once: save one slot, and the rest is a chain.
  void run_cycles(commit_order& out) {
    index_t phase = 0;
    for (std::size_t slot = 0; slot < state_.size(); ++slot) {
      if (state_[slot] != waits) { continue; }
      expert_location const spare{expert_location::staged, out.num_arrivals};
      out.num_staged = out.num_arrivals + 1;
      phase = std::max(phase, cycle_ready(slot));
      out.copies.push_back({{expert_location::slot, static_cast<index_t>(slot)}, spare, phase++});
      auto at = slot;
      for (;;) {
        auto const next = static_cast<std::size_t>(source_[at].index);
        emit(out, next == slot ? spare : source_[at], at, phase++);
        if (next == slot) { break; }
        at = next;
      }
    }
  }

  // First phase in which no copy outside the cycle still reads one of its slots.
  [[nodiscard]] index_t cycle_ready(std::size_t slot) const {
    index_t ready = 0;
    auto at = slot;
    do {
      ready = std::max(ready, ready_phase_[at]);
      at = static_cast<std::size_t>(source_[at].index);
    } while (at != slot);
    return ready;
  }

  void emit(commit_order& out, expert_location from, std::size_t slot, index_t phase) {
    out.copies.push_back({from, {expert_location::slot, static_cast<index_t>(slot)}, phase});
    state_[slot] = done;
  }

  index_t first_ = 0;
  index_t num_slots_ = 0;
  std::vector<expert_location> source_;  // [S]
  std::vector<index_t> readers_;         // [S]
  std::vector<index_t> ready_phase_;     // [S]
  std::vector<state_t> state_;           // [S]
};

}  // namespace detail

BALLAST_END_NAMESPACE

#endif
