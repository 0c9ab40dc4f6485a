/* The planner in C: forest -> bundles and runs -> query tiles -> chunks -> slots -> plan.
 *
 * The stages are those of the Python modules that each header names, with more schedules tried.
 * C99 and the C library only; compiled when first used (planning/native.py).
 */
#include "forest.h"
#include "pack.h"
#include "schedule.h"

#define BALANCED 0.96 /* a schedule this balanced is good enough */
#define FEW_TASKS 256 /* up to which smaller tiles are tried where the slots are not balanced */
#define WORTH_SMALLER 0.95 /* smaller tiles read more from the L2: only for so much less time */
#define MANY_TASKS 512 /* beyond, few schedules are tried: time, and they differ little */
/* What writing and reading a partial takes of the time of as many bytes of KV; measured. */
#define KEPT_PARTIAL 0.6 /* it stays in the L2 */
#define LOST_PARTIAL 2.4
static const double FINER[] = {1.0, 0.9, 2.5, 1.25, 0.75, 1.6};
static const double COARSER[] = {0.5, 0.2, 0.05, 0.0};
/* Ways to read the forest: with bundles, then every row on its own from SINGLE on; how eagerly runs
 * are absorbed by what is below them. Where all are, each row or bundle reads all of its tokens. */
static const double WAYS[] = {1, 8, INFINITY, 1, INFINITY, 0};
#define SINGLE 3
#define COUNT(array) ((int32_t)(sizeof(array) / sizeof(*(array))))

enum { FITS, TOO_MANY_PIECES, TOO_LONG_INDEX, TOO_LONG_BUNDLES, TOO_MANY_TASKS, TOO_MANY_PARTS };

typedef struct {
    Reading reading;
    Item *items;
    int32_t num_items;
    Schedule best;
} Candidate;

static int32_t check_reading(const Reading *reading, const Spec *spec, int64_t *need) {
    if ((*need = reading->longest_bundle) > spec->most_pieces) return TOO_MANY_PIECES;
    if ((*need = reading->kv_entries) > spec->most_kv) return TOO_LONG_INDEX;
    if ((*need = reading->bundle_entries) > spec->most_bundle) return TOO_LONG_BUNDLES;
    return FITS;
}

/* The bundles as tasks behind `tasks[0 .. chunks)`. */
static void append_bundles(const Reading *reading, const Spec *spec, Task *tasks) {
    for (int32_t b = 0; b < reading->num_bundles; b++) {
        int32_t tokens = 0;
        for (int32_t i = reading->piece_begin[b]; i < reading->piece_begin[b + 1]; i++)
            tokens += reading->pieces[i].length;
        tasks[b] = (Task){-1 - b, 0, reading->bundle_first[b],
                          reading->bundle_last[b] - reading->bundle_first[b], tokens, 0, -1,
                          task_us(&spec->curves[spec->num_tiles], tokens)};
    }
}

/* Microseconds that a token adds to a task that waits for memory. */
static double token_us(const Spec *spec) {
    const Curve *curve = &spec->curves[0];
    return (task_us(curve, SHORT_TASK) - curve->us[0]) / SHORT_TASK;
}

/* Microseconds to write partials and to read them back: quick in the L2, but what is read between
 * drives them out of it. */
static double merge_us(const Forest *forest, const Spec *spec, int64_t parts) {
    double tokens = 0;
    for (int32_t n = 0; n < forest->num_nodes; n++) tokens += forest->length[n];
    double driven_out = tokens < spec->l2_tokens ? tokens / spec->l2_tokens : 1;
    double as_tokens = 2 * parts * spec->partial_bytes / spec->kv_token_bytes;
    return (KEPT_PARTIAL + (LOST_PARTIAL - KEPT_PARTIAL) * driven_out) * as_tokens *
           token_us(spec) / spec->num_slots;
}

