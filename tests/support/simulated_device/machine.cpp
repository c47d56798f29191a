// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "machine.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace ballast_test::simulated {

namespace {

[[nodiscard]] int number_from(char const* variable, int otherwise) {
  auto const* const text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoi(text);
}

/// For programs that know nothing of the simulation.
[[nodiscard]] machine_options options_of_environment() {
  machine_options result;
  result.num_devices = number_from("SIMULATED_DEVICES", 2);
  result.seed = static_cast<std::uint64_t>(number_from("SIMULATED_SEED", 1));
  result.peer_access = number_from("SIMULATED_PEER_ACCESS", 1) != 0;
  return result;
}

std::mutex making;
machine* current = nullptr;  // never destroyed at exit: threads of streams may still run
std::uint64_t generation = 0;

[[nodiscard]] std::uint64_t digest_of(std::byte const* bytes, std::size_t size) {
  trace sum;
  sum.add(std::string_view{reinterpret_cast<char const*>(bytes), size});
  return sum.digest();
}

}  // namespace

machine& machine::get() {
  std::lock_guard const held{making};
  if (current == nullptr) {
    current = new machine{options_of_environment()};
    ++generation;
  }
  return *current;
}

thread_state& machine::thread() {
  thread_local thread_state self;
  static_cast<void>(get());
  std::lock_guard const held{making};
  if (self.machine != generation) {
    self = {};
    self.machine = generation;
  }
  return self;
}

void reset(machine_options const& options) {
  machine* old = nullptr;
  {
    std::lock_guard const held{making};
    old = std::exchange(current, nullptr);
  }
  delete old;
  std::lock_guard const held{making};
  current = new machine{options};
  ++generation;
}

machine::machine(machine_options const& with)
    : options{with},
      time{with.virtual_time, with.seed, log},
      random{~with.seed},
      memory{with.device_bytes, with.neighbours_touch ? 0 : arena::page} {
  for (int i = 0; i < with.num_devices; ++i) {
    auto device = std::make_unique<device_state>();
    device->pool.device = i;
    device->pool.readers = std::uint64_t{1} << i;
    devices.push_back(std::move(device));
  }
  time.on_hang = [this] {
    complain("hang", "everybody waits for ever");
    if (std::getenv("SIMULATED_ABORT_ON_HANG") != nullptr) { std::abort(); }  // for a debugger
  };
}

machine::~machine() {
  time.stop();
  auto lock = time.lock();
  stopping_ = true;
  for (auto const& each : streams_) { each->wake.notify_all(); }
  if (!time.is_virtual()) {
    worker_gone_.wait(lock, [this] { return num_workers_ == 0; });
  }
}

void machine::complain(std::string rule, std::string text) {
  if (std::getenv("SIMULATED_VERBOSE") != nullptr) {
    std::fprintf(stderr, "simulated device: %s: %s\n", rule.c_str(), text.c_str());
  }
  violations.push_back({std::move(rule), std::move(text), time.time()});
}

nanoseconds machine::time_to_copy(std::size_t bytes) {
  auto const factor = 0.5 + 1.5 * random.fraction();
  return 300 + static_cast<nanoseconds>(factor * static_cast<double>(bytes) / options.bytes_per_nanosecond);
}

// ---- streams ------------------------------------------------------------------------------------------------------

stream& machine::create_stream(int device, bool is_blocking) {
  streams_.push_back(std::make_unique<stream>());
  auto& made = *streams_.back();
  made.device = device;
  made.is_blocking = is_blocking;
  made.number = num_streams_++;
  if (!time.is_virtual()) {
    ++num_workers_;
    std::thread{[this, &made] { serve(made); }}.detach();
  }
  return made;
}

stream* machine::find(cudaStream_t handle) {
  auto const value = reinterpret_cast<std::uintptr_t>(handle);
  if (value <= 2) {
    auto const number = thread().device;
    auto& device = *devices[static_cast<std::size_t>(number)];
    bool const is_legacy = value != 2;
    auto*& known = is_legacy ? device.legacy : device.per_thread;
    if (known == nullptr) {
      known = &create_stream(number, !is_legacy);
      known->is_legacy = is_legacy;
    }
    return known;
  }
  for (auto const& each : streams_) {
    if (each.get() == reinterpret_cast<stream*>(handle) && !each->destroyed) { return each.get(); }
  }
  complain("invalid stream", "a stream that was destroyed, or never made, is used");
  return nullptr;
}

