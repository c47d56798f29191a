// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Optimal shares against an independent linear-programming solver.
#include <ballast/policies/headroom.hpp>
#include <ballast/shares/replica_shares.hpp>

#include <doctest/doctest.h>
#include <glpk.h>
#include <support/random.hpp>
#include <support/trace_files.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <ostream>
#include <string>
#include <vector>

using namespace ballast;

namespace {

/// A column of a constraint row.
struct term {
  int column;
  double factor;
};

/// The split as a linear program, solved by GLPK's simplex: minimise T subject to sum of x = tokens for every expert
/// and sum of x <= T on every rank. The largest rank load in tokens.
class linear_program {
public:
  linear_program() : problem_{glp_create_prob()} {
    glp_term_out(GLP_OFF);
    glp_set_obj_dir(problem_, GLP_MIN);
  }
  linear_program(linear_program const&) = delete;
  linear_program& operator=(linear_program const&) = delete;
  ~linear_program() { glp_delete_prob(problem_); }

  double optimum(topology const& where, std::span<index_t const> map, std::span<load_t const> loads) {
    auto const busiest = column(1);
    std::vector<std::vector<term>> experts(loads.size());
    std::vector<std::vector<term>> ranks(static_cast<std::size_t>(where.num_ranks()));
    for (index_t slot = 0; slot < where.num_slots(); ++slot) {
      auto const rank = where.rank_of_slot(slot);
      if (!where.is_live(rank)) { continue; }
      auto const load = column(0);
      experts[static_cast<std::size_t>(map[static_cast<std::size_t>(slot)])].push_back({load, 1});
      ranks[static_cast<std::size_t>(rank)].push_back({load, 1});
    }
    for (std::size_t e = 0; e < loads.size(); ++e) { row(experts[e], GLP_FX, static_cast<double>(loads[e])); }
    for (auto& rank : ranks) {
      if (rank.empty()) { continue; }
      rank.push_back({busiest, -1});
      row(rank, GLP_UP, 0);
    }
    glp_smcp options;
    glp_init_smcp(&options);
    options.msg_lev = GLP_MSG_OFF;
    options.tol_bnd = 1e-9;
    options.tol_dj = 1e-9;
    options.presolve = GLP_ON;
    REQUIRE(glp_simplex(problem_, &options) == 0);
    REQUIRE(glp_get_status(problem_) == GLP_OPT);
    return glp_get_obj_val(problem_);
  }

private:
  int column(double cost) {
    auto const made = glp_add_cols(problem_, 1);
    glp_set_col_bnds(problem_, made, GLP_LO, 0, 0);
    glp_set_obj_coef(problem_, made, cost);
    return made;
  }
  void row(std::vector<term> const& terms, int type, double bound) {
    std::vector<int> columns{0};
    std::vector<double> factors{0};
    for (auto const& [column, factor] : terms) {
      columns.push_back(column);
      factors.push_back(factor);
    }
    auto const made = glp_add_rows(problem_, 1);
    glp_set_row_bnds(problem_, made, type, bound, bound);
    glp_set_mat_row(problem_, made, static_cast<int>(terms.size()), columns.data(), factors.data());
  }

  glp_prob* problem_;
};

void check_layer(topology const& where, std::span<index_t const> map, std::span<load_t const> loads,
                 share_solver& solver) {
  REQUIRE(solver.open(where, map, loads).ok());
  auto const ours = static_cast<double>(solver.solve()) / static_cast<double>(detail::load_unit);
  auto const best = linear_program{}.optimum(where, map, loads);
  CHECK(std::abs(ours - best) <= 1e-6 * std::max(best, 1.0));
  REQUIRE(solver.open(where, map, loads).ok());
  auto const fast = static_cast<double>(solver.solve(share_precision::fast)) / static_cast<double>(detail::load_unit);
  CHECK(fast <= best * 1.001 + 1e-6);
}

}  // namespace

TEST_CASE("shares of small random layers equal the linear program's") {
  ballast_test::generator random{1};
  share_solver solver;
  for (int i = 0; i < 400; ++i) {
    CAPTURE(i);
    topology where{{random.between(1, 10), 1, random.between(1, 6), 0}};
    auto const in =
        ballast_test::random_placement({1, random.between(1, where.num_slots()), where.num_slots()}, random);
    std::vector<load_t> loads(static_cast<std::size_t>(in.num_logical()));
    for (auto& load : loads) { load = random.below(4) == 0 ? 0 : load_t{1} << random.below(20); }
    if (i % 3 == 0) {
      auto const rank = random.below(where.num_ranks());
      where.set_live(rank, false);
      if (!solver.open(where, in.logical_of_slot(0), loads).ok()) { where.set_live(rank, true); }
    }
    check_layer(where, in.logical_of_slot(0), loads, solver);
  }
}

TEST_CASE("shares of every layer of every trace equal the linear program's, on the next step's loads") {
  share_solver solver;
  for (auto const& file : ballast_test::all_traces()) {
    auto const trace = ballast_test::read_trace(file);
    MESSAGE(trace.name);
    // One spare slot in eight, on as many ranks as leaves each eight slots or so.
    auto const ranks = std::max(trace.experts / 8, 2);
    topology const where{{ranks, 1, (trace.experts + trace.experts / 8) / ranks, 0}};
    auto const current = trivial_placement({trace.layers, trace.experts, where.num_slots()});
    placement made;
    REQUIRE(plan(headroom_placement{}, trace.history(0, 1), current, where, made).ok());
    auto const last_step = std::min(trace.steps, 3);
    for (index_t step = 0; step < last_step; ++step) {
      for (index_t layer = 0; layer < trace.layers; ++layer) {
        CAPTURE(trace.name);
        CAPTURE(step);
        CAPTURE(layer);
        check_layer(where, made.logical_of_slot(layer), trace.step(step).row(layer), solver);
      }
    }
  }
}

TEST_CASE("shares of later traffic of a large model equal the linear program's") {
  auto const file = ballast_test::find_trace("deepseek-r1/prefill_in1024");
  auto const later = ballast_test::find_trace("deepseek-r1/decode_in1000out1000");
  if (file.empty() || later.empty()) {
    MESSAGE("skipped: no deepseek-r1 traces here");
    return;
  }
  auto const then = ballast_test::read_trace(file);
  auto const now = ballast_test::read_trace(later);
  share_solver solver;
  for (auto const ranks : {32, 72}) {
    topology const where{{ranks, 1, 288 / ranks, 0}};
    auto const current = trivial_placement({then.layers, then.experts, 288});
    placement made;
    REQUIRE(plan(headroom_placement{}, then.history(), current, where, made).ok());
    for (index_t layer = 0; layer < then.layers; ++layer) {
      CAPTURE(ranks);
      CAPTURE(layer);
      check_layer(where, made.logical_of_slot(layer), now.step(0).row(layer), solver);
    }
  }
}
