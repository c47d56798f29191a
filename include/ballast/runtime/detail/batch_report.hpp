// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_BATCH_REPORT_HPP
#define BALLAST_RUNTIME_DETAIL_BATCH_REPORT_HPP

#include <ballast/config.hpp>
#include <ballast/runtime/batch_counters.hpp>
#include <ballast/runtime/observer.hpp>

#include <cstdint>

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
      for (auto const count :
           {&batch_counters::batches, &batch_counters::exact, &batch_counters::below, &batch_counters::off,
            &batch_counters::late, &batch_counters::unlike, &batch_counters::alone}) {
        fresh.*count = static_cast<std::uint32_t>(fresh.*count - told_.*count);
      }
      told_ = *found;
      bool const solved = fresh.exact + fresh.below > 0 && fresh.realised > 0;
      auto const balancedness = solved ? fresh.mean / static_cast<double>(fresh.realised) : 0;
      tell(event{.kind = event_kind::batches, .balancedness = balancedness, .batches = &fresh});
    }
  }

private:
  batch_counters told_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
