/* Which neighbouring rows with short private tails share one task; see planning/bundles.py. */
#ifndef CODEC_BUNDLES_H
#define CODEC_BUNDLES_H

#include "common.h"

#define MOST_PER_SLOT 4
#define MOST_TAIL 1024 /* tokens of a tail in a bundle, where a bundle costs no more a token */

typedef struct {
    int32_t count, bundles;
    int32_t *first, *last; /* positions [first, last) of each unit */
    char *bundled;
} Units;

static Units single_units(const Forest *forest, Arena *arena) {
    Units units = {forest->batch, 0, NULL, NULL, NULL};
    units.first = TAKE(arena, int32_t, forest->batch);
    units.last = TAKE(arena, int32_t, forest->batch);
    units.bundled = TAKE(arena, char, forest->batch);
    for (int32_t p = 0; p < forest->batch; p++) {
        units.first[p] = p;
        units.last[p] = p + 1;
    }
    return units;
}

/* The rows of a bundle that leave the slots the least to do; 1 for no bundles. */
static int32_t best_size(const Spec *spec, int32_t fitting, int32_t count, double tokens,
                         double other, double alone, const int32_t *rows, int32_t segments) {
    const Curve *curve = &spec->curves[spec->num_tiles];
    double best_us = (other + alone) / spec->num_slots;
    int32_t best = 1;
    for (int32_t n = 0; n <= MOST_PER_SLOT; n++) {
        int32_t size = n ? (int32_t)up(count, (int64_t)n * spec->num_slots) : fitting;
        if (size < 2 || size > fitting || (n && size == fitting)) continue;
        int64_t number = 0;
        for (int32_t s = 0; s < segments; s++) number += up(rows[s], size);
        /* a bundle is not cut: rather smaller ones than idle slots */
        if (number < spec->num_slots && size > 2 && count >= 2 * spec->num_slots) continue;
        double each = task_us(curve, tokens / number);
        double us = fmax((other + number * each) / spec->num_slots,
                         (double)up(number, spec->num_slots) * each);
        if (us < best_us) {
            best_us = us;
            best = size;
        }
    }
    return best;
}

static Units bundle_tails(const Forest *forest, const Spec *spec, Arena *arena) {
    int32_t batch = forest->batch, shared = num_shared(forest);
    int32_t fitting = spec->bundle_rows / spec->group;
    if (fitting < 2 || batch < 2) return single_units(forest, arena);
    const Curve *curve = &spec->curves[spec->num_tiles], *row = &spec->curves[0];
    double line = (task_us(curve, SHORT_TASK) - curve->us[0]) / SHORT_TASK;
    double worth = curve->us[0] / line, most_tokens = worth;
    /* a tile that a single row fills as badly: the tokens cost the same either way */
    if (spec->row_tiles[0] == spec->bundle_rows) most_tokens = fmax(worth, MOST_TAIL);
    const int32_t *tails = forest->length + shared;

    char *is_edge = TAKE(arena, char, batch + 1), *is_short = TAKE(arena, char, batch);
    double other = 0, alone = 0, tokens = 0;
    int32_t count = 0;
    for (int32_t p = 0; p < batch; p++) {
        is_short[p] = tails[p] > 0 && tails[p] <= most_tokens;
        double us = task_us(row, tails[p]);
        if (is_short[p]) {
            count++;
            alone += us;
            tokens += tails[p];
        } else {
            is_edge[p] = is_edge[p + 1] = 1;
            other += us;
        }
    }
    if (count < 2) return single_units(forest, arena);
    is_edge[0] = is_edge[batch] = 1;
    for (int32_t n = 0; n < shared; n++) {
        other += up(forest->last[n] - forest->first[n], fitting) *
                 task_us(curve, forest->length[n]);
        /* two such runs do not fit into a bundle, so it would be read twice */
        if (forest->length[n] > worth && 2 * (forest->last[n] - forest->first[n]) > fitting)
            is_edge[forest->first[n]] = is_edge[forest->last[n]] = 1;
    }
    int32_t *begin = TAKE(arena, int32_t, batch), *rows = TAKE(arena, int32_t, batch);
    int32_t segments = 0;
    for (int32_t p = 0; p < batch; p++) {
        if (!is_short[p]) continue;
        if (is_edge[p]) begin[segments++] = p;
        rows[segments - 1]++;
    }
    int32_t size = best_size(spec, fitting, count, tokens, other, alone, rows, segments);
    if (size == 1) return single_units(forest, arena);

    Units units = single_units(forest, arena);
    units.count = 0;
    int32_t segment = 0;
    for (int32_t p = 0; p < batch;) {
        int32_t parts = 1, length = 1, from = p;
        if (is_short[p]) {
            length = rows[segment++];
            parts = (int32_t)up(length, size);
        }
        for (int32_t i = 0; i < parts; i++) {
            int32_t u = units.count++;
            units.first[u] = from + (int32_t)((int64_t)i * length / parts);
            units.last[u] = from + (int32_t)((int64_t)(i + 1) * length / parts);
            units.bundled[u] = units.last[u] - units.first[u] > 1;
            units.bundles += units.bundled[u];
        }
        p += length;
    }
    return units;
}

#endif
