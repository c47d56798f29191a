// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_DETAIL_MAKING_HPP
#define BALLAST_NCCL_DETAIL_MAKING_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/nccl/detail/errand.hpp>
#include <ballast/nccl/error.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <nccl.h>

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace nccl::detail {

/// `ncclSuccess`, `ncclInProgress`, or what has gone wrong. Waits for nobody. @pre `asked` is not null
[[nodiscard]] inline ncclResult_t state_of(ncclComm_t asked) noexcept {
  ncclResult_t state = ncclSuccess;
  auto const result = ncclCommGetAsyncError(asked, &state);
  return result == ncclSuccess ? state : result;
}

/// Ends a communicator, by a call that may wait for peers.
class ending final : public errand {
public:
  ending(ncclComm_t handle, bool aborts) : handle_{handle}, aborts_{aborts} {}

private:
  ncclResult_t call() noexcept override { return aborts_ ? ncclCommAbort(handle_) : ncclCommDestroy(handle_); }

  ncclComm_t handle_;
  bool aborts_;
};

/// Makes a communicator. NCCL writes the new handle into this object, perhaps long after its call has returned, and
/// after whoever wanted it has given up.
class making : public errand, public std::enable_shared_from_this<making> {
public:
  [[nodiscard]] ncclComm_t handle() const noexcept { return __atomic_load_n(&handle_, __ATOMIC_ACQUIRE); }
  [[nodiscard]] bool may_abort() const noexcept { return may_abort_; }

  /// Wait until the communicator can be used.
  ///
  /// @param parent    what it is split off, null for one that is made anew.
  /// @param deadline  on the host's clock, in nanoseconds.
  [[nodiscard]] status wait_until_made(ncclComm_t parent, nanoseconds_t deadline) const {
    if (!wait_until(deadline)) { return late(); }
    if (auto result = to_status(this->result(), "NCCL"); !result.ok()) { return result; }
    auto state = ncclInProgress;
    auto const has_ended = [this, &state, &parent] {
      // Where there is a parent, it says when the handle has been written.
      state = parent == nullptr ? ncclSuccess : state_of(parent);
      if (state == ncclSuccess) {
        parent = nullptr;
        auto const made = handle();
        state = made == nullptr ? ncclInProgress : state_of(made);
      }
      return state != ncclInProgress;
    };
    return ballast::detail::poll_until(deadline, has_ended) ? to_status(state, "NCCL") : late();
  }

  /// Nobody wants it any more: what there is of it, or comes late, is ended where that is allowed.
  static void give_up(std::shared_ptr<making> const& what, executor const& where);

protected:
  explicit making(bool may_abort) : may_abort_{may_abort} {}
  ncclComm_t handle_ = nullptr;

private:
  class disposal;

  [[nodiscard]] static status late() { return {errc::deadline_exceeded, "communicator: not all ranks came in time"}; }

  /// NCCL may write into this object for as long as it likes.
  void keep() {
    struct kept {
      std::mutex mutex;
      std::vector<std::shared_ptr<making>> all;
    };
    static auto* const list = new kept;
    std::lock_guard const lock{list->mutex};
    list->all.push_back(shared_from_this());
  }

  void clean_up() noexcept override {
    constexpr nanoseconds_t patience = 600'000'000'000;
    constexpr nanoseconds_t nap = 10'000'000;
    auto const deadline = ballast::detail::deadline_after(patience);
    auto const comes = [this] { return result() == ncclInProgress && handle() == nullptr; };
    while (may_abort_ && comes() && ballast::detail::now() < deadline) { ballast::detail::sleep_for(nap); }
    if (comes()) { keep(); }
    if (may_abort_ && handle() != nullptr) { static_cast<void>(ncclCommAbort(handle())); }
  }

  bool may_abort_;
};

/// Cleans up after a call that has returned, for it may have to wait for the handle.
class making::disposal final : public errand {
public:
  explicit disposal(std::shared_ptr<making> what) : what_{std::move(what)} {}

private:
  ncclResult_t call() noexcept override {
    what_->clean_up();
    return ncclSuccess;
  }
  std::shared_ptr<making> what_;
};

inline void making::give_up(std::shared_ptr<making> const& what, executor const& where) {
  if (what->leave()) { return; }
  if (!begin(std::make_shared<disposal>(what), where).ok()) { what->keep(); }
}

/// A new communicator of all ranks of a group.
class fresh final : public making {
public:
  fresh(int num_ranks, int rank, ncclUniqueId const& id, ncclConfig_t const& config)
      : making{true}, num_ranks_{num_ranks}, rank_{rank}, id_{id}, config_{config} {}

private:
  ncclResult_t call() noexcept override { return ncclCommInitRankConfig(&handle_, num_ranks_, id_, rank_, &config_); }

  int num_ranks_;
  int rank_;
  ncclUniqueId id_;
  ncclConfig_t config_;
};

/// One that is split off another, with all its ranks.
class child final : public making {
public:
  child(ncclComm_t parent, int rank, bool may_abort, ncclConfig_t const& config)
      : making{may_abort}, parent_{parent}, rank_{rank}, config_{config} {}

private:
  ncclResult_t call() noexcept override { return ncclCommSplit(parent_, 0, rank_, &handle_, &config_); }

  ncclComm_t parent_;
  int rank_;
  ncclConfig_t config_;
};

}  // namespace nccl::detail
BALLAST_END_NAMESPACE

#endif
