// Attention of many tokens of each of some texts, in place: their keys and values are written to the
// memory of the text, and each looks at all before it and itself. Half of all pairs of a text's tokens
// are not computed, and nothing is padded or masked but where a token's own keys end.

#include <vector>

#include "flash.h"
#include "attend.h"

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
    const int64_t *firsts;
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
    auto token = [&](int n) { return (start + n) / GROUP; };  // of the job
    auto first = [&](int n) { return call.firsts ? (float)call.firsts[job.first + token(n)] : 0; };
    auto column = [&](int n) { return job.column + token(n); };
    for (int n = 0; n < count; n++) {
        const float *sink = call.sinks ? call.sinks + head * GROUP + (start + n) % GROUP : nullptr;
        all.ask(n, call.query + place(n) * DIM, call.scaling);
        all.seen(n, sink ? *sink : -INFINITY, sink ? 1.0f : 0.0f);
        all.looks(n, first(n), first(n), (float)(own.start + column(n)));
    }
    for (int64_t run = job.run; run < job.runs; run++) {
        const bool last = run == job.runs - 1;
        const Place keys = place_of(call.runs[run], call.layer, call.other_layer, head);
        all.look(keys.keys, keys.values, keys.start, last ? column(count - 1) + 1 : keys.count,
                 first(0), first(count - 1), 0, last ? (float)(own.start + column(0)) : INFINITY, call.softcap);
    }
    for (int n = 0; n < count; n++)
        for (int d = 0; d < WIDE; d++)
            call.out[place(n) * WIDE + d] = narrow(all.of(n, d) / all.weight(n));
}

#if FLASH
// As `causal`.
static void by_matrices(const Filling &call, const Job &job, int64_t start, int count, int64_t head,
                        flash::Together *team) {
    flash::Together &all = team[omp_get_thread_num()];
    const Run &own = call.runs[job.runs - 1];
    all.columns = (count + LANES - 1) / LANES;
    int64_t places[flash::AT_ONCE];
    for (int v = 0; v < all.columns; v++) {
        const number *asked[LANES];
        for (int i = 0; i < LANES; i++) {  // behind the last, once more
            const int n = v * LANES + i < count ? v * LANES + i : count - 1;
            const int64_t token = (start + n) / GROUP, g = (start + n) % GROUP;
            places[v * LANES + i] = ((job.first + token) * HEADS + head) * GROUP + g;
            asked[i] = call.query + places[v * LANES + i] * DIM;
        }
        all.ask(v, asked, call.scaling);
        for (int i = 0; i < LANES; i++) {
            const int64_t place = places[v * LANES + i], token = place / (HEADS * GROUP);
            if (call.sinks) all.seen(v * LANES + i, call.sinks[place % (HEADS * GROUP)], 1);
            all.looks(v * LANES + i, call.firsts ? (float)call.firsts[token] : 0, 0,
                      (float)(own.start + job.column + token - job.first));
        }
    }
    const float earliest = call.firsts ? (float)call.firsts[job.first + start / GROUP] : 0;
    const int64_t columns = job.column + (start + count - 1) / GROUP + 1;
    matrices::begin();
    for (int64_t run = job.run; run < job.runs; run++) {
        const Place keys = place_of(call.runs[run], call.layer, call.other_layer, head);
        all.look(keys.keys, keys.values, keys.start, run == job.runs - 1 ? columns : keys.count,
                 earliest, 0, 0, 0, call.softcap);
    }
    _tile_release();
    for (int v = 0; v < all.columns; v++) {
        number *out[LANES];
        for (int i = 0; i < LANES; i++) out[i] = call.out + places[v * LANES + i] * WIDE;
        all.answer(v, count - v * LANES < LANES ? count - v * LANES : LANES, out);
    }
}
#else
static void by_matrices(const Filling &, const Job &, int64_t, int, int64_t, flash::Together *) {}
#endif

static bool finite(const number *x, int64_t count) {
    whole wrong = {};
    over(count, [&](int64_t i, int64_t left) {
        wrong |= ((whole)taken(x + i, left) & 0x7f800000) == 0x7f800000;
    });
    for (int i = 1; i < LANES; i++) wrong[0] |= wrong[i];
    return !wrong[0];
}

// Many tokens of each of some texts: writes their keys and values, and attends, each to all before
// it and itself.
// query: [tokens, HEADS * GROUP, DIM]; key and value: [tokens, HEADS, DIM or WIDE]; firsts: [tokens]
// the first position that each looks at, or null for the beginning of its text; out: as query, WIDE
// numbers each, perhaps in the same place. runs, layer, other_layer, softcap, sinks: as in
// attention.cpp, as what it returns; keys and values of a job's last run are those of its memory, which
// has room for them.
extern "C" int32_t fill(int32_t threads, const Job *jobs, int64_t count, const Run *runs, int64_t layer,
                     int64_t other_layer, const number *query, const number *key,
                     const number *value, float scaling, float softcap, const float *sinks,
                     const int64_t *firsts, number *out) {
    const Filling call = {jobs,  runs,    layer,   other_layer, query,  key,
                          value, scaling, softcap, sinks,       firsts, out};
    return told([&] {
        // Many queries at a time, but not so many that threads would have nothing to do.
        int64_t total = 0;
        for (int64_t at = 0; at < count; at++) total += (jobs[at].stop - jobs[at].first) * GROUP;
        const int64_t fair = total * HEADS / (4 * threads) / LANES * LANES;
        const bool matrices = flash::able(scaling);
        const int64_t few = MOST * LANES, many = flash::AT_ONCE;
        const int64_t most = !matrices || fair < few ? few : fair < many ? fair : many;
        struct Item {
            int64_t job, start;
            int count;
        };
        std::vector<Item> items;
        for (int64_t at = 0; at < count; at++) {
            const int64_t tokens = jobs[at].stop - jobs[at].first, each = HEADS * WIDE;
            // Nothing times what is not finite is not nothing: then no token meets values behind it.
            const bool alone = !finite(value + jobs[at].first * each, tokens * each);
            for (int64_t start = 0, some; start < tokens * GROUP; start += some) {
                const int64_t left = alone ? GROUP - start % GROUP : tokens * GROUP - start;
                some = left < most ? left : most;
                items.push_back({at, start, (int)some});
            }
        }
        flash::Together *team = matrices ? flash::team.of(threads) : nullptr;
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
                if (matrices)
                    by_matrices(call, jobs[item.job], item.start, item.count, head, team);
                else if (item.count > 2 * LANES)
                    causal<3>(call, jobs[item.job], item.start, item.count, head);
                else if (item.count > LANES)
                    causal<2>(call, jobs[item.job], item.start, item.count, head);
                else
                    causal<1>(call, jobs[item.job], item.start, item.count, head);
            }
        }
    });
}

static Fill *const as_declared [[maybe_unused]] = fill;
