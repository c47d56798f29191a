// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FUZZ_STATE_MACHINE_HPP
#define BALLAST_TESTS_FUZZ_STATE_MACHINE_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>

#include "fuzz_input.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_fuzz {

using namespace ballast;

inline constexpr std::size_t expert_bytes = 13;
inline constexpr std::size_t stride = 16;
inline constexpr index_t num_layers = 3;

inline std::byte pattern(index_t layer, index_t expert, std::size_t i) {
  return static_cast<std::byte>(static_cast<std::size_t>(layer * 61 + expert * 7) + i * 3 + 1);
}

/// The other ranks, as far as this one can tell: they agree or not, answer or not, vote as they like.
class played_ranks {
public:
  played_ranks(input& from, index_t num_ranks) : from_{&from}, num_ranks_{num_ranks} {}

  [[nodiscard]] index_t rank() const noexcept { return 0; }
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] std::uint64_t membership() const { return 1; }

  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t) {
    if (!answers()) { return late(); }
    for (auto& value : values) { value = std::max<std::int64_t>(value, 0) / 2 + from_->byte(); }
    return {};
  }
  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all, nanoseconds_t) {
    if (!answers()) { return late(); }
    for (std::size_t i = 0; i < all.size(); ++i) { all[i] = mine[i % mine.size()]; }
    if (strange() && !all.empty()) { all.back() ^= 1; }
    return {};
  }
  [[nodiscard]] status broadcast(std::span<std::byte>, index_t, nanoseconds_t) { return answers() ? status{} : late(); }
  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t) {
    auto const choice = from_->byte() % 8;
    if (!yes || choice == 1) { return {decision::drop, {errc::transport_failed, "a rank voted no"}}; }
    return choice == 2 ? vote_result{decision::undecided, late()} : vote_result{decision::commit, {}};
  }
  [[nodiscard]] vote_result recall(nanoseconds_t) {
    switch (from_->byte() % 3) {
      case 0: return {decision::commit, {}};
      case 1: return {decision::drop, late()};
      default: return {decision::undecided, late()};
    }
  }

private:
  bool answers() { return from_->byte() % 16 != 1; }
  bool strange() { return from_->byte() % 16 == 1; }
  static status late() { return {errc::deadline_exceeded, "rank 1 did not come in time"}; }

  input* from_;
  index_t num_ranks_;
};

/// Brings what the other ranks hold, or fails at some point.
class played_wires {
public:
  played_wires(input& from, topology const& where) : from_{&from}, where_{&where} {}

  placement const* in_force = nullptr;

  [[nodiscard]] index_t rank() const noexcept { return 0; }
  [[nodiscard]] index_t num_ranks() const noexcept { return where_->num_ranks(); }
  [[nodiscard]] status start(std::span<outgoing_message const>, std::span<incoming_message const> receives) {
    require(state_ == transfer_state::idle, "one batch is open at a time");
    if (from_->byte() % 16 == 1) { return {errc::transport_failed, "cannot start"}; }
    receives_ = receives;
    state_ = transfer_state::pending;
    return {};
  }
  [[nodiscard]] transfer_state poll() {
    if (state_ == transfer_state::pending && from_->flag()) { arrive(); }
    return state_;
  }
  [[nodiscard]] status wait(nanoseconds_t) {
    if (state_ == transfer_state::pending) { arrive(); }
    auto const ended = std::exchange(state_, transfer_state::idle);
    receives_ = {};
    if (ended == transfer_state::failed) { return {errc::peer_lost, "rank 1 is dead"}; }
    return {};
  }

private:
  void arrive() {
    bool const fails = from_->byte() % 16 == 1;
    for (auto const& receive : receives_) {
      if (fails && from_->flag()) { continue; }
      require(!receive.segments.empty() && receive.segments.size() == receive.source.size(), "sources match targets");
      for (std::size_t i = 0; i < receive.segments.size(); ++i) {
        bring(receive.peer, receive.source[i], receive.segments[i]);
      }
    }
    state_ = fails ? transfer_state::failed : transfer_state::done;
  }
  // One tensor a layer, so a region is a layer.
  void bring(index_t peer, remote_segment const& from, segment const& to) const {
    auto const layer = static_cast<index_t>(from.region);
    auto const slot = static_cast<index_t>(from.offset / stride);
    require(slot < where_->slots_per_rank() && from.size == to.size, "a source is a slot of the peer");
    auto const expert = in_force->logical_of_slot(layer)[static_cast<std::size_t>(where_->first_slot(peer) + slot)];
    for (std::size_t i = 0; i < to.size; ++i) { to.data[i] = pattern(layer, expert, from.offset % stride + i); }
  }

