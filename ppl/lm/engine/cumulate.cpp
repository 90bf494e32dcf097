// An index for each row of probabilities, by inverting its cumulative distribution at a uniform
// number, with the very numbers of the library: each row is added up in double precision from its
// first entry to its last. Rows are independent, so several are added up side by side, as one
// addition has to wait for the one before it in the same row.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "shortage.h"

// Digits count here: no sum may be taken in another order.
#if defined(__clang__)
#pragma clang fp reassociate(off)
#else
#pragma GCC optimize("no-associative-math")
#endif

enum { SIDE = 8 };

// probs: [rows, size]. table: [4, rows] uniforms in (0, 1), and what is written: indices, their
// probabilities, and the sums of the rows. A row of NaN gets its last index.
extern "C" int32_t cumulate(int64_t rows, int64_t size, const float *probs, double *table) {
    double *uniforms = table, *indices = table + rows, *drawn = table + 2 * rows;
    double *totals = table + 3 * rows;
    std::vector<double> sums;
    if (told([&] { sums.resize(SIDE * size); })) return NO_MEMORY;
    for (int64_t first = 0; first < rows; first += SIDE) {
        const int64_t count = std::min<int64_t>(SIDE, rows - first);
        const float *row[SIDE];
        for (int64_t k = 0; k < SIDE; k++) row[k] = probs + (first + std::min(k, count - 1)) * size;
        double total[SIDE] = {};
        for (int64_t i = 0; i < size; i++)
            for (int k = 0; k < SIDE; k++) sums[k * size + i] = total[k] += row[k][i];
        for (int64_t k = 0; k < count; k++) {
            const double *from = sums.data() + k * size;
            const double wanted = uniforms[first + k] * total[k];
            const int64_t above = std::upper_bound(from, from + size, wanted) - from;
            const int64_t found = std::min(above, size - 1);
            indices[first + k] = found;
            drawn[first + k] = row[k][found];
            totals[first + k] = total[k];
        }
    }
    return DONE;
}
