// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_PEER_DIRECTORY_HPP
#define BALLAST_CUDART_PEER_DIRECTORY_HPP

#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/device_scope.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/memory.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <mutex>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// Whether copies between two devices may go straight, given their ordinals.
using peer_access_test = bool (*)(int from, int to);

/// What the driver says, with the access switched on. Takes the driver long, and may wait for the device.
///
/// @param from  ordinal of the device whose memory is read.
/// @param to    ordinal of the device that reads.
[[nodiscard]] inline bool enable_peer_access(int from, int to) {
  if (from == to) { return true; }
  int possible = 0;
  if (cudaDeviceCanAccessPeer(&possible, to, from) != cudaSuccess || possible == 0) { return false; }
  detail::device_scope const scope{to};
  auto const result = cudaDeviceEnablePeerAccess(from, 0);
  if (result != cudaSuccess) { static_cast<void>(cudaGetLastError()); }
  return result == cudaSuccess || result == cudaErrorPeerAccessAlreadyEnabled;
}

/// What two ranks tell each other about one direction of a batch, as an even digest of its messages; 0 says nothing.
/// Each fills a cache line of its own: the ranks of a host look at them all the time.
struct alignas(64) pair_board {
  /// The sender: these messages may be read. One more than the digest: behind the `readable` event.
  std::atomic<std::uint64_t> offered{0};
  std::atomic<std::uint64_t> taken{0};      ///< the receiver: these messages are all here
  std::atomic<std::uint64_t> withdrawn{0};  ///< the sender: it gives these messages up
  std::atomic<std::uint64_t> declined{0};   ///< the receiver: it gives them up
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "boards lie in memory that processes share");

/// Where the peers' memory is, and what they say.
///
/// @par Semantics
/// - `expose(regions, first)`, `retract(first)`, `next_region()` are as for a `peer_copier`, but `retract` closes
///   nothing that copies may still read; `close_retracted()` does. The peers' regions are known once an offer of theirs
///   is seen.
/// - `exposes(number)` says whether a set of this rank that is not retracted has the number: the others' are alike.
/// - `region(peer, number)` is the peer's region of that number as an address of this process; null where the peer has
///   exposed none.
/// - `readable(peer)` is the event behind which an odd offer of the peer stands; `readable(rank())` is our own.
/// - `device(peer)` is the ordinal in this process of the device that holds the peer's memory.
/// - `is_connected()` says whether there are boards; before, no batch can be opened.
/// - `board(sender, receiver)` is the same object for both.
/// - `turns()` of a rank live as long as its boards: what is said there is told apart by tags.
/// - `check_reach()` says whether the peers' devices can read what this rank exposes, with the remedy where not; asked
///   when all ranks are there.
/// - `peer_trouble(peer)` is `errc::peer_lost` when it is known that the peer is dead. What it said on its boards
///   before is seen by who looks afterwards. It costs a call of the system at most, and waits for nothing.
/// - `leave_mapped()` before destruction leaves what is mapped of the peers' memory as it is until the process ends,
///   for a transport whose copies have not ended in time.
template <class D>
concept peer_directory =
    requires(D& d, D const& c, std::span<segment const> regions, index_t peer, std::uint32_t number) {
      { c.rank() } noexcept -> std::same_as<index_t>;
      { c.num_ranks() } noexcept -> std::same_as<index_t>;
      { d.expose(regions, number) } -> std::same_as<status>;
      { d.retract(number) } noexcept -> std::same_as<void>;
      { d.close_retracted() } noexcept -> std::same_as<void>;
      { c.next_region() } noexcept -> std::same_as<std::uint32_t>;
      { c.exposes(number) } noexcept -> std::same_as<bool>;
      { c.region(peer, number) } -> std::same_as<segment>;
      { c.device(peer) } -> std::same_as<int>;
      { c.readable(peer) } -> std::same_as<event const&>;
      { c.is_connected() } noexcept -> std::same_as<bool>;
      { c.board(peer, peer) } -> std::same_as<pair_board&>;
      { d.turns() } noexcept -> std::same_as<transfer_turns&>;
      { c.check_reach() } -> std::same_as<status>;
      { c.peer_trouble(peer) } -> std::same_as<status>;
      { d.leave_mapped() } noexcept -> std::same_as<void>;
    };

