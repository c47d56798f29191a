// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_BATCH_REPORT_HPP
#define BALLAST_RUNTIME_DETAIL_BATCH_REPORT_HPP

#include <ballast/config.hpp>
#include <ballast/runtime/batch_counters.hpp>
#include <ballast/runtime/observer.hpp>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Tells what batches came to since it was asked last.
class batch_report {
public:
  /// Call `tell(event)` if there were batches.
  template <class Store, class Tell>
  void tell_new([[maybe_unused]] Store const& store, [[maybe_unused]] Tell tell) {
    if constexpr (batch_counting_store<Store>) {
      auto const found = store.balanced_batches();
      if (!found || found->batches == told_.batches) { return; }
      auto fresh = *found;
      fresh.batches -= told_.batches;
      fresh.exact -= told_.exact;
      fresh.below -= told_.below;
      fresh.off -= told_.off;
      fresh.late -= told_.late;
      fresh.unlike -= told_.unlike;
      fresh.alone -= told_.alone;
      told_ = *found;
      auto const balancedness = fresh.realised == 0 ? 1 : fresh.mean / static_cast<double>(fresh.realised);
      tell(event{.kind = event_kind::batches, .balancedness = balancedness, .batches = &fresh});
    }
  }

private:
  batch_counters told_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
