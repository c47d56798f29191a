// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_KERNEL_EMULATIONS_CUH
#define BALLAST_TESTS_SUPPORT_KERNEL_EMULATIONS_CUH

#include <ballast/cudart/kernels/fold.cuh>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/load/history.hpp>
#include <ballast/types.hpp>

#include "support/simulated_device/simulated_device.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

// What our kernels do, for the simulated device. Included by a program's .cu file, before anything is launched.

namespace ballast_test::simulated {

inline void emulate_fold(kernel_actions& actions, dim3 /*blocks*/, dim3 /*threads*/,
                         ballast::cudart::record_view const& counters,
                         ballast::cudart::detail::fold_command const& command, unsigned num_groups) {
  auto const cells = ballast::cudart::detail::fold_width * num_groups;
  if (cells == 0) { return; }
  for (std::uint32_t s = 0; s < counters.num_stripes; ++s) {
    actions.writes(counters.pass + s * counters.stripe_cells, cells * sizeof(std::uint32_t));
  }
  for (auto const& to : {command.to, command.also_to}) {
    if (to.bucket != nullptr) { actions.writes(to.bucket, cells * sizeof(ballast::load_t)); }
  }
  if (command.host != nullptr) { actions.reads(command.host, cells * sizeof(ballast::load_t)); }
  actions.compute([=] {
    for (std::size_t i = 0; i < cells; ++i) {
      ballast::load_t sum = command.host == nullptr ? 0 : command.host[i];
      for (std::uint32_t s = 0; s < counters.num_stripes; ++s) {
        auto& count = counters.pass[s * counters.stripe_cells + i];
        sum += count;
        count = 0;
      }
      for (auto const& to : {command.to, command.also_to}) {
        if (to.bucket == nullptr) { continue; }
        to.bucket[i] = std::min((to.fresh ? 0 : to.bucket[i]) + sum, ballast::max_layer_tokens);
      }
    }
  });
}

/// Streams run at the same time here as on a device.
inline void add_atomically(std::uint32_t& to, std::uint32_t more) {
  std::atomic_ref{to}.fetch_add(more, std::memory_order_relaxed);
}

/// `record` of ids that no histogram is worth.
template <class Id, class Physical>
void emulate_record(kernel_actions& actions, dim3 /*blocks*/, dim3 /*threads*/,
                    ballast::cudart::detail::route_arguments<Id, Physical> const& a) {
  auto* const row = a.record.pass + static_cast<std::ptrdiff_t>(a.layer) * a.record.num_logical;
  actions.reads(a.input.ids, a.num_ids * sizeof(Id));
  actions.adds(row, static_cast<std::size_t>(a.record.num_logical) * sizeof(std::uint32_t));
  actions.reads(a.record.gate, sizeof(std::uint32_t));
  actions.compute([=] {
    if (*a.record.gate == 0) { return; }
    for (std::uint32_t i = 0; i < a.num_ids; ++i) {
      auto const id = a.input.ids[i];
      if (id >= 0 && id < a.record.num_logical) { add_atomically(row[id], 1); }
    }
  });
}

/// `dispatch_and_record` of ids that no histogram is worth.
template <class Id, class Physical>
void emulate_dispatch_and_record(kernel_actions& actions, dim3 blocks, dim3 threads,
                                 ballast::cudart::detail::route_arguments<Id, Physical> const& a) {
  auto const row_of = [&a](auto const* cells, ballast::index_t width) {
    return cells + static_cast<std::ptrdiff_t>(a.layer) * width;
  };
  auto const experts = static_cast<std::size_t>(a.tables.num_logical);
  auto const slots = static_cast<std::size_t>(a.tables.num_slots);
  actions.reads(row_of(a.tables.ranges, a.tables.num_logical), experts * sizeof(ballast::replica_range));
  actions.reads(row_of(a.tables.entries, a.tables.num_slots), slots * sizeof(ballast::dispatch_entry));
  actions.writes(a.physical, a.num_ids * sizeof(Physical));
  emulate_record(actions, blocks, threads, a);
  actions.compute([=] {
    auto const top_k = static_cast<std::uint32_t>(a.input.top_k);
    for (std::uint32_t i = 0; i < a.num_ids; ++i) {
      a.physical[i] =
          static_cast<Physical>(ballast::dispatch_one(a.tables, a.layer, i / top_k, i % top_k, a.input.ids[i]));
    }
  });
}

/// `record_arrivals` of `count_form::tokens`.
template <class Count>
void emulate_arrivals(kernel_actions& actions, dim3 /*blocks*/, dim3 /*threads*/,
                      ballast::cudart::record_view const& counters, ballast::index_t layer,
                      ballast::cudart::arrivals<Count> const& from) {
  auto const slots = counters.slots_per_rank;
  auto const* const map = counters.local_map + static_cast<std::ptrdiff_t>(layer) * slots;
  auto* const row = counters.pass + static_cast<std::ptrdiff_t>(layer) * counters.num_logical;
  actions.reads(from.values, static_cast<std::size_t>(slots) * sizeof(Count));
  actions.adds(row, static_cast<std::size_t>(counters.num_logical) * sizeof(std::uint32_t));
  actions.compute([=] {
    for (ballast::index_t slot = 0; slot < slots; ++slot) {
      auto const expert = map[slot];
      if (expert < 0 || expert >= counters.num_logical || from.values[slot] <= 0) { continue; }
      add_atomically(row[expert], static_cast<std::uint32_t>(from.values[slot]));
    }
  });
}

inline void emulate_copies(kernel_actions& actions, dim3 /*blocks*/, dim3 /*threads*/,
                           ballast::cudart::detail::copy_list const& list) {
  for (int i = 0; i < list.count; ++i) { actions.copy(list.to[i], list.from[i], list.bytes[i]); }
}

struct kernel_emulations {
  kernel_emulations() {
    using ballast::cudart::detail::mapping;
    namespace kernels = ballast::cudart::detail;
    simulate_kernel(kernels::fold_kernel<>, emulate_fold);
    simulate_kernel(kernels::copy_kernel<>, emulate_copies);
    simulate_kernel(kernels::arrivals_kernel<std::int32_t>, emulate_arrivals<std::int32_t>);
    using id = std::int32_t;
    simulate_kernel(kernels::route_kernel<id, id, 1, true, mapping::none, false>, emulate_record<id, id>);
    simulate_kernel(kernels::route_kernel<id, id, 2, true, mapping::none, false>, emulate_record<id, id>);
    simulate_kernel(kernels::route_kernel<id, id, 1, true, mapping::hashed, false>,
                    emulate_dispatch_and_record<id, id>);
    simulate_kernel(kernels::route_kernel<id, std::int64_t, 1, true, mapping::hashed, false>,
                    emulate_dispatch_and_record<id, std::int64_t>);
  }
};
inline kernel_emulations const our_kernels;

}  // namespace ballast_test::simulated

#endif
