// Memory may be short. A program that gets none ends, and says so by what it returns: no exception
// leaves it, and none a parallel region within it.

#pragma once

#include <cstdint>
#include <new>

enum { DONE = 0, NO_MEMORY = -1 };

template <typename F> static int32_t told(const F &body) {
    try {
        body();
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
    return DONE;
}

// Of a program that was called by address.
static inline void passed(int64_t said) {
    if (said < 0) throw std::bad_alloc();
}
