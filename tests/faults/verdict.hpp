// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_VERDICT_HPP
#define BALLAST_TESTS_FAULTS_VERDICT_HPP

#include <ballast/detail/text.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "faults/fault.hpp"
#include "faults/fault_model.hpp"
#include "support/processes.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace ballast_test {

/// How one rank stood at one time.
struct rank_stage {
  struct model {
    int state = -1;
    bool bytes_right = false;
    std::vector<std::uint64_t> epochs;                // [L]
    std::vector<std::vector<ballast::index_t>> maps;  // [L][P]

    [[nodiscard]] bool is(ballast::rebalancer_state other) const noexcept { return state == static_cast<int>(other); }
  };
  bool told = false;
  std::array<model, num_models> models;
  std::string wrong;  ///< first thing that is not as the tables say
};

/// What one rank reported.
struct rank_report {
  bool ended = false;
  bool complained = false;  ///< said something that is an error in itself
  std::string complaint;
  ballast::nanoseconds_t strike = 0;
  ballast::nanoseconds_t error_at = 0;
  int error_code = 0;
  std::string error;
  std::string whys;  ///< why each model has failed
  rank_stage fault;  ///< when all had stopped
  rank_stage end;    ///< after the clean cycles
  bool expelled = false;
  bool back = false;
  std::string not_back;
  int cycles = 0;
  int settled = 0;
  int resumes = 0;
  int hiccups = 0;

  [[nodiscard]] bool failed() const noexcept { return error_at != 0; }
  [[nodiscard]] bool lost() const noexcept {
    return std::ranges::any_of(fault.models,
                               [](auto const& model) { return model.is(ballast::rebalancer_state::cohort_lost); });
  }
};

/// Reads what a rank has reported, line by line.
class report_reader {
public:
  [[nodiscard]] rank_report operator()(std::string const& text) {
    for (auto const& line : lines_of(text)) { read(line); }
    return std::move(report_);
  }

private:
  void read(std::string const& line) {
    std::istringstream words{line};
    std::string first;
    words >> first;
    if (first == "strike") {
      words >> report_.strike;
    } else if (first == "error") {
      words >> report_.error_at >> report_.error_code;
      std::getline(words, report_.error);
    } else if (first == "why") {
      report_.whys += line;
    } else if (first == "stage") {
      std::string name;
      words >> name;
      stage_ = name == "end" ? &report_.end : &report_.fault;
      stage_->told = true;
    } else if (first == "state" || first == "bytes" || first == "layer") {
      read_model(first, words);
    } else if (first == "expelled") {
      report_.expelled = true;
    } else if (first == "back") {
      report_.back = true;
      words >> report_.cycles >> report_.settled >> report_.resumes >> report_.hiccups;
    } else if (first == "not") {
      report_.not_back = line;
    } else if (first == "ends") {
      report_.ended = true;
    } else if (first == "cannot" || first == "the" || first == "exception") {
      report_.complained = true;
      report_.complaint = line;
    }
  }
  void read_model(std::string const& first, std::istringstream& words) {
    std::size_t number = 0;
    words >> number;
    auto& model = stage_->models.at(number);
    if (first == "state") {
      words >> model.state;
    } else if (first == "bytes") {
      std::string text;
      std::getline(words, text);
      model.bytes_right = text == " right";
      if (!model.bytes_right) { stage_->wrong = ballast::detail::concat(model_names[number], ":", text); }
    } else {
      std::size_t layer = 0;
      words >> layer >> model.epochs.emplace_back();
      auto& map = model.maps.emplace_back();
      for (ballast::index_t expert = 0; words >> expert;) { map.push_back(expert); }
    }
  }

  rank_report report_;
  rank_stage* stage_ = &report_.fault;
};

/// What a fault did to a group.
struct verdict {
  bool struck = false;
  int hangs = 0;          ///< ranks that did not come back
  int wrong_bytes = 0;    ///< ranks that hold other bytes than their tables say
  int lost_experts = 0;   ///< experts without a live replica
  int split_epochs = 0;   ///< layers for which two serving ranks name different epochs or maps
  int without_cause = 0;  ///< survivors with an error that does not lead to the rank at fault
  int by_chain = 0;       ///< survivors whose error names a rank whose error names the rank at fault
  int too_late = 0;       ///< survivors whose error came after twice the deadline
  int not_serving = 0;    ///< survivors that must not serve before they are settled
  int not_back = 0;       ///< groups that do not come back
  int settled = 0;        ///< models of ranks that were settled
  int resumes = 0;        ///< of the group, all models together
  int cycles = 0;         ///< clean ones afterwards, of the model that has fewest
  int hiccups = 0;        ///< resumes that took another one
  int caught = 0;         ///< for faults that can only be detected: the tests noticed
  ballast::nanoseconds_t slowest = 0;
  std::string detail;  ///< the first thing that is wrong

