// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_GATE_HPP
#define BALLAST_LOAD_GATE_HPP

#include <ballast/digest.hpp>
#include <ballast/types.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE

/// What a forward pass computes. The values are bits, so that a gate is a mask.
enum class phase : std::uint32_t {
  prefill = 1u << 0,  ///< prompt tokens
  decode = 1u << 1,   ///< one token or a few a sequence
  mixed = 1u << 2,    ///< both in one batch
};

/// Bits of `phase`.
using phase_mask = std::uint32_t;
inline constexpr phase_mask all_phases = 7;
[[nodiscard]] constexpr phase_mask to_mask(phase one) noexcept { return static_cast<phase_mask>(one); }
[[nodiscard]] constexpr phase_mask operator|(phase a, phase b) noexcept { return to_mask(a) | to_mask(b); }
[[nodiscard]] constexpr phase_mask operator|(phase_mask a, phase b) noexcept { return a | to_mask(b); }

/// What an engine says about a pass that has ended.
struct pass_info {
  bool counted = true;                  ///< false for dummy, idle and warm-up passes
  ballast::phase phase = phase::mixed;  ///< what the batch was
  std::int64_t tokens = 0;              ///< tokens of the batch; of this rank or of all, as the engine's gate wants it
};

/// Which passes count towards the loads. Data, not control flow, so that a captured graph can read it.
struct pass_gate {
  phase_mask phases = all_phases;  ///< phases that count
  std::int64_t min_tokens = 0;     ///< smaller batches do not count

  /// Whether a pass counts.
  [[nodiscard]] constexpr bool admits(pass_info const& pass) const noexcept {
    return pass.counted && (phases & to_mask(pass.phase)) != 0 && pass.tokens >= min_tokens;
  }
  constexpr void describe(digest& out) const noexcept { out.add(phases).add(min_tokens); }

  bool operator==(pass_gate const&) const = default;
};

BALLAST_END_NAMESPACE

#endif
