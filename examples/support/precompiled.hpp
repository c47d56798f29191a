// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What the examples include, for BALLAST_PRECOMPILED; nothing includes this by name.
#ifndef BALLAST_EXAMPLES_SUPPORT_PRECOMPILED_HPP
#define BALLAST_EXAMPLES_SUPPORT_PRECOMPILED_HPP

#include <ballast/ballast.hpp>
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/balanced_shares.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/transport/by_link.hpp>
#include <ballast/transport/in_process.hpp>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#endif
