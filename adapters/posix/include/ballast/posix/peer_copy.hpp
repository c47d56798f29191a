// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_PEER_COPY_HPP
#define BALLAST_POSIX_PEER_COPY_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/system_failure.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/detail/peer_map.hpp>
#include <ballast/posix/detail/read_permission.hpp>
#include <ballast/posix/detail/region_sets.hpp>
#include <ballast/posix/detail/segment_layout.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/detail/segments.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>

#include <sys/types.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace posix {

/// Read another process's memory, as `process_vm_readv`: bytes read, or -1 with `errno` set.
using read_peer_function = ::ssize_t (*)(::pid_t peer, ::iovec const* local, unsigned long num_local,
                                         ::iovec const* remote, unsigned long num_remote);

/// The kernel's own `process_vm_readv`.
[[nodiscard]] inline ::ssize_t read_peer(::pid_t peer, ::iovec const* local, unsigned long num_local,
                                         ::iovec const* remote, unsigned long num_remote) {
  return ::process_vm_readv(peer, local, num_local, remote, num_remote, 0);
}

/// Whom this process makes an exception for where the kernel only lets ancestors read a process (Yama). An exception
/// lets them also stop it and write to it. It is taken back when the last `peer_copy` of the process ends.
enum class readers {
  nobody,    ///< bytes go through shared memory there, and are copied twice
  siblings,  ///< if all ranks are children of one process, or of rank 0: that one and its descendants; otherwise nobody
  anybody,   ///< every process of this user
};

/// Options of `peer_copy`. Each rank may have its own.
struct peer_copy_options {
  nanoseconds_t expose_timeout = 30'000'000'000;      ///< for the exchange of addresses
  std::size_t bytes_per_poll = std::size_t{4} << 20;  ///< what one `poll` copies at most, and at least a byte
  readers allow = readers::siblings;  ///< who may read this process; told to the kernel, on construction
  bool map_shared_memory = true;      ///< where a peer's weights lie in shared memory, copy them without the kernel
  read_peer_function read_peer = posix::read_peer;     ///< tests put a refusing kernel here
  set_tracer_function set_tracer = posix::set_tracer;  ///< and here one that takes notes
};

/// Host bytes between the processes of a `process_group`, in one copy: the receiver reads the sender's memory. Where
/// that is a shared mapping, such as a `shared_buffer`, the receiver maps it too and copies at full speed; private
/// memory is read through the kernel (`process_vm_readv`).
///
/// A sender offers its messages in shared memory; a receiver that finds the offer of an expected message reads the
/// bytes and marks the offer taken. A sender whose batch ends takes its offers back, and a receiver that was still
/// reading finds its mark refused, so it never accepts bytes that may have changed under it. Where the kernel refuses
/// the read, the receiver asks for the bytes through two bounce buffers of the pair.
///
/// Several users, such as a target and a draft model, may share a `peer_copy`: each exposes a set of regions of its
/// own, and they take turns. Peers map memory for reading only.
///
/// @par Guarantees
/// A batch ends on every surviving rank by its deadline, or within milliseconds of the death of a rank that it needs.
/// After a failed `wait` this process touches none of the batch's memory. Peers may still read from it for a moment;
/// what they get is discarded.
///
/// @lifetime the group must outlive it; one `peer_copy` per group and process. Its end withdraws what an open batch
/// still offers. In a fork of the process every call fails, and its end is not seen by the peers.
/// @threads that of the group.
class peer_copy {
public:
  /// @param group  that has met; otherwise every call fails.
  /// @throws std::bad_alloc
  explicit peer_copy(process_group& group, peer_copy_options const& options = {}) : group_{&group}, options_{options} {
    options_.bytes_per_poll = std::max<std::size_t>(options.bytes_per_poll, 1);
    is_readable_.assign(static_cast<std::size_t>(num_ranks()), 1);
    traffic_.resize(static_cast<std::size_t>(num_ranks()));
    if (options.allow == readers::nobody || !group.is_member()) { return; }
    auto const tracer =
        options.allow == readers::anybody ? any_tracer : static_cast<unsigned long>(group.common_ancestor());
    if (tracer != 0) { permission_ = {tracer, options.set_tracer}; }
  }
  peer_copy(peer_copy&&) = delete;
  ~peer_copy() {
    if (open_) { close(); }
  }

