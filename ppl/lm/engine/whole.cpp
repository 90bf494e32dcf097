// Models of the Llama kind as one program, from embeddings to last hidden states: a decode step, and a
// pass over many tokens of some texts.
//
// A step of one row is a thousand small operations besides its products; in Python and torch they
// take longer than these. Of many tokens they read and write memory more often than the products do:
// here some tokens at a time go from attention to attention, and what they leave stays in the cache.
// Products (`products.cpp`, `int8.cpp`) and attention (`attention.cpp`, `prefill.cpp`) are called by
// address.
//
// Compiled for one kind: HALF for bfloat16 (else float32).

#include <deque>

#include <omp.h>

#include "layers.h"

struct Kept {  // of one layer: as `attend` is given them, and `fill`
    number *keys, *values;
    int64_t layer, other_layer;
    const Run *runs;
    const int64_t *firsts;
};

// x: [rows, hidden] embeddings, overwritten; cosines, sines: [rows, dim]; tiny: what norms add;
// kept: [layers]; beside: what rows have beside the weights, or null; out: [rows, hidden]; the rest as in
// attention.cpp, and what it returns.
extern "C" int32_t step(const Model *model, float tiny, float scaling, int64_t rows, int32_t threads,
                     const int64_t *columns, const int64_t *positions, const int64_t *bases,
                     const int64_t *order, const Rows *groups, int64_t count, const Kept *kept,
                     int64_t slot, int64_t head, int64_t value_slot, int64_t value_head,
                     const Beside *beside, const int64_t *slots, const number *cosines,
                     const number *sines, number *x, number *out) {
    return told([&] {
        const int64_t queries = model->queries(), keys = model->keys(), hidden = model->hidden;
        const Between between(*model, tiny, beside, rows, threads);
        Memory memory(rows, queries, keys, keys, queries);
        number *query = memory.of(rows * queries), *key = memory.of(rows * keys);
        number *value = memory.of(rows * keys), *seen = memory.of(rows * queries);
        for (int64_t l = 0; l < model->layers; l++) {
            const Layer &layer = model->each[l];
            const Kept &own = kept[l];
            between.ask(layer, 0, rows, x, cosines, sines, query, key, value);
            passed(model->attend(rows, threads, columns, own.firsts, positions, bases, order, groups, count,
                          own.runs, own.layer, own.other_layer, query, key, value, own.keys, own.values,
                          slot, head, value_slot, value_head, scaling, 0, nullptr, nullptr, nullptr,
                          nullptr, 0, nullptr, slots, seen));
            between.go_on(layer, 0, rows, seen, x);
        }
        for (int64_t row = 0; row < rows; row++)
            normed(x + row * hidden, model->norm, hidden, tiny, out + row * hidden);
    });
}

enum { MOST_AT_ONCE = 256, LEAST_AT_ONCE = 64, MULTIPLE = 32 };  // rows from attention to attention

// The same of many tokens, `rows` in all, of some texts, whose runs are in `kept`; jobs as in
// prefill.cpp. Where there are enough, each thread takes some of them by itself.
extern "C" int32_t texts(const Model *model, float tiny, float scaling, int64_t rows, int32_t threads,
                      const Job *jobs, int64_t count, const Kept *kept, const Beside *beside,
                      const number *cosines, const number *sines, number *x, number *out) {
    return told([&] {
        const int64_t queries = model->queries(), keys = model->keys();
        const int64_t hidden = model->hidden, dim = model->dim;
        const bool apart = rows >= threads * LEAST_AT_ONCE;
        const int64_t workers = apart ? threads : 1, most = workers * MOST_AT_ONCE;
        const int64_t parts = (rows + most - 1) / most * workers;
        const int64_t size = ((rows + parts - 1) / parts + MULTIPLE - 1) / MULTIPLE * MULTIPLE;
        Memory memory(rows, queries, keys, keys);
        number *query = memory.of(rows * queries), *key = memory.of(rows * keys);
        number *value = memory.of(rows * keys);
        std::deque<Between> own;
        for (int64_t i = 0; i < workers; i++)
            own.emplace_back(*model, tiny, beside, size, apart ? 1 : threads);
        int32_t said = DONE;
        // From the attention of one layer, if there is one before, to that of the next.
        auto between = [&](const Between &layers, int64_t l, int64_t first) {
            const int64_t some = rows - first < size ? rows - first : size;
            number *own = x + first * hidden;
            if (l) layers.go_on(model->each[l - 1], first, some, query + first * queries, own);
            if (l < model->layers)
                layers.ask(model->each[l], first, some, own, cosines + first * dim, sines + first * dim,
                           query + first * queries, key + first * keys, value + first * keys);
            for (int64_t row = 0; l == model->layers && row < some; row++)
                normed(own + row * hidden, model->norm, hidden, tiny, out + (first + row) * hidden);
        };
        for (int64_t l = 0; l <= model->layers; l++) {
            if (apart) {
#pragma omp parallel num_threads(threads)
                {
                    const Between &layers = own[omp_get_thread_num()];
#pragma omp for schedule(dynamic, 1)
                    for (int64_t first = 0; first < rows; first += size)
                        if (told([&] { between(layers, l, first); })) {
#pragma omp atomic write
                            said = NO_MEMORY;
                        }
                }
                passed(said);
            } else {  // not in a parallel region of one: threads within it would be made anew each time
                for (int64_t first = 0; first < rows; first += size) between(own[0], l, first);
            }
            if (l < model->layers)  // what each has seen takes the place of its query
                passed(model->fill(threads, jobs, count, kept[l].runs, kept[l].layer, kept[l].other_layer, query,
                            key, value, scaling, 0, nullptr, kept[l].firsts, query));
        }
    });
}
