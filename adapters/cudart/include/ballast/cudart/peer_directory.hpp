// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_PEER_DIRECTORY_HPP
#define BALLAST_CUDART_PEER_DIRECTORY_HPP

#include <ballast/contract.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// What two ranks tell each other about one direction of a batch, as an even digest of its messages; 0 says nothing.
struct pair_board {
  /// The sender: these messages may be read. One more than the digest: behind the `readable` event.
  std::atomic<std::uint64_t> offered{0};
  std::atomic<std::uint64_t> taken{0};  ///< the receiver: these messages are all here
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "boards lie in memory that processes share");

/// Where the peers' memory is, and what they say.
///
/// @par Semantics
/// - `expose(regions)` publishes this rank's memory; the peers' regions are known once an offer of theirs is seen.
/// - `region(peer, i)` is the peer's region as an address of this process.
/// - `readable(peer)` is the event behind which an odd offer of the peer stands; `readable(rank())` is our own.
/// - `device(peer)` is the ordinal in this process of the device that holds the peer's memory.
/// - `board(sender, receiver)` is the same object for both.
template <class D>
concept peer_directory = requires(D& d, D const& c, std::span<segment const> regions, index_t peer, std::uint32_t i) {
  { c.rank() } noexcept -> std::same_as<index_t>;
  { c.num_ranks() } noexcept -> std::same_as<index_t>;
  { d.expose(regions) } -> std::same_as<status>;
  { c.num_regions(peer) } -> std::same_as<std::size_t>;
  { c.region(peer, i) } -> std::same_as<segment>;
  { c.device(peer) } -> std::same_as<int>;
  { c.readable(peer) } -> std::same_as<event const&>;
  { c.board(peer, peer) } -> std::same_as<pair_board&>;
};

/// What the ranks of one process share: several ranks on a device, or one on each of several.
class local_peers {
public:
  /// @pre `num_ranks >= 1`
  explicit local_peers(index_t num_ranks)
      : peers_(static_cast<std::size_t>(num_ranks)), boards_(peers_.size() * peers_.size()) {}

  /// One rank's view. @lifetime the `local_peers` must outlive it.
  class member {
  public:
    [[nodiscard]] index_t rank() const noexcept { return rank_; }
    [[nodiscard]] index_t num_ranks() const noexcept { return static_cast<index_t>(all_->peers_.size()); }
    [[nodiscard]] status expose(std::span<segment const> regions) {
      all_->at(rank_).regions.assign(regions.begin(), regions.end());
      return {};
    }
    [[nodiscard]] std::size_t num_regions(index_t peer) const { return all_->at(peer).regions.size(); }
    [[nodiscard]] segment region(index_t peer, std::uint32_t i) const { return all_->at(peer).regions[i]; }
    [[nodiscard]] int device(index_t peer) const { return all_->at(peer).device; }
    [[nodiscard]] event const& readable(index_t peer) const { return all_->at(peer).readable; }
    [[nodiscard]] pair_board& board(index_t sender, index_t receiver) const {
      return all_->boards_[static_cast<std::size_t>(sender) * all_->peers_.size() + static_cast<std::size_t>(receiver)];
    }

  private:
    friend class local_peers;
    member(local_peers& all, index_t rank) : all_{&all}, rank_{rank} {}
    local_peers* all_;
    index_t rank_;
  };

  /// Enter a rank with the current device; called once for each rank, by the thread that will drive it.
  /// @throws std::system_error in `cudart::category()`
  [[nodiscard]] member join(index_t rank) {
    BALLAST_EXPECTS(rank >= 0 && rank < static_cast<index_t>(peers_.size()), "local_peers: rank out of range");
    auto& self = at(rank);
    to_status(cudaGetDevice(&self.device), "cudaGetDevice").or_throw();
    self.readable = event::create();
    return {*this, rank};
  }

private:
  struct peer {
    std::vector<segment> regions;
    int device = 0;
    event readable;
  };
  [[nodiscard]] peer& at(index_t rank) { return peers_[static_cast<std::size_t>(rank)]; }

  std::vector<peer> peers_;
  std::vector<pair_board> boards_;  // [R, R]
};

static_assert(peer_directory<local_peers::member>);

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
