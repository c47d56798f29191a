// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SCHEDULE_SCHEDULES_HPP
#define BALLAST_SCHEDULE_SCHEDULES_HPP

#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/detail/wide_int.hpp>
#include <ballast/fwd.hpp>
#include <ballast/schedule/chunk_schedule.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Filter: only layers whose map or shares differ take part. The default.
struct changed_layers {
  static constexpr std::string_view name = "changed_layers";
  [[nodiscard]] constexpr bool operator()(layer_work const& work) const noexcept { return work.changed; }
};

/// Filter: every layer takes part, changed or not, so that the number of chunks does not depend on the plan.
/// @source SGLang: all layers with routed experts are cut into chunks
struct every_layer {
  static constexpr std::string_view name = "every_layer";
  [[nodiscard]] constexpr bool operator()(layer_work const& /*work*/) const noexcept { return true; }
};

/// Order: ascending layer ids. The default.
struct in_layer_order {
  static constexpr std::string_view name = "in_layer_order";
  [[nodiscard]] std::span<layer_work const> operator()(std::span<layer_work const> work,
                                                       std::vector<layer_work>& /*storage*/) const noexcept {
    return work;
  }
};

/// Order: the layer that loses most imbalance per byte first; layers that move no bytes come before all others.
/// @determinism ties go to the lowest layer id.
struct by_gain {
  static constexpr std::string_view name = "by_gain";
  [[nodiscard]] std::span<layer_work const> operator()(std::span<layer_work const> work,
                                                       std::vector<layer_work>& storage) const {
    storage.assign(work.begin(), work.end());
    std::sort(storage.begin(), storage.end(), [](layer_work const& a, layer_work const& b) {
      if (comes_before(a, b)) { return true; }
      return !comes_before(b, a) && a.layer < b.layer;
    });
    return storage;
  }

private:
  [[nodiscard]] static bool comes_before(layer_work const& a, layer_work const& b) {
    if (a.bytes == 0 || b.bytes == 0) { return a.bytes == 0 && (b.bytes != 0 || a.gain > b.gain); }
    // a.gain / a.bytes > b.gain / b.bytes without a division
    return detail::wide_product(a.gain, b.bytes) > detail::wide_product(b.gain, a.bytes);
  }
};

namespace detail {

/// What all schedules share: which layers take part, in which order, and handing them out in chunks.
template <class Filter, class Order>
struct schedule_base {
  [[no_unique_address]] Filter layer_filter;
  [[no_unique_address]] Order layer_order;

  /// Hand the layers that take part to `sink` in chunks: `ends(layer)`, asked before each layer but a chunk's first,
  /// says whether the chunk ends before it.
  template <class Ends, class Sink>
  void sink_chunks(std::span<layer_work const> work, Ends ends, Sink&& sink) const {
    std::vector<layer_work> storage;
    std::vector<index_t> chunk;
    for (auto const& layer : layer_order(work, storage)) {
      if (!layer_filter(layer)) { continue; }
      if (ends(layer, chunk.size()) && !chunk.empty()) {
        sink(std::span<index_t const>{chunk});
        chunk.clear();
      }
      chunk.push_back(layer.layer);
    }
    if (!chunk.empty()) { sink(std::span<index_t const>{chunk}); }
  }
  void describe_parts(digest& out) const { out.add(Filter::name).add(Order::name); }
};

/// Fills chunks greedily with layers whose summed cost stays within a limit; a layer above it is a chunk of its own.
template <class Cost>
class cost_limit {
public:
  cost_limit(std::int64_t limit, Cost cost) : limit_{limit}, cost_{cost} {}
  /// Whether the chunk of `size` layers ends before this one, which is counted either way.
  [[nodiscard]] bool operator()(layer_work const& layer, std::size_t size) {
    auto const price = cost_(layer);
    bool const ends = size > 0 && price > limit_ - spent_;
    spent_ = ends || size == 0 ? price : spent_ + price;
    return ends;
  }

private:
  std::int64_t limit_;
  std::int64_t spent_ = 0;
  Cost cost_;
};

}  // namespace detail

/// Schedule: all layers in one step.
template <class Filter, class Order>  // their defaults stand in fwd.hpp
struct all_layers : detail::schedule_base<Filter, Order> {
  constexpr explicit all_layers(Filter filter = {}, Order order = {})
      : detail::schedule_base<Filter, Order>{filter, order} {}

  [[nodiscard]] status validate() const { return {}; }
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink&& sink) const {
    this->sink_chunks(work, [](layer_work const&, std::size_t) { return false; }, sink);
  }
  void describe(digest& out) const {
    out.add(std::string_view{"all_layers"});
    this->describe_parts(out);
  }
};

/// Schedule: K layers a step; the last chunk may be short, K above the number of layers is one chunk.
/// @source SGLang `eplb_rebalance_layers_per_chunk`
template <class Filter, class Order>  // their defaults stand in fwd.hpp
struct layers_per_chunk : detail::schedule_base<Filter, Order> {
  index_t layers = 1;