/* Keeps the schedule if it fits and is the best so far; says whether it is good enough. */
static int keep(Candidate *candidate, const Forest *forest, const Spec *spec, Task *tasks,
                int32_t count, int32_t *scratch, Result *result, Arena *arena) {
    int64_t parts = reserve_parts(tasks, count, forest->batch, scratch);
    if (count > spec->most_tasks || parts > spec->most_parts) {
        result->why = count > spec->most_tasks ? TOO_MANY_TASKS : TOO_MANY_PARTS;
        result->need = count > spec->most_tasks ? count : parts;
        return 0;
    }
    double *load = TAKE(arena, double, spec->num_slots), sum = 0, largest = 0;
    for (int32_t t = 0; t < count; t++) load[tasks[t].slot] += tasks[t].us;
    for (int32_t s = 0; s < spec->num_slots; s++) {
        sum += load[s];
        largest = fmax(largest, load[s]);
    }
    double balance = largest > 0 ? sum / spec->num_slots / largest : 1;
    double us = largest + merge_us(forest, spec, parts);
    Schedule *best = &candidate->best;
    if (!best->tasks || us < 0.98 * best->us)
        *best = (Schedule){count, tasks, us, balance, parts};
    return balance >= BALANCED;
}

/* The best of some schedules of tiles of the first `sizes` sizes; best.tasks stays NULL if none
 * fits. */
static Candidate schedule(const Forest *forest, const Reading *reading, const Spec *spec,
                          int32_t sizes, Result *result, Arena *arena) {
    Candidate candidate = {*reading, NULL, 0, {0}};
    int32_t count = query_tiles(reading, spec, sizes, &candidate.items, arena);
    int32_t bundles = reading->num_bundles, slots = spec->num_slots;
    const Item *items = candidate.items;
    int32_t *scratch = TAKE(arena, int32_t, forest->batch + 1);
    candidate.num_items = count;

    Task *own = TAKE(arena, Task, bundles + slots);
    double *busy = TAKE(arena, double, slots), sum = 0, total = 0;
    char *is_ganged = TAKE(arena, char, count);
    append_bundles(reading, spec, own);
    for (int32_t b = 0; b < bundles; b++) sum += own[b].us;
    for (int32_t i = 0; i < count; i++) total += items[i].us;
    int32_t gangs = cut_gangs(items, count, (sum + total) / slots, spec, is_ganged, own + bundles);
    longest_first(own, bundles + gangs, busy, slots, arena);
    Task *tasks = TAKE(arena, Task, count + 2 * slots + bundles);
    int32_t done = cut_tape(items, count, is_ganged, busy, spec, tasks, arena);
    memcpy(tasks + done, own, (bundles + gangs) * sizeof(Task));
    done += gangs;
    if (keep(&candidate, forest, spec, tasks, done + bundles, scratch, result, arena))
        return candidate;

    double smallest = 0, target = count ? smallest_target(items, count, spec, sum, &smallest) : 0;
    for (int32_t i = 0; count && i < COUNT(FINER) + COUNT(COARSER); i++) {
        int is_coarser = i >= COUNT(FINER);
        if (candidate.best.tasks && (is_coarser || (i && done > MANY_TASKS))) break;
        double finer = is_coarser ? COARSER[i - COUNT(FINER)] : FINER[i];
        double each = finer > 0 ? fmax(target / finer, smallest) : 0;
        int64_t chunks = count_chunks(items, count, spec, each);
        if (chunks + bundles > spec->most_tasks) {
            result->why = TOO_MANY_TASKS;
            result->need = chunks + bundles;
            continue;
        }
        tasks = TAKE(arena, Task, chunks + bundles);
        double *load = TAKE(arena, double, slots);
        done = divide(items, count, spec, each, tasks);
        if (bundles) memcpy(tasks + done, own, bundles * sizeof(Task));
        longest_first(tasks, done + bundles, load, slots, arena);
        if (keep(&candidate, forest, spec, tasks, done + bundles, scratch, result, arena))
            break;
    }
    return candidate;
}

/* Whether any item is a tile of this size. */
static int has_tile(const Candidate *candidate, int32_t size) {
    for (int32_t i = 0; i < candidate->num_items; i++)
        if (candidate->items[i].tile == size) return 1;
    return 0;
}

