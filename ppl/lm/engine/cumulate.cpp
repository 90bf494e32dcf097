// An index for each row of probabilities, by inverting its cumulative distribution at a uniform
// number, with the very numbers of the library: each row is added up in double precision from its
// first entry to its last. Rows are independent, so several are added up side by side, as one
// addition has to wait for the one before it in the same row.

#include <algorithm>
#include <cstdint>
#include <vector>

// Digits count here: no sum may be taken in another order.
#if defined(__clang__)
#pragma clang fp reassociate(off)
#else
#pragma GCC optimize("no-associative-math")
#endif

enum { SIDE = 8 };

// probs: [rows, size]; uniforms: [rows] in (0, 1).
// indices: [rows]; mass: [2, rows] the probabilities of these, and the sums of the rows. A row of NaN
// gets its last index.
extern "C" void cumulate(int64_t rows, int64_t size, const float *probs, const double *uniforms,
                         int64_t *indices, double *mass) {
    std::vector<double> sums(SIDE * size);
    for (int64_t first = 0; first < rows; first += SIDE) {
        const int64_t count = std::min<int64_t>(SIDE, rows - first);
        const float *row[SIDE];
        for (int k = 0; k < SIDE; k++) row[k] = probs + (first + std::min<int64_t>(k, count - 1)) * size;
        double total[SIDE] = {};
        for (int64_t i = 0; i < size; i++)
            for (int k = 0; k < SIDE; k++) sums[k * size + i] = total[k] += row[k][i];
        for (int64_t k = 0; k < count; k++) {
            const double *from = sums.data() + k * size;
            const double wanted = uniforms[first + k] * total[k];
            const int64_t found = std::upper_bound(from, from + size, wanted) - from;
            indices[first + k] = std::min(found, size - 1);
            mass[first + k] = row[k][indices[first + k]];
            mass[rows + first + k] = total[k];
        }
    }
}
