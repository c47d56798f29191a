// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_COMMUNICATOR_HPP
#define BALLAST_NCCL_COMMUNICATOR_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/nccl/error.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/types.hpp>

#include <nccl.h>

#include <cstddef>
#include <ctime>
#include <span>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace nccl {

/// Options of a communicator that we make.
struct communicator_options {
  int max_ctas = 4;                        ///< thread blocks that its kernels may take from the engine, at least 1
  nanoseconds_t timeout = 60'000'000'000;  ///< of making it
};

/// Say whether the options make sense, naming the first value that does not.
[[nodiscard]] inline status validate(communicator_options const& options) {
  if (options.max_ctas >= 1) { return {}; }
  return {errc::invalid_option,
          ballast::detail::concat("communicator: thread blocks is ", options.max_ctas, ", must be at least 1")};
}

/// An NCCL communicator: made by us, and then never waited for longer than a deadline, or borrowed from the engine.
///
/// We abort what we made, and only that. A borrowed communicator that fails is marked lost; ending it is its owner's
/// business.
///
/// @threads one thread at a time.
class communicator {
public:
  communicator() = default;
  communicator(communicator&& other) noexcept
      : handle_{std::exchange(other.handle_, nullptr)},
        owned_{std::exchange(other.owned_, false)},
        lost_{std::exchange(other.lost_, false)} {}
  communicator& operator=(communicator&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(owned_, other.owned_);
    std::swap(lost_, other.lost_);
    return *this;
  }
  ~communicator() { abort(); }

  /// Make a communicator of all ranks of a group; called by all of them together, the rank's device current.
  ///
  /// @param control  carries the unique id, and says whether every rank has succeeded.
  /// @param out      out: replaced on success; on failure nothing is left behind.
  template <control_plane Control>
  [[nodiscard]] static status create(Control& control, communicator& out, communicator_options const& options = {}) {
    ncclUniqueId id{};
    auto mine = validate(options);
    if (mine.ok() && control.rank() == 0) { mine = to_status(ncclGetUniqueId(&id), "ncclGetUniqueId"); }
    auto const bytes = std::as_writable_bytes(std::span{&id, 1});
    if (auto result = control.broadcast(bytes, 0, options.timeout); !result.ok()) { return result; }
    communicator made;
    made.owned_ = true;
    auto config = config_of(options);
    if (mine.ok()) {
      mine = to_status(ncclCommInitRankConfig(&made.handle_, control.num_ranks(), id, control.rank(), &config),
                       "ncclCommInitRankConfig");
    }
    if (mine.ok()) { mine = made.settle(options.timeout); }
    return keep_if_all(control, std::move(mine), std::move(made), out, options);
  }

  /// Split a communicator of our own off the engine's; called by all its ranks together.
  ///
  /// @param parent  the engine's, not null; not changed. All its ranks are ranks of the new one, in the same order.
  template <control_plane Control>
  [[nodiscard]] static status split(ncclComm_t parent, Control& control, communicator& out,
                                    communicator_options const& options = {}) {
    communicator made;
    made.owned_ = true;
    auto config = config_of(options);
    auto mine = validate(options);
    if (parent == nullptr) { mine = {errc::invalid_option, "communicator: null parent"}; }
    if (mine.ok()) {
      mine = to_status(ncclCommSplit(parent, 0, control.rank(), &made.handle_, &config), "ncclCommSplit");
    }
    if (mine.ok()) { mine = settle(parent, options.timeout); }
    if (mine.ok()) { mine = made.settle(options.timeout); }
    return keep_if_all(control, std::move(mine), std::move(made), out, options);
  }

  /// Use the engine's communicator. One that is null counts as lost. @lifetime it must outlive this object
  [[nodiscard]] static communicator borrow(ncclComm_t handle) {
    communicator result;
    result.handle_ = handle;
    return result;
  }

  [[nodiscard]] ncclComm_t get() const noexcept { return handle_; }
  [[nodiscard]] bool is_owned() const noexcept { return owned_; }
  /// Nothing can be sent any more: it failed, or there never was one.
  [[nodiscard]] bool is_lost() const noexcept { return lost_ || handle_ == nullptr; }

  /// `ncclSuccess`, `ncclInProgress`, or what has gone wrong.
  [[nodiscard]] ncclResult_t query() const noexcept {
    ncclResult_t state = ncclSuccess;
    auto const result = ncclCommGetAsyncError(handle_, &state);
    return result == ncclSuccess ? state : result;
  }

  /// Give the communicator up: abort it when it is ours, otherwise only never use it again.
  void abort() noexcept {
    lost_ = handle_ != nullptr;
    if (owned_ && handle_ != nullptr) { static_cast<void>(ncclCommAbort(handle_)); }
    if (owned_) { handle_ = nullptr; }
  }

private:
  [[nodiscard]] static ncclConfig_t config_of(communicator_options const& options) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.maxCTAs = options.max_ctas;
    return config;
  }

  /// Wait until a call on a non-blocking communicator has taken effect.
  [[nodiscard]] status settle(nanoseconds_t timeout) const { return settle(handle_, timeout); }
  [[nodiscard]] static status settle(ncclComm_t handle, nanoseconds_t timeout) {
    auto const deadline = ballast::detail::deadline_after(timeout);
    for (;;) {
      ncclResult_t state = ncclSuccess;
      if (auto const result = ncclCommGetAsyncError(handle, &state); result != ncclSuccess) {
        return to_status(result, "ncclCommGetAsyncError");
      }
      if (state != ncclInProgress) { return to_status(state, "NCCL"); }
      if (ballast::detail::now() >= deadline) {
        return {errc::deadline_exceeded, "communicator: not all ranks came in time"};
      }
      std::timespec const nap{0, 100'000};
      static_cast<void>(nanosleep(&nap, nullptr));
    }
  }

  template <control_plane Control>
  [[nodiscard]] static status keep_if_all(Control& control, status mine, communicator made, communicator& out,
                                          communicator_options const& options) {
    auto const vote = control.vote(mine.ok(), options.timeout);
    if (!mine.ok()) { return mine; }
    if (vote.outcome != decision::commit) { return vote.reason; }
    out = std::move(made);
    return {};
  }

  ncclComm_t handle_ = nullptr;
  bool owned_ = false;
  bool lost_ = false;
};

}  // namespace nccl
BALLAST_END_NAMESPACE

#endif
