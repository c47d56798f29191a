// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_COMMUNICATOR_HPP
#define BALLAST_NCCL_COMMUNICATOR_HPP

#include <ballast/control/control.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/nccl/detail/errand.hpp>
#include <ballast/nccl/detail/making.hpp>
#include <ballast/nccl/error.hpp>
#include <ballast/nccl/executor.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <nccl.h>

#include <cstddef>
#include <memory>
#include <span>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace nccl {

class transport;

/// Options of a communicator that we make.
struct communicator_options {
  /// Thread blocks of its kernels at most, the same on every rank; 0 leaves it to NCCL, which takes as many as it
  /// thinks that the links need. Each is a multiprocessor that the engine lacks while a batch moves, and memory for
  /// each peer of the host: see `transport_options::communicator_in_force` and docs/gpu.md.
  int max_ctas = 0;
  nanoseconds_t timeout = 60'000'000'000;  ///< of making it, all in all, and of a transport's `warm_up`
  /// The parent of a split was made with `splitShare` = 0, and NCCL_COMM_SPLIT_SHARE_RESOURCES is not set: what is
  /// split off may be aborted. Where the two share resources NCCL gives both one flag to abort by, and so aborting the
  /// one ends the other. It also runs the kernels of both in the order of their launches: what the engine launches on
  /// the parent waits for a batch of ours, and for ever behind one that was given up. Better to split off one that
  /// shares nothing, or to `create`.
  bool parent_shares_nothing = false;
  executor calls = {};  ///< makes the calls of NCCL that may block
  int min_ctas = 0;     ///< thread blocks at least, also where NCCL would take fewer; 0 leaves it to NCCL
};

/// Say whether the options make sense, naming the first value that does not. @return `errc::invalid_option`
[[nodiscard]] inline status validate(communicator_options const& options) {
  for (auto const blocks : {options.max_ctas, options.min_ctas}) {
    if (blocks >= 0) { continue; }
    return {errc::invalid_option, ballast::detail::concat("communicator: thread blocks is ", blocks,
                                                          ", must be at least 0, which leaves it to NCCL")};
  }
  if (options.max_ctas == 0 || options.min_ctas <= options.max_ctas) { return {}; }
  return {errc::invalid_option, ballast::detail::concat("communicator: thread blocks are at least ", options.min_ctas,
                                                        ", must be at most ", options.max_ctas)};
}

/// An NCCL communicator: made by us, and then never waited for longer than a deadline, or borrowed from the engine.
///
/// What is aborted when: one that `create` made, as soon as it is given up. One that `split` made only if its parent is
/// said to share nothing (`communicator_options::parent_shares_nothing`); otherwise it is ended in good order while it
/// is healthy, and when it has failed it is left alone until the engine ends the parent. A borrowed one never.
///
/// Calls that may block (making, splitting, ending) run on threads of ours or on the engine's `executor`. Where a rank
/// gives up waiting, the call goes on there, and what it makes too late is ended there by the same rules.
///
/// @threads one thread at a time.
class communicator {
public:
  /// None: `is_lost()`, until another one is moved here.
  communicator() = default;
  communicator(communicator&& other) noexcept
      : handle_{std::exchange(other.handle_, nullptr)},
        owned_{std::exchange(other.owned_, false)},
        may_abort_{std::exchange(other.may_abort_, false)},
        lost_{std::exchange(other.lost_, false)},
        ended_{std::exchange(other.ended_, false)},
        ending_{std::move(other.ending_)},
        calls_{other.calls_} {}
  communicator& operator=(communicator&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(owned_, other.owned_);
    std::swap(may_abort_, other.may_abort_);
    std::swap(lost_, other.lost_);
    std::swap(ended_, other.ended_);
    std::swap(ending_, other.ending_);
    std::swap(calls_, other.calls_);
    return *this;
  }
  /// Waits at most a second for NCCL to end what is ours.
  ~communicator() {
    if (owned_ && (may_abort_ || !lost_)) { end(patience); }
  }

