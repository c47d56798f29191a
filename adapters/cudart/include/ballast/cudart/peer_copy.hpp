// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_PEER_COPY_HPP
#define BALLAST_CUDART_PEER_COPY_HPP

#include <ballast/contract.hpp>
#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/peer_directory.hpp>
#include <ballast/cudart/profiling.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/parts.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/detail/segments.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Options of `peer_copy`.
struct peer_copy_options {
  index_t num_streams = 3;  ///< messages are dealt over that many streams at most
  /// Where it says no, bytes go through the host, between the ranks of one process only (`local_peers`): processes
  /// without peer access cannot open each other's memory, and `expose` says so. Not null.
  peer_access_test can_access = &enable_peer_access;
  std::size_t bounce_bytes = std::size_t{4} << 20;  ///< pinned memory of each stream for copies through the host
  /// How long copies from the first peers wait for the last, to go out together. Longer where processes share a device:
  /// their contexts take turns, and what comes late waits for the next.
  nanoseconds_t gathering = 20'000;
  bool timed = false;  ///< measure batches on the device, see `receive_timer`: an event record for each
};

/// Reads experts out of the peers' memory: a `peer_copier`, with the copy engines and no kernel unless asked for.
///
/// A rank that opens a batch offers its messages to each peer, as a digest of tags and sizes. Where its commits are not
/// done yet, it records an event behind them first, and a peer that expects just these messages orders its copies
/// behind that event: no copy waits for anything that a host has still to do. A batch is over on a rank when its own
/// copies are done and every peer that reads from it has said the same. An offer that nobody expects is never read, and
/// a batch that ends, well or not, takes its offers back. A rank whose batch fails tells the peers that it exchanges
/// with, and theirs fails at once.
///
/// After a failed `wait` copies may still be under way that the device did not finish in time; the status says so. The
/// next batch begins when they are done. The destructor waits a while for them; where they do not end, it leaves
/// what they need in place for the life of the process.
///
/// @tparam Directory  where the peers' memory is: `local_peers::member`, `ipc_peers`.
/// @tparam Copies     what copies: `copy_batch`; or `kernel_copies`, which takes multiprocessors but costs the host the
///                    same few microseconds for one copy and for a hundred; or `sized_copies`, where experts have small
///                    tensors beside large ones.
/// @threads one thread at a time; the rank's device is current there.
/// @lifetime the directory's group and all registered memory must outlive it.
template <peer_directory Directory, class Copies = copy_batch>
class peer_copy {
public:
  /// @param directory  of this rank; see `peer_directory`.
  /// @throws std::system_error (`errc::invalid_option`, `cudart::category()`)
  explicit peer_copy(Directory directory, peer_copy_options options = {})
      : directory_{std::move(directory)}, options_{options} {
    validate(options).or_throw();
    lanes_.resize(static_cast<std::size_t>(options.num_streams));
    for (auto& lane : lanes_) {
      lane.copies = stream::create();
      lane.done = event::create(options.timed ? cudaEventDefault : cudaEventDisableTiming);
      if constexpr (requires { lane.direct.prefer_copy_engines(); }) { lane.direct.prefer_copy_engines(); }
    }
    if (options.timed) {
      begin_ = event::create(cudaEventDefault);
      receive_time_ = 0;
    }
    peers_.resize(static_cast<std::size_t>(directory_.num_ranks()));
    access_.resize(peers_.size(), access::unknown);
  }
  peer_copy(peer_copy&& other) = default;
  peer_copy& operator=(peer_copy&&) = delete;
  ~peer_copy() {
    if (lanes_.empty()) { return; }  // moved from
    detail::capture_guard const guard;
    if (open_) { static_cast<void>(end({errc::transport_failed, "peer_copy: the transport is gone"}, 0)); }
    if (await_copies(ballast::detail::deadline_after(closing_patience))) { return; }
    for (auto& lane : lanes_) { lane.bounce.abandon(); }
    directory_.leave_mapped();
  }

