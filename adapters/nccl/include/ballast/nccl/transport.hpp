// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_TRANSPORT_HPP
#define BALLAST_NCCL_TRANSPORT_HPP

#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/detail/pause.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/error.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace nccl {

/// Options of `transport`.
struct transport_options {
  /// Runs the forward passes. NCCL's kernels start behind everything that it holds when a batch is waited for.
  cudaStream_t compute_stream = nullptr;
  /// Let NCCL's kernels run beside the engine's. Without it they run inside `wait` only, and `poll` launches nothing:
  /// beside cooperative kernels that take all multiprocessors, ranks that launch the two in different order would wait
  /// for each other for ever. Whoever sets this has seen to that.
  bool allow_sm_overlap = false;
  /// Rounds that are launched as one group, the same on every rank.
  index_t rounds_per_group = 32;
  bool timed = false;  ///< measure batches on the device, see `receive_timer`: an event record for each
};

/// Sends experts with NCCL, two-sided, on a stream of its own.
///
/// The messages of some rounds form a group: at most a send and a receive of each rank a round, so groups have the
/// same bounded shape on every rank. A batch that fails or misses its deadline gives the communicator up; `reconnect`,
/// called by all ranks together, makes the transport usable again.
///
/// @threads one thread at a time, as NCCL requires of a communicator; the rank's device is current there.
class transport {
public:
  /// @param wires  made by us or borrowed.
  /// @throws std::system_error (`errc::invalid_option`, `nccl::category()`, `cudart::category()`)
  explicit transport(communicator wires, transport_options const& options = {})
      : wires_{std::move(wires)},
        options_{options},
        stream_{cudart::stream::create()},
        done_{cudart::event::create(options.timed ? cudaEventDefault : cudaEventDisableTiming)},
        computed_{cudart::event::create()} {
    validate(wires_, options).or_throw();
    if (options.timed) {
      begin_ = cudart::event::create(cudaEventDefault);
      receive_time_ = 0;
    }
    int rank = 0;
    int count = 0;
    to_status(ncclCommUserRank(wires_.get(), &rank), "ncclCommUserRank").or_throw();
    to_status(ncclCommCount(wires_.get(), &count), "ncclCommCount").or_throw();
    rank_ = rank;
    num_ranks_ = count;
  }

