// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TRANSPORT_TURNS_HPP
#define BALLAST_TRANSPORT_TURNS_HPP

#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Lets several users share one transport, which moves one batch at a time.
///
/// *Turns*: users queue up and only the first may have a batch open. They queue up in the same order on every rank, so
/// of the turns that are not over, the earliest is first on every rank where it is not over yet: nobody waits in a
/// circle. A user that has to wait may let the first one make progress.
///
/// *Tags*: each user gets a session, a block of tags that nobody has had before. The ranks agree on its number: at
/// least one more than `last_session()` on any of them.
///
/// @threads that of the transport.
class transfer_turns {
public:
  /// Somebody who moves batches.
  class user {
  public:
    /// Make progress on the open batch, without waiting, and leave the queue when the turn is over. Called by others
    /// while this user is first.
    virtual void advance() = 0;

  protected:
    user() = default;
    user(user const&) = default;
    user& operator=(user const&) = default;
    ~user() = default;
  };

  transfer_turns() = default;
  transfer_turns(transfer_turns&&) = default;
  transfer_turns& operator=(transfer_turns&&) = default;
  transfer_turns(transfer_turns const&) = delete;
  transfer_turns& operator=(transfer_turns const&) = delete;
  ~transfer_turns() = default;

  /// Queue up, last. @pre not queued up
  void enter(user& who) {
    BALLAST_EXPECTS(std::find(queue_.begin(), queue_.end(), &who) == queue_.end(), "transfer_turns: queued up twice");
    queue_.push_back(&who);
  }
  /// Leave the queue, wherever in it. No effect for one who is not in it.
  void leave(user const& who) noexcept { queue_.erase(std::remove(queue_.begin(), queue_.end(), &who), queue_.end()); }
  [[nodiscard]] bool is_first(user const& who) const noexcept { return !queue_.empty() && queue_.front() == &who; }
  /// Let whoever is first make progress.
  void advance_first() {
    if (!queue_.empty()) { queue_.front()->advance(); }
  }

  /// Tags of one session. There are 2^20 sessions.
  static constexpr std::uint64_t tags_per_session = std::uint64_t{1} << 44;
  static constexpr std::uint64_t max_session = (std::uint64_t{1} << 20) - 1;

  /// The largest session number taken so far; 0: none.
  [[nodiscard]] std::uint64_t last_session() const noexcept { return last_session_; }
  /// Take a session that the ranks have agreed on. @pre `last_session() < session <= max_session`
  void take_session(std::uint64_t session) {
    BALLAST_EXPECTS(session > last_session_ && session <= max_session, "transfer_turns: session was used before");
    last_session_ = session;
  }
  /// First tag of a session.
  [[nodiscard]] static constexpr std::uint64_t first_tag(std::uint64_t session) noexcept {
    return session * tags_per_session;
  }

private:
  std::vector<user*> queue_;
  std::uint64_t last_session_ = 0;
};

namespace detail {

/// Sessions on transports that keep no count of them: numbered over the life of the process.
[[nodiscard]] inline std::atomic<std::uint64_t>& process_sessions() noexcept {
  static std::atomic<std::uint64_t> last{0};
  return last;
}

}  // namespace detail

BALLAST_END_NAMESPACE

#endif
