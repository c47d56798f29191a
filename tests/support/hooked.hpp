// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_HOOKED_HPP
#define BALLAST_TESTS_SUPPORT_HOOKED_HPP

#include <ballast/control/control.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

// Parts of a rebalancer that call back before and after what they do, so that a test can strike there.
namespace ballast_test {

using hook_function = std::function<void(char const* point)>;

template <ballast::control_plane Control>
class hooked_control {
public:
  hooked_control(Control& inner, hook_function at) : inner_{&inner}, at_{std::move(at)} {}

  [[nodiscard]] ballast::index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] ballast::index_t num_ranks() const noexcept { return inner_->num_ranks(); }
  [[nodiscard]] std::uint64_t membership() const { return inner_->membership(); }

  [[nodiscard]] ballast::status all_reduce(std::span<std::int64_t> values, ballast::nanoseconds_t timeout) {
    return between("before reduce", "after reduce", [&] { return inner_->all_reduce(values, timeout); });
  }
  [[nodiscard]] ballast::status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                                           ballast::nanoseconds_t timeout) {
    return between("before agree", "after agree", [&] { return inner_->all_gather(mine, all, timeout); });
  }
  [[nodiscard]] ballast::status broadcast(std::span<std::byte> bytes, ballast::index_t root,
                                          ballast::nanoseconds_t timeout) {
    return between("before broadcast", "after broadcast", [&] { return inner_->broadcast(bytes, root, timeout); });
  }
  [[nodiscard]] ballast::vote_result vote(bool yes, ballast::nanoseconds_t timeout) {
    return between("before vote", "after vote", [&] { return inner_->vote(yes, timeout); });
  }
  [[nodiscard]] ballast::vote_result vote_no(ballast::status const& why, ballast::nanoseconds_t timeout) {
    return between("before vote", "after vote", [&] { return inner_->vote_no(why, timeout); });
  }
  [[nodiscard]] ballast::vote_result recall(ballast::nanoseconds_t timeout) {
    return between("before recall", "after recall", [&] { return inner_->recall(timeout); });
  }
  [[nodiscard]] ballast::status regroup(ballast::nanoseconds_t timeout) {
    return between("before regroup", "after regroup", [&] { return inner_->regroup(timeout); });
  }
  void give_up(ballast::status const& why) { inner_->give_up(why); }
  [[nodiscard]] ballast::status trouble() { return inner_->trouble(); }

private:
  template <class Call>
  auto between(char const* before, char const* after, Call call) {
    at_(before);
    auto result = call();
    at_(after);
    return result;
  }

  Control* inner_;
  hook_function at_;
};

/// A `host_store` that stops in the middle of its copies, and can run out of staging.
class hooked_store : public ballast::host_store {
public:
  using ballast::host_store::host_store;

  hook_function at = [](char const*) {};
  std::function<bool()> out_of_memory = [] { return false; };

  [[nodiscard]] ballast::status reserve_staging(std::size_t bytes) {
    if (out_of_memory()) {
      return {ballast::errc::out_of_memory, ballast::detail::concat("no memory for ", bytes, " bytes of staging")};
    }
    return host_store::reserve_staging(bytes);
  }
  [[nodiscard]] ballast::status commit(ballast::index_t layer, std::span<ballast::byte_copy const> copies,
                                       ballast::placement const& tables, ballast::epoch_t epoch) {
    at("before commit");
    auto const half = copies.size() / 2;
    if (auto result = host_store::commit(layer, copies.first(half), tables, epoch); !result.ok()) { return result; }
    at("in commit");
    auto result = host_store::commit(layer, copies.subspan(half), tables, epoch);
    at("after commit");
    return result;
  }
};

static_assert(ballast::expert_store<hooked_store>);

}  // namespace ballast_test

#endif
