// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MPI_DETAIL_MAILBOX_HPP
#define BALLAST_MPI_DETAIL_MAILBOX_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <deque>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace mpi::detail {

/// A message in memory that the mailbox owns: four words and a run of bytes.
struct letter {
  struct header {
    std::uint64_t kind = 0;
    std::uint64_t id = 0;  ///< of the call, the vote or the message
    std::uint64_t size = 0;
    std::uint64_t at = 0;
  };

  index_t peer = 0;
  std::vector<std::byte> bytes;  ///< header and payload

  [[nodiscard]] header head() const noexcept {
    header out;
    std::memcpy(&out, bytes.data(), sizeof out);
    return out;
  }
  [[nodiscard]] std::span<std::byte> payload() noexcept { return std::span{bytes}.subspan(sizeof(header)); }
  [[nodiscard]] std::span<std::byte const> payload() const noexcept { return std::span{bytes}.subspan(sizeof(header)); }
};

/// Of the payload of a letter.
inline constexpr std::size_t largest_payload =
    static_cast<std::size_t>(std::numeric_limits<int>::max()) - sizeof(letter::header);

[[nodiscard]] inline letter write_letter(index_t peer, letter::header const& head, std::size_t payload_bytes = 0) {
  letter out{peer, std::vector<std::byte>(sizeof head + payload_bytes)};
  std::memcpy(out.bytes.data(), &head, sizeof head);
  return out;
}

/// A communicator like a given one, made without waiting for ever.
///
/// MPI cannot take back what was begun, and an `MPI_Comm_idup` that some ranks never call spoils those that follow
/// (Open MPI 4.1). So the ranks first tell each other that they are there, in rounds, until all of them have been for
/// two rounds on end: one that came and left has taken part in the first of them only. What is not over in time stays
/// where MPI writes to.
class own_communicator {
public:
  /// Called by all ranks of `borrowed` together. Waits for the others at most for `timeout`, and as long for MPI.
  own_communicator(MPI_Comm borrowed, nanoseconds_t timeout) {
    if (failure_ = refuse(borrowed); !failure_.ok()) { return; }
    MPI_Comm_rank(borrowed, &rank_);
    MPI_Comm_size(borrowed, &num_ranks_);
    if (failure_ = meet(borrowed, timeout); !failure_.ok()) { return; }
    if (failure_ = make(borrowed, timeout); !failure_.ok()) { return; }
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  }
  own_communicator(own_communicator const&) = delete;
  own_communicator& operator=(own_communicator const&) = delete;
  ~own_communicator() = default;

  [[nodiscard]] MPI_Comm get() const noexcept { return comm_; }
  void free() { MPI_Comm_free(&comm_); }
  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] status const& failure() const noexcept { return failure_; }

  [[nodiscard]] static status error(std::string_view what, int code) {
    char text[MPI_MAX_ERROR_STRING];
    int size = 0;
    MPI_Error_string(code, text, &size);
    return {errc::transport_failed,
            ballast::detail::concat(what, ": ", std::string_view{text, static_cast<std::size_t>(size)})};
  }

