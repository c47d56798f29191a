// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "device_pass.hpp"

#include <ballast/cudart/error.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>

#include "check.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

namespace engine {

namespace {

using ballast::errc;
using ballast::status;

constexpr std::size_t head_bytes = 16;

/// Rows that are free, first fit.
class row_ledger {
public:
  [[nodiscard]] std::int32_t take(std::int32_t count) {
    for (auto& [first, length] : free_) {
      if (length < count) { continue; }
      auto const taken = first;
      auto const rest = length - count;
      free_.erase(taken);
      if (rest > 0) { free_[taken + count] = rest; }
      return taken;
    }
    auto const taken = end_;
    end_ += count;
    return taken;
  }
  void give_back(std::int32_t first, std::int32_t count) {
    auto const next = free_.find(first + count);
    if (next != free_.end()) {
      count += next->second;
      free_.erase(next);
    }
    auto const behind = free_.lower_bound(first);
    if (behind != free_.begin()) {
      auto const before = std::prev(behind);
      if (before->first + before->second == first) {
        before->second += count;
        return;
      }
    }
    free_[first] = count;
  }
  [[nodiscard]] std::int32_t end() const noexcept { return end_; }

private:
  std::map<std::int32_t, std::int32_t> free_;
  std::int32_t end_ = 0;
};

}  // namespace

cache_plan plan_caches(std::span<request const> requests, schedule_options const& how, index_t rank) {
  cache_plan plan;
  plan.first_row.assign(requests.size(), -1);
  row_ledger rows;
  scheduler passes{requests, how};
  while (!passes.is_done()) {
    auto const pass = passes.next();
    auto const& tokens = pass.tokens[static_cast<std::size_t>(rank)];
    for (auto const& at : tokens) {
      auto const number = static_cast<std::size_t>(at.request);
      if (plan.first_row[number] >= 0) { continue; }
      plan.first_row[number] = rows.take(requests[number].num_positions());
      plan.longest = std::max(plan.longest, requests[number].num_positions());
    }
    for (auto const& at : tokens) {
      auto const number = static_cast<std::size_t>(at.request);
      auto const positions = requests[number].num_positions();
      if (at.position + 1 == positions) { rows.give_back(plan.first_row[number], positions); }
    }
  }
  plan.num_rows = std::max(rows.end(), 1);
  return plan;
}

cache_plan plan_all_caches(std::span<request const> requests) {
  cache_plan plan;
  for (auto const& one : requests) {
    plan.first_row.push_back(plan.num_rows);
    plan.num_rows += one.num_positions();
    plan.longest = std::max(plan.longest, one.num_positions());
  }
  return plan;
}

device_pass::device_pass(rank_card& card, std::span<request const> requests, cache_plan plan, device_experts& experts,
                         route_function const& route, std::span<int const> sizes, bool has_gate, bool keeps_routing)
    : card_{card},
      requests_{requests},
      plan_{std::move(plan)},
      view_{card.view()},
      outputs_{requests},
      work_(static_cast<std::size_t>(card.model().shape.num_layers)) {
  auto const layers = work_.size();
  auto const tokens = static_cast<std::size_t>(view_.max_tokens);
  auto const cells = keeps_routing ? layers * static_cast<std::size_t>(view_.num_experts) : 0;
  caches_ = ballast::cudart::device_memory<bf16>::create(layers * static_cast<std::size_t>(plan_.num_rows) * 2 *
                                                         attention_width);
  if (keeps_routing) {
    chosen_ = ballast::cudart::device_memory<unsigned long long>::create(cells);
    view_.chosen = chosen_.data();
    routing_.resize(cells);
  }
  entries_.allocate(head_bytes + tokens * sizeof(token_entry)).or_throw();
  results_.allocate((1 + layers + tokens + cells) * sizeof(std::uint64_t)).or_throw();
  auto* const results = reinterpret_cast<std::uint64_t*>(results_.bytes().data());
  letters_ = {reinterpret_cast<std::int32_t const*>(entries_.bytes().data()),
              reinterpret_cast<token_entry const*>(entries_.bytes().data() + head_bytes),
              reinterpret_cast<std::uint32_t*>(results),
              results + 1,
              results + 1 + layers,
              results + 1 + layers + tokens};
  for (auto const size : sizes) {
    capture(experts, route, size, true);
    if (has_gate) { capture(experts, route, size, false); }
  }
}

device_pass::~device_pass() {
  for (auto const& one : graphs_) { static_cast<void>(cudaGraphExecDestroy(one.graph)); }
}

void device_pass::capture(device_experts& experts, route_function const& route, int size, bool balances) {
  auto const on = card_.on(size);
  check(cudaStreamBeginCapture(on.stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  auto const layers = card_.model().shape.num_layers;
  enqueue_fetch(on, view_, letters_, layers);
  enqueue_embed(on, view_);
  for (index_t layer = 0; layer < layers; ++layer) {
    card_.enqueue_attention(on, layer, cache(layer), plan_.longest);
    card_.enqueue_gate(on, view_, layer);
    auto const* const physical = route(layer, on, balances);
    enqueue_exchange(on, view_, physical, layer);
    enqueue_experts(on, view_, experts.gate_up(layer), experts.down(layer));
    enqueue_combine(on, view_, physical);
  }
  enqueue_outputs(on, view_);
  enqueue_answer(on, view_, letters_, layers);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(on.stream, &graph), "cudaStreamEndCapture");
  cudaGraphExec_t made = nullptr;
  auto const result = cudaGraphInstantiate(&made, graph, 0);
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  check(result, "cudaGraphInstantiate");
  graphs_.push_back({size, balances, made});
  check(cudaGraphUpload(made, on.stream), "cudaGraphUpload");
}

token_entry device_pass::entry_of(token const& at) const {
  auto const number = static_cast<std::size_t>(at.request);
  return {outputs_.drawn(at), requests_[number].kind, plan_.first_row[number], at.position};
}

status device_pass::launch(std::span<token const> tokens, bool balances) {
  running_.assign(tokens.begin(), tokens.end());
  auto const count = static_cast<std::int32_t>(tokens.size());
  auto const bytes = entries_.bytes();
  std::memcpy(bytes.data(), &count, sizeof count);
  std::ranges::transform(tokens, reinterpret_cast<token_entry*>(bytes.data() + head_bytes),
                         [this](token const& at) { return entry_of(at); });
  auto const graph =
      std::ranges::find_if(graphs_, [&](auto const& one) { return count <= one.size && one.balances == balances; });
  return ballast::cudart::to_status(cudaGraphLaunch(graph->graph, card_.stream()), "cudaGraphLaunch");
}

status device_pass::finish(ballast::nanoseconds_t timeout) {
  cudaError_t state = cudaErrorNotReady;
  auto const has_ended = [&] { return (state = cudaStreamQuery(card_.stream())) != cudaErrorNotReady; };
  // A kernel that waits for another rank ends by the same time, and tells whom it waits for.
  if (!ballast::detail::poll_until(ballast::detail::deadline_after(2 * timeout), has_ended)) {
    return {errc::deadline_exceeded, ballast::detail::concat("the pass of rank ", view_.rank, " does not end")};
  }
  if (auto result = ballast::cudart::to_status(state, "the pass"); !result.ok()) { return result; }
  if (auto result = read_failure(); !result.ok()) { return result; }
  std::copy_n(letters_.work, work_.size(), work_.begin());
  for (std::size_t i = 0; i < running_.size(); ++i) { outputs_.keep(running_[i], letters_.outputs[i]); }
  std::copy_n(letters_.chosen, routing_.size(), routing_.begin());
  return {};
}

status device_pass::read_failure() const {
  auto const word = *letters_.failed;
  auto const about = static_cast<index_t>(word & 0xffff);
  switch (static_cast<trouble>(word >> 16)) {
    case trouble::none: return {};
    case trouble::late:
      return {errc::peer_lost, ballast::detail::concat("rank ", about, " did not send its rows in time"), about};
    case trouble::missing:
      return {errc::missing_expert, ballast::detail::concat("expert ", about, " has no physical expert")};
  }
  return {errc::internal, ballast::detail::concat("a kernel tells ", word)};
}

}  // namespace engine