  /// Make a communicator of all ranks of a group; called by all of them together, the rank's device current.
  ///
  /// It waits for the others and for NCCL, no longer than `options.timeout` in all.
  ///
  /// @param control  carries the unique id, and says whether every rank has succeeded.
  /// @param out      out: replaced on success; on failure nothing is left behind.
  /// @param options  with the same timeout on every rank, or the shortest decides.
  /// @return on all ranks a failure where one has failed: its own there (`errc::invalid_option`, `nccl::category()`,
  ///         `errc::deadline_exceeded` when NCCL does not come to an end), elsewhere what the control plane says of its
  ///         vote. A rank that cannot take part, rank 0 without a unique id among them, makes all ranks fail at once.
  ///         So does one that the group has expelled, where the control plane can tell (`expelling_plane`):
  ///         `errc::invalid_topology`, which names it.
  /// @complexity a broadcast and two votes of the control plane
  /// @throws std::bad_alloc
  template <control_plane Control>
  [[nodiscard]] static status create(Control& control, communicator& out, communicator_options const& options = {}) {
    return create_if({}, control, out, options);
  }

  /// The same where a rank may be unable to take part: all fail if one gives a failure, which is returned there.
  ///
  /// @param mine  why this rank cannot take part, or success. It makes the calls of the control plane all the same.
  template <control_plane Control>
  [[nodiscard]] static status create_if(status mine, Control& control, communicator& out,
                                        communicator_options const& options) {
    cudart::detail::capture_guard const guard;
    auto const deadline = ballast::detail::deadline_after(options.timeout);
    if (mine.ok()) { mine = validate(options); }
    if (mine.ok()) { mine = refuse_expelled(control); }
    unique_id id;
    if (auto result = share_id(mine, control, id, deadline); !result.ok() && mine.ok()) { return result; }
    if (auto result = all_take_part(control, mine, deadline); !result.ok()) { return result; }
    auto const call = std::make_shared<detail::fresh>(static_cast<int>(control.num_ranks()),
                                                      static_cast<int>(control.rank()), id.value, config_of(options));
    return make(control, call, nullptr, out, options, deadline);
  }

  /// Split a communicator of our own off the engine's; called by all its ranks together.
  ///
  /// A blocking parent makes NCCL's call wait for all ranks, on a thread of ours or the engine's `executor`. Where the
  /// deadline passes first, that thread is still inside the parent: nobody may use it before its owner has aborted it.
  ///
  /// @param parent  the engine's, not null; not changed. All its ranks are ranks of the new one, in the same order.
  /// @return as `create`, and no longer than it: `options.timeout` in all.
  /// @complexity two votes of the control plane
  /// @throws std::bad_alloc
  template <control_plane Control>
  [[nodiscard]] static status split(ncclComm_t parent, Control& control, communicator& out,
                                    communicator_options const& options = {}) {
    cudart::detail::capture_guard const guard;
    auto const deadline = ballast::detail::deadline_after(options.timeout);
    auto mine = validate(options);
    if (parent == nullptr) { mine = {errc::invalid_option, "communicator: null parent"}; }
    if (mine.ok()) { mine = refuse_expelled(control); }
    if (auto result = all_take_part(control, mine, deadline); !result.ok()) { return result; }
    auto const call = std::make_shared<detail::child>(parent, static_cast<int>(control.rank()),
                                                      options.parent_shares_nothing, config_of(options));
    return make(control, call, parent, out, options, deadline);
  }

  /// Use the engine's communicator. One that is null counts as lost. @lifetime it must outlive this object
  [[nodiscard]] static communicator borrow(ncclComm_t handle) {
    communicator result;
    result.handle_ = handle;
    return result;
  }

  /// NCCL's handle; null where there is none, or none any more.
  [[nodiscard]] ncclComm_t get() const noexcept { return handle_; }
  /// Made by us, not borrowed.
  [[nodiscard]] bool is_owned() const noexcept { return owned_; }
  /// Nothing can be sent any more: it failed, or there never was one.
  [[nodiscard]] bool is_lost() const noexcept { return lost_ || handle_ == nullptr; }

  /// Ask NCCL which of how many ranks this is. @param rank, num_ranks  out. @pre `get()` is not null
  [[nodiscard]] status locate(index_t& rank, index_t& num_ranks) const {
    if (auto result = to_status(ncclCommUserRank(handle_, &rank), "ncclCommUserRank"); !result.ok()) { return result; }
    return to_status(ncclCommCount(handle_, &num_ranks), "ncclCommCount");
  }

  /// `ncclSuccess`, `ncclInProgress`, or what has gone wrong. Waits for nobody. @pre `get()` is not null
  [[nodiscard]] ncclResult_t query() const noexcept { return detail::state_of(handle_); }

