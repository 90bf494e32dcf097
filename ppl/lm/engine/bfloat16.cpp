// Products of rows with bfloat16 weights, read as oneDNN lays them out.
//
// A step of one row is bound by reading the weights, and oneDNN's kernels read at half of what the
// memory gives. Weights lie as [outputs / width][inputs / 2][width][2], inputs filled up with zeros,
// where `width` is 16, 32, 48 or 64: each is read once, in order. Every output is one sum, pair after pair of inputs in float32, rounded
// at the end; so what a row gives does not depend on which rows are beside it, nor on the number of
// threads.
//
// It needs AVX512-BF16 (elsewhere oneDNN computes), and takes the units for whole matrices where they
// are, unless it is compiled with VECTORS.

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BF16__)
#include <immintrin.h>
#if defined(__AMX_BF16__) && !defined(VECTORS)
#define MATRICES 1
#include "matrices.h"
#endif

enum { LANES = 16, ROWS = 6 };  // as many sums as registers hold

static inline uint16_t narrow(float x) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// N neighbouring vectors of outputs of a tile, of R rows.
template <int R, int N>
static void some(int64_t width, int64_t inputs, const uint16_t *x, const uint16_t *weights,
                 const float *bias, uint16_t *out, int64_t outputs, int64_t count) {
    __m512 sum[R][N];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) sum[r][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < inputs; k += 2, weights += 2 * width) {
        __m512bh w[N];
        for (int v = 0; v < N; v++)
            w[v] = (__m512bh)_mm512_loadu_si512(weights + 2 * LANES * v);
        for (int r = 0; r < R; r++) {
            int32_t pair;
            memcpy(&pair, x + r * inputs + k, sizeof pair);
            const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            for (int v = 0; v < N; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], w[v], both);
        }
    }
    for (int r = 0; r < R; r++) {
        float sums[N * LANES];
        for (int v = 0; v < N; v++) _mm512_storeu_ps(sums + LANES * v, sum[r][v]);
        for (int64_t o = 0; o < count; o++)
            out[r * outputs + o] = narrow(sums[o] + (bias ? bias[o] : 0.0f));
    }
}

template <int N>
static void rows_of(int64_t rows, int64_t width, int64_t inputs, const uint16_t *x,
                    const uint16_t *weights, const float *bias, uint16_t *out, int64_t outputs,
                    int64_t count) {
    for (int64_t row = 0, step; row < rows; row += step) {
        const int64_t left = rows - row;
        step = left == 8 ? 4 : left < ROWS ? left : ROWS;  // 8 = 4 + 4: 6 + 2 takes longer
        const uint16_t *from = x + row * inputs;
        uint16_t *to = out + row * outputs;
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

// x: [rows, inputs], an even number of them; weights: see above, `tile` numbers to `width` outputs;
// bias: [outputs] or null; out: [rows, outputs].
extern "C" void multiply(int64_t rows, int64_t inputs, int64_t outputs, int64_t width,
                         int64_t tile, int32_t threads, const uint16_t *x,
                         const uint16_t *weights, const float *bias, uint16_t *out) {
#if MATRICES
    if (matrices::given())
        return matrices::multiply(rows, inputs, outputs, width, tile, threads, x, weights, bias, out);
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
            const uint16_t *w = weights + at / each * tile + at % each * 2 * LANES;
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
}

// Up to how many rows: oneDNN's products by whole matrices are slower for few rows, not for many.
extern "C" int64_t most() {
#if MATRICES
    if (matrices::given()) return 2 * matrices::MANY;
#endif
    return INT64_MAX;
}

#else
extern "C" void multiply(int64_t, int64_t, int64_t, int64_t, int64_t, int32_t, const uint16_t *,
                         const uint16_t *, const float *, uint16_t *) {}
extern "C" int64_t most() { return 0; }
#endif
