// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_FWD_HPP
#define BALLAST_FWD_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

BALLAST_BEGIN_NAMESPACE

// For headers of an engine that only name these types.
class digest;
class status;
class topology;
struct topology_shape;
template <class T>
class matrix_view;
class load_history_view;
class placement;
struct placement_shape;

// The parts of a rebalancer, and the rebalancer itself: an engine's header may hold them by pointer.
class any_policy;
class decay_recorder;
class dispatch_tables;
class host_store;
class in_process_endpoint;
class in_process_group;
class observer;
class pass_recorder;
class window_recorder;
struct balanced_shares_placement;
struct by_gain;
struct changed_layers;
struct deepseek_placement;
struct event;
struct every_layer;
struct headroom_placement;
struct in_layer_order;
struct pass_info;
struct prediction;
struct rebalancer_options;
struct token_cost;
enum class rebalancer_state;
template <class Cost = token_cost>
struct basic_balanced_placement;
using balanced_placement = basic_balanced_placement<>;
template <class Cost = token_cost>
struct basic_incremental_placement;
using incremental_placement = basic_incremental_placement<>;
template <class Filter = changed_layers, class Order = in_layer_order>
struct all_layers;
template <class Filter = changed_layers, class Order = in_layer_order>
struct bytes_per_step;
template <class Filter = changed_layers, class Order = in_layer_order>
struct layers_per_chunk;
template <class Filter = changed_layers, class Order = in_layer_order>
struct time_per_step;
template <class Recorder, class Policy, class Schedule>
struct rebalancing;
template <class Recorder, class Policy, class Schedule, class Transport, class Store = host_store,
          class Control = Transport>
class rebalancer;

BALLAST_END_NAMESPACE

#endif
