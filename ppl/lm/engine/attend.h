// What attention is asked where it is called by address: of one new token a row (`attention.cpp`), and
// of many tokens of some texts (`prefill.cpp`). They return as in shortage.h.

#pragma once

#include "shortage.h"

struct Rows;
struct Run;
struct Job;

typedef int32_t Attend(int64_t rows, int32_t threads, const int64_t *columns, const int64_t *firsts,
                    const int64_t *positions, const int64_t *bases, const int64_t *order,
                    const Rows *groups, int64_t count, const Run *runs, int64_t layer,
                    int64_t other_layer, const number *query, const number *key,
                    const number *value, number *keys, number *values, int64_t slot, int64_t head,
                    int64_t value_slot, int64_t value_head, float scaling, float softcap,
                    const float *sinks, const float *means, const float *masses,
                    const int64_t *lows, int64_t few, const int64_t *holes, const int64_t *slots,
                    number *out);

typedef int32_t Fill(int32_t threads, const Job *jobs, int64_t count, const Run *runs, int64_t layer,
                  int64_t other_layer, const number *query, const number *key, const number *value,
                  float scaling, float softcap, const float *sinks, const int64_t *firsts,
                  number *out);
