// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MPI_DETAIL_RECORDS_HPP
#define BALLAST_MPI_DETAIL_RECORDS_HPP

#include <ballast/mpi/detail/mailbox.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace mpi::detail {

/// One thing that a transport has to say. A letter holds many, so that many small messages are few letters.
struct record {
  enum class kind : std::uint64_t {
    request,    ///< the receiver expects message `tag` of `size` bytes; it knows it as `number`
    cancel,     ///< it does not expect any more what it asked for before `number`
    data,       ///< the bytes from `at` on of the receiver's `number` of `size` bytes, which the sender knows as `tag`
    taken,      ///< the receiver has all bytes up to the sender's `number`, in the order in which they were sent
    refused,    ///< the receiver does not expect the sender's `number`
    mismatch,   ///< the receiver's `number` has `size` bytes at the sender
    withdrawn,  ///< the sender sends no more of the receiver's `number`
  };

  kind what = kind::request;
  std::uint64_t tag = 0;
  std::uint64_t number = 0;
  std::uint64_t size = 0;
  std::uint64_t at = 0;
  std::uint64_t run = 0;  ///< bytes that follow
};

inline void append(letter& to, record const& what) {
  auto const at = to.bytes.size();
  to.bytes.resize(at + sizeof what);
  std::memcpy(to.bytes.data() + at, &what, sizeof what);
}

/// Hand each record of a letter and the bytes that follow it to `use(record, bytes)`. @return whether all was well
/// formed
template <class Use>
[[nodiscard]] bool for_each_record(letter const& from, Use use) {
  auto rest = from.payload();
  while (rest.size() >= sizeof(record)) {
    record what;
    std::memcpy(&what, rest.data(), sizeof what);
    rest = rest.subspan(sizeof what);
    if (what.run > rest.size()) { return false; }
    use(what, rest.first(what.run));
    rest = rest.subspan(what.run);
  }
  return rest.empty();
}

/// Records on their way into a letter, for each rank.
class outbox {
public:
  explicit outbox(index_t num_ranks) : letters_(static_cast<std::size_t>(num_ranks)) {}

  void add(mailbox& out, index_t peer, record const& what) {
    auto& open = letters_[static_cast<std::size_t>(peer)];
    if (open.bytes.empty()) {
      open = write_letter(peer, {});
      waiting_.push_back(peer);
    }
    append(open, what);
    if (open.bytes.size() >= letter_bytes) { send(out, open); }
  }
  void flush(mailbox& out) {
    for (auto const peer : waiting_) {
      auto& open = letters_[static_cast<std::size_t>(peer)];
      if (!open.bytes.empty()) { send(out, open); }
    }
    waiting_.clear();
  }

private:
  static constexpr std::size_t letter_bytes = std::size_t{1} << 16;

  static void send(mailbox& out, letter& open) {
    out.send(std::move(open));
    open = {};
  }

  std::vector<letter> letters_;  // [R]
  std::vector<index_t> waiting_;
};

}  // namespace mpi::detail
BALLAST_END_NAMESPACE

#endif
