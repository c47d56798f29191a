// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A small NCCL: communicators, groups of sends and receives, aborts, splits.
#include "machine.hpp"

#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

using namespace ballast_test::simulated;
using lock_type = scheduler::lock_type;

namespace ballast_test::simulated {

/// One end of a message whose kernel runs.
struct message_end {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  vector_clock clock;
  bool finished = false;
  bool given_up = false;
  std::size_t moved = 0;
};
using message_ptr = std::shared_ptr<message_end>;

struct mail {
  std::deque<message_ptr> sends;
  std::deque<message_ptr> receives;
};

/// Calls of a group that wait for connections to their peers.
struct waiting_group {
  communicator* by = nullptr;
  std::vector<nccl_call> calls;
  bool launched = false;
  bool planned = false;
};

/// A rank's part in a split that not all have called.
struct split_call {
  communicator* by = nullptr;
  int color = 0;
  int key = 0;
  ncclComm_t* out = nullptr;
  int blocking = 1;
  bool shares = false;
  thread_blocks blocks = {};
};

/// What the ranks of a communicator share.
struct world {
  std::vector<communicator*> members;
  int arrived = 0;
  std::map<std::pair<int, int>, mail> mails;  // from, to
  std::set<std::pair<int, int>> wanted;       // who has asked for a connection to whom
  std::vector<std::shared_ptr<waiting_group>> waiting;
  std::vector<split_call> splits;
};

struct communicator {
  std::shared_ptr<world> all;
  int rank = 0;
  int device = 0;
  bool blocking = true;
  bool shares = false;  ///< its flag to abort by and the order of its kernels, with what is split off it
  bool gone = false;
  thread_blocks blocks = {};
  ncclResult_t state = ncclSuccess;
  std::shared_ptr<bool> aborted = std::make_shared<bool>(false);
  /// Kernels of those that share resources run one after the other, as they were launched.
  std::shared_ptr<std::deque<operation const*>> kernels = std::make_shared<std::deque<operation const*>>();
  int under_way = 0;
};

}  // namespace ballast_test::simulated

