// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_RUNNER_OVER_CUH
#define BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_RUNNER_OVER_CUH

#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/kernels/batch_balancer.cuh>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/transport/in_process.hpp>

#include "../balancer_over.hpp"
#include "../exchange.hpp"
#include "device_experts.hpp"
#include "device_pass.hpp"
#include "device_runner.hpp"
#include "rank_card.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace engine {

namespace cudart = ballast::cudart;

/// For the counts of another rank, whose thread may come late to set its pass off.
inline constexpr std::uint32_t longest_wait = 1'000'000'000;

/// The model on one card, or a part of it, and the rebalancer that moves its weights with this transport.
/// @tparam Copies  what its commits copy with
template <class Transport, class Copies>
class device_runner final : public model_runner {
public:
  /// @param make_transport  gives the transport
  template <class MakeTransport>
  device_runner(runner_parts const& parts, card_parts const& on, MakeTransport make_transport)
      : parts_{parts},
        card_{on.card},
        ranks_{on.ranks},
        experts_{parts.how.shape, parts.how.where, parts.how.initial, on.card.rank(), on.card.stream()},
        wires_{make_transport()} {
    auto const& how = parts.how;
    if (parts.of().split == split_kind::quotas) {
      batches_.emplace(card_.stream(), how.where, card_.rank(), how.initial,
                       cudart::batch_options{.max_tokens = how.schedule.tokens_a_rank,
                                             .top_k = how.shape.top_k + 1,
                                             .control = {.wait_nanoseconds = longest_wait}});
    }
    store_.emplace(how.where, card_.rank(), how.initial, store_options());
    experts_.add_to(*store_);
    if (parts.of().driver != driver_kind::nobody) { make_balancer(on.control); }
  }

  [[nodiscard]] status start() override {
    if (batches_) {
      if (auto result = connect_boards(); !result.ok()) { return result; }
    }
    if (balancer_) {
      if (auto result = balancer_->start(); !result.ok()) { return result; }
    }
    std::vector<int> sizes{parts_.how.schedule.tokens_a_rank};
    if (parts_.how.small_pass < sizes.front()) { sizes.insert(sizes.begin(), parts_.how.small_pass); }
    pass_.emplace(
        card_, parts_.requests, parts_.how.schedule, experts_,
        [this](index_t layer, pass_stream const& on, bool balances) { return route(layer, on, balances); }, sizes,
        has_gate(), parts_.how.keeps_routing && parts_.number == 0);
    return {};
  }
  [[nodiscard]] balancer* own_balancer() override { return balancer_.get(); }

  [[nodiscard]] status launch(std::span<token const> tokens, std::int64_t in_batch,
                              std::function<void()> const&) override {
    // Every rank knows the batch, and so all choose alike whether it is worth being balanced.
    auto const choices = in_batch * parts_.how.shape.top_k;
    auto result = pass_->launch(tokens, !has_gate() || choices >= static_cast<std::int64_t>(parts_.how.least_batch));
    return result.ok() && card_.is_shared() ? meet() : result;
  }
  [[nodiscard]] status finish() override { return pass_->finish(parts_.how.timeout); }
  [[nodiscard]] std::span<std::uint64_t const> work() const override { return pass_->work(); }
  [[nodiscard]] std::span<std::int64_t const> routing() const override { return pass_->routing(); }
  [[nodiscard]] std::uint64_t outcome_of(std::size_t request) const override { return pass_->outcome_of(request); }

  [[nodiscard]] status go_on_without(index_t dead, ballast::topology const&) override {
    return {ballast::errc::peer_lost, "ranks on cards of one process end together", dead};
  }

private:
  using store_type = cudart::device_store<ballast::dispatch_tables, Copies>;
  using device_balancer = balancer_over<cudart::device_recorder, store_type, Transport, ballast::in_process_endpoint>;

  /// Small batches are left as they are.
  [[nodiscard]] bool has_gate() const { return batches_ && parts_.how.least_batch > 0; }