void machine::destroy_stream(stream& gone) {
  gone.destroyed = true;  // what is on it goes on
  gone.wake.notify_all();
}

void machine::enqueue(stream& on, operation_maker const& make) {
  if (on.capturing != nullptr) {
    on.capturing->into->nodes.push_back(std::make_unique<graph_node>(graph_node{make}));
    return;
  }
  push(on, make(*this));
}

void machine::push(stream& on, operation_ptr what) {
  order_against_legacy(on);
  on.clock.join(observed);
  on.clock.set(on.number, ++on.entered);
  what->id = {on.number, on.entered, what->name()};
  what->enter(*this, on);
  on.queue.push_back(std::move(what));
  if (!time.is_virtual()) {
    on.wake.notify_all();
  } else if (!on.at_work) {
    plan_step(on, latency());
  }
}

void machine::order_against_legacy(stream& on) {
  if (on.is_legacy) {
    for (auto const& other : streams_) {
      if (other->is_blocking && other->device == on.device) { await_stream(on, *other); }
    }
  } else if (on.is_blocking) {
    auto* const legacy = devices[static_cast<std::size_t>(on.device)]->legacy;
    if (legacy != nullptr) { await_stream(on, *legacy); }
  }
}

void machine::await_stream(stream& on, stream& other) {
  on.clock.join(other.clock);
  if (other.is_idle()) { return; }
  auto const target = other.entered;
  on.clock.set(on.number, ++on.entered);
  on.queue.push_back(std::make_unique<function_operation>(
      "legacy order", [&other, target] { return other.finished >= target ? step::done() : step::blocked(); }));
  if (time.is_virtual() && !on.at_work) { plan_step(on, latency()); }
}

void machine::plan_step(stream& of, nanoseconds delay) {
  of.at_work = true;
  time.call_at(time.time() + delay, [this, &of] { advance(of); });
}

void machine::advance(stream& of) {
  auto& front = *of.queue.front();
  auto next = front.advance(*this, of);
  if (next.outside) { next.outside(); }
  switch (next.what) {
    case step::kind::later: return plan_step(of, next.delay);
    case step::kind::blocked: of.is_blocked = true; return;
    case step::kind::done: finish_front(of);
  }
  of.at_work = false;
  if (!of.queue.empty()) { plan_step(of, latency() / 4); }
  progress();
}

void machine::finish_front(stream& of) {
  log.add(of.number);
  of.queue.pop_front();
  ++of.finished;
}

void machine::serve(stream& of) {
  auto lock = time.lock();
  while (!stopping_) {
    if (of.queue.empty()) {
      if (of.destroyed) { break; }
      of.wake.wait(lock);
      continue;
    }
    auto next = of.queue.front()->advance(*this, of);
    if (next.what == step::kind::done) {
      finish_front(of);
      progress();
    } else if (next.what == step::kind::blocked) {
      of.is_blocked = true;
      of.wake.wait(lock, [&] { return !of.is_blocked || stopping_; });
    } else {
      lock.unlock();
      if (next.outside) { next.outside(); }
      constexpr nanoseconds worth_a_nap = 20'000;
      if (next.delay >= worth_a_nap) { time.sleep(next.delay); }
      lock.lock();
    }
  }
  --num_workers_;
  worker_gone_.notify_all();
}

void machine::progress() {
  for (auto const& each : streams_) {
    if (!each->is_blocked || !each->queue.front()->may_go_on()) { continue; }
    each->is_blocked = false;
    if (time.is_virtual()) {
      plan_step(*each, latency() / 8);
    } else {
      each->wake.notify_all();
    }
  }
  time.changed();
}

bool machine::wait(scheduler::lock_type& lock, std::string_view call, std::function<bool()> const& holds) {
  if (holds()) { return true; }
  auto const begin = time.time();
  bool const result = time.wait(lock, holds);
  auto& record = calls.try_emplace(std::string{call}).first->second;
  record.waited = true;
  record.longest_wait = std::max(record.longest_wait, time.time() - begin);
  return result;
}