  /// Say whether the options make sense, naming the first value that does not. @return `errc::invalid_option`
  [[nodiscard]] static status validate(peer_copy_options const& options) {
    auto const refuse = [](auto const&... parts) {
      return status{errc::invalid_option, ballast::detail::concat("peer_copy: ", parts...)};
    };
    if (options.num_streams < 1) {
      return refuse("number of streams is ", options.num_streams, ", must be at least 1");
    }
    if (options.bounce_bytes == 0) { return refuse("0 bounce bytes, must be at least 1"); }
    if (options.gathering < 0) { return refuse("gathering is ", options.gathering, " ns, must not be negative"); }
    if (options.can_access == nullptr) { return refuse("no test for the access of peers"); }
    return {};
  }

  [[nodiscard]] index_t rank() const noexcept { return directory_.rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return directory_.num_ranks(); }
  /// The stream that a store orders behind its commits.
  [[nodiscard]] cudaStream_t copy_stream() const noexcept { return lanes_.front().copies.get(); }
  /// The same for a store that asks; see `device_store::connect`.
  template <class Visit>
  void for_each_copy_stream(Visit visit) const {
    visit(copy_stream());
  }

  /// Where the peers' memory is.
  [[nodiscard]] Directory const& directory() const noexcept { return directory_; }

  /// Make a set of this rank's regions readable by its peers; see `peer_copier`. A batch may be open. Who calls it
  /// together, how long it waits and how it fails, the directory says: `local_peers::member::expose` waits for nobody,
  /// `ipc_peers::expose` is a collective with a timeout.
  [[nodiscard]] status expose(std::span<segment const> regions, std::uint32_t first) {
    detail::capture_guard const guard;
    return directory_.expose(regions, first);
  }
  /// The same with the next numbers that are free on this rank, for ranks that expose alike.
  [[nodiscard]] status expose(std::span<segment const> regions) { return expose(regions, next_region()); }
  /// Forget a set, on this rank alone; see `peer_copier`. What the peers' memory takes here is given back when no copy
  /// is under way: now, or with a later batch.
  void retract(std::uint32_t first) noexcept {
    detail::capture_guard const guard;
    directory_.retract(first);
    if (!open_ && !is_copying()) { directory_.close_retracted(); }
  }
  [[nodiscard]] std::uint32_t next_region() const noexcept { return directory_.next_region(); }

  /// Take costs of first use out of the first batch: access to the peers' memory, kernels, buffers. Call it on all
  /// ranks after `expose`; it waits for none of them, but may wait for the device.
  ///
  /// @return what `expose` could not know yet: a peer's device cannot reach this rank's memory
  ///         (`errc::invalid_weights`, with the remedy). `cudart::category()`
  [[nodiscard]] status warm_up() {
    detail::capture_guard const guard;
    if (auto result = directory_.check_reach(); !result.ok()) { return result; }
    bool staged = false;
    for (index_t peer = 0; peer < num_ranks() && directory_.is_connected(); ++peer) {
      if (peer != rank()) { staged = !may_read(peer) || staged; }
    }
    for (auto& lane : lanes_) {
      if (auto result = ballast::detail::warm_up(lane.direct); !result.ok()) { return result; }
      if (!staged) { continue; }
      if (auto result = lane.bounce.allocate(options_.bounce_bytes); !result.ok()) { return result; }
    }
    return {};
  }

  /// See `data_transport`. They are the rank's, whatever transports it has had on this directory.
  [[nodiscard]] transfer_turns& turns() noexcept { return directory_.turns(); }

