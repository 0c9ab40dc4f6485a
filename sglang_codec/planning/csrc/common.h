/* What every stage of the native planner sees: the batch, the machine, and memory. */
#ifndef CODEC_COMMON_H
#define CODEC_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TILES 8
#define ALIGNED_ENTRIES 4 /* as in plan.py: so many KV slots can be loaded at once */
#define SHORT_TASK 1024.0 /* tokens up to which a task's line is drawn, as in cost_model.py */

/* The forest of a batch, see planning/forest.py. */
typedef struct {
    int32_t batch, num_nodes;
    const int32_t *order, *lengths, *parent, *start, *length, *first, *last;
} Forest;

/* Microseconds of a task over its tokens, on straight lines between increasing points. */
typedef struct {
    int32_t points;
    const double *tokens, *us;
} Curve;

/* PlanSpec, PlanCapacity and the cost model; the bundles' curve follows those of the tiles. */
typedef struct {
    int32_t group, num_tiles, bundle_rows, block_kv, num_slots, headroom, most_pieces;
    int32_t row_tiles[MAX_TILES];
    double kv_token_bytes, partial_bytes, l2_tokens;
    int64_t most_tasks, most_parts, most_kv, most_bundle;
    Curve curves[MAX_TILES + 1];
} Spec;

/* Memory that is given back all at once. */
typedef struct Block {
    struct Block *next;
} Block;

typedef struct {
    Block *blocks;
    int failed;
} Arena;

static void *take(Arena *arena, int64_t count, size_t size) {
    Block *block = calloc(1, sizeof(Block) + 16 + (size_t)(count > 0 ? count : 1) * size);
    if (!block) {
        arena->failed = 1;
        abort(); /* a few kilobytes: the process is lost anyway */
    }
    block->next = arena->blocks;
    arena->blocks = block;
    return (char *)block + 16;
}

#define TAKE(arena, type, count) ((type *)take(arena, count, sizeof(type)))

static void give_back(Arena *arena) {
    while (arena->blocks) {
        Block *next = arena->blocks->next;
        free(arena->blocks);
        arena->blocks = next;
    }
}

static double interpolate(double x, const double *xs, const double *ys, int32_t points) {
    int32_t low = 0, high = points - 1;
    if (x <= xs[0]) return ys[0];
    if (x >= xs[high]) return ys[high];
    while (high - low > 1) {
        int32_t middle = (low + high) / 2;
        if (xs[middle] <= x) low = middle;
        else high = middle;
    }
    return ys[low] + (x - xs[low]) * (ys[high] - ys[low]) / (xs[high] - xs[low]);
}

static double task_us(const Curve *curve, double tokens) {
    return interpolate(tokens, curve->tokens, curve->us, curve->points);
}

/* Tokens of a task that takes `us`; 0 where that is too little. */
static double tokens_in(const Curve *curve, double us) {
    return interpolate(us, curve->us, curve->tokens, curve->points);
}

static int64_t up(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
static int64_t aligned(int64_t entries) { return up(entries, ALIGNED_ENTRIES) * ALIGNED_ENTRIES; }
static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }
static int32_t num_shared(const Forest *forest) { return forest->num_nodes - forest->batch; }

#endif