bool machine::wait_for_stream(scheduler::lock_type& lock, stream& what, std::string_view call) {
  auto const target = what.entered;
  auto const clock = what.clock;
  bool const result = wait(lock, call, [&] { return what.finished >= target; });
  if (result) { observed.join(clock); }
  return result;
}

bool machine::wait_for_device(scheduler::lock_type& lock, int device, std::string_view call) {
  std::vector<std::pair<stream*, std::uint64_t>> all;
  std::vector<vector_clock> clocks;
  for (auto const& each : streams_) {
    if (each->device != device) { continue; }
    all.emplace_back(each.get(), each->entered);
    clocks.push_back(each->clock);
  }
  bool const result = wait(lock, call, [&] {
    return std::all_of(all.begin(), all.end(), [](auto const& each) { return each.first->finished >= each.second; });
  });
  if (!result) { return false; }
  for (auto const& clock : clocks) { observed.join(clock); }
  return true;
}

// ---- captures -----------------------------------------------------------------------------------------------------

bool machine::may_be_unsafe(std::string_view call) {
  auto const mode = thread().mode;
  if (mode == cudaStreamCaptureModeRelaxed) { return true; }
  bool allowed = true;
  auto const self = std::this_thread::get_id();
  for (auto const& each : captures) {
    bool const is_own = each->thread == self && each->mode != cudaStreamCaptureModeRelaxed;
    bool const is_global =
        each->thread != self && each->mode == cudaStreamCaptureModeGlobal && mode == cudaStreamCaptureModeGlobal;
    if (!is_own && !is_global) { continue; }
    allowed = false;
    if (!std::exchange(each->broken, true)) { complain("capture lost", std::string{call} + " broke a capture"); }
  }
  return allowed;
}

// ---- memory -------------------------------------------------------------------------------------------------------

allocation_ptr machine::allocate(std::size_t bytes, memory_kind kind, int device) {
  auto made = std::make_shared<allocation>();
  made->memory = std::make_shared<block>(memory.physical, bytes, device);
  if (!made->memory->is_there()) { return nullptr; }
  made->base = memory.physical.at(made->memory->offset());
  made->size = std::max<std::size_t>(bytes, 1);
  made->kind = kind;
  made->device = device;
  memory.add(made);
  return made;
}

bool machine::can_access(allocation const& what, int device, bool writes) const {
  auto const bit = std::uint64_t{1} << device;
  switch (what.kind) {
    case memory_kind::pinned:
    case memory_kind::registered: return true;
    case memory_kind::pool: return (what.pool->readers & bit) != 0;
    case memory_kind::mapped: return ((writes ? what.writers : what.readers) & bit) != 0;
    case memory_kind::device:
    case memory_kind::imported: break;
  }
  auto const& own = *devices[static_cast<std::size_t>(device)];
  return what.device == device || (own.peers >> what.device & 1) != 0;
}

void machine::check_order(located const& where, access_kind kind, operation_id const& by, vector_clock const& clock,
                          std::shared_ptr<bool const> is_void) {
  if (where.where == nullptr || where.where->memory == nullptr) { return; }
  auto const begin = where.where->offset + where.offset;
  auto const* const earlier =
      where.where->memory->log.add({begin, begin + where.size, kind, by, std::move(is_void)}, clock, observed);
  if (earlier == nullptr) { return; }
  auto const text = [](access_kind done, operation_id const& id) {
    auto const* const what = done == access_kind::reads    ? "read by "
                             : done == access_kind::writes ? "write by "
                                                           : "addition by ";
    return std::string{what} + std::string{id.name} + " " + std::to_string(id.number) + " of stream " +
           std::to_string(id.stream);
  };
  complain("order", "unordered: " + text(kind, by) + " against an earlier " + text(earlier->kind, earlier->by) +
                        ", bytes [" + std::to_string(std::max(begin, earlier->begin)) + ", " +
                        std::to_string(std::min(begin + where.size, earlier->end)) + ") of a block of " +
                        std::to_string(where.where->memory->size()));
}

void machine::check_unused(allocation const& what, std::string_view call) {
  if (what.memory == nullptr) { return; }
  operation_id const by{0, observed.at(0) + 1, "the host"};
  observed.set(0, by.number);
  auto const* const earlier =
      what.memory->log.add({what.offset, what.offset + what.size, access_kind::writes, by, {}}, observed, observed);
  if (earlier == nullptr) { return; }
  complain("free under way", std::string{call} + " of memory that " + std::string{earlier->by.name} + " " +
                                 std::to_string(earlier->by.number) + " of stream " +
                                 std::to_string(earlier->by.stream) + " may still use");
}