namespace {

struct nccl_state {
  std::map<std::uint64_t, std::shared_ptr<world>> worlds;
  std::vector<std::unique_ptr<communicator>> communicators;
};
[[nodiscard]] nccl_state& state_of(machine& all) {
  if (all.nccl == nullptr) { all.nccl = std::make_shared<nccl_state>(); }
  return *static_cast<nccl_state*>(all.nccl.get());
}

template <class Body>
ncclResult_t nccl_call_frame(std::string_view name, Body body) {
  auto& self = machine::thread();
  auto result = ncclSuccess;
  static_cast<void>(runtime_call(name, always_ok, [&](machine& all, thread_state&, lock_type& lock) {
    result = static_cast<ncclResult_t>(self.take_failure(name));
    if (result != ncclSuccess) {
      if (name == "ncclGroupEnd") {  // ends the group all the same
        self.nccl_depth = 0;
        self.nccl_calls.clear();
      }
      return cudaSuccess;
    }
    result = body(all, self, lock);
    return cudaSuccess;
  }));
  return result;
}

[[nodiscard]] communicator* to_communicator(machine& all, ncclComm_t handle) {
  for (auto const& each : state_of(all).communicators) {
    if (each.get() == reinterpret_cast<communicator*>(handle)) { return each->gone ? nullptr : each.get(); }
  }
  return nullptr;
}
[[nodiscard]] ncclComm_t to_handle(communicator& which) { return reinterpret_cast<ncclComm_t>(&which); }

[[nodiscard]] communicator& add_communicator(machine& all, std::shared_ptr<world> of, int rank, bool blocking) {
  auto& list = state_of(all).communicators;
  list.push_back(std::make_unique<communicator>());
  auto& made = *list.back();
  made.all = std::move(of);
  made.rank = rank;
  made.device = machine::thread().device;
  made.blocking = blocking;
  made.state = ncclInProgress;
  return made;
}

/// Wait for a blocking communicator, or say that it goes on without the caller.
[[nodiscard]] ncclResult_t settle(machine& all, lock_type& lock, communicator& which, std::string_view call) {
  if (!which.blocking) { return which.state == ncclSuccess ? ncclSuccess : which.state; }
  if (!all.wait(lock, call, [&] { return which.state != ncclInProgress || *which.aborted; })) {
    return ncclInternalError;
  }
  return which.state == ncclInProgress ? ncclInternalError : which.state;
}

// ---- messages -----------------------------------------------------------------------------------------------------

void move_portion(machine& all, message_ptr const& send, message_ptr const& receive, std::size_t portion);

void start_messages(machine& all, mail& between) {
  while (!between.sends.empty() && !between.receives.empty()) {
    auto const send = between.sends.front();
    auto const receive = between.receives.front();
    between.sends.pop_front();
    between.receives.pop_front();
    if (send->bytes != receive->bytes) {
      all.complain("message sizes", "a rank sends " + std::to_string(send->bytes) + " bytes where its peer takes " +
                                        std::to_string(receive->bytes));
      continue;  // both wait for ever
    }
    all.time.call_at(all.time.time() + all.latency(), [&all, send, receive] { move_portion(all, send, receive, 0); });
  }
}

constexpr std::size_t num_portions = 3;

void move_portion(machine& all, message_ptr const& send, message_ptr const& receive, std::size_t portion) {
  if (send->given_up || receive->given_up) { return; }
  auto const begin = send->bytes * portion / num_portions;
  auto const end = send->bytes * (portion + 1) / num_portions;
  std::memmove(receive->data + begin, send->data + begin, end - begin);
  if (portion + 1 < num_portions) {
    all.time.call_at(all.time.time() + all.time_to_copy(end - begin),
                     [=, &all] { move_portion(all, send, receive, portion + 1); });
    return;
  }
  send->finished = receive->finished = true;
  send->clock.join(receive->clock);
  receive->clock = send->clock;
  all.progress();
}

/// The kernel of a group: ends when all of its messages have, or some time after an abort.
class message_operation final : public touching_operation {
public:
  message_operation(communicator& by, std::vector<nccl_call> calls)
      : touching_operation{"nccl"}, by_{&by}, aborted_{by.aborted}, kernels_{by.kernels}, calls_{std::move(calls)} {
    is_kernel = true;
    ++by_->under_way;
    kernels_->push_back(this);
  }
  ~message_operation() override {
    --by_->under_way;
    leave_order();
  }

  void enter(machine& of, stream& on) override {
    // What a kernel reads that is told to end goes nowhere.
    for (auto const& each : calls_) {
      touch(of, on, each.data, each.bytes, each.sends ? access_kind::reads : access_kind::writes,
            each.sends ? aborted_ : nullptr);
    }
  }
  step advance(machine& of, stream& on) override {
    if (!may_touch(of, on)) { return give_up(of); }
    if (*aborted_) {
      constexpr nanoseconds longest_end = 400'000;
      if (!std::exchange(ends_, true)) { return step::later(of.random.below(longest_end)); }
      return give_up(of);
    }
    if (kernels_->front() != this) { return step::blocked(); }
    if (mine_.empty() && !calls_.empty()) { post(of, on); }
    bool const done = std::all_of(mine_.begin(), mine_.end(), [](auto const& each) { return each->finished; });
    if (!done) { return step::blocked(); }
    for (auto const& each : mine_) { on.clock.join(each->clock); }
    leave_order();
    of.progress();
    return step::done();
  }

private:
  void post(machine& of, stream const& on) {
    auto& all = *by_->all;
    for (auto const& each : calls_) {
      auto end = std::make_shared<message_end>();
      end->data = each.data;
      end->bytes = each.bytes;
      end->clock = on.clock;
      mine_.push_back(end);
      if (each.sends) {
        all.mails[{by_->rank, each.peer}].sends.push_back(end);
      } else {
        all.mails[{each.peer, by_->rank}].receives.push_back(end);
      }
    }
    for (auto const& each : calls_) {
      auto const pair = each.sends ? std::pair{by_->rank, each.peer} : std::pair{each.peer, by_->rank};
      start_messages(of, all.mails[pair]);
    }
  }
  void leave_order() { std::erase(*kernels_, this); }
  step give_up(machine& of) {
    leave_order();
    of.progress();
    for (auto const& each : mine_) { each->given_up = true; }
    for (auto& [pair, between] : by_->all->mails) {
      auto const is_given_up = [](message_ptr const& each) { return each->given_up; };
      std::erase_if(between.sends, is_given_up);
      std::erase_if(between.receives, is_given_up);
    }
    return step::done();
  }

