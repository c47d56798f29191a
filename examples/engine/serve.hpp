// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_SERVE_HPP
#define BALLAST_EXAMPLES_ENGINE_SERVE_HPP

#include <ballast/types.hpp>

#include "mode_record.hpp"
#include "rank_links.hpp"
#include "settings.hpp"
#include "traffic.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace engine {

/// A rank that stopped answering, as rank 0 met it.
struct stop_record {
  index_t rank = -1;  ///< -1: all answered
  index_t pass = 0;
  std::string told;                          ///< what the engine was told
  ballast::nanoseconds_t told_after = 0;     ///< from the beginning of the step
  ballast::nanoseconds_t went_on_after = 0;  ///< the same, until the others could serve again
};

/// What serving came to.
struct serve_record {
  std::vector<mode_record> modes;
  stop_record stop;
  std::vector<std::int64_t> routing;  ///< [passes, L, E] what the gate chose, if that is kept
};

/// Serve all requests in all modes as one rank, a pass of each mode in turn.
///
/// @param expected  [requests] bits of the outputs, of the reference.
/// @param out       out: rank 0 writes it.
/// @throws std::system_error for what ends the engine
void serve(settings const& how, std::span<request const> requests, std::span<std::uint64_t const> expected,
           rank_links& links, serve_record& out);

}  // namespace engine

#endif
