// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_BATCH_QUALITY_HPP
#define BALLAST_BENCH_BATCH_QUALITY_HPP

#include <support/trace_files.hpp>

#include <vector>

namespace ballast_bench {

/// Write tables (Markdown) of how evenly batches fall on the ranks when each is split by quotas of its own.
void print_every_batch(std::vector<ballast_test::trace> const& traces);

}  // namespace ballast_bench

#endif