  communicator* by_;
  std::shared_ptr<bool> aborted_;
  std::shared_ptr<std::deque<operation const*>> kernels_;
  std::vector<nccl_call> calls_;
  std::vector<message_ptr> mine_;
  bool ends_ = false;
};

// ---- groups -------------------------------------------------------------------------------------------------------

void launch(machine& all, waiting_group& group) {
  group.launched = true;
  auto& by = *group.by;
  if (*by.aborted || by.gone) { return; }
  std::vector<stream*> streams;
  for (auto const& call : group.calls) {
    if (std::find(streams.begin(), streams.end(), call.on) == streams.end()) { streams.push_back(call.on); }
  }
  for (auto* const on : streams) {
    std::vector<nccl_call> calls;
    std::copy_if(group.calls.begin(), group.calls.end(), std::back_inserter(calls),
                 [&](nccl_call const& call) { return call.on == on; });
    all.push(*on, std::make_unique<message_operation>(by, std::move(calls)));
  }
  if (by.state == ncclInProgress) { by.state = ncclSuccess; }
  all.progress();
}

/// Launch what has its connections: the first message between two ranks needs both.
void launch_connected(machine& all, std::shared_ptr<world> const& of) {
  for (auto const& group : of->waiting) {
    auto const me = group->by->rank;
    bool const connected = std::all_of(group->calls.begin(), group->calls.end(), [&](nccl_call const& call) {
      return call.peer == me || of->wanted.contains({call.peer, me});
    });
    if (!connected || group->planned) { continue; }
    group->planned = true;
    constexpr nanoseconds longest_launch = 60'000;
    all.time.call_at(all.time.time() + all.random.below(longest_launch) + 500, [&all, group] { launch(all, *group); });
  }
  std::erase_if(of->waiting, [](auto const& group) { return group->planned; });
}

[[nodiscard]] ncclResult_t check_usable(machine& all, communicator const* which) {
  if (which == nullptr) { return ncclInvalidArgument; }
  if (*which->aborted) { return ncclInvalidUsage; }
  if (which->state == ncclInProgress) {
    all.complain("communicator in progress", "a communicator is used before its last call has taken effect");
    return ncclInvalidArgument;
  }
  return which->state;
}

[[nodiscard]] ncclResult_t end_group(machine& all, thread_state& self, lock_type& lock) {
  if (self.nccl_depth == 0) { return ncclInvalidUsage; }
  if (--self.nccl_depth > 0) { return ncclSuccess; }
  auto calls = std::exchange(self.nccl_calls, {});
  auto result = ncclSuccess;
  while (!calls.empty()) {
    auto group = std::make_shared<waiting_group>();
    group->by = calls.front().by;
    auto const is_of_it = [&](nccl_call const& call) { return call.by == group->by; };
    std::copy_if(calls.begin(), calls.end(), std::back_inserter(group->calls), is_of_it);
    std::erase_if(calls, is_of_it);
    auto const usable = check_usable(all, group->by);
    if (usable != ncclSuccess) {
      result = usable;
      continue;
    }
    auto& by = *group->by;
    by.state = ncclInProgress;
    for (auto const& call : group->calls) { by.all->wanted.insert({by.rank, call.peer}); }
    by.all->waiting.push_back(group);
    launch_connected(all, by.all);
    if (auto const settled = settle(all, lock, by, "ncclGroupEnd"); result == ncclSuccess) { result = settled; }
  }
  return result;
}

[[nodiscard]] ncclResult_t add_call(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                                    cudaStream_t where, bool sends, std::string_view name) {
  return nccl_call_frame(name, [&](machine& all, thread_state& self, lock_type& lock) {
    auto* const by = to_communicator(all, handle);
    if (auto const usable = check_usable(all, by); usable != ncclSuccess) { return usable; }
    auto* const on = all.find(where);
    std::size_t const unit = type == ncclUint8 || type == ncclInt8                            ? 1
                             : type == ncclFloat16 || type == ncclBfloat16                    ? 2
                             : type == ncclInt64 || type == ncclUint64 || type == ncclFloat64 ? 8
                                                                                              : 4;
    if (on == nullptr || peer < 0 || peer >= static_cast<int>(by->all->members.size())) { return ncclInvalidArgument; }
    if (on->device != by->device) {
      all.complain("stream of another device", "a communicator of device " + std::to_string(by->device) +
                                                   " with a stream of device " + std::to_string(on->device));
      return ncclInvalidArgument;
    }
    self.nccl_calls.push_back({by, sends, static_cast<std::byte*>(data), count * unit, peer, on});
    if (self.nccl_depth > 0) { return ncclSuccess; }
    self.nccl_depth = 1;
    return end_group(all, self, lock);
  });
}

// ---- splits -------------------------------------------------------------------------------------------------------

/// Tell a rank its part of a split, as late as NCCL does.
void hand_out(machine& all, split_call const& call, communicator* made) {
  if (*call.by->aborted) { return; }
  auto const* const at = reinterpret_cast<std::byte const*>(call.out);
  bool const is_dead = std::any_of(all.dead.begin(), all.dead.end(), [&](auto const& range) {
    return at >= range.first && at < range.first + range.second;
  });
  if (is_dead) {
    all.complain("write to dead memory", "NCCL writes a handle to a variable that is gone");
  } else {
    __atomic_store_n(call.out, made == nullptr ? nullptr : to_handle(*made), __ATOMIC_RELEASE);
  }
  if (made != nullptr) { made->state = ncclSuccess; }
  if (call.by->state == ncclInProgress) { call.by->state = ncclSuccess; }
  all.progress();
}

void finish_split(machine& all, std::shared_ptr<world> const& parent) {
  auto calls = std::exchange(parent->splits, {});
  std::sort(calls.begin(), calls.end(), [](split_call const& a, split_call const& b) {
    return std::tie(a.color, a.key, a.by->rank) < std::tie(b.color, b.key, b.by->rank);
  });
  std::map<int, std::shared_ptr<world>> worlds;
  for (auto const& call : calls) {
    communicator* made = nullptr;
    if (call.color != NCCL_SPLIT_NOCOLOR) {
      auto& part = worlds[call.color];
      if (part == nullptr) { part = std::make_shared<world>(); }
      made = &add_communicator(all, part, part->arrived++, call.blocking != 0);
      part->members.push_back(made);
      made->device = call.by->device;
      made->blocks = call.blocks;
      if (call.shares) {
        made->aborted = call.by->aborted;
        made->kernels = call.by->kernels;
      }
    }
    constexpr nanoseconds longest_split = 1'500'000;
    all.time.call_at(all.time.time() + all.random.below(longest_split) + 1'000,
                     [&all, call, made] { hand_out(all, call, made); });
  }
}

[[nodiscard]] bool is_set(int value) { return value != NCCL_CONFIG_UNDEF_INT; }
[[nodiscard]] thread_blocks blocks_in(ncclConfig_t const* config) {
  if (config == nullptr) { return {}; }
  return {is_set(config->minCTAs) ? config->minCTAs : 0, is_set(config->maxCTAs) ? config->maxCTAs : 0};
}
/// What NCCL refuses.
[[nodiscard]] bool makes_sense(ncclConfig_t const* config) {
  if (config == nullptr) { return true; }
  bool const has_least = is_set(config->minCTAs);
  bool const has_most = is_set(config->maxCTAs);
  if (has_least && has_most && config->minCTAs > config->maxCTAs) { return false; }
  return (!has_least || config->minCTAs > 0) && (!has_most || config->maxCTAs > 0);
}

void destroy(communicator& which) { which.gone = true; }

/// Write what somebody asks about a communicator.
template <class Out, class Value>
ncclResult_t tell(std::string_view name, ncclComm_t handle, Out* out, Value value) {
  return nccl_call_frame(name, [&](machine& all, thread_state&, lock_type&) {
    auto const* const which = to_communicator(all, handle);
    if (which == nullptr) { return ncclInvalidArgument; }
    *out = static_cast<Out>(value(*which));
    return ncclSuccess;
  });
}

}  // namespace

