// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The parts of docs/your_own_parts.md, and that a rebalancer works with them.
#include <ballast/ballast.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/transport/in_process.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace ballast;

struct rotated_placement {
  static constexpr bool follows_loads = false;
  index_t first_expert = 0;

  [[nodiscard]] status validate() const {
    if (first_expert >= 0) { return {}; }
    return {errc::invalid_option, "rotated_placement: first_expert is " + std::to_string(first_expert)};
  }
  void describe(digest& out) const { out.add(std::string_view{"rotated_placement"}).add(first_expert); }
  [[nodiscard]] constexpr relabel_scope interchangeable() const noexcept { return relabel_scope::slots; }
  [[nodiscard]] status plan(load_history_view /*loads*/, placement const& current, topology const& where,
                            placement& next) const {
    next = current;  // slots of dead ranks keep what they hold
    for (index_t layer = 0; layer < next.num_layers(); ++layer) {
      auto expert = first_expert % next.num_logical();
      for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
        for (index_t slot = 0; slot < where.slots_per_rank() && where.is_live(rank); ++slot) {
          next.edit(layer).logical_of_slot[static_cast<std::size_t>(where.first_slot(rank) + slot)] = expert;
          expert = (expert + 1) % next.num_logical();
        }
      }
      next.index_replicas(layer);  // the inverse of the map
    }
    return {};
  }
};
static_assert(placement_policy<rotated_placement>);

struct one_layer_then_all {
  index_t first_layer = 0;

  [[nodiscard]] status validate() const {
    if (first_layer >= 0) { return {}; }
    return {errc::invalid_option, "one_layer_then_all: first_layer is " + std::to_string(first_layer)};
  }
  void describe(digest& out) const { out.add(std::string_view{"one_layer_then_all"}).add(first_layer); }
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink&& sink) const {
    std::vector<index_t> first, others;
    for (auto const& layer : work) {
      if (layer.changed) { (layer.layer == first_layer ? first : others).push_back(layer.layer); }
    }
    if (!first.empty()) { sink(std::span<index_t const>{first}); }
    if (!others.empty()) { sink(std::span<index_t const>{others}); }
  }
};
static_assert(chunk_schedule<one_layer_then_all>);

class event_counter final : public observer {
public:
  void on_event(event const& what) override {
    ++counts_[to_string(what.kind)];
    if (what.failure != nullptr) { last_failure_ = what.failure->message(); }  // it is gone after the call
  }
  [[nodiscard]] int count(event_kind kind) const {
    auto const found = counts_.find(to_string(kind));
    return found == counts_.end() ? 0 : found->second;
  }

private:
  std::map<std::string, int> counts_;
  std::string last_failure_;
};

struct slow_rank_cost {
  index_t slow_rank = 0;
  load_t percent = 100;

  [[nodiscard]] constexpr load_t operator()(index_t rank, load_t load) const noexcept {
    return rank == slow_rank ? load / 100 * percent + load % 100 * percent / 100 : load;
  }
  void describe(digest& out) const { out.add(std::string_view{"slow_rank_cost"}).add(slow_rank).add(percent); }
};
static_assert(rank_cost<slow_rank_cost>);

class one_tensor_store {
public:
  one_tensor_store(topology const& where, placement const& initial, std::size_t expert_bytes)
      : slots_{where.slots_per_rank()}, expert_bytes_{expert_bytes}, tables_{initial} {
    auto const layer_bytes = static_cast<std::size_t>(slots_) * expert_bytes;
    weights_.assign(static_cast<std::size_t>(initial.num_layers()), std::vector<std::byte>(layer_bytes));
    for (auto& layer : weights_) {
      tensors_.push_back({layer.data(), expert_bytes, expert_bytes, static_cast<std::uint32_t>(regions_.size())});
      regions_.push_back({layer.data(), layer_bytes});
    }
  }
  [[nodiscard]] index_t num_layers() const noexcept { return static_cast<index_t>(weights_.size()); }
  [[nodiscard]] index_t slots_per_rank() const noexcept { return slots_; }
  [[nodiscard]] std::span<expert_tensor const> tensors(index_t layer) const {
    return std::span{tensors_}.subspan(static_cast<std::size_t>(layer), 1);
  }
  [[nodiscard]] std::span<segment const> regions() const { return regions_; }
  [[nodiscard]] std::size_t staging_limit() const noexcept { return std::numeric_limits<std::size_t>::max(); }
  [[nodiscard]] status reserve_staging(std::size_t bytes) {
    staging_.resize(std::max(bytes, staging_.size()));
    return {};
  }
  [[nodiscard]] std::byte* staging() noexcept { return staging_.data(); }
  [[nodiscard]] status prepare() { return {}; }  // on the host every commit is over when it returns
  [[nodiscard]] status commit(index_t layer, std::span<byte_copy const> copies, placement const& tables, epoch_t) {
    for (auto const& copy : copies) { std::memcpy(copy.to, copy.from, copy.bytes); }  // they come in phase order
    tables_.copy_layer(tables, layer);
    return {};
  }
  [[nodiscard]] status checksum(std::span<segment const> segments, std::uint64_t& out) {
    digest sum;
    for (auto const& part : segments) { sum.add_bytes({part.data, part.size}); }
    out = sum.value();
    return {};
  }
  void describe(digest& out) const { out.add(std::string_view{"one_tensor_store"}).add(expert_bytes_); }

