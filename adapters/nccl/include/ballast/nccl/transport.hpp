// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_TRANSPORT_HPP
#define BALLAST_NCCL_TRANSPORT_HPP

#include <ballast/control/control.hpp>
#include <ballast/cudart/compute_streams.hpp>
#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/detail/errand.hpp>
#include <ballast/nccl/detail/lane.hpp>
#include <ballast/nccl/error.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/detail/segments.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace nccl {

/// Options of `transport`.
struct transport_options {
  /// Runs the forward passes. NCCL's kernels start behind everything that it holds when a batch is waited for. A stream
  /// that the engine has made: the default streams (`cudaStreamLegacy`, `cudaStreamPerThread`) are refused.
  ///
  /// Null: there is nothing to start behind. Bytes are right all the same, because a store orders its commits against
  /// `copy_stream`; but NCCL's kernels may then meet the engine's on the device, as with `allow_sm_overlap`.
  cudaStream_t compute_stream = nullptr;
  /// Let NCCL's kernels run beside the engine's. Without it they run inside `wait` only, and `poll` launches nothing:
  /// beside cooperative kernels that take all multiprocessors, ranks that launch the two in different order would wait
  /// for each other for ever. So would those that launch ours and the engine's on one communicator, or on two that
  /// share resources. Whoever sets this has seen to that. Asynchronous moves need it, because they only poll.
  bool allow_sm_overlap = false;
  /// Rounds that are launched as one group, the same on every rank.
  index_t rounds_per_group = 32;
  bool timed = false;  ///< measure batches on the device, see `receive_timer`: an event record for each
  /// Of the communicator that `repair` and `cohort` make; its timeout also bounds `warm_up`.
  communicator_options communicator = {};
  /// What forward passes run on besides, such as the second of two batches that overlap: NCCL's kernels start behind
  /// what these hold, too.
  std::vector<cudaStream_t> more_compute_streams = {};  // NOLINT(readability-redundant-member-init): may be left out

  /// Thread blocks that an engine can spare at any time: 3 % of the multiprocessors of a card that has 132.
  static constexpr int ctas_beside_engine = 4;
  /// What is asked of NCCL: `communicator`, and where that leaves the thread blocks open, as many as NCCL takes while
  /// the engine waits, but `ctas_beside_engine` where its kernels may meet the engine's (`allow_sm_overlap`, or no
  /// `compute_stream` to start behind). For those who make the first communicator themselves.
  [[nodiscard]] communicator_options communicator_in_force() const {
    auto result = communicator;
    bool const is_open = result.max_ctas == 0 && result.min_ctas == 0;
    bool const may_meet = allow_sm_overlap || compute_stream == nullptr;
    if (is_open && may_meet) { result.max_ctas = ctas_beside_engine; }
    return result;
  }
};

/// Sends experts with NCCL, two-sided, on a stream of its own.
///
/// The messages of some rounds form a group: at most a send and a receive of each rank a round, so groups have the
/// same bounded shape on every rank. A batch without bytes asks NCCL for nothing.
///
/// A batch that fails, misses its deadline or is ended before it is done gives the communicator up, because its peers
/// may be in the middle of it. `repair`, called by all ranks together, makes a new communicator. Kernels that have not
/// ended by then keep the old stream, and until they have, batches that receive where they may write are refused. So
/// `copy_stream` may be another one after a repair.
///
/// @threads one thread at a time, as NCCL requires of a communicator; the rank's device is current there.
/// @lifetime streams and memory belong to the engine and outlive it. Its end waits a second at most, for NCCL to end a
///           communicator of ours, and never for the device.
class transport {
public:
  /// @param wires  made by us or borrowed. A healthy one; it is this transport's from now on.
  /// @throws std::system_error (`errc::invalid_option`, `nccl::category()`, `cudart::category()`)
  explicit transport(communicator wires, transport_options const& options = {})
      : options_{options},
        done_{cudart::event::create(options.timed ? cudaEventDefault : cudaEventDisableTiming)},
        computed_{cudart::event::create()},
        compute_{options.compute_stream, options.more_compute_streams},
        wires_{std::move(wires)} {
    validate(wires_, options).or_throw();
    detail::lane::create(lane_).or_throw();
    if (options.timed) {
      begin_ = cudart::event::create(cudaEventDefault);
      receive_time_ = 0;
    }
    wires_.locate(rank_, num_ranks_).or_throw();
  }