namespace detail {

/// The numbers of a set of regions. One without regions takes a number too, so that no two sets look alike.
struct region_numbers {
  std::uint32_t first = 0;
  std::size_t count = 0;

  /// The first number behind the set; beyond `std::uint32_t` where the numbers do not suffice.
  [[nodiscard]] std::uint64_t end() const noexcept { return first + std::max<std::uint64_t>(count, 1); }
  [[nodiscard]] bool meets(region_numbers const& other) const noexcept {
    return first < other.end() && other.first < end();
  }
  [[nodiscard]] bool holds(std::uint32_t number) const noexcept { return number >= first && number - first < count; }

  /// Say whether a rank can take these numbers. @param next of that rank @param who begins the message
  [[nodiscard]] status validate(std::uint32_t next, char const* who, index_t rank) const {
    if (first < next) {
      return {errc::invalid_option,
              ballast::detail::concat(who, ": regions from ", first, " on, but rank ", rank,
                                      " has used the numbers below ", next),
              rank};
    }
    if (end() > std::numeric_limits<std::uint32_t>::max()) {
      return {
          errc::invalid_option,
          ballast::detail::concat(who, ": no numbers for ", count, " regions of rank ", rank, " from ", first, " on"),
          rank};
    }
    return {};
  }

  bool operator==(region_numbers const&) const = default;
};

/// Sets that differ from rank to rank.
[[nodiscard]] inline status different_sets(char const* who, index_t a, region_numbers const& of_a, index_t b,
                                           region_numbers const& of_b) {
  return {errc::disagreement,
          ballast::detail::concat(who, ": rank ", a, " exposes ", of_a.count, " regions from number ", of_a.first,
                                  " on, rank ", b, " exposes ", of_b.count, " from ", of_b.first, " on"),
          b};
}

}  // namespace detail

/// What the ranks of one process share: several ranks on a device, or one on each of several.
///
/// @threads  each rank has a thread of its own, which joins and makes the calls of its member; the threads of different
///           ranks need no lock of the engine's.
/// @lifetime it outlives all members, and the transports that have them.
class local_peers {
public:
  /// @param num_ranks  R, at least 1.
  /// @throws std::system_error (`errc::invalid_option`) without ranks
  explicit local_peers(index_t num_ranks) : peers_(checked(num_ranks)), boards_(peers_.size() * peers_.size()) {}

  /// One rank's view. What has no comment here is as `peer_directory` says. @lifetime the `local_peers` must outlive
  /// it.
  class member {
  public:
    [[nodiscard]] index_t rank() const noexcept { return rank_; }
    [[nodiscard]] index_t num_ranks() const noexcept { return static_cast<index_t>(all_->peers_.size()); }

