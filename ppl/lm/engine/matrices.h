// Products by the processor's units for whole matrices (AMX): 16 rows with 16 outputs at a time, 32
// inputs a step, from weights that lie as in `products.cpp`.
//
// Every output is again one sum in one order, and rows are filled up to 16: what a row gives does not
// depend on the rows beside it.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "tiles.h"

namespace matrices {

// MANY rows stay in the cache, with the weights for some outputs.
enum { STEP = 32, MANY = 256, ONE = SIDE * SIDE };

// Sums [2][2][SIDE][SIDE] of 16 rows, and of 16 other rows if BELOW, with 16 outputs, and the next
// 16 if BESIDE.
template <bool BELOW, bool BESIDE>
static void block(const uint16_t *x, const uint16_t *other, int64_t inputs, int64_t width,
                  const uint16_t *weights, float *sums, Ahead &ahead) {
    asm volatile("" ::: "memory");  // the compiler does not know what tiles read
    _tile_zero(0);
    if (BESIDE) _tile_zero(1);
    if (BELOW) _tile_zero(2);
    if (BELOW && BESIDE) _tile_zero(3);
    for (int64_t k = 0; k < inputs; k += STEP, weights += STEP * width) {
        ahead.ask();
        _tile_loadd(6, weights, 4 * width);
        _tile_loadd(4, x + k, 2 * inputs);
        _tile_dpbf16ps(0, 4, 6);
        if (BESIDE) {
            _tile_loadd(7, weights + 2 * SIDE, 4 * width);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (BELOW) {
            _tile_loadd(5, other + k, 2 * inputs);
            _tile_dpbf16ps(2, 5, 6);
            if (BESIDE) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 4 * SIDE);
    if (BESIDE) _tile_stored(1, sums + ONE, 4 * SIDE);
    if (BELOW) _tile_stored(2, sums + 2 * ONE, 4 * SIDE);
    if (BELOW && BESIDE) _tile_stored(3, sums + 3 * ONE, 4 * SIDE);
    asm volatile("" ::: "memory");
}

// Up to 16 rows of up to 32 outputs, rounded; the sums of the second half are `ONE` behind.
static void keep(const float *sums, const float *bias, int64_t rows, int64_t count, int64_t outputs,
                 uint16_t *out) {
    const __mmask32 some = count < 2 * SIDE ? (1u << count) - 1 : ~0u;
    const __mmask16 left = (__mmask16)some, right = (__mmask16)(some >> SIDE);
    const __m512 zero = _mm512_setzero_ps();
    const __m512 more = bias ? _mm512_maskz_loadu_ps(left, bias) : zero;
    const __m512 also = bias ? _mm512_maskz_loadu_ps(right, bias + SIDE) : zero;
    for (int64_t row = 0; row < rows; row++, sums += SIDE, out += outputs) {
        const __m512 one = _mm512_add_ps(_mm512_load_ps(sums), more);
        const __m512 two = _mm512_add_ps(_mm512_load_ps(sums + ONE), also);
        _mm512_mask_storeu_epi16(out, some, (__m512i)_mm512_cvtne2ps_pbh(two, one));
    }
}

// As `multiply` in products.cpp.
static void multiply(int64_t rows, int64_t inputs, int64_t outputs, int64_t width, int64_t tile,
                     int32_t threads, const uint16_t *x, const uint16_t *weights,
                     const float *bias, uint16_t *out) {
    const int64_t filled = (inputs + STEP - 1) / STEP * STEP;
    // From here on rows are copied: the last ones are filled up, or all where inputs have to be.
    const int64_t whole = filled == inputs ? rows / SIDE * SIDE : 0;
    std::vector<uint16_t> memory((rows - whole + SIDE - 1) / SIDE * SIDE * filled);
    for (int64_t row = whole; row < rows; row++)
        memcpy(&memory[(row - whole) * filled], x + row * inputs, 2 * inputs);
    const uint16_t *copied = memory.data() - whole * filled;
    const int64_t vectors = (outputs + SIDE - 1) / SIDE, each = width / SIDE;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int32_t part = 0; part < threads; part++) {
        alignas(64) float sums[4 * ONE] = {};
        begin();
        for (int64_t low = 0; low < rows; low += MANY) {
            const int64_t high = low + MANY < rows ? low + MANY : rows;
            const int64_t start = vectors * part / threads, end = vectors * (part + 1) / threads;
            // While the products with a tile of weights are made, the next one is asked for.
            const int64_t times = (each + 1) / 2 * ((high - low + 2 * SIDE - 1) / (2 * SIDE));
            Ahead ahead = {weights, (width + times - 1) / times};
            for (int64_t at = start, n; at < end; at += n) {
                if (at == start || at % each == 0) ahead.next = weights + (at / each + 1) * tile;
                n = at % each + 1 < each && at + 1 < end ? 2 : 1;
                const uint16_t *w = weights + at / each * tile + at % each * 2 * SIDE;
                for (int64_t row = low; row < high; row += 2 * SIDE) {
                    const int64_t next = row + SIDE;
                    const uint16_t *one = (row < whole ? x : copied) + row * filled;
                    const uint16_t *two = (next < whole ? x : copied) + next * filled;
#define OF(BELOW, BESIDE) block<BELOW, BESIDE>(one, two, filled, width, w, sums, ahead)
                    if (next < high)
                        n == 2 ? OF(true, true) : OF(true, false);
                    else
                        n == 2 ? OF(false, true) : OF(false, false);
#undef OF
                    const int64_t first = at * SIDE, left = outputs - first;
                    const int64_t count = left < n * SIDE ? left : n * SIDE;
                    for (int64_t r = row, b = 0; r < high && b < 2; r += SIDE, b++)
                        keep(sums + 2 * b * ONE, bias ? bias + first : bias,
                             high - r < SIDE ? high - r : SIDE, count, outputs,
                             out + r * outputs + first);
                }
            }
        }
        _tile_release();
    }
}

}  // namespace matrices
