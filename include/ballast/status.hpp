// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_STATUS_HPP
#define BALLAST_STATUS_HPP

#include <ballast/config.hpp>
#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <string>
#include <system_error>
#include <utility>

BALLAST_BEGIN_NAMESPACE

/// What went wrong, for a caller that branches. The sentence that names the offending value is in `status::message()`.
enum class errc {
  invalid_topology = 1,  ///< ranks, nodes or slots that do not fit together
  invalid_load,          ///< negative, missing or mis-shaped loads
  invalid_placement,     ///< a map that is not a placement of these experts on these slots
  missing_expert,        ///< an expert that no live slot holds
  not_enough_slots,      ///< fewer usable slots than logical experts
  invalid_weights,       ///< registered tensors that overlap, are missing or have impossible strides
  invalid_option,        ///< a configuration value out of its range
  malformed_file,        ///< a trace or placement file that cannot be read
  out_of_memory,         ///< staging could not be obtained, or the given limit is too small
  busy,                  ///< the call is refused while a rebalancing cycle runs
  disagreement,          ///< ranks hold different plans, steps, epochs or configurations
  deadline_exceeded,     ///< a peer did not answer in time
  peer_lost,             ///< a peer is known to be dead or has left
  transport_failed,      ///< the wire below reported an error
  corrupted,             ///< bytes that arrived are not the bytes that were sent
  undecided,             ///< this rank does not know whether the others committed
  cohort_lost,           ///< this rank cannot learn what the others committed; it must not serve
  stale_membership,      ///< this rank was expelled; its membership epoch is old
  policy_failed,         ///< a placement policy threw, or its plan breaks what policies promise
  internal,              ///< a bug in ballast
};

namespace detail {
struct error_category final : std::error_category {
  [[nodiscard]] char const* name() const noexcept override { return "ballast"; }
  [[nodiscard]] std::string message(int value) const override {
    switch (static_cast<errc>(value)) {
      case errc::invalid_topology: return "invalid topology";
      case errc::invalid_load: return "invalid load";
      case errc::invalid_placement: return "invalid placement";
      case errc::missing_expert: return "missing expert";
      case errc::not_enough_slots: return "not enough slots";
      case errc::invalid_weights: return "invalid weights";
      case errc::invalid_option: return "invalid option";
      case errc::malformed_file: return "malformed file";
      case errc::out_of_memory: return "out of memory";
      case errc::busy: return "busy";
      case errc::disagreement: return "ranks disagree";
      case errc::deadline_exceeded: return "deadline exceeded";
      case errc::peer_lost: return "peer lost";
      case errc::transport_failed: return "transport failed";
      case errc::corrupted: return "corrupted bytes";
      case errc::undecided: return "undecided";
      case errc::cohort_lost: return "cohort lost";
      case errc::stale_membership: return "stale membership";
      case errc::policy_failed: return "policy failed";
      case errc::internal: return "internal error";
    }
    return "unknown error";
  }
};
}  // namespace detail

/// The category of `errc`.
[[nodiscard]] inline std::error_category const& category() noexcept {
  static detail::error_category const instance;
  return instance;
}

[[nodiscard]] inline std::error_code make_error_code(errc value) noexcept {
  return {static_cast<int>(value), category()};
}

BALLAST_END_NAMESPACE

template <>
struct std::is_error_code_enum<ballast::errc> : std::true_type {};

BALLAST_BEGIN_NAMESPACE

/// Outcome of work on outside input or on the environment: a code to branch on and a sentence for a human.
/// Contract violations are not statuses. Success holds no allocation.
#if defined(__CUDACC__)
class status {  // nvcc 13 takes the reference that an assignment returns for a discarded status
#else
class [[nodiscard]] status {
#endif
public:
  status() = default;
  /// @param rank  the rank whose fault it is, where one is known.
  status(std::error_code code, std::string message, index_t rank = no_rank)
      : code_{code}, message_{std::move(message)}, rank_{rank} {}

  [[nodiscard]] bool ok() const noexcept { return !code_; }
  [[nodiscard]] std::error_code code() const noexcept { return code_; }
  /// A sentence that names the offending value; empty on success.
  [[nodiscard]] std::string const& message() const noexcept { return message_; }

  /// No rank in particular.
  static constexpr index_t no_rank = -1;
  /// The rank that is dead, late, different or wrong, as far as this rank knows; `no_rank` on success, and where no
  /// single rank is to blame.
  [[nodiscard]] index_t rank() const noexcept { return rank_; }

  /// Turn a failure into `std::system_error` (a contract violation where exceptions are off).
  void or_throw() const {
    if (ok()) { return; }
#if defined(__cpp_exceptions)
    throw std::system_error{code_, message_};
#else
    BALLAST_CONTRACT_HANDLER(message_.c_str(), __FILE__, __LINE__);
#endif
  }

private:
  std::error_code code_;
  std::string message_;
  index_t rank_ = no_rank;
};

namespace detail {

/// The code of a failure that other ranks are told: a device's own would be another error to them.
[[nodiscard]] inline errc code_for_others(status const& why) noexcept {
  return why.code().category() == category() ? static_cast<errc>(why.code().value()) : errc::transport_failed;
}

}  // namespace detail

BALLAST_END_NAMESPACE

#endif
