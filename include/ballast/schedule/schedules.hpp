// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SCHEDULE_SCHEDULES_HPP
#define BALLAST_SCHEDULE_SCHEDULES_HPP

#if defined(__CUDACC__) && defined(__NVCC__)
  #error "ballast/schedule/schedules.hpp uses range-v3, which nvcc cannot compile: include it from a .cpp file"
#endif

#include <ballast/contract.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/schedule/chunk_schedule.hpp>

#include <range/v3/range/conversion.hpp>
#include <range/v3/view/chunk.hpp>
#include <range/v3/view/filter.hpp>
#include <range/v3/view/transform.hpp>

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
  __extension__ using wide = __int128;

  [[nodiscard]] static bool comes_before(layer_work const& a, layer_work const& b) {
    if (a.bytes == 0 || b.bytes == 0) { return a.bytes == 0 && (b.bytes != 0 || a.gain > b.gain); }
    // a.gain / a.bytes > b.gain / b.bytes without a division
    return static_cast<wide>(a.gain) * b.bytes > static_cast<wide>(b.gain) * a.bytes;
  }
};

namespace detail {

/// What all schedules share: filter, order, and handing chunks out as spans of layer ids.
template <class Filter, class Order>
struct schedule_base {
  [[no_unique_address]] Filter layer_filter;
  [[no_unique_address]] Order layer_order;

  /// The layers that take part, in order: a lazy range over `work` (or over `storage`, when the order sorts).
  [[nodiscard]] auto selected(std::span<layer_work const> work, std::vector<layer_work>& storage) const {
    return layer_order(work, storage) | ranges::views::filter(layer_filter);
  }
  void describe_parts(digest& out) const { out.add(Filter::name).add(Order::name); }
};

/// Hand each inner range of layers to `sink` as a span.
template <class Chunks, class Sink>
void sink_chunks(Chunks&& chunks, Sink&& sink) {
  std::vector<index_t> layers;
  for (auto&& chunk : chunks) {
    layers.clear();
    for (auto const& work : chunk) { layers.push_back(work.layer); }
    sink(std::span<index_t const>{layers});
  }
}

/// Cut layers greedily into chunks whose summed cost stays within a limit; a layer above it is a chunk of its own.
template <class Layers, class Cost, class Sink>
void sink_by_cost(Layers&& selected, std::int64_t limit, Cost cost, Sink&& sink) {
  std::vector<index_t> layers;
  std::int64_t spent = 0;
  for (auto const& work : selected) {
    auto const price = cost(work);
    if (!layers.empty() && spent + price > limit) {
      sink(std::span<index_t const>{layers});
      layers.clear();
      spent = 0;
    }
    layers.push_back(work.layer);
    spent += price;
  }
  if (!layers.empty()) { sink(std::span<index_t const>{layers}); }
}

}  // namespace detail

/// Schedule: all layers in one step.
template <class Filter = changed_layers, class Order = in_layer_order>
struct all_layers : detail::schedule_base<Filter, Order> {
  constexpr explicit all_layers(Filter filter = {}, Order order = {})
      : detail::schedule_base<Filter, Order>{filter, order} {}

  [[nodiscard]] status validate() const { return {}; }
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink&& sink) const {
    std::vector<layer_work> storage;
    auto const layers = this->selected(work, storage) | ranges::views::transform(&layer_work::layer) |
                        ranges::to<std::vector<index_t>>();
    if (!layers.empty()) { sink(std::span<index_t const>{layers}); }
  }
  void describe(digest& out) const {
    out.add(std::string_view{"all_layers"});
    this->describe_parts(out);
  }
};

/// Schedule: K layers a step; the last chunk may be short, K above the number of layers is one chunk.
/// @source SGLang `eplb_rebalance_layers_per_chunk`
template <class Filter = changed_layers, class Order = in_layer_order>
struct layers_per_chunk : detail::schedule_base<Filter, Order> {
  index_t layers = 1;

  constexpr explicit layers_per_chunk(index_t k, Filter filter = {}, Order order = {})
      : detail::schedule_base<Filter, Order>{filter, order}, layers{k} {}

  [[nodiscard]] status validate() const {
    if (layers < 1) {
      return {errc::invalid_option, detail::concat("layers_per_chunk is ", layers, ", must be at least 1")};
    }
    return {};
  }
  /// The chunks as a lazy range of ranges of `layer_work`. @pre `validate()` succeeds
  [[nodiscard]] auto chunks(std::span<layer_work const> work, std::vector<layer_work>& storage) const {
    BALLAST_EXPECTS(layers > 0, "layers_per_chunk: chunk size must be positive");
    return this->selected(work, storage) | ranges::views::chunk(layers);
  }
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink&& sink) const {
    std::vector<layer_work> storage;
    detail::sink_chunks(chunks(work, storage), sink);
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
template <class Filter = changed_layers, class Order = in_layer_order>
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
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink&& sink) const {
    std::vector<layer_work> storage;
    detail::sink_by_cost(
        this->selected(work, storage), bytes, [](layer_work const& layer) { return layer.bytes; }, sink);
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
  std::int64_t bytes_per_microsecond = 20'000;  ///< of the busiest (rank, direction); 20 GB/s
  std::int64_t layer_overhead_us = 50;          ///< agreement, launches and table publication of a layer
};

/// Schedule: as many layers a step as the link model expects to move within a time.
template <class Filter = changed_layers, class Order = in_layer_order>
struct time_per_step : detail::schedule_base<Filter, Order> {
  std::int64_t microseconds = 1;
  link_model link;

  constexpr explicit time_per_step(std::int64_t limit_us, link_model model = {}, Filter filter = {}, Order order = {})
      : detail::schedule_base<Filter, Order>{filter, order}, microseconds{limit_us}, link{model} {}

  [[nodiscard]] status validate() const {
    if (microseconds < 1) {
      return {errc::invalid_option, detail::concat("time_per_step is ", microseconds, " us, must be at least 1")};
    }
    if (link.bytes_per_microsecond < 1 || link.layer_overhead_us < 0) {
      return {errc::invalid_option, detail::concat("time_per_step: a link of ", link.bytes_per_microsecond,
                                                   " bytes per us and ", link.layer_overhead_us, " us a layer")};
    }
    return {};
  }
  template <class Sink>
  void for_each_chunk(std::span<layer_work const> work, Sink&& sink) const {
    std::vector<layer_work> storage;
    auto const cost = [this](layer_work const& layer) {
      return layer.busiest_rank_bytes / link.bytes_per_microsecond + link.layer_overhead_us;
    };
    detail::sink_by_cost(this->selected(work, storage), microseconds, cost, sink);
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
