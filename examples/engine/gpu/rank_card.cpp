// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "rank_card.hpp"

#include <ballast/digest.hpp>

#include "../kernels.hpp"
#include "check.hpp"

#include <utility>
#include <vector>

namespace engine {

namespace {

enum class part : std::uint64_t { projection = 100, output, gate, sample, even };

[[nodiscard]] std::uint64_t seed_of(part what, std::size_t layer) {
  return ballast::digest{}.add(static_cast<std::uint64_t>(what)).add(static_cast<std::uint64_t>(layer)).value();
}

/// Physical ids of all slots in one order after the other, each drawn anew: rows that are alike many for each slot come
/// in no more order than those of a router.
[[nodiscard]] std::vector<std::int32_t> draw_even_ids(pass_view const& v) {
  std::vector<std::int32_t> slots;
  for (int id = 0; id < v.num_ids; ++id) {
    if (id % v.ids_a_rank < v.ids_a_rank - v.num_reserved) { slots.push_back(id); }
  }
  generator random{seed_of(part::even, static_cast<std::size_t>(v.rank))};
  std::vector<std::int32_t> drawn(static_cast<std::size_t>(v.max_tokens) * static_cast<std::size_t>(v.top_k));
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    auto const at = i % slots.size();
    std::swap(slots[at], slots[at + random.below(slots.size() - at)]);
    drawn[i] = slots[at];
  }
  return drawn;
}

}  // namespace

device_model make_device_model(model_shape const& shape, std::span<routing_skew const> skews) {
  constexpr std::size_t samples = 512;
  auto const layers = static_cast<std::size_t>(shape.num_layers);
  auto const experts = static_cast<std::size_t>(shape.num_experts);
  device_model made{shape, std::vector<float>(layers * skews.size() * experts)};
  std::vector<float> logits(samples * experts);
  for (std::size_t layer = 0; layer < layers; ++layer) {
    fill_normally(seed_of(part::sample, layer), logits);
    for (std::size_t kind = 0; kind < skews.size(); ++kind) {
      fit_bias(std::span{skews[kind]}.subspan(layer * experts, experts), logits, shape.top_k,
               std::span{made.bias}.subspan((layer * skews.size() + kind) * experts, experts));
    }
  }
  return made;
}

rank_card::rank_card(device_model const& of, card_share share, ballast::topology const& where, index_t rank,
                     index_t max_tokens, ballast::nanoseconds_t timeout)
    : model_{of},
      share_{std::move(share)},
      projecting_{{max_tokens, 3 * attention_width, of.shape.hidden, false, false}, share_.multiprocessors()},
      returning_{{max_tokens, of.shape.hidden, attention_width, true, true}, share_.multiprocessors()},
      gating_{{max_tokens, of.shape.num_experts, of.shape.hidden, false, true}, share_.multiprocessors()} {
  check(cudaSetDevice(share_.device()), "cudaSetDevice");
  view_.rank = rank;
  view_.num_ranks = where.num_ranks();
  view_.num_ids = where.num_physical_ids();
  view_.ids_a_rank = where.slots_per_rank() + where.reserved_slots();
  view_.num_reserved = where.reserved_slots();
  view_.hidden = of.shape.hidden;
  view_.intermediate = of.shape.intermediate;
  view_.num_experts = of.shape.num_experts;
  view_.top_k = of.shape.top_k;
  view_.max_tokens = max_tokens;
  view_.capacity = static_cast<std::uint32_t>(where.num_ranks()) * static_cast<std::uint32_t>(max_tokens) *
                   static_cast<std::uint32_t>(of.shape.top_k + 1);
  view_.timeout_ns = static_cast<std::uint64_t>(timeout);
  allocate(static_cast<std::size_t>(where.num_ranks()));
  fill();
}

template <class T>
T* rank_card::room_for(std::size_t count) {
  blocks_.push_back(ballast::cudart::device_memory<std::byte>::create(count * sizeof(T)));
  return reinterpret_cast<T*>(blocks_.back().data());
}

void rank_card::allocate(std::size_t ranks) {
  auto const tokens = static_cast<std::size_t>(view_.max_tokens);
  auto const hidden = static_cast<std::size_t>(view_.hidden);
  auto const choices = tokens * (static_cast<std::size_t>(view_.top_k) + 1);
  auto const ids = static_cast<std::size_t>(view_.num_ids);
  auto const layers = static_cast<std::size_t>(model_.shape.num_layers);
  auto const experts = static_cast<std::size_t>(view_.num_experts);
  std::size_t const capacity = view_.capacity;

  mailbox parts;
  mailbox_.size = lay_out(nullptr, parts);
  mailbox_.data = room_for<std::byte>(mailbox_.size);

  view_.peers = room_for<mailbox>(ranks);
  view_.live = room_for<std::uint32_t>(ranks);
  view_.num_tokens = room_for<std::int32_t>(1);
  view_.tokens = room_for<token_entry>(tokens);
  view_.rows = room_for<float>(tokens * hidden);
  view_.normalised = room_for<bf16>(tokens * hidden);
  view_.projected = room_for<bf16>(tokens * 3 * attention_width);
  view_.attended = room_for<bf16>(tokens * attention_width);
  view_.logits = room_for<float>(tokens * experts);
  view_.logical = room_for<std::int32_t>(choices);
  view_.physical = room_for<std::int32_t>(choices);
  view_.weights = room_for<float>(choices);
  view_.places = room_for<std::uint32_t>(choices);
  view_.inner = room_for<bf16>(capacity * static_cast<std::size_t>(view_.intermediate));
  view_.outputs = room_for<std::uint64_t>(tokens);
  view_.epoch = room_for<std::uint32_t>(1);
  view_.counts = room_for<std::uint32_t>(ids);
  view_.cursors = room_for<std::uint32_t>(ids);
  view_.blocks_done = room_for<std::uint32_t>(3);
  view_.tiles_taken = room_for<std::uint32_t>(2);
  view_.begins = room_for<std::uint32_t>(static_cast<std::size_t>(view_.ids_a_rank) + 1);
  view_.work = room_for<std::uint64_t>(layers);
  view_.even = room_for<std::int32_t>(tokens * static_cast<std::size_t>(view_.top_k));
  view_.failed = room_for<std::uint32_t>(1);

  projection_ = room_for<bf16>(layers * 3 * attention_width * hidden);
  output_ = room_for<bf16>(layers * hidden * attention_width);
  gate_ = room_for<bf16>(layers * experts * hidden);
  bias_ = room_for<float>(model_.bias.size());
}

