// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_NCCL_LAWS_HPP
#define BALLAST_TESTS_SUPPORT_NCCL_LAWS_HPP

#include <ballast/cudart/handles.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>
#include <ballast/transport/by_link.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/control_laws.hpp"
#include "support/gpu.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/transport_laws.hpp"

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>
#include <nccl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

// What communicators and transports over NCCL promise, for ranks on devices or on simulated ones. Each law makes the
// communicators that it needs over `self.control`; rank 0 sends and rank 1 receives.
namespace ballast_test::nccl_law {

namespace nccl = ballast::nccl;
using ballast::errc;
using ballast::index_t;
using ballast::nanoseconds_t;
using ballast::transfer_state;

/// An engine's communicator, as an engine makes it.
class engine_communicator {
public:
  template <class Control>
  engine_communicator(Control& control, bool blocking, bool shares) {
    ncclUniqueId id{};
    if (control.rank() == 0) { nccl::to_status(ncclGetUniqueId(&id), "ncclGetUniqueId").or_throw(); }
    control.broadcast(std::as_writable_bytes(std::span{&id, 1}), 0, patience).or_throw();
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = blocking ? 1 : 0;
    config.splitShare = shares ? 1 : 0;
    nccl::to_status(ncclCommInitRankConfig(&handle_, control.num_ranks(), id, control.rank(), &config), "init")
        .or_throw();
    while (state() == ncclInProgress) { ballast::detail::sleep_for(millisecond); }
  }
  engine_communicator(engine_communicator const&) = delete;
  engine_communicator& operator=(engine_communicator const&) = delete;
  ~engine_communicator() { abort(); }

  [[nodiscard]] ncclComm_t get() const noexcept { return handle_; }
  [[nodiscard]] ncclResult_t state() const {
    ncclResult_t result = ncclInternalError;
    static_cast<void>(ncclCommGetAsyncError(handle_, &result));
    return result;
  }
  void abort() noexcept {
    if (handle_ != nullptr) { static_cast<void>(ncclCommAbort(std::exchange(handle_, nullptr))); }
  }

private:
  ncclComm_t handle_ = nullptr;
};

/// A message from rank 0 to rank 1, and where it goes.
template <class Endpoint>
class one_message {
public:
  one_message(Endpoint& self, law_log& log)
      : self_{self}, log_{log}, memory_{self, log, transport_law::region_bytes, transport_law::target_bytes} {}