  /// Open a batch; see `data_transport`. Waits for nobody, and offers or enqueues what it can at once.
  ///
  /// @return `errc::busy` while a batch is open; `errc::transport_failed` for a peer that is this rank or none, before
  ///         the memory of all was exposed, and for a region that this rank does not expose itself: of that the peers
  ///         of the batch are told, and theirs fails at once.
  /// @complexity O(n log n) for n messages; a few calls of the driver.
  /// @throws std::bad_alloc
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    if (open_) { return {errc::busy, "peer_copy: a batch is already open"}; }
    detail::capture_guard const guard;
    if (auto result = validate_peers(sends, receives); !result.ok()) { return result; }
    sends_ = sends;
    receives_ = receives;
    sign_messages();
    told_peers_ = false;
    if (auto result = refuse(receives); !result.ok()) {
      decline();
      forget_messages();
      return result;
    }
    begin_batch();
    return {};
  }

  /// Whether copies of a batch that was given up may still write to this rank's memory; for those who receive there by
  /// another transport. Asks the device, and does not wait for it.
  [[nodiscard]] bool may_write(std::span<incoming_message const> /*receives*/) const {
    detail::capture_guard const guard;
    return !unfinished_.ok() && is_copying();
  }

  /// Make progress; see `data_transport`. Waits for nobody. Every millisecond it asks whether a peer has died that this
  /// batch still needs.
  [[nodiscard]] transfer_state poll() {
    if (!open_) { return transfer_state::idle; }
    detail::capture_guard const guard;
    return progress();
  }

  /// Make progress until the batch ends; see `data_transport`. After a failure it waits for copies under way, but never
  /// longer than `timeout` in all.
  ///
  /// @param timeout  nanoseconds.
  /// @return success also where no batch is open. `errc::deadline_exceeded` naming a peer that did not offer or take
  ///         what it should, or this rank whose copies did not end; `errc::peer_lost` naming one that is dead;
  ///         `errc::transport_failed` for a peer that gave the batch up, for bytes that are in no region of its, or
  ///         another number of them, and, whatever failed first, when copies are still under way; `cudart::category()`
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    if (!open_) { return {}; }
    profiler_range const range{"ballast receive"};
    detail::capture_guard const guard;
    auto const deadline = ballast::detail::deadline_after(timeout);
    auto const has_ended = [this] { return progress() != transfer_state::pending; };
    if (!ballast::detail::poll_until(deadline, has_ended)) { failure_ = late(); }
    return end(std::exchange(failure_, {}), deadline);
  }

  /// With `timed`, from the first copy on any stream to the end of the last; see `receive_timer`.
  [[nodiscard]] nanoseconds_t receive_time() const noexcept { return receive_time_; }

