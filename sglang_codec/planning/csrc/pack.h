/* A plan as it is uploaded; see PlanLayout in planning/plan.py. */
#ifndef CODEC_PACK_H
#define CODEC_PACK_H

#include "common.h"

#define TASK_INTS 8
#define PIECE_INTS 4
#define SPAN_INTS 4
#define SLOT_INTS 8
#define MERGE_INTS 4

/* What a plan consists of, one after the other; all int32 but the last. */
typedef struct {
    int32_t num_tasks, num_bundles, num_pieces, num_parts, num_spans, num_shared, num_classes;
    int64_t parts, kv_entries, bundle_entries, ints;
    int32_t *out;
    double *us;
    int32_t why; /* it does not fit */
    int64_t need;
    Arena arena; /* Python knows nothing from here on */
} Result;

/* Where in `out` each array begins. */
typedef struct {
    int32_t *tasks, *pieces, *slot_indptr, *part_indptr, *part_rows, *append_base, *max_lengths;
    int32_t *spans, *node, *start, *slot, *piece_node, *piece_start, *absorbed, *end;
} Sections;

static Sections sections_of(const Result *result, int32_t batch, int32_t slots) {
    Sections at;
    at.tasks = result->out;
    at.pieces = at.tasks + (int64_t)TASK_INTS * result->num_tasks;
    at.slot_indptr = at.pieces + (int64_t)PIECE_INTS * result->num_pieces;
    at.part_indptr = at.slot_indptr + (int64_t)result->num_classes * (slots + 1);
    at.part_rows = at.part_indptr + batch + 1;
    at.append_base = at.part_rows + result->num_parts;
    at.max_lengths = at.append_base + batch;
    at.spans = at.max_lengths + batch;
    at.node = at.spans + (int64_t)SPAN_INTS * result->num_spans;
    at.start = at.node + result->num_tasks;
    at.slot = at.start + result->num_tasks;
    at.piece_node = at.slot + result->num_tasks;
    at.piece_start = at.piece_node + result->num_pieces;
    at.absorbed = at.piece_start + result->num_pieces;
    at.end = at.absorbed + result->num_shared;
    return at;
}

/* Where the sections of a packed plan begin. */
typedef struct {
    int64_t rows, num_classes, num_slots, order, merges, append_base, tasks, size;
} Layout;

/* What the host needs to know of a packed plan. */
typedef struct {
    int64_t used, num_spans, longest_span, kv_tokens_read, num_shared, depth;
    int64_t why, need; /* as of Result */
} Packed;

/* Rows that no task writes directly, most parts first, then in order; returns how many. */
static int32_t list_merges(const Sections *from, int32_t batch, int32_t parts_at, int32_t *merges,
                           Arena *arena) {
    int32_t largest = 0;
    for (int32_t r = 0; r < batch; r++)
        largest = most(largest, from->part_indptr[r + 1] - from->part_indptr[r]);
    /* begin[largest - parts]: where rows of so many parts go */
    int32_t *begin = TAKE(arena, int32_t, largest + 2), *key = TAKE(arena, int32_t, batch);
    int32_t listed = 0;
    for (int32_t r = 0; r < batch; r++) {
        int32_t first = from->part_indptr[r], parts = from->part_indptr[r + 1] - first;
        key[r] = parts == 1 && from->part_rows[first] < 0 ? -1 : largest - parts;
        if (key[r] >= 0) begin[key[r] + 1]++, listed++;
    }
    for (int32_t k = 0; k < largest + 1; k++) begin[k + 1] += begin[k];
    for (int32_t r = 0; r < batch; r++) {
        if (key[r] < 0) continue;
        int32_t *record = merges + MERGE_INTS * (1 + (int64_t)begin[key[r]]++);
        record[0] = r;
        record[1] = parts_at + from->part_indptr[r];
        record[2] = parts_at + from->part_indptr[r + 1];
        record[3] = 0;
    }
    merges[0] = listed;
    merges[1] = batch;
    merges[2] = merges[3] = 0;
    return listed;
}

static int32_t forest_depth(const Forest *forest, Arena *arena) {
    int32_t *depth = TAKE(arena, int32_t, forest->num_nodes), deepest = 0;
    for (int32_t n = 0; n < forest->num_nodes; n++) {
        depth[n] = 1 + (forest->parent[n] < 0 ? 0 : depth[forest->parent[n]]);
        if (forest->length[n] > 0) deepest = most(deepest, depth[n]);
    }
    return deepest;
}

/* Whether the plan has room; nothing is written if not. */
static int pack_plan(const Forest *forest, Result *result, const Layout *layout, int32_t *out,
                      Packed *packed) {
    int32_t batch = forest->batch, slots = (int32_t)layout->num_slots;
    int32_t pieces = (int32_t)layout->tasks + TASK_INTS * result->num_tasks;
    int32_t parts = pieces + PIECE_INTS * result->num_pieces, spans = parts + result->num_parts;
    packed->used = spans + SPAN_INTS * result->num_spans;
    if (packed->used > layout->size) return 0;
    Sections from = sections_of(result, batch, slots);
    for (int32_t c = 0; c < result->num_classes; c++) {
        const int32_t *indptr = from.slot_indptr + (int64_t)c * (slots + 1);
        for (int32_t s = 0; s < slots; s++) {
            out[SLOT_INTS * s + 2 * c] = indptr[s];
            out[SLOT_INTS * s + 2 * c + 1] = indptr[s + 1];
        }
    }
    memcpy(out + layout->order, forest->order, batch * sizeof(int32_t));
    list_merges(&from, batch, parts, out + layout->merges, &result->arena);
    memcpy(out + layout->append_base, from.append_base, batch * sizeof(int32_t));
    for (int64_t r = batch; r < layout->rows; r++) out[layout->append_base + r] = -1;
    int32_t *tasks = out + layout->tasks;
    memcpy(tasks, from.tasks, (char *)from.pieces - (char *)from.tasks);
    packed->kv_tokens_read = 0;
    for (int32_t t = 0; t < result->num_tasks; t++) packed->kv_tokens_read += tasks[TASK_INTS * t + 1];
    /* a bundle names its first piece by where that lies in the packed plan */
    for (int32_t t = result->num_tasks - result->num_bundles; t < result->num_tasks; t++)
        tasks[TASK_INTS * t + 6] = pieces + PIECE_INTS * tasks[TASK_INTS * t + 6];
    memcpy(out + pieces, from.pieces, (char *)from.slot_indptr - (char *)from.pieces);
    memcpy(out + parts, from.part_rows, result->num_parts * sizeof(int32_t));
    memcpy(out + spans, from.spans, (char *)from.node - (char *)from.spans);
    packed->num_spans = result->num_spans;
    packed->longest_span = 0;
    for (int32_t s = 0; s < result->num_spans; s++)
        if (from.spans[SPAN_INTS * s + 2] > packed->longest_span)
            packed->longest_span = from.spans[SPAN_INTS * s + 2];
    packed->num_shared = num_shared(forest);
    packed->depth = forest_depth(forest, &result->arena);
    return 1;
}

#endif
