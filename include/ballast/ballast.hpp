// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BALLAST_HPP
#define BALLAST_BALLAST_HPP

// Values, concepts, the rebalancer, recorders and schedules. Not here: each policy, which an engine includes by its own
// header (`policies/`), `schedule/views.hpp`, which needs range-v3, and `transport/in_process.hpp`, which starts
// threads.
#include <ballast/config.hpp>
#include <ballast/contract.hpp>
#include <ballast/control/control.hpp>
#include <ballast/control/engine_control.hpp>
#include <ballast/digest.hpp>
#include <ballast/dispatch/quota_dispatch.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/fwd.hpp>
#include <ballast/load/alignment.hpp>
#include <ballast/load/decay_recorder.hpp>
#include <ballast/load/gate.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/map_history.hpp>
#include <ballast/load/pass_recorder.hpp>
#include <ballast/load/pass_timeline.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/load/regime.hpp>
#include <ballast/load/window_cursor.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/migration/commit_order.hpp>
#include <ballast/migration/rounds.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/migration/waypoints.hpp>
#include <ballast/parts.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/dealt.hpp>
#include <ballast/placement/group_split.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/placement/survivors.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/runtime/rebalancer_options.hpp>
#include <ballast/runtime/rebalancer_state.hpp>
#include <ballast/runtime/rebalancing.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/shares/quota_rows.hpp>
#include <ballast/shares/quota_sources.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/by_link.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>
#include <ballast/version.hpp>

#endif
