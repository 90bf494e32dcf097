// A token for each row of logits, by inverting its cumulative distribution at a uniform number: one
// reading for the largest, one for the sums of blocks, and of one block another for the token. No
// probabilities are written anywhere. Sums of blocks are in float32, those over blocks in float64.

#include <vector>

#include "shortage.h"

#include "vectors.h"

enum { BLOCK = 256 };

static inline vector loaded(const number *from) {
#if HALF
    typedef uint16_t halves __attribute__((vector_size(LANES * sizeof(number))));
    halves bits;
    memcpy(&bits, from, sizeof bits);
    return (vector)(__builtin_convertvector(bits, whole) << 16);
#else
    vector numbers;
    memcpy(&numbers, from, sizeof numbers);
    return numbers;
#endif
}

// e^(x - top) of a block, 0 where that is next to nothing and behind the end.
static inline void weigh(const number *logits, int64_t count, float top, vector *weights) {
    alignas(64) number padded[BLOCK];
    if (count < BLOCK) {
        for (int i = 0; i < BLOCK; i++) padded[i] = i < count ? logits[i] : narrow(-INFINITY);
        logits = padded;
    }
    for (int i = 0; i < BLOCK / LANES; i++) {
        const vector x = loaded(logits + i * LANES) - top;
        weights[i] = x < -87.0f ? vector{} : exponentials(x);
    }
}

static float largest(const number *logits, int64_t size) {
    vector most = vector{} - INFINITY;
    int64_t at = 0;
    for (; at + LANES <= size; at += LANES) {
        const vector some = loaded(logits + at);
        most = some > most ? some : most;
    }
    float top = -INFINITY;
    for (int i = 0; i < LANES; i++) top = most[i] > top ? most[i] : top;
    for (; at < size; at++) top = wide(logits[at]) > top ? wide(logits[at]) : top;
    return top;
}

// logits: [rows, size], rows `stride` numbers apart; uniforms: [rows] in (0, 1).
// tokens, log_probs: [rows]; a row without a distribution (one that is not finite, or allows
// nothing) has a log-probability that is no number.
extern "C" int32_t draw(int32_t threads, int64_t rows, int64_t size, int64_t stride,
                     const number *all, const double *uniforms, int64_t *tokens,
                     double *log_probs) {
    const int64_t blocks = (size + BLOCK - 1) / BLOCK;
    std::vector<double> masses;
    if (told([&] { masses.resize(rows * blocks); })) return NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t row = 0; row < rows; row++) {
        const number *logits = all + row * stride;
        const float top = largest(logits, size);
        vector weights[BLOCK / LANES];
        auto load = [&](int64_t block) {
            const int64_t left = size - block * BLOCK;
            weigh(logits + block * BLOCK, left < BLOCK ? left : BLOCK, top, weights);
        };
        double *mass = masses.data() + row * blocks;
        double total = 0;
        for (int64_t block = 0; block < blocks; block++) {
            load(block);
            vector sums = {};
            for (const vector &some : weights) sums += some;
            float sum = 0;
            for (int i = 0; i < LANES; i++) sum += sums[i];
            mass[block] = total += sum;
        }
        tokens[row] = 0;
        log_probs[row] = NAN;
        if (!(total > 0)) continue;
        const double wanted = uniforms[row] * total;
        int64_t block = 0;
        while (block < blocks - 1 && !(mass[block] > wanted)) block++;
        load(block);
        // Rounding may leave it beyond the block's last token: then that is it, if it has any mass.
        double sum = block ? mass[block - 1] : 0;
        int found = 0;
        for (int i = 0; i < BLOCK; i++) {
            const float weight = weights[i / LANES][i % LANES];
            if (weight > 0) found = i;
            if ((sum += weight) > wanted && weight > 0) break;
        }
        tokens[row] = block * BLOCK + found;
        log_probs[row] = (double)wide(logits[tokens[row]]) - top - std::log(total);
    }
    return DONE;
}
