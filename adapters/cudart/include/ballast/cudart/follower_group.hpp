// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_FOLLOWER_GROUP_HPP
#define BALLAST_CUDART_FOLLOWER_GROUP_HPP

#include <ballast/cudart/device_store.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/batch_counters.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Several followers of one `device_store`, as the one that its options take: two `batch_balancer`s, for instance, one
/// for each of two batches that overlap.
///
/// @lifetime the members, and this object where it is, must outlive the store.
class follower_group {
public:
  /// @param members  told in this order.
  explicit follower_group(std::vector<table_follower> members) : members_{std::move(members)} {}
  follower_group(follower_group const&) = delete;  // stores refer to it
  follower_group& operator=(follower_group const&) = delete;
  ~follower_group() = default;

  /// For the options of a `device_store`. The first member that fails ends the call; counters of batches are those of
  /// all members that have some, together.
  [[nodiscard]] table_follower follower() noexcept {
    bool const counts = std::any_of(members_.begin(), members_.end(),
                                    [](table_follower const& member) { return member.batches != nullptr; });
    return {&tell, this, counts ? &batches : nullptr};
  }

private:
  static status tell(void* self, topology const& where, placement const& in_force, index_t layer) {
    for (auto const& member : static_cast<follower_group*>(self)->members_) {
      if (member.call == nullptr) { continue; }
      if (auto result = member.call(member.context, where, in_force, layer); !result.ok()) { return result; }
    }
    return {};
  }
  static batch_counters batches(void* self) {
    batch_counters sum;
    for (auto const& member : static_cast<follower_group*>(self)->members_) {
      if (member.batches != nullptr) { sum += member.batches(member.context); }
    }
    return sum;
  }

  std::vector<table_follower> members_;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
