// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>

// Links everything that the adapter takes from the system.
bool can_move_bytes() {
  ballast::posix::process_group group;
  if (!group.join("consumer", 0, 1, 1'000'000'000).ok()) { return false; }
  ballast::posix::peer_copy wires{group};
  return wires.start({}, {}).ok() && wires.wait(1'000'000'000).ok();
}
