// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_REBALANCER_OPTIONS_HPP
#define BALLAST_RUNTIME_REBALANCER_OPTIONS_HPP

#include <ballast/config.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/gate.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstdint>
#include <cstring>

BALLAST_BEGIN_NAMESPACE

/// Options of a rebalancer; the same on every rank.
struct rebalancer_options {
  index_t interval = 1000;     ///< N, forward passes between plans, >= 1
  index_t share_interval = 0;  ///< M, passes between refreshes of the shares alone; 0: shares change with plans only
  double utilization_threshold = 1.0;      ///< do not plan while balancedness is above this; 1 always plans
  nanoseconds_t timeout = 10'000'000'000;  ///< of each wait for the other ranks
  pass_gate gate{};                        ///< which passes count
  bool relay = false;                      ///< see `transfer_options`
  std::int64_t max_message_bytes = 0;      ///< longer messages travel in pieces; 0: no limit
  index_t rounds_per_batch = 0;            ///< rounds that the transport is given at once; 0: all of a group
  bool asynchronous = false;  ///< bytes travel while passes run; commits follow the words of `outgoing` and `incoming`
  bool verify = false;        ///< compare checksums of every moved expert before it is committed
  bool adopt_first_plan = false;  ///< when plans differ, every rank takes rank 0's instead of failing

  /// Refuse values that make no sense, naming them.
  [[nodiscard]] status validate() const {
    if (interval < 1) {
      return {errc::invalid_option, detail::concat("rebalancer: interval is ", interval, ", must be at least 1")};
    }
    if (share_interval < 0) {
      return {errc::invalid_option,
              detail::concat("rebalancer: share interval is ", share_interval, ", must not be negative")};
    }
    if (max_message_bytes < 0 || rounds_per_batch < 0) {
      return {errc::invalid_option, detail::concat("rebalancer: messages of ", max_message_bytes, " bytes, ",
                                                   rounds_per_batch, " rounds a batch: must not be negative")};
    }
    if (!(utilization_threshold >= 0)) {
      return {errc::invalid_option,
              detail::concat("rebalancer: utilisation threshold is ", utilization_threshold, ", must not be negative")};
    }
    if (timeout <= 0) {
      return {errc::invalid_option, detail::concat("rebalancer: timeout is ", timeout, " ns, must be positive")};
    }
    return {};
  }

  /// Mix what every rank must have alike into a digest. Ranks may differ in how long they wait.
  void describe(digest& out) const noexcept {
    std::uint64_t threshold = 0;
    std::memcpy(&threshold, &utilization_threshold, sizeof threshold);
    out.add(interval).add(share_interval).add(threshold).add(relay).add(max_message_bytes).add(rounds_per_batch);
    out.add(asynchronous).add(verify).add(adopt_first_plan);
    gate.describe(out);
  }
};

BALLAST_END_NAMESPACE

#endif