    /// Publish a set of this rank's regions; see `peer_copier`. Waits for nobody: of ranks whose sets differ, the later
    /// ones are refused, and nobody finds regions of theirs.
    ///
    /// @return `errc::invalid_option` for numbers that this rank has used, `errc::disagreement` for a set that differs
    ///         from another rank's, `errc::invalid_weights` with the remedy for a region in several allocations, or
    ///         that the device of a rank which has joined cannot read; nothing changes then.
    /// @complexity a few calls of the driver for each physical piece of memory and each device
    /// @throws std::bad_alloc
    [[nodiscard]] status expose(std::span<segment const> regions, std::uint32_t first) {
      return all_->expose(rank_, regions, first);
    }
    /// Regions of a set that was retracted are found no more. Concerns this rank alone.
    void retract(std::uint32_t first) noexcept { all_->at(rank_).retract(first); }
    /// Nothing is mapped here that could be closed.
    void close_retracted() noexcept {}
    [[nodiscard]] std::uint32_t next_region() const noexcept { return all_->at(rank_).next_region; }
    [[nodiscard]] bool exposes(std::uint32_t number) const noexcept {
      return all_->at(rank_).live_set_with(number) != nullptr;
    }
    [[nodiscard]] segment region(index_t peer, std::uint32_t number) const { return all_->at(peer).region(number); }
    [[nodiscard]] int device(index_t peer) const { return all_->at(peer).device; }
    [[nodiscard]] event const& readable(index_t peer) const { return all_->at(peer).readable; }
    [[nodiscard]] bool is_connected() const noexcept { return true; }
    [[nodiscard]] pair_board& board(index_t sender, index_t receiver) const {
      return all_->boards_[static_cast<std::size_t>(sender) * all_->peers_.size() + static_cast<std::size_t>(receiver)];
    }
    [[nodiscard]] transfer_turns& turns() noexcept { return all_->at(rank_).turns; }
    /// Whether the devices of all ranks that have joined can read what this rank exposes.
    ///
    /// @return `errc::invalid_weights` with the remedy.
    /// @complexity a few calls of the driver for each physical piece of memory and each device
    [[nodiscard]] status check_reach() const { return all_->check_reach(rank_); }
    /// Ranks of one process die together.
    [[nodiscard]] status peer_trouble(index_t /*peer*/) const { return {}; }
    /// Nothing is mapped here: the memory is the engine's.
    void leave_mapped() noexcept {}

  private:
    friend class local_peers;
    member(local_peers& all, index_t rank) : all_{&all}, rank_{rank} {}
    local_peers* all_;
    index_t rank_;
  };

  /// Enter a rank with the current device, by the thread that will drive it. A rank that enters once more, after its
  /// first transport is gone, goes on with the numbers and tags that it has used. Waits for nobody.
  ///
  /// @param rank  in [0, R); entered once at a time.
  /// @throws std::system_error (`errc::invalid_option` for a rank that there is not, or that comes back with another
  ///         device; `cudart::category()`)
  [[nodiscard]] member join(index_t rank) {
    if (rank < 0 || static_cast<std::size_t>(rank) >= peers_.size()) {
      status{errc::invalid_option,
             ballast::detail::concat("local_peers: there is no rank ", rank, " among ", peers_.size())}
          .or_throw();
    }
    auto& self = at(rank);
    detail::capture_guard const guard;
    int device = 0;
    to_status(cudaGetDevice(&device), "cudaGetDevice").or_throw();
    if (self.readable.get() == nullptr) {
      self.readable = event::create();
      std::lock_guard const lock{mutex_};
      self.device = device;
      self.joined = true;
    } else if (device != self.device) {
      status{errc::invalid_option,
             ballast::detail::concat("local_peers: rank ", rank, " comes with device ", device, ", it had device ",
                                     self.device),
             rank}
          .or_throw();
    }
    return {*this, rank};
  }

private:
  /// Never changes but for the flag, and stays, so that peers' threads may look while this rank exposes and retracts.
  struct exposed_set {
    detail::region_numbers numbers;
    std::vector<segment> regions;
    exposed_set const* before = nullptr;
    std::atomic<bool> retracted{false};
  };
  struct peer {
    [[nodiscard]] exposed_set const* live_set_with(std::uint32_t number) const noexcept {
      for (auto const* set = newest.load(std::memory_order_acquire); set != nullptr; set = set->before) {
        if (!set->numbers.holds(number)) { continue; }
        return set->retracted.load(std::memory_order_relaxed) ? nullptr : set;
      }
      return nullptr;
    }
    [[nodiscard]] segment region(std::uint32_t number) const noexcept {
      auto const* const set = live_set_with(number);
      return set == nullptr ? segment{} : set->regions[number - set->numbers.first];
    }
    void publish(detail::region_numbers const& numbers, std::span<segment const> regions) {
      auto& set = sets.emplace_back();
      set.numbers = numbers;
      set.regions.assign(regions.begin(), regions.end());
      set.before = newest.load(std::memory_order_relaxed);
      next_region = static_cast<std::uint32_t>(numbers.end());
      newest.store(&set, std::memory_order_release);
    }
    void retract(std::uint32_t first) noexcept {
      for (auto& set : sets) {
        if (set.numbers.first == first) { set.retracted.store(true, std::memory_order_relaxed); }
      }
    }

