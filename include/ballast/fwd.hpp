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

// The parts of a rebalancer, and the rebalancer itself: an engine's header may hold one by pointer.
class host_store;
class observer;
class window_recorder;
struct changed_layers;
struct in_layer_order;
struct rebalancer_options;
enum class rebalancer_state;
template <class Filter = changed_layers, class Order = in_layer_order>
struct layers_per_chunk;
template <class Recorder, class Policy, class Schedule>
struct rebalancing;
template <class Recorder, class Policy, class Schedule, class Transport, class Store = host_store,
          class Control = Transport>
class rebalancer;

BALLAST_END_NAMESPACE

#endif