/* Kernel order: by class, then slot, then longest first. */
static int32_t *kernel_order(const Candidate *candidate, const Spec *spec, int32_t classes,
                             int32_t *slot_indptr, Arena *arena) {
    const Schedule *best = &candidate->best;
    int32_t slots = spec->num_slots, cells = classes * slots;
    int32_t *begin = TAKE(arena, int32_t, cells + 1), *filled = TAKE(arena, int32_t, cells);
    int32_t *order = TAKE(arena, int32_t, best->count);
#define CELL(task) \
    (((task).item < 0 ? spec->num_tiles : candidate->items[(task).item].tile) * slots + (task).slot)
    for (int32_t t = 0; t < best->count; t++) begin[CELL(best->tasks[t]) + 1]++;
    for (int32_t c = 0; c < cells; c++) begin[c + 1] += begin[c];
    for (int32_t t = 0; t < best->count; t++) {
        int32_t cell = CELL(best->tasks[t]), at = begin[cell] + filled[cell]++;
        for (; at > begin[cell] && best->tasks[order[at - 1]].us < best->tasks[t].us; at--)
            order[at] = order[at - 1];
        order[at] = t;
    }
#undef CELL
    for (int32_t c = 0; c < classes; c++)
        for (int32_t s = 0; s <= slots; s++)
            slot_indptr[c * (slots + 1) + s] = begin[c * slots + s];
    return order;
}

/* Each row's partial rows in token order, a bundle's last; -1 for a direct result. */
static void list_parts(const Forest *forest, const Candidate *candidate, const int32_t *part_of,
                       int32_t *indptr, int32_t *rows, Arena *arena) {
    const Schedule *best = &candidate->best;
    int64_t *start = TAKE(arena, int64_t, indptr[forest->batch]);
    int32_t *filled = TAKE(arena, int32_t, forest->batch);
    for (int32_t t = 0; t < best->count; t++) {
        const Task *task = best->tasks + t;
        int64_t own = task->item < 0 ? (int64_t)1 << 40
                                     : (int64_t)candidate->items[task->item].start + task->begin;
        for (int32_t q = 0; q < task->queries; q++) {
            int32_t row = forest->order[task->first + q], at = indptr[row] + filled[row]++;
            for (; at > indptr[row] && start[at - 1] > own; at--) {
                start[at] = start[at - 1];
                rows[at] = rows[at - 1];
            }
            start[at] = own;
            rows[at] = part_of[t] < 0 ? -1 : part_of[t] + q;
        }
    }
}

