// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/transport/turns.hpp>

#include <doctest/doctest.h>

using ballast::transfer_turns;

namespace {

struct mover final : transfer_turns::user {
  int advanced = 0;
  void advance() override { ++advanced; }
};

}  // namespace

TEST_CASE("users have their turns in the order in which they queued up") {
  transfer_turns turns;
  mover first;
  mover second;
  mover third;
  CHECK_FALSE(turns.is_first(first));
  turns.advance_first();
  turns.enter(first);
  turns.enter(second);
  turns.enter(third);
  CHECK(turns.is_first(first));
  CHECK_FALSE(turns.is_first(second));
  CHECK_FALSE(turns.is_first(third));
  turns.advance_first();
  CHECK(first.advanced == 1);
  CHECK(second.advanced == 0);

  turns.leave(first);
  CHECK_FALSE(turns.is_first(first));
  CHECK(turns.is_first(second));
  turns.enter(first);
  CHECK(turns.is_first(second));
  turns.leave(second);
  CHECK(turns.is_first(third));
}

TEST_CASE("whoever leaves from the middle holds nobody up") {
  transfer_turns turns;
  mover first;
  mover second;
  mover third;
  turns.enter(first);
  turns.enter(second);
  turns.enter(third);
  turns.leave(second);
  turns.leave(second);
  CHECK(turns.is_first(first));
  turns.leave(first);
  CHECK(turns.is_first(third));
  turns.leave(third);
  CHECK_FALSE(turns.is_first(third));
}

TEST_CASE("nobody queues up twice") {
  transfer_turns turns;
  mover user;
  turns.enter(user);
  CHECK_BREAKS_CONTRACT(turns.enter(user));
}

TEST_CASE("sessions ascend, and their tags do not overlap") {
  transfer_turns turns;
  CHECK(turns.last_session() == 0);
  turns.take_session(3);
  CHECK(turns.last_session() == 3);
  CHECK_BREAKS_CONTRACT(turns.take_session(3));
  CHECK_BREAKS_CONTRACT(turns.take_session(transfer_turns::max_session + 1));
  turns.take_session(transfer_turns::max_session);
  CHECK(transfer_turns::first_tag(4) - transfer_turns::first_tag(3) == transfer_turns::tags_per_session);
  CHECK(transfer_turns::first_tag(transfer_turns::max_session) / transfer_turns::tags_per_session ==
        transfer_turns::max_session);
}