  constexpr layers_per_chunk() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): K layers may be written {K}
  constexpr layers_per_chunk(index_t k, Filter filter = {}, Order order = {})
      : detail::schedule_base<Filter, Order>{filter, order}, layers{k} {}

  [[nodiscard]] status validate() const {
    if (layers < 1) {
      return {errc::invalid_option, detail::concat("layers_per_chunk is ", layers, ", must be at least 1")};
    }
    return {};
  }
  /// @pre `validate()` succeeds
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink&& sink) const {
    auto const is_full = [this](layer_work const&, std::size_t size) {
      return size >= static_cast<std::size_t>(layers);
    };
    this->sink_chunks(work, is_full, sink);
  }
  template <class Visit>
  void for_each_option(Visit visit) const {
    visit("layers a chunk", detail::option_bits(layers));
  }
  void describe(digest& out) const {
    detail::describe_options(*this, out.add(std::string_view{"layers_per_chunk"}));
    this->describe_parts(out);
  }
};

/// Schedule: as many layers a step as stay within a number of bytes over all ranks. A layer above it arrives over
/// several steps, in whole experts, and is committed with the last.
template <class Filter, class Order>  // their defaults stand in fwd.hpp
struct bytes_per_step : detail::schedule_base<Filter, Order> {
  std::int64_t bytes = 1;

  constexpr explicit bytes_per_step(std::int64_t limit, Filter filter = {}, Order order = {})
      : detail::schedule_base<Filter, Order>{filter, order}, bytes{limit} {}

  [[nodiscard]] status validate() const {
    if (bytes < 1) {
      return {errc::invalid_option, detail::concat("bytes_per_step is ", bytes, ", must be at least 1")};
    }
    return {};
  }
  [[nodiscard]] std::int64_t step_bytes() const noexcept { return bytes; }
  /// What a layer takes of a step's bytes.
  [[nodiscard]] auto cost() const noexcept {
    return [](layer_work const& layer) { return layer.bytes; };
  }
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink&& sink) const {
    this->sink_chunks(work, detail::cost_limit{bytes, cost()}, sink);
  }
  template <class Visit>
  void for_each_option(Visit visit) const {
    visit("bytes a step", detail::option_bits(bytes));
  }
  void describe(digest& out) const {
    detail::describe_options(*this, out.add(std::string_view{"bytes_per_step"}));
    this->describe_parts(out);
  }
};

/// What one step's moves cost in time: configuration, the same on every rank.
struct link_model {
  std::int64_t bytes_per_microsecond = 20'000;  ///< of the busiest (rank, direction); 20 GB/s, a network of 200 Gbit/s
  std::int64_t layer_overhead_us = 50;  ///< agreement, launches and table publication of a layer; at most an hour

  static constexpr std::int64_t most_overhead_us = 3'600'000'000;

  /// Between GPUs of one host over NVLink 4, by copy engines: what two and four H200 kept up beside an engine's own
  /// all-to-all. Where every move stays inside a host.
  [[nodiscard]] static constexpr link_model nvlink() noexcept { return {250'000, 50}; }
};

/// Schedule: as many layers a step as the link model expects to move within a time.
template <class Filter, class Order>  // their defaults stand in fwd.hpp
struct time_per_step : detail::schedule_base<Filter, Order> {
  std::int64_t microseconds = 1;
  link_model link;

  constexpr explicit time_per_step(std::int64_t limit_us, link_model model = {}, Filter filter = {}, Order order = {})
      : detail::schedule_base<Filter, Order>{filter, order}, microseconds{limit_us}, link{model} {}

  [[nodiscard]] status validate() const {
    if (microseconds < 1) {
      return {errc::invalid_option, detail::concat("time_per_step is ", microseconds, " us, must be at least 1")};
    }
    if (link.layer_overhead_us > link_model::most_overhead_us) {
      return {errc::invalid_option, detail::concat("time_per_step: a layer's overhead is ", link.layer_overhead_us,
                                                   " us, must be in [0, ", link_model::most_overhead_us, "]")};
    }
    if (link.bytes_per_microsecond < 1 || link.layer_overhead_us < 0) {
      return {errc::invalid_option, detail::concat("time_per_step: a link of ", link.bytes_per_microsecond,
                                                   " bytes per us and ", link.layer_overhead_us, " us a layer")};
    }
    return {};
  }
  /// What a layer takes of a step's microseconds.
  [[nodiscard]] auto cost() const noexcept {
    return [model = link](layer_work const& layer) {
      return layer.busiest_rank_bytes / model.bytes_per_microsecond + model.layer_overhead_us;
    };
  }
  /// @pre `validate()` succeeds
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink&& sink) const {
    this->sink_chunks(work, detail::cost_limit{microseconds, cost()}, sink);
  }
  template <class Visit>
  void for_each_option(Visit visit) const {
    visit("microseconds a step", detail::option_bits(microseconds));
    visit("link: bytes a microsecond", detail::option_bits(link.bytes_per_microsecond));
    visit("link: microseconds a layer", detail::option_bits(link.layer_overhead_us));
  }
  void describe(digest& out) const {
    detail::describe_options(*this, out.add(std::string_view{"time_per_step"}));
    this->describe_parts(out);
  }
};

static_assert(chunk_schedule<all_layers<>>);
static_assert(chunk_schedule<layers_per_chunk<every_layer, by_gain>>);
static_assert(limits_step_bytes<bytes_per_step<>>);
static_assert(chunk_schedule<time_per_step<>>);

BALLAST_END_NAMESPACE

#endif
