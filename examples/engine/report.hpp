// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_REPORT_HPP
#define BALLAST_EXAMPLES_ENGINE_REPORT_HPP

#include "mode_record.hpp"
#include "serve.hpp"
#include "settings.hpp"

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>

namespace engine {

/// What users feel of a mode.
struct step_times {
  double p50 = 0, p90 = 0, p99 = 0, worst = 0;  ///< milliseconds
  double tokens_a_second = 0;
  double ballast_p50 = 0, ballast_p99 = 0;  ///< milliseconds of a step that are ballast's
};
[[nodiscard]] step_times times_of(mode_record const& of);

/// Mean work of a rank / work of the busiest, of the passes [first, last) together, over layers; 1 without work. Of
/// ranks that have computed something.
[[nodiscard]] double balancedness_of(mode_record const& of, std::size_t num_layers, std::size_t first,
                                     std::size_t last);

/// How a mode took the change of traffic.
struct switch_answer {
  std::optional<std::size_t> passes;  ///< until eight passes together were balanced to 0.95; nothing: never
  std::int64_t bytes = 0;             ///< moved until then, or until the end
};
[[nodiscard]] switch_answer answer_of(settings const& how, mode_record const& of);

/// Print it all. @return whether all outputs were right, and all replicas alike
[[nodiscard]] bool print_report(settings const& how, std::size_t num_requests, serve_record const& seen);
[[nodiscard]] nlohmann::json to_json(settings const& how, std::size_t num_requests, serve_record const& seen);

}  // namespace engine

#endif
