// Products with weights of eight bits.
//
// A step of few rows is bound by reading the weights, so half the bytes are half the time. Weights
// are whole numbers from -127 to 127, with one scale to every GROUP of them along the inputs. Numbers
// of a row become whole numbers of sixteen bits, with a scale to every GROUP of the row: steps of
// 1 / 65024 of the largest of a group, where bfloat16 has 1 / 256 of each number. Sums inside a group
// are exact, sums of groups are in float32 in one order. So what a row gives does not depend on which
// rows are beside it, nor on the number of threads.
//
// Processors with AVX512-VNNI multiply 64 pairs of bytes at once; the sixteen bits are two of eight,
// x = 256 h + l. Those with AMX multiply some rows at once by that (`int8_matrices.h`), unless it is
// compiled with VECTORS. Others run plain loops. All give the same numbers. TILE outputs are taken
// together: weights lie as [outputs / TILE][inputs / 4][TILE][4], each plus 128, which makes them
// unsigned.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "shortage.h"

enum { GROUP = 64, TILE = 32, MOST = 127 * 256 };

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && !defined(PORTABLE)
#include <immintrin.h>
#define VNNI 1
#if defined(__AMX_INT8__) && !defined(VECTORS)
#define MATRICES 1
#include "int8_matrices.h"
#endif
#else
#define VNNI 0
#endif

static inline float wide(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float wide(float x) { return x; }

static inline void put(float x, float *out) { *out = x; }

static inline void put(float x, uint16_t *out) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    *out = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Of a group of a row, of which there are `count` numbers: whole numbers, and the scale that they have.
template <typename number>
static float taken_apart(const number *x, int count, int32_t *whole) {
    float w[GROUP], most;
    if (count == GROUP)
        for (int i = 0; i < GROUP; i++) w[i] = wide(x[i]);
    else
        for (int i = 0; i < GROUP; i++) w[i] = i < count ? wide(x[i]) : 0.0f;
    int32_t bits = 0;  // of the largest: those of numbers without a sign are in their order
    for (int i = 0; i < GROUP; i++) {
        int32_t size;
        memcpy(&size, w + i, sizeof size);
        size &= 0x7fffffff;
        bits = size > bits ? size : bits;
    }
    memcpy(&most, &bits, sizeof most);
    const bool finite = bits < 0x7f800000, some = finite && most > 1e-30f;
    if (some) {
        const float to = MOST / most;
        for (int i = 0; i < GROUP; i++) whole[i] = (int32_t)std::rint(w[i] * to);
    } else {
        memset(whole, 0, GROUP * sizeof *whole);
    }
    return some ? most / MOST : finite ? 0.0f : NAN;  // what is not finite stays so
}

// Whole numbers as 256 high + low; minus 128 times their sum.
static int32_t halved(const int32_t *whole, int8_t *high, int8_t *low) {
    int32_t sum = 0;
    for (int i = 0; i < GROUP; i++) {
        const int32_t h = (whole[i] + 128) >> 8;
        high[i] = (int8_t)h;
        low[i] = (int8_t)(whole[i] - 256 * h);
        sum += whole[i];
    }
    return -128 * sum;
}

// A group of a row: its scale, minus 128 times the sum of its numbers, and the numbers.
struct Part {
    float scale;
    int32_t offset;
#if VNNI
    int8_t high[GROUP], low[GROUP];
#else
    int16_t whole[GROUP];
#endif

    template <typename number> void take(const number *x, int count) {
        int32_t numbers[GROUP];
        scale = taken_apart(x, count, numbers);
#if VNNI
        offset = halved(numbers, high, low);
#else
        offset = 0;
        for (int i = 0; i < GROUP; i++) {
            whole[i] = (int16_t)numbers[i];
            offset -= 128 * numbers[i];
        }
#endif
    }
};

// TILE outputs of ROWS rows: into sums[ROWS][TILE].
template <int ROWS>
static void tile(const Part *parts, int64_t groups, const uint8_t *weights, const float *scales,
                 float (*sums)[TILE]) {
#if VNNI
    __m512 total[ROWS][2];
    for (int r = 0; r < ROWS; r++) total[r][0] = total[r][1] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m512i high[ROWS][2], low[ROWS][2];
        for (int r = 0; r < ROWS; r++) {
            high[r][0] = high[r][1] = _mm512_setzero_si512();
            low[r][0] = low[r][1] = _mm512_set1_epi32(parts[r * groups + g].offset);
        }
#pragma GCC unroll 16  // without, GCC copies every sum in every turn
        for (int k = 0; k < GROUP; k += 4, weights += 4 * TILE) {
            const __m512i w[2] = {_mm512_loadu_si512(weights), _mm512_loadu_si512(weights + 64)};
            for (int r = 0; r < ROWS; r++) {
                const Part *part = parts + r * groups + g;
                int32_t h, l;
                memcpy(&h, part->high + k, 4);
                memcpy(&l, part->low + k, 4);
                for (int j = 0; j < 2; j++) {
                    high[r][j] = _mm512_dpbusd_epi32(high[r][j], w[j], _mm512_set1_epi32(h));
                    low[r][j] = _mm512_dpbusd_epi32(low[r][j], w[j], _mm512_set1_epi32(l));
                }
            }
        }
        for (int j = 0; j < 2; j++) {
            const __m512 of_weights = _mm512_loadu_ps(scales + g * TILE + 16 * j);
            for (int r = 0; r < ROWS; r++) {
                const __m512 of_row = _mm512_set1_ps(parts[r * groups + g].scale);
                const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[r][j], 8), low[r][j]);
                total[r][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
                                              _mm512_mul_ps(of_weights, of_row), total[r][j]);
            }
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < 2; j++) _mm512_storeu_ps(sums[r] + 16 * j, total[r][j]);
#else
    memset(sums, 0, ROWS * sizeof *sums);
    for (int64_t g = 0; g < groups; g++, weights += GROUP * TILE) {
        for (int r = 0; r < ROWS; r++) {
            const Part *part = parts + r * groups + g;
            int32_t sum[TILE];
            for (int o = 0; o < TILE; o++) sum[o] = part->offset;
            for (int k = 0; k < GROUP; k += 4)
                for (int o = 0; o < TILE; o++)
                    for (int i = 0; i < 4; i++)
                        sum[o] += (int32_t)weights[k * TILE + o * 4 + i] * part->whole[k + i];
            for (int o = 0; o < TILE; o++)
                sums[r][o] = std::fma((float)sum[o], scales[g * TILE + o] * part->scale, sums[r][o]);
        }
    }