  input* from_;
  topology const* where_;
  transfer_state state_ = transfer_state::idle;
  std::span<incoming_message const> receives_;
};

/// Plans whatever the fuzzer says, or nothing.
struct drawn_plans {
  input* from;

  [[nodiscard]] status plan(load_history_view, placement const& current, topology const&, placement& next) const {
    switch (from->byte() % 8) {
      case 1: return {errc::invalid_load, "no plan"};
      case 2: next = current; return {};
      default: next = draw_placement(*from, current.shape()); return {};
    }
  }
  [[nodiscard]] status validate() const { return {}; }
  void describe(digest& out) const { out.add(std::string_view{"drawn_plans"}); }
};

class life {
public:
  explicit life(input& from)
      : from_{from},
        where_{{from.between<index_t>(1, 3), 1, from.between<index_t>(1, 4), 0}},
        shape_{num_layers, 1 + from.byte() % where_.num_slots(), where_.num_slots()},
        initial_{draw_placement(from, shape_)},
        store_{where_, num_layers, from.flag() ? host_store::unlimited : from.between<std::size_t>(0, 4) * 256},
        ranks_{from, where_.num_ranks()},
        wires_{from, where_},
        moved_{where_,
               initial_,
               {window_recorder{num_layers, shape_.num_logical}, drawn_plans{&from},
                layers_per_chunk{from.between<index_t>(1, 2)}, options()},
               store_,
               wires_,
               ranks_} {
    wires_.in_force = &moved_.current();
    for (index_t layer = 0; layer < num_layers; ++layer) {
      auto& bytes = weights_.emplace_back(static_cast<std::size_t>(where_.slots_per_rank()) * stride, std::byte{0xa5});
      for (index_t slot = 0; slot < where_.slots_per_rank(); ++slot) {
        auto const expert = initial_.logical_of_slot(layer)[static_cast<std::size_t>(slot)];
        for (std::size_t i = 0; i < expert_bytes; ++i) {
          bytes[static_cast<std::size_t>(slot) * stride + i] = pattern(layer, expert, i);
        }
      }
    }
    for (index_t layer = 0; layer < num_layers; ++layer) {
      store_.add(layer, "weights", weights_[static_cast<std::size_t>(layer)].data(), expert_bytes, stride).or_throw();
    }
    epochs_.assign(num_layers, 0);
  }

  void run() {
    if (!moved_.start().ok()) { return; }
    for (int calls = 0; !from_.empty() && calls < 200; ++calls) {
      call();
      check();
    }
  }

private:
  rebalancer_options options() {
    rebalancer_options drawn;
    drawn.interval = from_.between<index_t>(1, 3);
    drawn.share_interval = from_.between<index_t>(0, 2);
    drawn.max_message_bytes = from_.between<std::int64_t>(0, 2) * 5;
    drawn.rounds_per_batch = from_.between<index_t>(0, 2);
    auto const mode = from_.byte();
    drawn.asynchronous = (mode & 1) != 0;
    // Every poll is late, because `call` waits before it, or none.
    drawn.timeout = (mode & 2) != 0 ? rebalancer_options::shortest_timeout : 1'000'000'000'000;
    drawn.verify = from_.byte() % 4 == 1;
    drawn.adopt_first_plan = from_.flag();
    drawn.check_replicas = false;  // the ranks that are played say what this one says
    return drawn;
  }

