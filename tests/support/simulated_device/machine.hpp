// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_MACHINE_HPP
#define BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_MACHINE_HPP

#include "memory.hpp"
#include "ordering.hpp"
#include "scheduler.hpp"
#include "simulated_device.hpp"

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ballast_test::simulated {

class machine;
struct stream;
struct graph;
struct communicator;

/// What comes of letting an operation go on.
struct step {
  enum class kind { done, later, blocked } what = kind::done;
  nanoseconds delay = 0;
  std::function<void()> outside;  ///< the bytes' way, which needs no lock

  [[nodiscard]] static step done() { return {}; }
  [[nodiscard]] static step later(nanoseconds delay, std::function<void()> outside = {}) {
    return {kind::later, delay, std::move(outside)};
  }
  [[nodiscard]] static step blocked() { return {kind::blocked, 0, {}}; }
};

/// Work on a stream, which goes on step by step under the machine's lock.
class operation {
public:
  explicit operation(std::string_view name) noexcept : name_{name} {}
  operation(operation const&) = delete;
  operation& operator=(operation const&) = delete;
  virtual ~operation() = default;

  [[nodiscard]] std::string_view name() const noexcept { return name_; }
  /// Its place in the order of things is known now.
  virtual void enter(machine&, stream&) {}
  virtual step advance(machine&, stream&) = 0;
  /// Whether it is worth asking a blocked one again.
  [[nodiscard]] virtual bool may_go_on() const { return true; }

  operation_id id;

private:
  std::string_view name_;
};
using operation_ptr = std::unique_ptr<operation>;
/// Makes the same operation again and again, for graphs.
using operation_maker = std::function<operation_ptr(machine&)>;

/// A stream capture, of one stream and of those that join it.
struct capture {
  stream* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  bool broken = false;
  std::uint64_t id = 0;
  std::shared_ptr<graph> into;
};

/// Where an event was recorded last.
struct record_state {
  bool reached = false;
  nanoseconds time = 0;
  vector_clock clock;
  std::shared_ptr<capture> inside;  // of a capture
};

/// What all handles of an event share, in all processes.
struct event_core {
  int device = 0;
  unsigned flags = 0;
  std::shared_ptr<record_state> last;
  std::uint64_t id = 0;
};
struct event {
  std::shared_ptr<event_core> core;
  int device = 0;  // of this handle
};

struct stream {
  int device = 0;
  bool is_legacy = false;
  bool is_blocking = false;  // orders itself against the legacy stream
  bool destroyed = false;
  std::size_t number = 0;
  std::deque<operation_ptr> queue;
  std::uint64_t entered = 0;
  std::uint64_t finished = 0;
  vector_clock clock;
  bool at_work = false;  // a step of the front is planned or under way
  bool is_blocked = false;
  std::shared_ptr<capture> capturing;
  std::condition_variable wake;  // of its thread, with the real clock

  [[nodiscard]] bool is_idle() const noexcept { return finished == entered; }
};

struct graph_node {
  operation_maker make;
};
struct graph {
  std::vector<std::unique_ptr<graph_node>> nodes;
};
struct graph_exec {
  std::map<graph_node const*, std::size_t> places;
  std::vector<operation_maker> makers;
};

struct physical_handle {
  std::shared_ptr<block> memory;
  std::uint64_t types = 0;
  int references = 1;
};

struct device_state {
  cudaError_t poisoned = cudaSuccess;
  std::uint64_t peers = 0;  // bit d: access to d is on
  stream* legacy = nullptr;
  stream* per_thread = nullptr;
  memory_pool pool;
};

/// A failure that a test has ordered.
struct planned_failure {
  std::string call;
  int error = 0;
  int skip = 0;
};

/// A call of NCCL in a group.
struct nccl_call {
  communicator* by = nullptr;
  bool sends = false;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  int peer = 0;
  stream* on = nullptr;
};

/// What the runtime knows of a host thread.
struct thread_state {
  std::uint64_t machine = 0;
  int device = 0;
  cudaError_t last = cudaSuccess;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::vector<planned_failure> failures;
  int suspensions = 0;
  /// The failure that a test has ordered for this call; 0 if there is none.
  [[nodiscard]] int take_failure(std::string_view call);
  int nccl_depth = 0;
  std::vector<nccl_call> nccl_calls;
  std::vector<std::function<ncclResult_t()>> nccl_jobs;
  struct configuration {
    dim3 blocks, threads;
    std::size_t shared;
    cudaStream_t stream;
  };
  std::vector<configuration> launches;
};

struct call_record {
  std::int64_t count = 0;
  nanoseconds longest_wait = 0;
  bool waited = false;
};

/// Everything that there is.
class machine {
public:
  explicit machine(machine_options const& with);
  machine(machine const&) = delete;
  machine& operator=(machine const&) = delete;
  ~machine();

  [[nodiscard]] static machine& get();
  [[nodiscard]] static thread_state& thread();

  machine_options const options;
  trace log;
  scheduler time;
  random_numbers random;
  memory_map memory;
  std::vector<std::unique_ptr<device_state>> devices;
  vector_clock observed;  // by the host
  std::vector<violation> violations;
  std::map<std::string, call_record, std::less<>> calls;
  std::vector<std::pair<std::byte const*, std::size_t>> dead;

  void complain(std::string rule, std::string text);

  // ---- streams ----
  [[nodiscard]] stream* find(cudaStream_t handle);
  [[nodiscard]] stream& create_stream(int device, bool is_blocking);
  void destroy_stream(stream& gone);
  [[nodiscard]] std::list<std::unique_ptr<stream>> const& streams() const noexcept { return streams_; }
  /// Put work on a stream, or into the graph that it captures.
  void enqueue(stream& on, operation_maker const& make);
  void push(stream& on, operation_ptr what);
  /// Streams that are blocked look again, and threads that wait.
  void progress();
  [[nodiscard]] bool wait_for_stream(scheduler::lock_type& lock, stream& what, std::string_view call);
  [[nodiscard]] bool wait_for_device(scheduler::lock_type& lock, int device, std::string_view call);
  [[nodiscard]] bool wait(scheduler::lock_type& lock, std::string_view call, std::function<bool()> const& holds);

  // ---- captures ----
  std::vector<std::shared_ptr<capture>> captures;
  std::uint64_t next_capture = 1;
  /// Whether this thread may make a call that is potentially unsafe; breaks the captures that forbid it.
  [[nodiscard]] bool may_be_unsafe(std::string_view call);

  // ---- memory ----
  [[nodiscard]] allocation_ptr allocate(std::size_t bytes, memory_kind kind, int device);
  [[nodiscard]] bool can_access(allocation const& what, int device, bool writes) const;
  /// Note an access of an operation down and complain about what is not ordered before it.
  void check_order(located const& where, access_kind kind, operation_id const& by, vector_clock const& clock,
                   std::shared_ptr<bool const> is_void = {});
  /// The host gives memory back: nobody may be at it.
  void check_unused(allocation const& what, std::string_view call);
  void poison(int device, cudaError_t error) { devices[static_cast<std::size_t>(device)]->poisoned = error; }

  // ---- handles ----
  std::map<std::uint64_t, std::weak_ptr<event_core>> shared_events;
  std::map<std::uint64_t, std::weak_ptr<block>> shared_blocks;
  std::map<std::uint64_t, std::unique_ptr<physical_handle>> physical;
  std::map<std::byte*, std::size_t> reservations;
  std::vector<std::unique_ptr<memory_pool>> pools;
  std::vector<std::unique_ptr<event>> events;
  std::vector<std::shared_ptr<graph>> graphs;
  std::vector<std::unique_ptr<graph_exec>> executables;
  std::uint64_t next_id = 1;
  std::shared_ptr<void> nccl;  // see nccl_api.cpp

  [[nodiscard]] nanoseconds latency() { return 200 + random.below(options.longest_latency); }
  [[nodiscard]] nanoseconds time_to_copy(std::size_t bytes);

private:
  void plan_step(stream& of, nanoseconds delay);
  void advance(stream& of);
  void serve(stream& of);
  void finish_front(stream& of);
  void order_against_legacy(stream& on);
  void await_stream(stream& on, stream& other);

  std::list<std::unique_ptr<stream>> streams_;
  std::size_t num_streams_ = 1;  // 0 is the host
  bool stopping_ = false;
  std::size_t num_workers_ = 0;  // threads of streams, which nobody joins: a machine may outlive the program
  std::condition_variable worker_gone_;
};

/// Read and write bytes of memory, in several portions.
struct copy_item {
  std::byte* to;
  std::byte const* from;
  std::size_t bytes;
};
/// Bytes that an operation touches.
struct touched {
  std::byte const* at;
  std::size_t bytes;
  access_kind kind;
};

/// Work that reads and writes memory which must be there and within reach.
class touching_operation : public operation {
public:
  using operation::operation;
  bool is_kernel = false;
  bool goes_anywhere = false;  ///< through the host, where devices cannot reach each other

protected:
  void touch(machine& of, stream& on, std::byte const* at, std::size_t bytes, access_kind kind,
             std::shared_ptr<bool const> const& is_void = {});
  /// Whether the operation can go on; if not, the context may be poisoned.
  [[nodiscard]] bool may_touch(machine& of, stream& on) const;
  [[nodiscard]] allocation_ptr last_touched() const { return where_.empty() ? nullptr : where_.back().first.where; }

private:
  std::vector<std::pair<located, bool>> where_;  // and whether it is written
  bool is_illegal_ = false;
};

/// Copies, fills and kernels: bytes are moved portion by portion, and something is computed at the end.
class memory_operation : public touching_operation {
public:
  memory_operation(std::string_view name, std::vector<copy_item> copies, std::vector<touched> touches,
                   std::function<void()> compute = {})
      : touching_operation{name},
        copies_{std::move(copies)},
        touches_{std::move(touches)},
        compute_{std::move(compute)} {}
  void enter(machine& of, stream& on) override;
  step advance(machine& of, stream& on) override;

private:
  void copy_portion(std::size_t number) const;
  void check_host_bytes(machine& of) const;

  std::vector<copy_item> copies_;
  std::vector<touched> touches_;
  std::function<void()> compute_;
  std::vector<std::pair<copy_item, std::uint64_t>> host_digests_;
  std::size_t num_portions_ = 0;
  std::size_t next_portion_ = 0;
  nanoseconds portion_time_ = 0;
};

/// Waits until an event's last record is reached.
class wait_operation final : public operation {
public:
  explicit wait_operation(std::shared_ptr<record_state> until) : operation{"wait"}, until_{std::move(until)} {}
  void enter(machine&, stream& on) override { on.clock.join(until_->clock); }
  step advance(machine&, stream&) override { return until_->reached ? step::done() : step::blocked(); }
  [[nodiscard]] bool may_go_on() const override { return until_->reached; }

private:
  std::shared_ptr<record_state> until_;
};

class record_operation final : public operation {
public:
  explicit record_operation(std::shared_ptr<record_state> state) : operation{"record"}, state_{std::move(state)} {}
  void enter(machine&, stream& on) override { state_->clock = on.clock; }
  step advance(machine& of, stream&) override {
    state_->reached = true;
    state_->time = of.time.time();
    return step::done();
  }

private:
  std::shared_ptr<record_state> state_;
};

/// Anything else: advances as a function says.
class function_operation final : public operation {
public:
  function_operation(std::string_view name, std::function<step()> advance)
      : operation{name}, advance_{std::move(advance)} {}
  step advance(machine&, stream&) override { return advance_(); }

private:
  std::function<step()> advance_;
};

/// How a call of the runtime behaves.
enum call_traits : unsigned {
  plain = 0,
  unsafe = 1,     ///< not while another thread captures
  always_ok = 2,  ///< neither fails by order nor with a poisoned context
};

/// The frame of every call of the runtime.
template <class Body>
cudaError_t runtime_call(std::string_view name, unsigned traits, Body body) {
  auto& all = machine::get();
  auto& self = machine::thread();
  if (all.time.is_virtual() && all.random.fraction() < all.options.pauses) {
    all.time.sleep(all.random.below(all.options.longest_pause) + 1);
  }
  auto lock = all.time.lock();
  ++all.calls.try_emplace(std::string{name}).first->second.count;
  all.log.add(name);
  auto result = cudaSuccess;
  if ((traits & always_ok) == 0) {
    result = static_cast<cudaError_t>(self.take_failure(name));
    auto const poisoned = all.devices[static_cast<std::size_t>(self.device)]->poisoned;
    if (result == cudaSuccess) { result = poisoned; }
    if (result == cudaSuccess && (traits & unsafe) != 0 && !all.may_be_unsafe(name)) {
      result = cudaErrorStreamCaptureUnsupported;
    }
  }
  if (result == cudaSuccess) { result = body(all, self, lock); }
  if (result != cudaSuccess) { self.last = result; }
  return result;
}

}  // namespace ballast_test::simulated

#endif