  [[nodiscard]] index_t rank() const noexcept { return group_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return group_->num_ranks(); }
  [[nodiscard]] transfer_turns& turns() noexcept { return turns_; }

  /// Tell the peers where this rank's regions lie, and map theirs where that is possible; see `peer_copier`. A
  /// collective: it calls the group's `all_gather` twice, within `peer_copy_options::expose_timeout` together.
  ///
  /// @param regions  the n of this rank, as many on every rank; the memory stays where it is until they are retracted.
  /// @param first    number of the first, at least `next_region()` on every rank.
  /// @return `errc::disagreement` naming a rank that exposes another number of regions or another `first`,
  ///         `errc::invalid_option` when numbers would be used twice, both alike on every rank; what `all_gather`
  ///         returns; `errc::stale_membership` in a fork, or when the group has met after this object was made.
  /// @complexity O(R n), and a look at this process's list of mappings for each region of this rank.
  /// @throws std::bad_alloc
  [[nodiscard]] status expose(std::span<segment const> regions, std::uint32_t first) {
    auto const deadline = ballast::detail::deadline_after(options_.expose_timeout);
    if (auto refusal = refuse(); !refusal.ok()) { return refusal; }
    if (auto result = agree_on_numbers(regions.size(), first, deadline); !result.ok()) { return result; }
    auto const mine = describe(regions);
    std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(num_ranks()));
    if (auto result = group_->all_gather(mine, all, ballast::detail::time_until(deadline)); !result.ok()) {
      return result;
    }
    std::vector<detail::peer_region> exposed;
    exposed.reserve(all.size() / words_per_region);
    for (std::size_t at = 0; at < all.size(); at += words_per_region) {
      exposed.push_back(peer_region_of(static_cast<index_t>(at / mine.size()), all.data() + at));
    }
    sets_.add(first, static_cast<std::uint32_t>(regions.size()), std::move(exposed));
    return {};
  }
  /// Forget the regions that were exposed with that `first`, on this rank alone; see `peer_copier`. What is mapped of
  /// the peers' is given back now, or with the end of the open batch.
  void retract(std::uint32_t first) noexcept {
    sets_.retire(first);
    if (!open_) { sets_.sweep(); }
  }
  /// The first number that no region has had; see `peer_copier`.
  [[nodiscard]] std::uint32_t next_region() const noexcept { return sets_.next(); }

  /// Open a batch and offer its messages, without waiting; see `data_transport`.
  ///
  /// @return `errc::busy` while a batch is open, `errc::transport_failed` for messages that do not fit the group or
  ///         what its ranks have exposed, `errc::stale_membership` when this rank was expelled, in a fork, or when the
  ///         group has met after this object was made.
  /// @complexity O(R + n log n) for n messages; copies no bytes.
  /// @throws std::bad_alloc
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    if (open_) { return {errc::busy, "peer_copy: a batch is open already"}; }
    if (auto refusal = refuse(); !refusal.ok()) { return refusal; }
    for (auto const& send : sends) {
      if (auto result = check_peer(send.peer); !result.ok()) { return result; }
    }
    for (auto const& receive : receives) {
      if (auto result = validate(receive); !result.ok()) { return result; }
    }
    failure_ = {};
    list_messages(sends, receives);
    open_ = true;
    active_ = none;
    next_look_around_ = 0;
    started_at_ = ballast::detail::now();
    offer_messages();
    return {};
  }

  /// Make progress; see `data_transport`. Copies at most `bytes_per_poll` bytes to this rank, and waits for nobody.
  /// Every few milliseconds it asks the kernel whether a rank has died that this batch still needs.
  [[nodiscard]] transfer_state poll() {
    if (!open_) { return transfer_state::idle; }
    if (!group_->is_member()) { failure_ = refuse(); }
    if (where() != transfer_state::pending) { return where(); }
    group_->give_sign();
    if (failure_.ok()) { offer_messages(); }
    if (failure_.ok()) { receive_some(); }
    if (failure_.ok()) { look_around(); }
    return where();
  }

  /// Make progress until the batch ends; see `data_transport`. It sleeps while there is nothing to copy, and overstays
  /// its time by what one `poll` copies at most.
  ///
  /// @param timeout  nanoseconds.
  /// @return success also where no batch is open. `errc::deadline_exceeded` naming the rank that is late, or has given
  ///         no sign for longest; `errc::peer_lost`; `errc::transport_failed` for a peer that gave the batch up or
  ///         offers another size, and where the kernel cannot read it or has no memory for bounce buffers;
  ///         `errc::stale_membership` when this rank was expelled. Where another rank voted no or gave up, the code and
  ///         the rank that it blames.
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    if (!open_) { return {}; }
    auto const deadline = ballast::detail::deadline_after(timeout);
    bool in_time = true;
    while (in_time && poll() == transfer_state::pending) {
      in_time = (more_to_copy_ ||
                 group_->await([this] { return poll() != transfer_state::pending || more_to_copy_; }, deadline)) &&
                ballast::detail::now() < deadline;
    }
    if (where() == transfer_state::pending) { fail_late(); }
    close();
    return std::exchange(failure_, {});
  }

