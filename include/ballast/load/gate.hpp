// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_GATE_HPP
#define BALLAST_LOAD_GATE_HPP

#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstdint>
#include <string_view>

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

  /// Refuse what is no phase, and negative tokens, naming the value. No gate admits such a pass. @throws nothing
  [[nodiscard]] status validate() const {
    if (!is_one_phase(phase)) {
      return {errc::invalid_option,
              detail::concat("pass_info: phase is ", to_mask(phase), ", must be 1 (prefill), 2 (decode) or 4 (mixed)")};
    }
    if (tokens < 0) {
      return {errc::invalid_option, detail::concat("pass_info: tokens is ", tokens, ", must not be negative")};
    }
    return {};
  }
  /// Whether a value is one of those that `phase` names.
  [[nodiscard]] static constexpr bool is_one_phase(ballast::phase value) noexcept {
    return value == phase::prefill || value == phase::decode || value == phase::mixed;
  }
};

/// Which passes count towards the loads. Data, not control flow, so that a captured graph can read it.
///
/// @determinism ranks must share both options. They need not admit the same passes: a pass that one rank counts and
///              another does not takes its place in the windows of both (`aligned_history`).
struct pass_gate {
  /// Phases that count, at least one. Fewer than all need `pass_info::phase`: a pass is `mixed` unless the engine says
  /// otherwise, so without `mixed` here none counts where `on_forward_pass_end()` is called without arguments.
  phase_mask phases = all_phases;
  /// Smaller batches do not count. Needs `pass_info::tokens`: a pass has 0 unless the engine says otherwise, so with
  /// more than 0 here none counts where `on_forward_pass_end()` is called without arguments.
  std::int64_t min_tokens = 0;

  /// Whether a pass counts. One that `pass_info::validate` refuses never does.
  [[nodiscard]] constexpr bool admits(pass_info const& pass) const noexcept {
    return pass.counted && pass_info::is_one_phase(pass.phase) && (phases & to_mask(pass.phase)) != 0 &&
           pass.tokens >= min_tokens && pass.tokens >= 0;
  }

  /// Refuse a gate that lets nothing through, bits that are no phase, and a negative minimum, naming the value.
  /// @throws nothing
  [[nodiscard]] status validate() const {
    if (phases == 0) { return {errc::invalid_option, "pass_gate: phases is 0: no pass would ever count"}; }
    if ((phases & ~all_phases) != 0) {
      return {errc::invalid_option, detail::concat("pass_gate: phases is ", phases, ", which has bits beyond ",
                                                   all_phases, " that are no phase")};
    }
    if (min_tokens < 0) {
      return {errc::invalid_option, detail::concat("pass_gate: min_tokens is ", min_tokens, ", must not be negative")};
    }
    return {};
  }

  template <class Visit>
  constexpr void for_each_option(Visit&& visit) const {
    visit(std::string_view{"gate phases"}, detail::option_bits(phases));
    visit(std::string_view{"gate min_tokens"}, detail::option_bits(min_tokens));
  }
  constexpr void describe(digest& out) const noexcept {
    for_each_option([&out](std::string_view name, std::uint64_t bits) { out.add(name).add(bits); });
  }

  bool operator==(pass_gate const&) const = default;
};

static_assert(detail::names_options<pass_gate>);

BALLAST_END_NAMESPACE

#endif
