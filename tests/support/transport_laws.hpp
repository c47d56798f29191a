// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_TRANSPORT_LAWS_HPP
#define BALLAST_TESTS_SUPPORT_TRANSPORT_LAWS_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>

#include "support/control_laws.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/random_batch.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace ballast_test {

/// One rank's memory for batches: two regions that peers may read, and a target that tells afterwards what was written.
template <class Endpoint>
class batch_memory {
public:
  /// @param model  of several sets of regions on one transport each holds other bytes.
  batch_memory(Endpoint& self, law_log& log, std::size_t region_bytes, std::size_t target_bytes,
               std::uint32_t model = 0)
      : self_{self}, log_{log}, target_bytes_{target_bytes}, model_{model} {
    for (std::uint32_t region = 0; region < num_source_regions; ++region) {
      regions_.push_back({self.memory.allocate(region_bytes), region_bytes});
      std::vector<std::byte> bytes(region_bytes);
      for (std::size_t i = 0; i < bytes.size(); ++i) { bytes[i] = byte_of(self.rank(), region, i); }
      self.memory.write(regions_.back().data, bytes);
    }
    target_ = self.memory.allocate(target_bytes);
    if constexpr (ballast::peer_copier<std::remove_cvref_t<decltype(self.transport)>>) {
      first_region_ = self.transport.next_region();
      log.expect_ok(self.transport.expose(regions_, first_region_), "expose");
    }
    clear();
  }

  void clear() {
    expected_.assign(target_bytes_, untouched);
    self_.memory.write(target_, expected_);
  }
  [[nodiscard]] batch_view view(std::vector<batch_message> const& batch) const {
    return {batch, self_.rank(), regions_, target_, first_region_};
  }

  [[nodiscard]] std::uint32_t first_region() const noexcept { return first_region_; }

  /// Every byte of the target is what `batch` puts there, or untouched.
  void expect_received(std::vector<batch_message> const& batch, std::string_view what) {
    for (auto const& message : batch) {
      if (message.to == self_.rank()) { place(message); }
    }
    std::vector<std::byte> got(target_bytes_);
    self_.memory.read(target_, got);
    auto const wrong = std::ranges::mismatch(got, expected_).in1;
    log_.expect(wrong == got.end(), what, ": byte ", wrong - got.begin(), " of the target is wrong");
  }

private:
  static constexpr std::byte untouched{0xa5};

  [[nodiscard]] std::byte byte_of(ballast::index_t rank, std::uint32_t region, std::size_t offset) const {
    return source_byte(rank, region + 16 * model_, offset);
  }

  void place(batch_message const& message) {
    std::vector<std::byte> bytes;
    for (auto const& part : message.source) {
      for (std::size_t i = 0; i < part.size; ++i) {
        bytes.push_back(byte_of(message.from, part.region, part.offset + i));
      }
    }
    auto from = bytes.begin();
    for (auto const& part : message.target) {
      auto const end = from + static_cast<std::ptrdiff_t>(part.size);
      std::copy(from, end, expected_.begin() + static_cast<std::ptrdiff_t>(part.offset));
      from = end;
    }
  }

  Endpoint& self_;
  law_log& log_;
  std::size_t target_bytes_;
  std::uint32_t model_;
  std::uint32_t first_region_ = 0;
  std::vector<ballast::segment> regions_;
  std::byte* target_ = nullptr;
  std::vector<std::byte> expected_;
};

