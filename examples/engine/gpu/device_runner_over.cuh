// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_RUNNER_OVER_CUH
#define BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_RUNNER_OVER_CUH

#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/kernels/batch_balancer.cuh>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/in_process.hpp>

#include "../balancer_over.hpp"
#include "../exchange.hpp"
#include "device_experts.hpp"
#include "device_pass.hpp"
#include "device_runner.hpp"
#include "rank_card.hpp"

#include <algorithm>
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
template <class Transport, class Copies, class Control>
class device_runner final : public model_runner {
public:
  /// @param control         lent to the rebalancer
  /// @param make_transport  gives the transport
  template <class MakeTransport>
  device_runner(runner_parts const& parts, card_parts const& on, Control& control, MakeTransport make_transport)
      : parts_{parts},
        card_{on.card},
        ranks_{on.ranks},
        show_{on.show},
        experts_{parts.how.shape, parts.how.where, parts.how.initial, on.card.rank(), on.card.stream()},
        wires_{make_transport()} {
    auto const& how = parts.how;
    if (parts.of().split == split_kind::quotas) {
      batches_.emplace(card_.stream(), how.where, card_.rank(), how.initial,
                       cudart::batch_options{.max_tokens = how.schedule.tokens_a_rank,
                                             .top_k = how.shape.top_k + 1,
                                             .control = {.wait_nanoseconds = wait_of_batches()}});
    }
    store_.emplace(how.where, card_.rank(), how.initial, store_options());
    experts_.add_to(*store_);
    if (parts.of().driver != driver_kind::nobody) { make_balancer(control); }
  }

  [[nodiscard]] status start() override {
    if (batches_) {
      auto const boards = show_(batches_->board());
      if (auto result = batches_->connect(std::span{boards}); !result.ok()) { return result; }
    }
    if (balancer_) {
      if (auto result = balancer_->start(); !result.ok()) { return result; }
    }
    std::vector<int> sizes{parts_.how.schedule.tokens_a_rank};
    if (parts_.how.small_pass < sizes.front()) { sizes.insert(sizes.begin(), parts_.how.small_pass); }
    auto caches = parts_.how.stop.rank < 0 ? plan_caches(parts_.requests, parts_.how.schedule, card_.rank())
                                           : plan_all_caches(parts_.requests);
    pass_.emplace(
        card_, parts_.requests, std::move(caches), experts_,
        [this](index_t layer, pass_stream const& on, bool balances) { return route(layer, on, balances); }, sizes,
        has_gate(), parts_.how.keeps_routing && parts_.number == 0);
    return {};
  }
  [[nodiscard]] balancer* own_balancer() override { return balancer_.get(); }

  [[nodiscard]] status launch(std::span<token const> tokens, std::int64_t in_batch,
                              std::function<void()> const& halfway) override {
    halfway();
    // Every rank knows the batch, and so all choose alike whether it is worth being balanced.
    auto const choices = in_batch * parts_.how.shape.top_k;
    auto result = pass_->launch(tokens, !has_gate() || choices >= static_cast<std::int64_t>(parts_.how.least_batch));
    return result.ok() && card_.is_shared() ? meet() : result;
  }
  [[nodiscard]] status finish() override { return pass_->finish(parts_.how.timeout); }
  [[nodiscard]] std::span<std::uint64_t const> work() const override { return pass_->work(); }
  [[nodiscard]] std::span<std::int64_t const> routing() const override { return pass_->routing(); }
  [[nodiscard]] std::uint64_t outcome_of(std::size_t request) const override { return pass_->outcome_of(request); }

  [[nodiscard]] status go_on_without(index_t dead, ballast::topology const& where) override {
    card_.go_on_without(dead);
    if (auto result = meet(); !result.ok() || !balancer_) { return result; }
    auto const first = where.first_slot(card_.rank());
    auto const reload = [&](ballast::slot_reload const& one) {
      if (where.rank_of_slot(one.slot) != card_.rank()) { return; }
      experts_.load(one.layer, one.slot - first, one.expert, card_.stream());
    };
    return balancer_->go_on_without(dead, where, reload);
  }

private:
  using store_type = cudart::device_store<ballast::dispatch_tables, Copies>;
  using device_balancer = balancer_over<cudart::device_recorder, store_type, Transport, Control>;

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
  /// So short that the waits of a pass, one in each layer, end before the pass must, when a rank is late in all.
  [[nodiscard]] std::uint32_t wait_of_batches() const {
    auto const part = parts_.how.timeout / (2 * parts_.how.shape.num_layers);
    return static_cast<std::uint32_t>(std::min<ballast::nanoseconds_t>(part, longest_wait));
  }
  void make_balancer(Control& control) {
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
  [[nodiscard]] std::int32_t const* route(index_t layer, pass_stream const& on, bool balances) {
    auto const& v = card_.view();
    cudart::routing<std::int32_t> const input{v.logical, on.padded_tokens, v.top_k + 1, v.num_tokens};
    switch (balances ? parts_.of().split : split_kind::even) {
      case split_kind::perfect: enqueue_perfect_routing(on, v, false); break;
      case split_kind::perfect_ranks: enqueue_perfect_routing(on, v, true); break;
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
  show_function show_;
  device_experts experts_;
  Transport wires_;
  std::optional<cudart::batch_balancer> batches_;
  std::optional<store_type> store_;
  cudart::record_view counters_{};
  std::unique_ptr<balancer> balancer_;
  std::optional<device_pass> pass_;
  std::vector<std::uint64_t> met_;  ///< [R]
};

/// A runner that reads experts out of other threads' memory. @tparam Copies  what copies them, and commits
template <class Copies>
[[nodiscard]] std::unique_ptr<model_runner> make_peer_runner(runner_parts const& parts, card_parts const& on,
                                                             thread_wires const& wires) {
  using transport = cudart::peer_copy<cudart::local_peers::member, Copies>;
  return std::make_unique<device_runner<transport, Copies, ballast::in_process_endpoint>>(
      parts, on, wires.control, [&on, &wires] { return transport{wires.peers.join(on.card.rank()), {.timed = true}}; });
}

}  // namespace engine

#endif
