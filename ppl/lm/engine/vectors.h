// Numbers as they are kept, and vectors of float32.
//
// Compiled for one kind: HALF for bfloat16 (else float32).

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

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

enum { LANES = 16 };  // numbers a vector

// e^x for x <= 0, to the precision of float32, in a form that compilers can vectorise: a power of
// two times a polynomial (coefficients of Cephes, S. Moshier, expf).
typedef float vector __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t whole __attribute__((vector_size(LANES * sizeof(float))));

#if HALF
typedef uint16_t halves __attribute__((vector_size(LANES * sizeof(uint16_t))));
typedef uint32_t bits __attribute__((vector_size(LANES * sizeof(uint32_t))));

static inline vector wide(halves x) { return (vector)(__builtin_convertvector(x, bits) << 16); }

#if defined(__AVX512BF16__)
static inline halves narrow(vector x) { return (halves)_mm512_cvtneps_pbh((__m512)x); }
#else
static inline halves narrow(vector x) {
    const bits all = (bits)x, nearest = (all + 0x7fff + ((all >> 16) & 1)) >> 16;
    return __builtin_convertvector(x != x ? bits{} + 0x7fc0 : nearest, halves);
}
#endif
static inline vector rounded(vector x) { return wide(narrow(x)); }
#else
typedef vector halves;

static inline vector wide(halves x) { return x; }
static inline halves narrow(vector x) { return x; }
static inline vector rounded(vector x) { return x; }
#endif

// Numbers from somewhere on, of which there are so many left; zeros behind them.
static inline vector taken(const number *from, int64_t left) {
    halves x = {};
    memcpy(&x, from, left >= LANES ? sizeof x : left * sizeof(number));
    return wide(x);
}

static inline void put(vector x, number *to, int64_t left) {
    const halves few = narrow(x);
    memcpy(to, &few, left >= LANES ? sizeof few : left * sizeof(number));
}

// f(i, left) for every LANES-th of `count` numbers.
template <typename F> static inline __attribute__((always_inline)) void over(int64_t count, const F &f) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) f(i, (int64_t)LANES);
    if (i < count) f(i, count - i);
}

static inline vector inverse(vector x) {  // to the precision of float32, if not to its last place
#if defined(__AVX512F__)
    const vector near = (vector)_mm512_rcp14_ps((__m512)x);
    return near * (2.0f - x * near);
#else
    return 1.0f / x;
#endif
}

static inline float total(vector x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

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
