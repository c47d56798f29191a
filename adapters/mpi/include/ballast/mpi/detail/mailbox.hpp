// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MPI_DETAIL_MAILBOX_HPP
#define BALLAST_MPI_DETAIL_MAILBOX_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ctime>
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

[[nodiscard]] inline letter write_letter(index_t peer, letter::header const& head, std::size_t payload_bytes = 0) {
  letter out{peer, std::vector<std::byte>(sizeof head + payload_bytes)};
  std::memcpy(out.bytes.data(), &head, sizeof head);
  return out;
}

/// Sends and receives letters without ever waiting, over a communicator of its own.
///
/// MPI cannot take back a send, nor always a receive. So MPI only ever sees memory of the mailbox, which keeps it until
/// MPI is done with it, if need be beyond the mailbox's end.
class mailbox {
public:
  /// Make a communicator like `borrowed` for letters alone. Called by all its ranks together.
  explicit mailbox(MPI_Comm borrowed) {
    int initialized = 0;
    MPI_Initialized(&initialized);
    BALLAST_EXPECTS(initialized != 0, "mpi: MPI_Init was not called");
    keep_first(MPI_Comm_dup(borrowed, &comm_), "MPI_Comm_dup");
    if (!failure_.ok()) { return; }
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &num_ranks_);
  }
  mailbox(mailbox const&) = delete;
  mailbox& operator=(mailbox const&) = delete;
  ~mailbox() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && comm_ != MPI_COMM_NULL) {
      finish();
      if (sends_.empty() && receives_.empty()) { MPI_Comm_free(&comm_); }
    }
    for (auto& send : sends_) { static_cast<void>(send.release()); }  // MPI may still read them
    for (auto& receive : receives_) { static_cast<void>(receive.release()); }
  }

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }
  /// The first error that MPI reported. Nothing works any more after one.
  [[nodiscard]] status const& failure() const noexcept { return failure_; }
  [[nodiscard]] std::size_t num_unsent() const noexcept { return sends_.size(); }

  /// Begin to send. Letters between two ranks arrive in order.
  void send(letter what) {
    if (!failure_.ok()) { return; }
    auto& item = *sends_.emplace_back(std::make_unique<in_flight>(in_flight{std::move(what), MPI_REQUEST_NULL}));
    auto const size = item.what.bytes.size();
    BALLAST_EXPECTS(size <= static_cast<std::size_t>(std::numeric_limits<int>::max()), "mpi: letter too long");
    keep_first(MPI_Isend(item.what.bytes.data(), static_cast<int>(size), MPI_BYTE, item.what.peer, letter_tag, comm_,
                         &item.request),
               "MPI_Isend");
  }

  /// Hand every letter that has arrived to `take(letter)`.
  template <class Take>
  void collect(Take take) {
    forget_sent();
    accept();
    // Receives were begun in the order of arrival and are handed out in that order.
    while (failure_.ok() && !receives_.empty() && is_done(*receives_.front())) {
      auto const arrived = std::move(receives_.front());
      receives_.erase(receives_.begin());
      if (arrived->what.bytes.size() >= sizeof(letter::header)) { take(std::move(arrived->what)); }
    }
  }

  /// Collect until `done()` holds, in naps that grow while nothing comes. @return false when late or after an error
  template <class Take, class Done>
  [[nodiscard]] bool collect_until(Take take, Done done, nanoseconds_t deadline) {
    auto nap = shortest_nap;
    for (;;) {
      bool heard = false;
      collect([&](letter what) {
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

  struct in_flight {
    letter what;
    MPI_Request request;
  };

  void keep_first(int code, std::string_view what) {
    if (code == MPI_SUCCESS || !failure_.ok()) { return; }
    char text[MPI_MAX_ERROR_STRING];
    int size = 0;
    MPI_Error_string(code, text, &size);
    failure_ = {errc::transport_failed,
                ballast::detail::concat(what, ": ", std::string_view{text, static_cast<std::size_t>(size)})};
  }

  [[nodiscard]] bool is_done(in_flight& item) {
    int done = 0;
    keep_first(MPI_Test(&item.request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    return done != 0;
  }
  void forget_sent() {
    std::erase_if(sends_, [&](auto& item) { return failure_.ok() && is_done(*item); });
  }

  // Begin to receive whatever is announced.
  void accept() {
    while (failure_.ok()) {
      int found = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status facts{};
      keep_first(MPI_Improbe(MPI_ANY_SOURCE, letter_tag, comm_, &found, &message, &facts), "MPI_Improbe");
      if (found == 0 || !failure_.ok()) { return; }
      int size = 0;
      MPI_Get_count(&facts, MPI_BYTE, &size);
      auto& item = *receives_.emplace_back(std::make_unique<in_flight>(
          in_flight{{facts.MPI_SOURCE, std::vector<std::byte>(static_cast<std::size_t>(size))}, MPI_REQUEST_NULL}));
      keep_first(MPI_Imrecv(item.what.bytes.data(), size, MPI_BYTE, &message, &item.request), "MPI_Imrecv");
    }
  }

  // Give the last letters a moment; their receivers may be about to read them.
  void finish() {
    auto const deadline = ballast::detail::now() + parting;
    static_cast<void>(collect_until([](letter const&) {}, [&] { return sends_.empty(); }, deadline));
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int num_ranks_ = 1;
  status failure_;
  std::vector<std::unique_ptr<in_flight>> sends_;
  std::vector<std::unique_ptr<in_flight>> receives_;
};

}  // namespace mpi::detail
BALLAST_END_NAMESPACE

#endif