std::size_t rank_card::lay_out(std::byte* begin, mailbox& out) const {
  constexpr std::size_t alignment = 256;
  std::size_t used = 0;
  auto const place = [&]<class T>(T*& part, std::size_t count) {
    part = reinterpret_cast<T*>(begin + used);
    used += (count * sizeof(T) + alignment - 1) / alignment * alignment;
  };
  auto const ranks = static_cast<std::size_t>(view_.num_ranks);
  auto const numbers = static_cast<std::size_t>(view_.capacity) * static_cast<std::size_t>(view_.hidden);
  place(out.counts, ranks * static_cast<std::size_t>(view_.num_ids));
  place(out.has_counted, ranks);
  place(out.has_sent, ranks);
  place(out.has_computed, ranks);
  place(out.arrived, numbers);
  place(out.results, numbers);
  return used;
}

template <class T>
void rank_card::write(std::vector<T> const& from, T* to) const {
  check(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice, stream()), "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
}
void rank_card::clear(std::uint32_t* words, std::size_t count) const {
  check(cudaMemsetAsync(words, 0, count * sizeof(std::uint32_t), stream()), "cudaMemsetAsync");
  check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
}

void rank_card::fill() {
  auto const hidden = static_cast<std::size_t>(view_.hidden);
  auto const experts = static_cast<std::size_t>(view_.num_experts);
  for (std::size_t layer = 0; layer < static_cast<std::size_t>(model_.shape.num_layers); ++layer) {
    auto const projected = 3 * attention_width * hidden;
    auto const returned = hidden * attention_width;
    fill_weights(stream(), seed_of(part::projection, layer), view_.hidden, 1, projection_ + layer * projected,
                 projected);
    fill_weights(stream(), seed_of(part::output, layer), attention_width, 0.5F, output_ + layer * returned, returned);
    fill_weights(stream(), seed_of(part::gate, layer), view_.hidden, 1, gate_ + layer * experts * hidden,
                 experts * hidden);
  }
  write(model_.bias, bias_);
  write(draw_even_ids(view_), view_.even);
  prepare_kernels();
  // Products are loaded by their first launch; later the other ranks would wait for it.
  auto const tokens = view_.max_tokens;
  projecting_.enqueue(stream(), tokens, view_.normalised, projection_, view_.projected);
  returning_.enqueue(stream(), tokens, view_.attended, output_, view_.rows);
  gating_.enqueue(stream(), tokens, view_.normalised, gate_, view_.logits);
}

void rank_card::connect(std::span<ballast::segment const> all) {
  std::vector<mailbox> peers(all.size());
  for (std::size_t rank = 0; rank < all.size(); ++rank) { static_cast<void>(lay_out(all[rank].data, peers[rank])); }
  write(peers, view_.peers);
  write(std::vector<std::uint32_t>(all.size(), 1), view_.live);
}

void rank_card::go_on_without(index_t dead) {
  mailbox own;
  static_cast<void>(lay_out(mailbox_.data, own));
  auto const ids = static_cast<std::size_t>(view_.num_ids);
  auto const ranks = static_cast<std::size_t>(view_.num_ranks);
  write(std::vector<std::uint32_t>{0}, view_.live + dead);
  clear(own.counts, ranks * ids);
  for (auto* const words : {own.has_counted, own.has_sent, own.has_computed}) { clear(words, ranks); }
  for (auto* const words : {view_.counts, view_.cursors}) { clear(words, ids); }
  clear(view_.blocks_done, 3);
  clear(view_.tiles_taken, 2);
  clear(view_.epoch, 1);
  clear(view_.failed, 1);
}

void rank_card::enqueue_attention(pass_stream const& on, index_t layer, bf16* cache, int longest) const {
  auto const at = static_cast<std::size_t>(layer);
  auto const hidden = static_cast<std::size_t>(view_.hidden);
  enqueue_normalise(on, view_);
  projecting_.enqueue(on.stream, on.padded_tokens, view_.normalised, projection_ + at * 3 * attention_width * hidden,
                      view_.projected);
  enqueue_attend(on, view_, cache, longest);
  returning_.enqueue(on.stream, on.padded_tokens, view_.attended, output_ + at * hidden * attention_width, view_.rows);
}

void rank_card::enqueue_gate(pass_stream const& on, pass_view const& v, index_t layer) const {
  auto const at = static_cast<std::size_t>(layer);
  auto const experts = static_cast<std::size_t>(view_.num_experts);
  enqueue_normalise(on, v);
  gating_.enqueue(on.stream, on.padded_tokens, v.normalised,
                  gate_ + at * experts * static_cast<std::size_t>(view_.hidden), v.logits);
  auto of_layer = v;
  if (of_layer.chosen != nullptr) { of_layer.chosen += at * experts; }
  enqueue_choose(on, of_layer, bias_ + at * static_cast<std::size_t>(model_.shape.num_kinds) * experts);
}

}  // namespace engine
