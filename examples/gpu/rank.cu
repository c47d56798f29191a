// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// One rank of an engine: weights in device memory, a forward pass captured once, and a rebalancer that is called
// between its replays.
#include <ballast/ballast.hpp>
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/nccl/cohort.hpp>
#include <ballast/policies/incremental.hpp>

#include "experts.cuh"
#include "forward_pass.cuh"
#include "rank.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace gpu_example {
namespace {

using namespace ballast;

// The ranks of this engine have no all-to-all: each sees all tokens, and so all of them must choose the same replica.
using store_type = cudart::device_store<invariant_dispatch_tables>;

/// Sums up what was moved.
struct moves_watcher final : observer {
  void on_event(event const& what) override {
    if (what.kind != event_kind::commit) { return; }
    moves += what.moves;
    bytes += what.bytes;
  }
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
};

/// What `nccl::cohort` is with NCCL, for ranks of one process that read each other's memory.
struct peer_cohort {
  cudart::peer_copy<cudart::local_peers::member> copies;
  in_process_endpoint* ranks;
  cudaStream_t stream;

  [[nodiscard]] index_t rank() const noexcept { return ranks->rank(); }
  [[nodiscard]] cudaStream_t compute_stream() const noexcept { return stream; }
  [[nodiscard]] auto& wires() noexcept { return copies; }
  [[nodiscard]] in_process_endpoint& control() noexcept { return *ranks; }
};

/// Compare the outputs of all ranks together with what the chosen experts make of their tokens.
void check_outputs(settings const& how, std::span<std::int32_t const> choices, std::span<std::int64_t const> outputs,
                   pass_facts& facts) {
  auto const count = choices_of_layer(how);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    auto const layer = static_cast<index_t>(i / count);
    auto const token = static_cast<std::uint32_t>(i % count) / static_cast<std::uint32_t>(how.top_k);
    auto const right = right_output(layer, choices[i], token);
    if (outputs[i] == right) { continue; }
    if (facts.num_wrong++ == 0) {
      facts.first_wrong = ballast::detail::concat("layer ", layer, ", token ", token, ", expert ", choices[i], ": ",
                                                  outputs[i], ", must be ", right);
    }
  }
}

constexpr nanoseconds_t second = 1'000'000'000;

/// What the engine's ranks tell each other at the end of a pass anyway: ballast's word rides on it.
class pass_exchange {
public:
  pass_exchange(settings const& how, in_process_endpoint& ranks)
      : ranks_{&ranks}, num_words_{static_cast<std::size_t>(how.initial.num_layers()) + 1}, mine_(num_words_) {
    words_.resize(static_cast<std::size_t>(how.where.num_ranks()));
    all_.resize(words_.size() * num_words_);
  }

  /// Let all ranks know `word` and what this one has computed, and add the outputs up as an engine's all-reduce does,
  /// only on the host.
  ///
  /// @param outputs  [L, T, k] in: this rank's, 0 where it has none. out: those of all ranks together.
  void meet(std::uint64_t word, std::span<std::int64_t> outputs, pass_facts& facts) {
    auto const in_layer = outputs.size() / (num_words_ - 1);
    mine_[0] = word;
    for (std::size_t i = 1; i < num_words_; ++i) {
      auto const computed = outputs.subspan((i - 1) * in_layer, in_layer);
      mine_[i] = in_layer - static_cast<std::uint64_t>(std::count(computed.begin(), computed.end(), 0));
    }
    ranks_->all_gather(mine_, all_, 30 * second).or_throw();
    ranks_->all_reduce(outputs, 30 * second).or_throw();
    for (std::size_t rank = 0; rank < words_.size(); ++rank) {
      auto const theirs = std::span{all_}.subspan(rank * num_words_, num_words_);
      words_[rank] = theirs[0];
      facts.work.insert(facts.work.end(), theirs.begin() + 1, theirs.end());
    }
  }
  /// [R] the ranks' words.
  [[nodiscard]] std::span<std::uint64_t const> words() const noexcept { return words_; }

private:
  in_process_endpoint* ranks_;
  std::size_t num_words_;             // the word, and L counts
  std::vector<std::uint64_t> mine_;   // [num_words]
  std::vector<std::uint64_t> all_;    // [R, num_words]
  std::vector<std::uint64_t> words_;  // [R]
};