// ---- operations on memory -----------------------------------------------------------------------------------------

void touching_operation::touch(machine& of, stream& on, std::byte const* at, std::size_t bytes, access_kind kind,
                               std::shared_ptr<bool const> const& is_void) {
  bool const writes = kind != access_kind::reads;
  std::vector<located> parts;
  auto const found = of.memory.resolve(at, bytes, parts);
  if (found == lookup::gone || found == lookup::crosses) {
    is_illegal_ = true;
    of.complain("use after free", std::string{name()} + " on memory that is not there");
    return;
  }
  for (auto& part : parts) {
    if (part.where == nullptr) {
      is_illegal_ = is_illegal_ || is_kernel;
      continue;
    }
    is_illegal_ = is_illegal_ || !(goes_anywhere || of.can_access(*part.where, on.device, writes));
    if (writes && part.where->is_host() && part.where->memory != nullptr) { part.where->memory->device_writes = true; }
    of.check_order(part, kind, id, on.clock, is_void);
    where_.emplace_back(std::move(part), writes);
  }
}

void memory_operation::enter(machine& of, stream& on) {
  for (auto const& each : touches_) { touch(of, on, each.at, each.bytes, each.kind); }
  for (auto const& each : copies_) {
    touch(of, on, each.from, each.bytes, access_kind::reads);
    auto const source = last_touched();
    bool const is_source = source != nullptr && each.from >= source->base && each.from < source->base + source->size;
    if (is_source && source->kind == memory_kind::pinned && !source->memory->device_writes) {
      host_digests_.emplace_back(each, digest_of(each.from, each.bytes));
    }
    touch(of, on, each.to, each.bytes, access_kind::writes);
  }
}

void memory_operation::check_host_bytes(machine& of) const {
  for (auto const& [item, digest] : host_digests_) {
    if (digest_of(item.from, item.bytes) == digest) { continue; }
    of.complain("host memory changed", "pinned memory was written while " + std::string{name()} + " was to read it");
  }
}

bool touching_operation::may_touch(machine& of, stream& on) const {
  if (of.devices[static_cast<std::size_t>(on.device)]->poisoned != cudaSuccess) { return false; }
  if (is_illegal_) {
    of.complain("illegal address", std::string{name()} + " on memory that its device may not reach");
    of.poison(on.device, cudaErrorIllegalAddress);
    return false;
  }
  for (auto const& [part, writes] : where_) {
    if (part.where->live) { continue; }
    of.complain("use after free",
                std::string{name()} + (writes ? " writes" : " reads") + " memory that was given back meanwhile");
    auto const kind = part.where->kind;
    if (kind == memory_kind::mapped || kind == memory_kind::imported) { of.poison(on.device, cudaErrorIllegalAddress); }
    return false;
  }
  return true;
}

void memory_operation::copy_portion(std::size_t number) const {
  for (auto const& each : copies_) {
    auto const begin = each.bytes * number / num_portions_;
    auto const end = each.bytes * (number + 1) / num_portions_;
    std::memmove(each.to + begin, each.from + begin, end - begin);
  }
}

step memory_operation::advance(machine& of, stream& on) {
  if (!may_touch(of, on)) { return step::done(); }
  if (num_portions_ == 0) {
    std::size_t bytes = 0;
    for (auto const& each : copies_) { bytes += each.bytes; }
    num_portions_ = 2 + static_cast<std::size_t>(of.random.below(2));
    portion_time_ = of.time_to_copy(bytes) / static_cast<nanoseconds>(num_portions_);
  }
  if (next_portion_ < num_portions_) {
    auto const number = next_portion_++;
    return step::later(portion_time_, [this, number] { copy_portion(number); });
  }
  check_host_bytes(of);
  if (compute_) { return step::later(0, std::exchange(compute_, {})); }
  return step::done();
}

// ---- the tests' interface -----------------------------------------------------------------------------------------

machine_options const& options() { return machine::get().options; }

