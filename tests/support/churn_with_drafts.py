"""`churn.py` on a CPU with a server that speculates there; its arguments, and SGLang's after `--`.

python churn_with_drafts.py --shape tiny --minutes 60 --round 150 --require-equal --json FILE -- \
    --speculative-algorithm=NGRAM --speculative-num-draft-tokens=4 \
    --speculative-ngram-max-bfs-breadth=1 --speculative-ngram-min-bfs-breadth=1
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

_SERVES = "CODEC_TESTS_SERVE"
_HERE = Path(__file__).resolve()
_SERVE = _HERE.parents[2] / "scripts" / "serve"

if os.environ.get(_SERVES):
    # SGLang's processes are spawned, and each imports this file first
    sys.path.insert(0, str(_HERE.parent))
    from speculation_ops import NgramStandIn, prepare

    prepare()
    _in_place = NgramStandIn.in_place()
    _in_place.__enter__()

if __name__ == "__main__":
    if os.environ.get(_SERVES):
        runpy.run_module("sglang.launch_server", run_name="__main__")
    else:
        sys.path.insert(0, str(_SERVE))
        import churn
        from library.servers import server

        server.PROGRAM = (str(_HERE),)
        os.environ[_SERVES] = "1"
        server.leave_on_sigterm()
        sys.exit(churn.main())
