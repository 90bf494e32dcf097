// Attention of one new token a row, over keys and values in place.
//
// Each row writes its new key and value into its slot and attends to what the slot holds, from the
// first position that its layer looks at to its own: no mask, nothing read for longer neighbours. All query heads that share a
// key-value head pass over its keys together, a part at a time, with a running maximum as in
// FlashAttention (Dao et al. 2022, arXiv:2205.14135). What rows have in common is read from one of
// them, which keeps it in the processor's cache.
//
// Compiled for one model: HEADS key-value heads, GROUP query heads to each, DIM numbers a key,
// WIDE numbers a value, HALF for bfloat16 (else float32). Sums are in float32.

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

// query: [rows, HEADS * GROUP, DIM]; key and value: [rows, HEADS, DIM or WIDE], of the new tokens.
// keys, values: the slots of the rows, `slot` numbers apart, and their heads, `head` numbers apart.
// columns: where each row's new key goes; firsts, positions: the first and last that it looks at.
// shared: so many first keys each row has in common with row `sources` of the pass.
// softcap: scores s become softcap * tanh(s / softcap), if it is not 0. sinks: for each query head the
// score of a key without a value, or null. means [rows, HEADS * GROUP, WIDE] and masses
// [rows, HEADS * GROUP]: what attention to other keys gave, and the logarithms of the sums of their
// weights (minus infinity for none), or null. out: [rows, HEADS * GROUP, WIDE].
extern "C" void attend(int64_t rows, int32_t threads, const int64_t *columns,
                       const int64_t *firsts, const int64_t *positions, const int64_t *sources,
                       const int64_t *shared, const number *query, const number *key,
                       const number *value, number *keys, number *values, int64_t slot,
                       int64_t head, int64_t value_slot, int64_t value_head, float scaling,
                       float softcap, const float *sinks, const float *means, const float *masses,
                       number *out) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t at = 0; at < rows * HEADS; at++) {
        const int64_t row = at / HEADS, place = row * slot + at % HEADS * head;
        const int64_t value_place = row * value_slot + at % HEADS * value_head;
        memcpy(keys + place + columns[row] * DIM, key + at * DIM, DIM * sizeof(number));
        memcpy(values + value_place + columns[row] * WIDE, value + at * WIDE,
               WIDE * sizeof(number));

        float q[GROUP][DIM], sum[GROUP][WIDE] = {}, most[GROUP], mass[GROUP] = {};
        for (int g = 0; g < GROUP; g++) {
            most[g] = sinks ? sinks[at % HEADS * GROUP + g] : -INFINITY;
            mass[g] = sinks ? 1.0f : 0.0f;
            const number *asked = query + (at * GROUP + g) * DIM;
            for (int d = 0; d < DIM; d++) q[g][d] = wide(asked[d]) * scaling;
            const float other = means ? masses[at * GROUP + g] : -INFINITY;
            if (other != -INFINITY) {
                const float top = other > most[g] ? other : most[g];
                const float weight = exponential(other - top);
                mass[g] = mass[g] * exponential(most[g] - top) + weight;
                most[g] = top;
                for (int d = 0; d < WIDE; d++)
                    sum[g][d] = means[(at * GROUP + g) * WIDE + d] * weight;
            }
        }
        const int64_t count = positions[row] + 1;
        for (int64_t start = firsts[row]; start < count; start += PART) {
            const int part = count - start < PART ? (int)(count - start) : PART;
            const bool common = start + PART <= shared[row];
            const int64_t other = common ? sources[row] - row : 0;
            const number *k = keys + place + other * slot + start * DIM;
            const number *v = values + value_place + other * value_slot + start * WIDE;
            float scores[GROUP][PART], w[DIM > WIDE ? DIM : WIDE];
            for (int t = 0; t < part; t++) {
                for (int d = 0; d < DIM; d++) w[d] = wide(k[t * DIM + d]);
                for (int g = 0; g < GROUP; g++) {
                    float dot = 0;
                    for (int d = 0; d < DIM; d++) dot += q[g][d] * w[d];
                    scores[g][t] = dot;
                }
            }
            if (softcap > 0)
                for (int g = 0; g < GROUP; g++)
                    for (int t = 0; t < part; t++)
                        scores[g][t] = softcap * std::tanh(scores[g][t] / softcap);
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
                for (int d = 0; d < WIDE; d++) sum[g][d] *= shrink;
            }
            for (int t = 0; t < part; t++) {
                for (int d = 0; d < WIDE; d++) w[d] = wide(v[t * WIDE + d]);
                for (int g = 0; g < GROUP; g++)
                    for (int d = 0; d < WIDE; d++) sum[g][d] += scores[g][t] * w[d];
            }
        }
        number *answer = out + at * GROUP * WIDE;
        for (int g = 0; g < GROUP; g++)
            for (int d = 0; d < WIDE; d++) answer[g * WIDE + d] = narrow(sum[g][d] / mass[g]);
    }
}
