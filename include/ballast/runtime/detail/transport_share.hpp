// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_TRANSPORT_SHARE_HPP
#define BALLAST_RUNTIME_DETAIL_TRANSPORT_SHARE_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/runtime/detail/set_up.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// What one user has of a transport that others use too: tags that nobody has had, and numbers for its store's memory.
template <data_transport Transport, class Store>
class transport_share {
public:
  transport_share(Transport& transport, Store& store) noexcept : transport_{&transport}, store_{&store} {}

  /// Agree on both with the other ranks, and make the store's memory readable where peers read it; a collective.
  template <control_plane Control>
  [[nodiscard]] status take(Control& control, nanoseconds_t timeout) {
    std::uint64_t first_region = 0;  // NOLINT(misc-const-correctness): not where peers read memory
    if constexpr (peer_copier<Transport>) { first_region = transport_->next_region(); }
    std::uint64_t const mine[] = {last_session(), first_region};
    std::vector<std::uint64_t> all(2 * static_cast<std::size_t>(control.num_ranks()));
    if (auto result = control.all_gather(mine, all, timeout); !result.ok()) { return result; }
    std::uint64_t session = 0;
    for (std::size_t i = 0; i < all.size(); i += 2) {
      session = std::max(session, all[i] + 1);
      // Where nobody reads memory, what another rank says of it is no concern of this one.
      if constexpr (peer_copier<Transport>) { first_region = std::max(first_region, all[i + 1]); }
    }
    if (session > transfer_turns::max_session) {
      return {errc::internal, concat("rebalancer: the transport has served ", session - 1,
                                     " rebalancers, more than there are tags for")};
    }
    take_session(session);
    first_tag_ = transfer_turns::first_tag(session);
    first_region_ = static_cast<std::uint32_t>(first_region);
    return expose(control, timeout);
  }
  /// Take the memory back, on this rank alone. No effect where none is readable.
  void give_back() noexcept {
    if constexpr (peer_copier<Transport>) {
      if (std::exchange(exposed_, false)) { transport_->retract(first_region_); }
    }
  }

  [[nodiscard]] std::uint64_t first_tag() const noexcept { return first_tag_; }
  [[nodiscard]] std::uint32_t first_region() const noexcept { return first_region_; }

private:
  /// One of several transports has the turns of each of them.
  template <class Visit>
  void for_each_turns(Visit visit) {
    if constexpr (requires { transport_->for_each_turns(visit); }) {
      transport_->for_each_turns(visit);
    } else {
      visit(transport_->turns());
    }
  }
  [[nodiscard]] std::uint64_t last_session() {
    if constexpr (shared_transport<Transport>) {
      std::uint64_t last = 0;
      for_each_turns([&last](transfer_turns& turns) { last = std::max(last, turns.last_session()); });
      return last;
    } else {
      return process_sessions().load();
    }
  }
  void take_session(std::uint64_t session) {
    if constexpr (shared_transport<Transport>) {
      // Two links may be one transport.
      for_each_turns([&session](transfer_turns& turns) {
        if (turns.last_session() < session) { turns.take_session(session); }
      });
    } else {
      auto& last = process_sessions();
      for (auto seen = last.load(); seen < session && !last.compare_exchange_weak(seen, session);) {}
    }
  }
  template <class Control>
  [[nodiscard]] status expose([[maybe_unused]] Control& control, [[maybe_unused]] nanoseconds_t timeout) {
    if constexpr (peer_copier<Transport>) {
      auto exposed = transport_->expose(store_->regions(), first_region_);
      exposed_ = exposed.ok();
      return all_ready(control, exposed, "make its memory readable", timeout);
    } else {
      return {};
    }
  }

  Transport* transport_;
  Store* store_;
  std::uint64_t first_tag_ = 0;
  std::uint32_t first_region_ = 0;
  bool exposed_ = false;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
