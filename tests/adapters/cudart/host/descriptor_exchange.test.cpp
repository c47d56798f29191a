// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// How processes pass descriptors to each other, with limits as ordinary users have them. No device is needed.
#include <ballast/cudart/detail/descriptor_exchange.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/check_complaints.hpp"
#include "support/group_runner.hpp"
#include "support/posix_runner.hpp"
#include "support/processes.hpp"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace detail = ballast::cudart::detail;
using ballast::errc;
using ballast::index_t;
using ballast::nanoseconds_t;
using ballast::status;
using ballast::posix::process_group;
using ballast_test::check_complaints;
using ballast_test::law_log;
using ballast_test::millisecond;
using ballast_test::patience;
using ballast_test::process_exit;

namespace {

/// Lower what this process may have open.
void limit_descriptors(std::size_t count) {
  ::rlimit const limit{count, count};
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) { throw std::runtime_error{"setrlimit"}; }
}
/// Become a user that has no other processes, where this one may; the system counts the descriptors of a user.
void become_a_user(::uid_t number) {
  if (::geteuid() == 0 && ::setuid(number) != 0) { throw std::runtime_error{"setuid"}; }
}
[[nodiscard]] ::uid_t fresh_user() {
  static ::uid_t count = 0;
  return 40'000 + static_cast<::uid_t>(::getpid()) % 20'000 + 20'000 * ++count;
}
[[nodiscard]] std::size_t num_open_descriptors() {
  auto const entries = std::filesystem::directory_iterator{"/proc/self/fd"};
  return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

/// A descriptor that says whose it is.
[[nodiscard]] status make_file(index_t rank, std::size_t i, detail::owned_descriptor& out) {
  out = detail::owned_descriptor{::memfd_create("ballast-test", MFD_CLOEXEC)};
  if (out.get() < 0) { return detail::system_failure("memfd_create"); }
  std::array<std::uint64_t, 2> const words{static_cast<std::uint64_t>(rank), i};
  return ::write(out.get(), words.data(), sizeof words) == sizeof words ? status{} : detail::system_failure("write");
}
[[nodiscard]] bool is_file_of(int descriptor, index_t rank, std::size_t i) {
  std::array<std::uint64_t, 2> words{};
  return ::pread(descriptor, words.data(), sizeof words, 0) == sizeof words &&
         words[0] == static_cast<std::uint64_t>(rank) && words[1] == i;
}

/// One rank of an exchange.
struct exchanging_rank {
  process_group& group;
  law_log& log;
  detail::descriptor_plan plan;
  std::vector<std::size_t> taken = std::vector<std::size_t>(plan.counts.size());
  std::size_t most_open = 0;

  template <class Import>
  [[nodiscard]] status exchange(Import import_piece, nanoseconds_t timeout = patience) {
    auto const make = [&](std::size_t i, detail::owned_descriptor& out) { return make_file(group.rank(), i, out); };
    return detail::exchange_descriptors(group, plan, make, import_piece, ballast::detail::deadline_after(timeout));
  }
  [[nodiscard]] status exchange(nanoseconds_t timeout = patience) {
    return exchange([&](index_t peer, std::size_t i, int descriptor) { return check(peer, i, descriptor); }, timeout);
  }
  [[nodiscard]] status check(index_t peer, std::size_t i, int descriptor) {
    auto& next = taken[static_cast<std::size_t>(peer)];
    log.expect(i == next, "descriptor ", i, " of rank ", peer, " comes when ", next, " is due");
    log.expect(is_file_of(descriptor, peer, i), "descriptor ", i, " of rank ", peer, " is another");
    ++next;
    if (i % 100 == 0) { most_open = std::max(most_open, num_open_descriptors()); }
    return {};
  }
  void expect_all() {
    for (std::size_t peer = 0; peer < taken.size(); ++peer) {
      auto const owed = static_cast<index_t>(peer) == group.rank() || plan.absent[peer] ? 0 : plan.counts[peer];
      log.expect(taken[peer] == owed, taken[peer], " descriptors of rank ", peer, " came, not ", owed);
    }
  }
};

void expect_message(law_log& log, status const& result, std::string_view fragment) {
  log.expect(result.message().find(fragment) != std::string::npos, "no '", fragment, "' in: ", result.message());
}

/// Descriptors that were sent and that nobody has taken.
class descriptors_under_way {
public:
  void add(int count) {
    int ends[2] = {-1, -1};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) { throw std::runtime_error{"socketpair"}; }
    from_ = detail::owned_descriptor{ends[0]};
    to_ = detail::owned_descriptor{ends[1]};
    while (count-- > 0 && send_one()) {}
  }
  void drop() {
    from_ = {};
    to_ = {};
  }

private:
  [[nodiscard]] bool send_one() const {
    alignas(::cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    char sign = 0;
    ::iovec payload{&sign, 1};
    ::msghdr message{};
    message.msg_iov = &payload;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    auto* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    int const number = 1;
    std::memcpy(CMSG_DATA(header), &number, sizeof number);
    return ::sendmsg(from_.get(), &message, MSG_DONTWAIT) > 0;
  }
  detail::owned_descriptor from_;
  detail::owned_descriptor to_;
};

/// Run `body` in ranks that have met, each as a user of its own group with so many descriptors.
template <class Body>
void run_ranks(detail::descriptor_plan const& plan, std::size_t limit, Body body) {
  auto const name = ballast_test::fresh_group_name();
  auto const user = fresh_user();
  auto const size = static_cast<index_t>(plan.counts.size());
  check_complaints(ballast_test::run_processes(size, [&](index_t rank, process_exit exit, law_log& log) {
    limit_descriptors(limit);
    become_a_user(user);
    process_group group;
    if (!log.expect_ok(group.join(name, rank, size, patience), "join")) { return; }
    exchanging_rank self{group, log, plan};
    body(self, exit);
  }));
}
[[nodiscard]] detail::descriptor_plan plan_of(std::vector<std::size_t> counts) {
  auto const ranks = counts.size();
  return {std::move(counts), std::vector<bool>(ranks), 0};
}

}  // namespace

