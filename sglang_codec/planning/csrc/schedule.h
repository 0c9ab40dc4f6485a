/* Query tiles -> chunks -> slots; see planning/tape.py, division.py and schedule.py. */
#ifndef CODEC_SCHEDULE_H
#define CODEC_SCHEDULE_H

#include "reading.h"

#define TOLERANCE 0.01
#define GROWTH 1.25

/* Tiles of one run that are read at the same time share what comes from memory; this much of the
 * time of a tile remains at the least: its arithmetic. */
#define LEAST_SHARE 0.85
#define GANG_SLACK 0.05

typedef struct {
    int32_t run, first, queries, tile, start, tokens;
    double share; /* of what the cost model says: 1 unless other tiles read the same tokens */
    double us;    /* uncut */
} Item;

typedef struct {
    int32_t item; /* -1 - bundle of a bundle */
    int32_t begin, first, queries, tokens, slot, part;
    double us;
} Task;

typedef struct {
    int32_t count;
    Task *tasks;
    double us, balance; /* predicted: the longest slot, and the merge of partials */
    int64_t parts;
} Schedule;

static double tile_share(const Run *run, int32_t largest) {
    return fmax(1.0 / fmax(1, up(run->last - run->first, largest)), LEAST_SHARE);
}

static double chunk_us(const Item *item, const Spec *spec, double tokens) {
    return item->share * task_us(&spec->curves[item->tile], tokens);
}

static double chunk_tokens(const Item *item, const Spec *spec, double us) {
    return tokens_in(&spec->curves[item->tile], us / item->share);
}

/* Each run's readers in tiles of the first `sizes` sizes. */
static int32_t query_tiles(const Reading *reading, const Spec *spec, int32_t sizes, Item **out,
                           Arena *arena) {
    int32_t largest = spec->row_tiles[sizes - 1] / spec->group, count = 0;
    for (int32_t r = 0; r < reading->num_runs; r++)
        count += (int32_t)up(reading->runs[r].last - reading->runs[r].first, largest);
    Item *items = *out = TAKE(arena, Item, count);
    count = 0;
    for (int32_t r = 0; r < reading->num_runs; r++) {
        const Run *run = reading->runs + r;
        double share = tile_share(run, largest);
        for (int32_t first = run->first; first < run->last; first += largest) {
            int32_t queries = least(run->last - first, largest), tile = 0;
            while (spec->row_tiles[tile] / spec->group < queries) tile++;
            items[count++] = (Item){r, first, queries, tile, run->start, run->length, share,
                                    share * task_us(&spec->curves[tile], run->length)};
        }
    }
    return count;
}

typedef struct {
    double us;
    int32_t index;
} Weight;

