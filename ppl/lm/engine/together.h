// Attention of several queries that look at the same keys and values, side by side in vectors, so that
// a number that was read serves them all, and nothing is summed across a vector. With a running
// maximum, as in FlashAttention (Dao et al. 2022, arXiv:2205.14135).
//
// Compiled for one model: HEADS key-value heads, GROUP query heads to each, DIM numbers a key,
// WIDE numbers a value, HALF for bfloat16 (else float32). Sums are in float32.

#pragma once

#include "vectors.h"

enum { PART = 16, MOST = 3 };  // keys at a time; vectors of queries
const float EVER = 1e9f;       // behind all positions

#if HALF && DIM % 2 == 0 && defined(__AVX512BF16__)
#include <immintrin.h>
#define PAIRS 1
enum { MANY = 32 };  // keys at a time, of several queries
#else
#define PAIRS 0
enum { MANY = 16 };
#endif

#if PAIRS
static inline whole both(const void *pair) {  // two neighbours, in all places
    int32_t bits;
    memcpy(&bits, pair, sizeof bits);
    return (whole)_mm512_set1_epi32(bits);
}

static inline vector dot(vector sum, whole a, whole b) {  // plus the products of pairs
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

static inline whole paired(vector one, vector other) {  // rounded
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                           8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)other, (__m512)one);
    return (whole)_mm512_permutexvar_epi16(order, (__m512i)rounded);
}
#endif

