// Attention of one new token a row, over keys and values in place.
//
// Each row writes its new key and value into its slot and attends to what it stands on and to what
// the slot holds, from the first position that its layer looks at to its own: no mask, nothing read
// for longer neighbours. All query heads that share a key-value head pass over its keys together, a
// part at a time, with a running maximum as in FlashAttention (Dao et al. 2022, arXiv:2205.14135).
// What rows have in common is found by pointer, through a table of runs (as in PagedAttention, Kwon
// et al. 2023, arXiv:2309.06180), and read for several rows at a time (as in Hydragen, Juravsky et
// al. 2024, arXiv:2402.05099): then the queries of all of them lie side by side in vectors, so that
// a number that was read serves them all, and nothing is summed across a vector.
//
// Compiled for one model: HEADS key-value heads, GROUP query heads to each, DIM numbers a key,
// WIDE numbers a value, HALF for bfloat16 (else float32). Sums are in float32.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

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

enum { PART = 16, LANES = 16, MOST = 3 };  // keys at a time; queries a vector, and vectors

// e^x for x <= 0, to the precision of float32, in a form that compilers can vectorise: a power of
// two times a polynomial (coefficients of Cephes, S. Moshier, expf).
typedef float vector __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t whole __attribute__((vector_size(LANES * sizeof(float))));

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

static inline vector exponentials(vector x) {  // the same of so many at once
    x = x < -87.0f ? vector{} - 87.0f : x;
    const whole power = __builtin_convertvector(x * 1.44269504f - 0.5f, whole);
    const vector n = __builtin_convertvector(power, vector);
    vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * (vector)((power + 127) << 23);
}

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

// The same of several rows that look at the same keys: a query in each place of `V` vectors.
template <int V> struct Together {
    vector q[DIM][V], sum[WIDE][V], most[V], mass[V], first[V];

    // Over `count` keys and values, the first of which is at position `from`.
    void look(const number *keys, const number *values, int64_t from, int64_t count,
              float earliest, float latest, float softcap) {
        enum { AT_ONCE = V == 1 ? 16 : 8 };
        for (int64_t start = 0; start < count; start += PART) {
            const int part = count - start < PART ? (int)(count - start) : PART;
            if (from + start + part <= (int64_t)earliest) continue;  // nobody looks so far back
            alignas(64) float w[PART * (DIM > WIDE ? DIM : WIDE)];
            vector scores[PART][V];
            for (int i = 0; i < part * DIM; i++) w[i] = wide(keys[start * DIM + i]);
            for (int i = part * DIM; i < PART * DIM; i++) w[i] = 0;
            for (int t = 0; t < PART; t += AT_ONCE) {
                vector some[AT_ONCE][V] = {};
                for (int d = 0; d < DIM; d++)
#pragma GCC unroll 16
                    for (int j = 0; j < AT_ONCE; j++)
#pragma GCC unroll 3
                        for (int v = 0; v < V; v++) some[j][v] += q[d][v] * w[(t + j) * DIM + d];
                memcpy(scores[t], some, sizeof some);
            }
            if (softcap > 0)
                for (int t = 0; t < part; t++)
                    for (int v = 0; v < V; v++)
                        for (int i = 0; i < LANES; i++)
                            scores[t][v][i] = softcap * std::tanh(scores[t][v][i] / softcap);
            if ((float)(from + start) < latest)
                for (int t = 0; t < part; t++)
                    for (int v = 0; v < V; v++)
                        scores[t][v] = first[v] > (float)(from + start + t)
                                           ? vector{} - INFINITY
                                           : scores[t][v];
            for (int v = 0; v < V; v++) {
                vector top = most[v], total = {};
                for (int t = 0; t < part; t++) top = scores[t][v] > top ? scores[t][v] : top;
                top = top < -1e30f ? vector{} - 1e30f : top;  // who has looked at nothing yet
                for (int t = 0; t < part; t++) {
                    scores[t][v] = exponentials(scores[t][v] - top);
                    total += scores[t][v];
                }
                const vector shrink = exponentials(most[v] - top);
                most[v] = top;
                mass[v] = mass[v] * shrink + total;
                for (int d = 0; d < WIDE; d++) sum[d][v] *= shrink;
            }
            for (int i = 0; i < part * WIDE; i++) w[i] = wide(values[start * WIDE + i]);
            enum { NUMBERS = WIDE % 8 == 0 ? 8 : WIDE % 4 == 0 ? 4 : 1 };
            for (int d = 0; d < WIDE; d += NUMBERS) {
                vector some[NUMBERS][V];
                memcpy(some, sum[d], sizeof some);
                for (int t = 0; t < part; t++)
#pragma GCC unroll 8
                    for (int j = 0; j < NUMBERS; j++)
#pragma GCC unroll 3
                        for (int v = 0; v < V; v++) some[j][v] += scores[t][v] * w[t * WIDE + d + j];
                memcpy(sum[d], some, sizeof some);
            }
        }
    }
};

struct Run {  // so many keys and values: where, how far apart layers and heads are, which tokens
    int64_t keys, key_layer, key_head, values, value_layer, value_head, start, count;
};

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
    const int64_t *slots;
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
    if (!call.slots) write(call, row, head);
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

