// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_BATCH_EMULATIONS_CUH
#define BALLAST_TESTS_SUPPORT_BATCH_EMULATIONS_CUH

#include <ballast/cudart/kernels/batch_dispatch.cuh>
#include <ballast/shares/quota_sources.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/types.hpp>

#include "support/simulated_device/simulated_device.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// What the kernels of every batch do, for the simulated device, where counts of all ranks are at hand: it has one
// thread, and kernels that wait for each other need more.

namespace ballast_test::simulated {

namespace batch_kernels = ballast::cudart::detail;

template <class Id>
void emulate_count(kernel_actions& actions, dim3 blocks, dim3 /*threads*/, batch_kernels::batch_ids<Id> const& a,
                   std::uint16_t* block_counts) {
  auto const stride = static_cast<std::size_t>(ballast::cudart::count_stride(a.num_logical));
  actions.reads(a.ids, a.num_ids * sizeof(Id));
  actions.writes(a.ordinals, a.num_ids * sizeof(std::uint16_t));
  actions.writes(block_counts, blocks.x * stride * sizeof(std::uint16_t));
  actions.compute([=] {
    for (std::size_t i = 0; i < blocks.x * stride; ++i) { block_counts[i] = 0; }
    for (std::uint32_t i = 0; i < a.num_ids; ++i) {
      bool const valid = a.num_valid_tokens == nullptr || i / a.top_k < static_cast<std::uint32_t>(*a.num_valid_tokens);
      if (!valid || a.ids[i] < 0 || a.ids[i] >= a.num_logical) { continue; }
      a.ordinals[i] = block_counts[i / a.ids_per_block * stride + static_cast<std::size_t>(a.ids[i])]++;
    }
  });
}

inline void emulate_plan(kernel_actions& actions, dim3 /*blocks*/, dim3 /*threads*/,
                         batch_kernels::plan_arguments const& a) {
  using namespace ballast;
  auto const& v = a.v;
  auto const experts = static_cast<std::size_t>(v.shape.num_logical);
  auto const stride = static_cast<std::size_t>(cudart::count_stride(v.shape.num_logical));
  actions.reads(v.block_counts, a.num_blocks * stride * sizeof(std::uint16_t));
  actions.writes(v.row_writer(a.layer).bytes(), v.layout.row.size);
  actions.writes(v.block_first, a.num_blocks * stride * sizeof(std::uint32_t));
  actions.writes(v.tag, sizeof *v.tag);
  actions.reads(v.control, sizeof *v.control);
  actions.compute([=, v = a.v] {
    std::vector<index_t> counts(static_cast<std::size_t>(v.shape.num_ranks) * experts);
    std::vector<index_t> tokens(experts);
    for (std::size_t i = 0; i < a.num_blocks * stride; ++i) {
      if (i % stride < experts) {
        counts[static_cast<std::size_t>(v.rank) * experts + i % stride] += v.block_counts[i];
      }
      v.block_first[i] = i < stride ? 0 : v.block_first[i - stride] + v.block_counts[i - stride];
    }
    if (a.gathered != nullptr) { counts.assign(a.gathered, a.gathered + counts.size()); }
    for (std::size_t i = 0; i < counts.size(); ++i) { tokens[i % experts] += counts[i]; }
    quota_solver solver;
    quota_sources sources;
    auto const row = v.row(a.layer);
    auto* const parts = v.start_parts + static_cast<std::ptrdiff_t>(a.layer) * v.shape.max_movable();
    auto const movable = static_cast<std::size_t>(row.sizes().num_movable);
    bool const warm =
        v.starts != nullptr && v.starts[a.layer].batch != 0 && v.starts[a.layer].version == row.sizes().version;
    auto const balance = solver.solve(row, tokens, v.options,
                                      warm ? std::span<index_t const>{parts, movable} : std::span<index_t const>{});
    bool const exact = v.control->on != 0;
    if (v.starts != nullptr && exact) {
      std::vector<index_t> next(movable);
      solver.parts(next);
      std::copy(next.begin(), next.end(), parts);
      v.starts[a.layer] = {*v.tag, row.sizes().version};
    }
    sources.assign(row, solver.quotas(), {std::span<index_t const>{counts}, v.shape.num_ranks, v.shape.num_logical},
                   v.rank);
    for (index_t i = 0; i < row.sizes().num_movable; ++i) { v.ends[i] = sources.ends()[static_cast<std::size_t>(i)]; }
    for (index_t group = 0; group < row.sizes().num_groups; ++group) {
      auto const first = row.group_first()[group];
      auto const count = row.group_first()[group + 1] - first;
      bool const two = count == 2;
      v.row_writer(a.layer).entries()[row.holders()[first].expert] = {
          two ? row.physical()[first] : first, two ? row.physical()[first + 1] : -1, v.ends[first], count};
    }
    *v.verdict = exact ? cudart::batch_verdict::exact : cudart::batch_verdict::resident;
    auto& told = v.statistics[a.layer];
    ++told.batches;
    ++(exact ? told.exact : told.off);
    if (exact) {
      told.max = static_cast<std::uint32_t>(balance.max);
      told.realised = told.max;
      told.resident = static_cast<std::uint32_t>(balance.resident);
      told.total = static_cast<std::uint32_t>(balance.total);
    }
    v.host_statistics[a.layer] = told;
    ++*v.tag;
  });
}

template <class Id, class Physical>
void emulate_remap(kernel_actions& actions, dim3 /*blocks*/, dim3 /*threads*/, batch_kernels::batch_ids<Id> const& a,
                   batch_kernels::batch_tables const& tables, Physical* physical,
                   ballast::dispatch_view const& resident, ballast::index_t layer) {
  auto const stride = static_cast<std::size_t>(ballast::cudart::count_stride(a.num_logical));
  actions.reads(a.ordinals, a.num_ids * sizeof(std::uint16_t));
  actions.reads(tables.entries, static_cast<std::size_t>(a.num_logical) * sizeof(ballast::quota_entry));
  actions.writes(physical, a.num_ids * sizeof(Physical));
  actions.compute([=] {
    for (std::uint32_t i = 0; i < a.num_ids; ++i) {
      auto const id = a.ids[i];
      ballast::index_t mapped = ballast::dispatch_one(resident, layer, i / a.top_k, i % a.top_k, id);
      if (id >= 0 && id < a.num_logical && *tables.verdict == ballast::cudart::batch_verdict::exact) {
        auto const& entry = tables.entries[id];
        auto const before = tables.block_first[i / a.ids_per_block * stride + static_cast<std::size_t>(id)];
        auto const ordinal = static_cast<ballast::index_t>(before + a.ordinals[i]);
        auto position = entry.first;
        while (entry.count > 2 && position < entry.first + entry.count - 1 && ordinal >= tables.ends[position]) {
          ++position;
        }
        mapped = entry.count > 2                            ? tables.physical[position]
                 : entry.count == 0                         ? -1
                 : entry.count == 2 && ordinal >= entry.end ? entry.second
                                                            : entry.first;
      }
      physical[i] = static_cast<Physical>(mapped);
    }
  });
}

struct batch_emulations {
  batch_emulations() {
    simulate_kernel(batch_kernels::count_kernel<std::int32_t>, emulate_count<std::int32_t>);
    simulate_kernel(batch_kernels::plan_kernel<batch_kernels::warp_search_64>, emulate_plan);
    using id = std::int32_t;
    simulate_kernel(batch_kernels::remap_kernel<true, id, id>, emulate_remap<id, id>);
    simulate_kernel(batch_kernels::remap_kernel<true, id, std::int64_t>, emulate_remap<id, std::int64_t>);
  }
};
inline batch_emulations const batch_kernels_of_ours;

}  // namespace ballast_test::simulated

#endif
