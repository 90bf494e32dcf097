// Products with weights of eight bits by the processor's units for whole matrices (AMX): up to 16 rows
// with 32 outputs at a time, a group of inputs a step, from weights that lie as in `int8.cpp`.
//
// A group is one row of a tile. Its sums are the whole numbers that AVX512-VNNI gives, and groups are
// added in the same order by the same operations, so results are the same bit for bit. Adding takes
// longer than multiplying: the tiles of a group are filled while those before it are added, and each
// is put away just before it is filled again, or the units would wait for that.

#pragma once

#include <cstdint>

#include "tiles.h"

namespace matrices {

// From LEAST rows on it is quicker; MANY stay in the cache, with the weights for some outputs.
enum { LEAST = 5, MANY = 256 };

// A group of up to SIDE rows: their numbers as 256 high + low, their scales, and minus 128 times the
// sums of their numbers.
struct alignas(LINE) Parts {
    int8_t high[SIDE][GROUP], low[SIDE][GROUP];
    float scale[SIDE];
    int32_t offset[SIDE];
};

// TILE outputs of `count` rows: into sums[count][TILE].
static void block(const Parts *rows, int64_t groups, const uint8_t *weights, const float *scales,
                  int count, float (*sums)[TILE], Ahead &ahead) {
    alignas(64) int32_t made[4][SIDE][SIDE];  // high and low, of the first and the second outputs
    for (int r = 0; r < count; r++)
        for (int j = 0; j < 2; j++) _mm512_store_ps(sums[r] + SIDE * j, _mm512_setzero_ps());
    const int half = count / 2;
    // Adds a group to some outputs of some rows.
    auto add = [&](int64_t g, int j, int from, int to) {
        const __m512 of_weights = _mm512_loadu_ps(scales + g * TILE + SIDE * j);
        for (int r = from; r < to; r++) {
            __m512i sum = _mm512_slli_epi32(_mm512_load_si512(made[2 * j][r]), 8);
            sum = _mm512_add_epi32(sum, _mm512_load_si512(made[2 * j + 1][r]));
            sum = _mm512_add_epi32(sum, _mm512_set1_epi32(rows[g].offset[r]));
            const __m512 scale = _mm512_mul_ps(of_weights, _mm512_set1_ps(rows[g].scale[r]));
            float *total = sums[r] + SIDE * j;
            _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale,
                                                   _mm512_load_ps(total)));
        }
    };
#define BETWEEN asm volatile("" ::: "memory")  // the compiler does not know what tiles read and write
    for (int64_t g = 0; g <= groups; g++, weights += GROUP * TILE) {
        const bool before = g > 0, more = g < groups;
        BETWEEN;
        if (before) _tile_stored(0, made[0], LINE);
        if (more) {
            ahead.ask();
            _tile_loadd(6, weights, 2 * LINE);
            _tile_loadd(4, rows[g].high, LINE);
            _tile_zero(0);
            _tile_dpbsud(0, 4, 6);
        }
        if (before) _tile_stored(1, made[1], LINE);
        if (more) {
            _tile_loadd(5, rows[g].low, LINE);
            _tile_zero(1);
            _tile_dpbsud(1, 5, 6);
        }
        BETWEEN;
        if (before) add(g - 1, 0, 0, half);
        BETWEEN;
        if (before) _tile_stored(2, made[2], LINE);
        if (more) {
            _tile_loadd(7, weights + LINE, 2 * LINE);
            _tile_zero(2);
            _tile_dpbsud(2, 4, 7);
        }
        BETWEEN;
        if (before) add(g - 1, 0, half, count);
        BETWEEN;
        if (before) _tile_stored(3, made[3], LINE);
        if (more) {
            _tile_zero(3);
            _tile_dpbsud(3, 5, 7);
        }
        BETWEEN;
        if (before) add(g - 1, 1, 0, count);
    }
#undef BETWEEN
}

}  // namespace matrices