static void write_plan(const Forest *forest, const Spec *spec, const Candidate *candidate,
                       Result *result) {
    Arena *arena = &result->arena;
    const Reading *reading = &candidate->reading;
    const Schedule *best = &candidate->best;
    int32_t batch = forest->batch, shared = num_shared(forest), slots = spec->num_slots;
    int32_t classes = spec->num_tiles + (spec->bundle_rows > 0), bundles = reading->num_bundles;
    int32_t num_parts = 0;
    for (int32_t t = 0; t < best->count; t++) num_parts += best->tasks[t].queries;
    result->num_tasks = best->count;
    result->num_bundles = bundles;
    result->num_pieces = reading->num_pieces;
    result->num_parts = num_parts;
    result->num_spans = reading->num_spans;
    result->num_shared = shared;
    result->num_classes = classes;
    result->parts = best->parts;
    result->kv_entries = reading->kv_entries;
    result->bundle_entries = reading->bundle_entries;
    result->ints = (int64_t)TASK_INTS * best->count + PIECE_INTS * reading->num_pieces +
                   (int64_t)classes * (slots + 1) + (batch + 1) + num_parts + 2 * batch +
                   (int64_t)SPAN_INTS * reading->num_spans + 3 * (int64_t)best->count +
                   2 * (int64_t)reading->num_pieces + shared;
    result->out = TAKE(arena, int32_t, result->ints);
    result->us = TAKE(arena, double, best->count);
    Sections to = sections_of(result, batch, slots);
    int32_t *tasks = to.tasks, *pieces = to.pieces, *node = to.node, *start = to.start;

    int32_t *order = kernel_order(candidate, spec, classes, to.slot_indptr, arena);
    int32_t *part_of = TAKE(arena, int32_t, best->count), reserved = 0;
    int64_t entry = 0;
    for (int32_t i = 0; i < best->count; i++) {
        const Task *task = best->tasks + order[i];
        int32_t *out_task = tasks + TASK_INTS * i;
        part_of[order[i]] = task->part < 0 ? -1 : reserved;
        reserved += task->part < 0 ? 0 : task->queries;
        out_task[1] = task->tokens;
        out_task[2] = task->first;
        out_task[3] = task->queries;
        out_task[4] = part_of[order[i]];
        to.slot[i] = task->slot;
        result->us[i] = task->us;
        if (task->item < 0) {
            int32_t b = -1 - task->item, first = reading->piece_begin[b], tails = 0;
            int32_t count = reading->piece_begin[b + 1] - first;
            for (int32_t p = first; p < first + count; p++) tails += reading->pieces[p].is_tail;
            out_task[0] = (int32_t)entry;
            out_task[5] = -1;
            out_task[6] = first;
            out_task[7] = count;
            node[i] = -1;
            start[i] = 0;
            entry += aligned(task->tokens + (int64_t)tails * spec->headroom);
            continue;
        }
        const Item *item = candidate->items + task->item;
        const Run *run = reading->runs + item->run;
        /* the last chunk of a tail is open: its length follows the row's own */
        int is_open = run->is_tail && spec->headroom > 0 && task->begin + task->tokens == run->length;
        out_task[0] = (int32_t)(run->offset + task->begin);
        out_task[5] = is_open ? forest->order[task->first] : -1;
        out_task[6] = start[i] = run->start + task->begin;
        out_task[7] = task->tokens + (is_open ? spec->headroom : 0);
        node[i] = run->node;
    }
    for (int32_t p = 0; p < reading->num_pieces; p++) {
        const Piece *piece = reading->pieces + p;
        int is_open = piece->is_tail && spec->headroom > 0;
        pieces[PIECE_INTS * p] = (int32_t)piece->offset;
        pieces[PIECE_INTS * p + 1] = piece->length + (is_open ? spec->headroom : 0);
        pieces[PIECE_INTS * p + 2] = is_open ? forest->order[piece->node - shared] : -1;
        pieces[PIECE_INTS * p + 3] = piece->low + (piece->high << 16);
        to.piece_node[p] = piece->node;
        to.piece_start[p] = piece->start;
    }
    for (int32_t t = 0; t < best->count; t++)
        for (int32_t q = 0; q < best->tasks[t].queries; q++)
            to.part_indptr[forest->order[best->tasks[t].first + q] + 1]++;
    for (int32_t r = 0; r < batch; r++) to.part_indptr[r + 1] += to.part_indptr[r];
    list_parts(forest, candidate, part_of, to.part_indptr, to.part_rows, arena);
    for (int32_t r = 0; r < batch; r++) {
        to.append_base[r] = reading->append_base[r];
        to.max_lengths[r] = forest->lengths[r] + (reading->has_tail[r] ? spec->headroom : 0);
    }
    memcpy(to.spans, reading->spans, sizeof(int32_t) * SPAN_INTS * reading->num_spans);
    for (int32_t n = 0; n < shared; n++) to.absorbed[n] = reading->absorbed[n];
}

/* What reading its tokens takes at the least, however they are scheduled. */
static double least_us(const Reading *reading, const Spec *spec) {
    int32_t largest = spec->row_tiles[spec->num_tiles - 1] / spec->group;
    double tokens = 0;
    for (int32_t r = 0; r < reading->num_runs; r++)
        tokens += (double)up(reading->runs[r].last - reading->runs[r].first, largest) *
                  tile_share(reading->runs + r, largest) * reading->runs[r].length;
    for (int32_t p = 0; p < reading->num_pieces; p++) tokens += reading->pieces[p].length;
    return tokens * token_us(spec) / spec->num_slots;
}

/* Whether a way absorbs just what the last one with the same units did. */
static int same_reading(const Reading *reading, const Reading *last, int32_t way, int32_t shared) {
    if (!last->absorbed || way == SINGLE || WAYS[way] == 0) return 0;
    return !memcmp(reading->absorbed, last->absorbed, shared);
}

