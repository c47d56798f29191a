// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SHARING_LAWS_HPP
#define BALLAST_TESTS_SUPPORT_SHARING_LAWS_HPP

#include <ballast/detail/text.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>

#include "support/check_complaints.hpp"
#include "support/group_runner.hpp"
#include "support/hooked.hpp"
#include "support/patterned_weights.hpp"
#include "support/policies.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

// Several models on one transport and one control plane: a target and a draft model, or one model's layers in two
// halves.
namespace ballast_test {

/// One model of one rank: its weights, its store, its rebalancer.
template <class Endpoint>
class model {
public:
  model(Endpoint& self, ballast::index_t num_layers, ballast::index_t slots, std::vector<tensor_shape> const& tensors,
        ballast::rebalancer_options options)
      : where_{{self.num_ranks(), 1, slots, 0}},
        initial_{ballast::trivial_placement({num_layers, where_.num_slots() - 1, where_.num_slots()})},
        weights_{where_, self.rank(), initial_, tensors},
        store_{where_, num_layers, 2048},
        moved_{where_,
               initial_,
               {ballast::window_recorder{num_layers, initial_.num_logical(), {options.interval, 1}}, {}, {1}, options},
               store_,
               self.transport,
               self.control} {
    weights_.add_to(store_);
    store_.out_of_memory = [this] { return full; };
  }

  [[nodiscard]] auto& moved() { return moved_; }
  [[nodiscard]] std::string first_error() const { return weights_.first_error(moved_.current()); }

  bool full = false;

private:
  using transport = std::remove_cvref_t<decltype(std::declval<Endpoint&>().transport)>;
  using control = std::remove_cvref_t<decltype(std::declval<Endpoint&>().control)>;

  ballast::topology where_;
  ballast::placement initial_;
  patterned_weights weights_;
  hooked_store store_;
  ballast::rebalancer<ballast::window_recorder, rotate_placement, ballast::layers_per_chunk<>, transport, hooked_store,
                      control>
      moved_;
};

/// A rank with two models on one transport.
template <class Endpoint>
class rank_of_two_models {
public:
  rank_of_two_models(Endpoint& self, law_log& log, bool target_asynchronous, bool draft_asynchronous,
                     std::string_view name)
      : self_{self}, log_{log}, draft_asynchronous_{draft_asynchronous}, name_{name} {
    target_ = std::make_unique<model<Endpoint>>(self, 3, 3, std::vector<tensor_shape>{{48, 48}, {30, 32}},
                                                options(3, target_asynchronous));
    new_draft();
  }

  void run() {
    if (!log_.expect_ok(target_->moved().start(), says("start of the target"))) { return; }
    if (!log_.expect_ok(draft_->moved().start(), says("start of the draft"))) { return; }
    steps(60);
    log_.expect(target_->moved().epoch(0) >= 3, says("the target moved "), target_->moved().epoch(0), " times");
    log_.expect(draft_->moved().epoch(0) >= 3, says("the draft moved "), draft_->moved().epoch(0), " times");
    another_draft();
    one_of_them_fails();
  }

private:
  [[nodiscard]] static ballast::rebalancer_options options(ballast::index_t interval, bool asynchronous) {
    // Where transport and control plane do not hear of each other, a rank without room keeps the others waiting as
    // long.
    return {.interval = interval, .timeout = 4'000 * millisecond, .rounds_per_batch = 1, .asynchronous = asynchronous};
  }
  [[nodiscard]] std::string says(std::string_view what) const { return ballast::detail::concat(name_, ": ", what); }
  void new_draft() {
    draft_ = std::make_unique<model<Endpoint>>(self_, 2, 2, std::vector<tensor_shape>{{17, 20}},
                                               options(2, draft_asynchronous_));
  }

  void steps(int count) {
    for (int step = 0; step < count && log_.complaints().empty(); ++step) {
      log_.expect_ok(pass(*target_), says("a step of the target"));
      log_.expect_ok(pass(*draft_), says("a step of the draft"));
    }
  }
  ballast::status pass(model<Endpoint>& of) {
    auto& moved = of.moved();
    auto const words = self_.tell_all(moved.outgoing());
    auto result = moved.incoming(words);
    if (result.ok()) { result = moved.on_forward_pass_end(); }
    auto const wrong = of.first_error();
    log_.expect(wrong.empty(), says("wrong bytes of the "), &of == target_.get() ? "target: " : "draft: ", wrong);
    return result;
  }

  // The transport lives on: tags and regions of the draft that went are not used again.
  void another_draft() {
    static_cast<void>(self_.tell_all(0));
    draft_ = nullptr;
    static_cast<void>(self_.tell_all(0));
    new_draft();
    if (!log_.expect_ok(draft_->moved().start(), says("start of another draft"))) { return; }
    steps(30);
    log_.expect(draft_->moved().epoch(0) >= 2, says("the other draft moved "), draft_->moved().epoch(0), " times");
  }

  // One model fails on one rank; all resume both, and both go on.
  void one_of_them_fails() {
    draft_->full = self_.rank() == 0;
    bool bad = false;
    for (int step = 0; step < 40 && !bad; ++step) {
      bool const target_failed = !pass(*target_).ok();
      bool const failed = !pass(*draft_).ok() || target_failed;
      auto const states = self_.tell_all(failed ? 1 : 0);
      bad = std::ranges::count(states, std::uint64_t{1}) > 0;
    }
    log_.expect(bad, says("a store without room was not noticed"));
    draft_->full = false;
    log_.expect_ok(target_->moved().resume(), says("resume of the target"));
    log_.expect_ok(draft_->moved().resume(), says("resume of the draft"));
    auto const before = draft_->moved().epoch(0) + target_->moved().epoch(0);
    steps(40);
    log_.expect(draft_->moved().epoch(0) + target_->moved().epoch(0) >= before + 4, says("nothing moves after resume"));
  }

  Endpoint& self_;
  law_log& log_;
  bool draft_asynchronous_;
  std::string name_;
  std::unique_ptr<model<Endpoint>> target_;
  std::unique_ptr<model<Endpoint>> draft_;
};

/// Two models in every pair of modes. Call it in a test case.
template <class Runner>
void check_sharing(Runner const& runner, ballast::index_t num_ranks = 3) {
  struct modes {
    char const* name;
    bool target;
    bool draft;
  };
  for (auto const& mode : {modes{"both synchronous", false, false}, modes{"both asynchronous", true, true},
                           modes{"target asynchronous", true, false}, modes{"draft asynchronous", false, true}}) {
    CAPTURE(std::string{mode.name});
    check_complaints(runner.run(num_ranks, [&](auto& self, law_log& log) {
      rank_of_two_models{self, log, mode.target, mode.draft, mode.name}.run();
      static_cast<void>(self.tell_all(0));
    }));
  }
}

}  // namespace ballast_test

#endif