TEST_CASE("thousands of descriptors reach every rank of an ordinary user, and few are open at once") {
  for (std::size_t const limit : {1024u, 256u, 48u}) {
    CAPTURE(limit);
    run_ranks(plan_of({2000, 2000, 2000, 2000}), limit, [](exchanging_rank& self, process_exit) {
      auto const before = num_open_descriptors();
      self.log.expect_ok(self.exchange(), "exchange");
      self.expect_all();
      auto const most = before + detail::portion_of_descriptors() + 2 * self.taken.size();
      self.log.expect(self.most_open <= most, self.most_open, " descriptors were open, expected up to ", most);
      self.log.expect(num_open_descriptors() == before, "descriptors stay open");
    });
  }
}

TEST_CASE("ranks without descriptors take, ranks that are absent do nothing") {
  auto plan = plan_of({0, 70, 0, 1, 9});
  plan.absent[4] = true;
  plan.namer = 1;
  auto const name = ballast_test::fresh_group_name();
  check_complaints(ballast_test::run_processes(4, [&](index_t rank, process_exit, law_log& log) {
    process_group group;
    if (!log.expect_ok(group.join(name, rank, 4, patience), "join")) { return; }
    exchanging_rank self{group, log, plan};
    log.expect_ok(self.exchange(), "exchange");
    self.expect_all();
  }));
}

