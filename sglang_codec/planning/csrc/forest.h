/* Runs of KV tokens and who reads them; see planning/forest.py. */
#ifndef CODEC_FOREST_H
#define CODEC_FOREST_H

#include "common.h"

/* The radix paths of a batch, see planning/paths.py. */
typedef struct {
    int32_t batch, num_paths;
    const int32_t *parent, *end; /* [num_paths] */
    const int32_t *leaf, *lengths; /* [batch] */
    int32_t private_tokens;
} Paths;

/* Prunes, merges and orders path nodes; `lengths` of the forest are those of the paths. */
static Forest forest_of(const Paths *paths, Arena *arena) {
    int32_t batch = paths->batch, num_paths = paths->num_paths;
    /* runs nest, and each has two readers and other ones than its parent: fewer runs than rows */
    int32_t room = least(num_paths, most(batch - 1, 0)), most_nodes = room + batch;
    int32_t *order = TAKE(arena, int32_t, 5 * (int64_t)most_nodes + 2 * (int64_t)batch +
                                              num_paths + 1 + room + 1);
    int32_t *parent = order + batch, *start = parent + most_nodes, *length = start + most_nodes;
    int32_t *first = length + most_nodes, *last = first + most_nodes;
    int32_t *leaf = last + most_nodes; /* [batch] the deepest node that is used, or num_paths */
    int32_t *run = leaf + batch; /* [num_paths + 1] readers of each node, then its run or -1 */
    int32_t *inner = run + num_paths + 1; /* [shared + 1] at n + 1: readers of the runs below n */

    /* nodes are a token or longer: at most `private_tokens` steps from a leaf within its row */
    for (int32_t r = 0; r < batch; r++) {
        int32_t n = paths->leaf[r], limit = paths->lengths[r] - paths->private_tokens;
        while (n >= 0 && paths->end[n] > limit) n = paths->parent[n];
        leaf[r] = n < 0 ? num_paths : n;
        run[leaf[r]]++;
    }
    run[num_paths] = -1;
    for (int32_t n = num_paths - 1; n >= 0; n--)
        if (paths->parent[n] >= 0) run[paths->parent[n]] += run[n];

    /* a node survives with two readers; it joins its parent when the readers are the same */
    int32_t shared = 0;
    for (int32_t n = 0; n < num_paths; n++) {
        int32_t readers = run[n], above = paths->parent[n] < 0 ? -1 : run[paths->parent[n]];
        if (readers < 2 || (above >= 0 && last[above] == readers)) {
            run[n] = above;
            if (readers >= 2) length[above] = paths->end[n] - start[above];
            continue;
        }
        parent[shared] = above;
        start[shared] = above < 0 ? 0 : start[above] + length[above];
        length[shared] = paths->end[n] - start[shared];
        last[shared] = readers;
        inner[above + 1] += readers;
        run[n] = shared++;
    }

    /* depth first: rows that share nothing, then a node's own rows and its children's */
    int32_t roots = batch - inner[0];
    inner[0] = 0;
    for (int32_t n = 0; n < shared; n++) {
        int32_t readers = last[n], *at = parent[n] < 0 ? &roots : last + parent[n];
        first[n] = *at;
        *at += readers;
        last[n] = first[n] + readers - inner[n + 1]; /* its children move it to its end */
        inner[n + 1] = first[n]; /* from here on where the next row of its own goes */
    }
    for (int32_t r = 0; r < batch; r++) {
        int32_t above = run[leaf[r]], p = inner[above + 1]++, n = shared + p;
        order[p] = r;
        parent[n] = above;
        start[n] = above < 0 ? 0 : start[above] + length[above];
        length[n] = paths->lengths[r] - start[n];
        first[n] = p;
        last[n] = p + 1;
    }
    return (Forest){batch, shared + batch, order, paths->lengths, parent, start, length, first,
                    last};
}

#endif
