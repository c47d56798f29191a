// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_ALIGNMENT_HPP
#define BALLAST_LOAD_ALIGNMENT_HPP

#include <ballast/detail/text.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/pass_timeline.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The words of every rank are its own.
struct all_live {
  [[nodiscard]] constexpr bool operator()(index_t) const noexcept { return true; }
};

/// What a rank says first about what it has recorded. Every rank says as many words.
struct recorder_summary {
  static constexpr std::size_t num_words = 4;

  bool readable = false;         // whether the recorder could hand its counts out
  std::int64_t num_buckets = 0;  // H
  std::int64_t num_spans = 0;    // 0: does not tell its passes
  std::int64_t forgotten = pass_timeline::none;

  void write(std::vector<std::uint64_t>& words) const {
    words = {readable ? 1u : 0u, static_cast<std::uint64_t>(num_buckets), static_cast<std::uint64_t>(num_spans),
             static_cast<std::uint64_t>(forgotten)};
  }
  [[nodiscard]] static recorder_summary read(std::span<std::uint64_t const> words) noexcept {
    return {words[0] == 1, static_cast<std::int64_t>(words[1]), static_cast<std::int64_t>(words[2]),
            static_cast<std::int64_t>(words[3])};
  }
};

template <load_dumping Recorder>
[[nodiscard]] recorder_summary summarize(Recorder const& recorder, bool readable) {
  recorder_summary mine{readable, recorder.num_buckets(), 0, pass_timeline::none};
  if constexpr (pass_telling<Recorder>) {
    mine.num_spans = recorder.num_spans();
    mine.forgotten = recorder.forgotten();
  }
  return mine;
}

/// This rank's spans as words, three a span, filled up with empty ones to `size` spans.
template <pass_telling Recorder>
void write_spans(Recorder const& recorder, std::size_t size, std::vector<std::uint64_t>& words) {
  std::vector<pass_span> spans(static_cast<std::size_t>(recorder.num_spans()));
  recorder.spans(spans);
  spans.resize(size);
  words.clear();
  for (auto const& span : spans) {
    for (auto const number : {span.first, span.last, span.passes}) {
      words.push_back(static_cast<std::uint64_t>(number));
    }
  }
}
/// The spans of all ranks. Numbers that no recorder gives are refused with the rank that gave them.
template <class IsLive>
[[nodiscard]] status read_spans(std::span<std::uint64_t const> words, std::size_t words_per_rank, IsLive const& is_live,
                                std::vector<pass_span>& spans) {
  spans.clear();
  for (std::size_t at = 0; at + 3 <= words.size(); at += 3) {
    auto const rank = static_cast<index_t>(at / words_per_rank);
    if (!is_live(rank)) { continue; }
    pass_span const span{static_cast<std::int64_t>(words[at]), static_cast<std::int64_t>(words[at + 1]),
                         static_cast<std::int64_t>(words[at + 2])};
    if (span.passes == 0) { continue; }
    constexpr auto earliest = std::int64_t{-1} << 62;
    if (span.first < earliest || span.last > 0 || span.passes < 0 || span.passes > span.last - span.first + 1) {
      return {errc::disagreement,
              concat("aligned_history: rank ", rank, " says that it counted ", span.passes, " passes from ", span.first,
                     " to ", span.last, ", counted back from the last"),
              rank};
    }
    spans.push_back(span);
  }
  return {};
}

/// The largest number of spans of any rank, and the last pass that any has let go; or which rank cannot take part.
struct recorder_survey {
  std::int64_t num_spans = 0;
  std::int64_t forgotten = pass_timeline::none;

  template <class IsLive>
  [[nodiscard]] status take(std::span<std::uint64_t const> words, bool tells_passes, IsLive const& is_live) {
    auto const ranks = words.size() / recorder_summary::num_words;
    auto const of = [&words](std::size_t rank) {
      return recorder_summary::read(words.subspan(rank * recorder_summary::num_words));
    };
    auto first = ranks;
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      if (!is_live(static_cast<index_t>(rank))) { continue; }
      first = std::min(first, rank);
      auto const one = of(rank);
      if (!one.readable) {
        return {errc::invalid_load,
                concat("aligned_history: the recorder of rank ", rank, " cannot hand its counts out"),
                static_cast<index_t>(rank)};
      }
      if (!tells_passes && one.num_buckets != of(first).num_buckets) {
        return {errc::disagreement,
                concat("aligned_history: rank ", rank, " has ", one.num_buckets, " buckets, rank ", first, " has ",
                       of(first).num_buckets, ", and the recorder does not tell which passes they hold"),
                static_cast<index_t>(rank)};
      }
      if (one.num_spans < 0 || one.num_spans > std::numeric_limits<index_t>::max()) {
        return {errc::disagreement, concat("aligned_history: rank ", rank, " says ", one.num_spans, " spans"),
                static_cast<index_t>(rank)};
      }
      num_spans = std::max(num_spans, one.num_spans);
      forgotten = std::max(forgotten, one.forgotten);
    }
    return {};
  }
};