#endif
}

// Sums of some rows and `count` outputs, into out[rows][outputs].
template <typename number>
static void keep(const float (*sums)[TILE], int rows, int count, const float *bias, number *out,
                 int64_t outputs) {
    float more[TILE] = {};
    if (bias) memcpy(more, bias, count * sizeof *bias);
    for (int r = 0; r < rows; r++, out += outputs)
        if (count == TILE)
            for (int o = 0; o < TILE; o++) put(sums[r][o] + more[o], out + o);
        else
            for (int o = 0; o < count; o++) put(sums[r][o] + more[o], out + o);
}

#if MATRICES
// As `multiplied`, by whole matrices.
template <typename number>
static void by_matrices(int64_t rows, int64_t inputs, int64_t outputs, int32_t threads,
                        const number *x, const uint8_t *weights, const float *scales,
                        const float *bias, number *out) {
    using namespace matrices;
    const int64_t groups = (inputs + GROUP - 1) / GROUP, tiles = (outputs + TILE - 1) / TILE;
    // Equally many rows a block: what is multiplied for none is little.
    const int64_t least = (rows + SIDE - 1) / SIDE, each = (rows + least - 1) / least;
    const int64_t blocks = (rows + each - 1) / each;
    const std::unique_ptr<Parts[]> kept(new Parts[blocks * groups]);
    Parts *parts = kept.get();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            Parts *part = parts + row / each * groups;
            const int64_t r = row % each;
            for (int64_t g = 0; g < groups; g++, part++) {
                const int64_t start = g * GROUP, left = inputs - start;
                int32_t whole[GROUP];
                part->scale[r] = taken_apart(x + row * inputs + start,
                                             left < GROUP ? (int)left : GROUP, whole);
                part->offset[r] = halved(whole, part->high[r], part->low[r]);
            }
        }
        alignas(64) float sums[SIDE][TILE];
        begin((int)each);
        for (int64_t low = 0; low < blocks; low += MANY / SIDE) {
            const int64_t high = low + MANY / SIDE < blocks ? low + MANY / SIDE : blocks;
            // While the products with a tile of weights are made, the next one is asked for.
            Ahead ahead = {weights, (GROUP * TILE / LINE + high - low - 1) / (high - low)};
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < tiles; t++) {
                const uint8_t *w = weights + t * groups * GROUP * TILE;
                const float *s = scales + t * groups * TILE;
                const int64_t first = t * TILE, left = outputs - first;
                const int count = left < TILE ? (int)left : TILE;
                ahead.next = w + groups * GROUP * TILE;
                for (int64_t b = low; b < high; b++) {
                    const int64_t row = b * each, some = rows - row < each ? rows - row : each;
                    block(parts + b * groups, groups, w, s, (int)some, sums, ahead);
                    keep(sums, (int)some, count, bias ? bias + first : bias,
                         out + row * outputs + first, outputs);
                }
            }
        }
        _tile_release();
    }
}
#endif

