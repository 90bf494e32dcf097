// Attention of one new token a row, over keys and values in place.
//
// Each row writes its new key and value into its slot and attends to what it stands on and to what
// the slot holds, from the first position that its layer looks at to its own, and to the first ones
// of the text where these are kept beside a window: no mask, nothing read for longer neighbours. All
// query heads that share a key-value head pass over its keys together, a part at a time, with a
// running maximum as in FlashAttention (Dao et al. 2022, arXiv:2205.14135).
// What rows have in common is found by pointer, through a table of runs (as in PagedAttention, Kwon
// et al. 2023, arXiv:2309.06180), and read for several rows at a time (as in Hydragen, Juravsky et
// al. 2024, arXiv:2402.05099): then the queries of all of them lie side by side in vectors, so that
// a number that was read serves them all, and nothing is summed across a vector.

#include <algorithm>
#include <vector>

#include "flash.h"
#include "attend.h"

// What one row has seen so far: of each of its heads the largest score, and the sums of weights and
// of weighted values.
struct Seen {
    float most[GROUP], mass[GROUP], sum[GROUP][WIDE];
};

// One row goes on over `count` keys and values.
static void look(Seen &seen, const float (*q)[DIM], const number *keys, const number *values,
                 int64_t count, float softcap) {
    for (int64_t start = 0; start < count; start += PART) {
        const int part = count - start < PART ? (int)(count - start) : PART;
        const number *k = keys + start * DIM, *v = values + start * WIDE;
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
            float top = seen.most[g], total = 0;
            for (int t = 0; t < part; t++) top = scores[g][t] > top ? scores[g][t] : top;
            for (int t = 0; t < part; t++) {
                scores[g][t] = exponential(scores[g][t] - top);
                total += scores[g][t];
            }
            const float shrink = exponential(seen.most[g] - top);
            seen.most[g] = top;
            seen.mass[g] = seen.mass[g] * shrink + total;
            for (int d = 0; d < WIDE; d++) seen.sum[g][d] *= shrink;
        }
        for (int t = 0; t < part; t++) {
            for (int d = 0; d < WIDE; d++) w[d] = wide(v[t * WIDE + d]);
            for (int g = 0; g < GROUP; g++)
                for (int d = 0; d < WIDE; d++) seen.sum[g][d] += scores[g][t] * w[d];
        }
    }
}

struct Rows {  // of the order of rows up to `stop`: they have the runs up to `runs` in common, and
               // the first `shared` keys of their slots, which are those of row `source`
    int64_t stop, runs, source, shared;
};

struct Call {
    int64_t rows, layer, other_layer;
    const int64_t *columns, *firsts, *positions, *bases, *order;
    const Rows *groups;
    int64_t count;
    const Run *runs;
    const number *query, *key, *value;
    number *keys, *values;
    int64_t slot, head, value_slot, value_head;
    float scaling, softcap;
    const float *sinks, *means, *masses;
    const int64_t *lows, few, *holes, *slots;
    bool written;  // all new keys and values are in their slots
    number *out;
};

// The keys, or values, that a row's slot has of a head.
static number *own_keys(const Call &call, int64_t row, int64_t head) {
    return call.keys + (call.slots ? call.slots[row] : row) * call.slot + head * call.head;
}

static number *own_values(const Call &call, int64_t row, int64_t head) {
    return call.values + (call.slots ? call.slots[row] : row) * call.value_slot +
           head * call.value_head;
}

// The new key and value of a row goes to its slot.
static void write(const Call &call, int64_t row, int64_t head) {
    const int64_t at = row * HEADS + head, column = call.columns[row];
    memcpy(own_keys(call, row, head) + column * DIM, call.key + at * DIM, DIM * sizeof(number));
    memcpy(own_values(call, row, head) + column * WIDE, call.value + at * WIDE,
           WIDE * sizeof(number));
}

// What a row of a head has seen before it looks at any key of the table or its slot.
static void begin(const Call &call, int64_t row, int64_t head, Seen &seen, float (*q)[DIM]) {
    const int64_t at = row * HEADS + head;
    if (!call.written) write(call, row, head);
    for (int g = 0; g < GROUP; g++) {
        seen.most[g] = call.sinks ? call.sinks[head * GROUP + g] : -INFINITY;
        seen.mass[g] = call.sinks ? 1.0f : 0.0f;
        const number *asked = call.query + (at * GROUP + g) * DIM;
        for (int d = 0; d < DIM; d++) q[g][d] = wide(asked[d]) * call.scaling;
        for (int d = 0; d < WIDE; d++) seen.sum[g][d] = 0;
        const float other = call.means ? call.masses[at * GROUP + g] : -INFINITY;
        if (other != -INFINITY) {
            const float top = other > seen.most[g] ? other : seen.most[g];
            const float weight = exponential(other - top);
            seen.mass[g] = seen.mass[g] * exponential(seen.most[g] - top) + weight;
            seen.most[g] = top;
            for (int d = 0; d < WIDE; d++)
                seen.sum[g][d] = call.means[(at * GROUP + g) * WIDE + d] * weight;
        }
    }
}