void run_ranks(int num_ranks, std::function<void(int)> const& body) { machine::get().time.run(num_ranks, body); }
void run_beside(std::function<void()> body) { machine::get().time.run_beside(std::move(body)); }
void sleep_for(nanoseconds duration) { machine::get().time.sleep(duration); }
bool wait_until(std::function<bool()> const& holds, nanoseconds deadline) {
  auto& all = machine::get();
  auto lock = all.time.lock();
  return all.time.wait(lock, holds, deadline);
}
void something_changed() {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  all.time.changed();
}
nanoseconds now() { return machine::get().time.now(); }

held_stream::held_stream(cudaStream_t handle) : released_{std::make_shared<bool>(false)} {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  if (auto* const on = all.find(handle); on != nullptr) {
    all.push(*on, std::make_unique<function_operation>(
                      "hold", [released = released_] { return *released ? step::done() : step::blocked(); }));
  }
}
void held_stream::release() {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  *released_ = true;
  all.progress();
}
void hold_until(cudaStream_t handle, nanoseconds end) {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  if (auto* const on = all.find(handle); on != nullptr) {
    all.push(*on, std::make_unique<function_operation>("hold", [&all, end] {
      auto const left = end - all.time.time();
      return left > 0 ? step::later(left) : step::done();
    }));
  }
}

void fail_next(std::string_view call, cudaError_t error, int skip) {
  machine::thread().failures.push_back({std::string{call}, static_cast<int>(error), skip});
}
void fail_next_nccl(std::string_view call, ncclResult_t error, int skip) {
  machine::thread().failures.push_back({std::string{call}, static_cast<int>(error), skip});
}
int forget_failures() { return static_cast<int>(std::exchange(machine::thread().failures, {}).size()); }

int thread_state::take_failure(std::string_view call) {
  if (suspensions > 0) { return 0; }
  for (auto failure = failures.begin(); failure != failures.end(); ++failure) {
    if (failure->call != call) { continue; }
    if (failure->skip-- > 0) { return 0; }
    auto const error = failure->error;
    failures.erase(failure);
    return error;
  }
  return 0;
}
failures_suspended::failures_suspended() { ++machine::thread().suspensions; }
failures_suspended::~failures_suspended() { --machine::thread().suspensions; }
struct only_failure::others {
  std::vector<planned_failure> failures;
  int suspensions = 0;
};
only_failure::only_failure(std::string_view call, cudaError_t error, int skip)
    : others_{std::make_unique<others>(std::exchange(machine::thread().failures, {}),
                                       std::exchange(machine::thread().suspensions, 0))} {
  fail_next(call, error, skip);
}
only_failure::~only_failure() {
  machine::thread().failures = std::move(others_->failures);
  machine::thread().suspensions = others_->suspensions;
}
int num_planned_failures() { return static_cast<int>(machine::thread().failures.size()); }

void declare_dead(void const* address, std::size_t bytes) {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  all.dead.emplace_back(static_cast<std::byte const*>(address), bytes);
}

std::vector<violation> violations() {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  return all.violations;
}
std::vector<violation> take_violations() {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  return std::exchange(all.violations, {});
}
std::string to_text(std::vector<violation> const& list) {
  std::string text;
  for (auto const& each : list) { text += each.rule + " at " + std::to_string(each.time) + " ns: " + each.text + "\n"; }
  return text;
}

std::int64_t num_calls(std::string_view call) {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  auto const found = all.calls.find(call);
  return found == all.calls.end() ? 0 : found->second.count;
}
nanoseconds longest_wait(std::string_view call) {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  auto const found = all.calls.find(call);
  return found == all.calls.end() ? 0 : found->second.longest_wait;
}
std::vector<std::string> calls_that_waited() {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  std::vector<std::string> names;
  for (auto const& [name, record] : all.calls) {
    if (record.waited) { names.push_back(name); }
  }
  return names;
}
void forget_waits() {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  for (auto& [name, record] : all.calls) {
    record.waited = false;
    record.longest_wait = 0;
  }
}
std::uint64_t trace_digest() {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  return all.log.digest();
}

}  // namespace ballast_test::simulated

extern "C" std::int64_t ballast_simulated_now() noexcept;
extern "C" void ballast_simulated_sleep(std::int64_t duration) noexcept;
std::int64_t ballast_simulated_now() noexcept { return ballast_test::simulated::now(); }
void ballast_simulated_sleep(std::int64_t duration) noexcept { ballast_test::simulated::sleep_for(duration); }