  void call() {
    auto const before = moved_.state();
    auto const failure = moved_.failure().message();
    if (moved_.options().timeout == rebalancer_options::shortest_timeout && before == rebalancer_state::moving) {
      ballast::detail::sleep_for(10 * rebalancer_options::shortest_timeout);
    }
    switch (from_.byte() % 12) {
      case 0: {
        auto const target = draw_placement(from_, shape_);
        expect_consistent(moved_.apply(target), before, failure);
        break;
      }
      case 1: {
        prediction found;
        static_cast<void>(moved_.predict(found));
        break;
      }
      case 2: moved_.disable(); break;
      case 3: moved_.enable(); break;
      case 4: static_cast<void>(moved_.resume()); break;
      case 5: {
        std::vector<std::int64_t> const counts(static_cast<std::size_t>(shape_.num_logical), from_.byte());
        static_cast<void>(moved_.record_logical(from_.between<index_t>(0, num_layers - 1), counts));
        break;
      }
      case 6: {
        // What is settled is `failed`, and not lost any more.
        if (moved_.settle(from_.flag() ? decision::commit : decision::drop).ok()) {
          require(before == rebalancer_state::cohort_lost && moved_.state() == rebalancer_state::failed,
                  "only a lost rank is settled");
        }
        break;
      }
      default: {
        exchange_words();  // may settle a lost rank
        auto const after = moved_.state();
        auto const why = moved_.failure().message();
        expect_consistent(moved_.on_forward_pass_end({.counted = from_.flag()}), after, why);
      }
    }
  }
  // The engine's exchange of a step: the others are where this rank is, or say something else.
  void exchange_words() {
    std::vector<std::uint64_t> words(static_cast<std::size_t>(where_.num_ranks()), moved_.outgoing());
    if (from_.byte() % 16 == 1) { words.back() = from_.byte(); }
    static_cast<void>(moved_.incoming(words));
  }

  void expect_consistent(status const& result, rebalancer_state before, std::string const& failure) const {
    bool const stopped = before == rebalancer_state::failed || before == rebalancer_state::cohort_lost;
    if (stopped && !failure.empty()) { require(!result.ok() && result.message() == failure, "a failure stays"); }
    if (moved_.state() == rebalancer_state::failed || moved_.state() == rebalancer_state::cohort_lost) {
      require(!moved_.failure().ok() && !moved_.failure().message().empty(), "a failure says why");
    }
  }

  void check() {
    auto const& tables = moved_.current();
    require(placement::validate(shape_, tables.logical_of_slot().elements()).ok(), "the tables are a placement");
    for (index_t layer = 0; layer < num_layers; ++layer) {
      auto& epoch = epochs_[static_cast<std::size_t>(layer)];
      require(moved_.epoch(layer) >= epoch, "epochs grow");
      epoch = moved_.epoch(layer);
      check_bytes(layer);
    }
  }
  void check_bytes(index_t layer) const {
    auto const& bytes = weights_[static_cast<std::size_t>(layer)];
    for (std::size_t at = 0; at < bytes.size(); ++at) {
      auto const expert = moved_.current().logical_of_slot(layer)[at / stride];
      auto const expected = at % stride < expert_bytes ? pattern(layer, expert, at % stride) : std::byte{0xa5};
      require(bytes[at] == expected, "a slot holds what the tables say");
    }
  }

  input& from_;
  topology where_;
  placement_shape shape_;
  placement initial_;
  std::vector<std::vector<std::byte>> weights_;
  host_store store_;
  played_ranks ranks_;
  played_wires wires_;
  rebalancer<window_recorder, drawn_plans, layers_per_chunk<>, played_wires, host_store, played_ranks> moved_;
  std::vector<epoch_t> epochs_;
};

/// One rank's rebalancer among ranks that the fuzzer plays: whatever is called in which order and however the others
/// answer, weights and tables agree, epochs only grow, and a failure stays until `resume`.
inline void state_machine(std::uint8_t const* data, std::size_t size) {
  input from{data, size};
  life{from}.run();
}

}  // namespace ballast_fuzz

#endif
