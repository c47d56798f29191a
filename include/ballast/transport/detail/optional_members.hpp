// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TRANSPORT_DETAIL_OPTIONAL_MEMBERS_HPP
#define BALLAST_TRANSPORT_DETAIL_OPTIONAL_MEMBERS_HPP

#include <ballast/detail/options.hpp>
#include <ballast/parts.hpp>
#include <ballast/transport/transport.hpp>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Refuses a transport with a member that is named like an optional one and is none: it would be taken for a transport
/// without it. Members that are overloaded or templates are not seen.
template <class Transport>
struct optional_transport_members {
  static_assert(
      shared_transport<Transport> || !requires { &Transport::turns; },
      "Transport has a member turns, but is no shared_transport: transfer_turns& turns() noexcept");
  static_assert(
      peer_copier<Transport> || !requires { &Transport::expose; },
      "Transport has a member expose, but is no peer_copier: status expose(std::span<segment const>, "
      "std::uint32_t), void retract(std::uint32_t) noexcept, std::uint32_t next_region() const noexcept");
  static_assert(
      receive_timer<Transport> || !requires { &Transport::receive_time; },
      "Transport has a member receive_time, but is no receive_timer: nanoseconds_t receive_time() const "
      "noexcept");
  static_assert(
      waiting_transport<Transport> || !requires { &Transport::moves_in_poll; },
      "Transport has a member moves_in_poll, but is no waiting_transport: bool moves_in_poll() const "
      "noexcept");
  static_assert(
      late_writer<Transport> || !requires { &Transport::may_write; },
      "Transport has a member may_write, but is no late_writer: bool may_write(std::span<incoming_message "
      "const>)");
  static_assert(
      warming_part<Transport> || !requires { &Transport::warm_up; },
      "Transport has a member warm_up, but is no warming_part: status warm_up()");
  static_assert(!misnames_options<Transport>,
                "Transport has a member for_each_option, but does not names_options: void for_each_option(Visit) "
                "const");
  static constexpr bool fit = true;
};

/// The same of those that need a control plane.
template <class Transport, class Control>
struct optional_repair_members {
  static_assert(repairable_transport<Transport, Control> ||
                    !(
                        requires { &Transport::needs_repair; } || requires { &Transport::repair; }),
                "Transport has a member needs_repair or repair, but is no repairable_transport: bool needs_repair() "
                "const noexcept, status repair(Control&, nanoseconds_t)");
  static constexpr bool fit = true;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
