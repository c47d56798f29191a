// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_SET_UP_HPP
#define BALLAST_RUNTIME_DETAIL_SET_UP_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Everything that the ranks must have configured alike, word by word, so that a difference can be named.
class set_up {
public:
  void add(std::string name, std::uint64_t value, bool is_digest = false) {
    words_.push_back({std::move(name), value, is_digest});
  }
  void add(topology const& where) {
    add("number of ranks", option_bits(where.num_ranks()));
    add("number of nodes", option_bits(where.num_nodes()));
    add("slots per rank", option_bits(where.slots_per_rank()));
    add("reserved slots", option_bits(where.reserved_slots()));
    digest live;
    where.describe(live);
    add("live ranks", live.value(), true);
  }
  /// A recorder, policy, schedule or set of options: option by option where it names them, else by its digest.
  template <class Part>
  void add_part(std::string_view name, Part const& part) {
    add_options(name, part);
    digest whole;
    part.describe(whole);
    add(concat(name), whole.value(), true);
  }

  /// The options that a part names, if it names any.
  template <class Part>
  void add_options(std::string_view name, Part const& part) {
    if constexpr (names_options<Part>) {
      part.for_each_option(
          [this, &name](std::string_view option, std::uint64_t bits) { add(concat(name, ": ", option), bits); });
    }
  }

  /// One digest of it all.
  [[nodiscard]] std::uint64_t value() const noexcept {
    digest all;
    for (auto const& word : words_) { all.add(word.value); }
    return all.value();
  }

  /// Check that all ranks have the same words; see `ballast::agree`. Ranks of programs with other parts are told so.
  template <control_plane Control>
  [[nodiscard]] status agree(Control& control, nanoseconds_t timeout) const {
    digest names;
    for (auto const& word : words_) { names.add(std::string_view{word.name}); }
    agreed_word const parts[] = {{"kinds of recorder, policy and schedule", names.value(), true}};
    if (auto result = ballast::agree(control, parts, timeout); !result.ok()) { return result; }
    std::vector<agreed_word> words;
    words.reserve(words_.size());
    for (auto const& word : words_) { words.push_back({word.name, word.value, word.is_digest}); }
    return ballast::agree(control, words, timeout);
  }

private:
  struct named_word {
    std::string name;
    std::uint64_t value = 0;
    bool is_digest = false;
  };
  std::vector<named_word> words_;
};

/// Tell every rank whether all of them can go on.
///
/// @return this rank's own failure, or one that names a rank that has one; of several the first that blames nobody
///         else, or else the first, and whom it blames.
template <control_plane Control>
[[nodiscard]] status all_ready(Control& control, status const& own, std::string_view what, nanoseconds_t timeout) {
  std::uint64_t mine[] = {0, 0};  // the code of the failure, and whom it blames
  if (!own.ok()) {
    mine[0] = static_cast<std::uint64_t>(code_for_others(own));
    mine[1] = static_cast<std::uint64_t>(own.rank() == status::no_rank ? control.rank() : own.rank());
  }
  std::vector<std::uint64_t> all(2 * static_cast<std::size_t>(control.num_ranks()));
  auto met = control.all_gather(mine, all, timeout);
  if (!own.ok()) { return own; }
  if (!met.ok()) { return met; }
  status result;
  for (std::size_t rank = 0; 2 * rank < all.size(); ++rank) {
    if (all[2 * rank] == 0) { continue; }
    auto const blamed = all[2 * rank + 1];
    if (blamed != rank && !result.ok()) { continue; }
    auto const code = make_error_code(static_cast<errc>(all[2 * rank]));
    result = {code,
              concat("rank ", rank, " cannot ", what, blamed == rank ? "" : concat(" because of rank ", blamed), ": ",
                     code.message(), "; that rank's own error says more"),
              static_cast<index_t>(blamed)};
    if (blamed == rank) { break; }
  }
  return result;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