namespace ballast_test::simulated {
std::vector<ncclComm_t> living_communicators(int rank) {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  std::vector<ncclComm_t> result;
  for (auto const& each : state_of(all).communicators) {
    if (each->rank == rank && !each->gone) { result.push_back(to_handle(*each)); }
  }
  return result;
}
thread_blocks blocks_of(ncclComm_t handle) {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  auto const* const which = to_communicator(all, handle);
  return which == nullptr ? thread_blocks{} : which->blocks;
}
void raise_async_error(ncclComm_t handle, ncclResult_t error) {
  auto& all = machine::get();
  auto const lock = all.time.lock();
  if (auto* const which = to_communicator(all, handle); which != nullptr) { which->state = error; }
  all.progress();
}
}  // namespace ballast_test::simulated

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
char const* ncclGetErrorString(ncclResult_t error) {
  switch (error) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInternalError: return "internal error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
    default: return "unknown result code";
  }
}
char const* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* out) {
  return nccl_call_frame("ncclGetUniqueId", [&](machine& all, thread_state&, lock_type&) {
    *out = {};
    auto const id = all.next_id++;
    std::memcpy(out, &id, sizeof id);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  return nccl_call_frame("ncclCommInitRankConfig", [&](machine& all, thread_state&, lock_type& lock) {
    std::uint64_t number = 0;
    std::memcpy(&number, &id, sizeof number);
    if (size < 1 || rank < 0 || rank >= size || number == 0 || !makes_sense(config)) { return ncclInvalidArgument; }
    bool const blocking = config == nullptr || !is_set(config->blocking) || config->blocking != 0;
    auto& of = state_of(all).worlds[number];
    if (of == nullptr) {
      of = std::make_shared<world>();
      of->members.resize(static_cast<std::size_t>(size));
    }
    auto& made = add_communicator(all, of, rank, blocking);
    of->members[static_cast<std::size_t>(rank)] = &made;
    made.shares = config != nullptr && is_set(config->splitShare) && config->splitShare != 0;
    made.blocks = blocks_in(config);
    *out = to_handle(made);
    if (++of->arrived == size) {
      constexpr nanoseconds longest_init = 2'000'000;
      all.time.call_at(all.time.time() + all.random.below(longest_init) + 1'000, [&all, of] {
        for (auto* const each : of->members) {
          if (each->state == ncclInProgress) { each->state = ncclSuccess; }
        }
        all.progress();
      });
    }
    return settle(all, lock, made, "ncclCommInitRankConfig");
  });
}
ncclResult_t ncclCommInitRank(ncclComm_t* out, int size, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(out, size, id, rank, nullptr);
}

ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t* out, ncclConfig_t* config) {
  return nccl_call_frame("ncclCommSplit", [&](machine& all, thread_state&, lock_type& lock) {
    auto* const by = to_communicator(all, parent);
    if (auto const usable = check_usable(all, by); usable != ncclSuccess) { return usable; }
    // The parent's word counts, not the child's.
    split_call call{by, color, key, out, by->blocking ? 1 : 0, by->shares};
    if (!makes_sense(config)) { return ncclInvalidArgument; }
    if (config != nullptr && is_set(config->blocking)) { call.blocking = config->blocking; }
    call.blocks = config == nullptr ? by->blocks : blocks_in(config);
    *out = nullptr;
    by->state = ncclInProgress;
    by->all->splits.push_back(call);
    if (by->all->splits.size() == by->all->members.size()) { finish_split(all, by->all); }
    return settle(all, lock, *by, "ncclCommSplit");
  });
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  return nccl_call_frame("ncclCommAbort", [&](machine& all, thread_state&, lock_type&) {
    auto* const which = to_communicator(all, handle);
    if (which == nullptr) { return ncclInvalidArgument; }
    *which->aborted = true;
    destroy(*which);
    for (auto const& each : state_of(all).communicators) {
      // Those that share the flag are lost too.
      if (each->aborted == which->aborted) { each->state = ncclInternalError; }
    }
    all.progress();
    return ncclSuccess;
  });
}
ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  return nccl_call_frame("ncclCommFinalize", [&](machine& all, thread_state&, lock_type& lock) {
    auto* const which = to_communicator(all, handle);
    if (which == nullptr) { return ncclInvalidArgument; }
    if (which->blocking && !all.wait(lock, "ncclCommFinalize", [&] { return which->under_way == 0; })) {
      return ncclInternalError;
    }
    return ncclSuccess;
  });
}
ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  return nccl_call_frame("ncclCommDestroy", [&](machine& all, thread_state&, lock_type& lock) {
    auto* const which = to_communicator(all, handle);
    if (which == nullptr) { return ncclInvalidArgument; }
    bool const ended = all.wait(lock, "ncclCommDestroy", [&] { return which->under_way == 0; });
    destroy(*which);
    return ended ? ncclSuccess : ncclInternalError;
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* out) {
  return tell("ncclCommGetAsyncError", handle, out, [](communicator const& which) { return which.state; });
}
ncclResult_t ncclCommCount(ncclComm_t handle, int* out) {
  return tell("ncclCommCount", handle, out, [](communicator const& which) { return which.all->members.size(); });
}
ncclResult_t ncclCommUserRank(ncclComm_t handle, int* out) {
  return tell("ncclCommUserRank", handle, out, [](communicator const& which) { return which.rank; });
}
ncclResult_t ncclCommCuDevice(ncclComm_t handle, int* out) {
  return tell("ncclCommCuDevice", handle, out, [](communicator const& which) { return which.device; });
}
ncclResult_t ncclCommRegister(ncclComm_t /*handle*/, void* data, std::size_t, void** out) {
  *out = data;
  return ncclSuccess;
}
ncclResult_t ncclCommDeregister(ncclComm_t /*handle*/, void*) { return ncclSuccess; }

ncclResult_t ncclGroupStart(void) {
  return nccl_call_frame("ncclGroupStart", [](machine&, thread_state& self, lock_type&) {
    ++self.nccl_depth;
    return ncclSuccess;
  });
}
ncclResult_t ncclGroupEnd(void) {
  return nccl_call_frame("ncclGroupEnd",
                         [](machine& all, thread_state& self, lock_type& lock) { return end_group(all, self, lock); });
}
ncclResult_t ncclSend(void const* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                      cudaStream_t where) {
  return add_call(const_cast<void*>(data), count, type, peer, handle, where, true, "ncclSend");
}
ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                      cudaStream_t where) {
  return add_call(data, count, type, peer, handle, where, false, "ncclRecv");
}

}  // extern "C"
