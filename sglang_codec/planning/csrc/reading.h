/* What is read for whom; see planning/reading.py and planning/absorption.py. */
#ifndef CODEC_READING_H
#define CODEC_READING_H

#include "bundles.h"

typedef struct {
    int32_t node, start, length, first, last, is_tail;
    int64_t offset;
} Run;

typedef struct {
    int32_t unit, node, start, length, low, high, is_tail, entries;
    int64_t offset;
} Piece;

typedef struct {
    int32_t num_runs, num_pieces, num_spans, num_bundles;
    Run *runs;
    Piece *pieces;         /* bundle after bundle, by first token */
    int32_t *piece_begin;  /* [bundles + 1] */
    int32_t *bundle_first, *bundle_last;
    int32_t *spans;        /* [spans, 4] */
    int32_t *append_base;  /* [batch] by row */
    char *has_tail;        /* [batch] by row */
    char *absorbed;        /* [shared] */
    int64_t kv_entries, bundle_entries;
    int32_t longest_bundle; /* pieces */
} Reading;

/* Readers of each shared run that are whole units: positions [first, last), empty if none. */
typedef struct {
    int32_t *first, *last, *children;
    int32_t *above; /* [units] the deepest run that each unit is whole in */
} Whole;

static Whole whole_units(const Forest *forest, const Units *units, const int32_t *unit_of,
                         Arena *arena) {
    int32_t shared = num_shared(forest);
    Whole whole = {TAKE(arena, int32_t, shared), TAKE(arena, int32_t, shared),
                   TAKE(arena, int32_t, shared), TAKE(arena, int32_t, units->count)};
    for (int32_t n = 0; n < shared; n++) {
        int32_t a = unit_of[forest->first[n]], b = unit_of[forest->last[n] - 1];
        a += units->first[a] < forest->first[n];
        b -= units->last[b] > forest->last[n];
        if (a > b) continue;
        whole.first[n] = units->first[a];
        whole.last[n] = units->last[b];
        if (forest->parent[n] >= 0) whole.children[forest->parent[n]]++;
    }
    for (int32_t u = 0; u < units->count; u++) {
        int32_t n = forest->parent[shared + units->first[u]];
        while (n >= 0 &&
               (forest->first[n] > units->first[u] || forest->last[n] < units->last[u]))
            n = forest->parent[n];
        whole.above[u] = n;
        if (n >= 0) whole.children[n]++;
    }
    return whole;
}

/* Marks the runs that join what is below them; `start` becomes the first token read with each.
 * A run is absorbed up to `eager` times the bytes that its partials are: 0 for none. */
static void absorb(const Forest *forest, const Spec *spec, const Whole *whole, char *absorbed,
                   int32_t *start, double eager) {
    int32_t shared = num_shared(forest);
    for (int32_t n = 0; n < forest->num_nodes; n++) {
        int32_t above = forest->parent[n];
        start[n] = above >= 0 && absorbed[above] ? start[above] : forest->start[n];
        if (n >= shared || eager == 0 || whole->last[n] <= whole->first[n]) continue;
        double tokens = forest->start[n] + forest->length[n] - start[n];
        double saved = (whole->children[n] - 1) * tokens * spec->kv_token_bytes;
        absorbed[n] = saved <= eager * 2 * spec->partial_bytes * (whole->last[n] - whole->first[n]);
    }
}

static int64_t add_span(Reading *reading, const Forest *forest, int32_t node, int32_t start,
                        int32_t room) {
    int32_t *span = reading->spans + 4 * reading->num_spans++;
    int64_t offset = reading->kv_entries;
    span[0] = forest->order[forest->first[node]]; /* any reader of a run has its slots */
    span[1] = start;
    span[2] = forest->start[node] + forest->length[node] - start;
    span[3] = (int32_t)offset;
    reading->kv_entries += aligned(span[2] + (int64_t)room);
    return offset;
}

static void add_piece(Reading *reading, const Forest *forest, const Units *units, int32_t unit,
                      int32_t node, int32_t start, int64_t offset, int32_t room) {
    Piece *piece = reading->pieces + reading->num_pieces++;
    piece->unit = unit;
    piece->node = node;
    piece->start = start;
    piece->length = forest->start[node] + forest->length[node] - start;
    piece->offset = offset;
    piece->low = most(forest->first[node] - units->first[unit], 0);
    piece->high = least(forest->last[node], units->last[unit]) - units->first[unit];
    piece->is_tail = node >= num_shared(forest);
    piece->entries = piece->length + room;
}

