// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What tests include, for BALLAST_PRECOMPILED; nothing includes this by name. throwing_contracts.hpp is before
// it, as it is before every test.
#ifndef BALLAST_TESTS_SUPPORT_PRECOMPILED_HPP
#define BALLAST_TESTS_SUPPORT_PRECOMPILED_HPP

#include <ballast/ballast.hpp>
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/balanced_shares.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/policies/regime.hpp>
#include <ballast/transport/by_link.hpp>
#include <ballast/transport/in_process.hpp>
#include <ballast/transport/turns.hpp>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <thread>

#endif
