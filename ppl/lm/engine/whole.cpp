// A decode step of models of the Llama kind, from embeddings to last hidden states.
//
// A step of one row is a thousand small operations besides its products; in Python and torch they
// take longer than these. Here they are loops between products (`products.cpp`, `int8.cpp`) and
// attention (`attention.cpp`), which are called by address. In bfloat16 results are rounded where the
// model's own operations round, so that nothing but the order of sums differs.
//
// Compiled for one kind: HALF for bfloat16 (else float32).

#include <vector>

#include "vectors.h"

#include "attend.h"

static inline float rounded(float x) { return wide(narrow(x)); }

typedef void Multiply(int64_t, int64_t, int64_t, int64_t, int64_t, int32_t, const number *,
                      const void *, const float *, number *);
typedef void MultiplyEight(int64_t, int64_t, int64_t, int32_t, int32_t, const void *, const void *,
                           const float *, const float *, void *);

struct Product {  // in weights of eight bits if it has scales
    void *run;
    int64_t inputs, outputs, width, tile;
    const void *weights;
    const float *scales, *bias;

    void operator()(int64_t rows, int32_t threads, const number *x, number *out) const {
        if (scales)
            ((MultiplyEight *)run)(rows, inputs, outputs, threads, HALF, x, weights, scales, bias, out);
        else
            ((Multiply *)run)(rows, inputs, outputs, width, tile, threads, x, weights, bias, out);
    }
};

struct Layer {  // norms of queries and keys may be null
    const number *norm, *of_queries, *of_keys;
    Product asked, attended;  // queries, keys and values side by side
    const number *second;
    Product opened, closed;  // gate and up side by side
};

struct Model {
    int64_t layers, hidden, heads, group, dim, inner;  // `group` query heads to a key-value head
    const Layer *each;
    const number *norm;
    Attend *attend;
};

struct Kept {  // of one layer: as `attend` is given them
    number *keys, *values;
    int64_t layer, other_layer;
    const Run *runs;
    const int64_t *firsts;
};

static void normed(const number *x, const number *weight, int64_t count, float tiny, number *out) {
    float sum = 0;
    for (int64_t i = 0; i < count; i++) sum += wide(x[i]) * wide(x[i]);
    const float by = 1.0f / std::sqrt(sum / (float)count + tiny);
    for (int64_t i = 0; i < count; i++) out[i] = narrow(wide(weight[i]) * rounded(wide(x[i]) * by));
}

// A head, normed if there is a norm, and turned by its position.
static void turned(const number *x, const number *weight, float tiny, const number *cosines,
                   const number *sines, int64_t dim, number *out) {
    if (weight) {
        normed(x, weight, dim, tiny, out);
        x = out;
    }
    const int64_t half = dim / 2;
    for (int64_t d = 0; d < half; d++) {
        const float a = wide(x[d]), b = wide(x[d + half]);
        out[d] = narrow(rounded(a * wide(cosines[d])) - rounded(b * wide(sines[d])));
        out[d + half] =
            narrow(rounded(b * wide(cosines[d + half])) + rounded(a * wide(sines[d + half])));
    }
}

static void added(number *x, const number *more, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] = narrow(wide(x[i]) + wide(more[i]));
}

static void gated(const number *x, int64_t inner, number *out) {
    for (int64_t i = 0; i < inner; i++) {
        const float gate = wide(x[i]);
        const float most = -gate > 88.0f ? 88.0f : -gate;  // beyond, the power of two overflows
        out[i] = narrow(rounded(gate / (1.0f + exponential(most))) * wide(x[inner + i]));
    }
}

// x: [rows, hidden] embeddings, overwritten; cosines, sines: [rows, dim]; tiny: what norms add;
// kept: [layers]; out: [rows, hidden]; the rest as in attention.cpp.
extern "C" void step(const Model *model, float tiny, float scaling, int64_t rows, int32_t threads,
                     const int64_t *columns, const int64_t *positions, const int64_t *bases,
                     const int64_t *order, const Rows *groups, int64_t count, const Kept *kept,
                     int64_t slot, int64_t head, int64_t value_slot, int64_t value_head,
                     const int64_t *slots, const number *cosines, const number *sines,
                     number *x, number *out) {
    const int64_t hidden = model->hidden, dim = model->dim, inner = model->inner;
    const int64_t heads = model->heads, queries = heads * model->group;
    const int64_t all = (queries + 2 * heads) * dim;
    std::vector<number> memory(rows * (hidden + all + queries * dim + 2 * heads * dim +
                                       queries * dim + 3 * inner));
    number *some = memory.data(), *asked = some + rows * hidden, *query = asked + rows * all;
    number *key = query + rows * queries * dim, *value = key + rows * heads * dim;
    number *seen = value + rows * heads * dim, *open = seen + rows * queries * dim;
    number *closed = open + rows * 2 * inner;
    // Of few rows these loops take less than waking another thread.
    const bool many = threads > 1 && rows > 4;
    for (int64_t l = 0; l < model->layers; l++) {
        const Layer &layer = model->each[l];
        const Kept &own = kept[l];
#pragma omp parallel for num_threads(threads) if (many)
        for (int64_t row = 0; row < rows; row++)
            normed(x + row * hidden, layer.norm, hidden, tiny, some + row * hidden);
        layer.asked(rows, threads, some, asked);
#pragma omp parallel for num_threads(threads) if (many)
        for (int64_t row = 0; row < rows; row++) {
            const number *from = asked + row * all;
            const number *c = cosines + row * dim, *s = sines + row * dim;
            for (int64_t h = 0; h < queries; h++)
                turned(from + h * dim, layer.of_queries, tiny, c, s, dim,
                       query + (row * queries + h) * dim);
            from += queries * dim;
            for (int64_t h = 0; h < heads; h++)
                turned(from + h * dim, layer.of_keys, tiny, c, s, dim,
                       key + (row * heads + h) * dim);
            memcpy(value + row * heads * dim, from + heads * dim, heads * dim * sizeof(number));
        }
        model->attend(rows, threads, columns, own.firsts, positions, bases, order, groups, count,
                      own.runs, own.layer, own.other_layer, query, key, value, own.keys, own.values,
                      slot, head, value_slot, value_head, scaling, 0, nullptr, nullptr, nullptr,
                      nullptr, 0, nullptr, slots, seen);
        layer.attended(rows, threads, seen, some);
#pragma omp parallel for num_threads(threads) if (many)
        for (int64_t row = 0; row < rows; row++) {
            added(x + row * hidden, some + row * hidden, hidden);
            normed(x + row * hidden, layer.second, hidden, tiny, some + row * hidden);
        }
        layer.opened(rows, threads, some, open);
#pragma omp parallel for num_threads(threads) if (many)
        for (int64_t row = 0; row < rows; row++)
            gated(open + row * 2 * inner, inner, closed + row * inner);
        layer.closed(rows, threads, closed, some);
#pragma omp parallel for num_threads(threads) if (many)
        for (int64_t row = 0; row < rows; row++)
            added(x + row * hidden, some + row * hidden, hidden);
    }
    for (int64_t row = 0; row < rows; row++)
        normed(x + row * hidden, model->norm, hidden, tiny, out + row * hidden);
}