  /// Say whether these make a transport, naming the first value that does not. @return `errc::invalid_option`
  [[nodiscard]] static status validate(communicator const& wires, transport_options const& options) {
    if (wires.is_lost()) { return {errc::invalid_option, "nccl: a transport without a communicator"}; }
    if (options.rounds_per_group < 1) {
      return {errc::invalid_option,
              ballast::detail::concat("nccl: rounds per group is ", options.rounds_per_group, ", must be at least 1")};
    }
    if (options.compute_stream == cudaStreamLegacy || options.compute_stream == cudaStreamPerThread) {
      return {errc::invalid_option,
              "nccl: the compute stream is a default stream, which orders itself against others: run the passes on a "
              "stream made with cudaStreamCreateWithFlags, and give that one"};
    }
    if (auto result = cudart::compute_streams::validate(options.compute_stream, options.more_compute_streams);
        !result.ok()) {
      return result;
    }
    return validate_communicator(options.communicator);
  }

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }
  /// Runs the forward passes; null where the options named none.
  [[nodiscard]] cudaStream_t compute_stream() const noexcept { return options_.compute_stream; }
  /// What they run on besides.
  [[nodiscard]] std::span<cudaStream_t const> more_compute_streams() const noexcept {
    return options_.more_compute_streams;
  }
  /// The stream that a store orders behind its commits; another one after a `repair` that kernels have not waited for.
  [[nodiscard]] cudaStream_t copy_stream() const noexcept { return lane_->stream.get(); }
  /// The same for a store that asks; see `cudart::device_store::connect`.
  template <class Visit>
  void for_each_copy_stream(Visit visit) const {
    visit(copy_stream());
  }
  /// See `data_transport`. Tags and turns outlast the communicator.
  [[nodiscard]] transfer_turns& turns() noexcept { return turns_; }
  /// Options that the ranks must share: the others pair their calls by them.
  template <class Visit>
  void for_each_option(Visit visit) const {
    visit("rounds per group", ballast::detail::option_bits(options_.rounds_per_group));
    auto const made = options_.communicator_in_force();
    visit("thread blocks at most", ballast::detail::option_bits(made.max_ctas));
    visit("thread blocks at least", ballast::detail::option_bits(made.min_ctas));
  }
  /// Bytes move while the batch is polled; else only inside of `wait`, and asynchronous moves cannot work.
  [[nodiscard]] bool moves_in_poll() const noexcept { return options_.allow_sm_overlap; }
  /// A batch was given up: nothing moves until `repair`. For a borrowed communicator, its owner has to act.
  [[nodiscard]] bool is_lost() const noexcept { return wires_.is_lost(); }
  /// The same; see `repairable_transport`.
  [[nodiscard]] bool needs_repair() const noexcept { return is_lost(); }

  /// Connect to every peer, so that the first batch need not; called by all ranks together, with no batch open.
  ///
  /// Waits for all of them, at most as long as `transport_options::communicator` says. With a blocking communicator
  /// this is what keeps later launches from waiting for peers.
  ///
  /// @return `errc::busy` while a batch is open, `errc::transport_failed` when the communicator was given up before.
  ///         Other failures give it up, as those of a batch do: `errc::deadline_exceeded` when not all came in time,
  ///         `nccl::category()`, `cudart::category()`.
  /// @complexity R messages of a byte, on another thread: see `communicator_options::calls`.
  [[nodiscard]] status warm_up() {
    cudart::detail::capture_guard const guard;
    if (open_) { return already_open(); }
    if (num_ranks_ == 1) { return {}; }
    if (wires_.is_lost()) { return given_up(); }
    auto const deadline = ballast::detail::deadline_after(options_.communicator.timeout);
    reset();
    auto const ranks = static_cast<std::size_t>(num_ranks_);
    failure_ = lane_->reserve(2 * ranks);
    if (failure_.ok()) { failure_ = follow_compute(); }
    if (failure_.ok()) { failure_ = exchange_first(deadline); }
    waiting_ = true;
    if (failure_.ok()) { progress_until(deadline); }
    return finish(deadline);
  }

  /// Say that the owner of the communicators that were borrowed has aborted or destroyed them, so that they launch
  /// nothing any more: where a batch was given up while NCCL waited for a peer, only its owner knows.
  void lender_has_ended() noexcept {
    lane_->is_lent = false;
    for (auto const& each : retired_) { each->is_lent = false; }
  }

  /// Make the transport usable again; called by all ranks together, with no batch open. The new communicator is our
  /// own, of `transport_options::communicator`; the one before it is given up also where it is healthy.
  ///
  /// @param control  of the ranks of this transport, numbered alike.
  /// @param timeout  nanoseconds, in all.
  /// @return `errc::busy` on a rank with an open batch, `errc::invalid_option` on one that the control plane numbers
  ///         otherwise, and then a failure on all; otherwise as `communicator::create`. A failure leaves the transport
  ///         as it is after a failed batch: repair it again. Not once a rank was expelled, which
  ///         `errc::invalid_topology` tells: a communicator has all ranks of the group.
  /// @complexity as `communicator::create`. A quarter of the time at most goes by until the old communicator is
  ///             aborted, and another until its kernels have ended.
  template <control_plane Control>
  [[nodiscard]] status repair(Control& control, nanoseconds_t timeout) {
    auto options = options_.communicator_in_force();
    options.timeout = timeout;
    return reconnect(control, options);
  }
  /// The same with options for this once; `communicator_options::timeout` is the time for all of it.
  template <control_plane Control>
  [[nodiscard]] status reconnect(Control& control, communicator_options const& options = {}) {
    cudart::detail::capture_guard const guard;
    status mine = open_ ? already_open() : check_group(control.rank(), control.num_ranks());
    if (mine.ok()) { mine = communicator::refuse_expelled(control); }
    auto rest = options;
    if (mine.ok()) {
      auto const deadline = ballast::detail::deadline_after(options.timeout);
      wires_.abort(options.timeout / 4);
      await_aborted_kernels(ballast::detail::deadline_after(options.timeout / 4));
      mine = leave_busy_lane();
      rest.timeout = ballast::detail::time_until(deadline);
    }
    return communicator::create_if(std::move(mine), control, wires_, rest);
  }

  /// Open a batch; see `data_transport`. Waits for nobody, and launches nothing.
  ///
  /// @return `errc::busy` while a batch is open. `errc::transport_failed` for a rank that there is not, for a message
  ///         whose sender gives another size, and, for a batch with bytes, while the communicator is given up or where
  ///         kernels of a batch that was given up may still write. `cudart::category()` without memory for what is to
  ///         be received in other pieces than it is sent in.
  /// @complexity O(n log n) for n segments. Allocates device memory for such messages, unless it has as much already.
  /// @throws std::bad_alloc
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    cudart::detail::capture_guard const guard;
    if (open_) { return already_open(); }
    for (auto const& send : sends) {
      if (!is_rank(send.peer)) { return bad_peer(send.peer); }
    }
    for (auto const& receive : receives) {
      if (!is_rank(receive.peer)) { return bad_peer(receive.peer); }
    }
    reset();
    is_empty_ = !has_bytes(sends) && !has_bytes(receives);
    if (!is_empty_) {
      if (wires_.is_lost()) { return given_up(); }
      if (auto result = check_retired(receives); !result.ok()) { return result; }
      list_parts(sends, receives);
      if (!failure_.ok()) { return std::exchange(failure_, {}); }
    }
    open_ = true;
    waiting_ = options_.allow_sm_overlap;
    return {};
  }

  /// Whether kernels of a batch that was given up may still write where a batch of another transport receives. Asks the
  /// device, and does not wait for it.
  [[nodiscard]] bool may_write(std::span<incoming_message const> receives) {
    cudart::detail::capture_guard const guard;
    std::erase_if(retired_, [](auto const& each) { return each->is_idle(); });
    auto const meets = [&receives](auto const& each) { return each->overlaps(receives); };
    return std::any_of(retired_.begin(), retired_.end(), meets) || (meets(lane_) && !lane_->is_idle());
  }

  /// Make progress; see `data_transport` and `transport_options::allow_sm_overlap`. Launches as many groups as go
  /// without waiting; but with a blocking communicator, NCCL's launch waits for a peer that this rank has not talked to
  /// before (`warm_up`).
  [[nodiscard]] transfer_state poll() {
    cudart::detail::capture_guard const guard;
    return open_ ? progress() : transfer_state::idle;
  }

  /// The host is inside a wait for this batch from now on: NCCL's kernels may start, behind what the compute stream
  /// holds now. For those who wait for several transports at once, and so only poll each. Does not wait itself; a
  /// failure is told by `poll` and `wait`.
  void enter_wait() {
    cudart::detail::capture_guard const guard;
    if (!open_ || std::exchange(waiting_, true) || is_empty_) { return; }
    if (auto result = follow_compute(); failure_.ok()) { failure_ = std::move(result); }
  }

  /// Make progress until the batch ends; see `data_transport`. Lasts no longer than `timeout` in all: kernels that have
  /// not ended by then are left to themselves.
  ///
  /// @param timeout  nanoseconds; 0 ends the batch without beginning anything.
  /// @return success also where no batch is open, and for one without bytes. `errc::deadline_exceeded`, naming the peer
  ///         where there is only one; `nccl::category()`, `cudart::category()`. Each of them gives the communicator up:
  ///         `repair` is due, on all ranks.
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    if (!open_) { return {}; }
    cudart::detail::capture_guard const guard;
    auto const deadline = ballast::detail::deadline_after(timeout);
    // What is only to be ended begins nothing any more.
    if (timeout > 0) { enter_wait(); }
    if (timeout <= 0 && has_begun_nothing()) {
      if (failure_.ok()) { failure_ = late(); }
    } else {
      progress_until(deadline);
    }
    return finish(deadline);
  }

  /// With `timed`, from where the batch begins on the stream to the last byte, NCCL's launches and waits for peers
  /// included; see `receive_timer`.
  [[nodiscard]] nanoseconds_t receive_time() const noexcept { return receive_time_; }

