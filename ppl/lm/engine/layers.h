// Layers of models of the Llama kind between their attention: the products (`products.cpp`,
// `int8.cpp`), which are called by address, and the loops between these.
//
// In bfloat16 results are rounded where the model's own operations round, so that nothing but the
// order of sums differs.
//
// Compiled for one kind: HALF for bfloat16 (else float32).

#pragma once

#include <cstdlib>

#include "vectors.h"

#include "attend.h"
#include "lowrank.h"

typedef int32_t Multiply(int64_t, int64_t, int64_t, int64_t, int64_t, int32_t, const number *,
                      const void *, const float *, number *);
typedef int32_t MultiplyEight(int64_t, int64_t, int64_t, int32_t, int32_t, const void *, const void *,
                           const float *, const float *, void *);

struct Product {  // in weights of eight bits if it has scales
    void *run;
    int64_t inputs, outputs, width, tile;
    const void *weights;
    const float *scales, *bias;

    void operator()(int64_t rows, int32_t threads, const number *x, number *out) const {
        passed(scales ? ((MultiplyEight *)run)(rows, inputs, outputs, threads, HALF, x, weights, scales,
                                               bias, out)
                      : ((Multiply *)run)(rows, inputs, outputs, width, tile, threads, x, weights, bias,
                                          out));
    }
};

enum { ASKED, ATTENDED, OPENED, CLOSED, PRODUCTS };  // of a layer, as they are numbered

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
    Fill *fill;
    int64_t queries() const { return heads * group * dim; }  // numbers of all heads of a token
    int64_t keys() const { return heads * dim; }
};

static void normed(const number *x, const number *weight, int64_t count, float tiny, number *out) {
    vector squares = {};
    over(count, [&](int64_t i, int64_t left) {
        const vector some = taken(x + i, left);
        squares += some * some;
    });
    const float by = 1.0f / std::sqrt(total(squares) / (float)count + tiny);
    over(count, [&](int64_t i, int64_t left) {
        put(taken(weight + i, left) * rounded(taken(x + i, left) * by), out + i, left);
    });
}

// A head, normed if there is a norm, and turned by its position.
static void turned(const number *x, const number *weight, float tiny, const number *cosines,
                   const number *sines, int64_t dim, number *out) {
    if (weight) {
        normed(x, weight, dim, tiny, out);
        x = out;
    }
    const int64_t half = dim / 2;
    over(half, [&](int64_t d, int64_t left) {
        const int64_t e = d + half;
        const vector a = taken(x + d, left), b = taken(x + e, left);
        const vector one = taken(cosines + d, left), other = taken(cosines + e, left);
        put(rounded(a * one) - rounded(b * taken(sines + d, left)), out + d, left);
        put(rounded(b * other) + rounded(a * taken(sines + e, left)), out + e, left);
    });
}

static void added(number *x, const number *more, int64_t count) {
    over(count, [&](int64_t i, int64_t left) {
        put(taken(x + i, left) + taken(more + i, left), x + i, left);
    });
}

static void gated(const number *x, int64_t inner, number *out) {
    over(inner, [&](int64_t i, int64_t left) {
        const vector gate = taken(x + i, left), some = exponentials(gate > 0 ? -gate : gate);
        const vector open = (gate > 0 ? vector{} + 1.0f : some) * inverse(1.0f + some);
        put(rounded(gate * open) * taken(x + inner + i, left), out + i, left);
    });
}

// Memory for numbers between operations, each at the beginning of a line of the cache: the units for
// whole matrices read by lines.
struct Memory {
    number *start, *next;
    static int64_t lines(int64_t numbers) { return (numbers * (int64_t)sizeof(number) + 63) / 64; }

    // Of so many of these sizes.
    template <typename... Sizes> Memory(int64_t rows, Sizes... sizes) {
        const int64_t all = (lines(rows * sizes) + ...);
        start = next = (number *)aligned_alloc(64, (all ? all : 1) * 64);
        if (!start) throw std::bad_alloc();
    }
    Memory(const Memory &) = delete;
    ~Memory() { free(start); }

    number *of(int64_t numbers) {
        number *here = next;
        next += lines(numbers) * 64 / sizeof(number);
        return here;
    }
};

// What some rows need from attention to attention.
struct Between {
    const Model &model;
    float tiny;
    const Beside *beside;  // null where no row has an adapter
    const int32_t threads;
    Memory memory;
    number *some, *asked, *open, *closed;

    Between(const Model &model, float tiny, const Beside *beside, int64_t rows, int32_t threads)
        : model(model), tiny(tiny), beside(beside), threads(threads),
          memory(rows, model.hidden, model.queries() + 2 * model.keys(), 2 * model.inner, model.inner),
          some(memory.of(rows * model.hidden)),
          asked(memory.of(rows * (model.queries() + 2 * model.keys()))),
          open(memory.of(rows * 2 * model.inner)), closed(memory.of(rows * model.inner)) {}

    // Of few rows these loops take less than waking another thread.
    template <typename F> void each(int64_t count, const F &f) const {
        const bool many = threads > 1 && count > 4;
#pragma omp parallel for num_threads(threads) if (many)
        for (int64_t row = 0; row < count; row++) f(row);
    }

    // One of a layer's products, of `count` rows of the pass from the first on.
    void multiply(const Layer &layer, const Product &product, int which, int64_t first, int64_t count,
                  const number *x, number *out) const {
        product(count, threads, x, out);
        if (beside)
            add_beside(*beside, (&layer - model.each) * PRODUCTS + which, product.inputs, product.outputs,
                       first, count, threads, x, out);
    }

    // Queries, keys and values of `count` rows from the first on, which attention takes.
    void ask(const Layer &layer, int64_t first, int64_t count, const number *x, const number *cosines,
             const number *sines, number *query, number *key, number *value) const {
        const int64_t hidden = model.hidden, dim = model.dim, heads = model.heads;
        const int64_t queries = heads * model.group, all = (queries + 2 * heads) * dim;
        each(count, [&](int64_t row) {
            normed(x + row * hidden, layer.norm, hidden, tiny, some + row * hidden);
        });
        multiply(layer, layer.asked, ASKED, first, count, some, asked);
        each(count, [&](int64_t row) {
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
        });
    }

    // The rest of the layer, with what attention has seen.
    void go_on(const Layer &layer, int64_t first, int64_t count, const number *seen, number *x) const {
        const int64_t hidden = model.hidden, inner = model.inner;
        multiply(layer, layer.attended, ATTENDED, first, count, seen, some);
        each(count, [&](int64_t row) {
            added(x + row * hidden, some + row * hidden, hidden);
            normed(x + row * hidden, layer.second, hidden, tiny, some + row * hidden);
        });
        multiply(layer, layer.opened, OPENED, first, count, some, open);
        each(count, [&](int64_t row) {
            gated(open + row * 2 * inner, inner, closed + row * inner);
        });
        multiply(layer, layer.closed, CLOSED, first, count, closed, some);
        each(count, [&](int64_t row) { added(x + row * hidden, some + row * hidden, hidden); });
    }
};