// Of `count` keys and values from a position on, those at which the row looks.
static void over(const Call &call, int64_t row, Seen &seen, const float (*q)[DIM],
                 const number *keys, const number *values, int64_t from, int64_t count) {
    auto between = [&](int64_t start, int64_t stop) {
        start = start < from ? from : start;
        stop = stop > from + count ? from + count : stop;
        if (start < stop)
            look(seen, q, keys + (start - from) * DIM, values + (start - from) * WIDE,
                 stop - start, call.softcap);
    };
    const int64_t first = call.firsts[row];
    if (call.lows) between(call.lows[row], call.few < first ? call.few : first);
    between(first, from + count);
}

// The rest: its own slot, from own position `start` on.
static void finish(const Call &call, int64_t row, int64_t head, int64_t start, Seen &seen,
                   const float (*q)[DIM]) {
    const int64_t base = call.bases ? call.bases[row] : 0;
    const number *keys = own_keys(call, row, head);
    const number *values = own_values(call, row, head);
    int64_t stop = call.positions[row] - base + 1;
    if (call.holes && call.holes[2 * row + 1]) {
        const int64_t at = call.holes[2 * row], lost = call.holes[2 * row + 1];
        const int64_t behind = start > at ? start : at;
        over(call, row, seen, q, keys + behind * DIM, values + behind * WIDE, base + behind + lost,
             stop - lost - behind);
        stop = at < stop ? at : stop;
    }
    over(call, row, seen, q, keys + start * DIM, values + start * WIDE, base + start, stop - start);
    number *answer = call.out + (row * HEADS + head) * GROUP * WIDE;
    for (int g = 0; g < GROUP; g++)
        for (int d = 0; d < WIDE; d++)
            answer[g * WIDE + d] = narrow(seen.sum[g][d] / seen.mass[g]);
}

// What rows of a group have in common in their slots, as a run.
static Place beginning(const Call &call, const Rows &group, int64_t head) {
    return {own_keys(call, group.source, head), own_values(call, group.source, head),
            call.bases ? call.bases[group.source] : 0, group.shared};
}

static void alone(const Call &call, const Rows &group, int64_t run, int64_t row, int64_t head) {
    Seen seen;
    float q[GROUP][DIM];
    begin(call, row, head, seen, q);
    auto whole = [&](const Place &place) {
        over(call, row, seen, q, place.keys, place.values, place.start, place.count);
    };
    for (; run < group.runs; run++)
        whole(place_of(call.runs[run], call.layer, call.other_layer, head));
    if (group.shared) whole(beginning(call, group, head));
    finish(call, row, head, group.shared, seen, q);
}

// So many rows as `All` has places.
template <typename All>
static void side_by_side(const Call &call, const Rows &group, int64_t run, const int64_t *rows,
                         int count, int64_t head, All &all) {
    Seen seen;
    float q[GROUP][DIM], earliest = INFINITY, latest = 0;
    auto asked = [&](int row) { return call.query + (rows[row] * HEADS + head) * GROUP * DIM; };
    for (int row = 0; row < count; row++) {
        begin(call, rows[row], head, seen, q);
        const float first = (float)call.firsts[rows[row]];
        const float low = call.lows ? (float)call.lows[rows[row]] : first;
        earliest = first < earliest ? first : earliest;
        latest = first > latest ? first : latest;
        for (int g = 0; g < GROUP; g++) {
            const int place = row * GROUP + g;
            all.ask(place, asked(row) + g * DIM, call.scaling);
            all.seen(place, seen.most[g], seen.mass[g]);
            all.looks(place, first, low, EVER);
            for (int d = 0; d < WIDE; d++) all.of(place, d) = seen.sum[g][d];
        }
    }
    auto over = [&](const Place &place) {
        all.look(place.keys, place.values, place.start, place.count, earliest, latest, call.few,
                 EVER, call.softcap);
    };
    for (; run < group.runs; run++)
        over(place_of(call.runs[run], call.layer, call.other_layer, head));
    if (group.shared) over(beginning(call, group, head));
    for (int row = 0; row < count; row++) {
        for (int g = 0; g < GROUP; g++) {
            const int place = row * GROUP + g;
            seen.most[g] = all.top(place);
            seen.mass[g] = all.weight(place);
            for (int d = 0; d < DIM; d++) q[g][d] = wide(asked(row)[g * DIM + d]) * call.scaling;
            for (int d = 0; d < WIDE; d++) seen.sum[g][d] = all.of(place, d);
        }
        finish(call, rows[row], head, group.shared, seen, q);
    }
}

template <int V>
static void by_vectors(const Call &call, const Rows &group, int64_t run, const int64_t *rows,
                       int count, int64_t head) {
    Together<V> all;
    memset(&all, 0, sizeof all);
    side_by_side(call, group, run, rows, count, head, all);
}