private:
  /// One call of NCCL: a run of bytes to or from a peer.
  struct part {
    index_t group = 0;
    index_t peer = 0;
    index_t round = 0;
    std::uint64_t tag = 0;
    std::size_t position = 0;  ///< among the message's parts
    std::byte* data = nullptr;
    std::size_t size = 0;
    bool sends = false;
  };

  [[nodiscard]] bool is_rank(index_t other) const noexcept { return other >= 0 && other < num_ranks_; }
  [[nodiscard]] status bad_peer(index_t peer) const {
    return {errc::transport_failed, ballast::detail::concat("nccl: there is no rank ", peer, " among ", num_ranks_),
            rank_};
  }

  [[nodiscard]] static status already_open() { return {errc::busy, "nccl: a batch is already open"}; }
  [[nodiscard]] static status given_up() {
    return {errc::transport_failed,
            "nccl: the communicator was given up after a failure; repair (reconnect) on all ranks first"};
  }
  [[nodiscard]] static status validate_communicator(communicator_options const& options) {
    return nccl::validate(options);
  }
  [[nodiscard]] status check_group(index_t rank, index_t num_ranks) const {
    if (rank == rank_ && num_ranks == num_ranks_) { return {}; }
    return {errc::invalid_option,
            ballast::detail::concat("nccl: rank ", rank_, " of ", num_ranks_, " cannot be repaired by rank ", rank,
                                    " of a control plane of ", num_ranks, ": give the control plane of its ranks")};
  }

  /// A batch that was given up may still be on its way into memory.
  [[nodiscard]] status check_retired(std::span<incoming_message const> receives) {
    std::erase_if(retired_, [](auto const& each) { return each->is_idle(); });
    for (auto const& each : retired_) {
      if (!each->overlaps(receives)) { continue; }
      return {errc::transport_failed,
              ballast::detail::concat("nccl: rank ", rank_,
                                      " gave a batch up whose kernels may still write where this one receives: end the "
                                      "communicator that it was lent (ncclCommAbort by its owner, then "
                                      "lender_has_ended here), or try again later")};
    }
    return {};
  }
  /// Until the kernels have ended, or the deadline.
  void await_idle_lane(nanoseconds_t deadline) const {
    static_cast<void>(ballast::detail::poll_until(deadline, [this] { return lane_->is_idle(); }));
  }
  /// Kernels of a communicator that we have aborted end soon.
  void await_aborted_kernels(nanoseconds_t deadline) const {
    if (lane_->ending != nullptr) { await_idle_lane(deadline); }
  }
  /// Take another stream where this one's kernels have not ended.
  [[nodiscard]] status leave_busy_lane() {
    if (lane_->is_idle()) {
      lane_->targets.clear();
      lane_->ending = nullptr;
      lane_->child = nullptr;
      return {};
    }
    retired_.reserve(retired_.size() + 1);
    std::shared_ptr<detail::lane> fresh;
    if (auto result = detail::lane::create(fresh); !result.ok()) { return result; }
    retired_.push_back(std::exchange(lane_, std::move(fresh)));
    return {};
  }

  void reset() {
    parts_.clear();
    targets_.clear();
    unpack_.clear();
    failure_ = {};
    next_ = 0;
    launched_ = false;
    is_empty_ = false;
  }

  /// Have every peer called on another thread, because a blocking communicator waits for it there.
  [[nodiscard]] status exchange_first(nanoseconds_t deadline) {
    auto const exchange =
        std::make_shared<detail::first_exchange>(wires_.get(), lane_, lane_->pack.data(), rank_, num_ranks_);
    if (auto result = detail::errand::begin(exchange, options_.communicator.calls); !result.ok()) {
      exchange->cancel();
      return result;
    }
    if (exchange->wait_until(deadline)) { return to_status(exchange->result(), "the first exchange with every peer"); }
    return {errc::deadline_exceeded,
            ballast::detail::concat("nccl: rank ", rank_, " could not connect to every peer in time")};
  }

  /// Cut the batch into NCCL's calls, in an order that both ends of each pair share.
  void list_parts(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    for (auto const& send : sends) {
      for (std::size_t i = 0; i < send.segments.size(); ++i) {
        add_part(send.peer, send.round, send.tag, i, send.segments[i].data, send.segments[i].size, true);
      }
    }
    std::size_t packed = 0;
    for (auto const& receive : receives) {
      if (!is_cut_alike(receive)) { packed += align(ballast::detail::total_size(receive.source)); }
    }
    failure_ = lane_->reserve(packed);
    if (!failure_.ok()) { return; }
    packed = 0;
    for (auto const& receive : receives) {
      targets_.insert(targets_.end(), receive.segments.begin(), receive.segments.end());
      if (is_cut_alike(receive)) {
        for (std::size_t i = 0; i < receive.segments.size(); ++i) {
          add_part(receive.peer, receive.round, receive.tag, i, receive.segments[i].data, receive.segments[i].size,
                   false);
        }
      } else {
        receive_packed(receive, lane_->pack.data() + packed);
        packed += align(ballast::detail::total_size(receive.source));
      }
    }
    std::sort(parts_.begin(), parts_.end(), [](part const& a, part const& b) {
      return std::tie(a.group, a.peer, a.sends, a.round, a.tag, a.position) <
             std::tie(b.group, b.peer, b.sends, b.round, b.tag, b.position);
    });
  }

  void add_part(index_t peer, index_t round, std::uint64_t tag, std::size_t position, std::byte* data, std::size_t size,
                bool sends) {
    if (size == 0) { return; }
    parts_.push_back({round / options_.rounds_per_group, peer, round, tag, position, data, size, sends});
  }

  /// NCCL pairs calls, not bytes: both ends must cut a message in the same places, and the sender does not know ours.
  [[nodiscard]] static bool is_cut_alike(incoming_message const& receive) noexcept {
    return receive.source.empty() ||
           std::equal(receive.source.begin(), receive.source.end(), receive.segments.begin(), receive.segments.end(),
                      [](remote_segment const& a, segment const& b) { return a.size == b.size; });
  }

  /// Receive a message side by side, as the sender cuts it, and spread it from there.
  void receive_packed(incoming_message const& receive, std::byte* pack) {
    auto* at = pack;
    for (std::size_t i = 0; i < receive.source.size(); ++i) {
      add_part(receive.peer, receive.round, receive.tag, i, at, receive.source[i].size, false);
      at += receive.source[i].size;
    }
    for (auto const& target : receive.segments) {
      unpack_.add(target.data, pack, target.size);
      pack += target.size;
    }
    if (pack != at) {
      failure_ = {
          errc::transport_failed,
          ballast::detail::concat("nccl: rank ", receive.peer, " gives ", ballast::detail::total_size(receive.source),
                                  " bytes, rank ", rank_, " takes ", ballast::detail::total_size(receive.segments)),
          receive.peer};
    }
  }

  template <class Messages>
  [[nodiscard]] static bool has_bytes(Messages const& messages) noexcept {
    return std::any_of(messages.begin(), messages.end(),
                       [](auto const& each) { return ballast::detail::total_size(each.segments) > 0; });
  }
  [[nodiscard]] static std::size_t align(std::size_t bytes) noexcept { return (bytes + 255) / 256 * 256; }

  [[nodiscard]] status follow_compute() {
    if (options_.compute_stream == nullptr) { return {}; }
    if (auto result = computed_.record(options_.compute_stream); !result.ok()) { return result; }
    auto result = computed_.hold_back(copy_stream());
    return result.ok() ? compute_.gather(copy_stream()) : std::move(result);
  }

  [[nodiscard]] bool has_begun_nothing() const noexcept { return !is_empty_ && !launched_ && next_ == 0; }

  void progress_until(nanoseconds_t deadline) {
    auto const has_ended = [this] { return progress() != transfer_state::pending; };
    if (!ballast::detail::poll_until(deadline, has_ended)) { failure_ = late(); }
  }

  [[nodiscard]] transfer_state progress() {
    if (is_empty_) { return transfer_state::done; }
    if (failure_.ok() && waiting_ && !launched_) { launch(); }
    if (!failure_.ok()) { return transfer_state::failed; }
    if (!launched_) { return transfer_state::pending; }
    if (auto const state = wires_.query(); state != ncclSuccess && state != ncclInProgress) {
      failure_ = to_status(state, "NCCL");
      return transfer_state::failed;
    }
    auto const result = done_.query();
    if (result == cudaErrorNotReady) { return transfer_state::pending; }
    failure_ = cudart::to_status(result, "cudaEventQuery");
    return failure_.ok() ? transfer_state::done : transfer_state::failed;
  }

  /// Launch group after group, as far as that goes without waiting for a peer.
  void launch() {
    while (failure_.ok()) {
      auto const state = wires_.query();
      if (state == ncclInProgress) { return; }
      failure_ = to_status(state, "NCCL");
      if (!failure_.ok()) { return; }
      if (next_ == parts_.size()) {
        failure_ = unpack_.submit(copy_stream());
        if (failure_.ok()) { failure_ = done_.record(copy_stream()); }
        launched_ = true;
        return;
      }
      failure_ = launch_group();
    }
  }

  [[nodiscard]] status launch_group() {
    if (next_ == 0 && options_.timed) {
      if (auto result = begin_.record(copy_stream()); !result.ok()) { return result; }
    }
    if (auto result = to_status(ncclGroupStart(), "ncclGroupStart"); !result.ok()) { return result; }
    status result;
    auto const group = parts_[next_].group;
    for (; next_ < parts_.size() && parts_[next_].group == group && result.ok(); ++next_) {
      auto const& each = parts_[next_];
      result = each.sends ? to_status(ncclSend(each.data, each.size, ncclUint8, each.peer, wires_.get(), copy_stream()),
                                      "ncclSend")
                          : to_status(ncclRecv(each.data, each.size, ncclUint8, each.peer, wires_.get(), copy_stream()),
                                      "ncclRecv");
    }
    auto const ended = to_status(ncclGroupEnd(), "ncclGroupEnd");
    return result.ok() ? ended : result;
  }

  [[nodiscard]] status late() const {
    std::vector<index_t> peers;
    for (auto const& each : parts_) {
      if (each.peer != rank_) { peers.push_back(each.peer); }
    }
    std::sort(peers.begin(), peers.end());
    peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
    std::string names;
    for (auto const peer : peers) { names += ballast::detail::concat(names.empty() ? "rank " : ", rank ", peer); }
    return {errc::deadline_exceeded,
            ballast::detail::concat("nccl: rank ", rank_, " did not finish in time; it exchanges with ",
                                    parts_.empty()  ? "all ranks"
                                    : names.empty() ? "nobody"
                                                    : names),
            peers.size() == 1 ? peers.front() : status::no_rank};
  }

  /// End the batch, in what is left of its time.
  [[nodiscard]] status finish(nanoseconds_t deadline) {
    open_ = false;
    if (!failure_.ok()) {
      give_up(deadline);
    } else if (options_.timed) {
      bool const on_device = !is_empty_ && !parts_.empty();
      receive_time_ = on_device ? std::max<nanoseconds_t>(begin_.elapsed_until(done_), 0) : 0;
    }
    return std::exchange(failure_, {});
  }
  /// Groups that wait for a peer are launched when it comes, unless the communicator has ended by then.
  void note_launchers() noexcept {
    if (wires_.is_lost()) { return; }
    if (wires_.owned_ && wires_.may_abort_) {
      lane_->ending = wires_.ending_;
    } else if (wires_.query() == ncclInProgress) {
      lane_->child = wires_.owned_ ? wires_.get() : nullptr;
      lane_->is_lent = !wires_.owned_;
    }
  }
  /// Kernels of a communicator that we abort end soon, those of another perhaps never.
  void give_up(nanoseconds_t deadline) {
    note_launchers();
    wires_.abort(ballast::detail::time_until(deadline));
    await_idle_lane(deadline);
    lane_->targets = std::exchange(targets_, {});
  }

  transfer_turns turns_;
  transport_options options_;
  std::shared_ptr<detail::lane> lane_;
  std::vector<std::shared_ptr<detail::lane>> retired_;  // their kernels have not ended
  cudart::event begin_;                                 // of a timed batch
  cudart::event done_;
  cudart::event computed_;
  cudart::compute_streams compute_;
  index_t rank_ = 0;
  index_t num_ranks_ = 1;
  bool open_ = false;
  bool is_empty_ = false;  // nothing for NCCL to do
  bool waiting_ = false;   // launches are allowed
  bool launched_ = false;  // everything is on the stream, and `done_` behind it
  std::vector<part> parts_;
  std::vector<segment> targets_;
  std::size_t next_ = 0;  // first part that is not launched
  cudart::copy_batch unpack_;
  nanoseconds_t receive_time_ = not_measured;
  status failure_;
  communicator wires_;  // last: its kernels end before their memory and their stream do
};

static_assert(message_transport<transport> && shared_transport<transport>);
static_assert(receive_timer<transport>);
static_assert(ballast::detail::names_options<transport>);

}  // namespace nccl
BALLAST_END_NAMESPACE

#endif
