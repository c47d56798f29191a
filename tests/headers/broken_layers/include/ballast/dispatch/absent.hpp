// A header.
#ifndef BALLAST_DISPATCH_ABSENT_HPP
#define BALLAST_DISPATCH_ABSENT_HPP

#include <ballast/dispatch/nowhere.hpp>

#endif