  [[nodiscard]] cudart::device_store_options store_options() {
    cudart::device_store_options options;
    options.compute_stream = card_.stream();
    options.timed = true;
    options.dispatch =
        parts_.of().split == split_kind::shares ? ballast::dispatch_mode::by_share : ballast::dispatch_mode::even;
    if (batches_) { options.follower = batches_->follower(); }
    return options;
  }
  void make_balancer(ballast::in_process_endpoint& control) {
    balanced_parts const parts{parts_.how, parts_.of(), parts_.watcher};
    cudart::device_recorder recorder{card_.stream(), parts_.how.shape.num_layers, parts_.how.shape.num_experts,
                                     window_of(parts)};
    auto made = std::make_unique<device_balancer>(parts, std::move(recorder), *store_, wires_, control);
    counters_ = made->recorder().view();
    balancer_ = std::move(made);
  }
  /// Streams of a card share its queues. What ballast enqueues when the pass has been set off may wait for a peer's
  /// pass, and must not stand in a queue before one that this peer waits for.
  [[nodiscard]] status meet() {
    std::uint64_t const word = 0;
    met_.resize(static_cast<std::size_t>(ranks_.num_ranks()));
    return ranks_.all_gather({&word, 1}, met_);
  }
  [[nodiscard]] status connect_boards() {
    auto const mine = batches_->board();
    std::vector<std::uint64_t> const own{reinterpret_cast<std::uintptr_t>(mine.data), mine.size};
    std::vector<std::uint64_t> all(own.size() * static_cast<std::size_t>(ranks_.num_ranks()));
    if (auto result = ranks_.all_gather(own, all); !result.ok()) { return result; }
    std::vector<ballast::segment> boards;
    for (std::size_t i = 0; i < all.size(); i += own.size()) {
      boards.push_back({reinterpret_cast<std::byte*>(all[i]), static_cast<std::size_t>(all[i + 1])});
    }
    return batches_->connect(std::span<ballast::segment const>{boards});
  }

  [[nodiscard]] std::int32_t const* route(index_t layer, pass_stream const& on, bool balances) {
    auto const& v = card_.view();
    cudart::routing<std::int32_t> const input{v.logical, on.padded_tokens, v.top_k + 1, v.num_tokens};
    switch (balances ? parts_.of().split : split_kind::even) {
      case split_kind::perfect: enqueue_perfect_routing(on, v); break;
      case split_kind::quotas:
        cudart::balance_and_dispatch(on.stream, batches_->view(), counters_, store_->view(), layer, input, v.physical)
            .or_throw();
        break;
      case split_kind::even:
      case split_kind::shares:
        if (balancer_) {
          cudart::dispatch_and_record(on.stream, counters_, store_->view(), layer, input, v.physical).or_throw();
        } else {
          cudart::dispatch(on.stream, store_->view(), layer, input, v.physical).or_throw();
        }
        break;
    }
    return v.physical;
  }

  runner_parts parts_;
  rank_card& card_;
  token_exchange& ranks_;
  device_experts experts_;
  Transport wires_;
  std::optional<cudart::batch_balancer> batches_;
  std::optional<store_type> store_;
  cudart::record_view counters_{};
  std::unique_ptr<balancer> balancer_;
  std::optional<device_pass> pass_;
  std::vector<std::uint64_t> met_;  ///< [R]
};

/// A runner that reads experts out of the peers' memory. @tparam Copies  what copies them, and commits
template <class Copies>
[[nodiscard]] std::unique_ptr<model_runner> make_peer_runner(runner_parts const& parts, card_parts const& on) {
  using transport = cudart::peer_copy<cudart::local_peers::member, Copies>;
  return std::make_unique<device_runner<transport, Copies>>(
      parts, on, [&on] { return transport{on.peers.join(on.card.rank()), {.timed = true}}; });
}

}  // namespace engine

#endif
