"""What a sliding window leaves of a batch: each row sees its newest tokens only.

The window of a `MACHINE` or of a forest is a number of tokens, a row's own newest one included; 0
is for no window. A row's *edge* is the first token that it sees; it moves on with the row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_codec.planning.compiled import compiled, leaf
from sglang_codec.planning.structure import Forest, first_seen
from sglang_codec.planning.tables import ints

# of rows that have no tail in the KV index; where there are windows the entry of a row's token 0,
# which need not be listed, may lie before the index
_NO_TAIL, _NO_TAIL_BEHIND_WINDOW = -1, -(1 << 30)


class Edges(NamedTuple):
    """Of the readers of each node, int64 ``[N]``: the least edge; where all edges will be passed.

    From the token `passed` on every reader sees the node as long as the plan lives.
    """

    least: np.ndarray
    passed: np.ndarray


@leaf
def no_tail(window: int) -> int:
    """`Plan.append_base` of a row without a tail; that of any other row is larger."""
    return _NO_TAIL_BEHIND_WINDOW if window > 0 else _NO_TAIL


@compiled
def edges_of(forest: Forest, machine: np.record) -> Edges:
    """The edges of a forest's rows, node by node."""
    nodes, window, shared = forest.nodes, machine.window, forest.num_shared
    least, passed = ints(len(nodes)), ints(len(nodes))
    if window == 0:
        return Edges(least, passed)
    for n in range(shared):
        least[n] = nodes[n].start + nodes[n].length
    for n in range(len(nodes) - 1, -1, -1):
        node = nodes[n]
        if n >= shared:
            tokens = node.start + node.length
            least[n] = first_seen(tokens, window)
            passed[n] = max(tokens + machine.headroom - window, 0)
        if node.parent >= 0:
            least[node.parent] = min(least[node.parent], least[n])
            passed[node.parent] = max(passed[node.parent], passed[n])
    return Edges(least, passed)