private:
  // Something that all ranks do together, and where MPI writes to.
  struct together {
    MPI_Request request = MPI_REQUEST_NULL;
    int rounds = 0;      // that this rank has seen end
    int all_rounds = 0;  // the least of them
    MPI_Comm result = MPI_COMM_NULL;
  };

  // What MPI would end the job for.
  [[nodiscard]] static status refuse(MPI_Comm borrowed) {
    int initialized = 0;
    int finalized = 0;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    if (initialized == 0) { return {errc::transport_failed, "mpi: MPI_Init was not called"}; }
    if (finalized != 0) { return {errc::transport_failed, "mpi: MPI_Finalize was called"}; }
    if (borrowed == MPI_COMM_NULL) { return {errc::invalid_option, "mpi: the communicator is MPI_COMM_NULL"}; }
    int joins_two_groups = 0;
    MPI_Comm_test_inter(borrowed, &joins_two_groups);
    if (joins_two_groups != 0) { return {errc::invalid_option, "mpi: the communicator is an intercommunicator"}; }
    return {};
  }

  [[nodiscard]] status meet(MPI_Comm borrowed, nanoseconds_t timeout) const {
    auto const deadline = ballast::detail::deadline_after(timeout);
    for (int rounds = 0;; ++rounds) {
      auto round = std::make_unique<together>();
      round->rounds = rounds;
      auto const code =
          MPI_Iallreduce(&round->rounds, &round->all_rounds, 1, MPI_INT, MPI_MIN, borrowed, &round->request);
      if (code != MPI_SUCCESS) { return error("MPI_Iallreduce", code); }
      if (auto result = wait(round, deadline, timeout); !result.ok()) { return result; }
      if (round->all_rounds > 0) { return {}; }
    }
  }
  [[nodiscard]] status make(MPI_Comm borrowed, nanoseconds_t timeout) {
    auto copy = std::make_unique<together>();
    auto const code = MPI_Comm_idup(borrowed, &copy->result, &copy->request);
    if (code != MPI_SUCCESS) { return error("MPI_Comm_idup", code); }
    if (auto result = wait(copy, ballast::detail::deadline_after(timeout), timeout); !result.ok()) { return result; }
    comm_ = copy->result;
    return {};
  }

  // Wait until it is over, or leave it to MPI.
  [[nodiscard]] status wait(std::unique_ptr<together>& what, nanoseconds_t deadline, nanoseconds_t timeout) const {
    for (;;) {
      int done = 0;
      if (auto const code = MPI_Test(&what->request, &done, MPI_STATUS_IGNORE); code != MPI_SUCCESS) {
        static_cast<void>(what.release());
        return error("MPI_Test", code);
      }
      if (done != 0) { return {}; }
      if (ballast::detail::now() >= deadline) { break; }
      std::timespec const nap{0, 100'000};
      ::nanosleep(&nap, nullptr);
    }
    static_cast<void>(what.release());
    return {errc::deadline_exceeded,
            ballast::detail::concat("mpi: of the ", num_ranks_, " ranks of the communicator not all came within ",
                                    timeout / 1'000'000, " ms to make one of their own; MPI does not tell which")};
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int num_ranks_ = 1;
  status failure_;
};

/// Sends and receives letters without ever waiting, over a communicator of its own.
///
/// MPI cannot take back a send, nor always a receive. So MPI only ever sees memory of the mailbox, which keeps it until
/// MPI is done with it, if need be beyond the mailbox's end. A peer that takes nothing holds up no letter of another.
///
/// A communicator is freed when every peer has said goodbye, so that everything has arrived: MPI may hand what arrives
/// later to the next communicator, in place of a letter of its own.
class mailbox {
public:
  /// Make a communicator like `borrowed` for letters alone. Called by all its ranks together; whether it worked, tells
  /// `failure()`.
  mailbox(MPI_Comm borrowed, nanoseconds_t timeout)
      : comm_{borrowed, timeout},
        failure_{comm_.failure()},
        sends_(static_cast<std::size_t>(comm_.num_ranks())),
        receives_(sends_.size()),
        gone_(sends_.size()) {}
  mailbox(mailbox const&) = delete;
  mailbox& operator=(mailbox const&) = delete;
  ~mailbox() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && comm_.failure().ok() && part()) { comm_.free(); }
    leave_to_mpi(sends_);
    leave_to_mpi(receives_);
  }

  [[nodiscard]] index_t rank() const noexcept { return comm_.rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return comm_.num_ranks(); }
  /// The first error that MPI reported. Nothing works any more after one.
  [[nodiscard]] status const& failure() const noexcept { return failure_; }
  void fail(status why) {
    if (failure_.ok()) { failure_ = std::move(why); }
  }

  /// The peer's mailbox is no more: everything that it sent has been handed out, and nothing more comes.
  [[nodiscard]] bool has_gone(index_t peer) const { return gone_[static_cast<std::size_t>(peer)] != 0; }
  [[nodiscard]] index_t num_gone() const noexcept { return num_gone_; }

  /// Begin to send. Letters between two ranks arrive in order. @pre a payload of at most `largest_payload` bytes
  void send(letter what) { send(std::move(what), not_counted); }
  /// Send, and count the letter until MPI has sent it.
  void send_counted(letter what) {
    ++num_unsent_;
    send(std::move(what), count_);
  }
  /// Counted letters that MPI has not sent yet.
  [[nodiscard]] std::size_t num_unsent() const noexcept { return num_unsent_; }
  /// Count from 0 again, whatever MPI still holds.
  void restart_count() {
    ++count_;
    num_unsent_ = 0;
  }

  /// Hand every letter that has arrived to `take(letter)`.
  template <class Take>
  void collect(Take take) {
    if (!failure_.ok()) { return; }
    forget_sent();
    accept();
    for (auto& from : receives_) {
      // Receives were begun in the order of arrival and are handed out in that order.
      while (failure_.ok() && !from.empty() && is_done(*from.front())) {
        auto const arrived = std::move(from.front());
        from.pop_front();
        if (arrived->what.bytes.size() < sizeof(letter::header)) { continue; }
        if (arrived->what.head().kind == goodbye) {
          note_gone(arrived->what.peer);
        } else {
          take(std::move(arrived->what));
        }
      }
    }
  }

  /// Collect until `done()` holds, in naps that grow while nothing comes. @return false when late or after an error
  template <class Take, class Done>
  [[nodiscard]] bool collect_until(Take take, Done done, nanoseconds_t deadline) {
    auto nap = shortest_nap;
    for (;;) {
      bool heard = false;
      collect([&heard, &take](letter what) {
        heard = true;
        take(std::move(what));
      });
      if (done()) { return true; }
      if (!failure_.ok() || ballast::detail::now() >= deadline) { return false; }
      nap = heard ? shortest_nap : (nap < longest_nap ? 2 * nap : nap);
      std::timespec const time{0, nap};
      ::nanosleep(&time, nullptr);
    }
  }