TEST_CASE("a rank that cannot use a descriptor fails, the others hear which it was, and the next exchange works") {
  run_ranks(plan_of({150, 150, 150}), 1024, [](exchanging_rank& self, process_exit) {
    auto const begin = ballast::detail::now();
    auto const result = self.exchange([&](index_t peer, std::size_t i, int) -> status {
      if (self.group.rank() != 1 || peer != 0 || i < 100) { return {}; }
      return {errc::out_of_memory, "no room", peer};
    });
    if (self.group.rank() == 1) {
      self.log.expect_failure(result, {errc::out_of_memory}, "no room", "the rank that fails");
    } else {
      self.log.expect_failure(result, {errc::peer_lost}, "rank 1 could not share", "another rank");
      self.log.expect(result.rank() == 1, "rank ", result.rank(), " is blamed");
    }
    self.log.expect(ballast::detail::now() - begin < patience / 4, "the others wait for it");
    self.log.expect_ok(self.exchange(), "exchange once more");
    self.expect_all();
  });
}

TEST_CASE("a rank without room for what comes says which limit it meets") {
  run_ranks(plan_of({64, 64}), 200, [](exchanging_rank& self, process_exit) {
    std::vector<detail::owned_descriptor> hogged;
    while (self.group.rank() == 1 && num_open_descriptors() < 190) { hogged.emplace_back(::dup(1)); }
    auto const result = self.exchange([](index_t, std::size_t, int) { return status{}; });
    if (self.group.rank() == 1) {
      expect_message(self.log, result, "RLIMIT_NOFILE lets this process have 200 open descriptors");
    } else {
      self.log.expect_failure(result, {errc::peer_lost}, "rank 1 could not share", "the other");
    }
    hogged.clear();
    self.log.expect_ok(self.exchange(), "exchange once more");
    self.expect_all();
  });
}

TEST_CASE("the limit that descriptors of other processes of the user meet is named, and gone when they are") {
  if (::geteuid() != 0) { return; }  // all processes of an ordinary user count here
  run_ranks(plan_of({100, 0}), 64, [](exchanging_rank& self, process_exit) {
    bool const hogs = self.group.rank() == 1;
    descriptors_under_way under_way;
    if (hogs) { under_way.add(70); }
    self.log.expect_ok(self.group.all_reduce({}, patience), "meeting");
    auto const result = self.exchange(hogs ? patience : 300 * millisecond);
    if (hogs) {
      self.log.expect_failure(result, {errc::peer_lost}, "rank 0 could not share", "the taker");
    } else {
      expect_message(self.log, result, "RLIMIT_NOFILE lets the processes of this user have 64");
    }
    under_way.drop();
    self.log.expect_ok(self.group.regroup(patience), "regroup");
    std::fill(self.taken.begin(), self.taken.end(), std::size_t{0});
    self.log.expect_ok(self.exchange(), "exchange once more");
    self.expect_all();
  });
}

TEST_CASE("a rank that dies in its turn is named long before the deadline") {
  run_ranks(plan_of({100, 100, 100}), 1024, [](exchanging_rank& self, process_exit exit) {
    auto const begin = ballast::detail::now();
    auto const result = self.exchange([&](index_t peer, std::size_t i, int) {
      if (self.group.rank() == 2 && peer == 1 && i == 70) { exit.die(); }
      return status{};
    });
    self.log.expect_failure(result, {errc::peer_lost}, "", "a survivor");
    self.log.expect(ballast::detail::now() - begin < patience / 4, "they wait for the dead");
  });
}

TEST_CASE("an exchange lasts no longer than its deadline in all") {
  run_ranks(plan_of({100, 100, 100}), 1024, [](exchanging_rank& self, process_exit) {
    constexpr auto timeout = 300 * millisecond;
    auto const begin = ballast::detail::now();
    auto const result = self.exchange(
        [&](index_t peer, std::size_t i, int) {
          if (self.group.rank() == 2 && peer == 1 && i == 70) { ballast::detail::sleep_for(3 * timeout); }
          return status{};
        },
        timeout);
    if (self.group.rank() != 2) {
      self.log.expect(!result.ok(), "an exchange ended well in spite of a late rank");
      self.log.expect(ballast::detail::now() - begin < 2 * timeout, "it lasted ", ballast::detail::now() - begin,
                      " ns");
    }
  });
}