static void sort_pieces(Reading *reading, const Units *units, Arena *arena) {
    int32_t *bundle_of = TAKE(arena, int32_t, units->count), bundles = 0;
    for (int32_t u = 0; u < units->count; u++) {
        if (!units->bundled[u]) continue;
        reading->bundle_first[bundles] = units->first[u];
        reading->bundle_last[bundles] = units->last[u];
        bundle_of[u] = bundles++;
    }
    int32_t *begin = reading->piece_begin;
    for (int32_t i = 0; i < reading->num_pieces; i++) begin[bundle_of[reading->pieces[i].unit] + 1]++;
    for (int32_t b = 0; b < bundles; b++) {
        reading->longest_bundle = most(reading->longest_bundle, begin[b + 1]);
        begin[b + 1] += begin[b];
    }
    int32_t *filled = TAKE(arena, int32_t, bundles);
    Piece *sorted = TAKE(arena, Piece, reading->num_pieces);
    for (int32_t i = 0; i < reading->num_pieces; i++) {
        int32_t b = bundle_of[reading->pieces[i].unit], at = begin[b] + filled[b]++;
        /* a row's pieces are then in token order */
        for (; at > begin[b] && sorted[at - 1].start > reading->pieces[i].start; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = reading->pieces[i];
    }
    reading->pieces = sorted;
    reading->num_bundles = bundles;
    for (int32_t b = 0; b < bundles; b++) {
        int64_t entries = 0;
        for (int32_t i = begin[b]; i < begin[b + 1]; i++) entries += sorted[i].entries;
        reading->bundle_entries += aligned(entries);
    }
}

static Reading read_forest(const Forest *forest, const Units *units, const Spec *spec,
                           double eager, Arena *arena) {
    int32_t shared = num_shared(forest), batch = forest->batch;
    Reading reading = {0};
    reading.runs = TAKE(arena, Run, shared + batch);
    reading.pieces = TAKE(arena, Piece, 2 * shared + units->bundles + batch);
    reading.piece_begin = TAKE(arena, int32_t, units->bundles + 1);
    reading.bundle_first = TAKE(arena, int32_t, units->bundles);
    reading.bundle_last = TAKE(arena, int32_t, units->bundles);
    reading.spans = TAKE(arena, int32_t, 4 * (3 * (int64_t)shared + batch));
    reading.append_base = TAKE(arena, int32_t, batch);
    reading.has_tail = TAKE(arena, char, batch);
    reading.absorbed = TAKE(arena, char, shared + 1);
    int32_t *unit_of = TAKE(arena, int32_t, batch), *start = TAKE(arena, int32_t, forest->num_nodes);
    for (int32_t u = 0; u < units->count; u++)
        for (int32_t p = units->first[u]; p < units->last[u]; p++) unit_of[p] = u;
    Whole whole = whole_units(forest, units, unit_of, arena);
    absorb(forest, spec, &whole, reading.absorbed, start, eager);

    /* runs that are read on their own, and pieces of the bundles at both ends of a run */
    for (int32_t n = 0; n < shared; n++) {
        int32_t end = forest->start[n] + forest->length[n];
        if (whole.last[n] > whole.first[n] && !reading.absorbed[n] && end > start[n]) {
            Run *run = reading.runs + reading.num_runs++;
            *run = (Run){n, start[n], end - start[n], whole.first[n], whole.last[n], 0,
                         add_span(&reading, forest, n, start[n], 0)};
        }
        int32_t a = unit_of[forest->first[n]], b = unit_of[forest->last[n] - 1];
        int cuts_a = units->first[a] < forest->first[n], cuts_b = units->last[b] > forest->last[n];
        if (!cuts_a && !cuts_b) continue;
        int64_t offset = add_span(&reading, forest, n, forest->start[n], 0);
        if (cuts_a) add_piece(&reading, forest, units, a, n, forest->start[n], offset, 0);
        if (cuts_b && !(cuts_a && a == b))
            add_piece(&reading, forest, units, b, n, forest->start[n], offset, 0);
    }
    /* absorbed runs above bundles, listed once for all bundles below them */
    int64_t *chain = TAKE(arena, int64_t, shared);
    for (int32_t u = 0; u < units->count; u++) {
        int32_t n = whole.above[u];
        if (!units->bundled[u] || n < 0 || !reading.absorbed[n]) continue;
        if (!chain[n]) chain[n] = 1 + add_span(&reading, forest, n, start[n], 0);
        add_piece(&reading, forest, units, u, n, start[n], chain[n] - 1, 0);
    }
    for (int32_t p = 0; p < batch; p++) {
        int32_t n = shared + p, u = unit_of[p], row = forest->order[p], room = spec->headroom;
        /* a bundle reads absorbed ancestors as a piece, a single row in front of its tail */
        int32_t from = units->bundled[u] ? forest->start[n] : start[n];
        int32_t length = forest->start[n] + forest->length[n] - from;
        reading.append_base[row] = -1;
        if (length <= 0) continue;
        int64_t offset = add_span(&reading, forest, n, from, room);
        reading.has_tail[row] = 1;
        reading.append_base[row] = (int32_t)(offset - from);
        if (units->bundled[u])
            add_piece(&reading, forest, units, u, n, from, offset, room);
        else
            reading.runs[reading.num_runs++] = (Run){n, from, length, p, p + 1, 1, offset};
    }
    sort_pieces(&reading, units, arena);
    return reading;
}

#endif
