// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SCHEDULE_VIEWS_HPP
#define BALLAST_SCHEDULE_VIEWS_HPP

#if defined(__CUDACC__) && defined(__NVCC__)
  #error "ballast/schedule/views.hpp uses range-v3, which nvcc cannot compile: include it from a .cpp file"
#endif

#include <ballast/contract.hpp>
#include <ballast/schedule/schedules.hpp>

#include <range/v3/iterator/operations.hpp>
#include <range/v3/range/access.hpp>
#include <range/v3/range/conversion.hpp>
#include <range/v3/view/all.hpp>
#include <range/v3/view/chunk.hpp>
#include <range/v3/view/facade.hpp>
#include <range/v3/view/filter.hpp>
#include <range/v3/view/single.hpp>
#include <range/v3/view/subrange.hpp>
#include <range/v3/view/transform.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

// A schedule's chunks as lazy ranges, for engines that drive the moves themselves. A rebalancer does not need them.

BALLAST_BEGIN_NAMESPACE
namespace views {

/// The layers that take part in a schedule, in its order: a lazy range of `layer_work`.
///
/// @param work     ascending layers.
/// @param storage  out: what an order that sorts keeps its result in. Both outlive the range.
/// @complexity lazy, but for the order: `by_gain` sorts at once.
template <class Filter, class Order>
[[nodiscard]] auto selected(detail::schedule_base<Filter, Order> const& schedule, std::span<layer_work const> work,
                            std::vector<layer_work>& storage) {
  return schedule.layer_order(work, storage) | ranges::views::filter(schedule.layer_filter);
}

namespace detail {

/// Cuts a range of layers greedily, as `cost_limit` does; each chunk is found when it is asked for.
template <class Layers, class Cost>
class cost_chunks : public ranges::view_facade<cost_chunks<Layers, Cost>> {
  friend ranges::range_access;
  using iterator = ranges::iterator_t<Layers>;
  using sentinel = ranges::sentinel_t<Layers>;

  struct cursor {
    iterator first{};
    iterator last{};
    sentinel end{};
    std::int64_t limit = 0;
    Cost const* cost = nullptr;

    [[nodiscard]] auto read() const { return ranges::subrange<iterator>{first, last}; }
    [[nodiscard]] bool equal(cursor const& other) const { return first == other.first; }
    [[nodiscard]] bool equal(ranges::default_sentinel_t /*end*/) const { return first == end; }
    void next() {
      first = last;
      find_end();
    }
    void find_end() {
      ballast::detail::cost_limit ends{limit, *cost};
      for (std::size_t size = 0; last != end && !ends(*last, size); ++size) { ++last; }
    }
  };

  [[nodiscard]] cursor begin_cursor() {
    cursor result{ranges::begin(layers_), ranges::begin(layers_), ranges::end(layers_), limit_, &cost_};
    result.find_end();
    return result;
  }

public:
  cost_chunks() = default;
  cost_chunks(Layers layers, std::int64_t limit, Cost cost)
      : layers_{std::move(layers)}, limit_{limit}, cost_{std::move(cost)} {}

private:
  Layers layers_;
  std::int64_t limit_ = 0;
  Cost cost_;
};

}  // namespace detail

/// A schedule's chunks as a lazy range of ranges of `layer_work`: the same as its `for_each_chunk` hands out.
///
/// @param schedule  one whose `validate()` succeeds.
/// The rest is as for `selected`.
template <class Filter, class Order>
[[nodiscard]] auto chunks(layers_per_chunk<Filter, Order> const& schedule, std::span<layer_work const> work,
                          std::vector<layer_work>& storage) {
  BALLAST_EXPECTS(schedule.layers > 0, "layers_per_chunk: chunk size must be positive");
  return selected(schedule, work, storage) | ranges::views::chunk(schedule.layers);
}
template <class Filter, class Order>
[[nodiscard]] auto chunks(bytes_per_step<Filter, Order> const& schedule, std::span<layer_work const> work,
                          std::vector<layer_work>& storage) {
  return detail::cost_chunks{selected(schedule, work, storage), schedule.bytes, schedule.cost()};
}
template <class Filter, class Order>
[[nodiscard]] auto chunks(time_per_step<Filter, Order> const& schedule, std::span<layer_work const> work,
                          std::vector<layer_work>& storage) {
  return detail::cost_chunks{selected(schedule, work, storage), schedule.microseconds, schedule.cost()};
}
template <class Filter, class Order>
[[nodiscard]] auto chunks(all_layers<Filter, Order> const& schedule, std::span<layer_work const> work,
                          std::vector<layer_work>& storage) {
  auto const nothing = [](layer_work const& /*layer*/) { return std::int64_t{0}; };
  return detail::cost_chunks{selected(schedule, work, storage), 0, nothing};
}

}  // namespace views
BALLAST_END_NAMESPACE

#endif
