// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Ranks as processes with a card each: they see each other's memory by handles of the driver.
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>

#include "../exchange_over.hpp"
#include "../rank_processes.hpp"
#include "card_share.hpp"
#include "cards.hpp"
#include "device_runner.hpp"
#include "gpu_ranks.hpp"
#include "rank_card.hpp"

#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace engine {

namespace {

using ballast::posix::process_group;

/// The others wait while rank 0 serves alone.
constexpr ballast::nanoseconds_t time_to_meet = 600'000'000'000;

[[nodiscard]] std::unique_ptr<process_group> meet(std::string const& name, index_t rank, index_t num_ranks) {
  auto group = std::make_unique<process_group>();
  group->join(name, rank, num_ranks, time_to_meet).or_throw();
  return group;
}

[[nodiscard]] card_share card_of(index_t rank, int wanted) {
  return std::move(card_share::cut(static_cast<int>(rank) % count_cards(wanted), 1).front());
}

class card_process final : public rank_links {
public:
  card_process(settings const& how, device_model const& of, std::string name, index_t rank)
      : name_{std::move(name)},
        tokens_{meet(name_, rank, how.where.num_ranks())},
        wires_{*tokens_},
        exchange_{wires_, *tokens_, 0, how.timeout},
        card_{of, card_of(rank, how.cards), how.where, rank, how.schedule.tokens_a_rank, how.timeout},
        peers_{*tokens_},
        groups_(how.modes.size()) {
    card_.connect(show(card_.own_mailbox()));
  }

  [[nodiscard]] token_exchange& exchange() override { return exchange_; }
  [[nodiscard]] std::unique_ptr<model_runner> make_runner(runner_parts const& parts) override {
    auto& own = groups_[parts.number];
    own = meet(ballast::detail::concat(name_, '-', parts.number), card_.rank(), exchange_.num_ranks());
    return make_runner_of_process(parts, {card_, exchange_, [this](ballast::segment mine) { return show(mine); }},
                                  *own);
  }

private:
  [[nodiscard]] std::vector<ballast::segment> show(ballast::segment mine) {
    auto const number = peers_.next_region();
    peers_.expose({&mine, 1}, number).or_throw();
    std::vector<ballast::segment> shown;
    for (index_t rank = 0; rank < exchange_.num_ranks(); ++rank) {
      shown.push_back(rank == card_.rank() ? mine : peers_.region(rank, number));
    }
    return shown;
  }

  std::string name_;
  std::unique_ptr<process_group> tokens_;
  ballast::posix::peer_copy wires_;
  exchange_over<ballast::posix::peer_copy, process_group> exchange_;
  rank_card card_;
  ballast::cudart::ipc_peers<process_group> peers_;
  std::vector<std::unique_ptr<process_group>> groups_;
};

}  // namespace

void run_on_gpus_as_processes(settings const& how, std::span<routing_skew const> skews,
                              std::function<void()> const& before, rank_function const& body) {
  ask_for_queues();
  auto const name = ballast::detail::concat("ballast-engine-", static_cast<std::int64_t>(::getpid()));
  auto const model = make_device_model(how.shape, skews);
  auto const be = [&](index_t rank) {
    card_process links{how, model, name, rank};
    body(links);
  };
  rank_processes others{how.where.num_ranks(), how.stop.rank, be};
  before();
  be(0);
  others.join();
}

}  // namespace engine