/// Where one rank has failed, the words tell all of them so in the same pass. They serve on with the placement in
/// force, and resume before the next pass; where that does not help, the next words say so.
///
/// @param ended  what `on_forward_pass_end` said. @param heard  what `incoming` said.
/// @return why moves have ended early; empty in health
/// @throws std::system_error where this rank must not serve
template <class Balancer>
[[nodiscard]] std::string resume_if_due(Balancer& balancer, status const& ended, status const& heard) {
  if (heard.ok()) {
    ended.or_throw();  // a misuse: what it failed at concerns no other rank
    return {};
  }
  if (balancer.state() == rebalancer_state::cohort_lost) { heard.or_throw(); }
  auto const resumed = balancer.resume();
  return heard.message() + (resumed.ok() ? "" : "; not resumed yet: " + resumed.message());
}

template <class Cohort>
void serve_on(Cohort& cohort, settings const& how, in_process_endpoint& engine, pass_listener const& tell) {
  auto const stream = cohort.compute_stream();
  auto const num_layers = how.initial.num_layers();
  auto const timeout = how.stall_at > 0 ? second : 10 * second;

  expert_weights const weights{how, cohort.rank()};
  store_type store{how.where, how.initial, cohort, {.dispatch = dispatch_mode::even}};
  weights.add_to(store);
  moves_watcher moved;
  cudart::device_recorder recorder{stream, num_layers, how.initial.num_logical(), {.passes = how.interval}};
  auto balancer = make_rebalancer(how.where, how.initial,
                                  rebalancing{std::move(recorder),
                                              incremental_placement{},
                                              layers_per_chunk{1},
                                              {.interval = how.interval, .timeout = timeout},
                                              &moved},
                                  store, cohort);
  balancer.start(30 * second).or_throw();
  forward_pass forward{stream, how, cohort.rank(), balancer.recorder().view(), store.view(), weights};
  pass_exchange exchange{how, engine};

  bool may_stall = cohort.rank() == 1 && how.stall_at > 0;
  for (std::size_t pass = 0; pass < how.choices.size(); ++pass) {
    forward.launch(how.choices[pass]);
    if (may_stall && static_cast<index_t>(pass) >= how.stall_at && balancer.state() == rebalancer_state::moving) {
      std::this_thread::sleep_for(std::chrono::nanoseconds{2 * timeout});
      may_stall = false;
    }

    // The pass may still be running: what is committed here is for the next one.
    pass_facts facts;
    auto const begin = std::chrono::steady_clock::now();
    auto const ended = balancer.on_forward_pass_end();
    facts.call = std::chrono::nanoseconds{std::chrono::steady_clock::now() - begin}.count();

    auto const outputs = forward.await_outputs();
    exchange.meet(balancer.outgoing(), outputs, facts);
    facts.failure = resume_if_due(balancer, ended, balancer.incoming(exchange.words()));

    if (cohort.rank() != 0) { continue; }
    facts.moves = std::exchange(moved.moves, 0);
    facts.bytes = std::exchange(moved.bytes, 0);
    check_outputs(how, how.choices[pass], outputs, facts);
    tell(facts);
  }
}

}  // namespace

void serve(settings const& how, meeting_places& places, index_t rank, pass_listener const& tell) {
  check(cudaSetDevice(rank % how.num_devices), "cudaSetDevice");
  auto const passes = cudart::stream::create();
  auto& engine = places.engine.endpoint(rank);
  auto& balancing = places.balancing.endpoint(rank);
  if (how.over_nccl) {
    nccl::communicator engines_own;  // a real engine has one
    nccl::communicator::create(engine, engines_own).or_throw();
    auto gather = [&](std::span<std::uint64_t const> mine, std::span<std::uint64_t> all, nanoseconds_t timeout) {
      return balancing.all_gather(mine, all, timeout);
    };
    // `create` makes communicators that share nothing with those split off them.
    nccl::transport_options options{.compute_stream = passes.get()};
    options.communicator.parent_shares_nothing = true;
    nccl::cohort cohort{engines_own.get(), gather, options};
    serve_on(cohort, how, engine, tell);
  } else {
    peer_cohort cohort{cudart::peer_copy{places.memory.join(rank)}, &balancing, passes.get()};
    serve_on(cohort, how, engine, tell);
  }
}

}  // namespace gpu_example
