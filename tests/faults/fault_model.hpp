// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_FAULT_MODEL_HPP
#define BALLAST_TESTS_FAULTS_FAULT_MODEL_HPP

#include <ballast/detail/text.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/placement/survivors.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "faults/fault.hpp"
#include "faults/random_moves.hpp"
#include "support/hooked.hpp"
#include "support/patterned_weights.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace ballast_test {

/// Sizes of one of the models that a group runs.
struct model_shape {
  ballast::index_t num_layers;
  ballast::index_t slots_per_rank;
  ballast::index_t interval;
  std::size_t staging;  ///< with small staging: one layer of a plan, a few experts where moves are few

  [[nodiscard]] ballast::topology where(ballast::index_t num_ranks) const {
    return ballast::topology{{num_ranks, 1, slots_per_rank, 0}};
  }
  [[nodiscard]] ballast::index_t num_logical(ballast::index_t num_ranks) const {
    return num_ranks * slots_per_rank / 2;
  }
  [[nodiscard]] std::vector<tensor_shape> tensors() const {
    if (slots_per_rank == 6) { return {{48, 48}, {33, 40}}; }
    return {{17, 20}};
  }
};
inline constexpr std::array<model_shape, num_models> model_shapes{model_shape{3, 6, 1, 3584},
                                                                  model_shape{2, 4, 2, 1280}};
inline constexpr std::size_t num_all_layers = 5;  ///< of all models

/// One model of one rank: weights, store and rebalancer.
template <class Transport, class Control>
class fault_model final : private ballast::observer {
public:
  using store = poisoning_store<hooked_store>;
  using rebalancer = ballast::rebalancer<ballast::window_recorder, random_moves, ballast::layers_per_chunk<>, Transport,
                                         store, Control>;

  fault_model(fault const& what, std::size_t number, ballast::index_t rank, Transport& wires, Control& plane,
              hook_function hook, bool* deviates_next)
      : shape_{model_shapes[number]},
        idle_ranks_{what.idle_ranks},
        initial_{random_moves::first(shape_.where(what.num_ranks), shape_.num_layers, what.index + number)},
        weights_{shape_.where(what.num_ranks), rank, initial_, shape_.tensors()},
        store_{shape_.where(what.num_ranks), shape_.num_layers, staging_limit(what, shape_)},
        commits_(static_cast<std::size_t>(shape_.num_layers)),
        moved_{shape_.where(what.num_ranks),
               initial_,
               {ballast::window_recorder{shape_.num_layers, initial_.num_logical(), {2 * shape_.interval, 2}},
                {what.few_moves, deviates_next},
                ballast::layers_per_chunk{what.layers_per_chunk},
                {.interval = shape_.interval,
                 .share_interval = number == 1 ? what.share_interval : 0,
                 .timeout = what.deadline,
                 .asynchronous = what.asynchronous[number],
                 .verify = what.verify},
                this},
               store_,
               wires,
               plane} {
    weights_.add_to(store_);
    store_.at = std::move(hook);
  }

  [[nodiscard]] rebalancer& moved() noexcept { return moved_; }
  [[nodiscard]] rebalancer const& moved() const noexcept { return moved_; }
  [[nodiscard]] hooked_store& weights_store() noexcept { return store_; }
  [[nodiscard]] bool failed() const noexcept {
    return moved_.state() == ballast::rebalancer_state::failed ||
           moved_.state() == ballast::rebalancer_state::cohort_lost;
  }
  [[nodiscard]] bool is_lost() const noexcept { return moved_.state() == ballast::rebalancer_state::cohort_lost; }
  /// Cycles that have moved something.
  [[nodiscard]] std::uint64_t cycles() const noexcept { return cycles_; }

  /// One pass: count some tokens, close it. Where ranks may idle they count some passes only, and in the first steps
  /// there are layers without tokens.
  [[nodiscard]] ballast::status pass(int step, bool all_layers) {
    auto const rank = moved_.rank();
    auto const ranks = moved_.where().num_ranks();
    bool const idles = idle_ranks_ && rank != step % ranks && (step + rank) % 3 == 0;
    for (ballast::index_t layer = 0; layer < shape_.num_layers && !idles; ++layer) {
      if (layer > 0 && idle_ranks_ && !all_layers && (step / 3 + layer) % 2 == 0) { continue; }
      moved_.record_top_k(layer, std::vector<ballast::index_t>{0, 1, rank % initial_.num_logical()});
    }
    return moved_.on_forward_pass_end({.counted = !idles});
  }

  /// Leave the ranks out that are gone. @return what is wrong
  [[nodiscard]] ballast::status go_on_without(std::uint64_t gone) {
    auto where = moved_.where();
    for (ballast::index_t rank = 0; rank < where.num_ranks(); ++rank) {
      if ((gone >> rank & 1) != 0) { where.set_live(rank, false); }
    }
    ballast::placement in_force;
    std::vector<ballast::slot_reload> reloads;
    if (auto result = replace_lost_experts(where, moved_.current(), in_force, reloads); !result.ok()) { return result; }
    if (!reloads.empty()) { return {ballast::errc::missing_expert, "the survivors lack experts"}; }
    return moved_.set_topology(where, in_force);
  }

  void overwrite_sources() {
    for (ballast::index_t layer = 0; layer < shape_.num_layers; ++layer) {
      for (ballast::index_t slot = 0; slot < shape_.slots_per_rank; ++slot) {
        std::ranges::fill(weights_.expert(layer, 0, slot), std::byte{0x11});
      }
    }
  }
  /// Empty when slots hold what the tables say and the tables are what the events said.
  [[nodiscard]] std::string first_error() const {
    if (auto wrong = weights_.first_error(moved_.current()); !wrong.empty()) { return wrong; }
    for (ballast::index_t layer = 0; layer < shape_.num_layers; ++layer) {
      auto const told = commits_[static_cast<std::size_t>(layer)];
      if (told == moved_.epoch(layer)) { continue; }
      return ballast::detail::concat("layer ", layer, " is at epoch ", moved_.epoch(layer), ", the events told ", told);
    }
    return {};
  }

  std::function<bool()> throws_now = [] { return false; };

private:
  [[nodiscard]] static std::size_t staging_limit(fault const& what, model_shape const& shape) {
    if (!what.small_staging) { return std::size_t{1} << 16; }
    return what.few_moves ? shape.staging * 2 / 5 : shape.staging;
  }

  void on_event(ballast::event const& what) override {
    if (what.kind == ballast::event_kind::commit || what.kind == ballast::event_kind::shares) {
      for (auto const layer : what.layers) { ++commits_[static_cast<std::size_t>(layer)]; }
    }
    bool const moves = what.kind == ballast::event_kind::commit && what.layers.front() == 0;
    if (moves) { ++cycles_; }
    if (throws_now()) { throw std::runtime_error{"an observer that throws"}; }
  }

  model_shape shape_;
  bool idle_ranks_;
  ballast::placement initial_;
  patterned_weights weights_;
  store store_;
  std::vector<std::uint64_t> commits_;  // [L] events that named the layer
  std::uint64_t cycles_ = 0;
  rebalancer moved_;
};

}  // namespace ballast_test

#endif