  template <class Wires>
  [[nodiscard]] ballast::status start(Wires& wires) {
    ++tag_;
    batch_ = transport_law::single_message(tag_, 40'000 + 1'000 * tag_);
    view_.reset(new batch_view(memory_.view(batch_)));  // NOLINT(modernize-make-unique): it cannot be moved
    auto result = wires.start(view_->sends, view_->receives);
    if (!result.ok()) { --tag_; }
    return result;
  }
  /// Move the message on all ranks.
  template <class Wires>
  bool arrives(Wires& wires, char const* what) {
    return log_.expect_ok(start(wires), ballast::detail::concat("start: ", what)) && ends_well(wires, what);
  }
  template <class Wires>
  bool ends_well(Wires& wires, char const* what) {
    if (!log_.expect_ok(wires.wait(patience), ballast::detail::concat("wait: ", what))) { return false; }
    memory_.expect_received(batch_, what);
    return log_.complaints().empty();
  }
  /// Rank 1 waits for a message that nobody sends.
  template <class Wires>
  void misses(Wires& wires, nanoseconds_t timeout) {
    if (self_.rank() != 1) {
      ++tag_;
      return;
    }
    log_.expect_ok(start(wires), "start without a partner");
    auto const begin = ballast::detail::now();
    auto const result = wires.wait(timeout);
    auto const taken = ballast::detail::now() - begin;
    // NCCL over sockets may hear of a peer's end before the deadline, and then says so itself.
    if (result.code().category() != nccl::category()) {
      log_.expect_failure(result, {errc::deadline_exceeded}, "rank 0", "a message without a partner");
    }
    log_.expect(taken < timeout + timeout / 2, "waited ", taken, " ns of ", timeout);
  }

private:
  Endpoint& self_;
  law_log& log_;
  batch_memory<Endpoint> memory_;
  std::uint64_t tag_ = 0;
  std::vector<batch_message> batch_;
  std::unique_ptr<batch_view> view_;
};

/// A batch without bytes is done at once, in every mode, also when there is no communicator any more.
template <class Endpoint>
void does_nothing_for_empty_batches(Endpoint& self, law_log& log) {
  nccl::communicator own;
  if (!log.expect_ok(nccl::communicator::create(self.control, own), "create")) { return; }
  nccl::transport wires{std::move(own)};
  auto const moves_nothing = [&](char const* when) {
    log.expect_ok(wires.start({}, {}), ballast::detail::concat("start ", when));
    log.expect(wires.poll() == transfer_state::done, "an empty batch is not done at once ", when);
    auto const begin = ballast::detail::now();
    log.expect_ok(wires.wait(10 * patience), ballast::detail::concat("wait ", when));
    log.expect(ballast::detail::now() - begin < slack, "an empty batch takes time ", when);
  };
  moves_nothing("at first");
  one_message message{self, log};
  message.misses(wires, 500 * millisecond);
  moves_nothing("when another has failed");
  meet(self, log);
}

/// With default options inside of by_link, where each rank is a node: bytes cross, and a batch that has none ends.
template <class Endpoint>
void works_inside_by_link(Endpoint& self, law_log& log) {
  nccl::communicator own;
  if (!log.expect_ok(nccl::communicator::create(self.control, own), "create")) { return; }
  auto const compute = ballast::cudart::stream::create();
  nccl::transport far{std::move(own), {compute.get()}};
  auto const size = self.num_ranks();
  ballast::self_copy near{self.rank(), size};
  ballast::by_link<ballast::self_copy, ballast::self_copy, nccl::transport> links{ballast::topology{{size, size, 1, 0}},
                                                                                  near, far};
  log.expect(!links.moves_in_poll(), "bytes are said to move in poll");
  log.expect_ok(links.warm_up(), "warm_up");
  one_message message{self, log};
  if (!log.expect_ok(message.start(links), "start")) { return; }
  if (self.rank() < 2) { log.expect(links.poll() == transfer_state::pending, "launched outside of wait"); }
  if (!message.ends_well(links, "at default options")) { return; }
  log.expect_ok(links.start({}, {}), "start without messages");
  log.expect(links.poll() == transfer_state::done, "a batch without messages is not done at once");
  log.expect_ok(links.wait(patience), "wait without messages");
  message.misses(links, 1'000 * millisecond);
  log.expect(links.needs_repair() == (self.rank() == 1), "rank ", self.rank(), " is wrong about repair");
  if (!log.expect_ok(links.repair(self.control, patience), "repair")) { return; }
  message.arrives(links, "after a repair");
  meet(self, log);
}

/// A batch that is ended before it is done, or is late, is no end: after a repair all is well, again and again.
template <class Endpoint>
void is_repaired(Endpoint& self, law_log& log) {
  nccl::communicator own;
  if (!log.expect_ok(nccl::communicator::create(self.control, own), "create")) { return; }
  nccl::transport wires{std::move(own)};
  one_message message{self, log};
  for (int round = 0; round < 2; ++round) {
    if (!message.arrives(wires, "before")) { return; }
    message.misses(wires, 1'000 * millisecond);
    log.expect(wires.needs_repair() == (self.rank() == 1), "rank ", self.rank(), " is wrong about repair");
    if (!log.expect_ok(wires.repair(self.control, patience), "repair")) { return; }
    log.expect(!wires.needs_repair(), "repaired, and yet lost");
    if (!message.arrives(wires, "after a late rank")) { return; }
    log.expect_ok(message.start(wires), "start");
    static_cast<void>(wires.poll());
    static_cast<void>(wires.wait(0));
    if (!log.expect_ok(wires.repair(self.control, patience), "repair after a batch was given up")) { return; }
    std::vector<cudaStream_t> streams;
    wires.for_each_copy_stream([&](cudaStream_t stream) { streams.push_back(stream); });
    log.expect(streams == std::vector{wires.copy_stream()}, "another copy stream is told");
  }
  message.arrives(wires, "at last");
  ballast::in_process_group one{1};
  if (self.num_ranks() > 1) {
    auto const refused = wires.repair(one.endpoint(0), patience);
    log.expect_failure(refused, {errc::invalid_option}, "control plane", "repair by another group");
    log.expect(!wires.needs_repair(), "a refused repair costs the communicator");
  }
  message.arrives(wires, "after a refused repair");
  meet(self, log);
}

/// A kernel that never ends, or that waits to begin because its peer does not come, of a communicator that we may not
/// abort, keeps nobody from going on; only its targets are out of bounds until its owner has ended it.
template <class Endpoint>
void goes_on_beside_a_kernel_that_never_ends(Endpoint& self, law_log& log, bool connected) {
  engine_communicator engine{self.control, false, false};
  nccl::transport wires{nccl::communicator::borrow(engine.get())};
  one_message stuck{self, log};
  one_message other{self, log};
  if (connected && !stuck.arrives(wires, "on the engine's communicator")) { return; }
  stuck.misses(wires, 1'500 * millisecond);
  log.expect(engine.state() == ncclSuccess || engine.state() == ncclInProgress, "the engine's communicator is broken");
  auto const begin = ballast::detail::now();
  if (!log.expect_ok(wires.repair(self.control, patience), "repair")) { return; }
  log.expect(ballast::detail::now() - begin < patience / 2, "the repair has waited for the kernel");
  if (!other.arrives(wires, "beside a kernel that never ends")) { return; }
  if (self.rank() == 1) {
    auto const refused = stuck.start(wires);
    log.expect_failure(refused, {errc::transport_failed}, "ncclCommAbort", "a batch into memory that is written to");
    log.expect(wires.poll() == transfer_state::idle, "a refused batch is open");
  }
  engine.abort();
  // Connected ranks launch at once, and then the kernel's end is seen; otherwise NCCL may launch it at any time.
  if (!connected) { wires.lender_has_ended(); }
  auto const deadline = ballast::detail::deadline_after(patience);
  ballast::status started;
  do {
    ballast::detail::sleep_for(millisecond);
    started = stuck.start(wires);
  } while (!started.ok() && ballast::detail::now() < deadline);
  if (log.expect_ok(started, "start when the kernel has ended")) {
    stuck.ends_well(wires, "when the kernel has ended");
  }
  meet(self, log);
}

/// What was split off a communicator that shares its resources is never aborted; where it shares nothing, it is, and
/// the engine's goes on. Of those that share, NCCL runs the kernels in one order: the engine's would wait for ours.
template <class Endpoint>
void leaves_the_parent_alone(Endpoint& self, law_log& log) {
  for (bool const shares : {true, false}) {
    engine_communicator engine{self.control, true, shares};
    nccl::communicator child;
    nccl::communicator_options const options{.parent_shares_nothing = !shares};
    if (!log.expect_ok(nccl::communicator::split(engine.get(), self.control, child, options), "split")) { return; }
    nccl::transport wires{std::move(child)};
    one_message message{self, log};
    if (!message.arrives(wires, "on a child")) { return; }
    message.misses(wires, 500 * millisecond);
    meet(self, log);
    log.expect(engine.state() == ncclSuccess, "the engine's communicator is broken");
    one_message second{self, log};
    if (!shares) {
      nccl::transport engines{nccl::communicator::borrow(engine.get())};
      if (!second.arrives(engines, "on the engine's communicator afterwards")) { return; }
    }
    if (!log.expect_ok(wires.repair(self.control, patience), "repair")) { return; }
    second.arrives(wires, "after the repair");
    meet(self, log);
    engine.abort();  // the child's kernel ends with it; memory cannot be given back before
  }
}

/// An executor that keeps its work until it is told to do it.
class delayed_executor {
public:
  [[nodiscard]] nccl::executor get() { return {&delayed_executor::take, this}; }
  void do_all() {
    for (auto const& [work, argument] : works_) { std::thread{work, argument}.join(); }
    works_.clear();
  }
  [[nodiscard]] std::size_t size() const noexcept { return works_.size(); }

private:
  static void take(void* context, void (*work)(void*), void* argument) {
    static_cast<delayed_executor*>(context)->works_.emplace_back(work, argument);
  }
  std::vector<std::pair<void (*)(void*), void*>> works_;
};

/// A rank that never calls NCCL lets the others' calls block, not the others; what is made late hurts nobody.
template <class Endpoint>
void splits_within_its_deadline(Endpoint& self, law_log& log) {
  for (bool const blocking : {true, false}) {
    engine_communicator const engine{self.control, blocking, false};
    delayed_executor later;
    nccl::communicator child;
    nccl::communicator_options options{.timeout = 2'000 * millisecond, .parent_shares_nothing = true};
    if (self.rank() == 0) { options.calls = later.get(); }
    auto const begin = ballast::detail::now();
    auto const result = nccl::communicator::split(engine.get(), self.control, child, options);
    auto const taken = ballast::detail::now() - begin;
    log.expect(!result.ok(), "split without a rank");
    log.expect(taken < options.timeout + options.timeout / 2, "split took ", taken, " ns");
    log.expect(child.is_lost(), "half a child");
    if (self.rank() == 0) { ballast::detail::sleep_for(options.timeout); }
    later.do_all();
    meet(self, log);
    ballast::detail::sleep_for(100 * millisecond);
    options.calls = {};
    options.timeout = patience;
    if (log.expect_ok(nccl::communicator::split(engine.get(), self.control, child, options), "split again")) {
      nccl::transport wires{std::move(child)};
      one_message message{self, log};
      message.arrives(wires, "on a child at the second attempt");
    }
    meet(self, log);
  }
}

/// Whoever cannot take part tells the others, who do not wait for NCCL then.
template <class Endpoint>
void fails_together(Endpoint& self, law_log& log) {
  nccl::communicator made;
  for (index_t const odd : {index_t{0}, index_t{1}}) {
    nccl::communicator_options const options{.max_ctas = self.rank() == odd ? -1 : 4};
    auto const begin = ballast::detail::now();
    auto const result = nccl::communicator::create(self.control, made, options);
    log.expect(!result.ok(), "made with -1 thread blocks on rank ", odd);
    log.expect(ballast::detail::now() - begin < slack, "rank ", odd, " is waited for");
  }
  log.expect_ok(nccl::communicator::create(self.control, made), "create");
  meet(self, log);
}

/// Calls that may block are made where the engine says.
template <class Endpoint>
void calls_on_the_engines_executor(Endpoint& self, law_log& log) {
  struct counting {
    std::atomic<int> calls = 0;
    static void run(void* context, void (*work)(void*), void* argument) {
      ++static_cast<counting*>(context)->calls;
      std::thread{work, argument}.detach();
    }
  } counted;
  {
    nccl::communicator own;
    nccl::communicator_options const options{.calls = {&counting::run, &counted}};
    if (!log.expect_ok(nccl::communicator::create(self.control, own, options), "create")) { return; }
    log.expect(counted.calls == 1, "made elsewhere");
    nccl::transport wires{std::move(own), {.communicator = options}};
    log.expect_ok(wires.warm_up(), "warm_up");
    log.expect(counted.calls == (self.num_ranks() > 1 ? 2 : 1), "connected elsewhere");
    meet(self, log);
  }
  log.expect(counted.calls == (self.num_ranks() > 1 ? 3 : 2), "ended elsewhere");
}

/// Ranks connect beforehand, within a deadline, and a missing one costs no more than a repair.
template <class Endpoint>
void connects_beforehand(Endpoint& self, law_log& log) {
  nccl::communicator own;
  if (!log.expect_ok(nccl::communicator::create(self.control, own), "create")) { return; }
  auto const timeout = 1'000 * millisecond;
  nccl::transport wires{std::move(own), {.timed = true, .communicator = {.timeout = timeout}}};
  if (self.rank() != 0) {
    auto const begin = ballast::detail::now();
    auto const result = wires.warm_up();
    log.expect_failure(result, {errc::deadline_exceeded}, "", "warm_up without rank 0");
    log.expect(ballast::detail::now() - begin < 3 * timeout, "warm_up waits for too long");
    log.expect(wires.needs_repair(), "a communicator in the middle of something is used on");
  }
  meet(self, log);
  if (!log.expect_ok(wires.repair(self.control, patience), "repair")) { return; }
  meet(self, log);
  log.expect_ok(wires.warm_up(), "warm_up");
  log.expect(wires.receive_time() == 0, "a time without a batch");
  one_message message{self, log};
  message.arrives(wires, "after warm_up");
  meet(self, log);
}

/// Another thread's capture in global mode, the default of frameworks, outlasts everything that we do.
template <class Endpoint>
void leaves_captures_alone(Endpoint& self, law_log& log) {
  nccl::communicator own;
  if (!log.expect_ok(nccl::communicator::create(self.control, own), "create")) { return; }
  auto const compute = ballast::cudart::stream::create();
  nccl::transport wires{std::move(own), {compute.get()}};
  one_message message{self, log};
  auto const captured = ballast::cudart::stream::create();
  std::atomic<bool> capturing = false;
  std::atomic<bool> done = false;
  cudaError_t begun = cudaErrorUnknown;
  cudaError_t ended = cudaErrorUnknown;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  meet(self, log);  // from here on only what we do may touch the device
  std::thread capture{[&] {
    static_cast<void>(cudaSetDevice(device));
    begun = cudaStreamBeginCapture(captured.get(), cudaStreamCaptureModeGlobal);
    capturing = true;
    while (!done) { ballast::detail::sleep_for(millisecond); }
    cudaGraph_t graph = nullptr;
    ended = cudaStreamEndCapture(captured.get(), &graph);
    if (graph != nullptr) { static_cast<void>(cudaGraphDestroy(graph)); }
  }};
  while (!capturing) { ballast::detail::sleep_for(millisecond); }
  log.expect_ok(wires.warm_up(), "warm_up beside a capture");
  log.expect_ok(message.start(wires), "start beside a capture");
  static_cast<void>(wires.poll());
  log.expect_ok(wires.wait(patience), "wait beside a capture");
  meet(self, log);
  done = true;
  capture.join();
  log.expect(begun == cudaSuccess && ended == cudaSuccess, "the capture is lost: ", cudaGetErrorString(ended));
  meet(self, log);
}

/// Values that make no transport are named, with the remedy.
template <class Endpoint>
void refuses_options(Endpoint& self, law_log& log) {
  nccl::communicator fine;
  if (!log.expect_ok(nccl::communicator::create(self.control, fine), "create")) { return; }
  auto const groups = nccl::transport::validate(fine, {.rounds_per_group = -3});
  log.expect_failure(groups, {errc::invalid_option}, "-3", "rounds per group");
  for (auto* const stream : {cudaStreamLegacy, cudaStreamPerThread}) {
    auto const refused = nccl::transport::validate(fine, {.compute_stream = stream});
    log.expect_failure(refused, {errc::invalid_option}, "cudaStreamCreateWithFlags", "a default stream");
  }
  auto const blocks = nccl::transport::validate(fine, {.communicator = {.max_ctas = -1}});
  log.expect_failure(blocks, {errc::invalid_option}, "-1", "thread blocks");
  auto const crossed = nccl::validate({.max_ctas = 4, .min_ctas = 5});
  log.expect_failure(crossed, {errc::invalid_option}, "5", "more blocks at least than at most");
  log.expect_ok(nccl::validate({.min_ctas = 5}), "blocks at least");
  log.expect(!nccl::transport{std::move(fine)}.moves_in_poll(), "bytes move in poll by default");
  meet(self, log);
}

/// All of the above. @param check  `check(sizes, law)` runs `law(endpoint, log)` in groups of these sizes
template <class Check>
void check_laws(Check check) {
  SUBCASE("a batch without bytes asks NCCL for nothing") {
    check({1, 2}, [](auto& self, law_log& log) { does_nothing_for_empty_batches(self, log); });
  }

  SUBCASE("NCCL at its defaults works inside of by_link") {
    check({2}, [](auto& self, law_log& log) { works_inside_by_link(self, log); });
  }

  SUBCASE("late and abandoned batches are repaired, again and again") {
    check({2, 3}, [](auto& self, law_log& log) { is_repaired(self, log); });
  }

  SUBCASE("a kernel that never ends keeps its stream and its targets, and nobody from going on") {
    check({2}, [](auto& self, law_log& log) {
      goes_on_beside_a_kernel_that_never_ends(self, log, true);
      goes_on_beside_a_kernel_that_never_ends(self, log, false);
    });
  }

  SUBCASE("a child's failure leaves its parent alone, whatever the two share") {
    check({2}, [](auto& self, law_log& log) { leaves_the_parent_alone(self, log); });
  }

  SUBCASE("a split ends in time, and what is made late hurts nobody") {
    check({2}, [](auto& self, law_log& log) { splits_within_its_deadline(self, log); });
  }

  SUBCASE("a rank that cannot take part is not waited for") {
    check({2, 3}, [](auto& self, law_log& log) { fails_together(self, log); });
  }

  SUBCASE("calls that may block are made on the engine's executor") {
    check({1, 2}, [](auto& self, law_log& log) { calls_on_the_engines_executor(self, log); });
  }

  SUBCASE("ranks connect before the first batch") {
    check({2, 3}, [](auto& self, law_log& log) { connects_beforehand(self, log); });
  }

  SUBCASE("captures of other threads outlast batches") {
    check({2}, [](auto& self, law_log& log) { leaves_captures_alone(self, log); });
  }

  SUBCASE("options that make no transport are refused") {
    check({1}, [](auto& self, law_log& log) { refuses_options(self, log); });
  }
}

}  // namespace ballast_test::nccl_law

#endif
