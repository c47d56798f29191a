// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "gpu_ranks.hpp"

#include <ballast/cudart/peer_directory.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/in_process.hpp>

#include "../exchange_over.hpp"
#include "../reference.hpp"
#include "card_share.hpp"
#include "cards.hpp"
#include "check.hpp"
#include "device_pass.hpp"
#include "device_runner.hpp"
#include "rank_card.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <system_error>
#include <utility>

namespace engine {

namespace {

using ballast::in_process_endpoint;

[[nodiscard]] std::vector<std::uint64_t> serve_alone_on_card(device_model const& of, std::span<request const> requests,
                                                             schedule_options const& how,
                                                             ballast::nanoseconds_t timeout) {
  auto const experts = of.shape.num_experts;
  ballast::topology const where{{1, 1, experts, 1}};
  auto share = std::move(card_share::cut(0, 1).front());
  rank_card card{of, std::move(share), where, 0, how.tokens_a_rank, timeout};
  auto const own = card.own_mailbox();
  card.connect({&own, 1});
  auto const initial = ballast::trivial_placement({of.shape.num_layers, experts, where.num_slots()});
  device_experts weights{of.shape, where, initial, 0, card.stream()};
  auto const size = static_cast<int>(how.tokens_a_rank);
  // Each expert is in the slot of its number, and the shared one behind them.
  device_pass pass{card,
                   requests,
                   plan_caches(requests, how, 0),
                   weights,
                   [&](index_t, pass_stream const&, bool) { return card.view().logical; },
                   {&size, 1},
                   false,
                   false};
  scheduler passes{requests, how};
  while (!passes.is_done()) {
    auto const plan = passes.next();
    pass.launch(plan.tokens.front(), true).or_throw();
    pass.finish(timeout).or_throw();
  }
  std::vector<std::uint64_t> outcomes;
  for (std::size_t i = 0; i < requests.size(); ++i) { outcomes.push_back(pass.outcome_of(i)); }
  return outcomes;
}

/// Ranks of different cards write to each other.
void enable_peer_access(int num_cards) {
  for (int card = 0; card < num_cards; ++card) {
    check(cudaSetDevice(card), "cudaSetDevice");
    for (int peer = 0; peer < num_cards; ++peer) {
      if (peer == card) { continue; }
      auto const result = cudaDeviceEnablePeerAccess(peer, 0);
      if (result == cudaErrorPeerAccessAlreadyEnabled) {
        static_cast<void>(cudaGetLastError());
      } else {
        check(result, "cudaDeviceEnablePeerAccess");
      }
    }
  }
}

class gpu_links final : public rank_links {
public:
  gpu_links(settings const& how, in_process_endpoint& tokens, rank_card& card,
            std::deque<ballast::in_process_group>& groups, std::deque<ballast::cudart::local_peers>& peers)
      : mover_{how.mover}, card_{card}, exchange_{tokens, tokens, 0, how.timeout}, groups_{groups}, peers_{peers} {
    card_.connect(show(card_.own_mailbox()));
  }

  [[nodiscard]] token_exchange& exchange() override { return exchange_; }
  [[nodiscard]] std::unique_ptr<model_runner> make_runner(runner_parts const& parts) override {
    card_parts const on{card_, exchange_, [this](ballast::segment mine) { return show(mine); }};
    thread_wires const lent{groups_[parts.number].endpoint(exchange_.rank()), peers_[parts.number]};
    switch (mover_) {
      case mover_kind::copy_engines: break;
      case mover_kind::kernels: return make_runner_with_kernels(parts, on, lent);
#ifdef ENGINE_HAS_NCCL
      case mover_kind::nccl: return make_runner_with_nccl(parts, on, lent);
#else
      case mover_kind::nccl: break;
#endif
    }
    return make_runner_with_copy_engines(parts, on, lent);
  }

private:
  [[nodiscard]] std::vector<ballast::segment> show(ballast::segment mine) {
    std::vector<std::uint64_t> const own{reinterpret_cast<std::uintptr_t>(mine.data), mine.size};
    std::vector<std::uint64_t> all(own.size() * static_cast<std::size_t>(exchange_.num_ranks()));
    exchange_.all_gather(own, all).or_throw();
    std::vector<ballast::segment> shown;
    for (std::size_t i = 0; i < all.size(); i += own.size()) {
      shown.push_back({reinterpret_cast<std::byte*>(all[i]), static_cast<std::size_t>(all[i + 1])});
    }
    return shown;
  }

  mover_kind mover_;
  rank_card& card_;
  exchange_over<in_process_endpoint, in_process_endpoint> exchange_;
  std::deque<ballast::in_process_group>& groups_;
  std::deque<ballast::cudart::local_peers>& peers_;
};

}  // namespace

std::vector<std::uint64_t> prove_batch_invariance_on_card(settings const& how, std::span<routing_skew const> skews,
                                                          std::span<request const> requests) {
  ask_for_queues();
  auto const model = make_device_model(how.shape, skews);
  auto const tokens = how.schedule.tokens_a_rank;
  auto const first = serve_alone_on_card(model, requests, {1, tokens, 1}, how.timeout);
  auto const smaller = std::max(1, tokens / 3);
  require_alike(first, serve_alone_on_card(model, requests, {1, smaller, 2}, how.timeout), smaller);
  return first;
}

void run_on_gpus(settings const& how, std::span<routing_skew const> skews, rank_function const& body) {
  ask_for_queues();
  auto const ranks = how.where.num_ranks();
  auto const cards = std::min(count_cards(how.cards), static_cast<int>(ranks));
  if (how.mover == mover_kind::nccl && cards < ranks) {
    throw std::system_error{make_error_code(ballast::errc::invalid_option),
                            ballast::detail::concat("--moves-with nccl: NCCL wants a card for each of the ", ranks,
                                                    " ranks, there are ", cards)};
  }
  enable_peer_access(cards);
  auto const model = make_device_model(how.shape, skews);
  std::deque<rank_card> own;
  std::vector<std::vector<card_share>> shares;
  for (int card = 0; card < cards; ++card) {
    shares.push_back(card_share::cut(card, (ranks - card + cards - 1) / cards));
  }
  for (index_t rank = 0; rank < ranks; ++rank) {
    check(cudaSetDevice(static_cast<int>(rank) % cards), "cudaSetDevice");
    auto& share = shares[static_cast<std::size_t>(rank % cards)][static_cast<std::size_t>(rank / cards)];
    own.emplace_back(model, std::move(share), how.where, rank, how.schedule.tokens_a_rank, how.timeout);
  }

  ballast::in_process_group tokens{ranks};
  std::deque<ballast::in_process_group> groups;
  std::deque<ballast::cudart::local_peers> peers;
  for (std::size_t i = 0; i < how.modes.size(); ++i) {
    groups.emplace_back(ranks);
    peers.emplace_back(ranks);
  }
  tokens.run([&](in_process_endpoint& endpoint) {
    auto& card = own[static_cast<std::size_t>(endpoint.rank())];
    check(cudaSetDevice(card.device()), "cudaSetDevice");
    gpu_links links{how, endpoint, card, groups, peers};
    try {
      body(links);
    } catch (std::exception const& error) {
      std::fprintf(stderr, "engine: rank %d: %s\n", endpoint.rank(), error.what());
      for (auto& group : groups) { group.kill(endpoint.rank()); }  // the others need not wait for it
      throw;
    }
  });
}

}  // namespace engine