  [[nodiscard]] bool good() const noexcept {
    return hangs + wrong_bytes + lost_experts + split_epochs + without_cause + too_late + not_back == 0;
  }
  template <class Visit>
  void for_each_number(Visit visit) {
    for (auto* const number : {&hangs, &wrong_bytes, &lost_experts, &split_epochs, &without_cause, &by_chain, &too_late,
                               &not_serving, &not_back, &settled, &resumes, &cycles, &hiccups, &caught}) {
      visit(*number);
    }
  }
};

/// Does the message name the rank? "rank 1" does not name rank 12.
[[nodiscard]] inline bool names_rank(std::string_view message, ballast::index_t rank) {
  auto const name = ballast::detail::concat("rank ", rank);
  for (auto at = message.find(name); at != std::string_view::npos; at = message.find(name, at + 1)) {
    auto const next = at + name.size();
    if (next == message.size() || message[next] < '0' || message[next] > '9') { return true; }
  }
  return false;
}

class judge {
public:
  judge(fault const& what, std::vector<rank_report> const& ranks, std::optional<ballast::nanoseconds_t> strike)
      : fault_{what}, ranks_{ranks}, strike_{strike} {
    for (auto const& rank : ranks) {
      if (rank.strike != 0) { strike_ = rank.strike; }
    }
  }

  [[nodiscard]] verdict operator()() {
    out_.struck = strike_.has_value();
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      if (is_gone(rank)) { continue; }
      check_end(rank);
      if (!is_victim(rank)) { check_error(rank); }
    }
    check_layers(&rank_report::fault, "");
    if (fault_.is(fault_kind::source_overwritten) && out_.struck) {
      turn_detection_around();
    } else if (!fault_.is(fault_kind::source_overwritten)) {
      check_return();
    }
    return out_;
  }

