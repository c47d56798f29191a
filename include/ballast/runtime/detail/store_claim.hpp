// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_STORE_CLAIM_HPP
#define BALLAST_RUNTIME_DETAIL_STORE_CLAIM_HPP

#include <ballast/config.hpp>

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A store belongs to one rebalancer at a time. Two that started on one would each publish its own epochs there.
class store_claim {
public:
  explicit store_claim(void const* store) noexcept : store_{store} {}
  store_claim(store_claim const&) = delete;
  store_claim& operator=(store_claim const&) = delete;
  ~store_claim() { give_back(); }

  /// @return whether no other rebalancer of this process has it
  [[nodiscard]] bool take() {
    auto& [mutex, taken] = claims();
    std::lock_guard const lock{mutex};
    if (held_) { return true; }
    if (std::find(taken.begin(), taken.end(), store_) != taken.end()) { return false; }
    taken.push_back(store_);
    held_ = true;
    return true;
  }
  void give_back() noexcept {
    if (!std::exchange(held_, false)) { return; }
    auto& [mutex, taken] = claims();
    std::lock_guard const lock{mutex};
    taken.erase(std::find(taken.begin(), taken.end(), store_));
  }

private:
  struct all_claims {
    std::mutex mutex;
    std::vector<void const*> taken;
  };
  /// Lives as long as the process: a rebalancer may be a global.
  [[nodiscard]] static all_claims& claims() {
    static auto* const instance = new all_claims;
    return *instance;
  }

  void const* store_;
  bool held_ = false;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