private:
  using offer_state = detail::offer_state;
  static constexpr std::size_t none = static_cast<std::size_t>(-1);
  static constexpr nanoseconds_t between_looks = 3'000'000;
  static constexpr nanoseconds_t telling_silence = 20'000'000;  // ranks that wait give a sign every few milliseconds

  // A message in the table of offers.
  struct send_progress {
    outgoing_message const* message = nullptr;
    detail::offer* entry = nullptr;
    std::uint64_t use = 0;
    std::size_t pushed = 0;  // through the bounce buffers
    std::uint64_t pieces = 0;
  };
  struct receive_progress {
    incoming_message const* message = nullptr;
    bool taken = false;
  };
  struct expected_message {
    std::uint64_t tag = 0;
    std::size_t index = 0;  // into receives_
    auto operator<=>(expected_message const&) const = default;
  };
  // What the open batch has for one peer, and expects from it.
  struct peer_traffic {
    std::vector<outgoing_message const*> sends;
    std::size_t num_offered = 0;             // so many of them have had a place in the table
    std::vector<send_progress> offered;      // have one now
    std::vector<expected_message> expected;  // by tag
    std::size_t num_expected = 0;            // not taken yet

    void clear() noexcept {
      sends.clear();
      offered.clear();
      expected.clear();
      num_offered = num_expected = 0;
    }
  };
  static constexpr std::size_t words_per_region = 6;
  using segment_cursor = ballast::detail::segment_cursor;

  [[nodiscard]] static constexpr std::uint64_t state_word(std::uint64_t use, offer_state state) noexcept {
    return use << 3 | static_cast<std::uint64_t>(state);
  }
  [[nodiscard]] static offer_state state_in(std::uint64_t word) noexcept { return static_cast<offer_state>(word & 7); }

  [[nodiscard]] peer_traffic& with(index_t peer) noexcept { return traffic_[static_cast<std::size_t>(peer)]; }

  // ---- exposed memory ----

  // All ranks compare what each wants to expose, so that they refuse it alike.
  [[nodiscard]] status agree_on_numbers(std::size_t count, std::uint32_t first, nanoseconds_t deadline) {
    using ballast::detail::concat;
    std::array<std::uint64_t, 3> const mine{count, first, sets_.next()};
    std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(num_ranks()));
    if (auto result = group_->all_gather(mine, all, ballast::detail::time_until(deadline)); !result.ok()) {
      return result;
    }
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      auto const* const theirs = all.data() + static_cast<std::size_t>(rank) * mine.size();
      if (theirs[0] != all[0]) {
        return {errc::disagreement,
                concat("peer_copy: rank ", rank, " exposes ", theirs[0], " regions, rank 0 exposes ", all[0]), rank};
      }
      if (theirs[1] != all[1]) {
        return {
            errc::disagreement,
            concat("peer_copy: rank ", rank, " exposes regions from number ", theirs[1], " on, rank 0 from ", all[1]),
            rank};
      }
    }
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      auto const next = all[static_cast<std::size_t>(rank) * mine.size() + 2];
      if (first < next) {
        return {errc::invalid_option,
                concat("peer_copy: regions from number ", first, " on, but rank ", rank, " has used numbers up to ",
                       next - 1),
                rank};
      }
    }
    if (count > std::numeric_limits<std::uint32_t>::max() - first) {
      return {errc::invalid_option, concat("peer_copy: ", count, " regions from number ", first, " on are too many")};
    }
    return {};
  }

  [[nodiscard]] static std::vector<std::uint64_t> describe(std::span<segment const> regions) {
    std::vector<std::uint64_t> words;
    for (auto const& region : regions) {
      auto const file = detail::find_file_range(region);
      for (auto const word : {static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(region.data)),
                              static_cast<std::uint64_t>(region.size), static_cast<std::uint64_t>(file.file),
                              file.device, file.inode, file.offset}) {
        words.push_back(word);
      }
    }
    return words;
  }
  [[nodiscard]] detail::peer_region peer_region_of(index_t owner, std::uint64_t const* words) const {
    detail::peer_region region{words[0], words[1], {}};
    if (owner != rank() && options_.map_shared_memory) {
      detail::file_range const file{static_cast<int>(words[2]), words[3], words[4], words[5]};
      region.map = {group_->shared().member_of(owner).process.pid, file, region.size};
    }
    return region;
  }
  [[nodiscard]] detail::peer_region const& region_of(index_t rank, std::uint32_t region) const {
    return *sets_.find(rank, region);
  }

  // ---- what a batch holds ----

  [[nodiscard]] status refuse() const {
    if (auto refusal = group_->refuse_outsiders(); !refusal.ok()) { return refusal; }
    if (traffic_.size() == static_cast<std::size_t>(num_ranks())) { return {}; }
    return {errc::stale_membership, "peer_copy: it was made for another group, or before the group had met"};
  }

  [[nodiscard]] status check_peer(index_t peer) const {
    if (peer >= 0 && peer < num_ranks()) { return {}; }
    return {errc::transport_failed, ballast::detail::concat("peer_copy: rank ", rank(), " of ", num_ranks(),
                                                            " cannot exchange messages with rank ", peer)};
  }
  [[nodiscard]] status validate(incoming_message const& receive) const {
    if (auto result = check_peer(receive.peer); !result.ok()) { return result; }
    std::size_t offered = 0;
    for (auto const& part : receive.source) {
      if (!sets_.is_current(part.region)) {
        return {errc::transport_failed, ballast::detail::concat("peer_copy: rank ", rank(), " wants bytes of region ",
                                                                part.region, ", which is not exposed")};
      }
      auto const size = region_of(receive.peer, part.region).size;
      if (part.offset > size || part.size > size - part.offset) {
        return {errc::transport_failed,
                ballast::detail::concat("peer_copy: rank ", rank(), " wants bytes [", part.offset, ", ",
                                        part.offset + part.size, ") of region ", part.region, " of rank ", receive.peer,
                                        ", which exposed ", size)};
      }
      offered += part.size;
    }
    if (auto const wanted = ballast::detail::total_size(receive.segments); wanted != offered) {
      return {errc::transport_failed,
              ballast::detail::concat("peer_copy: rank ", rank(), " wants ", wanted, " bytes from ", offered,
                                      " bytes of rank ", receive.peer)};
    }
    return {};
  }

  void list_messages(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    num_sends_ = sends.size();
    for (auto const& send : sends) { with(send.peer).sends.push_back(&send); }
    num_receives_ = receives.size();
    first_expected_ = 0;
    for (auto const& receive : receives) {
      auto& traffic = with(receive.peer);
      traffic.expected.push_back({receive.tag, receives_.size()});
      ++traffic.num_expected;
      receives_.push_back({&receive});
    }
    if (receives.empty()) { return; }
    for (auto& traffic : traffic_) { std::ranges::sort(traffic.expected); }
  }
  [[nodiscard]] transfer_state where() const {
    if (!open_) { return transfer_state::idle; }
    if (!failure_.ok()) { return transfer_state::failed; }
    return num_sends_ == 0 && num_receives_ == 0 ? transfer_state::done : transfer_state::pending;
  }

  // ---- the sender's side ----

  void offer_messages() {
    if (num_sends_ == 0) { return; }
    for (auto& traffic : traffic_) {
      follow(traffic);
      while (traffic.num_offered < traffic.sends.size() && offer(traffic)) {}
    }
  }

  // Put the peer's next message into the table. @return false when that is full
  [[nodiscard]] bool offer(peer_traffic& traffic) {
    auto const& message = *traffic.sends[traffic.num_offered];
    auto* const entries = group_->shared().offers(rank(), message.peer);
    auto* const end = entries + detail::offers_per_pair;
    auto* const entry = std::find_if(
        entries, end, [](detail::offer& candidate) { return state_in(candidate.state.load()) == offer_state::vacant; });
    if (entry == end) { return false; }
    auto const use = (entry->state.load() >> 3) + 1;
    entry->tag.store(message.tag);
    entry->bytes.store(ballast::detail::total_size(message.segments));
    entry->state.store(state_word(use, offer_state::offered));
    traffic.offered.push_back({&message, entry, use, 0, 0});
    ++traffic.num_offered;
    group_->ring(message.peer);
    return true;
  }

  // See what has become of the peer's offers.
  void follow(peer_traffic& traffic) {
    std::erase_if(traffic.offered, [this](send_progress& send) {
      switch (state_in(send.entry->state.load())) {
        case offer_state::taken:
          withdraw(send);
          --num_sends_;
          return true;
        case offer_state::refused:
          if (failure_.ok()) { given_up(send.message->peer, " refused a message of rank "); }
          return false;
        case offer_state::wanted: push(send); return false;
        default: return false;
      }
    });
  }

  static void withdraw(send_progress const& send) noexcept {
    send.entry->state.store(state_word(send.use, offer_state::vacant));
  }

  // ---- the receiver's side ----

  void receive_some() {
    std::size_t budget = options_.bytes_per_poll;
    while (failure_.ok() && budget > 0 && (active_ != none || find_offer())) {
      auto const copied = direct_ ? read_some(budget) : pull(budget);
      budget -= std::min(budget, copied);
      if (copied == 0 && active_ != none && !direct_) { break; }  // the sender fills a buffer
    }
    more_to_copy_ = failure_.ok() && budget == 0;
  }

  [[nodiscard]] index_t active_peer() const { return receives_[active_].message->peer; }
  [[nodiscard]] bool reads_directly(incoming_message const& message) const {
    return is_readable_[static_cast<std::size_t>(message.peer)] != 0 ||
           std::ranges::all_of(message.source, [this, &message](remote_segment const& part) {
             return region_of(message.peer, part.region).map.data() != nullptr;
           });
  }

  // Begin with an expected message that a peer offers: preferably one of the peer that the earliest is expected from.
  [[nodiscard]] bool find_offer() {
    while (first_expected_ < receives_.size() && receives_[first_expected_].taken) { ++first_expected_; }
    if (first_expected_ == receives_.size()) { return false; }
    auto const preferred = receives_[first_expected_].message->peer;
    bool found = find_offer_of(preferred);
    for (index_t peer = 0; peer < num_ranks() && !found; ++peer) { found = peer != preferred && find_offer_of(peer); }
    if (found) { begin(); }
    return found && failure_.ok();
  }

  // The earliest expected message among those that the peer offers becomes the active one.
  [[nodiscard]] bool find_offer_of(index_t peer) {
    auto const& traffic = with(peer);
    if (traffic.num_expected == 0) { return false; }
    auto* const entries = group_->shared().offers(peer, rank());
    for (auto* entry = entries; entry != entries + detail::offers_per_pair; ++entry) {
      auto const word = entry->state.load();
      if (state_in(word) != offer_state::offered) { continue; }
      auto const index = expected_with(traffic, entry->tag.load());
      auto const bytes = entry->bytes.load();
      if (index >= active_ || entry->state.load() != word) { continue; }  // not expected, or not this offer any more
      active_ = index;
      entry_ = entry;
      use_ = word >> 3;
      offered_bytes_ = bytes;
    }
    return active_ != none;
  }
  // The earliest message with that tag that has not arrived, or `none`.
  [[nodiscard]] std::size_t expected_with(peer_traffic const& traffic, std::uint64_t tag) const {
    auto at = std::ranges::lower_bound(traffic.expected, tag, {}, &expected_message::tag);
    for (; at != traffic.expected.end() && at->tag == tag; ++at) {
      if (!receives_[at->index].taken) { return at->index; }
    }
    return none;
  }

  void begin() {
    auto const& message = *receives_[active_].message;
    rewind();
    if (offered_bytes_ != left_) {
      auto const peer = message.peer;
      finish(offer_state::offered, offer_state::refused);
      group_->suspect(peer, true);
      failure_ = {errc::transport_failed,
                  ballast::detail::concat("peer_copy: rank ", peer, " sent ", offered_bytes_, " bytes, rank ", rank(),
                                          " expects ", left_),
                  peer};
      return;
    }
    direct_ = reads_directly(message);
    if (direct_) {
      claim(offer_state::offered, offer_state::reading);
    } else {
      ask_for_bytes(offer_state::offered);
    }
  }
  void rewind() {
    local_ = {};
    remote_ = {};
    left_ = ballast::detail::total_size(receives_[active_].message->segments);
    pieces_ = 0;
  }

  // The sender will push the whole message. The bounce buffers' memory is obtained before it hears of that.
  void ask_for_bytes(offer_state from) {
    rewind();
    direct_ = false;
    failure_ = group_->shared().obtain_bounce(active_peer(), rank());
    if (failure_.ok()) { claim(from, offer_state::wanted); }
  }

  // Change the offer's state; it fails when the sender has taken the offer back.
  void claim(offer_state from, offer_state to) {
    auto expected = state_word(use_, from);
    if (!entry_->state.compare_exchange_strong(expected, state_word(use_, to))) {
      given_up(active_peer(), " took back a message to rank ");
    }
    group_->ring(active_peer());
  }
  void finish(offer_state from, offer_state to) {
    claim(from, to);
    if (failure_.ok() && to == offer_state::taken) {
      receives_[active_].taken = true;
      --with(active_peer()).num_expected;
      --num_receives_;
    }
    active_ = none;
  }

  // Read the next bytes of the active message out of the sender's memory.
  [[nodiscard]] std::size_t read_some(std::size_t budget) {
    auto const& message = *receives_[active_].message;
    if (left_ == 0) {
      finish(offer_state::reading, offer_state::taken);
      return 0;
    }
    auto bytes = copy_mapped(message, budget);
    if (bytes == 0) {
      auto const got = read_process(message, budget);
      int const error = errno;
      // Before trusting the bytes: the process number may belong to somebody else by now.
      if (group_->is_lost(message.peer)) {
        fail_by_loss(message.peer);
        return 0;
      }
      if (got <= 0) {
        fall_back(got == 0 ? EFAULT : error);
        return 0;
      }
      bytes = static_cast<std::size_t>(got);
    }
    local_.skip(message.segments, bytes);
    remote_.skip(message.source, bytes);
    left_ -= bytes;
    if (left_ == 0) { finish(offer_state::reading, offer_state::taken); }
    return bytes;
  }

  // Copy the next run if it lies in mapped memory. @return 0 when it does not
  [[nodiscard]] std::size_t copy_mapped(incoming_message const& message, std::size_t budget) {
    auto const bytes = std::min({local_.run(message.segments), remote_.run(message.source), budget});
    auto const& to = message.segments[local_.part];
    auto const& from = message.source[remote_.part];
    auto const* const base = region_of(message.peer, from.region).map.data();
    if (base == nullptr) { return 0; }
    std::memcpy(to.data + local_.at, base + from.offset + remote_.at, bytes);
    return bytes;
  }

  [[nodiscard]] ::ssize_t read_process(incoming_message const& message, std::size_t budget) {
    std::array<::iovec, 64> to{};
    std::array<::iovec, 64> from{};
    auto const num_to = fill(to, local_, message.segments, budget, [](segment const& part) { return part.data; });
    auto const num_from = fill(from, remote_, message.source, budget, [this, &message](remote_segment const& part) {
      auto const base = static_cast<std::uintptr_t>(region_of(message.peer, part.region).address);
      // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the other process
      return reinterpret_cast<std::byte*>(base + part.offset);
    });
    auto const pid = static_cast<::pid_t>(group_->shared().member_of(message.peer).process.pid);
    return options_.read_peer(pid, to.data(), num_to, from.data(), num_from);
  }

  void fall_back(int error) {
    if (error == ESRCH) {
      fail_by_loss(active_peer());
      return;
    }
    if (error != EPERM && error != ENOSYS) {
      auto const what = ballast::detail::concat("peer_copy: rank ", rank(), " cannot read rank ", active_peer());
      failure_ = ballast::detail::system_failure(errc::transport_failed, what, error, active_peer());
      return;
    }
    is_readable_[static_cast<std::size_t>(active_peer())] = 0;
    ask_for_bytes(offer_state::reading);
  }

  // Describe the bytes from a cursor on, at most `budget` of them and as many runs as fit.
  template <class Segment, class Address>
  [[nodiscard]] static std::size_t fill(std::span<::iovec> out, segment_cursor from, std::span<Segment const> segments,
                                        std::size_t budget, Address address) {
    std::size_t count = 0;
    while (count < out.size()) {
      auto const bytes = std::min(from.run(segments), budget);
      if (bytes == 0) { break; }
      out[count++] = {address(segments[from.part]) + from.at, bytes};
      from.skip(segments, bytes);
      budget -= bytes;
    }
    return count;
  }

  // ---- through shared memory ----

  // Both sides number the pieces of a message; a stamp names the offer's entry and use, and the piece. Piece n lies in
  // buffer n mod 2, which is free again when piece n - 2 was emptied.
  [[nodiscard]] std::uint64_t stamp(detail::offer const* entry, detail::offer const* entries, std::uint64_t use,
                                    std::uint64_t piece) const noexcept {
    auto const index = static_cast<std::uint64_t>(entry - entries);
    return (use * detail::offers_per_pair + index) << 32 | (piece + 1);
  }

  void push(send_progress& send) {
    auto const& message = *send.message;
    auto* const entries = group_->shared().offers(rank(), message.peer);
    auto* const buffers = group_->shared().bounce(rank(), message.peer);
    auto const total = ballast::detail::total_size(message.segments);
    while (send.pushed < total) {
      auto& buffer = buffers[send.pieces % 2];
      if (send.pieces >= 2 && buffer.emptied.load() != stamp(send.entry, entries, send.use, send.pieces - 2)) {
        return;
      }
      auto const bytes = std::min(detail::bounce_bytes, total - send.pushed);
      gather(message.segments, send.pushed, std::span{buffer.data, bytes});
      buffer.filled.store(stamp(send.entry, entries, send.use, send.pieces));
      send.pushed += bytes;
      ++send.pieces;
      group_->ring(message.peer);
    }
  }

  [[nodiscard]] std::size_t pull(std::size_t budget) {
    auto const& message = *receives_[active_].message;
    auto* const entries = group_->shared().offers(message.peer, rank());
    std::size_t copied = 0;
    while (left_ > 0 && copied < budget) {
      auto& buffer = group_->shared().bounce(message.peer, rank())[pieces_ % 2];
      auto const expected = stamp(entry_, entries, use_, pieces_);
      if (buffer.filled.load() != expected) { return copied; }
      auto const bytes = std::min(detail::bounce_bytes, left_);
      scatter(std::span{buffer.data, bytes}, message.segments);
      left_ -= bytes;
      copied += bytes;
      ++pieces_;
      buffer.emptied.store(expected);
      group_->ring(message.peer);
    }
    if (left_ == 0) { finish(offer_state::wanted, offer_state::taken); }
    return copied;
  }

  static void gather(std::span<segment const> segments, std::size_t skip, std::span<std::byte> out) {
    segment_cursor from;
    from.skip(segments, skip);
    from.advance(segments, out.size(), [&out](segment const& part, std::size_t at, std::size_t run) {
      std::memcpy(out.data(), part.data + at, run);
      out = out.subspan(run);
    });
  }
  void scatter(std::span<std::byte const> in, std::span<segment const> segments) {
    local_.advance(segments, in.size(), [&in](segment const& part, std::size_t at, std::size_t run) {
      std::memcpy(part.data + at, in.data(), run);
      in = in.subspan(run);
    });
  }

  // ---- failures ----

  // Every few milliseconds: is a rank dead that this batch still needs, or this rank out?
  void look_around() {
    auto const now = ballast::detail::now();
    if (now < next_look_around_ || where() != transfer_state::pending) { return; }
    next_look_around_ = now + between_looks;
    if (group_->is_expelled(rank())) {
      failure_ = group_->stale();
      return;
    }
    failure_ = group_->doomed(started_at_);
    for (auto& traffic : traffic_) { follow(traffic); }  // they may have been taken before their receiver died
    for (index_t peer = 0; peer < num_ranks() && failure_.ok(); ++peer) {
      if (!needs(peer)) { continue; }
      if (!group_->is_live(peer)) {
        fail_by_loss(peer);
      } else if (group_->has_given_up(peer)) {
        fail_by_giving_up();
      }
    }
  }
  [[nodiscard]] bool needs(index_t peer) {
    auto const& traffic = with(peer);
    return traffic.num_expected > 0 || !traffic.offered.empty() || traffic.num_offered < traffic.sends.size();
  }
  void fail_by_giving_up() {
    failure_ = group_->gave_up("peer_copy", group_->first_quitter());
    group_->suspect_of(failure_);
  }

  void fail_by_loss(index_t peer) {
    group_->suspect(peer);
    failure_ = group_->lost("peer_copy", peer);
  }

  // A peer has ended the batch before this rank. The cause to name is what made it do so, if it can be known.
  void given_up(index_t peer, std::string_view how) {
    if (fail_by_cause()) { return; }
    failure_ = {errc::transport_failed, ballast::detail::concat("peer_copy: rank ", peer, how, rank()), peer};
  }

  // A rank that is dead, although this batch may not need it, or one that has given the bytes up.
  [[nodiscard]] bool fail_by_cause() {
    for (index_t other = 0; other < num_ranks() && failure_.ok(); ++other) {
      if (!group_->is_expelled(other) && group_->is_lost(other)) { fail_by_loss(other); }
    }
    if (failure_.ok()) { failure_ = group_->doomed(started_at_); }
    if (failure_.ok() && group_->first_quitter() >= 0) { fail_by_giving_up(); }
    return !failure_.ok();
  }

  void fail_late() {
    if (fail_by_cause()) { return; }
    index_t culprit = status::no_rank;
    std::string what;
    if (num_receives_ > 0) {
      culprit = std::ranges::find_if(receives_, [](auto const& receive) { return !receive.taken; })->message->peer;
      what = ballast::detail::concat("rank ", rank(), " waited in vain for a message of rank ", culprit);
    } else {
      for (culprit = 0; culprit + 1 < num_ranks() && !needs(culprit);) { ++culprit; }
      what = ballast::detail::concat("rank ", culprit, " did not take a message of rank ", rank(), " in time");
    }
    // A peer that is late may itself be waiting for somebody else.
    auto const waited = ballast::detail::now() - started_at_;
    auto const silent = group_->most_silent([](index_t) { return true; });
    if (silent >= 0 && group_->silence_of(silent) > std::max(waited / 2, telling_silence)) {
      culprit = silent;
      what += ballast::detail::concat("; rank ", silent, " has given no sign for ",
                                      group_->silence_of(silent) / 1'000'000, " ms");
    }
    group_->suspect(culprit);
    failure_ = {errc::deadline_exceeded, "peer_copy: " + what, culprit};
  }

  // End the batch: take back what nobody took, and turn down what this rank will not take any more.
  void close() {
    if (group_->is_member()) {
      if (!failure_.ok()) { group_->give_up_batch(); }
      for (auto const& traffic : traffic_) { std::ranges::for_each(traffic.offered, withdraw); }
      if (active_ != none) { turn_down(); }
    }
    active_ = none;
    more_to_copy_ = false;
    num_sends_ = num_receives_ = 0;
    for (auto& traffic : traffic_) { traffic.clear(); }
    receives_.clear();
    open_ = false;
    sets_.sweep();
  }
  void turn_down() {
    for (auto const from : {offer_state::reading, offer_state::wanted}) {
      auto expected = state_word(use_, from);
      entry_->state.compare_exchange_strong(expected, state_word(use_, offer_state::refused));
    }
    group_->ring(active_peer());
  }

  process_group* group_;
  peer_copy_options options_;
  detail::read_permission permission_;
  detail::region_sets sets_;
  transfer_turns turns_;
  std::vector<unsigned char> is_readable_;  // [R] the kernel lets this process read that one, as far as is known

  bool open_ = false;
  status failure_;
  std::vector<peer_traffic> traffic_;  // [R]
  std::vector<receive_progress> receives_;
  std::size_t num_sends_ = 0;     // not taken yet
  std::size_t num_receives_ = 0;  // not taken yet
  std::size_t first_expected_ = 0;
  nanoseconds_t started_at_ = 0;
  nanoseconds_t next_look_around_ = 0;

  // The message that is being received.
  std::size_t active_ = none;  // index into receives_
  detail::offer* entry_ = nullptr;
  std::uint64_t use_ = 0;
  std::uint64_t offered_bytes_ = 0;
  segment_cursor local_;
  segment_cursor remote_;
  std::size_t left_ = 0;
  bool direct_ = true;  // otherwise through the bounce buffers
  std::uint64_t pieces_ = 0;
  bool more_to_copy_ = false;  // the last poll stopped at its limit
};

static_assert(peer_copier<peer_copy>);

}  // namespace posix
BALLAST_END_NAMESPACE

#endif
