// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BALLAST_HPP
#define BALLAST_BALLAST_HPP

// Everything but `schedule/`, which needs range-v3, and `transport/in_process.hpp`, which starts threads.
#include <ballast/config.hpp>
#include <ballast/contract.hpp>
#include <ballast/digest.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/fwd.hpp>
#include <ballast/load/decay_recorder.hpp>
#include <ballast/load/gate.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/pass_recorder.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/load/regime.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/migration/commit_order.hpp>
#include <ballast/migration/relabel.hpp>
#include <ballast/migration/rounds.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/migration/waypoints.hpp>
#include <ballast/placement/balanced.hpp>
#include <ballast/placement/balanced_shares.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/dead_ranks.hpp>
#include <ballast/placement/deepseek.hpp>
#include <ballast/placement/group_split.hpp>
#include <ballast/placement/headroom.hpp>
#include <ballast/placement/incremental.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/policy.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/placement/regime.hpp>
#include <ballast/placement/replica_shares.hpp>
#include <ballast/runtime/device_times.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/layer_mover.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/runtime/registry.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/by_link.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/transport/engine_control.hpp>
#include <ballast/transport/segments.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>
#include <ballast/version.hpp>

#endif