/// Put the buckets of a history where they belong.
///
/// @param places  [H] number of the new bucket of each, -1: dropped.
/// @param tokens  in: [H, L, E]; out: [num_buckets, L, E], buckets that nothing belongs to all zero.
inline void move_buckets(std::span<index_t const> places, index_t num_buckets, std::size_t cells,
                         std::vector<load_t>& tokens) {
  std::vector<load_t> moved(static_cast<std::size_t>(num_buckets) * cells, 0);
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (places[i] < 0) { continue; }
    add_saturated(std::span{tokens}.subspan(i * cells, cells),
                  std::span{moved}.subspan(static_cast<std::size_t>(places[i]) * cells, cells));
  }
  tokens = std::move(moved);
}

template <bucket_placing Recorder>
void align(Recorder& recorder, pass_timeline const& counted, std::vector<load_t>& tokens) {
  std::vector<index_t> places(static_cast<std::size_t>(recorder.num_buckets()));
  auto const num_buckets = recorder.place(counted, places);
  auto const cells = static_cast<std::size_t>(recorder.num_layers()) * static_cast<std::size_t>(recorder.num_logical());
  move_buckets(places, num_buckets, cells, tokens);
}
template <load_fading Recorder>
[[nodiscard]] status align(Recorder& recorder, pass_timeline const& counted, std::vector<load_t>& tokens) {
  recorder.fade(counted);
  return recorder.history(tokens);
}

}  // namespace detail

/// Read a recorder so that the histories of all ranks have the same shape and mean the same passes, to be added up.
///
/// Ranks may have counted different passes: one that has no tokens in a step does not count it. A pass that some rank
/// counted takes its place on every rank, empty where it was not counted: what has left the window of a rank that
/// counted more recently is dropped from all windows, and a fading sum fades alike on all ranks. A recorder that does
/// not tell its passes (`pass_telling`) must have as many buckets on every rank.
///
/// @param recorder  of this rank; a fading one takes the passes of the others in.
/// @param gather    `gather(mine, all) -> status`, with `std::span<std::uint64_t const> mine` and
///                  `std::vector<std::uint64_t>& all`: put the words of all ranks, in the order of ranks, in `all`. It
///                  is called once with 4 words, and then, the same on every rank, once with 3 words for each bucket of
///                  the rank that has most of them, or never.
/// @param history   out: [H, L, E] tokens, H the same on every rank. They can be planned on; after adding up,
///                  `fit_layers` makes sure of that again.
/// @param is_live   `is_live(rank) -> bool`, the same on every rank: whether the words of that rank are its own. Those
///                  that stand in for an expelled rank's are not, and are left out.
/// @complexity O(H L E + n log n) for the n = R H spans of all ranks, besides the gathers.
/// @return on every rank alike, but for a failure of `gather`: `errc::invalid_load` when a recorder cannot be read (on
///         its own rank, why), `errc::disagreement` for buckets that do not match, naming the rank (`status::rank()`).
/// @throws std::bad_alloc
/// @determinism integer arithmetic.
template <load_recorder Recorder, class Gather, class IsLive = detail::all_live>
[[nodiscard]] status aligned_history(Recorder& recorder, Gather&& gather, std::vector<load_t>& history,
                                     IsLive const& is_live = {}) {
  history.assign(static_cast<std::size_t>(recorder.num_buckets()) * static_cast<std::size_t>(recorder.num_layers()) *
                     static_cast<std::size_t>(recorder.num_logical()),
                 0);
  auto read = recorder.history(history);
  std::vector<std::uint64_t> mine;
  std::vector<std::uint64_t> all;
  detail::summarize(recorder, read.ok()).write(mine);
  if (auto result = gather(std::span<std::uint64_t const>{mine}, all); !result.ok()) {
    return read.ok() ? std::move(result) : std::move(read);
  }
  if (!read.ok()) { return read; }
  detail::recorder_survey survey;
  if (auto result = survey.take(all, pass_telling<Recorder>, is_live); !result.ok()) { return result; }
  if constexpr (pass_telling<Recorder>) {
    static_assert(bucket_placing<Recorder> || load_fading<Recorder>,
                  "aligned_history: a recorder that tells its passes can place() its buckets or fade()");
    if (survey.num_spans == 0) { return {}; }
    detail::write_spans(recorder, static_cast<std::size_t>(survey.num_spans), mine);
    if (auto result = gather(std::span<std::uint64_t const>{mine}, all); !result.ok()) { return result; }
    std::vector<pass_span> spans;
    if (auto result = detail::read_spans(all, mine.size(), is_live, spans); !result.ok()) { return result; }
    pass_timeline const counted{std::move(spans), survey.forgotten};
    if constexpr (load_fading<Recorder>) { return detail::align(recorder, counted, history); }
    if constexpr (bucket_placing<Recorder>) { detail::align(recorder, counted, history); }
  }
  return {};
}

BALLAST_END_NAMESPACE

#endif
