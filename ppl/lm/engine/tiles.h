// The processor's units for whole matrices (AMX): asking for them, and the shapes of their tiles.

#pragma once

#include <cstdint>

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace matrices {

enum { SIDE = 16, LINE = 64 };  // rows of a tile, bytes of a row and of a line of the cache

// Whether the system lets this process use them; it has to be asked once.
static bool given() {
    static const bool yes = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
    return yes;
}

// Of eight tiles, four are sums and two rows, all of so many rows, and two are weights.
static void begin(int rows = SIDE) {
    struct alignas(64) {
        uint8_t palette = 1, start = 0, unused[14] = {};
        uint16_t bytes[16] = {LINE, LINE, LINE, LINE, LINE, LINE, LINE, LINE};
        uint8_t rows[16] = {};
    } shape;
    for (int t = 0; t < 8; t++) shape.rows[t] = (uint8_t)(t < 6 ? rows : SIDE);
    _tile_loadconfig(&shape);
}

// Weights that come next, so many lines of the cache at every step: tiles that are not there when they
// are read are waited for, one after the other.
struct Ahead {
    const void *next;
    int64_t lines;

    void ask() {
        const char *line = (const char *)next;
        for (int64_t i = 0; i < lines; i++, line += LINE) _mm_prefetch(line, _MM_HINT_T1);
        next = line;
    }
};

}  // namespace matrices
