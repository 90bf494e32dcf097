// Products of rows with weights that are read as oneDNN lays them out.
//
// A step of one row is bound by reading the weights, and oneDNN's kernels read at half of what the
// memory gives. Weights lie as [outputs / width][inputs / SIDE_BY_SIDE][width][SIDE_BY_SIDE], inputs
// filled up with zeros: each is read once, in order. Every output is one sum in float32, in the order
// of the inputs, rounded at the end; so what a row gives does not depend on which rows are beside it,
// nor on the number of threads.
//
// Compiled for one kind: HALF for bfloat16 (else float32). It needs AVX512, and AVX512-BF16 for HALF
// (elsewhere oneDNN computes); and takes the units for whole matrices where they are, unless it is
// compiled with VECTORS.

#include <cstdint>
#include <cstring>

#include "shortage.h"
#include "vectors.h"

#if defined(__AVX512F__) && (defined(__AVX512BF16__) || !HALF)
#include <immintrin.h>
#if HALF && defined(__AMX_BF16__) && !defined(VECTORS)
#define MATRICES 1
#include "matrices.h"
#endif

enum { ROWS = 6, SIDE_BY_SIDE = HALF ? 2 : 1 };  // as many sums as registers hold

static inline __m512 plus(__m512 sum, const number *weights, const number *x) {
#if HALF
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(weights),
                            (__m512bh)_mm512_set1_epi32(pair));
#else
    return _mm512_fmadd_ps(_mm512_loadu_ps(weights), _mm512_set1_ps(*x), sum);
#endif
}

// N neighbouring vectors of outputs of a tile, of R rows.
template <int R, int N>
static void some(int64_t width, int64_t inputs, const number *x, const number *weights,
                 const float *bias, number *out, int64_t outputs, int64_t count) {
    __m512 sum[R][N];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) sum[r][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < inputs; k += SIDE_BY_SIDE, weights += SIDE_BY_SIDE * width)
        for (int r = 0; r < R; r++)
            for (int v = 0; v < N; v++)
                sum[r][v] = plus(sum[r][v], weights + SIDE_BY_SIDE * LANES * v, x + r * inputs + k);
    for (int r = 0; r < R; r++) {
        float sums[N * LANES];
        for (int v = 0; v < N; v++) _mm512_storeu_ps(sums + LANES * v, sum[r][v]);
        for (int64_t o = 0; o < count; o++)
            out[r * outputs + o] = narrow(sums[o] + (bias ? bias[o] : 0.0f));
    }
}

template <int N>
static void rows_of(int64_t rows, int64_t width, int64_t inputs, const number *x,
                    const number *weights, const float *bias, number *out, int64_t outputs,
                    int64_t count) {
    for (int64_t row = 0, step; row < rows; row += step) {
        const int64_t left = rows - row;
        step = left == 8 ? 4 : left < ROWS ? left : ROWS;  // 8 = 4 + 4: 6 + 2 takes longer
        const number *from = x + row * inputs;
        number *to = out + row * outputs;
#define OF(R) some<R, N>(width, inputs, from, weights, bias, to, outputs, count)
        switch (step) {
            case 1: OF(1); break;
            case 2: OF(2); break;
            case 3: OF(3); break;
            case 4: OF(4); break;
            case 5: OF(5); break;
            default: OF(6);
        }
#undef OF
    }
}

// x: [rows, inputs], a multiple of SIDE_BY_SIDE of them; weights: see above, `tile` numbers to
// `width` outputs, a multiple of LANES; bias: [outputs] or null; out: [rows, outputs].
extern "C" int32_t multiply(int64_t rows, int64_t inputs, int64_t outputs, int64_t width,
                         int64_t tile, int32_t threads, const number *x, const number *weights,
                         const float *bias, number *out) {
#if MATRICES
    if (matrices::given())
        return told([&] {
            matrices::multiply(rows, inputs, outputs, width, tile, threads, x, weights, bias, out);
        });
#endif
    const int64_t vectors = (outputs + LANES - 1) / LANES, each = width / LANES;
    // Equally many vectors a thread: whole tiles would leave some without work.
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int32_t part = 0; part < threads; part++) {
        const int64_t end = vectors * (part + 1) / threads;
        for (int64_t at = vectors * part / threads, n; at < end; at += n) {
            n = each - at % each < end - at ? each - at % each : end - at;
            const int64_t first = at * LANES, left = outputs - first;
            const int64_t count = left < n * LANES ? left : n * LANES;
            const number *w = weights + at / each * tile + at % each * SIDE_BY_SIDE * LANES;
            const float *b = bias ? bias + first : bias;
#define OF(N) rows_of<N>(rows, width, inputs, x, w, b, out + first, outputs, count)
            switch (n) {
                case 1: OF(1); break;
                case 2: OF(2); break;
                case 3: OF(3); break;
                default: OF(4);
            }
#undef OF
        }
    }
    return DONE;
}

// Up to how many rows: oneDNN's products by whole matrices are slower for few rows, not for many.
extern "C" int64_t most() {
#if MATRICES
    if (matrices::given()) return matrices::MANY;
#endif
    return INT64_MAX;
}

#else
extern "C" int32_t multiply(int64_t, int64_t, int64_t, int64_t, int64_t, int32_t, const number *,
                            const number *, const float *, number *) {
    return DONE;
}
extern "C" int64_t most() { return 0; }
#endif
