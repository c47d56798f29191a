// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SCHEDULE_CHUNK_SCHEDULE_HPP
#define BALLAST_SCHEDULE_CHUNK_SCHEDULE_HPP

#include <ballast/digest.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstdint>
#include <span>

BALLAST_BEGIN_NAMESPACE

/// What a schedule knows of one layer before it moves.
struct layer_work {
  index_t layer = 0;
  bool changed = false;                 ///< the map or the shares of the layer differ
  index_t moves = 0;                    ///< receives over all ranks
  std::int64_t bytes = 0;               ///< bytes received over all ranks
  std::int64_t busiest_rank_bytes = 0;  ///< bytes that the busiest (rank, direction) sends or receives
  load_t gain = 0;  ///< by how much the busiest rank's load falls, in units of 1 / 2^18 token; may be negative
};

/// Cuts the layers of a plan into chunks, each moved in one step between two forward passes.
///
/// @par Semantics
/// `s.for_each_chunk(work, sink)` calls `sink(layers)` with a span of layer ids once per chunk, in the order in which
/// the chunks are to be moved. `work` lists the layers ascending. Each layer appears at most once, and every changed
/// layer appears. No chunk is empty. The result depends on the arguments and on the schedule's data members alone.
/// `s.validate()` refuses options that make no sense, naming them. `s.describe(digest)` mixes name and options in.
template <class S>
concept chunk_schedule = std::copyable<S> && requires(S const& s, std::span<layer_work const> work, digest& out,
                                                      void (*sink)(std::span<index_t const>)) {
  { s.validate() } -> std::same_as<status>;
  { s.for_each_chunk(work, sink) } -> std::same_as<void>;
  { s.describe(out) } -> std::same_as<void>;
};

/// A schedule that also limits the bytes of a single layer: one above `s.step_bytes()` arrives over several steps and
/// is committed with the last.
template <class S>
concept limits_step_bytes = chunk_schedule<S> && requires(S const& s) {
  { s.step_bytes() } -> std::same_as<std::int64_t>;
};

BALLAST_END_NAMESPACE

#endif