private:
  struct copy_lane {
    stream copies;
    event done;
    Copies direct;
    copy_batch staged;
    pinned_buffer bounce;
    bool used = false;    // in this batch, or in the last while none is open
    bool marked = false;  // `done` is behind all of its copies
  };
  /// One peer in the open batch.
  struct peer_progress {
    std::uint64_t sent = 0;      ///< digest of what it is to take from us; 0: nothing
    std::uint64_t expected = 0;  ///< digest of what we are to take from it
    bool offers = false;         ///< its offer has been seen
    bool direct = true;          ///< copies need not go through the host
  };
  enum class access : unsigned char { unknown, direct, staged };
  [[nodiscard]] peer_progress& at(index_t peer) { return peers_[static_cast<std::size_t>(peer)]; }
  [[nodiscard]] peer_progress const& at(index_t peer) const { return peers_[static_cast<std::size_t>(peer)]; }

  [[nodiscard]] bool is_peer(index_t other) const noexcept {
    return other >= 0 && other < num_ranks() && other != rank();
  }
  [[nodiscard]] status bad_peer(char const* what, index_t peer) const {
    return {errc::transport_failed,
            ballast::detail::concat("peer_copy: rank ", rank(), " cannot ", what, " rank ", peer), rank()};
  }
  [[nodiscard]] status validate_peers(std::span<outgoing_message const> sends,
                                      std::span<incoming_message const> receives) const {
    for (auto const& send : sends) {
      if (!is_peer(send.peer)) { return bad_peer("send to", send.peer); }
    }
    for (auto const& receive : receives) {
      if (!is_peer(receive.peer)) { return bad_peer("receive from", receive.peer); }
    }
    if (!directory_.is_connected() && !(sends.empty() && receives.empty())) {
      return {
          errc::transport_failed,
          ballast::detail::concat("peer_copy: rank ", rank(), " has not exposed its memory together with its peers"),
          rank()};
    }
    return {};
  }
  /// Why this rank cannot take part in a batch that its peers may be waiting in.
  [[nodiscard]] status refuse(std::span<incoming_message const> receives) const {
    for (auto const& receive : receives) {
      for (auto const& source : receive.source) {
        if (directory_.exposes(source.region)) { continue; }
        return {errc::transport_failed,
                ballast::detail::concat("peer_copy: rank ", rank(), " exposes no region ", source.region,
                                        ", and so reads none of rank ", receive.peer),
                rank()};
      }
    }
    return {};
  }

  void begin_batch() {
    open_ = true;
    offered_ = false;
    waiting_.resize(receives_.size());
    std::iota(waiting_.begin(), waiting_.end(), std::size_t{0});
    next_look_ = ballast::detail::now() + look_interval;
    static_cast<void>(progress());
  }
  /// Offer what this rank sends, once no copy of a batch before writes to its memory any more.
  void offer() {
    offered_ = true;
    unfinished_ = {};
    directory_.close_retracted();
    for (auto& lane : lanes_) {
      lane.used = false;
      // Of a batch that ended by an exception.
      lane.direct.clear();
      lane.staged.clear();
    }
    next_submit_ = ballast::detail::now() + options_.gathering;
    failure_ = mark_commits();
    if (!failure_.ok()) { return; }
    for (auto const& send : sends_) {
      auto const offer = at(send.peer).sent + (settled_ ? 0 : 1);
      directory_.board(rank(), send.peer).offered.store(offer, std::memory_order_release);
    }
  }
  /// Take the offers back, and after a failure let what is under way finish while there is time.
  [[nodiscard]] status end(status failure, nanoseconds_t deadline) {
    open_ = false;
    for (auto const& send : sends_) { directory_.board(rank(), send.peer).offered.store(0, std::memory_order_release); }
    if (failure.ok()) {
      measure();
    } else {
      decline();
      if (!await_copies(deadline) && offered_) {
        unfinished_ = {errc::transport_failed,
                       ballast::detail::concat("peer_copy: copies of rank ", rank(),
                                               " have not finished after: ", failure.message()),
                       failure.rank()};
        failure = unfinished_;
      }
    }
    forget_messages();
    return failure;
  }
  /// Tell the peers of the batch that it is given up.
  void decline() {
    for (auto const& send : sends_) {
      directory_.board(rank(), send.peer).withdrawn.store(at(send.peer).sent, std::memory_order_release);
    }
    if (told_peers_) { return; }
    for (auto const& receive : receives_) {
      directory_.board(receive.peer, rank()).declined.store(at(receive.peer).expected, std::memory_order_release);
    }
  }
  void forget_messages() noexcept {
    sends_ = {};
    receives_ = {};
  }

  /// Find out whether this rank's commits are done; if not, put the event behind them.
  [[nodiscard]] status mark_commits() {
    auto const state = lanes_.front().copies.query();
    settled_ = state == cudaSuccess;
    if (settled_) { return {}; }
    if (state != cudaErrorNotReady) { return to_status(state, "cudaStreamQuery"); }
    return directory_.readable(rank()).record(copy_stream());
  }

  [[nodiscard]] transfer_state progress() {
    if (!offered_ && (unfinished_.ok() || !is_copying())) { offer(); }
    if (failure_.ok() && offered_ && !waiting_.empty()) { enqueue_ready(); }
    if (failure_.ok()) { failure_ = trouble(); }
    if (!failure_.ok()) { return transfer_state::failed; }
    if (!offered_) { return transfer_state::pending; }
    if (!told_peers_ && (!waiting_.empty() || !copies_done())) {
      return failure_.ok() ? transfer_state::pending : transfer_state::failed;
    }
    if (!told_peers_) {
      for (auto const& receive : receives_) {
        directory_.board(receive.peer, rank()).taken.store(at(receive.peer).expected, std::memory_order_release);
      }
      told_peers_ = true;
    }
    return readers_finished() ? transfer_state::done : transfer_state::pending;
  }

  /// Enqueue the copies from every peer whose offer is here: all at once where the peers come together, because a call
  /// costs as much as several copies, but without waiting long for the last.
  void enqueue_ready() {
    bool all = true;
    for (auto const i : waiting_) { all = has_offered(receives_[i].peer) && all; }
    if (!failure_.ok()) { return; }
    auto const now = ballast::detail::now();
    if (!all && now < next_submit_) { return; }
    next_submit_ = now + options_.gathering;
    auto const is_offered = [this](std::size_t i) { return at(receives_[i].peer).offers; };
    for (auto const i : waiting_) {
      if (failure_.ok() && is_offered(i)) { collect(receives_[i], lane_of(i)); }
    }
    std::erase_if(waiting_, is_offered);
    for (auto& lane : lanes_) {
      if (failure_.ok()) { submit(lane); }
    }
    next_query_ = ballast::detail::now() + query_interval;
    if (failure_.ok()) { return; }
    for (auto& lane : lanes_) {
      lane.direct.clear();
      lane.staged.clear();
    }
  }

  /// A call for few copies costs as much as the copies: small batches take one stream.
  [[nodiscard]] copy_lane& lane_of(std::size_t message) {
    constexpr std::size_t worth_a_stream = 3;
    auto const useful = std::clamp<std::size_t>(receives_.size() / worth_a_stream, 1, lanes_.size());
    return lanes_[message % useful];
  }

  /// Whether a peer offers what we expect. When it first does, all our streams are ordered behind its commits.
  [[nodiscard]] bool has_offered(index_t peer) {
    auto& other = at(peer);
    if (other.offers) { return true; }
    auto const& board = directory_.board(peer, rank());
    auto const offer = board.offered.load(std::memory_order_acquire);
    if ((offer & ~std::uint64_t{1}) != other.expected) {
      if (board.withdrawn.load(std::memory_order_acquire) == other.expected) { failure_ = given_up(peer); }
      return false;
    }
    other.offers = true;
    other.direct = may_read(peer);
    auto const& readable = directory_.readable(peer);
    if ((offer & 1) == 0 || readable.query() == cudaSuccess) { return true; }
    for (auto& lane : lanes_) {
      if (failure_.ok()) { failure_ = readable.hold_back(lane.copies.get()); }
    }
    return failure_.ok();
  }

  /// Asked once for each peer: switching access on takes the driver long.
  [[nodiscard]] bool may_read(index_t peer) {
    auto& known = access_[static_cast<std::size_t>(peer)];
    if (known == access::unknown) {
      known = options_.can_access(directory_.device(peer), directory_.device(rank())) ? access::direct : access::staged;
    }
    return known == access::direct;
  }

  /// Digest what goes to and comes from each peer: independent of order, and a message listed twice counts once.
  void sign_messages() {
    std::fill(peers_.begin(), peers_.end(), peer_progress{});
    sign(sends_, &peer_progress::sent,
         [](outgoing_message const& send) { return ballast::detail::total_size(send.segments); });
    sign(receives_, &peer_progress::expected,
         [](incoming_message const& receive) { return ballast::detail::total_size(receive.segments); });
  }
  template <class Message, class SizeOf>
  void sign(std::span<Message const> messages, std::uint64_t peer_progress::* to, SizeOf size_of) {
    signatures_.clear();
    for (auto const& message : messages) {
      signatures_.push_back({message.peer, digest{}.add(message.tag).add(size_of(message)).value()});
    }
    std::sort(signatures_.begin(), signatures_.end());
    auto const end = std::unique(signatures_.begin(), signatures_.end());
    for (auto signature = signatures_.begin(); signature != end; ++signature) {
      at(signature->first).*to += signature->second;
    }
    for (auto const& message : messages) {
      auto& sum = at(message.peer).*to;
      sum = std::max<std::uint64_t>(sum & ~std::uint64_t{1}, 2);
    }
  }

  void collect(incoming_message const& receive, copy_lane& lane) {
    if (at(receive.peer).direct) {
      collect(receive, lane.direct);
    } else {
      collect(receive, lane.staged);
    }
  }
  template <class Batch>
  void collect(incoming_message const& receive, Batch& copies) {
    ballast::detail::segment_cursor to;
    for (auto const& source : receive.source) {
      auto const region = directory_.region(receive.peer, source.region);
      if (region.data == nullptr) {
        failure_ = {errc::transport_failed,
                    ballast::detail::concat("peer_copy: rank ", receive.peer, " exposes no region ", source.region),
                    receive.peer};
        return;
      }
      if (source.offset > region.size || source.size > region.size - source.offset) {
        failure_ = {errc::transport_failed,
                    ballast::detail::concat("peer_copy: bytes [", source.offset, ", ", source.offset + source.size,
                                            ") leave region ", source.region, " of rank ", receive.peer, ", which has ",
                                            region.size),
                    receive.peer};
        return;
      }
      std::byte const* from = region.data + source.offset;
      to.advance(receive.segments, source.size,
                 [&copies, &from](segment const& target, std::size_t at, std::size_t run) {
                   copies.add(target.data + at, from, run);
                   from += run;
                 });
    }
    refuse_other_size(receive);
  }

  void refuse_other_size(incoming_message const& receive) {
    if (ballast::detail::total_size(receive.source) != ballast::detail::total_size(receive.segments)) {
      failure_ = {errc::transport_failed,
                  ballast::detail::concat("peer_copy: rank ", receive.peer, " gives ",
                                          ballast::detail::total_size(receive.source), " bytes, rank ", rank(),
                                          " takes ", ballast::detail::total_size(receive.segments)),
                  receive.peer};
    }
  }

  void submit(copy_lane& lane) {
    if (lane.direct.empty() && lane.staged.empty()) { return; }
    auto const on = lane.copies.get();
    // Staging is free for new bytes only behind this rank's own commits, which the first stream is ordered behind.
    if (!settled_ && !lane.used && &lane != &lanes_.front()) { failure_ = directory_.readable(rank()).hold_back(on); }
    if (failure_.ok()) { failure_ = mark_begin(on); }
    if (failure_.ok()) { failure_ = lane.direct.submit(on); }
    if (failure_.ok() && !lane.staged.empty()) {
      failure_ = lane.bounce.allocate(options_.bounce_bytes);
      if (failure_.ok()) { failure_ = lane.staged.submit_through(lane.bounce.bytes(), on); }
    }
    lane.used = true;
    lane.marked = false;
    if (failure_.ok()) { failure_ = lane.done.record(on); }
    lane.marked = failure_.ok();
  }

  /// Let the measurement of a batch begin with its first copies.
  [[nodiscard]] status mark_begin(cudaStream_t on) const {
    auto const is_used = [](copy_lane const& lane) { return lane.used; };
    return options_.timed && std::none_of(lanes_.begin(), lanes_.end(), is_used) ? begin_.record(on) : status{};
  }
  /// The device is done with the copies.
  void measure() noexcept {
    if (!options_.timed) { return; }
    receive_time_ = 0;
    for (auto const& lane : lanes_) {
      if (lane.used) { receive_time_ = std::max(receive_time_, begin_.elapsed_until(lane.done)); }
    }
  }

  [[nodiscard]] bool copies_done() {
    auto const now = ballast::detail::now();
    if (now < next_query_) { return false; }
    next_query_ = now + query_interval;
    for (auto const& lane : lanes_) {
      if (!lane.used) { continue; }
      auto const result = lane.done.query();
      if (result == cudaErrorNotReady) { return false; }
      if (result != cudaSuccess) {
        failure_ = to_status(result, "cudaEventQuery");
        return false;
      }
    }
    return true;
  }

  [[nodiscard]] bool has_taken(index_t peer) const {
    return directory_.board(rank(), peer).taken.load(std::memory_order_acquire) == at(peer).sent;
  }
  [[nodiscard]] bool readers_finished() const {
    return std::all_of(sends_.begin(), sends_.end(),
                       [this](outgoing_message const& send) { return has_taken(send.peer); });
  }

  [[nodiscard]] status given_up(index_t peer) const {
    return {
        errc::transport_failed,
        ballast::detail::concat("peer_copy: rank ", peer, " gave up the batch that rank ", rank(), " shares with it"),
        peer};
  }
  /// A peer that still has to take something has said that it will not, or is dead. Of the latter peers are asked now
  /// and then.
  [[nodiscard]] status trouble() {
    for (auto const& send : sends_) {
      auto const& board = directory_.board(rank(), send.peer);
      if (board.declined.load(std::memory_order_acquire) == at(send.peer).sent && !has_taken(send.peer)) {
        return given_up(send.peer);
      }
    }
    auto const now = ballast::detail::now();
    if (now < next_look_) { return {}; }
    next_look_ = now + look_interval;
    // What a peer has said before it died counts: it is looked for once more.
    for (auto const i : waiting_) {
      auto const peer = receives_[i].peer;
      if (auto result = directory_.peer_trouble(peer); !result.ok() && !has_offered(peer)) { return result; }
    }
    for (auto const& send : sends_) {
      if (has_taken(send.peer)) { continue; }
      if (auto result = directory_.peer_trouble(send.peer); !result.ok() && !has_taken(send.peer)) { return result; }
    }
    return failure_;
  }

  [[nodiscard]] status late() const {
    if (!offered_) { return unfinished_; }
    auto const blame = [](index_t who, auto const&... parts) {
      return status{errc::deadline_exceeded, ballast::detail::concat("peer_copy: ", parts...), who};
    };
    if (!waiting_.empty()) {
      auto const peer = receives_[waiting_.front()].peer;
      return blame(peer, "rank ", peer, " did not offer what rank ", rank(), " expects in time");
    }
    for (auto const& send : sends_) {
      if (told_peers_ && !has_taken(send.peer)) {
        return blame(send.peer, "rank ", send.peer, " did not take what rank ", rank(), " sends in time");
      }
    }
    return blame(rank(), "the copies of rank ", rank(), " did not finish in time");
  }

  /// Whether copies of the last batch are still under way.
  [[nodiscard]] bool is_copying() const noexcept {
    return std::any_of(lanes_.begin(), lanes_.end(), [](copy_lane const& lane) {
      // The stream may be held back behind commits by now, and so tells about the copies only where the event cannot.
      return lane.used && (lane.marked ? lane.done.query() : lane.copies.query()) == cudaErrorNotReady;
    });
  }
  /// Let copies of the last batch finish: they write to this rank's memory. @return whether none is under way
  [[nodiscard]] bool await_copies(nanoseconds_t deadline) const {
    return ballast::detail::poll_until(deadline, [this] { return !is_copying(); });
  }

  // Threads that ask the driver all the time keep others from enqueuing.
  static constexpr nanoseconds_t query_interval = 10'000;
  static constexpr nanoseconds_t look_interval = 1'000'000;
  static constexpr nanoseconds_t closing_patience = 2'000'000'000;

  Directory directory_;
  peer_copy_options options_;
  nanoseconds_t next_submit_ = 0;
  nanoseconds_t next_query_ = 0;
  nanoseconds_t next_look_ = 0;
  std::vector<copy_lane> lanes_;
  event begin_;  // of a timed batch's first copies
  nanoseconds_t receive_time_ = not_measured;
  std::vector<peer_progress> peers_;
  std::vector<access> access_;
  bool open_ = false;
  bool offered_ = false;  // the batch has begun: no copy of one before is under way
  bool told_peers_ = false;
  bool settled_ = true;  // this rank's commits were done when the batch was opened
  std::span<outgoing_message const> sends_;
  std::span<incoming_message const> receives_;
  std::vector<std::size_t> waiting_;  // messages whose peer has not offered them
  std::vector<std::pair<index_t, std::uint64_t>> signatures_;
  status failure_;
  status unfinished_;  // of a batch that left copies under way
};

static_assert(peer_copier<peer_copy<local_peers::member>> && shared_transport<peer_copy<local_peers::member>>);
static_assert(receive_timer<peer_copy<local_peers::member>>);

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