template <typename number>
static void multiplied(int64_t rows, int64_t inputs, int64_t outputs, int32_t threads,
                       const number *x, const uint8_t *weights, const float *scales,
                       const float *bias, number *out) {
#if MATRICES
    if (rows >= matrices::LEAST && matrices::given())
        return by_matrices(rows, inputs, outputs, threads, x, weights, scales, bias, out);
#endif
    const int64_t groups = (inputs + GROUP - 1) / GROUP, tiles = (outputs + TILE - 1) / TILE;
    const std::unique_ptr<Part[]> kept(new Part[rows * groups]);
    Part *parts = kept.get();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t at = 0; at < rows * groups; at++) {
            const int64_t start = at % groups * GROUP, left = inputs - start;
            parts[at].take(x + at / groups * inputs + start, left < GROUP ? (int)left : GROUP);
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles; t++) {
            const uint8_t *w = weights + t * groups * GROUP * TILE;
            const float *s = scales + t * groups * TILE;
            const int64_t first = t * TILE, left = outputs - first;
            const int count = left < TILE ? (int)left : TILE;
            for (int64_t row = 0; row < rows; row += 4) {
                float sums[4][TILE];
                const Part *of_rows = parts + row * groups;
                const int some = rows - row < 4 ? (int)(rows - row) : 4;
                if (some == 4) tile<4>(of_rows, groups, w, s, sums);
                if (some == 3) tile<3>(of_rows, groups, w, s, sums);
                if (some == 2) tile<2>(of_rows, groups, w, s, sums);
                if (some == 1) tile<1>(of_rows, groups, w, s, sums);
                keep(sums, some, count, bias ? bias + first : bias, out + row * outputs + first,
                     outputs);
            }
        }
    }
}

// x: [rows, inputs]; weights: [tiles, groups * GROUP / 4, TILE, 4]; scales: [tiles, groups, TILE];
// bias: [outputs] or null; out: [rows, outputs]. `half`: x and out are bfloat16, else float32. Returns
// as in shortage.h.
extern "C" int32_t multiply(int64_t rows, int64_t inputs, int64_t outputs, int32_t threads,
                         int32_t half, const void *x, const uint8_t *weights, const float *scales,
                         const float *bias, void *out) {
    return told([&] {
        if (half)
            multiplied(rows, inputs, outputs, threads, (const uint16_t *)x, weights, scales, bias,
                       (uint16_t *)out);
        else
            multiplied(rows, inputs, outputs, threads, (const float *)x, weights, scales, bias,
                       (float *)out);
    });
}