static int heavier(const void *a, const void *b) {
    const Weight *x = a, *y = b;
    if (x->us != y->us) return x->us > y->us ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* Longest first, each to the slot that is free earliest; `load` is added to. */
static void longest_first(Task *tasks, int32_t count, double *load, int32_t slots, Arena *arena) {
    Weight *order = TAKE(arena, Weight, count);
    for (int32_t t = 0; t < count; t++) order[t] = (Weight){tasks[t].us, t};
    qsort(order, count, sizeof(Weight), heavier);
    int32_t *heap = TAKE(arena, int32_t, slots);
    for (int32_t s = 0; s < slots; s++) heap[s] = s; /* loads are equal: any order is a heap */
    for (int32_t t = 0; t < count; t++) {
        int32_t slot = heap[0], at = 0;
        tasks[order[t].index].slot = slot;
        load[slot] += order[t].us;
        for (;;) {
            int32_t child = 2 * at + 1;
            if (child >= slots) break;
            if (child + 1 < slots) {
                int32_t l = heap[child], r = heap[child + 1];
                child += load[r] < load[l] || (load[r] == load[l] && r < l);
            }
            int32_t other = heap[child];
            if (load[other] > load[slot] || (load[other] == load[slot] && other > slot)) break;
            heap[at] = other;
            at = child;
        }
        heap[at] = slot;
    }
}

static const Item *sorting; /* qsort has no context; the planner is called with the GIL held */

static int along_tape(const void *a, const void *b) {
    const Item *x = sorting + *(const int32_t *)a, *y = sorting + *(const int32_t *)b;
    if (x->tile != y->tile) return y->tile - x->tile;
    if (x->tokens != y->tokens) return x->tokens < y->tokens ? 1 : -1;
    if (x->start != y->start) return x->start < y->start ? -1 : 1;
    if (x->queries != y->queries) return x->queries - y->queries;
    return x < y ? -1 : x > y;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The level to which `us` more microseconds fill the slots. */
static double common_level(const double *busy, int32_t slots, double us, Arena *arena) {
    double *lowest = TAKE(arena, double, slots), sum = us, level = 0;
    memcpy(lowest, busy, slots * sizeof(double));
    qsort(lowest, slots, sizeof(double), by_value);
    for (int32_t n = 0; n < slots && (n == 0 || level > lowest[n]); n++) {
        sum += lowest[n];
        level = sum / (n + 1);
    }
    return level;
}

static Task chunk_of(const Item *items, int32_t i, int32_t begin, int32_t tokens, int32_t slot,
                     const Spec *spec) {
    const Item *item = items + i;
    return (Task){i, begin, item->first, item->queries, tokens, slot, -1,
                  chunk_us(item, spec, tokens)};
}

/* Items end to end, and where on them the present slot ends. */
typedef struct {
    const Item *items;
    const int32_t *order;
    int32_t count, at;  /* at: the item in which `end` lies */
    double before, end; /* microseconds: where that item begins, where the slot ends */
    int32_t item, offset; /* the same as a place: whole blocks into an item, or its begin */
} Tape;

static void next_cut(Tape *tape, double room, const Spec *spec) {
    tape->end += room;
    while (tape->at < tape->count - 1 &&
           tape->before + tape->items[tape->order[tape->at]].us <= tape->end)
        tape->before += tape->items[tape->order[tape->at++]].us;
    const Item *item = tape->items + tape->order[tape->at];
    double into = tape->end - tape->before, block = spec->block_kv;
    tape->item = tape->at;
    tape->offset = (int32_t)(rint(chunk_tokens(item, spec, into) / block) * block);
    /* half a block or less is not cut off; what is not cut falls to the side that has more */
    if (tape->offset > 0 ? tape->offset >= item->tokens - block / 2 : into > item->us / 2) {
        tape->offset = 0;
        tape->item++;
    }
}

/* Tiles of one run that are too long for a slot are cut at the same tokens, a slot to each piece:
 * the slots then read the same tokens at the same time, from memory once. Marks those items. */
static int32_t cut_gangs(const Item *items, int32_t count, double level, const Spec *spec,
                         char *is_ganged, Task *tasks) {
    int32_t done = 0, taken = 0;
    for (int32_t i = 0, n; i < count; i += n) {
        const Item *item = items + i;
        for (n = 1; i + n < count && items[i + n].run == item->run && items[i + n].tile == item->tile;)
            n++;
        int32_t free = spec->num_slots - taken;
        int32_t pieces = least((int32_t)ceil(item->us / level - GANG_SLACK), free / n);
        if (n < 2 || pieces < 2 || chunk_us(item, spec, item->tokens / pieces) > level * 1.1)
            continue;
        int32_t size = (int32_t)(up(item->tokens, (int64_t)pieces * spec->block_kv)) * spec->block_kv;
        for (int32_t q = i; q < i + n; q++) {
            is_ganged[q] = 1;
            for (int32_t begin = 0; begin < item->tokens; begin += size)
                tasks[done++] = chunk_of(items, q, begin, least(size, item->tokens - begin), 0, spec);
        }
        taken += n * pieces;
    }
    return done;
}

/* Every slot takes a piece of the tape that fills it up to the common level. */
static int32_t cut_tape(const Item *items, int32_t all, const char *is_ganged, const double *busy,
                        const Spec *spec, Task *tasks, Arena *arena) {
    int32_t *order = TAKE(arena, int32_t, all), done = 0, slot = 0, last = spec->num_slots - 1;
    int32_t count = 0;
    double total = 0;
    for (int32_t i = 0; i < all; i++) {
        if (is_ganged[i]) continue;
        order[count++] = i;
        total += items[i].us;
    }
    if (!count) return 0;
    sorting = items;
    qsort(order, count, sizeof(int32_t), along_tape);
    double level = common_level(busy, spec->num_slots, total, arena);
    Tape tape = {items, order, count, 0, 0, 0, 0, 0};
    next_cut(&tape, fmax(level - busy[0], 0), spec);
    for (int32_t i = 0; i < count; i++) {
        int32_t begin = 0, tokens = items[order[i]].tokens;
        for (;;) {
            while (slot < last && (tape.item < i || (tape.item == i && tape.offset <= begin)))
                if (++slot < last) next_cut(&tape, fmax(level - busy[slot], 0), spec);
            if (slot == last || tape.item > i) break;
            tasks[done++] = chunk_of(items, order[i], begin, tape.offset - begin, slot, spec);
            begin = tape.offset;
        }
        tasks[done++] = chunk_of(items, order[i], begin, tokens - begin, slot, spec);
    }
    return done;
}

/* Microseconds of all items, cut into equal chunks of at most `us` each. */
static double work(const Item *items, int32_t count, const Spec *spec, double us) {
    double size[MAX_TILES], sum = 0;
    for (int32_t t = 0; t < spec->num_tiles; t++)
        size[t] = fmax(tokens_in(&spec->curves[t], us), spec->block_kv);
    for (int32_t i = 0; i < count; i++) {
        const Item *item = items + i;
        double tokens = item->share == 1 ? size[item->tile]
                                         : fmax(chunk_tokens(item, spec, us), spec->block_kv);
        if (item->tokens <= tokens) {
            sum += item->us;
            continue;
        }
        double chunks = ceil(item->tokens / tokens);
        sum += chunks * chunk_us(item, spec, item->tokens / chunks);
    }
    return sum;
}

/* The smallest target to which the items can be cut so that they fit the slots together. */
static double smallest_target(const Item *items, int32_t count, const Spec *spec, double busy,
                              double *smallest) {
    double uncut = busy;
    *smallest = INFINITY;
    for (int32_t i = 0; i < count; i++) {
        uncut += items[i].us;
        *smallest = fmin(*smallest, chunk_us(items + i, spec, spec->block_kv));
    }
    double low = fmax(*smallest, uncut / spec->num_slots), high = low;
    while (busy + work(items, count, spec, high) > spec->num_slots * high) {
        low = high;
        high *= GROWTH;
    }
    while (high - low > TOLERANCE * high) {
        double middle = (low + high) / 2;
        if (busy + work(items, count, spec, middle) <= spec->num_slots * middle) high = middle;
        else low = middle;
    }
    return high;
}

/* Tokens of each chunk of an item for a target: equal chunks, in whole blocks. */
static int64_t chunk_size(const Item *item, const Spec *spec, double target) {
    double size = fmax(chunk_tokens(item, spec, target), spec->block_kv);
    double chunks = ceil(item->tokens / size);
    return (int64_t)ceil(item->tokens / chunks / spec->block_kv) * spec->block_kv;
}

static int64_t count_chunks(const Item *items, int32_t count, const Spec *spec, double target) {
    int64_t chunks = 0;
    for (int32_t i = 0; i < count; i++)
        chunks += target > 0 ? up(items[i].tokens, chunk_size(items + i, spec, target)) : 1;
    return chunks;
}

static int32_t divide(const Item *items, int32_t count, const Spec *spec, double target,
                      Task *tasks) {
    int32_t done = 0;
    for (int32_t i = 0; i < count; i++) {
        int64_t size = target > 0 ? chunk_size(items + i, spec, target) : items[i].tokens;
        for (int64_t begin = 0; begin < items[i].tokens; begin += size)
            tasks[done++] = chunk_of(items, i, (int32_t)begin,
                                     (int32_t)least((int32_t)size, items[i].tokens - (int32_t)begin),
                                     0, spec);
    }
    return done;
}

/* Reserves partial rows for all but the tasks that are all there is to every one of their rows. */
static int64_t reserve_parts(Task *tasks, int32_t count, int32_t batch, int32_t *at) {
    memset(at, 0, (batch + 1) * sizeof(int32_t));
    for (int32_t t = 0; t < count; t++) {
        at[tasks[t].first]++;
        at[tasks[t].first + tasks[t].queries]--;
    }
    int32_t parts = 0, more = 0;
    for (int32_t p = 0; p <= batch; p++) { /* at[p] becomes the rows before p with several parts */
        parts += at[p];
        at[p] = more;
        more += parts > 1;
    }
    int64_t reserved = 0;
    for (int32_t t = 0; t < count; t++) {
        int needs = at[tasks[t].first + tasks[t].queries] > at[tasks[t].first];
        tasks[t].part = needs ? 0 : -1;
        reserved += needs ? tasks[t].queries : 0;
    }
    return reserved;
}

#endif
