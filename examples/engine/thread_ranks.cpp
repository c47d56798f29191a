// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Ranks as threads: messages are copies within one process.
#include <ballast/transport/in_process.hpp>

#include "balancer_over.hpp"
#include "exchange_over.hpp"
#include "host_runner.hpp"
#include "rank_links.hpp"

#include <deque>
#include <memory>

namespace engine {

namespace {

using ballast::in_process_endpoint;

class thread_links final : public rank_links {
public:
  thread_links(settings const& how, model const& of, in_process_endpoint& tokens,
               std::deque<ballast::in_process_group>& groups)
      : model_{of}, exchange_{tokens, tokens, how.outbox_floats(), how.timeout}, groups_{groups} {}

  [[nodiscard]] token_exchange& exchange() override { return exchange_; }
  [[nodiscard]] std::unique_ptr<model_runner> make_runner(runner_parts const& parts) override {
    return std::make_unique<host_runner>(parts, model_, exchange_, [this, parts](ballast::host_store& store) {
      auto& endpoint = groups_[parts.number].endpoint(exchange_.rank());
      return make_host_balancer({parts.how, parts.of(), parts.watcher}, store, endpoint, endpoint);
    });
  }

private:
  model const& model_;
  exchange_over<in_process_endpoint, in_process_endpoint> exchange_;
  std::deque<ballast::in_process_group>& groups_;
};

}  // namespace

void run_as_threads(settings const& how, model const& of, rank_function const& body) {
  auto const ranks = how.where.num_ranks();
  ballast::in_process_group tokens{ranks};
  std::deque<ballast::in_process_group> groups;
  for (std::size_t i = 0; i < how.modes.size(); ++i) { groups.emplace_back(ranks); }
  tokens.run([&](in_process_endpoint& endpoint) {
    thread_links links{how, of, endpoint, groups};
    try {
      body(links);
    } catch (...) {
      for (auto& group : groups) { group.kill(endpoint.rank()); }  // the others need not wait for it
      throw;
    }
  });
}

}  // namespace engine
