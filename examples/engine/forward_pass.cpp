// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "forward_pass.hpp"

#include <ballast/matrix_view.hpp>

#include "kernels.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace engine {

forward_pass::forward_pass(model const& of, ballast::topology const& where, rank_experts& experts, sequences& kept,
                           token_exchange& ranks)
    : model_{of},
      where_{where},
      experts_{experts},
      kept_{kept},
      ranks_{ranks},
      work_(static_cast<std::size_t>(of.shape().num_layers)) {}

status forward_pass::run(std::span<token const> tokens, route_function const& route) {
  rows_.resize(tokens.size() * static_cast<std::size_t>(model_.shape().hidden));
  kept_.embed(tokens, rows_);
  for (index_t layer = 0; layer < model_.shape().num_layers; ++layer) {
    if (auto result = run_layer(layer, tokens, route); !result.ok()) { return result; }
  }
  kept_.finish(tokens, rows_);
  return {};
}

status forward_pass::run_layer(index_t layer, std::span<token const> tokens, route_function const& route) {
  auto const hidden = static_cast<std::size_t>(model_.shape().hidden);
  kept_.attend(layer, tokens, rows_);
  run_gate(model_, layer, rows_, chosen_);
  physical_.resize(chosen_.ids.size());
  if (auto result = route(layer, chosen_.ids, physical_); !result.ok()) { return result; }
  if (auto result = count_rows(); !result.ok()) { return result; }
  fill_outbox();
  auto const ranks = where_.num_ranks();
  if (auto result = ranks_.send({sent_, ranks, ranks}, hidden, arrived_); !result.ok()) { return result; }
  run_experts(layer);
  std::vector<float> returned(physical_.size() * hidden);
  if (auto result = ranks_.send({returned_, ranks, ranks}, hidden, returned); !result.ok()) { return result; }
  results_.resize(returned.size());
  for (std::size_t i = 0; i < order_.size(); ++i) {
    std::ranges::copy(std::span{returned}.subspan(i * hidden, hidden),
                      results_.begin() + static_cast<std::ptrdiff_t>(order_[i] * hidden));
  }
  combine(chosen_, results_, hidden, rows_);
  return {};
}

status forward_pass::count_rows() {
  auto const ids = static_cast<std::size_t>(where_.num_physical_ids());
  auto const ranks = static_cast<std::size_t>(where_.num_ranks());
  auto const ids_a_rank = ids / ranks;
  mine_.assign(ids, 0);
  for (auto const id : physical_) { ++mine_[static_cast<std::size_t>(id)]; }
  counts_.resize(ranks * ids);
  if (auto result = ranks_.all_gather(mine_, counts_); !result.ok()) { return result; }
  sent_.assign(ranks * ranks, 0);
  returned_.assign(ranks * ranks, 0);
  for (std::size_t from = 0; from < ranks; ++from) {
    if (!where_.is_live(static_cast<index_t>(from))) {
      std::fill_n(counts_.begin() + static_cast<std::ptrdiff_t>(from * ids), ids, 0);
    }
    for (std::size_t id = 0; id < ids; ++id) {
      auto const rows = static_cast<index_t>(counts_[from * ids + id]);
      sent_[from * ranks + id / ids_a_rank] += rows;
      returned_[id / ids_a_rank * ranks + from] += rows;
    }
  }
  auto const me = static_cast<std::size_t>(ranks_.rank());
  auto const arriving = std::accumulate(returned_.begin() + static_cast<std::ptrdiff_t>(me * ranks),
                                        returned_.begin() + static_cast<std::ptrdiff_t>((me + 1) * ranks), 0);
  arrived_.resize(static_cast<std::size_t>(arriving) * static_cast<std::size_t>(model_.shape().hidden));
  return {};
}

void forward_pass::fill_outbox() {
  auto const hidden = static_cast<std::size_t>(model_.shape().hidden);
  auto const choices = static_cast<std::size_t>(model_.shape().top_k) + 1;
  order_.resize(physical_.size());
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  std::ranges::sort(order_, {}, [&](std::size_t place) { return std::pair{physical_[place], place}; });
  auto const outbox = ranks_.outbox();
  for (std::size_t i = 0; i < order_.size(); ++i) {
    std::ranges::copy(std::span{chosen_.rows}.subspan(order_[i] / choices * hidden, hidden),
                      outbox.begin() + static_cast<std::ptrdiff_t>(i * hidden));
  }
}

void forward_pass::run_experts(index_t layer) {
  auto const hidden = static_cast<std::size_t>(model_.shape().hidden);
  auto const slots = static_cast<std::size_t>(where_.slots_per_rank());
  auto const ids_a_rank = slots + static_cast<std::size_t>(where_.reserved_slots());
  auto const ids = static_cast<std::size_t>(where_.num_physical_ids());
  auto const first_id = static_cast<std::size_t>(ranks_.rank()) * ids_a_rank;
  // Where the rows of each source and slot begin.
  std::vector<std::size_t> begins;
  std::size_t begin = 0;
  for (std::size_t from = 0; from < static_cast<std::size_t>(where_.num_ranks()); ++from) {
    for (std::size_t slot = 0; slot < ids_a_rank; ++slot) {
      begins.push_back(begin);
      begin += counts_[from * ids + first_id + slot];
    }
  }
  begins.push_back(begin);
  auto const outbox = ranks_.outbox();
  work_[static_cast<std::size_t>(layer)] = 0;
  std::vector<float> in;
  std::vector<float> out;
  for (std::size_t slot = 0; slot < ids_a_rank; ++slot) {
    auto const for_each_source = [&](auto const& take) {
      for (auto at = slot; at + 1 < begins.size(); at += ids_a_rank) {
        take(begins[at] * hidden, (begins[at + 1] - begins[at]) * hidden);
      }
    };
    in.clear();
    for_each_source([&](std::size_t first, std::size_t count) {
      auto const part = std::span{arrived_}.subspan(first, count);
      in.insert(in.end(), part.begin(), part.end());
    });
    if (slot < slots) { work_[static_cast<std::size_t>(layer)] += in.size() / hidden; }
    out.resize(in.size());
    run_expert(experts_.view(layer, static_cast<index_t>(slot)), hidden, in, out);
    auto done = out.begin();
    for_each_source([&](std::size_t first, std::size_t count) {
      std::copy_n(done, count, outbox.begin() + static_cast<std::ptrdiff_t>(first));
      done += static_cast<std::ptrdiff_t>(count);
    });
  }
}

}  // namespace engine