  /// Give the communicator up: abort it where it is ours alone, otherwise only never use it again.
  ///
  /// @param timeout  nanoseconds to wait for NCCL to have aborted it; it does so all the same when that is too short.
  void abort(nanoseconds_t timeout = patience) noexcept {
    lost_ = lost_ || handle_ != nullptr;
    if (owned_ && may_abort_) { end(timeout); }
  }

private:
  friend class transport;
  static constexpr nanoseconds_t patience = 1'000'000'000;

  /// What rank 0 broadcasts.
  struct unique_id {
    ncclUniqueId value{};
    ncclResult_t result = ncclSuccess;
  };

  [[nodiscard]] static ncclConfig_t config_of(communicator_options const& options) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (options.max_ctas > 0) { config.maxCTAs = options.max_ctas; }
    if (options.min_ctas > 0) { config.minCTAs = options.min_ctas; }
    config.splitShare = 0;
    return config;
  }

  /// NCCL waits for every rank of the group, also for one that has been shut out.
  template <control_plane Control>
  [[nodiscard]] static status refuse_expelled([[maybe_unused]] Control const& control) {
    if constexpr (expelling_plane<Control>) {
      for (index_t rank = 0; rank < control.num_ranks(); ++rank) {
        if (!control.is_expelled(rank)) { continue; }
        return {errc::invalid_topology,
                ballast::detail::concat("communicator: NCCL's has all ranks of the group, and rank ", rank,
                                        " was expelled: make a new group and transport of the survivors, or move with "
                                        "peer_copy"),
                rank};
      }
    }
    return {};
  }

  /// @return a failure of the control plane; that rank 0 has no id is told in `mine`.
  template <control_plane Control>
  [[nodiscard]] static status share_id(status& mine, Control& control, unique_id& id, nanoseconds_t deadline) {
    if (mine.ok() && control.rank() == 0) { id.result = ncclGetUniqueId(&id.value); }
    auto const bytes = std::as_writable_bytes(std::span{&id, 1});
    if (auto result = control.broadcast(bytes, 0, ballast::detail::time_until(deadline)); !result.ok()) {
      return result;
    }
    if (mine.ok() && id.result != ncclSuccess) {
      auto const why = to_status(id.result, "ncclGetUniqueId");
      mine = {why.code(), ballast::detail::concat("communicator: rank 0: ", why.message()), 0};
    }
    return {};
  }

  /// Before anybody calls NCCL, where one missing rank lets the others wait.
  template <control_plane Control>
  [[nodiscard]] static status all_take_part(Control& control, status const& mine, nanoseconds_t deadline) {
    auto const vote = control.vote(mine.ok(), ballast::detail::time_until(deadline));
    if (!mine.ok()) { return mine; }
    return vote.outcome == decision::commit ? status{} : vote.reason;
  }

  template <control_plane Control>
  [[nodiscard]] static status make(Control& control, std::shared_ptr<detail::making> const& call, ncclComm_t parent,
                                   communicator& out, communicator_options const& options, nanoseconds_t deadline) {
    // The rest of the time is for telling each other.
    auto const made_by = deadline - options.timeout / 4;
    communicator made;
    auto mine = detail::errand::begin(call, options.calls);
    if (mine.ok()) {
      mine = call->wait_until_made(parent, made_by);
      if (mine.ok()) {
        made = communicator{*call, options.calls};
      } else {
        detail::making::give_up(call, options.calls);
      }
    }
    auto result = all_take_part(control, mine, deadline);
    if (result.ok()) {
      out = std::move(made);
    } else {
      made.end(ballast::detail::time_until(deadline));
    }
    return result;
  }

  communicator(detail::making const& made, executor const& calls)
      : handle_{made.handle()},
        owned_{true},
        may_abort_{made.may_abort()},
        ending_{std::make_shared<detail::ending>(made.handle(), made.may_abort())},
        calls_{calls} {}

  void end(nanoseconds_t timeout) noexcept {
    if (ending_ == nullptr || std::exchange(ended_, true)) { return; }
    auto const deadline = ballast::detail::deadline_after(timeout);
    handle_ = nullptr;
    if (detail::errand::begin(ending_, calls_).ok()) {
      static_cast<void>(ending_->wait_until(deadline));
    } else {
      ending_->run_here();
    }
  }

  ncclComm_t handle_ = nullptr;
  bool owned_ = false;
  bool may_abort_ = false;
  bool lost_ = false;
  bool ended_ = false;
  std::shared_ptr<detail::ending> ending_;  // made beforehand: to give up takes no memory
  executor calls_;
};

}  // namespace nccl
BALLAST_END_NAMESPACE

#endif