// The rest: its own slot, from own position `start` on.
static void finish(const Call &call, int64_t row, int64_t head, int64_t start, Seen &seen,
                   const float (*q)[DIM]) {
    const int64_t base = call.bases ? call.bases[row] : 0;
    const int64_t first = call.firsts[row] - base, count = call.positions[row] - base + 1;
    if (first > start) start = first;
    look(seen, q, own_keys(call, row, head) + start * DIM,
         own_values(call, row, head) + start * WIDE, count - start, call.softcap);
    number *answer = call.out + (row * HEADS + head) * GROUP * WIDE;
    for (int g = 0; g < GROUP; g++)
        for (int d = 0; d < WIDE; d++)
            answer[g * WIDE + d] = narrow(seen.sum[g][d] / seen.mass[g]);
}

// A run of keys and values, for a head.
struct Place {
    const number *keys, *values;
    int64_t start, count;
};

static Place place_of(const Call &call, const Run &run, int64_t head) {
    return {(const number *)run.keys + call.layer * run.key_layer + head * run.key_head,
            (const number *)run.values + call.other_layer * run.value_layer +
                head * run.value_head,
            run.start, run.count};
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
    auto over = [&](const Place &place) {
        int64_t skip = call.firsts[row] - place.start;
        skip = skip < 0 ? 0 : skip > place.count ? place.count : skip;
        look(seen, q, place.keys + skip * DIM, place.values + skip * WIDE, place.count - skip,
             call.softcap);
    };
    for (; run < group.runs; run++) over(place_of(call, call.runs[run], head));
    if (group.shared) over(beginning(call, group, head));
    finish(call, row, head, group.shared, seen, q);
}

template <int V>
static void side_by_side(const Call &call, const Rows &group, int64_t run, const int64_t *rows,
                         int count, int64_t head) {
    Together<V> all;
    Seen seen;
    float q[GROUP][DIM], earliest = INFINITY, latest = 0;
    memset(&all, 0, sizeof all);
    for (int row = 0; row < count; row++) {
        begin(call, rows[row], head, seen, q);
        const float first = (float)call.firsts[rows[row]];
        earliest = first < earliest ? first : earliest;
        latest = first > latest ? first : latest;
        for (int g = 0; g < GROUP; g++) {
            const int v = (row * GROUP + g) / LANES, i = (row * GROUP + g) % LANES;
            all.most[v][i] = seen.most[g];
            all.mass[v][i] = seen.mass[g];
            all.first[v][i] = first;
            for (int d = 0; d < DIM; d++) ((float *)&all.q[d][v])[i] = q[g][d];
            for (int d = 0; d < WIDE; d++) ((float *)&all.sum[d][v])[i] = seen.sum[g][d];
        }
    }
    auto over = [&](const Place &place) {
        all.look(place.keys, place.values, place.start, place.count, earliest, latest,
                 call.softcap);
    };
    for (; run < group.runs; run++) over(place_of(call, call.runs[run], head));
    if (group.shared) over(beginning(call, group, head));
    for (int row = 0; row < count; row++) {
        for (int g = 0; g < GROUP; g++) {
            const int v = (row * GROUP + g) / LANES, i = (row * GROUP + g) % LANES;
            seen.most[g] = all.most[v][i];
            seen.mass[g] = all.mass[v][i];
            for (int d = 0; d < DIM; d++) q[g][d] = ((float *)&all.q[d][v])[i];
            for (int d = 0; d < WIDE; d++) seen.sum[g][d] = ((float *)&all.sum[d][v])[i];
        }
        finish(call, rows[row], head, group.shared, seen, q);
    }
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
// weights (minus infinity for none), or null. slots: in which slot each row is, where several may be
// in one, at neighbouring positions; or null where each has its own. out: [rows, HEADS * GROUP, WIDE].
extern "C" void attend(int64_t rows, int32_t threads, const int64_t *columns,
                       const int64_t *firsts, const int64_t *positions, const int64_t *bases,
                       const int64_t *order, const Rows *groups, int64_t count, const Run *runs,
                       int64_t layer, int64_t other_layer, const number *query, const number *key,
                       const number *value, number *keys, number *values, int64_t slot,
                       int64_t head, int64_t value_slot, int64_t value_head, float scaling,
                       float softcap, const float *sinks, const float *means, const float *masses,
                       const int64_t *slots, number *out) {
    const Call call = {rows,   layer,  other_layer, columns, firsts, positions, bases,
                       order,  groups, count,       runs,    query,  key,       value,
                       keys,   values, slot,        head,    value_slot, value_head, scaling,
                       softcap, sinks, means, masses, slots, out};
    // Rows of one slot look at each other's keys: all are there before any is read.
    for (int64_t row = 0; slots && row < rows; row++)
        for (int64_t head = 0; head < HEADS; head++) write(call, row, head);
    // As many rows side by side as fill vectors, but fewer where threads would have nothing to do.
    struct Item {
        int64_t group, start;
        int count;
    };
    std::vector<Item> items;
    for (int vectors = MOST; vectors > 0; vectors--) {
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
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t at = 0; at < (int64_t)items.size() * HEADS; at++) {
        const Item item = items[at / HEADS];
        const Rows &group = groups[item.group];
        const int64_t run = item.group ? groups[item.group - 1].runs : 0, head = at % HEADS;
        const int64_t *which = order + item.start;
        const int queries = item.count * GROUP;
        if (item.count == 1 || queries > MOST * LANES)
            for (int i = 0; i < item.count; i++) alone(call, group, run, which[i], head);
        else if (queries > 2 * LANES)
            side_by_side<3>(call, group, run, which, item.count, head);
        else if (queries > LANES)
            side_by_side<2>(call, group, run, which, item.count, head);
        else
            side_by_side<1>(call, group, run, which, item.count, head);
    }
}
