// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Batches of very many messages, and what is left of batches that failed.
#include <ballast/mpi/control.hpp>
#include <ballast/mpi/detail/mailbox.hpp>
#include <ballast/mpi/detail/records.hpp>
#include <ballast/mpi/transport.hpp>

#include "adapters/mpi/mpi_ranks.hpp"
#include "support/check_complaints.hpp"
#include "support/control_laws.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>
#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace {

using ballast::errc;
using ballast::incoming_message;
using ballast::index_t;
using ballast::outgoing_message;
using ballast::segment;
using ballast::detail::concat;
using ballast::mpi::detail::record;
using ballast_test::dice;
using ballast_test::law_log;
using ballast_test::meet;
using ballast_test::millisecond;
using ballast_test::on_all_ranks;
using ballast_test::patience;
using ballast_test::slack;
using ballast_test::sleep_for;

/// Messages of some bytes each from rank 0 to rank 1, listed in any order.
class many_messages {
public:
  many_messages(index_t rank, std::size_t count, std::size_t bytes, std::uint64_t first_tag, std::uint64_t seed)
      : memory_(count * bytes), segments_(count) {
    for (std::size_t m = 0; m < count; ++m) {
      segments_[m] = {memory_.data() + m * bytes, bytes};
      auto const part = std::span<segment const>{&segments_[m], 1};
      if (rank == 0) { sends.push_back({1, static_cast<index_t>(m), first_tag + m, part}); }
      if (rank == 1) { receives.push_back({0, static_cast<index_t>(m), first_tag + m, part, {}}); }
    }
    for (std::size_t i = 0; i < memory_.size() && rank == 0; ++i) { memory_[i] = byte(i); }
    dice random{seed};
    for (std::size_t m = count; seed != 0 && m > 1; --m) {
      auto const other = random.below(m);
      if (rank == 0) { std::swap(sends[m - 1], sends[other]); }
      if (rank == 1) { std::swap(receives[m - 1], receives[other]); }
    }
  }
  [[nodiscard]] bool has_arrived() const {
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      if (memory_[i] != byte(i)) { return false; }
    }
    return true;
  }

  std::vector<outgoing_message> sends;
  std::vector<incoming_message> receives;

private:
  [[nodiscard]] static std::byte byte(std::size_t i) { return static_cast<std::byte>(i * 7 + i / 251 + 1); }

  std::vector<std::byte> memory_;
  std::vector<segment> segments_;
};

}  // namespace