  /// Say whether these make a transport, naming the first value that does not.
  [[nodiscard]] static status validate(communicator const& wires, transport_options const& options) {
    if (wires.is_lost()) { return {errc::invalid_option, "nccl: a transport without a communicator"}; }
    if (options.rounds_per_group < 1) {
      return {errc::invalid_option,
              ballast::detail::concat("nccl: rounds per group is ", options.rounds_per_group, ", must be at least 1")};
    }
    return {};
  }

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }
  /// The stream that a store orders behind its commits.
  [[nodiscard]] cudaStream_t copy_stream() const noexcept { return stream_.get(); }
  /// See `data_transport`. Tags and turns outlast the communicator.
  [[nodiscard]] transfer_turns& turns() noexcept { return turns_; }
  /// Options that the ranks must share: the others pair their calls by them.
  template <class Visit>
  void for_each_option(Visit visit) const {
    visit("rounds per group", ballast::detail::option_bits(options_.rounds_per_group));
  }
  /// A batch failed: nothing moves until `reconnect`. For a borrowed communicator, its owner has to act.
  [[nodiscard]] bool is_lost() const noexcept { return wires_.is_lost(); }

  /// Replace the communicator by a new one of our own; called by all ranks together, with no batch open.
  template <control_plane Control>
  [[nodiscard]] status reconnect(Control& control, communicator_options const& options = {}) {
    if (open_) { return {errc::busy, "nccl: a batch is open"}; }
    wires_.abort();
    return communicator::create(control, wires_, options);
  }

  /// Open a batch; see `data_transport`.
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    if (open_) { return {errc::busy, "nccl: a batch is already open"}; }
    if (wires_.is_lost()) {
      return {errc::transport_failed, "nccl: the communicator was given up after a failure; reconnect first"};
    }
    for (auto const& send : sends) {
      if (!is_rank(send.peer)) { return bad_peer(send.peer); }
    }
    for (auto const& receive : receives) {
      if (!is_rank(receive.peer)) { return bad_peer(receive.peer); }
    }
    list_parts(sends, receives);
    if (!failure_.ok()) { return std::exchange(failure_, {}); }
    next_ = 0;
    launched_ = false;
    open_ = true;
    waiting_ = options_.allow_sm_overlap;
    return {};
  }

  /// Make progress; see `data_transport` and `transport_options::allow_sm_overlap`.
  [[nodiscard]] transfer_state poll() { return open_ ? progress() : transfer_state::idle; }

  /// Make progress until the batch ends; see `data_transport`.
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    if (!open_) { return {}; }
    if (!std::exchange(waiting_, true)) { failure_ = follow_compute(); }
    auto const begin = ballast::detail::now();
    auto const deadline = ballast::detail::deadline_after(timeout);
    while (progress() == transfer_state::pending) {
      auto const time = ballast::detail::now();
      if (time >= deadline) {
        failure_ = late();
        break;
      }
      cudart::detail::pause(time - begin);
    }
    open_ = false;
    if (!failure_.ok()) {
      wires_.abort();
      drain(timeout);
    } else if (options_.timed) {
      receive_time_ = parts_.empty() ? 0 : std::max<nanoseconds_t>(begin_.elapsed_until(done_), 0);
    }
    return std::exchange(failure_, {});
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

  /// Cut the batch into NCCL's calls, in an order that both ends of each pair share.
  void list_parts(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    parts_.clear();
    unpack_.clear();
    for (auto const& send : sends) {
      for (std::size_t i = 0; i < send.segments.size(); ++i) {
        add_part(send.peer, send.round, send.tag, i, send.segments[i].data, send.segments[i].size, true);
      }
    }
    std::size_t packed = 0;
    for (auto const& receive : receives) {
      if (!is_cut_alike(receive)) { packed += align(total(receive.source)); }
    }
    failure_ = reserve_pack(packed);
    packed = 0;
    for (auto const& receive : receives) {
      if (is_cut_alike(receive)) {
        for (std::size_t i = 0; i < receive.segments.size(); ++i) {
          add_part(receive.peer, receive.round, receive.tag, i, receive.segments[i].data, receive.segments[i].size,
                   false);
        }
      } else {
        receive_packed(receive, pack_.data() + packed);
        packed += align(total(receive.source));
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
      failure_ = {errc::transport_failed,
                  ballast::detail::concat("nccl: rank ", receive.peer, " gives ", total(receive.source),
                                          " bytes, rank ", rank_, " takes ", total(receive.segments)),
                  receive.peer};
    }
  }

  [[nodiscard]] status reserve_pack(std::size_t bytes) {
    if (bytes <= pack_.size()) { return {}; }
    return pack_.allocate(bytes, stream_.get());
  }

  template <class Parts>
  [[nodiscard]] static std::size_t total(Parts const& parts) noexcept {
    std::size_t bytes = 0;
    for (auto const& each : parts) { bytes += each.size; }
    return bytes;
  }
  [[nodiscard]] static std::size_t align(std::size_t bytes) noexcept { return (bytes + 255) / 256 * 256; }

  [[nodiscard]] status follow_compute() {
    if (options_.compute_stream == nullptr) { return {}; }
    if (auto result = computed_.record(options_.compute_stream); !result.ok()) { return result; }
    return computed_.hold_back(stream_.get());
  }

  [[nodiscard]] transfer_state progress() {
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
        failure_ = unpack_.submit(stream_.get());
        if (failure_.ok()) { failure_ = done_.record(stream_.get()); }
        launched_ = true;
        return;
      }
      failure_ = launch_group();
    }
  }

  [[nodiscard]] status launch_group() {
    if (next_ == 0 && options_.timed) {
      if (auto result = begin_.record(stream_.get()); !result.ok()) { return result; }
    }
    if (auto result = to_status(ncclGroupStart(), "ncclGroupStart"); !result.ok()) { return result; }
    status result;
    auto const group = parts_[next_].group;
    for (; next_ < parts_.size() && parts_[next_].group == group && result.ok(); ++next_) {
      auto const& each = parts_[next_];
      result = each.sends ? to_status(ncclSend(each.data, each.size, ncclUint8, each.peer, wires_.get(), stream_.get()),
                                      "ncclSend")
                          : to_status(ncclRecv(each.data, each.size, ncclUint8, each.peer, wires_.get(), stream_.get()),
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
                                    names.empty() ? "nobody" : names),
            peers.size() == 1 ? peers.front() : status::no_rank};
  }

  /// After a failure: kernels of an aborted communicator end soon, those of a borrowed one perhaps never.
  void drain(nanoseconds_t timeout) const {
    auto const begin = ballast::detail::now();
    auto const deadline = ballast::detail::deadline_after(timeout);
    while (cudaStreamQuery(stream_.get()) == cudaErrorNotReady) {
      auto const time = ballast::detail::now();
      if (time >= deadline) { break; }
      cudart::detail::pause(time - begin);
    }
    static_cast<void>(cudaGetLastError());
  }

  communicator wires_;
  transfer_turns turns_;
  transport_options options_;
  cudart::stream stream_;
  cudart::event begin_;  // of a timed batch
  cudart::event done_;
  cudart::event computed_;
  index_t rank_ = 0;
  index_t num_ranks_ = 1;
  bool open_ = false;
  bool waiting_ = false;   // launches are allowed
  bool launched_ = false;  // everything is on the stream, and `done_` behind it
  std::vector<part> parts_;
  std::size_t next_ = 0;  // first part that is not launched
  cudart::stream_memory pack_;
  cudart::copy_batch unpack_;
  nanoseconds_t receive_time_ = not_measured;
  status failure_;
};

static_assert(message_transport<transport> && shared_transport<transport>);
static_assert(receive_timer<transport>);
static_assert(ballast::detail::names_options<transport>);

}  // namespace nccl
BALLAST_END_NAMESPACE

#endif