// The same of several queries that look at the same keys: one in each place of `V` vectors. Where the
// processor multiplies pairs of bfloat16, queries and weights lie in pairs.
template <int V> struct Together {
#if PAIRS
    whole q[DIM / 2][V];
    float scaling;
#else
    vector q[DIM][V];
#endif
    vector sum[WIDE][V], most[V], mass[V], first[V], low[V], last[V];
    enum { AT_ONCE = V == 1 ? 16 : 8, NUMBERS = WIDE % 8 == 0 ? 8 : WIDE % 4 == 0 ? 4 : 1 };

    // Scores of `part` keys; behind them, minus infinity.
    void score(const number *keys, int part, vector (*scores)[V]) const {
#if PAIRS
        number padded[MANY * DIM];
        if (part < MANY) {
            memcpy(padded, keys, part * DIM * sizeof(number));
            memset(padded + part * DIM, 0, (MANY - part) * DIM * sizeof(number));
            keys = padded;
        }
#else
        alignas(64) float w[MANY * DIM];
        for (int i = 0; i < part * DIM; i++) w[i] = wide(keys[i]);
        for (int i = part * DIM; i < MANY * DIM; i++) w[i] = 0;
#endif
        for (int t = 0; t < part; t += AT_ONCE) {
            vector some[AT_ONCE][V] = {};
#if PAIRS
            for (int d = 0; d < DIM / 2; d++)
#pragma GCC unroll 16
                for (int j = 0; j < AT_ONCE; j++) {
                    const whole pair = both(keys + (t + j) * DIM + 2 * d);
#pragma GCC unroll 3
                    for (int v = 0; v < V; v++) some[j][v] = dot(some[j][v], q[d][v], pair);
                }
#pragma GCC unroll 16
            for (int j = 0; j < AT_ONCE; j++)
#pragma GCC unroll 3
                for (int v = 0; v < V; v++) some[j][v] *= scaling;
#else
            for (int d = 0; d < DIM; d++)
#pragma GCC unroll 16
                for (int j = 0; j < AT_ONCE; j++)
#pragma GCC unroll 3
                    for (int v = 0; v < V; v++) some[j][v] += q[d][v] * w[(t + j) * DIM + d];
#endif
            memcpy(scores[t], some, sizeof some);
        }
        for (int t = part; t < MANY; t++)
            for (int v = 0; v < V; v++) scores[t][v] = vector{} - INFINITY;
    }

    // Adds values with these weights to sums that shrink.
    void add(const number *values, int part, const vector (*weights)[V], const vector *shrink) {
#if PAIRS
        alignas(64) uint32_t w[MANY / 2][WIDE];
        whole pairs[MANY / 2][V];
        const int steps = (part + 1) / 2;
        for (int t = 0; t < steps; t++) {
            const number *one = values + 2 * t * WIDE, *other = 2 * t + 1 < part ? one + WIDE : one;
            for (int d = 0; d < WIDE; d++) w[t][d] = one[d] | (uint32_t)other[d] << 16;
            for (int v = 0; v < V; v++) pairs[t][v] = paired(weights[2 * t][v], weights[2 * t + 1][v]);
        }
        for (int d = 0; d < WIDE; d += NUMBERS) {
            vector some[NUMBERS][V];
#pragma GCC unroll 8
            for (int j = 0; j < NUMBERS; j++)
#pragma GCC unroll 3
                for (int v = 0; v < V; v++) some[j][v] = sum[d + j][v] * shrink[v];
            for (int t = 0; t < steps; t++)
#pragma GCC unroll 8
                for (int j = 0; j < NUMBERS; j++) {
                    const whole pair = both(&w[t][d + j]);
#pragma GCC unroll 3
                    for (int v = 0; v < V; v++) some[j][v] = dot(some[j][v], pairs[t][v], pair);
                }
            memcpy(sum[d], some, sizeof some);
        }
#else
        alignas(64) float w[MANY * WIDE];
        for (int i = 0; i < part * WIDE; i++) w[i] = wide(values[i]);
        for (int d = 0; d < WIDE; d += NUMBERS) {
            vector some[NUMBERS][V];
#pragma GCC unroll 8
            for (int j = 0; j < NUMBERS; j++)
#pragma GCC unroll 3
                for (int v = 0; v < V; v++) some[j][v] = sum[d + j][v] * shrink[v];
            for (int t = 0; t < part; t++)
#pragma GCC unroll 8
                for (int j = 0; j < NUMBERS; j++)
#pragma GCC unroll 3
                    for (int v = 0; v < V; v++) some[j][v] += weights[t][v] * w[t * WIDE + d + j];
            memcpy(sum[d], some, sizeof some);
        }
#endif
    }

    // Over `count` keys and values, the first of which is at position `from`. Nobody looks at what
    // is before `earliest`, all at what is between `latest` and `soonest`; but of the `few` first
    // tokens of a text a query looks at those from its `low` on, not from its `first`.
    void look(const number *keys, const number *values, int64_t from, int64_t count,
              float earliest, float latest, int64_t few, float soonest, float softcap) {
        for (int64_t start = 0; start < count; start += MANY) {
            const int part = count - start < MANY ? (int)(count - start) : MANY;
            const int64_t place = from + start;
            if (place + part <= (int64_t)earliest && place >= few) continue;
            vector scores[MANY][V], shrink[V];
            score(keys + start * DIM, part, scores);
            if (softcap > 0)
                for (int t = 0; t < part; t++)
                    for (int v = 0; v < V; v++)
                        for (int i = 0; i < LANES; i++)
                            scores[t][v][i] = softcap * std::tanh(scores[t][v][i] / softcap);
            if ((float)place < latest || (float)(place + part - 1) > soonest)
                for (int t = 0; t < part; t++)
                    for (int v = 0; v < V; v++) {
                        const vector at = vector{} + (float)(place + t);
                        const vector from_there = place + t < few ? low[v] : first[v];
                        const whole unseen = (from_there > at) | (last[v] < at);
                        scores[t][v] = unseen ? vector{} - INFINITY : scores[t][v];
                    }
            for (int v = 0; v < V; v++) {
                vector top = most[v], total = {};
                for (int t = 0; t < MANY; t++) top = scores[t][v] > top ? scores[t][v] : top;
                top = top < -1e30f ? vector{} - 1e30f : top;  // who has looked at nothing yet
                for (int t = 0; t < MANY; t++) {
                    scores[t][v] = exponentials(scores[t][v] - top);
                    total += scores[t][v];
                }
                shrink[v] = exponentials(most[v] - top);
                most[v] = top;
                mass[v] = mass[v] * shrink[v] + total;
            }
            add(values + start * WIDE, part, scores, shrink);
        }
    }

    // Puts a query in a place.
    void ask(int place, const number *asked, float scale) {
        const int v = place / LANES, i = place % LANES;
#if PAIRS
        scaling = scale;
        for (int d = 0; d < DIM / 2; d++) q[d][v][i] = both(asked + 2 * d)[0];
#else
        for (int d = 0; d < DIM; d++) q[d][v][i] = wide(asked[d]) * scale;
#endif
    }

    // What a query has seen so far: the largest score, the sum of weights, and that of values.
    void seen(int place, float top, float weight) {
        most[place / LANES][place % LANES] = top;
        mass[place / LANES][place % LANES] = weight;
    }

    // The first and the last position that it looks at, and the first of the `few` first ones.
    void looks(int place, float from, float early, float to) {
        first[place / LANES][place % LANES] = from;
        low[place / LANES][place % LANES] = early;
        last[place / LANES][place % LANES] = to;
    }

    float top(int place) const { return most[place / LANES][place % LANES]; }
    float weight(int place) const { return mass[place / LANES][place % LANES]; }
    float &of(int place, int d) { return ((float *)&sum[d][place / LANES])[place % LANES]; }
};

// So many keys and values: where, how far apart layers and heads are, which tokens.
struct Run {
    int64_t keys, key_layer, key_head, values, value_layer, value_head, start, count;
};

// A run of keys and values, for a head.
struct Place {
    const number *keys, *values;
    int64_t start, count;
};

static Place place_of(const Run &run, int64_t layer, int64_t other_layer, int64_t head) {
    return {(const number *)run.keys + layer * run.key_layer + head * run.key_head,
            (const number *)run.values + other_layer * run.value_layer + head * run.value_head,
            run.start, run.count};
}
