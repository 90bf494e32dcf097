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

#include <omp.h>

#include "vectors.h"

struct Share {  // so many of an adapter's numbers are for so many outputs, from the first on
    int64_t rank, first, count;
};

// Of one adapter and one product. down: [inputs, rank] and up: [rank, outputs], whose rows are those of
// several adapters: `stride` numbers apart, and `outputs`. LANES more than there are can be read.
struct Thin {
    const number *down, *up;
    int64_t stride, rank, count;  // rank 0: the adapter leaves it alone
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

enum { TOGETHER = 4 };  // rows, and vectors of columns: as many sums as registers hold

// N neighbouring vectors of x w, for R rows of x: [R, inputs], `apart` numbers from each other.
template <int R, int N, typename F>
static void columns(const float *x, int64_t apart, int64_t inputs, const number *w, int64_t stride,
                    const F &take) {
    vector sum[R][N] = {};
    for (int64_t k = 0; k < inputs; k++, w += stride) {
        vector some[N];
        for (int n = 0; n < N; n++) some[n] = taken(w + n * LANES, LANES);
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) sum[r][n] += x[r * apart + k] * some[n];
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) take(r, n * LANES, sum[r][n]);
}

// take(row, column, sums) for all of `count` columns; the last sums may be more than there are.
template <int R, typename F>
static void multiplied(const float *x, int64_t apart, int64_t inputs, const number *w, int64_t stride,
                       int64_t count, const F &take) {
    for (int64_t at = 0; at < count; at += TOGETHER * LANES) {
        auto here = [&](int r, int64_t column, vector sum) { take(r, at + column, sum); };
#define OF(N) columns<R, N>(x, apart, inputs, w + at, stride, here)
        switch (std::min<int64_t>(TOGETHER, (count - at + LANES - 1) / LANES)) {
            case 1: OF(1); break;
            case 2: OF(2); break;
            case 3: OF(3); break;
            default: OF(4);
        }
#undef OF
    }
}

// R rows of x: [.., inputs] and out: [.., outputs]. memory: R * (inputs + rank) numbers and LANES more.
template <int R>
static void add_to(const Thin &thin, int64_t inputs, int64_t outputs, const int64_t *rows, int64_t first,
                   const number *x, number *out, float *memory) {
    for (int r = 0; r < R; r++)
        for (int64_t i = 0; i < inputs; i++)
            memory[r * inputs + i] = wide(x[(rows[r] - first) * inputs + i]);
    float *low = memory + R * inputs;
    multiplied<R>(memory, inputs, inputs, thin.down, thin.stride, thin.rank,
                  [&](int r, int64_t column, vector sum) {
                      const vector some = rounded(sum);
                      const int64_t left = std::min<int64_t>(LANES, thin.rank - column);
                      memcpy(low + r * thin.rank + column, &some, left * sizeof(float));
                  });
    const number *up = thin.up;
    for (int64_t p = 0; p < thin.count; p++) {
        const Share &share = thin.shares[p];
        multiplied<R>(low, thin.rank, share.rank, up + share.first, outputs, share.count,
                      [&](int r, int64_t column, vector sum) {
                          number *to = out + (rows[r] - first) * outputs + share.first + column;
                          const int64_t left = share.count - column;
                          if (left >= LANES)
                              put(taken(to, LANES) + sum, to, LANES);
                          else
                              put(taken(to, left) + sum, to, left);
                      });
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
        const int64_t size = TOGETHER * (inputs + thin.rank) + LANES;
        const std::unique_ptr<float[]> memory(new float[threads * size]);
        // Of few rows this takes less than waking another thread.
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && blocks > 1)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t *some = low + block * TOGETHER, left = count - block * TOGETHER;
            float *own = memory.get() + omp_get_thread_num() * size;
#define OF(R) add_to<R>(thin, inputs, outputs, some, first, x, out, own)
            switch (left) {
                case 1: OF(1); break;
                case 2: OF(2); break;
                case 3: OF(3); break;
                default: OF(4);
            }
#undef OF
        }
    }
}
