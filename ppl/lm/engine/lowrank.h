// Low-rank adapters beside the weights (Hu et al. 2021, arXiv:2106.09685): what B A x adds to some rows
// of a product.
//
// A product may be several layers side by side, each with A and B of its own: all A are multiplied at
// once, each B with what its A gave. Sums are in float32, those of A x rounded. What a row gets depends
// neither on the rows beside it nor on the number of threads: every number is one sum in one order.
//
// Compiled for one kind: HALF for bfloat16 (else float32).

#pragma once

#include <algorithm>
#include <memory>

#include "vectors.h"

struct Share {  // so many of an adapter's numbers are for so many outputs, from the first on
    int64_t rank, first, count;
};

// Of one adapter and one product. down: [rank, inputs], up: [rank, outputs].
struct Thin {
    const number *down, *up;
    int64_t rank, count;  // rank 0: the adapter leaves it alone
    const Share *shares;
};

struct Group {  // rows of a pass with one adapter, in their order; `each`: of all products of the model
    int64_t count;
    const int64_t *rows;
    const Thin *each;
};

struct Beside {
    int64_t count;
    const Group *groups;
};

enum { TOGETHER = 4 };  // rows; their sums with so many of A, or vectors of B, are in registers

// Of R rows the sums with N rows of A; `rank` numbers to a row of low.
template <int R, int N>
static void lowered(const number *const *x, const number *down, int64_t inputs, int64_t rank, float *low) {
    vector sum[R][N] = {};
    int64_t at = 0;
#if HALF && defined(__AVX512BF16__)  // two products at a time
    for (; at + 2 * LANES <= inputs; at += 2 * LANES) {
        __m512bh some[N];
        for (int n = 0; n < N; n++) some[n] = (__m512bh)_mm512_loadu_si512(down + n * inputs + at);
        for (int r = 0; r < R; r++) {
            const __m512bh own = (__m512bh)_mm512_loadu_si512(x[r] + at);
            for (int n = 0; n < N; n++) sum[r][n] = (vector)_mm512_dpbf16_ps((__m512)sum[r][n], own, some[n]);
        }
    }
#endif
    over(inputs - at, [&](int64_t i, int64_t left) {
        vector some[N];
        for (int n = 0; n < N; n++) some[n] = taken(down + n * inputs + at + i, left);
        for (int r = 0; r < R; r++) {
            const vector own = taken(x[r] + at + i, left);
            for (int n = 0; n < N; n++) sum[r][n] += own * some[n];
        }
    });
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) low[r * rank + n] = wide(narrow(total(sum[r][n])));
}

// Adds to N neighbouring vectors of R rows the sums of low with B. Of the last vector only so many
// numbers are there, if not all.
template <int R, int N>
static inline __attribute__((always_inline)) void raised(const float *low, int64_t apart, int64_t rank,
                                                         const number *up, int64_t outputs, int64_t left,
                                                         number *const *out, int64_t at) {
    vector sum[R][N] = {};
    for (int64_t k = 0; k < rank; k++, up += outputs) {
        vector some[N];
        for (int n = 0; n < N; n++) some[n] = taken(up + n * LANES, n + 1 < N ? LANES : left);
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) sum[r][n] += low[r * apart + k] * some[n];
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) {
            number *to = out[r] + at + n * LANES;
            const int64_t some = n + 1 < N ? LANES : left;
            put(taken(to, some) + sum[r][n], to, some);
        }
}

#define UP_TO_FOUR(OF, count) \
    switch (count) {          \
        case 1: OF(1); break; \
        case 2: OF(2); break; \
        case 3: OF(3); break; \
        default: OF(4);       \
    }

// R rows of x and out. low: [R, rank].
template <int R>
static void add_to(const Thin &thin, int64_t inputs, int64_t outputs, const number *const *x,
                   number *const *out, float *low) {
    for (int64_t j = 0; j < thin.rank; j += TOGETHER) {
#define OF(N) lowered<R, N>(x, thin.down + j * inputs, inputs, thin.rank, low + j)
        UP_TO_FOUR(OF, thin.rank - j)
#undef OF
    }
    const number *up = thin.up;
    for (int64_t s = 0; s < thin.count; s++) {
        const Share &share = thin.shares[s];
        const int64_t end = share.first + share.count;
        for (int64_t at = share.first; at < end; at += TOGETHER * LANES) {
            const int64_t many = std::min<int64_t>(TOGETHER, (end - at + LANES - 1) / LANES);
            const int64_t left = end - at - (many - 1) * LANES;
#define OF(N)                                                                                       \
    left < LANES ? raised<R, N>(low, thin.rank, share.rank, up + at, outputs, left, out, at)         \
                 : raised<R, N>(low, thin.rank, share.rank, up + at, outputs, LANES, out, at)
            UP_TO_FOUR(OF, many)
#undef OF
        }
        low += share.rank;
        up += share.rank * outputs;
    }
}

// Adds to out: [rows, outputs] what the adapters of these rows, which are those of the pass from the
// first on, make of x: [rows, inputs].
static void add_beside(const Beside &beside, int64_t product, int64_t inputs, int64_t outputs,
                       int64_t first, int64_t rows, int32_t threads, const number *x, number *out) {
    for (int64_t g = 0; g < beside.count; g++) {
        const Group &group = beside.groups[g];
        const Thin &thin = group.each[product];
        const int64_t *end = group.rows + group.count;
        const int64_t *low = std::lower_bound(group.rows, end, first);
        const int64_t count = std::lower_bound(low, end, first + rows) - low;
        if (!thin.rank || !count) continue;
        const int64_t blocks = (count + TOGETHER - 1) / TOGETHER;
        const std::unique_ptr<float[]> memory(new float[blocks * TOGETHER * thin.rank]);
        // Of few rows this takes less than waking another thread.
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && blocks > 1)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t at = block * TOGETHER, some = std::min<int64_t>(TOGETHER, count - at);
            const number *from[TOGETHER];
            number *to[TOGETHER];
            for (int64_t r = 0; r < some; r++) {
                const int64_t row = low[at + r] - first;
                from[r] = x + row * inputs;
                to[r] = out + row * outputs;
            }
#define OF(R) add_to<R>(thin, inputs, outputs, from, to, memory.get() + at * thin.rank)
            UP_TO_FOUR(OF, some)
#undef OF
        }
    }
}