  [[nodiscard]] placement const& tables() const noexcept { return tables_; }
  [[nodiscard]] std::span<std::byte> expert(index_t layer, index_t slot) {
    return std::span{weights_[static_cast<std::size_t>(layer)]}.subspan(static_cast<std::size_t>(slot) * expert_bytes_,
                                                                        expert_bytes_);
  }

private:
  index_t slots_;
  std::size_t expert_bytes_;
  std::vector<std::vector<std::byte>> weights_;
  std::vector<expert_tensor> tensors_;
  std::vector<segment> regions_;
  std::vector<std::byte> staging_;
  placement tables_;
};
static_assert(expert_store<one_tensor_store>);

constexpr index_t num_layers = 3, num_experts = 5, num_ranks = 2, slots = 4;

std::byte stamp(index_t layer, index_t expert) { return static_cast<std::byte>(16 * layer + expert); }

}  // namespace

TEST_CASE("a rebalancer works with parts that are all the engine's own") {
  topology const where{{.num_ranks = num_ranks, .num_nodes = 1, .slots_per_rank = slots}};
  auto const initial = trivial_placement({num_layers, num_experts, where.num_slots()});
  in_process_group group{num_ranks};
  group.run([&](in_process_endpoint& endpoint) {
    one_tensor_store store{where, initial, 48};
    auto const expert_in = [&](placement const& tables, index_t layer, index_t slot) {
      return tables.logical_of_slot(layer)[static_cast<std::size_t>(where.first_slot(endpoint.rank()) + slot)];
    };
    for (index_t layer = 0; layer < num_layers; ++layer) {
      for (index_t slot = 0; slot < slots; ++slot) {
        std::ranges::fill(store.expert(layer, slot), stamp(layer, expert_in(initial, layer, slot)));
      }
    }
    event_counter events;
    rebalancer balancer{where, initial,
                        rebalancing{window_recorder{num_layers, num_experts, {.passes = 2}},
                                    rotated_placement{3},
                                    one_layer_then_all{1},
                                    {.interval = 2},
                                    &events},
                        store, endpoint};
    balancer.start().or_throw();
    for (int pass = 0; pass < 6; ++pass) { balancer.on_forward_pass_end().or_throw(); }
    CHECK(events.count(event_kind::commit) >= 2);
    CHECK(events.count(event_kind::failed) == 0);
    CHECK(balancer.current() != initial);
    for (index_t layer = 0; layer < num_layers; ++layer) {
      for (index_t slot = 0; slot < slots; ++slot) {
        auto const expected = stamp(layer, expert_in(balancer.current(), layer, slot));
        CHECK(std::ranges::count(store.expert(layer, slot), expected) == 48);
        CHECK(expert_in(store.tables(), layer, slot) == expert_in(balancer.current(), layer, slot));
      }
    }
  });
}

TEST_CASE("what a part refuses names the value") {
  CHECK(rotated_placement{-2}.validate().message() == "rotated_placement: first_expert is -2");
  CHECK(one_layer_then_all{-1}.validate().message() == "one_layer_then_all: first_layer is -1");
}

TEST_CASE("a slow rank gets less") {
  topology const where{{.num_ranks = 2, .num_nodes = 1, .slots_per_rank = 4}};
  auto const current = trivial_placement({1, 8, where.num_slots()});
  std::vector<load_t> const tokens{100, 100, 100, 100, 300, 300, 300, 300};
  load_history_view const loads{tokens, 1, 1, 8};
  placement next;
  basic_balanced_placement<slow_rank_cost> const policy{.cost = {.slow_rank = 0, .percent = 300}};
  plan(policy, loads, current, where, next).or_throw();
  load_t on_slow_rank = 0;
  for (auto const expert : next.logical_of_slot(0).first(4)) {
    on_slow_rank += tokens[static_cast<std::size_t>(expert)];
  }
  CHECK(on_slow_rank == 400);
}
