// Several decode steps, each of the tokens that were drawn after the one before: the step itself
// (`whole.cpp`), the head (`products.cpp`, `int8.cpp`) and the draw (`draw.cpp`) are called by address.
//
// Compiled for one kind: HALF for bfloat16 (else float32).

#include "layers.h"

typedef void Step(const void *model, float tiny, float scaling, int64_t rows, int32_t threads,
                  const int64_t *columns, const int64_t *positions, const int64_t *bases,
                  const int64_t *order, const void *groups, int64_t count, const void *kept,
                  int64_t slot, int64_t head, int64_t value_slot, int64_t value_head,
                  const int64_t *slots, const number *cosines, const number *sines, number *x,
                  number *out);
typedef void Draw(int32_t threads, int64_t rows, int64_t size, int64_t stride, const number *logits,
                  const double *uniforms, int64_t *tokens, double *log_probs);

struct Burst {
    Step *step;
    Draw *draw;
    Product head;  // from last hidden states to logits
    const number *embedding;  // [tokens, hidden]
    int64_t dim;              // of a head of attention: numbers of a cosine
};

// Up to `most` steps. The first is of x: [rows, hidden], which is overwritten.
// columns, positions: [rows] of the first step; they go on with it. cosines, sines: [most, rows, dim].
// states: where last hidden states of row 0 go, rows `row` and columns `column` numbers apart.
// pauses: [rows] of each row which tokens it may end with, [outputs]; null for a row that is nobody's.
// temperatures: [rows] by which logits are divided; null where they are not.
// uniforms, tokens, log_probs: [most, rows]. logits: [rows, outputs]. out: [rows, hidden].
// It ends with the step after which a row may end, or has no distribution. Returns how many it made.
extern "C" int64_t burst(const Burst *model, int64_t most, number *states, int64_t row,
                         int64_t column, const uint8_t *const *pauses,
                         const float *temperatures, const double *uniforms, int64_t *tokens, double *log_probs, number *logits, const void *whole,
                         float tiny, float scaling, int64_t rows, int32_t threads, int64_t *columns,
                         int64_t *positions, const int64_t *bases, const int64_t *order,
                         const void *groups, int64_t count, const void *kept, int64_t slot,
                         int64_t head, int64_t value_slot, int64_t value_head, const number *cosines,
                         const number *sines, number *x, number *out) {
    const Product &last = model->head;
    const int64_t hidden = last.inputs, size = last.outputs;
    for (int64_t made = 0; made < most; made++) {
        const int64_t turn = made * rows * model->dim;
        if (made)
            for (int64_t r = 0; r < rows; r++)
                memcpy(x + r * hidden, model->embedding + tokens[(made - 1) * rows + r] * hidden,
                       hidden * sizeof(number));
        model->step(whole, tiny, scaling, rows, threads, columns, positions, bases, order, groups,
                    count, kept, slot, head, value_slot, value_head, nullptr, cosines + turn,
                    sines + turn, x, out);
        for (int64_t r = 0; r < rows; r++)
            memcpy(states + r * row + columns[r] * column, out + r * hidden, hidden * sizeof(number));
        last(rows, threads, out, logits);
        for (int64_t r = 0; temperatures && r < rows; r++)
            for (int64_t i = 0; i < size; i++)
                logits[r * size + i] = narrow(wide(logits[r * size + i]) / temperatures[r]);
        int64_t *drawn = tokens + made * rows;
        double *found = log_probs + made * rows;
        model->draw(threads, rows, size, size, logits, uniforms + made * rows, drawn, found);
        bool over = false;
        for (int64_t r = 0; r < rows; r++)
            over |= pauses[r] && (!std::isfinite(found[r]) || pauses[r][drawn[r]]);
        if (over) return made + 1;
        for (int64_t r = 0; r < rows; r++)
            if (pauses[r]) columns[r]++, positions[r]++;
    }
    return most;
}