private:
  static constexpr int letter_tag = 1;
  static constexpr long shortest_nap = 5'000;
  static constexpr long longest_nap = 320'000;
  static constexpr nanoseconds_t parting = 200'000'000;
  static constexpr std::uint64_t not_counted = 0;
  static constexpr std::uint64_t goodbye = std::numeric_limits<std::uint64_t>::max();  // a kind of letter

  struct in_flight {
    letter what;
    MPI_Request request = MPI_REQUEST_NULL;
    std::uint64_t count = not_counted;
  };
  using queues = std::vector<std::deque<std::unique_ptr<in_flight>>>;  // [R]

  [[nodiscard]] static bool all_empty(queues const& items) noexcept {
    for (auto const& queue : items) {
      if (!queue.empty()) { return false; }
    }
    return true;
  }
  // MPI may still read or write them.
  static void leave_to_mpi(queues& items) noexcept {
    for (auto& queue : items) {
      for (auto& item : queue) { static_cast<void>(item.release()); }
    }
  }

  void keep_first(int code, std::string_view what) {
    if (code != MPI_SUCCESS && failure_.ok()) { failure_ = own_communicator::error(what, code); }
  }

  void send(letter what, std::uint64_t count) {
    if (!failure_.ok()) { return; }
    auto& queue = sends_[static_cast<std::size_t>(what.peer)];
    auto& item = *queue.emplace_back(std::make_unique<in_flight>(in_flight{std::move(what), MPI_REQUEST_NULL, count}));
    keep_first(MPI_Isend(item.what.bytes.data(), static_cast<int>(item.what.bytes.size()), MPI_BYTE, item.what.peer,
                         letter_tag, comm_.get(), &item.request),
               "MPI_Isend");
  }

  [[nodiscard]] bool is_done(in_flight& item) {
    int done = 0;
    keep_first(MPI_Test(&item.request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    return done != 0;
  }
  void forget_sent() {
    for (auto& queue : sends_) {
      while (failure_.ok() && !queue.empty() && is_done(*queue.front())) {
        if (queue.front()->count == count_) { --num_unsent_; }
        queue.pop_front();
      }
    }
  }

  // Begin to receive whatever is announced.
  void accept() {
    while (failure_.ok()) {
      int found = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status facts{};
      keep_first(MPI_Improbe(MPI_ANY_SOURCE, letter_tag, comm_.get(), &found, &message, &facts), "MPI_Improbe");
      if (found == 0 || !failure_.ok()) { return; }
      int size = 0;
      MPI_Get_count(&facts, MPI_BYTE, &size);
      auto& queue = receives_[static_cast<std::size_t>(facts.MPI_SOURCE)];
      auto& item = *queue.emplace_back(std::make_unique<in_flight>(
          in_flight{{facts.MPI_SOURCE, std::vector<std::byte>(static_cast<std::size_t>(size))}}));
      keep_first(MPI_Imrecv(item.what.bytes.data(), size, MPI_BYTE, &message, &item.request), "MPI_Imrecv");
    }
  }

  void note_gone(index_t peer) {
    gone_[static_cast<std::size_t>(peer)] = 1;
    ++num_gone_;
  }

  // Say goodbye, and give the last letters a moment; their receivers may be about to read them.
  // @return whether nothing can arrive any more.
  [[nodiscard]] bool part() {
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (peer != rank()) { send(write_letter(peer, {goodbye})); }
    }
    auto const deadline = ballast::detail::deadline_after(parting);
    auto const is_over = [this] { return num_gone_ == num_ranks() - 1 && all_empty(sends_); };
    return collect_until([](letter const&) {}, is_over, deadline) && failure_.ok();
  }

  own_communicator comm_;
  status failure_;
  queues sends_;
  queues receives_;
  std::vector<unsigned char> gone_;  // [R]
  index_t num_gone_ = 0;
  std::uint64_t count_ = 1;
  std::size_t num_unsent_ = 0;
};

}  // namespace mpi::detail
BALLAST_END_NAMESPACE

#endif