private:
  [[nodiscard]] bool is_victim(std::size_t rank) const { return rank == static_cast<std::size_t>(fault_.victim); }
  /// Dead or expelled.
  [[nodiscard]] bool is_gone(std::size_t rank) const {
    return is_victim(rank) && out_.struck && (fault_.kills() || ranks_[rank].expelled);
  }

  template <class... Parts>
  void note(int& counter, Parts const&... what) {
    ++counter;
    if (out_.detail.empty()) { out_.detail = ballast::detail::concat(what...); }
  }

  void check_end(std::size_t rank) {
    auto const& report = ranks_[rank];
    if (!report.ended || report.complained || !report.fault.told) {
      return note(out_.hangs, "rank ", rank, " did not end: ", report.complaint, " ", report.not_back, report.error);
    }
    if (auto const& wrong = report.fault.wrong; !wrong.empty()) {
      note(out_.wrong_bytes, "rank ", rank, " holds wrong bytes: ", wrong);
    }
    if (report.lost()) { ++out_.not_serving; }
    if ((!out_.struck || fault_.harmless()) && report.failed()) {
      note(out_.without_cause, "rank ", rank, " failed without a cause: ", report.error);
    }
  }

  // A survivor without an error has done all its work before, or was told by the engine.
  void check_error(std::size_t rank) {
    auto const& report = ranks_[rank];
    if (!report.failed() || !out_.struck || fault_.harmless()) { return; }
    auto const said = report.error + report.whys;
    if (!names_rank(said, fault_.victim)) { ++out_.by_chain; }
    if (!names_victim(said)) {
      note(out_.without_cause, "rank ", rank, " does not name rank ", fault_.victim, ": ", report.error);
    }
    auto const taken = std::max<ballast::nanoseconds_t>(report.error_at - *strike_ - leeway(), 0);
    out_.slowest = std::max(out_.slowest, taken);
    if (taken > 2 * fault_.deadline) {
      note(out_.too_late, "rank ", rank, " took ", taken / millisecond, " ms to say: ", report.error);
    }
  }
  // What is not the library's time: the engine's own exchange waits for a rank that is stopped, and until its deadline
  // for one that waits elsewhere; bytes of a model that moves asynchronously may have the transport first.
  [[nodiscard]] ballast::nanoseconds_t leeway() const {
    if (!fault_.exchanges) { return 0; }
    auto const exchange = fault_.impatient ? 3 * fault_.deadline / 2 : 0;
    bool const asynchronous = fault_.asynchronous[0] || fault_.asynchronous[1];
    return std::max(fault_.pauses() ? fault_.pause() : 0, exchange) + (asynchronous ? fault_.deadline : 0);
  }
  // Directly, or by way of other ranks: what held this rank up names the rank that held it up in turn.
  [[nodiscard]] bool names_victim(std::string_view error, std::uint64_t asked = 0) const {
    if (names_rank(error, fault_.victim)) { return true; }
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      if ((asked >> rank & 1) != 0 || !names_rank(error, static_cast<ballast::index_t>(rank))) { continue; }
      if (names_victim(ranks_[rank].error + ranks_[rank].whys, asked | std::uint64_t{1} << rank)) { return true; }
    }
    return false;
  }

  // Does the rank name an epoch that it serves with? A rank whose group is still to be decided will hear of it.
  [[nodiscard]] bool serves(std::size_t rank, std::size_t number, rank_stage const& stage) const {
    auto const& model = stage.models[number];
    if (is_gone(rank) || model.is(ballast::rebalancer_state::cohort_lost)) { return false; }
    bool const is_open = fault_.asynchronous[number] && model.is(ballast::rebalancer_state::moving);
    return !is_open || &stage == &ranks_[rank].end;
  }
  void check_layers(rank_stage rank_report::* stage, char const* when) {
    for (std::size_t number = 0; number < num_models; ++number) {
      for (std::size_t layer = 0; layer < static_cast<std::size_t>(model_shapes[number].num_layers); ++layer) {
        check_layer(stage, when, number, layer);
      }
    }
  }
  void check_layer(rank_stage rank_report::* stage, char const* when, std::size_t number, std::size_t layer) {
    rank_stage::model const* first = nullptr;
    auto const& shape = model_shapes[number];
    std::vector<unsigned char> alive(static_cast<std::size_t>(shape.num_logical(fault_.num_ranks)));
    bool all_serve = true;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      auto const& told = ranks_[rank].*stage;
      auto const& model = told.models[number];
      if (is_gone(rank) || !told.told || layer >= model.maps.size()) { continue; }
      if (model.bytes_right) { mark_alive(model.maps[layer], shape, rank, alive); }
      if (!serves(rank, number, told)) {
        all_serve = false;
        continue;
      }
      if (first == nullptr) { first = &model; }
      if (model.epochs[layer] != first->epochs[layer] || model.maps[layer] != first->maps[layer]) {
        note(out_.split_epochs, when, model_names[number], ", layer ", layer, ": rank ", rank, " serves epoch ",
             model.epochs[layer], ", another rank ", first->epochs[layer], ": ", ranks_[rank].error);
      }
    }
    auto const lost = std::ranges::count(alive, static_cast<unsigned char>(0));
    // What a rank has received that does not know the outcome lies in its staging, until it is settled.
    if (lost > 0 && all_serve) {
      note(out_.lost_experts, when, model_names[number], ", layer ", layer, ": ", lost,
           " experts have no live replica");
    }
  }
  static void mark_alive(std::vector<ballast::index_t> const& map, model_shape const& shape, std::size_t rank,
                         std::vector<unsigned char>& alive) {
    auto const slots = static_cast<std::size_t>(shape.slots_per_rank);
    for (std::size_t slot = 0; slot < slots; ++slot) { alive[static_cast<std::size_t>(map[rank * slots + slot])] = 1; }
  }

  // One resume on all ranks, and clean cycles.
  void check_return() {
    bool all_back = true;
    std::string why;
    out_.cycles = 1'000'000;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      if (is_gone(rank)) { continue; }
      auto const& report = ranks_[rank];
      all_back = all_back && report.back;
      if (!report.not_back.empty()) { why += ballast::detail::concat(" [rank ", rank, " ", report.not_back, "]"); }
      out_.settled += report.settled;
      out_.resumes = std::max(out_.resumes, report.resumes);
      out_.hiccups = std::max(out_.hiccups, report.hiccups);
      out_.cycles = std::min(out_.cycles, report.cycles);
      if (auto const& wrong = report.end.wrong; !wrong.empty()) {
        note(out_.wrong_bytes, "at the end rank ", rank, " holds wrong bytes: ", wrong);
      }
    }
    if (!all_back) { return note(out_.not_back, "the group does not come back:", why); }
    check_layers(&rank_report::end, "at the end ");
  }

  // The engine broke its promise and spoiled bytes: what counts is that this does not go unnoticed.
  void turn_detection_around() {
    bool const noticed =
        out_.wrong_bytes > 0 || std::ranges::any_of(ranks_, [](rank_report const& report) { return report.failed(); });
    auto const hangs = out_.hangs;
    auto const split = out_.split_epochs;
    out_ = {};
    out_.struck = true;
    out_.hangs = hangs;
    out_.split_epochs = split;
    out_.caught = noticed ? 1 : 0;
    if (!noticed) { note(out_.wrong_bytes, "an overwritten source went unnoticed"); }
  }

  fault const& fault_;
  std::vector<rank_report> const& ranks_;
  std::optional<ballast::nanoseconds_t> strike_;
  verdict out_;
};

}  // namespace ballast_test

#endif