/* Plans a batch; `out` stays NULL if nothing fits. */
static void plan_batch(const Forest *forest, const Spec *spec, Result *result) {
    Arena *arena = &result->arena;
    Units single = single_units(forest, arena), units = bundle_tails(forest, spec, arena);
    Candidate best = {0};
    Reading last = {0};
    for (int32_t way = units.bundles ? 0 : SINGLE; way < COUNT(WAYS); way++) {
        if (WAYS[way] == 0 && best.best.tasks) break; /* only where nothing else fits */
        const Units *rows = way < SINGLE ? &units : &single;
        Reading reading = read_forest(forest, rows, spec, WAYS[way], arena);
        int64_t need;
        int32_t why = check_reading(&reading, spec, &need);
        if (why != FITS) {
            result->why = why;
            result->need = need;
            continue;
        }
        if (best.best.tasks && least_us(&reading, spec) >= best.best.us) continue;
        if (same_reading(&reading, &last, way, num_shared(forest))) continue;
        last = reading;
        /* smaller tiles are more tasks, where the slots do not have enough of them */
        for (int32_t sizes = spec->num_tiles; sizes > 0; sizes--) {
            Candidate candidate = schedule(forest, &reading, spec, sizes, result, arena);
            if (!candidate.best.tasks) break;
            double worth = sizes < spec->num_tiles ? WORTH_SMALLER : 1;
            if (!best.best.tasks || candidate.best.us < worth * best.best.us) best = candidate;
            if (candidate.best.balance >= BALANCED || candidate.best.count > FEW_TASKS ||
                !has_tile(&candidate, sizes - 1))
                break;
        }
    }
    if (best.best.tasks) {
        result->why = FITS;
        write_plan(forest, spec, &best, result);
    }
}

/* Plans a batch. The result stays until codec_release. */
Result *codec_plan(const Forest *forest, const Spec *spec) {
    Result *result = calloc(1, sizeof(Result));
    if (result) plan_batch(forest, spec, result);
    return result;
}

/* Copies the plan to where Python keeps it and forgets it. */
void codec_release(Result *result, int32_t *out, double *us) {
    if (out && result->out) {
        memcpy(out, result->out, result->ints * sizeof(int32_t));
        memcpy(us, result->us, result->num_tasks * sizeof(double));
    }
    give_back(&result->arena);
    free(result);
}

/* From radix paths to what is uploaded, in one call; `max_lengths` [batch]. Whether a plan fits. */
int32_t codec_pack(const Paths *paths, const Spec *spec, const Layout *layout, int32_t *out,
                   int32_t *max_lengths, Packed *packed) {
    Result result = {0};
    Forest forest = forest_of(paths, &result.arena);
    plan_batch(&forest, spec, &result);
    int32_t fits = result.out && pack_plan(&forest, &result, layout, out, packed);
    packed->why = result.why;
    packed->need = result.need;
    if (fits) {
        Sections from = sections_of(&result, forest.batch, spec->num_slots);
        memcpy(max_lengths, from.max_lengths, forest.batch * sizeof(int32_t));
    }
    give_back(&result.arena);
    return fits;
}

/* The forest of radix paths, for tests: order, lengths, parent, start, length, first, last one
 * after the other; returns the number of nodes. */
int32_t codec_forest(const Paths *paths, int32_t *out) {
    Arena arena = {0};
    Forest forest = forest_of(paths, &arena);
    const int32_t *rows[] = {forest.order, forest.lengths};
    const int32_t *nodes[] = {forest.parent, forest.start, forest.length, forest.first,
                              forest.last};
    for (int32_t i = 0; i < COUNT(rows); i++, out += forest.batch)
        memcpy(out, rows[i], forest.batch * sizeof(int32_t));
    for (int32_t i = 0; i < COUNT(nodes); i++, out += forest.num_nodes)
        memcpy(out, nodes[i], forest.num_nodes * sizeof(int32_t));
    give_back(&arena);
    return forest.num_nodes;
}