namespace transport_law {

inline constexpr std::size_t region_bytes = 100'000;
inline constexpr std::size_t target_bytes = 300'000;

/// One message of `bytes` bytes from rank 0 to rank 1.
[[nodiscard]] inline std::vector<batch_message> single_message(std::uint64_t tag, std::size_t bytes) {
  return {{0, 1, 0, tag, {{0, 3, bytes}}, {{0, 5, bytes}}}};
}

template <class Endpoint>
void moves_random_batches(Endpoint& self, law_log& log, std::uint64_t seed, int num_batches) {
  using ballast::transfer_state;
  batch_memory memory{self, log, region_bytes, target_bytes};
  dice shared{seed};
  dice own{seed * 1000 + static_cast<std::uint64_t>(self.rank())};
  for (int number = 0; number < num_batches; ++number) {
    auto const batch =
        random_batch(self.num_ranks(), region_bytes, static_cast<std::uint64_t>(number) << 20, {}, shared);
    auto const view = memory.view(batch);
    memory.clear();
    if (own.below(4) == 0) { sleep_for(own.below(3) * millisecond); }
    log.expect(self.transport.poll() == transfer_state::idle, "a batch is open too early");
    if (!log.expect_ok(self.transport.start(view.sends, view.receives), "start")) { return; }
    if (own.below(2) == 0) {
      auto const deadline = ballast::detail::now() + patience;
      while (self.transport.poll() == transfer_state::pending && ballast::detail::now() < deadline) {
        sleep_for(millisecond / 20);
      }
      log.expect(self.transport.poll() == transfer_state::done, "polling did not finish the batch");
    }
    if (!log.expect_ok(self.transport.wait(patience), ballast::detail::concat("wait for batch ", number))) { return; }
    log.expect(self.transport.poll() == transfer_state::idle, "the batch is still open after wait");
    memory.expect_received(batch, ballast::detail::concat("batch ", number));
  }
  meet(self, log);  // nobody's memory goes away before all have read it
}

// More messages between two ranks, and more segments, than any fixed table holds.
template <class Endpoint>
void moves_many_messages(Endpoint& self, law_log& log) {
  batch_memory memory{self, log, region_bytes, target_bytes};
  std::vector<batch_message> batch;
  for (ballast::index_t m = 0; m < 150; ++m) {
    auto const at = static_cast<std::size_t>(m) * 20;
    batch.push_back({0, 1, m, static_cast<std::uint64_t>(m), {{1, at, 17}}, {{0, 1 + at, 17}}});
  }
  batch_message fine{1, 0, 0, 500, {}, {}};
  for (std::size_t i = 0; i < 3000; ++i) {
    fine.source.push_back({0, 7 * i, 3});
    fine.target.push_back({0, 10 + 4 * i, 3});
  }
  batch.push_back(fine);
  auto const view = memory.view(batch);
  log.expect_ok(self.transport.start(view.sends, view.receives), "start");
  log.expect_ok(self.transport.wait(patience), "wait");
  memory.expect_received(batch, "many messages");
  meet(self, log);
}

// Several megabytes at once in both directions, so that neither side can lean on buffers in between.
template <class Endpoint>
void moves_large_messages(Endpoint& self, law_log& log) {
  std::size_t const bytes = (std::size_t{2} << 20) + 13;
  bool const takes_part = self.rank() <= 1;
  batch_memory memory{self, log, takes_part ? bytes + 100 : 1, takes_part ? 2 * bytes : 1};
  std::vector<batch_message> const batch{{0, 1, 0, 1, {{0, 50, bytes}}, {{0, 1, bytes}}},
                                         {1, 0, 0, 2, {{1, 9, bytes - 5}, {0, 0, 5}}, {{0, bytes / 2, bytes}}}};
  auto const view = memory.view(batch);
  log.expect_ok(self.transport.start(view.sends, view.receives), "start");
  log.expect_ok(self.transport.wait(patience), "wait");
  memory.expect_received(batch, "large messages");
  meet(self, log);
}

// Two models on one transport: what one of them exposes leaves the other's memory as it is, and a set that is forgotten
// is not read again.
template <class Endpoint>
void keeps_models_apart(Endpoint& self, law_log& log) {
  batch_memory first{self, log, region_bytes, target_bytes, 0};
  batch_memory second{self, log, region_bytes, target_bytes, 1};
  dice shared{3};
  for (std::uint64_t number = 0; number < 12; ++number) {
    auto& memory = number % 3 == 0 ? second : first;
    auto const batch = random_batch(self.num_ranks(), region_bytes, number << 20, {}, shared);
    auto const view = memory.view(batch);
    memory.clear();
    if (!log.expect_ok(self.transport.start(view.sends, view.receives), "start")) { return; }
    if (!log.expect_ok(self.transport.wait(patience), "wait")) { return; }
    memory.expect_received(batch, ballast::detail::concat("model ", number % 3 == 0 ? 1 : 0, ", batch ", number));
  }
  meet(self, log);
  if constexpr (ballast::peer_copier<std::remove_cvref_t<decltype(self.transport)>>) {
    auto const next = self.transport.next_region();
    log.expect(next >= second.first_region() + num_source_regions, "region numbers are used again: ", next);
    log.expect(!self.transport.expose({}, second.first_region()).ok(), "a second set took the first one's numbers");
    meet(self, log);
    self.transport.retract(first.first_region());
    auto const batch = single_message(std::uint64_t{77} << 20, 1000);
    auto const view = first.view(batch);
    if (self.rank() == 1) {
      auto result = self.transport.start({}, view.receives);
      if (result.ok()) { result = self.transport.wait(100 * millisecond); }
      log.expect(!result.ok(), "a region that was forgotten is read");
      log.expect(result.message().find("region") != std::string::npos, "no region is named: ", result.message());
    }
    meet(self, log);
    auto const last = single_message(std::uint64_t{78} << 20, 1000);
    auto const last_view = second.view(last);
    second.clear();
    log.expect_ok(self.transport.start(last_view.sends, last_view.receives), "start on the set that is left");
    log.expect_ok(self.transport.wait(patience), "wait on the set that is left");
    second.expect_received(last, "the set that is left");
  }
  meet(self, log);
}

// One batch at a time: a second is refused, and the first goes on.
template <class Endpoint>
void refuses_a_second_batch(Endpoint& self, law_log& log) {
  batch_memory memory{self, log, region_bytes, target_bytes};
  auto const batch = single_message(1, 5000);
  auto const view = memory.view(batch);
  log.expect_ok(self.transport.start(view.sends, view.receives), "start");
  log.expect_failure(self.transport.start({}, {}), {ballast::errc::busy}, "open", "a second batch");
  log.expect_ok(self.transport.wait(patience), "wait");
  memory.expect_received(batch, "the first batch");
  meet(self, log);
}

// The sender never comes, then comes too late: both sides fail in time, and the late message goes nowhere.
template <class Endpoint>
void drops_late_messages(Endpoint& self, law_log& log) {
  auto const timeout = 150 * millisecond;
  batch_memory memory{self, log, region_bytes, target_bytes};
  auto const missed = single_message(1, 5000);
  auto const view = memory.view(missed);
  if (self.rank() == 0) { meet(self, log); }
  auto const begin = ballast::detail::now();
  log.expect_ok(self.transport.start(view.sends, view.receives), "start");
  auto const result = self.transport.wait(timeout);
  auto const taken = ballast::detail::now() - begin;
  if (self.rank() <= 1) {
    log.expect_failure(result, {ballast::errc::deadline_exceeded, ballast::errc::transport_failed},
                       ballast::detail::concat("rank ", 1 - self.rank()), "a message without a partner");
    log.expect(taken < timeout + slack, "the deadline passed after ", taken, " ns");
  } else {
    log.expect_ok(result, "an empty batch");
  }
  if (self.rank() != 0) { meet(self, log); }
  meet(self, log);
  memory.expect_received({}, "nothing was sent in time");

  auto const next = single_message(2, 4000);
  auto const next_view = memory.view(next);
  log.expect_ok(self.transport.start(next_view.sends, next_view.receives), "start after a failure");
  log.expect_ok(self.transport.wait(patience), "wait after a failure");
  memory.expect_received(next, "the batch after a failure");
  meet(self, log);
}

// Sender and receiver disagree about the size.
template <class Endpoint>
void refuses_wrong_sizes(Endpoint& self, law_log& log) {
  auto const timeout = 300 * millisecond;
  batch_memory memory{self, log, region_bytes, target_bytes};
  for (std::size_t const sent : {std::size_t{4999}, std::size_t{5001}, std::size_t{0}}) {
    auto const tag = static_cast<std::uint64_t>(10 + sent);
    auto const batch = single_message(tag, self.rank() == 0 ? sent : 5000);
    auto const view = memory.view(batch);
    memory.clear();
    log.expect_ok(self.transport.start(view.sends, view.receives), "start");
    auto const result = self.transport.wait(timeout);
    if (self.rank() <= 1) {
      log.expect(!result.ok(), "a message of ", sent, " bytes passed for one of 5000");
      log.expect(result.message().find("rank ") != std::string::npos, "no rank is named: ", result.message());
    } else {
      log.expect_ok(result, "an empty batch");
    }
    meet(self, log);
  }
  auto const next = single_message(3, 4000);
  auto const view = memory.view(next);
  memory.clear();
  log.expect_ok(self.transport.start(view.sends, view.receives), "start after a failure");
  log.expect_ok(self.transport.wait(patience), "wait after a failure");
  memory.expect_received(next, "the batch after a failure");
  meet(self, log);
}

// The same message twice: once is delivered, and the second spoils neither memory nor the next batch.
template <class Endpoint>
void survives_duplicates(Endpoint& self, law_log& log) {
  batch_memory memory{self, log, region_bytes, target_bytes};
  auto const batch = single_message(1, 5000);
  auto const view = memory.view(batch);
  auto sends = view.sends;
  if (self.rank() == 0) { sends.push_back(sends[0]); }
  log.expect_ok(self.transport.start(sends, view.receives), "start");
  auto const result = self.transport.wait(300 * millisecond);
  if (self.rank() != 0) {
    log.expect_ok(result, "the receiver of a duplicate");
    memory.expect_received(batch, "a duplicate");
  }
  meet(self, log);
  auto const next = single_message(2, 70);
  auto const next_view = memory.view(next);
  memory.clear();
  log.expect_ok(self.transport.start(next_view.sends, next_view.receives), "start after a duplicate");
  log.expect_ok(self.transport.wait(patience), "wait after a duplicate");
  memory.expect_received(next, "the batch after a duplicate");
  meet(self, log);
}

// Tags tell messages apart, whatever the order in which the two sides list them.
template <class Endpoint>
void matches_by_tag(Endpoint& self, law_log& log) {
  batch_memory memory{self, log, region_bytes, target_bytes};
  std::vector<batch_message> batch;
  for (std::uint64_t m = 0; m < 20; ++m) {
    batch.push_back({0, 1, static_cast<ballast::index_t>(m), 100 - m, {{0, 100 * m, 64}}, {{0, 1000 * m, 64}}});
  }
  auto const view = memory.view(batch);
  auto sends = view.sends;
  std::ranges::reverse(sends);
  log.expect_ok(self.transport.start(sends, view.receives), "start");
  log.expect_ok(self.transport.wait(patience), "wait");
  memory.expect_received(batch, "messages in another order");
  meet(self, log);
}

// A time for each batch that ended well: more than nothing where bytes arrive, nothing where the device has nothing to
// do, and never more than the host saw pass.
template <class Endpoint>
void tells_batch_times(Endpoint& self, law_log& log) {
  static_assert(ballast::receive_timer<std::remove_cvref_t<decltype(self.transport)>>);
  batch_memory const memory{self, log, region_bytes, target_bytes};
  log.expect(self.transport.receive_time() == 0, "a time before the first batch");
  for (std::uint64_t tag = 1; tag <= 3; ++tag) {
    auto const batch = single_message(tag, 90'000);
    auto const view = memory.view(batch);
    auto const begin = ballast::detail::now();
    log.expect_ok(self.transport.start(view.sends, view.receives), "start");
    log.expect_ok(self.transport.wait(patience), "wait");
    auto const taken = ballast::detail::now() - begin;
    auto const time = self.transport.receive_time();
    log.expect(time >= 0 && time < taken + millisecond / 10, "a batch of ", taken, " ns took the device ", time);
    log.expect(self.rank() != 1 || time > 0, "bytes arrived in no time");
    log.expect(self.rank() <= 1 || time == 0, "nothing took ", time, " ns");
  }
  log.expect_ok(self.transport.start({}, {}), "start an empty batch");
  log.expect_ok(self.transport.wait(patience), "wait for an empty batch");
  log.expect(self.transport.receive_time() == 0, "an empty batch took ", self.transport.receive_time(), " ns");
  meet(self, log);
}

// A rank dies before it sends. Those who need it fail in time and name it; the others do not notice.
template <class Endpoint>
void notices_death(Endpoint& self, law_log& log) {
  batch_memory const memory{self, log, region_bytes, target_bytes};
  std::vector<batch_message> const batch{{2, 0, 0, 1, {{0, 0, 999}}, {{0, 1, 999}}},
                                         {1, 2, 0, 2, {{0, 0, 999}}, {{0, 1, 999}}},
                                         {0, 1, 0, 3, {{0, 0, 999}}, {{0, 1, 999}}}};
  meet(self, log);
  if (self.rank() == 2) {
    self.die();
    return;
  }
  auto const view = memory.view(batch);
  auto const timeout = 3'000 * millisecond;
  auto const begin = ballast::detail::now();
  log.expect_ok(self.transport.start(view.sends, view.receives), "start");
  auto const result = self.transport.wait(timeout);
  if (self.rank() <= 1) {
    log.expect_failure(result, {ballast::errc::peer_lost, ballast::errc::deadline_exceeded}, "rank 2",
                       "a batch with a dead rank");
  } else {
    log.expect_ok(result, "an empty batch");
  }
  log.expect(ballast::detail::now() - begin < timeout + slack, "a dead rank was noticed too late");
  sleep_for(20 * millisecond);  // readers of this rank's memory may still be at it
}

}  // namespace transport_law

/// What every `data_transport` obeys. Call it in a test case.
template <class Runner>
void check_transport_laws(Runner runner, int num_batches = BALLAST_TESTS_QUICK ? 15 : 50) {
  auto const check = [&](ballast::index_t at_least, auto law) {
    for (auto const size : runner.sizes()) {
      CAPTURE(size);
      if (size >= at_least) { check_complaints(runner.run(size, law)); }
    }
  };
  SUBCASE("random batches arrive byte for byte") {
    check(1, [=](auto& self, law_log& log) { transport_law::moves_random_batches(self, log, 1, num_batches); });
  }
  SUBCASE("many messages and segments") {
    check(2, [](auto& self, law_log& log) { transport_law::moves_many_messages(self, log); });
  }
  SUBCASE("large messages both ways") {
    check(2, [](auto& self, law_log& log) { transport_law::moves_large_messages(self, log); });
  }
  SUBCASE("two models share a transport") {
    check(2, [](auto& self, law_log& log) { transport_law::keeps_models_apart(self, log); });
  }
  SUBCASE("a second batch is refused while one is open") {
    check(2, [](auto& self, law_log& log) { transport_law::refuses_a_second_batch(self, log); });
  }
  SUBCASE("late messages go nowhere") {
    check(2, [](auto& self, law_log& log) { transport_law::drops_late_messages(self, log); });
  }
  SUBCASE("wrong sizes are refused") {
    check(2, [](auto& self, law_log& log) { transport_law::refuses_wrong_sizes(self, log); });
  }
  SUBCASE("duplicates do no harm") {
    check(2, [](auto& self, law_log& log) { transport_law::survives_duplicates(self, log); });
  }
  SUBCASE("messages are matched by tag") {
    check(2, [](auto& self, law_log& log) { transport_law::matches_by_tag(self, log); });
  }
  if constexpr (Runner::can_lose_ranks) {
    SUBCASE("a dead rank is named by those who need it") {
      check(3, [](auto& self, law_log& log) { transport_law::notices_death(self, log); });
    }
  }
}

}  // namespace ballast_test

#endif