TEST_CASE("a batch of 66,000 messages of one byte takes no time to speak of") {
  // Whoever comes first, and in whatever order the two sides list them.
  for (int const first : {0, 1, 2}) {
    CAPTURE(first);
    on_all_ranks([first](auto& self, law_log& log) {
      many_messages const batch{self.rank(), 66'000, 1, 10, first == 2 ? 0u : static_cast<unsigned>(self.rank()) + 5};
      if (self.rank() != first) { sleep_for(100 * millisecond); }
      auto const begin = std::clock();
      log.expect_ok(self.transport.start(batch.sends, batch.receives), "start");
      log.expect_ok(self.transport.wait(patience), "wait");
      auto const taken = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
      log.expect(taken < 1.5, "66,000 messages took the processor ", taken, " s");
      log.expect(self.rank() != 1 || batch.has_arrived(), "wrong bytes");
      meet(self, log);
    });
  }
}

TEST_CASE("messages of every size travel in pieces of any size") {
  for (std::size_t const piece : {std::size_t{1}, std::size_t{47}, std::size_t{100}, std::size_t{5000}}) {
    CAPTURE(piece);
    on_all_ranks(
        [](auto& self, law_log& log) {
          std::uint64_t tag = 1;
          for (std::size_t const bytes : {std::size_t{0}, std::size_t{1}, std::size_t{46}, std::size_t{300}}) {
            many_messages const batch{self.rank(), 9, bytes, tag, static_cast<unsigned>(self.rank()) + 1};
            tag += 100;
            log.expect_ok(self.transport.start(batch.sends, batch.receives), "start");
            log.expect_ok(self.transport.wait(patience), concat("messages of ", bytes, " bytes"));
            log.expect(self.rank() != 1 || batch.has_arrived(), "wrong bytes in messages of ", bytes);
          }
          meet(self, log);
        },
        {.piece_bytes = piece});
  }
}

TEST_CASE("an empty batch neither waits nor sends") {
  on_all_ranks([](auto& self, law_log& log) {
    auto const begin = ballast::detail::now();
    for (int batch = 0; batch < 10'000; ++batch) {
      log.expect_ok(self.transport.start({}, {}), "start");
      log.expect(self.transport.poll() == ballast::transfer_state::done, "an empty batch is not done");
      log.expect_ok(self.transport.wait(0), "wait");
    }
    log.expect(ballast::detail::now() - begin < slack, "empty batches take time");
    meet(self, log);
  });
}

TEST_CASE("ranks that do not exist and tags that are expected twice are refused") {
  on_all_ranks([](auto& self, law_log& log) {
    for (index_t const peer : {-1, self.num_ranks(), self.rank(), std::numeric_limits<index_t>::max()}) {
      std::array<outgoing_message, 1> const sends{{{peer, 0, 1, {}}}};
      std::array<incoming_message, 1> const receives{{{peer, 0, 1, {}, {}}}};
      auto const name = concat("with rank ", peer);
      log.expect_failure(self.transport.start(sends, {}), {errc::transport_failed}, name, "a send to nobody");
      log.expect_failure(self.transport.start({}, receives), {errc::transport_failed}, name, "a receive from nobody");
    }
    auto const peer = self.rank() == 0 ? 1 : 0;
    std::array<incoming_message, 2> const twice{{{peer, 0, 77, {}, {}}, {peer, 1, 77, {}, {}}}};
    log.expect_failure(self.transport.start({}, twice), {errc::transport_failed}, "two messages with tag 77",
                       "one tag twice");
    log.expect(self.transport.poll() == ballast::transfer_state::idle, "a refused batch is open");
    many_messages const batch{self.rank(), 3, 5, 1, 0};
    log.expect_ok(self.transport.start(batch.sends, batch.receives), "start after refusals");
    log.expect_ok(self.transport.wait(std::numeric_limits<ballast::nanoseconds_t>::max()), "the longest timeout");
    log.expect(self.rank() != 1 || batch.has_arrived(), "wrong bytes");
    meet(self, log);
  });
}

TEST_CASE("whoever counts on a batch that was given up learns so at once") {
  for (index_t const quitter : {0, 1}) {
    CAPTURE(quitter);
    on_all_ranks(
        [quitter](auto& self, law_log& log) {
          // Far more than may be on its way at once. The quitter takes part for a moment.
          many_messages const batch{self.rank(), 1, 3'000'000, 1, 0};
          if (self.rank() <= 1) {
            log.expect_ok(self.transport.start(batch.sends, batch.receives), "start");
            if (self.rank() != quitter) { ballast_test::tell(quitter); }
            if (self.rank() == quitter) {
              ballast_test::hear(1 - quitter);
              sleep_for(20 * millisecond);
              for (int i = 0; i < 3; ++i) { static_cast<void>(self.transport.poll()); }
            }
            auto const begin = ballast::detail::now();
            auto const result = self.transport.wait(self.rank() == quitter ? 0 : patience);
            log.expect_failure(result, {errc::deadline_exceeded, errc::transport_failed},
                               concat("rank ", 1 - self.rank()), "a batch that was given up");
            log.expect(result.rank() == 1 - self.rank(), "rank ", result.rank(), " is blamed");
            log.expect(ballast::detail::now() - begin < slack, "a batch that was given up goes on");
          }
          meet(self, log);
          many_messages const next{self.rank(), 7, 900, 500, 0};
          log.expect_ok(self.transport.start(next.sends, next.receives), "the next start");
          log.expect_ok(self.transport.wait(patience), "the next wait");
          log.expect(self.rank() != 1 || next.has_arrived(), "wrong bytes in the next batch");
          meet(self, log);
        },
        {.piece_bytes = 1000, .pieces_in_flight = 1});
  }
}

TEST_CASE("what a peer has not taken of a failed batch does not hold up the next") {
  if (ballast_test::world_size() < 3) { return; }
  on_all_ranks(
      [](auto& self, law_log& log) {
        std::vector<std::byte> memory(2'000'000, std::byte{9});
        std::array<segment, 1> const all{{{memory.data(), memory.size()}}};
        if (self.rank() == 2) {
          // Asks rank 0, and takes nothing.
          std::array<incoming_message, 1> const receives{{{0, 0, 5, all, {}}}};
          log.expect_ok(self.transport.start({}, receives), "start of the one that takes nothing");
          ballast_test::tell(0);
          ballast_test::hear(0);
          log.expect(!self.transport.wait(patience).ok(), "a batch that the sender gave up ended well");
        } else {
          if (self.rank() == 0) {
            std::array<outgoing_message, 1> const sends{{{2, 0, 5, all}}};
            ballast_test::hear(2);
            log.expect_ok(self.transport.start(sends, {}), "start of the first");
            auto const result = self.transport.wait(100 * millisecond);
            log.expect_failure(result, {errc::deadline_exceeded}, "rank 2", "a batch that is not taken");
          }
          many_messages const next{self.rank(), 3, 50'000, 100, 0};
          log.expect_ok(self.transport.start(next.sends, next.receives), "start of the next");
          log.expect_ok(self.transport.wait(slack), "the next batch, with another rank");
          log.expect(self.rank() != 1 || next.has_arrived(), "wrong bytes in the next batch");
          if (self.rank() == 0) { ballast_test::tell(2); }
        }
        meet(self, log);
      },
      {.piece_bytes = 100'000, .pieces_in_flight = 1});
}

TEST_CASE("whoever needs a transport that is no more learns so at once") {
  law_log log{ballast_test::world_rank()};
  for (index_t const leaver : {0, 1}) {
    auto wires = std::make_unique<ballast::mpi::transport>(MPI_COMM_WORLD);
    many_messages const batch{wires->rank(), 3, 100, 1, 0};
    auto const begin = ballast::detail::now();
    if (wires->rank() == 1 - leaver) {
      log.expect_ok(wires->start(batch.sends, batch.receives), "start");
      log.expect_failure(wires->wait(patience), {errc::peer_lost}, concat("rank ", leaver), "a batch with nobody");
      log.expect(ballast::detail::now() - begin < slack, "a batch waited for a transport that is no more");
    }
    wires.reset();
    MPI_Barrier(MPI_COMM_WORLD);
  }
  ballast_test::check_complaints(log.complaints());
}

TEST_CASE("bytes of an older batch are not taken for a newer one's, whatever their tag") {
  // Rank 0 plays a sender whose bytes are late, by the letters themselves.
  law_log log{ballast_test::world_rank()};
  constexpr std::size_t bytes = 100;
  auto const send = [](auto& mailbox, std::uint64_t number, std::byte value, std::uint64_t at = 0) {
    auto late = ballast::mpi::detail::write_letter(1, {});
    ballast::mpi::detail::append(late, {record::kind::data, 40, number, bytes, at, bytes});
    late.bytes.resize(late.bytes.size() + bytes, value);
    mailbox.send(std::move(late));
  };
  if (ballast_test::world_rank() == 0) {
    ballast::mpi::detail::mailbox mailbox{MPI_COMM_WORLD, patience};
    std::vector<record> heard;
    auto const hear = [&](std::size_t count) {
      log.expect(mailbox.collect_until(
                     [&](auto const& letter) {
                       log.expect(for_each_record(letter, [&](auto const& what, auto) { heard.push_back(what); }),
                                  "half a record");
                     },
                     [&] { return heard.size() >= count; }, ballast::detail::deadline_after(patience)),
                 "heard only ", heard.size(), " records");
    };
    hear(3);  // a request, its end, and the same request again
    if (heard.size() == 3) {
      log.expect(heard[0].tag == 7 && heard[2].tag == 7 && heard[1].what == record::kind::cancel, "other records");
      send(mailbox, heard[0].number, std::byte{1});
      send(mailbox, heard[2].number, std::byte{2});
      hear(5);
      log.expect(heard[3].what == record::kind::refused, "late bytes were not refused");
      log.expect(heard[4].what == record::kind::taken, "good bytes were not taken");
      hear(6);
      send(mailbox, heard.back().number, std::byte{3}, 1);
    }
  } else {
    ballast::mpi::transport transport{MPI_COMM_WORLD};
    if (transport.rank() == 1) {
      std::array<std::byte, bytes> memory{};
      std::array<segment, 1> const all{{{memory.data(), bytes}}};
      std::array<incoming_message, 1> const receives{{{0, 0, 7, all, {}}}};
      log.expect_ok(transport.start({}, receives), "start");
      log.expect(!transport.wait(0).ok(), "a batch ended well that nobody served");
      log.expect_ok(transport.start({}, receives), "start again");
      log.expect_ok(transport.wait(patience), "wait again");
      log.expect(std::ranges::all_of(memory, [](std::byte value) { return value == std::byte{2}; }), "wrong bytes");
      // Bytes that begin elsewhere than where the last ones ended.
      log.expect_ok(transport.start({}, receives), "the third start");
      log.expect_failure(transport.wait(patience), {errc::corrupted}, "rank 0 sent bytes [1, 101)", "the third wait");
    }
  }
  MPI_Barrier(MPI_COMM_WORLD);
  ballast_test::check_complaints(log.complaints());
}

TEST_CASE("a receipt of an older batch does not count for a newer one") {
  law_log log{ballast_test::world_rank()};
  // Rank 1 plays a receiver whose receipt is late.
  if (ballast_test::world_rank() == 1) {
    ballast::mpi::detail::mailbox mailbox{MPI_COMM_WORLD, patience};
    auto const say = [&](record const& what) {
      auto letter = ballast::mpi::detail::write_letter(0, {});
      ballast::mpi::detail::append(letter, what);
      mailbox.send(std::move(letter));
    };
    std::vector<record> heard;
    auto const hear_data = [&] {
      heard.clear();
      log.expect(mailbox.collect_until(
                     [&](auto const& letter) {
                       log.expect(for_each_record(letter, [&](auto const& what, auto) { heard.push_back(what); }),
                                  "half a record");
                     },
                     [&] { return !heard.empty(); }, ballast::detail::deadline_after(patience)),
                 "no bytes came");
    };
    say({record::kind::request, 7, 0, 10});
    hear_data();
    auto const first = heard.empty() ? 0 : heard[0].tag;
    ballast_test::hear(0);
    say({record::kind::request, 7, 1, 10});
    hear_data();
    say({record::kind::taken, 0, first});
    ballast_test::hear(0);
  } else {
    ballast::mpi::transport transport{MPI_COMM_WORLD};
    if (transport.rank() == 0) {
      std::array<std::byte, 10> memory{};
      std::array<segment, 1> const all{{{memory.data(), memory.size()}}};
      std::array<outgoing_message, 1> const sends{{{1, 0, 7, all}}};
      log.expect_ok(transport.start(sends, {}), "start");
      log.expect(!transport.wait(200 * millisecond).ok(), "a batch ended well without a receipt");
      ballast_test::tell(1);
      log.expect_ok(transport.start(sends, {}), "start again");
      log.expect_failure(transport.wait(300 * millisecond), {errc::deadline_exceeded}, "rank 1", "wait again");
      ballast_test::tell(1);
    }
  }
  MPI_Barrier(MPI_COMM_WORLD);
  ballast_test::check_complaints(log.complaints());
}
