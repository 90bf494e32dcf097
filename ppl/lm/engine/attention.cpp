// Attention of one new token a row, over keys and values in place.
//
// Each row writes its new key and value into its slot and attends to what the slot holds, so many
// positions as it has: no mask, nothing read for longer neighbours. All query heads that share a
// key-value head pass over its keys together, a part at a time, with a running maximum as in
// FlashAttention (Dao et al. 2022, arXiv:2205.14135). What rows have in common is read from one of
// them, which keeps it in the processor's cache.
//
// Compiled for one model: HEADS key-value heads, GROUP query heads to each, DIM numbers a head,
// HALF for bfloat16 (else float32). Sums are in float32.

#include <cmath>
#include <cstdint>
#include <cstring>

#if HALF
typedef uint16_t number;

static inline float wide(number x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline number narrow(float x) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fc0;
    return (number)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float number;

static inline float wide(number x) { return x; }
static inline number narrow(float x) { return x; }
#endif

enum { PART = 16 };

// e^x for x <= 0, to the precision of float32, in a form that compilers can vectorise: a power of
// two times a polynomial (coefficients of Cephes, S. Moshier, expf).
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = std::rint(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    int32_t bits = ((int32_t)n + 127) * (1 << 23);
    float power;
    memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1.0f) * power;
}

// query and out: [rows, HEADS * GROUP, DIM]; key and value: [rows, HEADS, DIM], of the new tokens.
// keys, values: the slots of the rows, `slot` numbers apart, and their heads, `head` numbers apart.
// columns: where each row's new key goes; positions: the last that it looks at.
// shared: so many first keys each row has in common with row `sources` of the pass.
extern "C" void attend(int64_t rows, int32_t threads, const int64_t *columns,
                       const int64_t *positions, const int64_t *sources, const int64_t *shared,
                       const number *query, const number *key, const number *value, number *keys,
                       number *values, int64_t slot, int64_t head, float scaling, number *out) {
    const int64_t size = DIM * sizeof(number);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t at = 0; at < rows * HEADS; at++) {
        const int64_t row = at / HEADS, place = row * slot + at % HEADS * head;
        memcpy(keys + place + columns[row] * DIM, key + at * DIM, size);
        memcpy(values + place + columns[row] * DIM, value + at * DIM, size);

        float q[GROUP][DIM], sum[GROUP][DIM] = {}, most[GROUP], mass[GROUP] = {};
        for (int g = 0; g < GROUP; g++) {
            most[g] = -INFINITY;
            const number *asked = query + (at * GROUP + g) * DIM;
            for (int d = 0; d < DIM; d++) q[g][d] = wide(asked[d]) * scaling;
        }
        const int64_t count = positions[row] + 1;
        for (int64_t start = 0; start < count; start += PART) {
            const int part = count - start < PART ? (int)(count - start) : PART;
            const bool common = start + PART <= shared[row];
            const int64_t from = place + (common ? sources[row] - row : 0) * slot + start * DIM;
            float scores[GROUP][PART], w[DIM];
            for (int t = 0; t < part; t++) {
                for (int d = 0; d < DIM; d++) w[d] = wide(keys[from + t * DIM + d]);
                for (int g = 0; g < GROUP; g++) {
                    float dot = 0;
                    for (int d = 0; d < DIM; d++) dot += q[g][d] * w[d];
                    scores[g][t] = dot;
                }
            }
            for (int g = 0; g < GROUP; g++) {
                float top = most[g], total = 0;
                for (int t = 0; t < part; t++) top = scores[g][t] > top ? scores[g][t] : top;
                for (int t = 0; t < part; t++) {
                    scores[g][t] = exponential(scores[g][t] - top);
                    total += scores[g][t];
                }
                const float shrink = exponential(most[g] - top);
                most[g] = top;
                mass[g] = mass[g] * shrink + total;
                for (int d = 0; d < DIM; d++) sum[g][d] *= shrink;
            }
            for (int t = 0; t < part; t++) {
                for (int d = 0; d < DIM; d++) w[d] = wide(values[from + t * DIM + d]);
                for (int g = 0; g < GROUP; g++)
                    for (int d = 0; d < DIM; d++) sum[g][d] += scores[g][t] * w[d];
            }
        }
        number *answer = out + at * GROUP * DIM;
        for (int g = 0; g < GROUP; g++)
            for (int d = 0; d < DIM; d++) answer[g * DIM + d] = narrow(sum[g][d] / mass[g]);
    }
}