    std::deque<exposed_set> sets;                     // of this rank's thread, like `next_region` and `turns`
    std::atomic<exposed_set const*> newest{nullptr};  // the way of the others into `sets`
    std::uint32_t next_region = 0;
    transfer_turns turns;
    event readable;
    bool joined = false;  // under the mutex, like the device until the rank has been heard of
    int device = 0;
  };
  /// A set that a rank has exposed: the others' must be alike.
  struct agreed_set {
    detail::region_numbers numbers;
    index_t rank = 0;
  };

  [[nodiscard]] static std::size_t checked(index_t num_ranks) {
    if (num_ranks < 1) {
      status{errc::invalid_option,
             ballast::detail::concat("local_peers: number of ranks is ", num_ranks, ", must be at least 1")}
          .or_throw();
    }
    return static_cast<std::size_t>(num_ranks);
  }
  [[nodiscard]] peer& at(index_t rank) noexcept { return peers_[static_cast<std::size_t>(rank)]; }

  [[nodiscard]] status expose(index_t rank, std::span<segment const> regions, std::uint32_t first) {
    detail::region_numbers const numbers{first, regions.size()};
    if (auto result = numbers.validate(at(rank).next_region, "local_peers", rank); !result.ok()) { return result; }
    if (auto result = check_memory(rank, regions, first); !result.ok()) { return result; }
    if (auto result = compare(rank, numbers); !result.ok()) { return result; }
    at(rank).publish(numbers, regions);
    return {};
  }
  /// The devices of the ranks that have joined, each once.
  [[nodiscard]] std::vector<int> devices() {
    std::vector<int> found;
    std::lock_guard const lock{mutex_};
    for (auto const& each : peers_) {
      if (each.joined && std::find(found.begin(), found.end(), each.device) == found.end()) {
        found.push_back(each.device);
      }
    }
    return found;
  }
  /// Say whether copies from these regions can work. @param first the number of the first region, for the message
  [[nodiscard]] status check_memory(index_t rank, std::span<segment const> regions, std::uint32_t first) {
    detail::capture_guard const guard;
    auto const readers = devices();
    for (auto const& region : regions) {
      auto result = in_one_allocation(region);
      for (auto const reader : readers) {
        if (result.ok()) { result = reachable_from(region, reader); }
      }
      if (!result.ok()) {
        auto const number = first + static_cast<std::uint64_t>(&region - regions.data());
        return {result.code(),
                ballast::detail::concat("local_peers: region ", number, " of rank ", rank, ": ", result.message()),
                rank};
      }
    }
    return {};
  }
  [[nodiscard]] status check_reach(index_t rank) {
    for (auto const& set : at(rank).sets) {
      if (set.retracted.load(std::memory_order_relaxed)) { continue; }
      if (auto result = check_memory(rank, set.regions, set.numbers.first); !result.ok()) { return result; }
    }
    return {};
  }

  /// Compare a set with those that other ranks have exposed, and let it be compared with.
  [[nodiscard]] status compare(index_t rank, detail::region_numbers const& numbers) {
    std::lock_guard const lock{mutex_};
    auto const known = std::find_if(agreed_.begin(), agreed_.end(),
                                    [&numbers](agreed_set const& set) { return set.numbers.meets(numbers); });
    if (known == agreed_.end()) {
      agreed_.push_back({numbers, rank});
    } else if (known->numbers != numbers) {
      return detail::different_sets("local_peers", rank, numbers, known->rank, known->numbers);
    }
    return {};
  }

  std::vector<peer> peers_;
  std::vector<pair_board> boards_;  // [R, R]
  std::mutex mutex_;
  std::vector<agreed_set> agreed_;  // under the mutex
};

static_assert(peer_directory<local_peers::member>);

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
