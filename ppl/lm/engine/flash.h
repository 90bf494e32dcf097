// Attention of many queries to the same keys and values by the processor's units for whole matrices
// (AMX): as `Together`, of bfloat16, up to `AT_ONCE` queries and `KEYS` keys at a time (FlashAttention,
// Dao et al. 2022, arXiv:2205.14135).
//
// Keys lie as a left factor wants them, so scores are computed with queries side by side, as in
// `Together`: no maximum and no sum goes across a vector. Weights are rounded to bfloat16, as there.
// What a query sees does not depend on the queries beside it. Compiled with VECTORS, or where the
// processor has no such units, or heads are of another size, there is none of it.

#pragma once

#include <cstdlib>

#include <omp.h>

#include "shortage.h"
#include "together.h"

#if PAIRS && DIM % 32 == 0 && WIDE % 16 == 0 && defined(__AMX_BF16__) && !defined(VECTORS)
#define FLASH 1
#include "matrices.h"

namespace flash {

using matrices::ONE;
using matrices::SIDE;
using matrices::STEP;

enum { KEYS = 128, COLUMNS = 12, AT_ONCE = COLUMNS * LANES };

// Columns [SIDE][SIDE] of 32 bits become rows.
static inline void transposed(__m512i *rows) {
    __m512i some[SIDE];
#pragma GCC unroll 8
    for (int i = 0; i < SIDE; i += 2) {
        some[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        some[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < SIDE; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(some[i], some[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(some[i], some[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(some[i + 1], some[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(some[i + 1], some[i + 3]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < SIDE; i += 8)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            some[i + j] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0x88);
            some[i + j + 4] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0xdd);
        }
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        rows[j] = _mm512_shuffle_i32x4(some[j], some[j + 8], 0x88);
        rows[j + 8] = _mm512_shuffle_i32x4(some[j], some[j + 8], 0xdd);
    }
}

// Two to the power of x <= 0, in float32 (a polynomial of its own, to 1e-7).
static inline __m512 power(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126), x);  // less gives no normal number; NaN stays NaN
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.32647e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.67151e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550734e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022242e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314698e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

struct Together {
    alignas(64) whole q[COLUMNS][DIM / 2];
    alignas(64) vector sum[COLUMNS][WIDE], scores[KEYS];
    alignas(64) whole pairs[KEYS / 2];
    alignas(64) number padded[KEYS * DIM], across[WIDE * KEYS];
    vector most[COLUMNS], mass[COLUMNS], first[COLUMNS], last[COLUMNS];
    int columns;  // vectors of queries
    float scaling;

    // Puts queries in all places of a vector, which have seen nothing.
    void ask(int v, const number *const *asked, float scale) {
        scaling = scale;
        for (int d = 0; d < DIM; d += STEP) {
            __m512i rows[SIDE];
#pragma GCC unroll 16
            for (int i = 0; i < SIDE; i++) rows[i] = _mm512_loadu_si512(asked[i] + d);
            transposed(rows);
#pragma GCC unroll 16
            for (int i = 0; i < SIDE; i++) q[v][d / 2 + i] = (whole)rows[i];
        }
        most[v] = vector{} - INFINITY;
        mass[v] = first[v] = vector{};
        for (int d = 0; d < WIDE; d++) sum[v][d] = vector{};
    }

    // Nothing is asked, and what is not asked sees nothing.
    void clear() {
        memset(q, 0, columns * sizeof *q);
        memset(sum, 0, columns * sizeof *sum);
        for (int v = 0; v < columns; v++) {
            most[v] = vector{} - INFINITY;
            mass[v] = first[v] = vector{};
            last[v] = vector{} + EVER;
        }
    }

    // Puts one in its place, and what it has seen so far: see `Together`.
    void ask(int place, const number *asked, float scale) {
        const int v = place / LANES, i = place % LANES;
        scaling = scale;
        for (int d = 0; d < DIM / 2; d++) q[v][d][i] = both(asked + 2 * d)[0];
    }

    void seen(int place, float top, float weight) {  // the largest score as it was before scaling
        most[place / LANES][place % LANES] = top / scaling;
        mass[place / LANES][place % LANES] = weight;
    }

    void looks(int place, float from, float, float to) {
        first[place / LANES][place % LANES] = from;
        last[place / LANES][place % LANES] = to;
    }

    float top(int place) const { return most[place / LANES][place % LANES] * scaling; }
    float weight(int place) const { return mass[place / LANES][place % LANES]; }
    float &of(int place, int d) { return ((float *)&sum[place / LANES][d])[place % LANES]; }

    // What the first `count` of them have found.
    void answer(int v, int count, number *const *out) const {
        const vector by = 1.0f / mass[v];
        for (int d = 0; d < WIDE; d += SIDE) {
            __m512i rows[SIDE];
#pragma GCC unroll 16
            for (int i = 0; i < SIDE; i++) rows[i] = (__m512i)(sum[v][d + i] * by);
            transposed(rows);
            for (int i = 0; i < count; i++)
                _mm256_storeu_si256((__m256i *)(out[i] + d), (__m256i)_mm512_cvtneps_pbh((__m512)rows[i]));
        }
    }

    // Values of `part` keys, zeros behind them up to `filled`: those of a key are a column.
    void turn(const number *values, int part, int filled) {
        for (int t = 0; t < filled; t += STEP)
            for (int d = 0; d < WIDE; d += SIDE) {
                __m512i rows[SIDE];
#pragma GCC unroll 16
                for (int i = 0; i < SIDE; i++) {
                    const int at = t + 2 * i;
                    const __m256i *one = (const __m256i *)(values + at * WIDE + d);
                    const __m256i *other = (const __m256i *)(values + (at + 1) * WIDE + d);
                    rows[i] = _mm512_setzero_si512();
                    if (at < part) rows[i] = _mm512_cvtepu16_epi32(_mm256_loadu_si256(one));
                    if (at + 1 < part)
                        rows[i] = _mm512_or_si512(rows[i], _mm512_slli_epi32(_mm512_cvtepu16_epi32(
                                                               _mm256_loadu_si256(other)), 16));
                }
                transposed(rows);
#pragma GCC unroll 16
                for (int i = 0; i < SIDE; i++)
                    _mm512_store_si512(across + (d + i) * KEYS + t, rows[i]);
            }
    }

    // Of so many keys, a multiple of STEP; up to four tiles of them at a time.
    void score(const number *keys, int count, int v) {
        asm volatile("" ::: "memory");  // the compiler does not know what tiles read
        for (int t = 0; t < count; t += 4 * SIDE) {
            const number *at = keys + t * DIM;
            const bool all = t + 4 * SIDE <= count;
            _tile_zero(0);
            _tile_zero(1);
            if (all) _tile_zero(2);
            if (all) _tile_zero(3);
            for (int d = 0; d < DIM; d += STEP) {
                _tile_loadd(6, &q[v][d / 2], 4 * SIDE);
                _tile_loadd(4, at + d, 2 * DIM);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(5, at + SIDE * DIM + d, 2 * DIM);
                _tile_dpbf16ps(1, 5, 6);
                if (!all) continue;
                _tile_loadd(4, at + 2 * SIDE * DIM + d, 2 * DIM);
                _tile_dpbf16ps(2, 4, 6);
                _tile_loadd(5, at + 3 * SIDE * DIM + d, 2 * DIM);
                _tile_dpbf16ps(3, 5, 6);
            }
            _tile_stored(0, scores + t, 4 * SIDE);
            _tile_stored(1, scores + t + SIDE, 4 * SIDE);
            if (all) _tile_stored(2, scores + t + 2 * SIDE, 4 * SIDE);
            if (all) _tile_stored(3, scores + t + 3 * SIDE, 4 * SIDE);
        }
        asm volatile("" ::: "memory");
    }

    // Values with the weights of so many keys to the sums; N tiles of these at a time.
    template <int N> void add_some(int count, int v, int d) {
        _tile_loadd(0, &sum[v][d], 4 * SIDE);
        if (N > 1) _tile_loadd(1, &sum[v][d + SIDE], 4 * SIDE);
        if (N > 2) _tile_loadd(2, &sum[v][d + 2 * SIDE], 4 * SIDE);
        if (N > 3) _tile_loadd(3, &sum[v][d + 3 * SIDE], 4 * SIDE);
        for (int t = 0; t < count; t += STEP) {
            const number *at = across + d * KEYS + t;
            _tile_loadd(6, &pairs[t / 2], 4 * SIDE);
            _tile_loadd(4, at, 2 * KEYS);
            _tile_dpbf16ps(0, 4, 6);
            if (N > 1) _tile_loadd(5, at + SIDE * KEYS, 2 * KEYS);
            if (N > 1) _tile_dpbf16ps(1, 5, 6);
            if (N > 2) _tile_loadd(4, at + 2 * SIDE * KEYS, 2 * KEYS);
            if (N > 2) _tile_dpbf16ps(2, 4, 6);
            if (N > 3) _tile_loadd(5, at + 3 * SIDE * KEYS, 2 * KEYS);
            if (N > 3) _tile_dpbf16ps(3, 5, 6);
        }
        _tile_stored(0, &sum[v][d], 4 * SIDE);
        if (N > 1) _tile_stored(1, &sum[v][d + SIDE], 4 * SIDE);
        if (N > 2) _tile_stored(2, &sum[v][d + 2 * SIDE], 4 * SIDE);
        if (N > 3) _tile_stored(3, &sum[v][d + 3 * SIDE], 4 * SIDE);
    }

    void add(int count, int v) {
        enum { ALL = WIDE / (4 * SIDE) * 4 * SIDE };
        asm volatile("" ::: "memory");
        for (int d = 0; d < ALL; d += 4 * SIDE) add_some<4>(count, v, d);
        if (WIDE - ALL == 3 * SIDE) add_some<3>(count, v, ALL);
        if (WIDE - ALL == 2 * SIDE) add_some<2>(count, v, ALL);
        if (WIDE - ALL == SIDE) add_some<1>(count, v, ALL);
        asm volatile("" ::: "memory");
    }

    // From scores to weights. Those of what is hidden are next to nothing, the largest being one.
    void weigh(int v, int count) {
        const float by = 1.44269504f * scaling;  // to powers of two
        const __m512 least = _mm512_set1_ps(-INFINITY);
        __m512 tops[4] = {(__m512)most[v], least, least, least};
        for (int t = 0; t < count; t += 4)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                tops[j] = _mm512_max_ps((__m512)scores[t + j], tops[j]);
        __m512 top = _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3]));
        top = _mm512_max_ps(top, _mm512_set1_ps(-1e30f));  // who has looked at nothing yet
        const __m512 scale = _mm512_set1_ps(by), minus = _mm512_mul_ps(top, _mm512_set1_ps(-by));
        __m512 totals[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int t = 0; t < count; t += 2) {
            __m512 w[2];
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                w[j] = power(_mm512_fmadd_ps((__m512)scores[t + j], scale, minus));
                totals[j] = _mm512_add_ps(totals[j], w[j]);
            }
            pairs[t / 2] = paired((vector)w[0], (vector)w[1]);
        }
        // Not as above: of tops of -1e30 rounding would leave 1e22, of which the power is infinite.
        const __m512 shrink = power(_mm512_mul_ps(_mm512_sub_ps((__m512)most[v], top), scale));
        if (_mm512_cmp_ps_mask((__m512)most[v], top, _CMP_NEQ_UQ))
            for (int d = 0; d < WIDE; d++) sum[v][d] *= (vector)shrink;
        most[v] = (vector)top;
        mass[v] = mass[v] * (vector)shrink + (vector)_mm512_add_ps(totals[0], totals[1]);
    }

    // As that of the other.
    void look(const number *keys, const number *values, int64_t from, int64_t count,
              float earliest, float, int64_t, float, float softcap) {
        for (int64_t start = 0; start < count; start += KEYS) {
            const int part = count - start < KEYS ? (int)(count - start) : KEYS;
            const int64_t place = from + start;
            if (place + part <= (int64_t)earliest) continue;
            const int filled = (part + STEP - 1) / STEP * STEP;
            const number *some = keys + start * DIM;
            if (part < filled) {
                memcpy(padded, some, part * DIM * sizeof(number));
                memset(padded + part * DIM, 0, (filled - part) * DIM * sizeof(number));
                some = padded;
            }
            turn(values + start * WIDE, part, filled);
            for (int v = 0; v < columns; v++) {
                const __m512 to = (__m512)last[v], since = (__m512)first[v];
                const float soonest = _mm512_reduce_min_ps(to), latest = _mm512_reduce_max_ps(since);
                const int64_t behind = (int64_t)_mm512_reduce_max_ps(to) + 1 - place;
                if (behind <= 0 || place + part <= (int64_t)_mm512_reduce_min_ps(since)) continue;
                const int seen = behind < part ? (int)behind : part;
                const int steps = (seen + STEP - 1) / STEP * STEP;
                score(some, steps, v);
                for (int t = 0; softcap > 0 && t < seen; t++)
                    for (int i = 0; i < LANES; i++)
                        scores[t][i] = softcap * std::tanh(scores[t][i] * scaling / softcap) / scaling;
                const bool hides = (float)place < latest || (float)(place + seen - 1) > soonest;
                for (int t = 0; hides && t < seen; t++) {
                    const __m512 at = _mm512_set1_ps((float)(place + t));
                    const __mmask16 unseen = _mm512_cmp_ps_mask(since, at, _CMP_GT_OQ) |
                                             _mm512_cmp_ps_mask(to, at, _CMP_LT_OQ);
                    scores[t] = (vector)_mm512_mask_mov_ps((__m512)scores[t], unseen,
                                                           _mm512_set1_ps(-INFINITY));
                }
                for (int t = seen; t < steps; t++) scores[t] = vector{} - INFINITY;
                weigh(v, steps);
                add(steps, v);
            }
        }
    }
};

// One for each thread: too large for the stacks that threads may have. The thread that calls keeps
// them, as each layer asks.
struct Team {
    Together *each = nullptr;
    int32_t threads = 0;
    ~Team() { free(each); }

    Together *of(int32_t wanted) {
        if (wanted <= threads) return each;
        free(each);
        threads = 0;
        each = (Together *)aligned_alloc(64, wanted * sizeof(Together));
        if (!each) throw std::bad_alloc();
        threads = wanted;
        return each;
    }
};
static thread_local Team team;

static bool able(float scaling) { return scaling > 0 && matrices::given(); }

}  // namespace flash
#else
#define FLASH 0

namespace flash {

enum { COLUMNS = MOST, AT_ONCE = COLUMNS * LANES };

struct Together {};
struct Team {
    Together *of(int32_t) { return nullptr; }
};
static Team team;

static bool able(float) { return false; }

}  // namespace flash
#endif
