// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_RANK_LINKS_HPP
#define BALLAST_EXAMPLES_ENGINE_RANK_LINKS_HPP

#include "exchange.hpp"
#include "model.hpp"
#include "model_runner.hpp"
#include "settings.hpp"

#include <functional>
#include <memory>

namespace engine {

/// What connects one rank to the others.
class rank_links {
public:
  rank_links() = default;
  rank_links(rank_links const&) = delete;
  rank_links& operator=(rank_links const&) = delete;
  virtual ~rank_links() = default;

  [[nodiscard]] virtual token_exchange& exchange() = 0;
  /// The model in one mode, with a balancer over links of its own.
  [[nodiscard]] virtual std::unique_ptr<model_runner> make_runner(runner_parts const& parts) = 0;
};

using rank_function = std::function<void(rank_links&)>;

/// Run a function on every rank, each a thread of this process. @throws what it throws
void run_as_threads(settings const& how, model const& of, rank_function const& body);
/// Run a function on every rank: rank 0 is this process, the others are its children.
/// @throws what it throws on rank 0; std::system_error naming a child that failed
void run_as_processes(settings const& how, model const& of, rank_function const& body);

}  // namespace engine

#endif
