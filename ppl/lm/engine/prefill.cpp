// Attention of many tokens of each of some texts, in place: their keys and values are written to the
// memory of the text, and each looks at all before it and itself. Half of all pairs of a text's tokens
// are not computed, and nothing is padded or masked but where a token's own keys end.

#include <vector>

#include "together.h"

// Tokens of a text, from `first` on, and the runs that they look at, from `run` on: the last of them
// is the memory of the text, in which the first token goes to `column`.
struct Job {
    int64_t first, stop, run, runs, column;
};

struct Filling {
    const Job *jobs;
    const Run *runs;
    int64_t layer, other_layer;
    const number *query, *key, *value;
    float scaling, softcap;
    const float *sinks;
    number *out;
};

// So many queries of a job, from number `start` on; a token's are side by side.
template <int V>
static void causal(const Filling &call, const Job &job, int64_t start, int count, int64_t head) {
    Together<V> all;
    memset(&all, 0, sizeof all);
    const Run &own = call.runs[job.runs - 1];
    auto place = [&](int n) {  // of the query, among all queries and their answers
        return ((job.first + (start + n) / GROUP) * HEADS + head) * GROUP + (start + n) % GROUP;
    };
    auto column = [&](int n) { return job.column + (start + n) / GROUP; };
    for (int n = 0; n < count; n++) {
        const int v = n / LANES, i = n % LANES;
        const float *sink = call.sinks ? call.sinks + head * GROUP + (start + n) % GROUP : nullptr;
        all.ask(n, call.query + place(n) * DIM, call.scaling);
        all.most[v][i] = sink ? *sink : -INFINITY;
        all.mass[v][i] = sink ? 1.0f : 0.0f;
        all.last[v][i] = (float)(own.start + column(n));
    }
    for (int64_t run = job.run; run < job.runs; run++) {
        const bool last = run == job.runs - 1;
        const Place keys = place_of(call.runs[run], call.layer, call.other_layer, head);
        all.look(keys.keys, keys.values, keys.start, last ? column(count - 1) + 1 : keys.count, 0, 0,
                 0, last ? (float)(own.start + column(0)) : INFINITY, call.softcap);
    }
    for (int n = 0; n < count; n++)
        for (int d = 0; d < WIDE; d++)
            call.out[place(n) * WIDE + d] =
                narrow(all.sum[d][n / LANES][n % LANES] / all.mass[n / LANES][n % LANES]);
}

// Many tokens of each of some texts: writes their keys and values, and attends, each to all before
// it and itself.
// query: [tokens, HEADS * GROUP, DIM]; key and value: [tokens, HEADS, DIM or WIDE]; out: as query,
// WIDE numbers each. runs, layer, other_layer, softcap, sinks: as above; keys and values of a job's
// last run are those of its memory, which has room for them.
extern "C" void fill(int32_t threads, const Job *jobs, int64_t count, const Run *runs, int64_t layer,
                     int64_t other_layer, const number *query, const number *key,
                     const number *value, float scaling, float softcap, const float *sinks,
                     number *out) {
    const Filling call = {jobs, runs, layer, other_layer, query, key, value, scaling, softcap, sinks, out};
    struct Item {
        int64_t job, start;
        int count;
    };
    std::vector<Item> items;
    for (int64_t at = 0; at < count; at++) {
        const int64_t queries = (jobs[at].stop - jobs[at].first) * GROUP;
        for (int64_t start = 0; start < queries; start += MOST * LANES) {
            const int64_t left = queries - start;
            items.push_back({at, start, left < MOST * LANES ? (int)left : MOST * LANES});
        }
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t at = 0; at < count * HEADS; at++) {
            const Job &job = jobs[at / HEADS];
            const int64_t head = at % HEADS;
            const Place own = place_of(runs[job.runs - 1], layer, other_layer, head);
            number *keys = (number *)own.keys + job.column * DIM;
            number *values = (number *)own.values + job.column * WIDE;
            for (int64_t token = job.first; token < job.stop; token++, keys += DIM, values += WIDE) {
                memcpy(keys, key + (token * HEADS + head) * DIM, DIM * sizeof(number));
                memcpy(values, value + (token * HEADS + head) * WIDE, WIDE * sizeof(number));
            }
        }
        // The last queries of a text look at most: they come first.
#pragma omp for schedule(dynamic, 1)
        for (int64_t at = (int64_t)items.size() * HEADS - 1; at >= 0; at--) {
            const Item item = items[at / HEADS];
            const int64_t head = at % HEADS;
            if (item.count > 2 * LANES)
                causal<3>(call, jobs[item.job], item.start, item.count, head);
            else if (item.count > LANES)
                causal<2>(call, jobs[item.job], item.start, item.count, head);
            else
                causal<1>(call, jobs[item.job], item.start, item.count, head);
        }
    }
}