static void by_matrices(const Call &call, const Rows &group, int64_t run, const int64_t *rows,
                        int count, int64_t head, flash::Together *team) {
#if FLASH
    flash::Together &all = team[omp_get_thread_num()];
    all.columns = (count * GROUP + LANES - 1) / LANES;
    all.clear();
    matrices::begin();
    side_by_side(call, group, run, rows, count, head, all);
    _tile_release();
#endif
}

// Whether two rows are in one slot.
static bool repeats(const int64_t *slots, int64_t rows) {
    std::vector<int64_t> sorted(slots, slots + rows);
    std::sort(sorted.begin(), sorted.end());
    return std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
}

// query: [rows, HEADS * GROUP, DIM]; key and value: [rows, HEADS, DIM or WIDE], of the new tokens.
// keys, values: the slots of the rows, `slot` numbers apart, and their heads, `head` numbers apart.
// columns: where each row's new key goes; firsts, positions: the first and last that it looks at;
// bases: the position of the first key of its slot, or null where it is 0 for all.
// order: the rows, those of a group side by side; groups, runs: what is common, of the keys at
// `layer` and values at `other_layer` of what a run points to.
// softcap: scores s become softcap * tanh(s / softcap), if it is not 0. sinks: for each query head
// the score of a key without a value, or null. means [rows, HEADS * GROUP, WIDE] and masses
// [rows, HEADS * GROUP]: what attention to other keys gave, and the logarithms of the sums of their
// weights (minus infinity for none), or null. lows: the first position that each row looks at of the
// `few` first ones, which it sees besides those from `firsts` on, or null where it sees none besides.
// holes [rows, 2]: behind so many keys of its slot, so many tokens have none; or null. slots: in which
// slot each row is, where several may be in one, at neighbouring positions; or null where each has
// its own. out: [rows, HEADS * GROUP, WIDE]. Returns as in shortage.h.
extern "C" int32_t attend(int64_t rows, int32_t threads, const int64_t *columns,
                       const int64_t *firsts, const int64_t *positions, const int64_t *bases,
                       const int64_t *order, const Rows *groups, int64_t count, const Run *runs,
                       int64_t layer, int64_t other_layer, const number *query, const number *key,
                       const number *value, number *keys, number *values, int64_t slot,
                       int64_t head, int64_t value_slot, int64_t value_head, float scaling,
                       float softcap, const float *sinks, const float *means, const float *masses,
                       const int64_t *lows, int64_t few, const int64_t *holes,
                       const int64_t *slots, number *out) {
    return told([&] {
        // Rows of one slot look at each other's keys: all are there before any is read.
        const bool together = slots && repeats(slots, rows);
        const Call call = {rows,   layer,  other_layer, columns, firsts, positions, bases,
                           order,  groups, count,       runs,    query,  key,       value,
                           keys,   values, slot,        head,    value_slot, value_head, scaling,
                           softcap, sinks, means, masses, lows, few, holes, slots, together, out};
        for (int64_t row = 0; together && row < rows; row++)
            for (int64_t head = 0; head < HEADS; head++) write(call, row, head);
        // As many rows side by side as fill vectors, but fewer where threads would have nothing to do.
        struct Item {
            int64_t group, start;
            int count;
        };
        std::vector<Item> items;
        const bool matrices = flash::able(scaling) && !lows;
        const int by_tiles = flash::COLUMNS, by_themselves = MOST;
        for (int vectors = matrices ? by_tiles : by_themselves; vectors > 0; vectors--) {
            const int most = vectors * LANES / GROUP > 1 ? vectors * LANES / GROUP : 1;
            items.clear();
            for (int64_t g = 0, start = 0; g < count; g++) {
                const bool common = groups[g].runs > (g ? groups[g - 1].runs : 0) || groups[g].shared;
                for (int64_t step; start < groups[g].stop; start += step) {
                    const int64_t left = groups[g].stop - start;
                    step = !common ? 1 : left < most ? left : most;
                    items.push_back({g, start, (int)step});
                }
            }
            if ((int64_t)items.size() * HEADS >= 3 * threads) break;
        }
        flash::Together *team = matrices ? flash::team.of(threads) : nullptr;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t at = 0; at < (int64_t)items.size() * HEADS; at++) {
            const Item item = items[at / HEADS];
            const Rows &group = groups[item.group];
            const int64_t run = item.group ? groups[item.group - 1].runs : 0, head = at % HEADS;
            const int64_t *which = order + item.start;
            const int queries = item.count * GROUP;
            if (matrices && item.count > 1 && queries <= flash::AT_ONCE)
                by_matrices(call, group, run, which, item.count, head, team);
            else if (item.count == 1 || queries > MOST * LANES)
                for (int i = 0; i < item.count; i++) alone(call, group, run, which[i], head);
            else if (queries > 2 * LANES)
                by_vectors<3>(call, group, run, which, item.count, head);
            else if (queries > LANES)
                by_vectors<2>(call, group, run, which, item.count, head);
            else
                by_vectors<1>(call, group, run, which, item.count, head);
        }
    });
}

static Attend *const as_declared [[maybe_unused]] = attend;
