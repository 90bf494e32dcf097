// Several decode steps, each of the tokens that were drawn after the one before: the step itself
// (`whole.cpp`), the head (`products.cpp`, `int8.cpp`) and the draw (`draw.cpp`) are called by address.
//
// Compiled for one kind: HALF for bfloat16 (else float32).

#include <vector>

#include "layers.h"

typedef int32_t Step(const void *model, float tiny, float scaling, int64_t rows, int32_t threads,
                     const int64_t *columns, const int64_t *positions, const int64_t *bases,
                     const int64_t *order, const void *groups, int64_t count, const void *kept,
                     int64_t slot, int64_t head, int64_t value_slot, int64_t value_head,
                     const void *beside, const int64_t *slots, const number *cosines,
                     const number *sines, number *x, number *out);
typedef int32_t Draw(int32_t threads, int64_t rows, int64_t size, int64_t stride, const number *logits,
                     const double *uniforms, int64_t *tokens, double *log_probs);

struct Burst {
    Step *step;
    Draw *draw;
    Product head;  // from last hidden states to logits
    const number *embedding;  // [tokens, hidden]
    int64_t dim;              // of a head of attention: numbers of a cosine
};

// Up to `most` steps, the first of the tokens `ids`: [rows], then of those that were drawn.
// columns, positions: [rows] of the first step; they go on with it. cosines, sines: [most, rows, dim].
// states: where last hidden states of slot 0 go, slots `row` and columns `column` numbers apart.
// slots: [rows] the slot of each. steps: [rows] how many each may make.
// of: [draws] the row that each draws from. Where two of a row draw different tokens, it ends.
// pauses: [draws] of each which tokens it may end with, [outputs]. With one of these, or where it has
// no distribution, or has made its steps, a row pauses, and makes its last step again and again: as
// many of these, of all rows together, as are `idle`.
// temperatures: [draws] by which logits are divided; null where they are not.
// uniforms, tokens, log_probs: [most, draws]. drawn: [rows] how many tokens each has drawn, 0 now.
// logits: [rows, outputs]. read: [draws, outputs] for what each draws from; null where each row has one
// that draws, in their order, and nothing is divided. x, out: [rows, hidden].
// Returns how many steps it made, or as in shortage.h.
extern "C" int64_t burst(const Burst *model, int64_t most, int64_t idle, number *states, int64_t row,
                         int64_t column, int64_t draws, const int64_t *of,
                         const uint8_t *const *pauses, const int64_t *steps,
                         const float *temperatures, const double *uniforms, int64_t *ids,
                         int64_t *tokens, double *log_probs, int64_t *drawn, number *logits,
                         number *read, const void *whole, float tiny, float scaling, int64_t rows,
                         int32_t threads,
                         int64_t *columns, int64_t *positions, const int64_t *bases,
                         const int64_t *order, const void *groups, int64_t count, const void *kept,
                         int64_t slot, int64_t head, int64_t value_slot, int64_t value_head,
                         const void *beside, const int64_t *slots, number *cosines, number *sines,
                         number *x, number *out) {
    int64_t steps_made = 0;
    const int32_t said = told([&] {
        const Product &last = model->head;
        const int64_t hidden = last.inputs, size = last.outputs, dim = model->dim;
        std::vector<bool> going(rows), over(rows);
        std::vector<int64_t> next(rows);
        int64_t left = 0, paused = 0;
        for (int64_t r = 0; r < rows; r++) left += going[r] = steps[r] > 0;
        for (int64_t made = 0; made < most; made++) {
            number *cosine = cosines + made * rows * dim, *sine = sines + made * rows * dim;
            for (int64_t r = 0; r < rows; r++) {
                memcpy(x + r * hidden, model->embedding + ids[r] * hidden, hidden * sizeof(number));
                if (made && !going[r]) {  // it stays where it is
                    memcpy(cosine + r * dim, cosine + (r - rows) * dim, dim * sizeof(number));
                    memcpy(sine + r * dim, sine + (r - rows) * dim, dim * sizeof(number));
                }
            }
            passed(model->step(whole, tiny, scaling, rows, threads, columns, positions, bases, order, groups,
                               count, kept, slot, head, value_slot, value_head, beside, slots, cosine, sine,
                               x, out));
            last(rows, threads, out, logits);
            for (int64_t d = 0; read && d < draws; d++) {
                const number *from = logits + of[d] * size;
                number *to = read + d * size;
                memcpy(to, from, size * sizeof(number));
                for (int64_t i = 0; temperatures && i < size; i++)
                    to[i] = narrow(wide(from[i]) / temperatures[d]);
            }
            int64_t *now = tokens + made * draws;
            double *found = log_probs + made * draws;
            passed(model->draw(threads, draws, size, size, read ? read : logits, uniforms + made * draws, now,
                               found));
            bool parted = false;
            for (int64_t r = 0; r < rows; r++) {
                next[r] = -1;
                over[r] = going[r] && ++drawn[r] == steps[r];
                if (going[r])
                    memcpy(states + slots[r] * row + columns[r] * column, out + r * hidden,
                           hidden * sizeof(number));
            }
            for (int64_t d = 0; d < draws; d++) {
                const int64_t r = of[d];
                if (!going[r]) continue;
                parted |= next[r] >= 0 && next[r] != now[d];
                next[r] = now[d];
                if (!std::isfinite(found[d]) || pauses[d][now[d]]) over[r] = true;
            }
            for (int64_t r = 0; r < rows; r++) {
                if (!going[r]) continue;
                if (over[r])
                    going[r] = false, left--, paused++;
                else
                    columns[r]++, positions[r]++, ids[r] = next[r];
            }
            steps_made = made + 1;
            if (parted || !left || paused > idle) return;
            idle -= paused;
        }
    });
    return said ? said : steps_made;
}
